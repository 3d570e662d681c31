//! Servers that are away, slow, broken or lying.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use update_engine::fetch::{Fetcher, Patience, Want};

use crate::host::{Host, Release, left_out};
use crate::server::{Mood, Server};

fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(2),
        silence: Duration::from_secs(10),
        slowest: 1 << 20,
    }
}

struct Download {
    server: Server,
    dir: tempfile::TempDir,
    content: Vec<u8>,
}

impl Download {
    fn new() -> Self {
        let content = Release::new("9").payload;
        let server = Server::start();
        server.with(|s| drop(s.files.insert("file".into(), content.clone())));
        Self {
            server,
            dir: tempfile::tempdir().unwrap(),
            content,
        }
    }

    fn run(&self, mood: Mood) -> Result<(), String> {
        let mut patience = patience();
        if matches!(mood, Mood::Stall(_)) {
            patience.silence = Duration::from_millis(400);
        }
        self.run_with(mood, patience)
    }

    fn run_with(&self, mood: Mood, patience: Patience) -> Result<(), String> {
        self.server.set(mood);
        let want = Want {
            size: self.content.len() as u64,
            sha256: release::Sha256::of(&self.content),
        };
        let target = self.dir.path().join("file");
        let result = Fetcher::new(patience).download(
            &self.server.file_url("file"),
            &target,
            want,
            &mut |_| (),
        );
        let url = format!("http://127.0.0.1:{}/", self.server.port);
        result.map_err(|e| e.to_string().replace(&url, ""))
    }

    fn partial(&self) -> u64 {
        fs::metadata(self.dir.path().join("file.part")).map_or(0, |m| m.len())
    }

    fn is_there(&self) -> bool {
        fs::read(self.dir.path().join("file")).is_ok_and(|bytes| bytes == self.content)
            && !self.dir.path().join("file.part").exists()
            && !self.dir.path().join("file.etag").exists()
    }
}

#[test]
fn each_misbehaviour_has_its_words() {
    let download = Download::new();
    let size = download.content.len();
    let check = |mood: Mood, expect: &str| {
        assert_eq!(download.run(mood).unwrap_err(), expect);
    };
    check(
        Mood::Status(404),
        "file: the server answered 404 (not published there)",
    );
    check(
        Mood::Status(503),
        "file: the server answered 503 (trouble on its side; tried again later)",
    );
    check(
        Mood::Html,
        "file: got an HTML page instead of the file (a captive portal or a proxy's error page?)",
    );
    check(Mood::RedirectLoop, "file: redirected more than 4 times");
    check(
        Mood::WrongLength,
        &format!(
            "file: the server has {} bytes, the signed manifest says {size}",
            size + 1
        ),
    );
    check(
        Mood::Truncate(0),
        &format!(
            "file: the connection ended after 0 of {size} bytes; the next try continues there"
        ),
    );
    let error = download.run(Mood::Corrupt).unwrap_err();
    assert!(
        error.contains("has the SHA-256") && error.ends_with("deleted"),
        "{error}"
    );
    assert_eq!(download.partial(), 0);
    download.run(Mood::Good).unwrap();
    assert!(download.is_there());
}

#[test]
fn a_silent_server_is_given_up() {
    let download = Download::new();
    let start = Instant::now();
    let error = download.run(Mood::Stall(10_000)).unwrap_err();
    assert!(error.contains("the next try continues there"), "{error}");
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
    assert!(download.partial() >= 10_000);
    download.run(Mood::Good).unwrap();
    assert!(download.is_there());
}

#[test]
fn not_a_byte_is_fetched_twice() {
    let download = Download::new();
    // Each answer breaks off after 300 kB: the rest is asked for until all is there.
    // However slow this machine is just now, no try is given up for it.
    let patience = Patience {
        slowest: 1,
        ..patience()
    };
    download
        .run_with(Mood::Truncate(300_000), patience)
        .unwrap();
    assert!(download.is_there());
    assert_eq!(download.server.with(|s| s.sent), download.content.len());
    let requests = download.server.with(|s| s.requests.clone());
    assert_eq!(requests[..2], ["GET file all", "GET file 300000-"]);
}

#[test]
fn a_changed_file_starts_over() {
    let mut download = Download::new();
    download.run(Mood::Stall(10_000)).unwrap_err();
    download.content.extend(b"a newer build");
    let content = download.content.clone();
    download
        .server
        .with(|s| drop(s.files.insert("file".into(), content)));
    download.run(Mood::Good).unwrap();
    assert!(download.is_there());
}

#[test]
fn servers_without_ranges_serve_too() {
    let download = Download::new();
    download.run(Mood::Stall(10_000)).unwrap_err();
    download.run(Mood::NoRanges).unwrap();
    assert!(download.is_there());
}

/// Plain file servers and mirrors, which name nothing or each in its own way.
#[test]
fn a_server_that_names_nothing_is_continued_too() {
    for tag in ["", "W/\"weak\""] {
        let download = Download::new();
        download.server.with(|s| s.tag = Some(tag));
        download.run(Mood::Stall(10_000)).unwrap_err();
        download.run(Mood::Good).unwrap();
        assert!(download.is_there());
        let asked = download.server.with(|s| s.requests.clone());
        assert_eq!(asked, ["GET file all", "GET file 10000-"], "{tag:?}");
    }
}

#[test]
fn without_names_the_signed_size_and_digest_decide() {
    let mut download = Download::new();
    download.server.with(|s| s.tag = Some(""));
    let stale = || fs::write(download.dir.path().join("file.part"), [7; 10_000]).unwrap();
    stale();
    let error = download.run(Mood::Good).unwrap_err();
    assert!(error.ends_with("; deleted"), "{error}");
    assert_eq!(download.partial(), 0, "none of the mixture is kept");
    download.run(Mood::Good).unwrap();
    assert!(download.is_there());

    // Another size is noticed at once.
    fs::remove_file(download.dir.path().join("file")).unwrap();
    stale();
    download.content.push(0);
    let before = download.server.with(|s| s.sent);
    let error = download.run(Mood::Good).unwrap_err();
    assert!(error.contains("the server has"), "{error}");
    assert!(
        download.server.with(|s| s.sent) > before,
        "asked without a range"
    );
    assert_eq!(download.partial(), 0);
}

/// Some proxies answer ranges with nonsense, and whole files as they should.
#[test]
fn a_range_that_is_answered_wrongly_is_not_asked_for_again() {
    let download = Download::new();
    download.run(Mood::Stall(10_000)).unwrap_err();
    let fault = |request: &str| request.ends_with('-').then_some(Mood::Status(416));
    download.server.with(|s| s.fault = Some(Box::new(fault)));
    download.run(Mood::Good).unwrap();
    assert!(download.is_there());
}

#[test]
fn a_full_disk_is_seen_before_it_is_full() {
    let download = Download::new();
    let want = Want {
        size: 1 << 60,
        sha256: release::Sha256::of(""),
    };
    let fetcher = Fetcher::new(patience());
    let error = fetcher.download(
        &download.server.file_url("file"),
        &download.dir.path().join("file"),
        want,
        &mut |_| (),
    );
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("bytes are free") && error.contains("are needed"),
        "{error}"
    );
    assert_eq!(download.server.with(|s| s.sent), 0);
}

#[test]
fn a_disk_that_fills_up_meanwhile_gets_its_space_back() {
    let download = Download::new();
    let Some(_mounted) = Mounted::tmpfs(download.dir.path(), "20m") else {
        return left_out("only root can mount a small file system");
    };
    // What the check leaves free, somebody else takes while the download runs.
    let (size, path) = (download.content.len(), download.dir.path().to_owned());
    let want = Want {
        size: size as u64,
        sha256: release::Sha256::of(&download.content),
    };
    let mut filled = false;
    let mut fill = |_| {
        if !std::mem::replace(&mut filled, true) {
            let _ = fs::write(path.join("other"), vec![1; 20 << 20]);
        }
    };
    let url = download.server.file_url("file");
    let target = download.dir.path().join("file");
    let error = Fetcher::new(patience())
        .download(&url, &target, want, &mut fill)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("file.part: cannot write: No space left"),
        "{error}"
    );
    assert_eq!(download.partial(), 0);
    fs::remove_file(download.dir.path().join("other")).unwrap();
    download.run(Mood::Good).unwrap();
    assert!(download.is_there());
}

/// A small file system, where the tests run as root.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn tmpfs(at: &'a Path, size: &str) -> Option<Self> {
        let mut mount = std::process::Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(at);
        mount
            .status()
            .is_ok_and(|s| s.success())
            .then_some(Self(at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("--lazy")
            .arg(self.0)
            .status();
    }
}

#[test]
fn the_daemon_survives_every_server() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    two.publish(&server);
    let daemon = host.daemon();
    daemon.good().call("Check", json!({})).unwrap();
    for (mood, expect) in [
        (Mood::Status(500), "the server answered 500"),
        (Mood::Garbage, "the answer is not Omaha"),
        (Mood::Html, "got an HTML page"),
        (Mood::RedirectLoop, "redirected more than 4 times"),
        (Mood::Truncate(0), "the connection ended after 0 of"),
        (Mood::WrongLength, "the signed manifest says"),
        (Mood::Corrupt, "has the SHA-256"),
    ] {
        server.set(mood.clone());
        let error = daemon.update().unwrap_err();
        assert!(error.contains(expect), "{mood:?}: {error}");
        let last = daemon.status()["update"].clone();
        assert_eq!(last["state"], "error");
        assert!(
            last["last_error"].as_str().unwrap().contains(expect),
            "{last}"
        );
    }
    host.write(
        "etc/coreos/update.conf",
        "SERVER=http://127.0.0.1:1/v1/update/\n",
    );
    let error = daemon.update().unwrap_err();
    assert!(
        error.contains("connection refused (is the update server running?)"),
        "{error}"
    );

    fs::remove_file(host.path("etc/coreos/update.conf")).unwrap();
    server.set(Mood::Good);
    daemon.update().unwrap();
    assert_eq!(daemon.status()["staged"]["version"], "2");
    assert_eq!(daemon.status()["update"]["last_error"], json!(null));
}

#[test]
fn a_restart_continues_the_download() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    two.publish(&server);
    let mut daemon = host.daemon();
    daemon.good().call("Check", json!({})).unwrap();
    server.set(Mood::Stall(100_000));
    let mut client = daemon.client();
    let mut replies = client
        .call_more("io.orlop.UpdateEngine.Update", json!({}))
        .unwrap();
    // The UKI is on its way; then the power goes.
    let downloading =
        replies.find(|r| r.as_ref().unwrap()["status"]["update"]["state"] == "downloading");
    assert!(downloading.is_some());
    crate::host::wait_for(|| server.with(|s| s.sent) == 100_000);
    std::thread::sleep(Duration::from_millis(200));
    daemon.kill();
    drop(daemon);

    server.set(Mood::Good);
    let daemon = host.daemon();
    daemon.update().unwrap();
    assert_eq!(
        server.with(|s| s.sent),
        two.uki.len() + two.payload.len(),
        "not a byte twice"
    );
    assert!(server.with(|s| s.requests.contains(&"GET 2/uki.efi 100000-".into())));
}
