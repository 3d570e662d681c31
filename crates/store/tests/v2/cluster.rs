//! Three members with certificates of `pki`: each shows its own, each asks for one.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pki::{Pki, Wanted};

use super::peer;

const NAMES: [&str; 3] = ["n1", "n2", "n3"];
const PATIENCE: Duration = Duration::from_secs(120);

struct Member(Child);

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Cluster {
    dir: tempfile::TempDir,
    clients: [u16; 3],
    peers: [u16; 3],
}

impl Cluster {
    /// One certificate for each node, one for each client.
    fn new() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let home = dir.path().join("pki");
        pki::init(&home, "test-ca", 10, now).unwrap();
        let authority = Pki::open(&home).unwrap();
        let hosts = ["127.0.0.1".to_owned()];
        let wanted = |name, hosts| Wanted {
            name,
            hosts,
            days: 5,
            replace: false,
        };
        for name in NAMES {
            authority.member(&wanted(name, &hosts), now).unwrap();
        }
        for name in ["root", "reader"] {
            authority.client(&wanted(name, &[]), now).unwrap();
        }
        let [a, b, c, d, e, f] = peer::free_ports();
        Cluster {
            dir,
            clients: [a, b, c],
            peers: [d, e, f],
        }
    }

    fn start(&self, at: usize) -> Member {
        let (client, peer) = (self.clients[at], self.peers[at]);
        let client_url = format!("https://127.0.0.1:{client}");
        let peer_url = format!("https://127.0.0.1:{peer}");
        let all: Vec<String> = NAMES
            .iter()
            .zip(self.peers)
            .map(|(name, port)| format!("{name}=https://127.0.0.1:{port}"))
            .collect();
        let certificates = self.dir.path().join("pki/members").join(NAMES[at]);
        let log = std::fs::File::create(self.dir.path().join(NAMES[at]).with_extension("log"));
        let log = log.unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_orlop-store"));
        command
            .args(["--name", NAMES[at], "--data-dir"])
            .arg(self.dir.path().join(NAMES[at]))
            .args(["--initial-cluster", &all.join(",")])
            .args(["--listen-client-urls", &client_url])
            .args(["--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url])
            .args(["--initial-advertise-peer-urls", &peer_url])
            .args(["--client-cert-auth", "--peer-client-cert-auth"]);
        for (flag, file) in [
            ("--trusted-ca-file", "ca.crt"),
            ("--cert-file", "server.crt"),
            ("--key-file", "server.key"),
            ("--peer-trusted-ca-file", "ca.crt"),
            ("--peer-cert-file", "peer.crt"),
            ("--peer-key-file", "peer.key"),
        ] {
            command.arg(flag).arg(certificates.join(file));
        }
        let process = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Member(process)
    }

    /// Standard output, or the error.
    fn etcdctl(&self, who: Option<&str>, at: usize, args: &[&str]) -> Result<String, String> {
        let home: PathBuf = self.dir.path().join("pki");
        let mut command = Command::new(peer::programs().join("etcdctl"));
        command
            .env_clear()
            .env("ETCDCTL_API", "3")
            .arg("--endpoints")
            .arg(format!("https://127.0.0.1:{}", self.clients[at]))
            .args(["--dial-timeout", "15s", "--command-timeout", "15s"])
            .arg("--cacert")
            .arg(home.join("ca.crt"));
        if let Some(who) = who {
            let certificate = home.join("clients").join(who);
            command
                .arg("--cert")
                .arg(certificate.join("client.crt"))
                .arg("--key")
                .arg(certificate.join("client.key"));
        }
        let output = command.args(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if output.status.success() {
            Ok(text(output.stdout))
        } else {
            Err(text(output.stderr))
        }
    }

    /// The older API, with its older names of flags.
    fn version2(&self, at: usize, args: &[&str]) -> String {
        let home = self.dir.path().join("pki");
        let client = home.join("clients/root");
        let output = Command::new(peer::programs().join("etcdctl"))
            .env_clear()
            .env("ETCDCTL_API", "2")
            .arg("--endpoints")
            .arg(format!("https://127.0.0.1:{}", self.clients[at]))
            .arg("--ca-file")
            .arg(home.join("ca.crt"))
            .arg("--cert-file")
            .arg(client.join("client.crt"))
            .arg("--key-file")
            .arg(client.join("client.key"))
            .args(args)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).trim_end().to_owned()
    }

    fn eventually(&self, at: usize, args: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.etcdctl(Some("root"), at, args) {
                Ok(text) => return text,
                Err(error) if Instant::now() > deadline => {
                    let log = self.dir.path().join(NAMES[at]).with_extension("log");
                    let log = std::fs::read_to_string(log).unwrap_or_default();
                    panic!("{args:?} at {}: {error}\n{log}", NAMES[at]);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

#[test]
fn three_members_trust_each_other_and_nobody_without_a_certificate() {
    assert!(Path::new(env!("CARGO_BIN_EXE_orlop-store")).exists());
    let cluster = Cluster::new();
    let mut members: Vec<Member> = (0..3).map(|at| cluster.start(at)).collect();
    assert_eq!(cluster.eventually(0, &["put", "k", "v"]), "OK");
    for at in 0..3 {
        assert_eq!(cluster.eventually(at, &["get", "k"]), "k\nv");
    }
    let error = cluster.etcdctl(None, 0, &["get", "k"]).unwrap_err();
    assert!(
        error.contains("deadline exceeded") || error.contains("certificate"),
        "{error}"
    );

    assert_eq!(cluster.version2(1, &["set", "/k", "v"]), "v");
    assert_eq!(cluster.version2(2, &["get", "--quorum", "/k"]), "v");

    // The name in the certificate is the user.
    let ours = |args: &[&str]| cluster.eventually(1, args);
    ours(&["user", "add", "root", "--no-password"]);
    ours(&["user", "add", "reader", "--no-password"]);
    ours(&["role", "add", "root"]);
    ours(&["role", "add", "reading"]);
    ours(&["role", "grant-permission", "reading", "read", "k"]);
    ours(&["user", "grant-role", "root", "root"]);
    ours(&["user", "grant-role", "reader", "reading"]);
    ours(&["auth", "enable"]);
    let reader = |at, args: &[&str]| cluster.etcdctl(Some("reader"), at, args);
    // Reads go by what a member has applied; a linearizable one by what all have.
    assert_eq!(reader(2, &["get", "k"]), Ok("k\nv".into()));
    for refused in [["put", "k", "w"], ["get", "a", "z"]] {
        let error = reader(2, &refused).unwrap_err();
        assert!(error.contains("etcdserver: permission denied"), "{error}");
    }

    // Users, and the keys of v2, are there after a member has come back.
    drop(members.remove(0));
    assert_eq!(cluster.eventually(1, &["put", "k", "w"]), "OK");
    assert_eq!(cluster.version2(1, &["set", "/k", "w"]), "w");
    members.insert(0, cluster.start(0));
    assert_eq!(cluster.eventually(0, &["get", "k"]), "k\nw");
    assert_eq!(cluster.version2(0, &["get", "--quorum", "/k"]), "w");
    let error = reader(0, &["put", "k", "x"]).unwrap_err();
    assert!(error.contains("etcdserver: permission denied"), "{error}");
}

impl Cluster {
    /// curl with a client's certificate.
    fn curl(&self, who: &Path, at: usize, path: &str, body: Option<&str>) -> String {
        let mut command = Command::new("curl");
        command
            .args(["-sS", "--max-time", "30", "--cacert"])
            .arg(self.dir.path().join("pki/ca.crt"))
            .arg("--cert")
            .arg(who.join("client.crt"))
            .arg("--key")
            .arg(who.join("client.key"));
        if let Some(body) = body {
            command.args(["-d", body]);
        }
        command.arg(format!("https://127.0.0.1:{}{path}", self.clients[at]));
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).trim_end().to_owned()
    }

    fn log(&self, at: usize) -> String {
        let log = self.dir.path().join(NAMES[at]).with_extension("log");
        std::fs::read_to_string(log).unwrap()
    }

    /// The certificate that is shown to clients, as PEM.
    fn shown(&self, at: usize) -> String {
        let address = format!("127.0.0.1:{}", self.clients[at]);
        let output = Command::new("openssl")
            .args(["s_client", "-connect", &address])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let begin = text.find("-----BEGIN CERTIFICATE-----").unwrap_or(0);
        let end = text.find("-----END CERTIFICATE-----").unwrap_or(0);
        text[begin..end].lines().collect()
    }

    fn in_file(&self, at: usize) -> String {
        let file = self.dir.path().join("pki/members").join(NAMES[at]);
        let text = std::fs::read_to_string(file.join("server.crt")).unwrap();
        let end = text.find("-----END CERTIFICATE-----").unwrap();
        text[..end].lines().collect()
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn the_gateway_takes_nobody_for_whom_a_certificate_names() {
    let cluster = Cluster::new();
    let _members: Vec<Member> = (0..3).map(|at| cluster.start(at)).collect();
    cluster.eventually(0, &["put", "k", "v"]);
    let root = cluster.dir.path().join("pki/clients/root");

    let mut leaders = 0;
    for at in 0..3 {
        let said = cluster.curl(&root, at, "/v2/stats/leader", None);
        let stats: serde_json::Value = serde_json::from_str(&said).unwrap();
        let Some(followers) = stats["followers"].as_object() else {
            assert_eq!(stats["message"], "not current leader", "{said}");
            continue;
        };
        leaders += 1;
        assert_eq!(followers.len(), 2, "{said}");
        wait_for("both followers have answered", || {
            let said = cluster.curl(&root, at, "/v2/stats/leader", None);
            let stats: serde_json::Value = serde_json::from_str(&said).unwrap();
            stats["followers"].as_object().is_some_and(|followers| {
                followers.values().all(|f| {
                    f["counts"]["success"].as_u64() > Some(0)
                        && f["latency"]["average"].as_f64() > Some(0.0)
                })
            })
        });
    }
    assert_eq!(leaders, 1);

    for command in [
        &["user", "add", "root", "--no-password"][..],
        &["role", "add", "root"],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        cluster.eventually(0, command);
    }
    assert_eq!(cluster.eventually(0, &["get", "k"]), "k\nv");
    let body = Some(r#"{"key":"aw=="}"#);
    wait_for("the gateway knows of the users", || {
        let said = cluster.curl(&root, 0, "/v3/kv/range", body);
        assert!(!said.contains("etcdserver: permission denied"), "{said}");
        said.contains("etcdserver: user name is empty")
    });
    let body = Some(r#"{"key":"aw==","value":"aw=="}"#);
    let said = cluster.curl(&root, 0, "/v3/kv/put", body);
    assert!(said.contains("etcdserver: user name is empty"), "{said}");
    assert_eq!(cluster.eventually(0, &["get", "k"]), "k\nv");
}

#[test]
fn renewed_certificates_and_authorities_serve_without_a_restart() {
    let cluster = Cluster::new();
    let mut members: Vec<Member> = (0..3).map(|at| cluster.start(at)).collect();
    cluster.eventually(1, &["put", "k", "v"]);
    let home = cluster.dir.path().join("pki");
    let files = home.join("members").join(NAMES[1]);
    let old = cluster.in_file(1);
    assert_eq!(cluster.shown(1), old);

    // Half of a renewal: the certificate without its key.
    let key = std::fs::read(files.join("server.key")).unwrap();
    let other = home.join("members").join(NAMES[0]).join("server.key");
    std::fs::copy(other, files.join("server.key")).unwrap();
    wait_for("a warning about half a renewal", || {
        assert_eq!(cluster.shown(1), old);
        cluster.log(1).contains("new certificates are not used yet")
    });
    assert_eq!(cluster.eventually(1, &["get", "k"]), "k\nv");
    std::fs::write(files.join("server.key"), key).unwrap();

    let hosts = ["127.0.0.1".to_owned()];
    let now = Timestamp::now();
    let renewed = Wanted {
        name: NAMES[1],
        hosts: &hosts,
        days: 4,
        replace: true,
    };
    Pki::open(&home).unwrap().member(&renewed, now).unwrap();
    let new = cluster.in_file(1);
    assert_ne!(new, old);
    wait_for("the new certificate is shown", || cluster.shown(1) == new);
    assert_eq!(cluster.eventually(1, &["get", "k"]), "k\nv");
    // New connections between members use it as well.
    drop(members.remove(0));
    members.insert(0, cluster.start(0));
    cluster.eventually(0, &["put", "k", "w"]);
    assert_eq!(cluster.eventually(1, &["get", "k"]), "k\nw");

    // A second authority next to the first: clients of both are let in.
    let second = cluster.dir.path().join("second");
    pki::init(&second, "second-ca", 10, now).unwrap();
    let client = Wanted {
        name: "alice",
        hosts: &[],
        days: 5,
        replace: false,
    };
    Pki::open(&second).unwrap().client(&client, now).unwrap();
    let alice = second.join("clients/alice");
    let said = cluster.curl(&alice, 1, "/version", None);
    assert!(!said.contains("etcdserver"), "{said}");
    let both = ["pki/ca.crt", "second/ca.crt"]
        .map(|file| std::fs::read_to_string(cluster.dir.path().join(file)).unwrap())
        .concat();
    std::fs::write(files.join("ca.crt"), both).unwrap();
    wait_for("the second authority is trusted", || {
        cluster
            .curl(&alice, 1, "/version", None)
            .contains("etcdserver")
    });
}
