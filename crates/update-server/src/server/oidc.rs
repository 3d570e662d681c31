//! Signing in with somebody who vouches for people: OpenID Connect, by authorization code with PKCE.
//!
//! The browser keeps one secret while it is away, in a cookie. What goes to the provider (state,
//! nonce, the verifier's hash) is derived from it, so that nothing is remembered here and any of
//! several servers can take the answer.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use release::Sha256;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use crate::api::Role;

/// No provider's answer is larger.
const LARGEST: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(10);
/// Clocks differ.
const LEEWAY_SECONDS: u64 = 60;
/// With a symmetric one anybody who knows our secret, and we ourselves, could vouch for anybody.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];
/// Who is named so, everybody is.
const EVERYBODY: &str = "*";

#[derive(Clone, Debug, clap::Args)]
pub struct IssuerOptions {
    /// Who vouches for people on the dashboard (OpenID Connect): the issuer's address
    #[arg(long, env = "ORLOP_SERVE_OIDC_ISSUER", value_name = "URL", value_parser = issuer)]
    pub oidc_issuer: Option<String>,
    /// What the issuer knows this server as
    #[arg(
        long,
        env = "ORLOP_SERVE_OIDC_CLIENT_ID",
        value_name = "ID",
        requires = "oidc_issuer"
    )]
    pub oidc_client_id: Option<String>,
    /// File with the secret that the issuer shares with this server, if it wants one
    #[arg(
        long,
        env = "ORLOP_SERVE_OIDC_CLIENT_SECRET_FILE",
        value_name = "FILE",
        requires = "oidc_issuer"
    )]
    pub oidc_client_secret_file: Option<PathBuf>,
    /// The claim that says what somebody may do: a word, or a list
    #[arg(
        long,
        env = "ORLOP_SERVE_OIDC_CLAIM",
        value_name = "CLAIM",
        default_value = "groups"
    )]
    pub oidc_claim: String,
    /// Whose claim has this may change things; several separated by commas
    #[arg(
        long,
        env = "ORLOP_SERVE_OIDC_OPERATORS",
        value_name = "VALUES",
        value_delimiter = ','
    )]
    pub oidc_operators: Vec<String>,
    /// Whose claim has this may look; `*`: everybody whom the issuer knows
    #[arg(
        long,
        env = "ORLOP_SERVE_OIDC_VIEWERS",
        value_name = "VALUES",
        value_delimiter = ','
    )]
    pub oidc_viewers: Vec<String>,
}

fn issuer(text: &str) -> Result<String, &'static str> {
    let Some(rest) = text.strip_prefix("http://") else {
        return match text.strip_prefix("https://") {
            Some(rest) if !rest.is_empty() => Ok(text.to_owned()),
            _ => Err("write it as https://HOST/…, as the issuer does"),
        };
    };
    // What comes back over the wire in the clear, anybody on the way can claim.
    let host = rest.split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    match host {
        "localhost" | "127.0.0.1" | "[::1]" => Ok(text.to_owned()),
        _ => Err("only https:// keeps others from vouching"),
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    #[error("--oidc-issuer needs --oidc-client-id")]
    NoClient,
    #[error("the secret in {} cannot be read", path.display())]
    Secret {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("no client for HTTPS can be made")]
    Client(#[source] reqwest::Error),
    #[error("{what} cannot be fetched from the issuer: {why}")]
    Fetch { what: &'static str, why: String },
    #[error("the issuer refuses: {0}")]
    Refused(String),
    #[error("the issuer's answer is of no use: {0}")]
    Bad(String),
    #[error("{0} is known to the issuer, but may not see this fleet")]
    NoRole(String),
}

/// What the issuer says of itself.
#[derive(Clone, Deserialize)]
struct Discovered {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

pub(super) struct Oidc {
    issuer: String,
    client_id: String,
    secret: Option<String>,
    claim: String,
    operators: Vec<String>,
    viewers: Vec<String>,
    http: reqwest::Client,
    discovered: Mutex<Option<Discovered>>,
}

/// Somebody for whom the issuer vouched.
pub(super) struct Person {
    pub(super) name: String,
    pub(super) role: Role,
}

/// What the browser keeps, and what is derived from it.
pub(super) struct Trip<'a>(pub(super) &'a str);

impl Trip<'_> {
    fn derive(&self, what: &str) -> String {
        Sha256::of(format!("{what}:{}", self.0)).to_string()
    }

    pub(super) fn state(&self) -> String {
        self.derive("state")
    }

    fn nonce(&self) -> String {
        self.derive("nonce")
    }

    fn verifier(&self) -> String {
        self.derive("verifier")
    }

    fn challenge(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(Sha256::of(self.verifier()).0)
    }
}

impl Oidc {
    pub(super) fn new(options: &IssuerOptions) -> Result<Option<Self>, OidcError> {
        let Some(issuer) = options.oidc_issuer.clone() else {
            return Ok(None);
        };
        let client_id = options.oidc_client_id.clone().ok_or(OidcError::NoClient)?;
        let read = |path: &PathBuf| {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|source| OidcError::Secret {
                path: path.clone(),
                source,
            })?;
            Ok(text.trim().to_owned())
        };
        let secret = options.oidc_client_secret_file.as_ref().map(read);
        let http = reqwest::Client::builder()
            .timeout(PATIENCE)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(OidcError::Client)?;
        if options.oidc_operators.is_empty() && options.oidc_viewers.is_empty() {
            tracing::warn!(
                "neither --oidc-operators nor --oidc-viewers is given: nobody gets in by {issuer}"
            );
        }
        Ok(Some(Self {
            issuer,
            client_id,
            secret: secret.transpose()?,
            claim: options.oidc_claim.clone(),
            operators: options.oidc_operators.clone(),
            viewers: options.oidc_viewers.clone(),
            http,
            discovered: Mutex::new(None),
        }))
    }

    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The issuer's host, for people.
    pub(super) fn host(&self) -> &str {
        let rest = self.issuer.split("://").nth(1).unwrap_or_default();
        rest.split('/').next().unwrap_or_default()
    }

    async fn discovered(&self) -> Result<Discovered, OidcError> {
        let mut known = self.discovered.lock().await;
        if let Some(known) = &*known {
            return Ok(known.clone());
        }
        let base = self.issuer.trim_end_matches('/');
        let url = format!("{base}/.well-known/openid-configuration");
        let found: Discovered = self.fetch("its configuration", self.http.get(url)).await?;
        if found.issuer != self.issuer {
            let what = format!("it calls itself {}, not {}", found.issuer, self.issuer);
            return Err(OidcError::Bad(what));
        }
        *known = Some(found.clone());
        Ok(found)
    }

    async fn fetch<T: DeserializeOwned>(
        &self,
        what: &'static str,
        request: reqwest::RequestBuilder,
    ) -> Result<T, OidcError> {
        let failed = |error: reqwest::Error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            let why = format!("{error}{}", cause.unwrap_or_default());
            OidcError::Fetch { what, why }
        };
        let mut answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        let mut body = vec![];
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > LARGEST {
                let why = format!("it has more than {LARGEST} bytes");
                return Err(OidcError::Fetch { what, why });
            }
        }
        if !status.is_success() {
            let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let words = ["error", "error_description"].map(|name| said[name].as_str());
            let words: Vec<&str> = words.into_iter().flatten().collect();
            let why = format!("{status} {}", words.join(": "));
            return Err(OidcError::Refused(why.trim_end().to_owned()));
        }
        serde_json::from_slice(&body).map_err(|error| OidcError::Bad(format!("{what}: {error}")))
    }

    /// Where the browser is sent.
    pub(super) async fn way(&self, trip: &Trip<'_>, redirect: &str) -> Result<String, OidcError> {
        let found = self.discovered().await?;
        let query = encode(&[
            ("response_type", "code"),
            ("client_id", &self.client_id),
            ("redirect_uri", redirect),
            ("scope", "openid profile email"),
            ("state", &trip.state()),
            ("nonce", &trip.nonce()),
            ("code_challenge", &trip.challenge()),
            ("code_challenge_method", "S256"),
        ]);
        let sign = if found.authorization_endpoint.contains('?') {
            '&'
        } else {
            '?'
        };
        Ok(format!("{}{sign}{query}", found.authorization_endpoint))
    }

    /// Whom the code stands for.
    pub(super) async fn person(
        &self,
        trip: &Trip<'_>,
        code: &str,
        redirect: &str,
    ) -> Result<Person, OidcError> {
        #[derive(Deserialize)]
        struct Tokens {
            id_token: String,
        }
        let found = self.discovered().await?;
        let verifier = trip.verifier();
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect),
            ("code_verifier", &verifier),
        ];
        let mut request = self.http.post(&found.token_endpoint);
        let methods = found.token_endpoint_auth_methods_supported.as_deref();
        let knows = |method: &str| methods.is_none_or(|known| known.iter().any(|m| m == method));
        match &self.secret {
            Some(secret) if knows("client_secret_basic") => {
                let (id, secret) = (percent(&self.client_id), percent(secret));
                request = request.basic_auth(id, Some(secret));
            }
            Some(secret) => form.extend([
                ("client_id", self.client_id.as_str()),
                ("client_secret", secret.as_str()),
            ]),
            None => form.push(("client_id", &self.client_id)),
        }
        let request = request
            .header("content-type", "application/x-www-form-urlencoded")
            .header("accept", "application/json")
            .body(encode(&form));
        let tokens: Tokens = self.fetch("who it is", request).await?;
        let keys = self.http.get(&found.jwks_uri);
        let keys: JwkSet = self.fetch("its keys", keys).await?;
        self.verify(&tokens.id_token, &keys, &trip.nonce())
    }

    fn verify(&self, token: &str, keys: &JwkSet, nonce: &str) -> Result<Person, OidcError> {
        let bad = |what: String| OidcError::Bad(what);
        let header = jsonwebtoken::decode_header(token).map_err(|e| bad(e.to_string()))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(bad(format!(
                "{:?} signs nothing that others can check",
                header.alg
            )));
        }
        let fits = |key: &&Jwk| header.kid.is_none() || key.common.key_id == header.kid;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.client_id]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_SECONDS;
        let mut why = "none of its keys signed it".to_owned();
        let mut claims = None;
        for key in keys.keys.iter().filter(fits) {
            let decoded = DecodingKey::from_jwk(key).and_then(|key| {
                jsonwebtoken::decode::<serde_json::Value>(token, &key, &validation)
            });
            match decoded {
                Ok(decoded) => {
                    claims = Some(decoded.claims);
                    break;
                }
                Err(error) => why = error.to_string(),
            }
        }
        let claims = claims.ok_or_else(|| bad(format!("the token is not valid: {why}")))?;
        if claims["nonce"].as_str() != Some(nonce) {
            return Err(bad("the token is the answer to another question".into()));
        }
        let many = claims["aud"].as_array().is_some_and(|aud| aud.len() > 1);
        let party = claims["azp"].as_str();
        if many && party.is_none() || party.is_some_and(|party| party != self.client_id) {
            return Err(bad("the token is for another party".into()));
        }
        let name = self.name(&claims);
        let role = self.role(&claims[&self.claim]);
        role.map(|role| Person {
            name: name.clone(),
            role,
        })
        .ok_or(OidcError::NoRole(name))
    }

    /// Never what one of our own tokens is called.
    fn name(&self, claims: &serde_json::Value) -> String {
        let unsure = claims["email_verified"].as_bool() == Some(false);
        let email = claims["email"].as_str().filter(|_| !unsure);
        let names = [
            claims["preferred_username"].as_str(),
            email,
            claims["sub"].as_str(),
        ];
        let name = names.into_iter().flatten().find(|name| !name.is_empty());
        let name: String = name.unwrap_or("somebody").chars().take(64).collect();
        format!("{name} ({})", self.host())
    }

    fn role(&self, claim: &serde_json::Value) -> Option<Role> {
        let said: Vec<&str> = match claim {
            serde_json::Value::String(one) => vec![one],
            serde_json::Value::Array(many) => many.iter().filter_map(|one| one.as_str()).collect(),
            _ => vec![],
        };
        let is = |wanted: &[String]| {
            let named = |wanted: &String| wanted == EVERYBODY || said.contains(&wanted.as_str());
            wanted.iter().any(named)
        };
        if is(&self.operators) {
            Some(Role::Operator)
        } else {
            is(&self.viewers).then_some(Role::Viewer)
        }
    }
}

fn encode(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={}", percent(value)))
        .collect();
    pairs.join("&")
}

fn percent(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
