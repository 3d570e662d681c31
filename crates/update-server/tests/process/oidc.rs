//! Signing in with an issuer: a small OpenID provider on loopback that checks what real ones check.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use release::Sha256;
use serde_json::{Value, json};

use crate::support::{Lab, Running};

/// With a character in it that has to be escaped twice.
const SECRET: &str = "s3cret+of:ours";
const ID: &str = "orlop dashboard";

/// What the provider is to say, and what it was asked.
#[derive(Default)]
struct Mind {
    /// Replaces claims; null takes one away.
    claims: HashMap<&'static str, Value>,
    /// Signs with a key that it does not publish, or not at all.
    forged: Option<Algorithm>,
    asked: HashMap<String, String>,
    codes: u32,
}

struct Provider {
    issuer: String,
    key: Vec<u8>,
    public: Vec<u8>,
    mind: Mutex<Mind>,
}

fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("in");
    std::fs::write(&file, input).unwrap();
    let mut command = Command::new("openssl");
    command.args(arguments);
    if !input.is_empty() {
        command.arg("-in").arg(&file);
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn new_key() -> Vec<u8> {
    let curve = [
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-outform",
        "PEM",
    ];
    openssl(&curve, b"")
}

fn decode(text: &str) -> String {
    let (mut bytes, mut rest) = (vec![], text.as_bytes());
    while let [first, more @ ..] = rest {
        rest = more;
        match first {
            b'%' => {
                let hex = std::str::from_utf8(&more[..2]).unwrap();
                bytes.push(u8::from_str_radix(hex, 16).unwrap());
                rest = &more[2..];
            }
            b'+' => bytes.push(b' '),
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn pairs(text: &str) -> HashMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

impl Provider {
    fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let key = new_key();
        let public = openssl(&["pkey", "-pubout", "-outform", "DER"], &key);
        let provider = Arc::new(Self {
            issuer: format!("http://{}", listener.local_addr().unwrap()),
            public: public[public.len() - 64..].to_vec(),
            key,
            mind: Mutex::default(),
        });
        let own = Arc::clone(&provider);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                own.answer(stream.unwrap());
            }
        });
        provider
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut lines, mut line) = (vec![], String::new());
        while reader.read_line(&mut line).unwrap_or(0) > 2 {
            lines.push(std::mem::take(&mut line).trim_end().to_owned());
        }
        let Some(first) = lines.first() else { return };
        let header = |name: &str| {
            let found = lines.iter().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then(|| value.to_owned())
            });
            found.unwrap_or_default()
        };
        let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
        reader.read_exact(&mut body).unwrap();
        let target = first.split(' ').nth(1).unwrap();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut more = String::new();
        let (status, answer) = match path {
            "/.well-known/openid-configuration" => (200, self.configuration()),
            "/keys" => (200, self.keys()),
            "/authorize" => {
                more = format!("Location: {}\r\n", self.authorize(pairs(query)));
                (302, json!({}))
            }
            "/token" => {
                let form = pairs(std::str::from_utf8(&body).unwrap());
                match self.token(&form, &header("authorization")) {
                    Ok(token) => (
                        200,
                        json!({"access_token": "x", "token_type": "Bearer", "id_token": token}),
                    ),
                    Err(error) => (400, json!({"error": error})),
                }
            }
            other => panic!("nobody asks for {other}"),
        };
        let answer = answer.to_string();
        let length = answer.len();
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n"
        );
        stream
            .write_all(format!("{head}{answer}").as_bytes())
            .unwrap();
    }

    fn configuration(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "authorization_endpoint": format!("{}/authorize", self.issuer),
            "token_endpoint": format!("{}/token", self.issuer),
            "jwks_uri": format!("{}/keys", self.issuer),
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    fn keys(&self) -> Value {
        let part = |from: usize| BASE64_URL_SAFE_NO_PAD.encode(&self.public[from..from + 32]);
        let key = json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "one", "x": part(0), "y": part(32)});
        json!({"keys": [key]})
    }

    /// Ann has signed in already; gives the way back.
    fn authorize(&self, asked: HashMap<String, String>) -> String {
        assert_eq!(
            (asked["response_type"].as_str(), asked["client_id"].as_str()),
            ("code", ID)
        );
        assert!(asked["scope"].split(' ').any(|scope| scope == "openid"));
        assert_eq!(asked["code_challenge_method"], "S256");
        let mut mind = self.mind.lock().unwrap();
        mind.codes += 1;
        let back = format!(
            "{}?code={}&state={}",
            asked["redirect_uri"], mind.codes, asked["state"]
        );
        mind.asked = asked;
        back
    }

    fn token(
        &self,
        form: &HashMap<String, String>,
        authorization: &str,
    ) -> Result<String, &'static str> {
        let mut mind = self.mind.lock().unwrap();
        let basic = authorization
            .strip_prefix("Basic ")
            .ok_or("invalid_client")?;
        let basic = String::from_utf8(BASE64_STANDARD.decode(basic).unwrap()).unwrap();
        let (id, secret) = basic.split_once(':').ok_or("invalid_client")?;
        if (decode(id).as_str(), decode(secret).as_str()) != (ID, SECRET) {
            return Err("invalid_client");
        }
        let hash = Sha256::of(form["code_verifier"].as_bytes());
        let challenge = BASE64_URL_SAFE_NO_PAD.encode(hash.0);
        let asked = std::mem::take(&mut mind.asked);
        let good = form["grant_type"] == "authorization_code"
            && form["code"] == mind.codes.to_string()
            && Some(&form["redirect_uri"]) == asked.get("redirect_uri")
            && Some(&challenge) == asked.get("code_challenge");
        if !good {
            return Err("invalid_grant");
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let mut claims = json!({
            "iss": self.issuer, "sub": "4711", "aud": ID, "nonce": asked["nonce"],
            "iat": now, "exp": now + 300, "preferred_username": "ann", "groups": ["staff", "fleet"],
        });
        for (name, value) in &mind.claims {
            claims[*name] = value.clone();
        }
        let (algorithm, key) = match mind.forged {
            None => (
                Algorithm::ES256,
                EncodingKey::from_ec_pem(&self.key).unwrap(),
            ),
            Some(Algorithm::ES256) => (
                Algorithm::ES256,
                EncodingKey::from_ec_pem(&new_key()).unwrap(),
            ),
            // What everybody knows as the secret.
            Some(other) => (other, EncodingKey::from_secret(SECRET.as_bytes())),
        };
        let header = Header {
            kid: Some("one".into()),
            ..Header::new(algorithm)
        };
        Ok(jsonwebtoken::encode(&header, &claims, &key).unwrap())
    }
}

/// As a browser does: status, cookies by name, body and where it is sent.
struct Browser<'a> {
    server: &'a Running,
    cookies: HashMap<String, String>,
}

struct Page {
    status: u16,
    location: String,
    body: String,
}

impl Browser<'_> {
    fn get(&mut self, path: &str) -> Page {
        let cookies: Vec<_> = self
            .cookies
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let headers = [("cookie", &*cookies.join("; ")), ("authorization", "")];
        let (status, headers, body) = self.server.request_all("GET", path, &headers, b"");
        for cookie in headers.get_all("set-cookie") {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            self.cookies.insert(name.into(), value.into());
        }
        let location = headers
            .get("location")
            .map(|value| value.to_str().unwrap().to_owned());
        Page {
            status,
            location: location.unwrap_or_default(),
            body: String::from_utf8(body).unwrap(),
        }
    }

    /// The way to the provider; gives the way back, as a path of our server.
    fn leave(&mut self) -> String {
        let page = self.get("/sign-in/oidc");
        assert_eq!(page.status, 303, "{}", page.body);
        let agent = ureq::Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build()
            .new_agent();
        let answer = agent.get(&page.location).call().unwrap();
        let back = answer.headers()["location"].to_str().unwrap().to_owned();
        back.strip_prefix(&self.server.url("")).unwrap().to_owned()
    }

    fn sign_in(&mut self) -> Page {
        let back = self.leave();
        self.get(&back)
    }
}

fn browser(server: &Running) -> Browser<'_> {
    Browser {
        server,
        cookies: HashMap::new(),
    }
}

fn lab(provider: &Provider, more: &[&str]) -> (Lab, Running) {
    let lab = Lab::new();
    std::fs::write(lab.path("secret"), format!("{SECRET}\n")).unwrap();
    let secret = lab.path("secret").display().to_string();
    let mut options = vec![
        "--require-sign-in",
        "--oidc-issuer",
        &provider.issuer,
        "--oidc-client-id",
        ID,
        "--oidc-client-secret-file",
        &secret,
    ];
    options.extend(more);
    let server = lab.start_with(&options);
    (lab, server)
}

#[test]
fn people_sign_in_with_their_issuer() {
    let provider = Provider::start();
    let (_lab, server) = lab(
        &provider,
        &["--oidc-operators", "fleet,root", "--oidc-viewers", "staff"],
    );
    let mut ann = browser(&server);
    assert_eq!(ann.get("/").location, "/sign-in");
    assert!(ann.get("/sign-in").body.contains("href=\"/sign-in/oidc\""));
    let page = ann.sign_in();
    assert_eq!(page.status, 200, "{}", page.body);
    let host = provider.issuer.strip_prefix("http://").unwrap();
    let page = ann.get("/");
    assert!(
        page.body.contains(&format!("ann ({host}) (operator)")),
        "{}",
        page.body
    );
    let activity = server.client().activity(false).unwrap();
    assert_eq!(activity[0].actor, Some(format!("ann ({host})")));

    // By the claim: a viewer, one by the word alone, nobody.
    provider
        .mind
        .lock()
        .unwrap()
        .claims
        .insert("groups", json!("staff"));
    let mut viewer = browser(&server);
    assert_eq!(viewer.sign_in().status, 200);
    assert!(viewer.get("/").body.contains("(viewer)"));
    provider
        .mind
        .lock()
        .unwrap()
        .claims
        .insert("groups", json!(["other"]));
    let page = browser(&server).sign_in();
    assert_eq!(page.status, 403, "{}", page.body);
    assert!(
        page.body.contains("may not see this fleet"),
        "{}",
        page.body
    );
}

#[test]
fn what_the_issuer_did_not_say_is_not_believed() {
    let provider = Provider::start();
    let (_lab, server) = lab(&provider, &["--oidc-viewers", "*"]);
    let refused = |what: &str, words: &str| {
        let mut browser = browser(&server);
        let page = browser.sign_in();
        assert_eq!(page.status, 502, "{what}: {}", page.body);
        assert!(page.body.contains(words), "{what}: {}", page.body);
        assert_eq!(browser.get("/").status, 303, "{what}: it got in");
    };
    for (claim, value) in [
        ("nonce", json!("of another time")),
        ("nonce", Value::Null),
        ("aud", json!("another party")),
        ("aud", json!([ID, "another party"])),
        ("azp", json!("another party")),
        ("iss", json!("http://127.0.0.1:1")),
        ("exp", json!(1_700_000_000)),
    ] {
        provider
            .mind
            .lock()
            .unwrap()
            .claims
            .insert(claim, value.clone());
        refused(&format!("{claim} {value}"), "is of no use");
        provider.mind.lock().unwrap().claims.clear();
    }
    for algorithm in [Algorithm::ES256, Algorithm::HS256] {
        provider.mind.lock().unwrap().forged = Some(algorithm);
        refused(&format!("signed with {algorithm:?}"), "is of no use");
    }
    provider.mind.lock().unwrap().forged = None;

    // An answer that this browser did not ask for, an answer twice, a refusal.
    let back = browser(&server).leave();
    let page = browser(&server).get(&back);
    assert_eq!(page.status, 403, "{}", page.body);
    let mut twice = browser(&server);
    let back = twice.leave();
    let other = back.replace("state=", "state=0");
    assert_eq!(twice.get(&other).status, 403);
    let mut twice = browser(&server);
    let back = twice.leave();
    let kept = twice.cookies.clone();
    assert_eq!(twice.get(&back).status, 200);
    let mut again = Browser {
        server: &server,
        cookies: kept,
    };
    let page = again.get(&back);
    assert!(
        page.status == 502 && page.body.contains("invalid_grant"),
        "{}",
        page.body
    );
    let mut refused = browser(&server);
    let state = refused.leave();
    let state = state.split("state=").nth(1).unwrap().to_owned();
    let page = refused.get(&format!(
        "/sign-in/oidc/back?error=access_denied&state={state}"
    ));
    assert!(
        page.status == 502 && page.body.contains("access_denied"),
        "{}",
        page.body
    );
    // After all that, Ann still gets in.
    assert_eq!(browser(&server).sign_in().status, 200);
}

#[test]
fn an_issuer_in_the_clear_is_refused() {
    let lab = Lab::new();
    let mut command = lab.command("127.0.0.1:0", "data", "keys");
    let output = command
        .args(["--oidc-issuer", "http://login.example"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("only https:// keeps others from vouching"),
        "{message}"
    );
}
