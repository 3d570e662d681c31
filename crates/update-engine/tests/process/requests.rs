//! A whole update, with signed metadata and an extension, in which one request fails or one write:
//! each of them, in each way. What comes out is the release, staged, or an error with nothing
//! half-done beside it, and the next try ends with the release.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use disk::Slot;
use serde_json::json;

use crate::host::{Daemon, Host, Release, wait_for};
use crate::server::{Mood, Server};
use crate::{extensions, signed};

pub struct Releases {
    pub one: Release,
    pub two: Release,
}

impl Releases {
    pub fn new() -> Self {
        let release = |version| extensions::release(version, &extensions::image(version));
        Self {
            one: release("1"),
            two: release("2"),
        }
    }

    /// A host that runs version 1, wants the extension, and follows the server's metadata.
    pub fn host(&self) -> (Server, Host) {
        let server = Server::start();
        let host = Host::new(&server, &[&self.one, &self.two]);
        signed::bake_root(&host);
        fs::create_dir_all(host.path("etc/orlop")).unwrap();
        host.write("etc/orlop/extensions", "debug\n");
        server.with(|s| {
            let files = [("manifest.dsse.json", &self.one.envelope)];
            let extra = self
                .one
                .extra
                .iter()
                .map(|(name, bytes)| (&name[..], bytes));
            for (name, bytes) in files.into_iter().chain(extra) {
                s.files.insert(format!("releases/1/{name}"), bytes.clone());
            }
        });
        signed::publish(&server, &[&self.one, &self.two]);
        (server, host)
    }

    /// What has to be so after a try that something went wrong in. Whether it came through.
    pub fn judge(&self, host: &Host, daemon: &Daemon<'_>, tried: &Result<(), String>, what: &str) {
        let status = daemon.status();
        let update = &status["update"];
        match tried {
            Ok(()) => {
                assert_eq!(status["staged"]["version"], "2", "{what}");
                assert!(host.is_intact(Slot::B, &self.two), "{what}");
            }
            Err(error) => {
                assert_eq!(update["state"], "error", "{what}: {error}: {update}");
                let last = update["last_error"].as_str().unwrap();
                assert!(error.contains(last), "{what}: {error}, not {last}");
                assert_eq!(status["staged"], json!(null), "{what}");
                assert!(
                    host.entry(Slot::B).is_none_or(|e| !e.is_bootable()),
                    "{what}"
                );
            }
        }
        assert_eq!(status["failed"], json!([]), "{what}");
        // What was to replace a file is gone as soon as nothing is written any more. What came of a
        // download may stay for the next try.
        wait_for(|| left_over(host).iter().all(|name| !name.contains("/.part")));
        assert!(host.is_intact(Slot::A, &self.one), "{what}");
    }

    /// With a server and a disk that are as they should be.
    pub fn succeeds(&self, host: &Host, daemon: &Daemon<'_>, what: &str) {
        if daemon.status()["staged"] == json!(null) {
            let tried = daemon.update();
            tried.unwrap_or_else(|e| panic!("{what}: no retry: {e}"));
        }
        let _ = daemon.call("Check", json!({}));
        self.judge(host, daemon, &Ok(()), what);
        for release in [&self.one, &self.two] {
            let dir = host.path("var/lib/update-engine/extensions");
            let image = dir
                .join(release.root_hash().to_string())
                .join("debug.sysext");
            let image =
                fs::read(&image).unwrap_or_else(|e| panic!("{what}: {}: {e}", release.version));
            assert!(image == extensions::image(&release.version), "{what}");
        }
        wait_for(|| left_over(host).is_empty());
        let seen = host.path("var/lib/update-writer/tuf/timestamp.json");
        assert!(
            seen.exists(),
            "{what}: the writer believed it without metadata"
        );
    }
}

/// Parts, names of contents, and files that were to replace others.
pub fn left_over(host: &Host) -> Vec<String> {
    fn walk(dir: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if path.is_dir() {
                walk(&path, found);
            } else if name.ends_with(".part")
                || name.ends_with(".etag")
                || name.starts_with(".part")
            {
                found.push(path.display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    walk(&host.path("var/lib"), &mut found);
    found
}

/// An update whose nth request is answered so. All the requests.
fn update(releases: &Releases, nth: usize, mood: &Mood) -> Vec<String> {
    let (server, host) = releases.host();
    let daemon = host.daemon();
    daemon.good();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (all, wrong) = (Arc::clone(&asked), mood.clone());
    let fault = move |request: &str| {
        let mut all = all.lock().unwrap();
        all.push(request.to_owned());
        (all.len() == nth).then(|| wrong.clone())
    };
    server.with(|s| s.fault = Some(Box::new(fault)));
    let tried = daemon.update().map(drop);
    server.with(|s| s.fault = None);
    let asked = asked.lock().unwrap().clone();
    let request = asked.get(nth.wrapping_sub(1));
    let what = format!("{mood:?} for request {nth}, {request:?}: {tried:?}");
    println!("{what}");
    releases.judge(&host, &daemon, &tried, &what);
    releases.succeeds(&host, &daemon, &what);
    let downloads = host.path("var/lib/update-engine/download");
    wait_for(|| fs::read_dir(&downloads).map_or(0, Iterator::count) == 0);
    asked
}

#[test]
fn a_fault_in_each_request_of_an_update() {
    let releases = Releases::new();
    let asked = update(&releases, 0, &Mood::Good);
    for part in [
        "POST",
        "tuf/2.root.json",
        "tuf/timestamp.json",
        "tuf/2.snapshot.json",
        "tuf/2.targets.json",
        "tuf/2.stable.json",
        "2/manifest.dsse.json",
        "2/uki.efi",
        "2/usr.erofs.zst",
        "2/debug.sysext.zst",
        "releases/1/debug.sysext.zst",
    ] {
        assert!(asked.iter().any(|r| r.contains(part)), "{part}: {asked:?}");
    }
    std::thread::scope(|scope| {
        for mood in [
            Mood::HangUp,
            Mood::Status(503),
            Mood::Status(404),
            Mood::Truncate(100),
            Mood::Flip(150_000),
            Mood::WrongLength,
        ] {
            let (releases, all) = (&releases, asked.len());
            scope.spawn(move || (1..=all).for_each(|nth| drop(update(releases, nth, &mood))));
        }
    });
}

/// At the same time, as each is waited for as long as the engine waits.
#[test]
fn silence_in_each_request_of_an_update() {
    let releases = Releases::new();
    let asked = update(&releases, 0, &Mood::Good).len();
    std::thread::scope(|scope| {
        for nth in 1..=asked {
            let releases = &releases;
            scope.spawn(move || update(releases, nth, &Mood::Stall(100)));
        }
    });
}
