//! Servers that the benchmark starts itself: a single one, or three members on loopback.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Target;
use super::process::Process;
use super::processors::Processors;
use crate::tls;

/// No server needs as long to start, with whatever data.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longer than any run.
const DAYS: u32 = 2;

/// A program to be measured.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub name: String,
    pub path: PathBuf,
}

impl Program {
    /// This very program.
    pub(super) fn own() -> Result<Self> {
        Ok(Self {
            name: "orlop-store".to_owned(),
            path: std::env::current_exe().context("cannot find this program")?,
        })
    }

    /// One that says its version as etcd does.
    pub(super) fn peer(path: &Path) -> Result<Self> {
        let output = Command::new(path)
            .arg("--version")
            .output()
            .with_context(|| format!("cannot run {}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = text.lines().find_map(|l| l.strip_prefix("etcd Version: ")) else {
            bail!("{} --version does not say an etcd version", path.display());
        };
        Ok(Self {
            name: format!("etcd {}", version.trim()),
            path: path.to_owned(),
        })
    }
}

/// An authority of this run, and what it signed: one certificate for all members, one for the clients.
#[derive(Debug, Clone)]
pub(super) struct Certificates {
    member: PathBuf,
    client: Arc<tls::Connector>,
}

impl Certificates {
    pub(super) fn make(base: &Path) -> Result<Self> {
        let dir = base.join("pki");
        let now = jiff::Timestamp::now();
        pki::init(&dir, "bench", DAYS, now)?;
        let authority = pki::Pki::open(&dir)?;
        let hosts = ["127.0.0.1".to_owned()];
        let mut wanted = pki::Wanted {
            name: "member",
            hosts: &hosts,
            days: DAYS,
            replace: false,
        };
        let member = authority.member(&wanted, now)?.dir;
        (wanted.name, wanted.hosts) = ("client", &[]);
        let client = authority.client(&wanted, now)?.dir;
        let client = tls::connector(tls::Files {
            cert: client.join("client.crt"),
            key: client.join("client.key"),
            ca: Some(client.join("ca.crt")),
            ask: false,
            unverified: false,
        })?;
        Ok(Self {
            member,
            client: Arc::new(client),
        })
    }

    /// What a member is told; etcd has the same names.
    fn flags(&self, command: &mut Command) {
        for (side, cert, key) in [
            ("", "server.crt", "server.key"),
            ("peer-", "peer.crt", "peer.key"),
        ] {
            command.arg(format!("--{side}client-cert-auth"));
            for (flag, file) in [
                ("trusted-ca-file", "ca.crt"),
                ("cert-file", cert),
                ("key-file", key),
            ] {
                command
                    .arg(format!("--{side}{flag}"))
                    .arg(self.member.join(file));
            }
        }
    }
}

struct Member {
    name: String,
    data: PathBuf,
    client: String,
    peer: String,
    /// Where its health is asked for, in plain HTTP.
    status: String,
    child: Option<Child>,
}

/// Running members of one program. They end, and their data goes, with this value.
pub(super) struct Servers {
    program: Program,
    dir: PathBuf,
    members: Vec<Member>,
    tls: Option<Certificates>,
    processors: Option<Processors>,
}

fn url(scheme: &str, port: u16) -> String {
    format!("{scheme}://127.0.0.1:{port}")
}

/// Ports that were free a moment ago.
fn ports(count: usize) -> Result<Vec<u16>> {
    Ok((0..count)
        .map(|_| ports::free())
        .collect::<std::io::Result<_>>()?)
}

impl Servers {
    pub(super) fn start(
        program: &Program,
        base: &Path,
        count: usize,
        tls: Option<Certificates>,
        processors: Option<Processors>,
    ) -> Result<Self> {
        let dir = base.join(program.name.replace(' ', "-"));
        if dir.exists() {
            std::fs::remove_dir_all(&dir)
                .with_context(|| format!("cannot empty {}", dir.display()))?;
        }
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let ports = ports(3 * count)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let members = ports
            .chunks(3)
            .enumerate()
            .map(|(i, pair)| Member {
                name: format!("n{i}"),
                data: dir.join(format!("n{i}")),
                client: url(scheme, pair[0]),
                peer: url(scheme, pair[1]),
                status: url("http", pair[2]),
                child: None,
            })
            .collect();
        let mut servers = Self {
            program: program.clone(),
            dir,
            members,
            tls,
            processors,
        };
        servers.launch()?;
        Ok(servers)
    }

    /// Starts all members and returns how long it took until all were healthy.
    fn launch(&mut self) -> Result<Duration> {
        let all: Vec<String> = self
            .members
            .iter()
            .map(|m| format!("{}={}", m.name, m.peer))
            .collect();
        let all = all.join(",");
        let before = Instant::now();
        for member in &mut self.members {
            let path = member.data.with_extension("log");
            let log =
                File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
            let mut command = Command::new(&self.program.path);
            command
                .args(["--name", &member.name, "--data-dir"])
                .arg(&member.data)
                .args(["--listen-client-urls", &member.client])
                .args(["--advertise-client-urls", &member.client])
                .args(["--listen-peer-urls", &member.peer])
                .args(["--initial-advertise-peer-urls", &member.peer])
                .args(["--initial-cluster", &all])
                .args(["--listen-metrics-urls", &member.status])
                .args(["--quota-backend-bytes", "8589934592"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log);
            if let Some(tls) = &self.tls {
                tls.flags(&mut command);
            }
            let child = match &self.processors {
                Some(processors) => processors.within(|| command.spawn())?,
                None => command.spawn(),
            };
            let child =
                child.with_context(|| format!("cannot start {}", self.program.path.display()))?;
            member.child = Some(child);
        }
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(2)))
            .proxy(None)
            .build()
            .into();
        for member in &mut self.members {
            loop {
                let answer = agent
                    .get(format!("{}/health", member.status))
                    .call()
                    .and_then(|mut answer| answer.body_mut().read_to_string());
                if answer.is_ok_and(|text| text.contains("\"health\":\"true\"")) {
                    break;
                }
                let ended = match &mut member.child {
                    Some(child) => child.try_wait()?,
                    None => None,
                };
                let log = member.data.with_extension("log");
                if let Some(status) = ended {
                    let text = std::fs::read_to_string(&log).unwrap_or_default();
                    let last: Vec<&str> = text.lines().rev().take(3).collect();
                    bail!(
                        "{} ended: {status}: {}",
                        self.program.name,
                        last.join(" / ")
                    );
                }
                if before.elapsed() > PATIENCE {
                    bail!("{} is not healthy after {PATIENCE:?}", self.program.name);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(before.elapsed())
    }

    /// Kills all members, starts them again and returns how long it took until all were healthy.
    pub(super) fn restart(&mut self) -> Result<Duration> {
        self.kill();
        self.launch()
    }

    pub(super) fn target(&self) -> Target {
        Target {
            name: self.program.name.clone(),
            urls: self.members.iter().map(|m| m.client.clone()).collect(),
            processes: self
                .members
                .iter()
                .filter_map(|m| Some(Process(m.child.as_ref()?.id())))
                .collect(),
            tls: self.tls.as_ref().map(|tls| tls.client.clone()),
        }
    }

    fn kill(&mut self) {
        for child in self.members.iter_mut().filter_map(|m| m.child.as_mut()) {
            // It has ended by itself, perhaps.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
