//! The real binary on a free port, small real releases, and hosts that speak real Omaha.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use release::dsse::Envelope;
use release::keys::{self, SigningKey};
use release::omaha::{self, AppRequest, AppResponse, Event, UpdateCheck};
use release::status::Health;
use release::{
    Channel, Compression, File, MANIFEST_FILE, Manifest, Payload, Sha256, Slot, Usr, Version,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use update_server::client::Server;

pub(crate) fn version(text: &str) -> Version {
    text.parse().unwrap()
}

/// A data directory, a trusted key and room for releases.
pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    pub(crate) key: SigningKey,
    /// What its servers find in their environment.
    pub(crate) environment: Vec<(&'static str, String)>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = keys::generate().unwrap();
        std::fs::create_dir(dir.path().join("keys")).unwrap();
        let text = keys::public_to_text(&key.verifying_key(), "test");
        std::fs::write(dir.path().join("keys/test.pub"), text).unwrap();
        Self {
            dir,
            key,
            environment: vec![],
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `data` and `keys` are in the lab.
    pub(crate) fn command(&self, listen: &str, data: &str, keys: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_update-server"));
        command
            .args(["--listen", listen, "--data"])
            .arg(self.path(data));
        command.arg("--keys").arg(self.path(keys));
        command.envs(self.environment.iter().cloned());
        command
    }

    pub(crate) fn start(&self) -> Running {
        self.start_with(&[])
    }

    pub(crate) fn start_with(&self, more: &[&str]) -> Running {
        self.start_in("data", more)
    }

    /// With a data directory of that name.
    pub(crate) fn start_in(&self, data: &str, more: &[&str]) -> Running {
        let stderr = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let mut child = self
            .command("127.0.0.1:0", data, "keys")
            .args(more)
            .env("RUST_LOG", "debug")
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let Ok(started) = serde_json::from_str::<serde_json::Value>(&line) else {
            panic!(
                "not started: {}",
                std::fs::read_to_string(self.path("log")).unwrap()
            );
        };
        let address = started["listening"].as_str().unwrap().to_owned();
        let token = std::fs::read_to_string(self.path(data).join("token")).unwrap();
        Running {
            child,
            address,
            token: token.trim().to_owned(),
        }
    }

    pub(crate) fn release(&self, version: &str) -> PathBuf {
        self.release_with(version, "as built first", &self.key)
    }

    /// A release directory as the image builder leaves it, in miniature.
    pub(crate) fn release_with(&self, version: &str, content: &str, key: &SigningKey) -> PathBuf {
        self.build(version, None, content, key)
    }

    /// One that hosts take only from `floor` on.
    pub(crate) fn release_above(&self, version: &str, floor: &str) -> PathBuf {
        self.build(version, Some(floor), "as built first", &self.key)
    }

    fn build(
        &self,
        version: &str,
        floor: Option<&str>,
        content: &str,
        key: &SigningKey,
    ) -> PathBuf {
        let dir = self.path(&format!("built-{version}-{}", Sha256::of(content).short()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = |name: &str, bytes: Vec<u8>| {
            std::fs::write(dir.join(name), &bytes).unwrap();
            File {
                name: name.parse().unwrap(),
                size: bytes.len() as u64,
                sha256: Sha256::of(&bytes),
            }
        };
        let usr = format!("/usr of {version}, {content}. ")
            .repeat(20_000)
            .into_bytes();
        let manifest = Manifest {
            format: Manifest::FORMAT,
            version: version.parse().unwrap(),
            epoch: 0,
            minimum_source_version: floor.map(|floor| floor.parse().unwrap()),
            architecture: "x86-64".into(),
            created: 1_795_000_000,
            usr: Usr {
                root_hash: Sha256::of(content),
                size: 4096 * 50,
                payload: Payload {
                    file: file("usr.erofs.zst", usr),
                    compression: Compression::Zstd,
                },
                index: None,
            },
            uki: file("uki.efi", format!("uki of {version}").into_bytes()),
            kernel: None,
            deltas: Vec::new(),
            extensions: Vec::new(),
            sbom: Some(file("sbom.spdx.json", b"{}".to_vec())),
        };
        let envelope = Envelope::sign(&manifest, key).unwrap();
        std::fs::write(dir.join(MANIFEST_FILE), envelope.to_json().unwrap()).unwrap();
        dir
    }
}

/// A server that runs; killed at the end of the test.
pub(crate) struct Running {
    child: Child,
    pub(crate) address: String,
    pub(crate) token: String,
}

impl Running {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn client(&self) -> Server {
        Server::new(&self.url(""), Some(&self.token)).unwrap()
    }

    pub(crate) fn publish(&self, dir: &Path) {
        self.client()
            .publish(dir, &Channel::stable(), &mut |_, _| ())
            .unwrap();
    }

    pub(crate) fn signal(&mut self, signal: Signal) -> Option<i32> {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        self.child.wait().unwrap().code()
    }

    /// Any request, with the token; status and body.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, Vec<u8>) {
        let (status, _, body) = self.request_all(method, path, headers, body);
        (status, body)
    }

    pub(crate) fn request_all(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, ureq::http::HeaderMap, Vec<u8>) {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None);
        let agent = config.build().new_agent();
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(self.url(path));
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = agent.run(request.body(body).unwrap()).unwrap();
        let body = response.body_mut().read_to_vec().unwrap();
        (response.status().as_u16(), response.headers().clone(), body)
    }

    /// The error and the hint of a refusal.
    pub(crate) fn refused(&self, method: &str, path: &str, body: &[u8]) -> String {
        let json = [("content-type", "application/json")];
        let (status, body) = self.request(method, path, &json, body);
        let body: serde_json::Value = serde_json::from_slice(&body)
            .unwrap_or_else(|e| panic!("{status} {e}: {}", String::from_utf8_lossy(&body)));
        format!("{status} {}", body["error"].as_str().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A host as update-engine would speak for it.
pub(crate) struct TestHost<'a> {
    pub(crate) server: &'a Running,
    pub(crate) app: AppRequest,
}

impl<'a> TestHost<'a> {
    pub(crate) fn new(server: &'a Running, name: &str, version: &str) -> Self {
        let id = Sha256::of(name).to_string()[..32].to_owned();
        let mut app = AppRequest::orlop(&version.parse().unwrap(), &Channel::stable(), &id);
        app.hostname = Some(name.into());
        app.slot = Some(Slot::A);
        app.health = Some(Health::Healthy);
        Self { server, app }
    }

    pub(crate) fn runs(&mut self, version: &str) {
        self.app.version = version.into();
        self.app.slot = self.app.slot.map(Slot::other);
    }

    fn send(&self, app: AppRequest) -> AppResponse {
        let request = omaha::Request {
            apps: vec![app],
            ..Default::default()
        };
        let (status, body) =
            self.server
                .request("POST", omaha::PATH, &[], request.to_xml().as_bytes());
        let body = String::from_utf8(body).unwrap();
        assert_eq!(status, 200, "{body}");
        let mut response = omaha::Response::from_xml(&body).unwrap();
        let answer = response.apps.remove(0);
        assert_eq!(answer.status, "ok");
        answer
    }

    pub(crate) fn check(&self) -> UpdateCheck {
        let app = AppRequest {
            update_check: true,
            ping: true,
            ..self.app.clone()
        };
        self.send(app).update_check.unwrap()
    }

    /// The offered version, or `-`.
    pub(crate) fn offered(&self) -> String {
        match self.check() {
            UpdateCheck::Offer(offer) => offer.version.to_string(),
            UpdateCheck::NoUpdate { running } => {
                assert_eq!(running, self.app.version);
                "-".into()
            }
            UpdateCheck::Refused(why) => panic!("{why}"),
        }
    }

    pub(crate) fn tell(&self, event: Event) {
        let answer = self.send(AppRequest {
            events: vec![event],
            ..self.app.clone()
        });
        assert_eq!((answer.events, answer.update_check), (1, None));
    }
}
