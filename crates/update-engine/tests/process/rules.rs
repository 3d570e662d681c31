//! Which signed releases a host does not go to, whatever became of the daemon or its memory.

use disk::Slot;
use release::Manifest;
use serde_json::{Value, json};

use crate::host::{Host, Release, wait_for};
use crate::server::Server;

fn of_epoch(version: &str, epoch: u64) -> Release {
    Release::new(version).with(|m| m.epoch = epoch)
}

const NOTE: &str = "var/lib/update-writer/epoch";
const PERMISSION: &str = "run/orlop/update-overrides.json";

/// As a daemon that was taken over would: nothing but the writer is asked.
fn refused(host: &Host, release: &Release, expect: &str) {
    let before = host.disk_digest();
    let error = host.stage(release).unwrap_err();
    assert!(
        error.contains(expect) && error.contains("UpdateWriter.Refused"),
        "{error}"
    );
    assert_eq!(host.disk_digest(), before, "something was written: {error}");
}

fn allow_older(host: &Host) {
    let until = jiff::Timestamp::now() + std::time::Duration::from_secs(60);
    let text = json!({ "allow_older": true, "until": until });
    host.write(PERMISSION, &text.to_string());
}

/// It has never updated, and what the daemon remembers is gone or torn.
#[test]
fn a_host_that_was_installed_with_an_epoch_takes_none_before() {
    let server = Server::start();
    let (one, two) = (of_epoch("1", 1), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    let state = "var/lib/update-engine/state.json";
    two.publish(&server);
    for memory in [None, Some("{ torn")] {
        match memory {
            Some(text) => host.write(state, text),
            None => drop(std::fs::remove_file(host.path(state))),
        }
        let daemon = host.daemon();
        let error = daemon.good().update().unwrap_err();
        let expect = "version 2 has epoch 0, this host has seen 1";
        assert!(error.contains(expect), "{memory:?}: {error}");
        assert_eq!(daemon.status()["epoch"], 1);
        assert_eq!(server.with(|s| s.sent), 0, "not a byte of it was fetched");
    }
    wait_for(|| server.with(|s| s.events.iter().any(|e| e.starts_with("14/0 2 (24: "))));
    refused(&host, &two, "version 2 has epoch 0, this host has seen 1");
    host.stage(&of_epoch("3", 1)).unwrap();
}

#[test]
fn an_epoch_that_was_good_is_not_forgotten_by_going_back() {
    let server = Server::start();
    let (one, two) = (Release::new("1"), of_epoch("2", 2));
    let mut host = Host::new(&server, &[&one, &two]);
    host.run(&["mark-good"]);
    host.stage(&two).unwrap();
    assert_eq!(host.boot(), Slot::B);
    host.run(&["mark-good"]);
    assert_eq!(host.read(NOTE).as_deref(), Some("2\n"));

    // To what is in the other slot there is always a way.
    let rollback = |host: &Host| {
        host.writer()
            .call("io.orlop.UpdateWriter.Rollback", json!({}))
            .map_err(|e| e.to_string())
    };
    rollback(&host).unwrap();
    assert_eq!(host.boot(), Slot::A);
    host.run(&["mark-good"]);
    refused(
        &host,
        &of_epoch("3", 1),
        "has epoch 1, this host has seen 2",
    );
    // Neither does the daemon fetch it, of which nobody told it anything.
    of_epoch("3", 1).publish(&server);
    let daemon = host.daemon();
    let error = daemon.update().unwrap_err();
    assert!(
        error.contains("has epoch 1, this host has seen 2"),
        "{error}"
    );
    assert_eq!(server.with(|s| s.sent), 0);
    host.stage(&of_epoch("4", 2)).unwrap();
}

/// Or it would keep the host from everything that it can go back to.
#[test]
fn an_epoch_that_was_never_good_does_not_count() {
    let server = Server::start();
    let (one, two) = (Release::new("1"), of_epoch("2", 9));
    let mut host = Host::new(&server, &[&one, &two]);
    host.run(&["mark-good"]);
    host.stage(&two).unwrap();
    assert_eq!(host.boot(), Slot::B);
    drop(host.daemon());
    let booted: Vec<Slot> = (0..3).map(|_| host.boot()).collect();
    assert_eq!(booted, [Slot::B, Slot::B, Slot::A]);
    host.run(&["mark-good"]);
    host.stage(&Release::new("3")).unwrap();
    assert_eq!(host.read(NOTE), None);
}

/// A boot that is good otherwise does not fail for it, and what runs counts all the same.
#[test]
fn a_note_that_cannot_be_written_or_read_fails_no_boot() {
    let server = Server::start();
    let (one, two) = (of_epoch("1", 1), Release::new("2"));
    let host = Host::new(&server, &[&one]);
    host.write("var/lib/update-writer", "no directory");
    host.run(&["mark-good"]);
    let daemon = host.daemon();
    assert_eq!(daemon.status()["epoch"], 1);
    let before = host.disk_digest();
    host.stage(&two).unwrap_err();
    assert_eq!(host.disk_digest(), before);

    std::fs::remove_file(host.path("var/lib/update-writer")).unwrap();
    std::fs::create_dir(host.path("var/lib/update-writer")).unwrap();
    host.write(NOTE, "x");
    refused(&host, &two, "version 2 has epoch 0, this host has seen 1");
    assert_eq!(host.read(NOTE).as_deref(), Some("1\n"));
}

#[test]
fn the_writer_checks_the_floor_itself() {
    let floor = |m: &mut Manifest| m.minimum_source_version = Some("1.5".parse().unwrap());
    let (server, one) = (Server::start(), Release::new("1"));
    let host = Host::new(&server, &[&one]);
    host.run(&["mark-good"]);
    let three = Release::new("3").with(floor);
    refused(&host, &three, "update to 1.5 first");
    // What root may allow is another thing.
    allow_older(&host);
    refused(&host, &three, "update to 1.5 first");
    let floor = |m: &mut Manifest| m.minimum_source_version = Some("1".parse().unwrap());
    host.stage(&Release::new("3").with(floor)).unwrap();
}

#[test]
fn only_root_has_an_older_release_written() {
    let server = Server::start();
    let (three, two) = (Release::new("3"), Release::new("2"));
    let mut host = Host::new(&server, &[&three, &two]);
    two.publish(&server);
    let daemon = host.daemon();
    daemon.good();
    let older = "version 2 is older than the running 3";
    let error = daemon.update().unwrap_err();
    assert!(error.contains(older), "{error}");
    refused(&host, &two, older);

    // The daemon's word for it is not enough.
    let before = host.disk_digest();
    let forced = || daemon.call("Update", json!({ "force": true }));
    let error = forced().unwrap_err();
    assert!(
        error.contains(older) && error.contains("orlop update --force"),
        "{error}"
    );
    assert_eq!(host.disk_digest(), before);
    assert_eq!(daemon.status()["staged"], Value::Null);
    wait_for(|| server.with(|s| s.events.iter().any(|e| e.starts_with("14/0 2 (21: "))));
    host.write(
        PERMISSION,
        r#"{"allow_older":true,"until":"2020-01-01T00:00:00Z"}"#,
    );
    refused(&host, &two, older);

    allow_older(&host);
    forced().unwrap();
    assert_eq!(daemon.status()["staged"]["version"], "2");
    drop(daemon);
    assert_eq!(host.boot(), Slot::B);
}

/// Refused, the other slot is as it was: a release that was staged before still waits for its reboot.
#[test]
fn what_is_staged_survives_a_refusal() {
    let server = Server::start();
    let (two, three, one) = (Release::new("2"), Release::new("3"), Release::new("1"));
    let host = Host::new(&server, &[&two, &three, &one]);
    three.publish(&server);
    let daemon = host.daemon();
    daemon.good().update().unwrap();
    one.publish(&server);
    daemon.call("Update", json!({ "force": true })).unwrap_err();
    wait_for(|| daemon.status()["staged"]["version"] == "3");
    wait_for(|| host.path("run/update-engine/reboot-needed").exists());
    assert!(host.is_intact(Slot::B, &three));
}
