//! Hosts that follow a TUF root: what is refused, by whom, and under which code.

use std::fs::{self, File};

use jiff::{Timestamp, ToSpan as _};
use release::keys::SigningKey;
use release::tuf::sign::{Holders, seal};
use release::tuf::{FileMeta, Root, Snapshot, TargetMeta, Targets, Timestamp as Stamp};
use rustix::fs::{FlockOperation, fcntl_lock};
use serde_json::{Value, json};

use crate::host::{Host, Release, wait_for};
use crate::server::{Mood, Server};

const DAEMONS: &str = "var/lib/update-engine/tuf";
const WRITERS: &str = "var/lib/update-writer/tuf";

fn tuf_key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

/// The metadata of a repository that has these releases on `stable`; by name.
fn metadata(version: u64, expires: Timestamp, releases: &[&Release]) -> Vec<(String, Vec<u8>)> {
    let far = Timestamp::now() + 9000.hours();
    let channels = [("stable", vec![tuf_key(6).verifying_key()])];
    let seal = |targets: &Targets, n| {
        let signed = seal(targets, &[&tuf_key(n)]).unwrap();
        signed.to_bytes().unwrap()
    };
    let top = seal(&Targets::top(version, far, &channels), 4);
    let targets = releases.iter().map(|release| {
        let name = release::tuf::target_name("stable", &release.manifest.version);
        (name, TargetMeta::of(&release.envelope, None))
    });
    let stable = seal(&Targets::of(version, far, targets.collect()), 6);
    let meta = [
        ("targets.json".to_owned(), FileMeta::of(version, &top)),
        ("stable.json".to_owned(), FileMeta::of(version, &stable)),
    ];
    let online = tuf_key(5);
    let snapshot = Snapshot::of(version, expires, meta.into());
    let snapshot = release::tuf::sign::seal(&snapshot, &[&online]).unwrap();
    let snapshot = snapshot.to_bytes().unwrap();
    let stamp = Stamp::of(version, expires, FileMeta::of(version, &snapshot));
    let stamp = release::tuf::sign::seal(&stamp, &[&online]).unwrap();
    vec![
        ("timestamp.json".into(), stamp.to_bytes().unwrap()),
        ("snapshot.json".into(), snapshot),
        ("targets.json".into(), top),
        ("stable.json".into(), stable),
    ]
}

fn root() -> Vec<u8> {
    let holders = Holders {
        root: [1, 2, 3].map(|n| tuf_key(n).verifying_key()).to_vec(),
        root_threshold: 2,
        targets: vec![tuf_key(4).verifying_key()],
        online: vec![tuf_key(5).verifying_key()],
    };
    let root = Root::of(1, Timestamp::now() + 9000.hours(), &holders);
    let signed = seal(&root, &[&tuf_key(1), &tuf_key(2)]).unwrap();
    signed.to_bytes().unwrap()
}

fn publish(server: &Server, version: u64, expires: Timestamp, releases: &[&Release]) {
    for release in releases {
        release.publish(server);
    }
    for (name, bytes) in metadata(version, expires, releases) {
        let name = match name.as_str() {
            "timestamp.json" => format!("tuf/{name}"),
            name => format!("tuf/{version}.{name}"),
        };
        server.with(|s| s.files.insert(name, bytes));
    }
}

/// Where a host keeps it; `dir` is the daemon's or the writer's.
fn store(host: &Host, dir: &str, files: Vec<(String, Vec<u8>)>) {
    fs::create_dir_all(host.path(dir)).unwrap();
    for (name, bytes) in files {
        fs::write(host.path(dir).join(name), bytes).unwrap();
    }
}

fn host(server: &Server, releases: &[&Release]) -> Host {
    let host = Host::new(server, releases);
    fs::create_dir_all(host.path("usr/lib/orlop/tuf")).unwrap();
    fs::write(host.path("usr/lib/orlop/tuf/root.json"), root()).unwrap();
    host
}

fn soon() -> Timestamp {
    Timestamp::now() + 48.hours()
}

fn over() -> Timestamp {
    Timestamp::now() - 1.hour()
}

#[test]
fn each_reason_has_its_code() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = host(&server, &[&one, &two]);
    publish(&server, 5, soon(), &[&two]);
    let daemon = host.daemon();
    daemon.good();
    let refused = |code: u16, version: &str| {
        let error = daemon.update().unwrap_err();
        let update = daemon.status()["update"].clone();
        assert_eq!(update["last_error_code"], code, "{error}");
        let last = update["last_error"].as_str().unwrap();
        assert!(error.starts_with(last), "{error}");
        // The server hears of it as soon as the host knows which version it is about.
        if !version.is_empty() {
            let report = format!("14/0 {version} ({code}: {last})");
            wait_for(|| server.with(|s| s.events.contains(&report)));
        }
    };

    server.set(Mood::Garbage);
    refused(10, "");
    server.set(Mood::Corrupt);
    refused(30, "2");
    server.set(Mood::Good);

    let mut version = 5;
    let mut offer = |change: &dyn Fn(&mut Release)| {
        let mut three = Release::new("3");
        change(&mut three);
        version += 1;
        publish(&server, version, soon(), &[&three]);
    };
    offer(&|r| r.envelope = Release::signed("3", &SigningKey::from_bytes(&[66; 32])).envelope);
    refused(20, "3");
    offer(&|r| {
        r.manifest.architecture = "arm64".into();
        r.sign();
    });
    refused(22, "3");
    offer(&|r| {
        r.manifest.minimum_source_version = Some("2.5".parse().unwrap());
        r.sign();
    });
    refused(23, "3");
    let older = Release::new("0.9");
    publish(&server, 10, soon(), &[&older]);
    refused(21, "0.9");

    // Of the metadata, by the daemon.
    publish(&server, 5, soon(), &[&two]);
    refused(63, "2");
    publish(&server, 11, over(), &[&two]);
    refused(64, "2");
    publish(&server, 12, soon(), &[]);
    refused(68, "2");

    // And by the writer, which has seen what the daemon has not.
    publish(&server, 13, soon(), &[&two]);
    store(&host, WRITERS, metadata(20, soon(), &[&two]));
    let before = host.disk_digest();
    refused(63, "2");
    assert_eq!(host.disk_digest(), before);
    assert_eq!(daemon.status()["update"]["state"], "error");
    fs::remove_dir_all(host.path(WRITERS)).unwrap();
    fs::remove_file(host.path("run/orlop/good")).unwrap();
    refused(41, "2");

    fs::write(host.path("run/orlop/good"), "").unwrap();
    daemon.update().unwrap();
    let update = &daemon.status()["update"];
    assert_eq!(update["last_error_code"], json!(null));
    assert_eq!(update["state"], "staged");
}

#[test]
fn the_writer_says_why_it_refuses() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = host(&server, &[&one, &two]);
    let code = |release: &Release| {
        let error = host
            .writer()
            .call("io.orlop.UpdateWriter.Stage", release.call(&host));
        match error.unwrap_err() {
            host::varlink::VarlinkError::Reply { name, parameters } => {
                assert_eq!(name, "io.orlop.UpdateWriter.Refused");
                parameters["code"].as_u64().unwrap()
            }
            other => panic!("{other}"),
        }
    };
    // Nothing was stored for it, and the boot is not good.
    assert_eq!(code(&two), 41);
    store(&host, DAEMONS, metadata(3, soon(), &[&two]));
    assert_eq!(code(&two), 41);
    host.run(&["mark-good"]);
    let stranger = Release::signed("2", &SigningKey::from_bytes(&[66; 32]));
    assert_eq!(code(&stranger), 20);
    let mut arm = Release::new("2");
    arm.manifest.architecture = "arm64".into();
    arm.sign();
    assert_eq!(code(&arm), 67);
    store(&host, DAEMONS, metadata(3, soon(), &[&arm]));
    assert_eq!(code(&arm), 22);
    store(&host, DAEMONS, metadata(2, soon(), &[&two]));
    assert_eq!(code(&two), 63);
    store(&host, DAEMONS, metadata(5, over(), &[&two]));
    assert_eq!(code(&two), 64);
    store(&host, DAEMONS, metadata(6, soon(), &[]));
    assert_eq!(code(&two), 68);
    store(&host, DAEMONS, metadata(7, soon(), &[&two]));
    host.stage(&two).unwrap();
}

#[test]
fn expired_metadata_is_for_the_update_that_root_waits_for() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = host(&server, &[&one, &two]);
    publish(&server, 5, over(), &[&two]);
    let daemon = host.daemon();
    daemon.good();
    let refused = |parameters: Value| {
        daemon.call("Update", parameters).unwrap_err();
        daemon.status()["update"]["last_error_code"] == 64
    };
    let allowing = || json!({ "allow_expired": true });
    assert!(refused(json!({})));
    // Whoever asks the daemon only says that root does; root did not.
    assert!(refused(allowing()));
    let path = host.path("run/orlop/update-allow-expired");
    let held = File::create(&path).unwrap();
    assert!(refused(allowing()));

    fcntl_lock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    // Those that nobody asked for so have nothing of it: the daemon's own, and at the writer.
    assert!(refused(json!({})));
    let check = daemon.call("Check", allowing()).unwrap();
    assert_eq!(check["available"], "2");
    let error = host.stage(&two).unwrap_err();
    assert!(error.contains("expired at"), "{error}");
    daemon
        .call(
            "Update",
            json!({ "allow_expired": true, "download_only": true }),
        )
        .unwrap();

    // Who waited is gone, however it ended.
    drop(held);
    let mut call = two.call(&host);
    call["allow_expired"] = json!(true);
    let stage = |call: &Value| {
        let mut writer = host.writer();
        let replies = writer.call_more("io.orlop.UpdateWriter.Stage", call);
        replies.unwrap().last().unwrap().map_err(|e| e.to_string())
    };
    let error = stage(&call).unwrap_err();
    assert!(error.contains("expired at"), "{error}");
    assert!(refused(allowing()));

    let held = File::options().write(true).open(&path).unwrap();
    fcntl_lock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    daemon.call("Update", allowing()).unwrap();
    assert_eq!(daemon.status()["staged"]["version"], "2");
}
