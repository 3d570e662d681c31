//! Debian's etcd, unpacked next to the build and run on ports that the kernel picked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PACKAGES: [&str; 2] = ["etcd-server", "etcd-client"];

/// A directory with `etcd` and `etcdctl`. Fetched from the machine's Debian mirror at the first use.
pub(crate) fn programs() -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.orlop/peers/etcd");
    let bin = target.join("usr/bin");
    if bin.join("etcd").exists() && bin.join("etcdctl").exists() {
        return bin;
    }
    let parent = target.parent().unwrap();
    fs::create_dir_all(parent).unwrap();
    let part = tempfile::tempdir_in(parent).unwrap();
    let run = |command: &mut Command| {
        let output = command.current_dir(part.path()).output().unwrap();
        assert!(
            output.status.success(),
            "{command:?}: {}\nThis test needs Debian's etcd: run `apt-get update` and try again.",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run(Command::new("apt-get").arg("download").args(PACKAGES));
    for file in fs::read_dir(part.path()).unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_some_and(|kind| kind == "deb") {
            run(Command::new("dpkg").arg("-x").arg(file).arg("tree"));
        }
    }
    // Another test may have been faster; its tree is as good.
    if fs::rename(part.path().join("tree"), &target).is_err() {
        assert!(
            bin.join("etcd").exists(),
            "{} is not complete",
            target.display()
        );
    }
    bin
}

/// A running server that ends with this value.
pub(crate) struct Peer {
    process: Child,
    pub(crate) address: String,
    _data: tempfile::TempDir,
}

/// Ports that were free a moment ago.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    std::array::from_fn(|_| ports::free().unwrap())
}

impl Peer {
    /// A single member of etcd, or of what has etcd's flags.
    pub(crate) fn start(program: &Path, flags: &[&str]) -> Peer {
        // Someone may take a port between our closing and its opening it.
        for _ in 0..5 {
            if let Some(peer) = Peer::try_start(program, flags) {
                return peer;
            }
        }
        panic!("{} does not start", program.display());
    }

    fn try_start(program: &Path, flags: &[&str]) -> Option<Peer> {
        let [client, peer] = free_ports();
        let data = tempfile::tempdir().unwrap();
        let client_url = format!("http://127.0.0.1:{client}");
        let peer_url = format!("http://127.0.0.1:{peer}");
        let log = fs::File::create(data.path().join("log")).unwrap();
        let process = Command::new(program)
            .args(["--name", "one", "--data-dir"])
            .arg(data.path().join("data"))
            .args(["--listen-client-urls", &client_url])
            .args(["--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url])
            .args(["--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("one={peer_url}")])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut started = Peer {
            process,
            address: format!("127.0.0.1:{client}"),
            _data: data,
        };
        let deadline = Instant::now() + Duration::from_secs(120);
        while Instant::now() < deadline {
            if started.process.try_wait().unwrap().is_some() {
                return None;
            }
            let ready = super::http::try_send(&started.address, "GET", "/health", &[], b"");
            if ready.is_ok_and(|answer| answer.status == 200) {
                return Some(started);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let log = fs::read_to_string(started._data.path().join("log")).unwrap_or_default();
        panic!("not healthy after two minutes:\n{log}");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
