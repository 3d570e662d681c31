//! The daemon as a process, on the files of a system that does not run: it may not reboot this one.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

struct Daemon {
    child: Child,
    lines: Receiver<String>,
}

impl Daemon {
    fn start(root: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_locksmith"))
            .args(["daemon", "--root"])
            .arg(root)
            .env_remove("RUST_LOG")
            .env_remove("JOURNAL_STREAM")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            stderr
                .lines()
                .map_while(Result::ok)
                .all(|line| send.send(line).is_ok())
        });
        Self { child, lines }
    }

    fn says(&self, part: &str) {
        let line = self.lines.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(line.contains(part), "{line:?} should have {part:?}");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    fn ends(mut self) {
        let end = Instant::now() + Duration::from_secs(15);
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("still runs");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write(root: &Path, path: &str, text: &str) {
    let path = host::under(root, path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

const CONF: &str = "/etc/coreos/update.conf";

#[test]
fn acts_at_once() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), locksmith::needed::PATH, r#"{"version":"2"}"#);
    let start = Instant::now();
    let daemon = Daemon::start(root.path());
    daemon.says("strategy reboot, window: any time");
    daemon.says("rebooting into 2 now");
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    daemon.says("is not the running system; trying again in 30 s");
    daemon.signal("TERM");
    daemon.ends();
}

#[test]
fn hangup_reads_the_configuration_again_and_a_rollback_ends_it() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), locksmith::needed::PATH, r#"{"version":"2"}"#);
    write(
        root.path(),
        CONF,
        "REBOOT_STRATEGY=etcd-lock\nCOLOUR=blue\n",
    );
    let daemon = Daemon::start(root.path());
    daemon.says("update.conf:2: unknown key COLOUR is ignored");
    daemon.says("etcd-lock is not part of this release yet; using off");
    daemon.says("strategy off");
    daemon.says("2 is staged; not rebooting: etcd-lock is not part");
    // A window that is closed now, whatever the time is: it opened three days ago for a minute.
    let start = jiff::Zoned::now()
        .saturating_sub(jiff::Span::new().days(3))
        .strftime("%a %H:%M");
    write(
        root.path(),
        CONF,
        &format!("REBOOT_WINDOW_START=\"{start}\"\nREBOOT_WINDOW_LENGTH=1m\n"),
    );
    daemon.signal("HUP");
    daemon.says("strategy reboot, window: ");
    daemon.says("will reboot into 2 at ");
    std::fs::remove_file(host::under(root.path(), locksmith::needed::PATH)).unwrap();
    daemon.says("no release waits any more: not rebooting");
    daemon.ends();
}

/// The file that a cloud-config's `coreos.locksmith` becomes.
#[test]
fn a_drop_in_sets_the_window_and_its_change_is_noticed() {
    const MADE: &str = "/run/systemd/system/locksmithd.service.d/20-cloudinit.conf";
    let root = tempfile::tempdir().unwrap();
    write(root.path(), locksmith::needed::PATH, r#"{"version":"2"}"#);
    let start = jiff::Zoned::now()
        .saturating_sub(jiff::Span::new().days(3))
        .strftime("%a %H:%M");
    let text = format!(
        "[Service]\nEnvironment=\"REBOOT_WINDOW_START={start}\"\nEnvironment=\"REBOOT_WINDOW_LENGTH=1m\"\n"
    );
    write(root.path(), MADE, &text);
    let daemon = Daemon::start(root.path());
    daemon.says(&format!("strategy reboot, window: {start} for 1m"));
    daemon.says("will reboot into 2 at ");
    std::fs::remove_file(host::under(root.path(), MADE)).unwrap();
    daemon.says("strategy reboot, window: any time");
    daemon.says("rebooting into 2 now");
    daemon.signal("TERM");
    daemon.ends();
}

#[test]
fn ends_at_once_when_nothing_waits() {
    let root = tempfile::tempdir().unwrap();
    Daemon::start(root.path()).ends();
}
