//! What must not be written is not written, to the last byte of the disk.

use disk::Slot;
use disk::esp::{self, Esp};
use disk::gpt::ESP;
use release::dsse::Envelope;
use release::keys::SigningKey;
use serde_json::json;

use crate::host::{Host, LAYOUT, Release, key, left_out, wait_for};
use crate::server::{Mood, Server};

/// Calls the writer directly: it trusts no daemon. `expect` is part of the refusal.
fn refused(change: impl FnOnce(&mut Release), expect: &str) {
    refused_as("UpdateWriter.Refused", change, expect);
}

fn refused_as(name: &str, change: impl FnOnce(&mut Release), expect: &str) {
    let (server, one, mut two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    host.run(&["mark-good"]);
    let before = host.disk_digest();
    change(&mut two);
    let error = host.stage(&two).unwrap_err();
    assert!(error.contains(expect) && error.contains(name), "{error}");
    assert_eq!(
        host.disk_digest(),
        before,
        "refused, but something was written: {error}"
    );
}

#[test]
fn the_writer_believes_signatures_only() {
    let stranger = SigningKey::from_bytes(&[66; 32]);
    let forged = Release::signed("2", &stranger).envelope;
    refused(
        |r| r.envelope = forged,
        "signed by a key that is not trusted here",
    );
    refused(
        |r| {
            let text = String::from_utf8(r.envelope.clone()).unwrap();
            r.envelope = text
                .replace("\"payload\": \"e", "\"payload\": \"f")
                .into_bytes();
        },
        "the manifest is refused",
    );
    refused(|r| r.envelope = b"{".to_vec(), "not complete JSON");
}

#[test]
fn the_writer_believes_no_file() {
    refused(|r| r.payload[5000] ^= 1, "has the SHA-256");
    refused(|r| r.uki[5000] ^= 1, "has the SHA-256");
    refused(|r| r.payload.truncate(5000), "the manifest says");
    let resign = |r: &mut Release, change: &dyn Fn(&mut release::Manifest)| {
        change(&mut r.manifest);
        r.envelope = Envelope::sign(&r.manifest, &key())
            .unwrap()
            .to_json()
            .unwrap();
    };
    refused_as(
        "UpdateWriter.Refused",
        |r| resign(r, &|m| m.architecture = "arm64".into()),
        "is for arm64",
    );
    refused(
        |r| resign(r, &|m| m.usr.size = LAYOUT.usr + 4096),
        "usr-b has",
    );
    refused(
        |r| resign(r, &|m| m.uki.size = 1 << 40),
        "is refused: at most",
    );
    let huge = vec![b'M'; 36 << 20];
    refused(
        |r| {
            r.uki = huge;
            r.uki[1] = b'Z';
            let (size, sha256) = (r.uki.len() as u64, release::Sha256::of(&r.uki));
            resign(r, &|m| (m.uki.size, m.uki.sha256) = (size, sha256));
        },
        "the EFI system partition has",
    );
}

#[test]
fn the_running_release_is_never_written() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let mut host = Host::new(&server, &[&one, &two]);
    let before = host.disk_digest();
    let error = host.stage(&two).unwrap_err();
    assert!(
        error.contains("this boot has not been marked good"),
        "{error}"
    );
    assert_eq!(host.disk_digest(), before);

    host.run(&["mark-good"]);
    let before = host.disk_digest();
    let error = host.stage(&one).unwrap_err();
    assert!(
        error.contains("version 1 is what runs in slot a"),
        "{error}"
    );
    assert_eq!(host.disk_digest(), before);

    // From slot b, slot a is the target: wherever the host runs, the other one is written.
    host.stage(&two).unwrap();
    assert_eq!(host.boot(), Slot::B);
    host.run(&["mark-good"]);
    host.stage(&Release::new("3")).unwrap();
    assert!(host.is_intact(Slot::B, &two) && host.is_intact(Slot::A, &Release::new("3")));
}

/// A good signature on an image whose hash tree has another root: the slot was disabled first.
#[test]
fn an_image_that_is_not_what_was_signed_cannot_be_booted() {
    let (server, one, mut two) = (Server::start(), Release::new("1"), Release::new("2"));
    let mut host = Host::new(&server, &[&one, &two]);
    host.run(&["mark-good"]);
    host.stage(&two).unwrap();
    two.manifest.usr.root_hash = release::Sha256::of("something else");
    two.envelope = Envelope::sign(&two.manifest, &key())
        .unwrap()
        .to_json()
        .unwrap();
    let error = host.stage(&two).unwrap_err();
    assert!(
        error.contains("root hash") && error.contains("UpdateWriter.Failed"),
        "{error}"
    );
    assert!(!host.entry(Slot::B).unwrap().valid);
    assert!(host.is_intact(Slot::A, &one));
    assert_eq!(host.boot(), Slot::A);
}

#[test]
fn the_writer_reads_downloads_only() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    host.run(&["mark-good"]);
    let mut call = two.call(&host);
    let link = host.path("var/lib/update-engine/download/x/link");
    std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
    for (path, expect) in [
        ("/etc/passwd".into(), "is not in"),
        (
            host.path("var/lib/update-engine/download/../../../../etc/passwd"),
            "is not in",
        ),
        (link, "cannot open"),
        (
            host.path("var/lib/update-engine/download/x"),
            "is not a file",
        ),
        (
            host.path("var/lib/update-engine/download/none"),
            "cannot open",
        ),
    ] {
        call["uki"] = json!(path);
        let error = host
            .writer()
            .call("io.orlop.UpdateWriter.Stage", &call)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expect), "{path:?}: {error}");
    }
}

#[test]
fn a_wrong_signature_stops_the_daemon_before_the_download() {
    let (server, one) = (Server::start(), Release::new("1"));
    let host = Host::new(&server, &[&one]);
    let daemon = host.daemon();
    daemon.good();
    wait_for(|| host.path("run/orlop/good").exists());
    let before = host.disk_digest();
    Release::signed("2", &SigningKey::from_bytes(&[66; 32])).publish(&server);
    let error = daemon.update().unwrap_err();
    assert!(
        error.contains("signed by a key that is not trusted here"),
        "{error}"
    );
    assert_eq!(server.with(|s| s.sent), 0, "not a byte of it was fetched");
    assert_eq!(host.disk_digest(), before);
    assert_eq!(daemon.status()["update"]["state"], "error");
    wait_for(|| server.with(|s| s.events.iter().any(|e| e.starts_with("14/0 2 (20: "))));
}

/// A server that withholds what failed still offers it, and the daemon takes it without being asked.
#[test]
fn what_was_wrong_on_the_way_is_not_held_against_the_release() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    server.with(|s| s.withholds = true);
    let conf = format!("SERVER={}\nPOLL_INTERVAL=2s\n", server.url());
    host.write("etc/coreos/update.conf", &conf);
    let stranger = SigningKey::from_bytes(&[66; 32]);
    Release::signed("2", &stranger).publish(&server);
    let daemon = host.daemon();
    daemon.good();
    let told = |prefix: &str| server.with(|s| s.events.iter().any(|e| e.starts_with(prefix)));
    wait_for(|| told("14/0 2 (20: "));
    server.set(Mood::Corrupt);
    two.publish(&server);
    wait_for(|| told("14/0 2 (30: "));
    assert_eq!(daemon.status()["failed"], json!([]));
    server.set(Mood::Good);
    wait_for(|| daemon.status()["staged"]["version"] == "2");
    assert!(host.is_intact(Slot::B, &two));
    assert!(!told("3/0 "));
}

/// Nebraska's policy says no in words that look like errors.
#[test]
fn what_a_server_holds_back_is_asked_for_again() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    let conf = format!("SERVER={}\nPOLL_INTERVAL=1s\n", server.url());
    host.write("etc/coreos/update.conf", &conf);
    two.publish(&server);
    server.set(Mood::Denies("error-maxUpdatesPerPeriodLimitReached"));
    let daemon = host.daemon();
    daemon.good();
    for denial in [
        "error-maxConcurrentUpdatesLimitReached",
        "error-maxTimedOutUpdatesLimitReached",
        "error-updateInProgressOnInstance",
        "error-updatesDisabled",
    ] {
        let before = server.with(|s| s.asked);
        wait_for(|| server.with(|s| s.asked) > before + 1);
        let update = daemon.status()["update"].clone();
        assert_eq!(update["last_error"], json!(null), "{update}");
        server.set(Mood::Denies(denial));
    }
    // Any other word is a mistake that somebody has to see.
    server.set(Mood::Denies("error-unknownApplicationOrGroup"));
    wait_for(|| daemon.status()["update"]["state"] == "error");
    let update = daemon.status()["update"].clone();
    let error = update["last_error"].as_str().unwrap();
    assert!(error.contains("error-unknownApplicationOrGroup"), "{error}");
    assert_eq!(server.with(|s| s.sent), 0);
    assert!(server.with(|s| s.events.iter().all(|e| !e.contains("/0 "))));
    server.set(Mood::Good);
    wait_for(|| daemon.status()["staged"]["version"] == "2");
}

#[test]
fn a_release_for_other_hosts_is_reported() {
    let (server, one, mut two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one]);
    two.manifest.minimum_source_version = Some("1.5".parse().unwrap());
    let envelope = Envelope::sign(&two.manifest, &key()).unwrap();
    two.envelope = envelope.to_json().unwrap();
    two.publish(&server);
    let daemon = host.daemon();
    let error = daemon.good().update().unwrap_err();
    assert!(error.contains("update to 1.5 first"), "{error}");
    wait_for(|| server.with(|s| s.events.iter().any(|e| e.starts_with("14/0 2 (23: "))));
}

/// With `state=volatile` a release that fails would be forgotten, and tried after each fallback.
#[test]
fn a_host_without_memory_updates_by_hand_only() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    let cmdline = host.read("proc/cmdline").unwrap();
    host.write(
        "proc/cmdline",
        &format!("{} state=volatile\n", cmdline.trim()),
    );
    let conf = format!("SERVER={}\nPOLL_INTERVAL=1s\n", server.url());
    host.write("etc/coreos/update.conf", &conf);
    two.publish(&server);
    let daemon = host.daemon();
    daemon.good();
    // It asks again and again, so that the server knows of it.
    let asked = |s: &mut crate::server::State| s.requests.len();
    wait_for(|| server.with(asked) >= 3);
    let status = daemon.status();
    assert_eq!(status["staged"], json!(null));
    let error = status["update"]["last_error"].as_str().unwrap();
    assert!(
        error.starts_with("state is volatile: updates only by hand"),
        "{error}"
    );
    assert_eq!(server.with(|s| s.sent), 0, "nothing is downloaded");

    daemon.update().unwrap();
    assert_eq!(daemon.status()["staged"]["version"], "2");
}

#[test]
fn a_broken_configuration_does_not_stop_the_boot() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    host.write("etc/coreos/update.conf", "GROUP=NOT A CHANNEL\n");
    host.write("var/lib/update-engine/state.json", "{ torn");
    let daemon = host.daemon();
    daemon.good();
    let error = daemon.status()["update"]["last_error"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        error.starts_with("updates are off: ") && error.contains("update.conf:1: GROUP"),
        "{error}"
    );
    assert!(
        host.path("var/lib/update-engine/state.json.unreadable")
            .exists()
    );
    let error = daemon.call("Update", json!({})).unwrap_err();
    assert!(error.contains("update.conf:1: GROUP"), "{error}");

    // Letters and digits alone make no channel.
    host.write("etc/coreos/update.conf", "GROUP=7up\n");
    let error = daemon.call("Update", json!({})).unwrap_err();
    assert!(error.contains("\"7up\" cannot name a channel"), "{error}");
    let error = daemon.status()["update"]["last_error"].to_string();
    assert!(error.contains("cannot name a channel"), "{error}");

    // Without a server they are off.
    host.write("etc/coreos/update.conf", "SERVER=\n");
    let error = daemon.call("Update", json!({})).unwrap_err();
    assert!(error.contains("updates are switched off"), "{error}");
    assert_eq!(daemon.status()["update"]["last_error"], json!(null));

    // Repaired, it counts without a restart.
    two.publish(&server);
    host.write("etc/coreos/update.conf", "GROUP=beta\n");
    daemon.update().unwrap();
    assert_eq!(daemon.status()["channel"], "beta");
}

/// After a fallback there is something to remember, and on a full disk nowhere to.
#[test]
fn a_memory_that_cannot_be_saved_does_not_fail_the_boot() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    std::fs::create_dir_all(host.path("var/lib/update-engine/state.json/x")).unwrap();
    let hash = two.root_hash();
    let attempt = format!("{{\"version\":\"2\",\"usrhash\":\"{hash}\",\"boot_id\":\"x\"}}\n");
    host.write("var/lib/orlop/boot/attempts", &attempt);
    two.publish(&server);
    let daemon = host.daemon();
    daemon.good();
    assert_eq!(daemon.call("Check", json!({})).unwrap()["available"], "2");
    // Not a byte of the other slot changes that nobody would remember.
    let before = host.disk_digest();
    daemon.update().unwrap_err();
    assert_eq!(host.disk_digest(), before);
}

/// Only for others than root and the daemon's own user; needs root to become one.
#[test]
fn strangers_may_look_only() {
    const SOCKET: &str = "ORLOP_TEST_SOCKET";
    if let Ok(socket) = std::env::var(SOCKET) {
        let mut client = host::varlink::Client::connect(socket).unwrap();
        assert!(
            client
                .call("io.orlop.UpdateEngine.GetStatus", json!({}))
                .is_ok()
        );
        for method in ["Check", "Update", "Rollback", "ClearFailed"] {
            let error = client
                .call(&format!("io.orlop.UpdateEngine.{method}"), json!({}))
                .unwrap_err();
            assert_eq!(
                error.name(),
                Some("org.varlink.service.PermissionDenied"),
                "{method}"
            );
        }
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return left_out("only root can become somebody else");
    }
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;
    let (server, one) = (Server::start(), Release::new("1"));
    let host = Host::new(&server, &[&one]);
    let _daemon = host.daemon();
    std::fs::set_permissions(host.root(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // Strangers may not be let into the directory that this was built in.
    let program = host.path("strangers");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut again = std::process::Command::new(program);
    again.args(["--exact", "faults::strangers_may_look_only", "--nocapture"]);
    again
        .current_dir(host.root())
        .env(SOCKET, host.path("run/update-engine/io.orlop.UpdateEngine"))
        .uid(65534)
        .gid(65534);
    assert!(again.status().unwrap().success());
}

#[test]
fn of_two_equal_disks_the_one_in_use_is_ours() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    host.with_sysfs();
    let run = || {
        let mut command = std::process::Command::new(crate::host::ENGINE);
        command
            .arg("--root")
            .arg(host.root())
            .arg("mark-good")
            .output()
            .unwrap();
        let _ = std::fs::remove_file(host.path("run/orlop/good"));
    };
    let copy = host.path("dev/vdb");
    let before = std::fs::read(&copy).unwrap();
    run();
    assert_eq!(
        host.tries(Slot::A),
        Some((2, 1)),
        "which disk it is was only guessed"
    );

    std::fs::write(host.path("sys/class/block/vda3/holders/dm-0"), "").unwrap();
    run();
    assert_eq!(host.tries(Slot::A), Some((9, 0)));
    assert!(
        std::fs::read(&copy).unwrap() == before,
        "the copy was written to"
    );
}

/// Something else has grown on the ESP.
#[test]
fn without_room_for_the_uki_nothing_is_written() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    two.publish(&server);
    let daemon = host.daemon();
    daemon.good();
    let room = Esp::open(host.window(ESP)).unwrap().room_for(Slot::B);
    let fill = vec![0; usize::try_from(room.unwrap()).unwrap() - two.uki.len() / 2];
    esp::write_file(&mut host.window(ESP), "fill.bin", &fill).unwrap();
    let before = host.disk_digest();
    let error = daemon.update().unwrap_err();
    assert!(
        error.contains("the EFI system partition has") && error.contains("for the UKI of slot b"),
        "{error}"
    );
    assert_eq!(host.disk_digest(), before);
    assert_eq!(
        daemon.status()["failed"],
        json!([]),
        "it is not the release's fault"
    );

    esp::write_file(&mut host.window(ESP), "fill.bin", b"gone").unwrap();
    daemon.update().unwrap();
    assert_eq!(daemon.status()["staged"]["version"], "2");
}
