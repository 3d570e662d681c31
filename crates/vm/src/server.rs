//! The update-server that `orlop up` and the scenarios run on this workstation.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::interrupt;
use crate::process::{self, ProcessId};

/// The port when nobody says another.
pub const DEFAULT_PORT: u16 = 8090;

/// How to start it.
#[derive(Debug, Clone)]
pub struct ServerSpec {
    /// The program `update-server`.
    pub program: PathBuf,
    /// Its data directory.
    pub data: PathBuf,
    /// The public keys it accepts releases of.
    pub keys: PathBuf,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// The address under which guests fetch from it.
    pub public_url: String,
}

/// A server that runs.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// Its data directory.
    pub data: PathBuf,
    /// Its process.
    pub process: ProcessId,
}

impl Server {
    /// Its address on this workstation.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Stops it.
    pub fn stop(&self) {
        self.process.stop(Duration::from_secs(5));
        let _ = fs::remove_file(self.data.join("server.pid"));
    }

    /// The server that runs on this data directory, if any.
    pub fn running(data: &Path) -> Option<Self> {
        let text = fs::read_to_string(data.join("server.pid")).ok()?;
        let (process, port): (ProcessId, u16) = serde_json::from_str(&text).ok()?;
        process.is_alive().then(|| Self {
            port,
            data: data.to_owned(),
            process,
        })
    }

    /// Starts a server and waits until it answers. With `tied` it dies with the thread that started it.
    pub fn start(spec: &ServerSpec, tied: bool) -> Result<Self> {
        if !ports::is_free(spec.port) {
            bail!(
                "port {} of 127.0.0.1 is in use by another program; stop that, or choose a port with --server-port",
                spec.port
            );
        }
        fs::create_dir_all(&spec.data)
            .with_context(|| format!("cannot make {}", spec.data.display()))?;
        let log_path = spec.data.join("server.log");
        let log = File::create(&log_path)
            .with_context(|| format!("cannot write {}", log_path.display()))?;
        let mut command = if tied {
            let mut command = Command::new("setpriv");
            command
                .args(["--pdeathsig", "KILL", "--"])
                .arg(&spec.program);
            command
        } else {
            Command::new(&spec.program)
        };
        command
            .arg("--listen")
            .arg(format!("127.0.0.1:{}", spec.port));
        command
            .arg("--data")
            .arg(&spec.data)
            .arg("--keys")
            .arg(&spec.keys);
        command.arg("--public-url").arg(&spec.public_url);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let mut child = process::spawn(&mut command)?;
        let server = Self {
            port: spec.port,
            data: spec.data.clone(),
            process: ProcessId::of(child.id())?,
        };
        let end = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, spec.port)).is_err() {
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > end || interrupt::requested() {
                let _ = child.kill();
                let _ = child.wait();
                interrupt::check()?;
                let said = fs::read_to_string(&log_path).unwrap_or_default();
                bail!(
                    "the update-server does not answer: {} (log: {})",
                    process::tail(&said, 5),
                    log_path.display()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let record = serde_json::to_string(&(&server.process, server.port))?;
        fs::write(spec.data.join("server.pid"), record)?;
        Ok(server)
    }
}
