//! `orlop release promote` as an operator runs it, with the real update-server.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use release::dsse::Envelope;
use release::{Compression, File, MANIFEST_FILE, Manifest, Payload, Sha256, Usr, Version};
use tempfile::TempDir;
use update_server::client::{Rollouts, Server};

/// A checkout with nothing in it but its lab, and the server of that lab.
struct Operator {
    repo: TempDir,
    serving: Child,
    url: String,
}

impl Operator {
    fn new() -> Self {
        let repo = tempfile::tempdir().unwrap();
        // It starts the update-server that was built beside it.
        let mut serving = orlop(repo.path())
            .args(["serve", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = serving.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let started: serde_json::Value = serde_json::from_str(&line)
            .unwrap_or_else(|e| panic!("{e}: is update-server built? {line}"));
        let url = format!("http://{}", started["listening"].as_str().unwrap());
        Self { repo, serving, url }
    }

    fn lab(&self, name: &str) -> PathBuf {
        self.repo.path().join(".orlop").join(name)
    }

    /// Whether it succeeds, and what it says of a failure.
    fn runs(&self, words: &[&str]) -> (bool, String) {
        let output = orlop(self.repo.path())
            .args(words)
            .env("ORLOP_SERVER", &self.url)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.success(), said)
    }

    /// A release as the image builder leaves it, in miniature.
    fn build(&self, version: &str) {
        let dir = self.lab("releases").join(version);
        std::fs::create_dir_all(&dir).unwrap();
        let file = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.join(name), bytes).unwrap();
            File {
                name: name.parse().unwrap(),
                size: bytes.len() as u64,
                sha256: Sha256::of(bytes),
            }
        };
        let manifest = Manifest {
            format: Manifest::FORMAT,
            version: version.parse().unwrap(),
            epoch: 0,
            minimum_source_version: None,
            architecture: "x86-64".into(),
            created: 1_795_000_000,
            usr: Usr {
                root_hash: Sha256::of(version),
                size: 4096,
                payload: Payload {
                    file: file("usr.erofs.zst", b"/usr"),
                    compression: Compression::Zstd,
                },
                index: None,
            },
            uki: file("uki.efi", b"uki"),
            kernel: None,
            deltas: Vec::new(),
            extensions: Vec::new(),
            sbom: None,
        };
        let key = image::keys::load_or_create(&self.lab(""), None).unwrap();
        let envelope = Envelope::sign(&manifest, &key).unwrap();
        std::fs::write(dir.join(MANIFEST_FILE), envelope.to_json().unwrap()).unwrap();
    }

    /// All that was ever signed here, and all that hosts find at the server.
    fn signed(&self) -> BTreeMap<PathBuf, Sha256> {
        let mut files = BTreeMap::new();
        read_all(&self.lab("tuf"), &mut files);
        read_all(&self.lab("server/releases/tuf"), &mut files);
        files
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.serving.kill();
        let _ = self.serving.wait();
    }
}

fn orlop(repo: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
    command.env("ORLOP_REPO", repo);
    for name in ["ORLOP_TUF", "ORLOP_SERVER", "ORLOP_SERVE_DATABASE"] {
        command.env_remove(name);
    }
    command
}

fn read_all(dir: &Path, files: &mut BTreeMap<PathBuf, Sha256>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, files);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            files.insert(path, Sha256::of(&bytes));
        }
    }
}

/// Metadata that hosts may already have is not taken back by a refusal that comes after it.
#[test]
fn a_promotion_that_the_server_refuses_is_not_signed() {
    let operator = Operator::new();
    operator.build("2");
    let publish = ["release", "publish", "2", "--channel", "beta"];
    let (published, said) = operator.runs(&[&publish[..], &["--deltas", "0"]].concat());
    assert!(published, "{said}");
    let token = std::fs::read_to_string(operator.lab("server/token")).unwrap();
    let server = Server::new(&operator.url, Some(token.trim())).unwrap();
    let two: Version = "2".parse().unwrap();
    // Of this the repository knows nothing: it would sign.
    server.withdraw(&two, Some("loses its network")).unwrap();

    let before = operator.signed();
    let promote = ["release", "promote", "--from", "beta", "--to", "stable"];
    let (promoted, said) = operator.runs(&promote);
    assert!(!promoted && said.contains("was withdrawn"), "{said}");
    assert_eq!(operator.signed(), before);

    server.withdraw(&two, None).unwrap();
    let beta = Rollouts::Channel("beta");
    server.pause_or_resume(beta, false).unwrap();
    let (foretold, said) = operator.runs(&[&promote[..], &["--dry-run"]].concat());
    assert!(foretold, "{said}");
    assert_eq!(operator.signed(), before);
    let (promoted, said) = operator.runs(&promote);
    assert!(promoted, "{said}");
    assert_ne!(operator.signed(), before);
    let channels = server.channels().unwrap();
    let stable = channels.iter().find(|it| it.name.as_str() == "stable");
    assert_eq!(stable.unwrap().version, Some(two));
}
