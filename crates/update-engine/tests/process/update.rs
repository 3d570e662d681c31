//! The way of a release, when all goes well and when it does not boot.

use disk::Slot;
use serde_json::{Value, json};

use crate::host::{Host, Release, wait_for};
use crate::server::Server;

#[test]
fn to_version_2_and_good() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let mut host = Host::new(&server, &[&one, &two]);
    assert_eq!(host.tries(Slot::A), Some((2, 1)));
    two.publish(&server);

    let daemon = host.daemon();
    daemon.good();
    assert_eq!(
        host.tries(Slot::A),
        Some((9, 0)),
        "not counted, as there is nothing to fall back to"
    );
    daemon.update().unwrap();
    let status = daemon.status();
    assert_eq!(status["staged"], json!({ "version": "2", "slot": "b" }));
    assert_eq!(status["update"]["state"], "staged");
    assert_eq!(status["rollback"], Value::Null);
    let wanted: Value =
        serde_json::from_str(&host.read("run/update-engine/reboot-needed").unwrap()).unwrap();
    assert_eq!(
        wanted,
        json!({ "version": "2", "reason": "update", "soft": false })
    );
    assert!(host.is_intact(Slot::A, &one) && host.is_intact(Slot::B, &two));
    wait_for(|| {
        std::fs::read_dir(host.path("var/lib/update-engine/download"))
            .unwrap()
            .all(|e| e.unwrap().file_name() == *"x")
    });
    let peak = daemon.peak_memory();
    assert!(peak < 16 * 1024, "{peak} KiB");
    drop(daemon);

    assert_eq!(host.boot(), Slot::B);
    assert_eq!(host.tries(Slot::B), Some((2, 1)));
    let daemon = host.daemon();
    daemon.good();
    wait_for(|| server.with(|s| s.events.len() == 5));
    server.with(|s| {
        assert_eq!(
            s.events,
            [
                "3/2 1 after 1",
                "13/1 2",
                "14/1 2",
                "3/1 2",
                "3/2 2 after 1"
            ]
        );
    });
    wait_for(|| daemon.status()["rollback"] == json!({ "version": "1", "slot": "a" }));
    assert_eq!(daemon.status()["staged"], Value::Null);
    // Now there is: it is counted, and what it would fall back to is not.
    assert_eq!(host.tries(Slot::B), Some((3, 0)));
    assert!(!host.entry(Slot::A).unwrap().counted);
    assert_eq!(host.read("run/update-engine/reboot-needed"), None);
}

/// The kernel part is the same: userspace alone starts anew, and the command line still names version 1.
#[test]
fn over_to_version_2_under_the_same_kernel() {
    let (server, one, mut two) = (Server::start(), Release::new("1"), Release::new("2"));
    let kernel = release::Sha256::of("kernel");
    two.manifest.kernel = Some(kernel);
    two.sign();
    let host = Host::new(&server, &[&one, &two]);
    host.write(release::KERNEL_FILE, &format!("{kernel}\n"));
    two.publish(&server);
    let daemon = host.daemon();
    daemon.good().update().unwrap();
    assert_eq!(
        daemon.status()["staged"],
        json!({ "version": "2", "slot": "b", "soft_reboot": true })
    );
    let wanted: Value =
        serde_json::from_str(&host.read("run/update-engine/reboot-needed").unwrap()).unwrap();
    assert_eq!(wanted["soft"], true);
    drop(daemon);

    host.soft_reboot(&two);
    let daemon = host.daemon();
    daemon.good();
    wait_for(|| daemon.status()["rollback"] == json!({ "version": "1", "slot": "a" }));
    assert_eq!(daemon.status()["staged"], Value::Null);
    assert_eq!(daemon.status()["failed"], json!([]));
    assert_eq!(host.read("run/update-engine/reboot-needed"), None);
    assert_eq!(host.tries(Slot::B), Some((3, 0)));
    assert!(!host.entry(Slot::A).unwrap().counted);
    wait_for(|| server.with(|s| s.events.iter().any(|e| e == "3/2 2 after 1")));
}

#[test]
fn progress_is_told_to_who_wants_more() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    two.publish(&server);
    let daemon = host.daemon();
    daemon.good().call("Check", json!({})).unwrap();
    let mut client = daemon.client();
    let replies: Vec<Value> = client
        .call_more("io.orlop.UpdateEngine.Update", json!({}))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let states: Vec<&str> = replies
        .iter()
        .map(|r| r["status"]["update"]["state"].as_str().unwrap())
        .collect();
    for state in ["checking", "downloading", "writing", "staged"] {
        assert!(states.contains(&state), "{state} is not in {states:?}");
    }
    let last = replies.last().unwrap();
    assert_eq!(last["status"]["staged"]["version"], "2");
}

/// Version 3 kernel panics: no userspace is ever started, and no trace is left.
#[test]
fn a_release_that_does_not_boot_is_left_for_good() {
    let (server, one, three) = (Server::start(), Release::new("1"), Release::new("3"));
    let mut host = Host::new(&server, &[&one, &three]);
    three.publish(&server);
    let daemon = host.daemon();
    daemon.good().update().unwrap();
    drop(daemon);
    let booted: Vec<Slot> = (0..4).map(|_| host.boot()).collect();
    assert_eq!(booted, [Slot::B, Slot::B, Slot::B, Slot::A]);

    let daemon = host.daemon();
    daemon.good();
    let reason = "no trace of a started userspace in 3 tries (kernel or initrd failed)";
    wait_for(|| daemon.status()["failed"][0]["reason"] == reason);
    assert_eq!(daemon.status()["failed"][0]["version"], "3");
    let sent = server.with(|s| s.sent);
    let error = daemon.update().unwrap_err();
    assert!(
        error.contains("version 3 failed here before (no trace"),
        "{error}"
    );
    assert_eq!(server.with(|s| s.sent), sent, "nothing is downloaded again");
    wait_for(|| {
        server.with(|s| {
            s.events
                .iter()
                .any(|e| e == &format!("3/0 3 (50: {reason})"))
        })
    });

    // Our own server would not even offer it. Forced, it is.
    server.with(|s| s.withholds = true);
    daemon.update().unwrap();
    assert_eq!(daemon.status()["staged"], Value::Null);
    daemon.call("Update", json!({ "force": true })).unwrap();
    assert_eq!(daemon.status()["failed"], json!([]));
    assert_eq!(daemon.status()["staged"]["version"], "3");
}

/// The boot loader falls back, and then the power fails again and again before the good release is up.
#[test]
fn power_cuts_after_a_fallback_do_not_use_up_the_good_release() {
    let (server, one, three) = (Server::start(), Release::new("1"), Release::new("3"));
    let four = Release::new("4");
    let mut host = Host::new(&server, &[&one, &three, &four]);
    three.publish(&server);
    let daemon = host.daemon();
    daemon.good().update().unwrap();
    drop(daemon);
    let booted: Vec<Slot> = (0..12).map(|_| host.boot()).collect();
    assert_eq!(booted[..3], [Slot::B; 3]);
    assert_eq!(booted[3..], [Slot::A; 9]);
    let daemon = host.daemon();
    daemon.good();
    wait_for(|| daemon.status()["failed"][0]["version"] == "3");
    assert!(!host.entry(Slot::A).unwrap().counted);
    // The next release: the same again, and it is counted once there are two good ones.
    four.publish(&server);
    daemon.update().unwrap();
    drop(daemon);
    assert_eq!(host.boot(), Slot::B);
    host.daemon().good();
    assert_eq!(host.tries(Slot::B), Some((3, 0)));
}

/// The one that is about to be left must not be the only other thing that boots.
#[test]
fn nothing_is_written_over_the_only_slot_that_can_still_be_tried() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    two.publish(&server);
    let daemon = host.daemon();
    daemon.good();
    host.set_tries(Slot::A, 0, 3);
    let before = host.disk_digest();
    let error = daemon.update().unwrap_err();
    assert!(
        error.contains("the boot entry of slot a has no tries left"),
        "{error}"
    );
    assert_eq!(host.disk_digest(), before);
    assert_eq!(daemon.status()["staged"], Value::Null);
}

/// Version 3 starts but never becomes good; what is said of it back in version 1.
fn reason_of_an_unhealthy_release(last_words: bool, daemon_dies: bool) -> String {
    let (server, one, three) = (Server::start(), Release::new("1"), Release::new("3"));
    let mut host = Host::new(&server, &[&one, &three]);
    three.publish(&server);
    let daemon = host.daemon();
    daemon.good().update().unwrap();
    drop(daemon);
    for _ in 0..3 {
        assert_eq!(host.boot(), Slot::B);
        host.userspace_starts();
    }
    if last_words {
        host.run(&["boot-failed", "--no-reboot"]);
    }
    assert_eq!(host.boot(), Slot::A);
    host.userspace_starts();

    let mut daemon = host.daemon();
    if daemon_dies {
        daemon.kill();
        host.run(&["mark-good"]);
        drop(daemon);
        daemon = host.daemon();
    }
    daemon.good();
    assert_eq!(host.read("var/lib/orlop/boot/attempts").unwrap(), "");
    assert_eq!(
        host.tries(Slot::B),
        Some((0, 3)),
        "the failed one stays exhausted"
    );
    wait_for(|| daemon.status()["failed"] != json!([]));
    daemon.status()["failed"][0]["reason"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Asking systemd why a boot is late takes long, and it may become good meanwhile.
#[test]
fn a_boot_that_becomes_good_late_is_left_alone() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let mut host = Host::new(&server, &[&one, &two]);
    host.run(&["mark-good"]);
    host.stage(&two).unwrap();
    assert_eq!(host.boot(), Slot::B);
    let (good, rebooted) = (host.path("run/orlop/good"), host.path("rebooted"));
    let script = format!(
        "#!/bin/sh\ncase $1 in list-units) echo > {} ;; reboot) echo > {} ;; esac\n",
        good.display(),
        rebooted.display()
    );
    for name in ["systemctl", "journalctl"] {
        host.program(name, &script);
    }
    assert!(!good.exists());
    let before = host.disk_digest();
    let mut command = host.engine(&["boot-failed"]);
    command.env("PATH", host.programs());
    assert!(command.status().unwrap().success());
    assert!(good.exists() && !rebooted.exists());
    assert!(!host.path("var/lib/orlop/boot/failure.json").exists());
    assert_eq!(host.disk_digest(), before);

    std::fs::remove_file(&good).unwrap();
    host.program("systemctl", &script.replace("list-units", "nothing"));
    let mut command = command.spawn().unwrap();
    wait_for(|| rebooted.exists());
    command.kill().unwrap();
    command.wait().unwrap();
}

/// Else it could be marked good in the moment in which the system goes down.
#[test]
fn a_boot_that_failed_keeps_the_disk_until_the_reboot() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let mut host = Host::new(&server, &[&one, &two]);
    host.run(&["mark-good"]);
    host.stage(&two).unwrap();
    assert_eq!(host.boot(), Slot::B);
    let rebooted = host.path("rebooted");
    let script = format!(
        "#!/bin/sh\ncase $1 in reboot) echo > {} ;; esac\n",
        rebooted.display()
    );
    host.program("systemctl", &script);
    host.program("journalctl", "#!/bin/sh\n");
    let mut failing = host.engine(&["boot-failed"]);
    let mut failing = failing.env("PATH", host.programs()).spawn().unwrap();
    wait_for(|| rebooted.exists());
    // It gives up after some seconds.
    let marked = host.engine(&["mark-good"]).status().unwrap();
    failing.kill().unwrap();
    failing.wait().unwrap();
    assert!(!marked.success() && !host.path("run/orlop/good").exists());
}

#[test]
fn a_release_that_never_gets_healthy_says_why() {
    let reason = reason_of_an_unhealthy_release(true, false);
    assert!(
        reason.starts_with("boot-complete.target failed"),
        "{reason}"
    );
}

#[test]
fn a_release_that_never_gets_healthy_is_counted() {
    let reason = "userspace started 3 times but never reached boot-complete.target";
    assert_eq!(reason_of_an_unhealthy_release(false, false), reason);
}

/// Marking the boot good forgets the attempts, but the daemon had seen them before it crashed.
#[test]
fn evidence_outlives_a_crash_of_the_daemon() {
    let reason = "userspace started 3 times but never reached boot-complete.target";
    assert_eq!(reason_of_an_unhealthy_release(false, true), reason);
}

#[test]
fn rollback_by_hand_and_no_way_back_by_itself() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let mut host = Host::new(&server, &[&one, &two]);
    two.publish(&server);
    let daemon = host.daemon();
    let error = daemon.good().call("Rollback", json!({})).unwrap_err();
    assert!(error.contains("the other slot holds nothing"), "{error}");
    daemon.update().unwrap();
    drop(daemon);
    host.boot();
    let daemon = host.daemon();
    daemon.good();
    wait_for(|| daemon.status()["rollback"]["version"] == "1");
    daemon.call("Rollback", json!({})).unwrap();
    let wanted: Value =
        serde_json::from_str(&host.read("run/update-engine/reboot-needed").unwrap()).unwrap();
    assert_eq!(
        wanted,
        json!({ "version": "1", "reason": "rollback", "soft": false })
    );
    assert_eq!(host.tries(Slot::B).unwrap().0, 0);
    // A service of boot-complete.target is restarted: that must not arm version 2 again.
    host.run(&["mark-good"]);
    assert_eq!(host.tries(Slot::B).unwrap().0, 0);
    drop(daemon);

    assert_eq!(host.boot(), Slot::A);
    let daemon = host.daemon();
    let error = daemon.good().update().unwrap_err();
    assert!(
        error.contains("rolled back by the operator to version 1"),
        "{error}"
    );
    server.with(|s| s.withholds = true);
    daemon.update().unwrap();
    assert_eq!(
        daemon.status()["staged"],
        Value::Null,
        "the server has it listed"
    );
    daemon.call("ClearFailed", json!({})).unwrap();
    wait_for(|| server.with(|s| s.events.iter().any(|e| e == "900/1 ")));
    daemon.update().unwrap();
    assert_eq!(daemon.status()["staged"]["version"], "2");
}

#[test]
fn direct_kernel_boots_are_marked_good_without_a_boot_entry() {
    let (server, one) = (Server::start(), Release::new("1"));
    let host = Host::new(&server, &[&one]);
    let before = host.disk_digest();
    for cmdline in ["quiet", &format!("usrhash={}", "ab".repeat(32))] {
        let _ = std::fs::remove_file(host.path("run/orlop/good"));
        host.write("proc/cmdline", cmdline);
        host.run(&["mark-good"]);
        assert!(host.path("run/orlop/good").exists());
    }
    assert_eq!(host.disk_digest(), before);

    let daemon = host.daemon();
    Release::new("2").publish(&server);
    let error = daemon.update().unwrap_err();
    assert!(
        error.contains("this system does not run from a slot"),
        "{error}"
    );
    assert_eq!(daemon.status()["slots"], json!([]));
}
