//! SSH into a node, by the system's client and the lab's own key.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::process::{self, Output};

/// The lab's key pair.
#[derive(Debug, Clone)]
pub struct Key {
    /// The private key's file.
    pub path: PathBuf,
    /// The public key: one line.
    pub public: String,
}

impl Key {
    /// The lab's key, made at first use.
    pub fn ensure(lab: &Lab) -> Result<Self> {
        let dir = lab.root().join("ssh");
        let path = dir.join("id_ed25519");
        let public = dir.join("id_ed25519.pub");
        if !public.exists() {
            let _lock = lab.lock_wait("ssh-key")?;
            if !public.exists() {
                // A private key without its public half is from an interrupted run.
                let _ = fs::remove_file(&path);
                fs::create_dir_all(&dir)?;
                let mut command = Command::new("ssh-keygen");
                command
                    .args(["-q", "-t", "ed25519", "-N", "", "-C", "orlop-lab", "-f"])
                    .arg(&path);
                process::check(&mut command, Duration::from_secs(10))?;
            }
        }
        let public = fs::read_to_string(&public)
            .with_context(|| format!("cannot read {}", public.display()))?;
        Ok(Self {
            path,
            public: public.trim().to_owned(),
        })
    }
}

/// How to reach one node.
#[derive(Debug, Clone)]
pub struct Ssh {
    dir: PathBuf,
    key: PathBuf,
    port: u16,
    user: String,
}

impl Ssh {
    /// The node with this directory and this port.
    pub fn new(dir: &Path, key: &Key, port: u16) -> Self {
        Self {
            dir: dir.to_owned(),
            key: key.path.clone(),
            port,
            user: "core".to_owned(),
        }
    }

    /// As another user than `core`.
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// The client with all options, to which a remote command can be added.
    pub fn command(&self) -> Command {
        let mut command = Command::new("ssh");
        // The node's directory: the control socket's path stays short, and dies with the node.
        command.current_dir(&self.dir);
        command
            .args(["-F", "/dev/null"])
            .arg("-i")
            .arg(&self.key)
            .arg("-p")
            .arg(self.port.to_string());
        for option in [
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "LogLevel=ERROR",
            // A node is new each time and listens on 127.0.0.1 only: there is nothing to compare its key with.
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "ConnectTimeout=30",
            "ServerAliveInterval=5",
            "ServerAliveCountMax=6",
            "GSSAPIAuthentication=no",
            // One handshake for many commands; the post-quantum one costs a second in emulation.
            "KexAlgorithms=^curve25519-sha256",
            "ControlMaster=auto",
            "ControlPath=ssh.sock",
            "ControlPersist=300",
        ] {
            command.args(["-o", option]);
        }
        command.arg(format!("{}@127.0.0.1", self.user));
        command
    }

    /// Runs a shell command in the guest.
    pub fn run(&self, script: &str, limit: Duration) -> Result<Output> {
        process::run(self.command().arg("--").arg(script), limit)
    }

    /// Ends the shared connection.
    pub fn close(&self) {
        if self.dir.join("ssh.sock").exists() {
            let _ = self
                .command()
                .args(["-O", "exit"])
                .stderr(std::process::Stdio::null())
                .status();
        }
    }

    /// Whether the guest's SSH server answers. QEMU itself accepts the connection long before the guest does.
    pub fn answers(&self) -> bool {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else {
            return false;
        };
        let mut banner = [0u8; 4];
        // While it boots, each connection that is given up is one more that the guest's own stack works off.
        let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
        stream.read_exact(&mut banner).is_ok() && &banner == b"SSH-"
    }

    /// What a person types to get the same session.
    pub fn as_typed(&self) -> String {
        format!(
            "ssh -p {} -i {} -o StrictHostKeyChecking=no {}@127.0.0.1",
            self.port,
            crate::plan::quote(&self.key.display().to_string()),
            self.user
        )
    }
}
