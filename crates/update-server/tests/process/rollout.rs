//! Releases on their way through groups, over the real protocol.

use std::time::{Duration, Instant};

use release::Channel;
use release::omaha::Event;
use rustix::process::Signal;
use update_server::api::{RolloutState, SetGroup};
use update_server::client::Rollouts;
use update_server::rollout::{Cap, Policy, Tally};

use crate::support::{Lab, Running, TestHost, version};

fn channel(name: &str) -> Channel {
    name.parse().unwrap()
}

fn set(server: &Running, name: &str, channel_name: &str, policy: Policy) {
    let group = SetGroup {
        channel: channel(channel_name),
        description: String::new(),
        policy,
    };
    server.client().set_group(name, &group).unwrap();
}

fn rollout(server: &Running, group: &str) -> RolloutState {
    let all = server.client().rollouts().unwrap();
    all.into_iter()
        .find(|rollout| rollout.group == group)
        .unwrap()
}

fn total(server: &Running, group: &str) -> Tally {
    rollout(server, group)
        .waves
        .iter()
        .fold(Tally::default(), |sum, wave| Tally {
            granted: sum.granted + wave.tally.granted,
            good: sum.good + wave.tally.good,
            failed: sum.failed + wave.tally.failed,
            ..sum
        })
}

/// What the server does by itself it does within some seconds; the machine may be busy.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "waited for: {what}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_staged_group_waits_while_others_go_at_once() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    set(&server, "slow", "stable", Policy::staged(7.0));
    let mut offered = 0;
    for number in 0..60 {
        let mut host = TestHost::new(&server, &format!("node-{number}"), "1");
        host.app.track = "slow".into();
        let answer = host.offered();
        assert_eq!(host.offered(), answer, "asking again changes nothing");
        offered += usize::from(answer == "2");
    }
    assert!(offered <= 6, "1 % of 60 are {offered}");
    assert_eq!(total(&server, "slow").granted, offered as u64);
    assert_eq!(TestHost::new(&server, "other", "1").offered(), "2");
    let waiting = server
        .client()
        .hosts()
        .unwrap()
        .into_iter()
        .find(|host| host.group.as_deref() == Some("slow") && host.available.is_none());
    let waits = waiting.unwrap().waits.unwrap();
    assert!(waits.starts_with("its turn comes with wave "), "{waits}");

    // An operator may put a host elsewhere, whatever it says.
    let host = server
        .client()
        .find_hosts("node-")
        .unwrap()
        .into_iter()
        .find(|h| h.available.is_none());
    let host = host.unwrap();
    let moved = server
        .client()
        .assign_host(&host.machine_id, Some("stable"))
        .unwrap();
    assert_eq!(
        (moved.group.as_deref(), moved.available),
        (Some("stable"), Some(version("2")))
    );
    let groups = server.client().groups().unwrap();
    let hosts = |name: &str| {
        groups
            .iter()
            .find(|group| group.name == name)
            .unwrap()
            .hosts
    };
    assert_eq!((hosts("slow"), hosts("stable")), (59, 2));
    server.client().remove_group("slow").unwrap();
    assert!(
        server
            .client()
            .rollouts()
            .unwrap()
            .iter()
            .all(|rollout| rollout.group != "slow")
    );
}

#[test]
fn a_bad_release_halts_by_itself_everywhere() {
    let lab = Lab::new();
    let mut server = lab.start();
    set(&server, "second", "stable", Policy::default());
    server.publish(&lab.release("2"));
    for number in 0..12 {
        let host = TestHost::new(&server, &format!("node-{number}"), "1");
        let answer = host.offered();
        if number < 10 {
            assert_eq!(answer, "2");
            host.tell(Event::download_started(&version("2")));
            host.tell(Event::staged(&version("2")));
            host.tell(Event::failed(
                &version("2"),
                None,
                50,
                "sshd.service failed",
            ));
        } else {
            assert_eq!(answer, "-", "it goes on after ten failures");
        }
    }
    let state = rollout(&server, "stable");
    assert_eq!(state.status, "halted");
    let reason = state.reason.unwrap();
    assert!(
        reason.contains("10 of 10 hosts") && reason.contains("sshd.service failed"),
        "{reason}"
    );
    let second = rollout(&server, "second");
    assert_eq!(second.status, "halted", "{second:?}");
    assert!(
        second
            .reason
            .unwrap()
            .starts_with("halted in group stable: ")
    );
    let told = server.client().activity(false).unwrap();
    assert!(
        told.iter()
            .any(|entry| entry.action == "halted" && entry.actor.is_none())
    );
    let failures = server.client().overview().unwrap().failures;
    assert_eq!(
        (failures[0].reason.as_str(), failures[0].hosts),
        ("sshd.service failed", 10)
    );

    // Neither a group that is made now nor one that comes from elsewhere tries it.
    set(&server, "third", "stable", Policy::default());
    server
        .client()
        .publish(&lab.release("1"), &channel("beta"), &mut |_, _| ())
        .unwrap();
    set(&server, "fourth", "beta", Policy::default());
    assert_eq!(rollout(&server, "fourth").status, "active");
    set(&server, "fourth", "stable", Policy::default());
    for group in ["third", "fourth"] {
        let state = rollout(&server, group);
        assert_eq!(state.status, "halted", "{state:?}");
        let reason = state.reason.unwrap();
        assert!(reason.starts_with("halted in group s"), "{reason}");
        let mut host = TestHost::new(&server, group, "1");
        host.app.track = group.into();
        assert_eq!(host.offered(), "-");
    }

    // It stays so, and a halted release is not promoted.
    assert_eq!(server.signal(Signal::KILL), None);
    let server = lab.start();
    assert_eq!(rollout(&server, "stable").status, "halted");
    let refused = server
        .client()
        .promote(&channel("stable"), &channel("beta"), None)
        .unwrap_err();
    assert!(
        refused.to_string().contains("was halted in group"),
        "{refused}"
    );
    let host = TestHost::new(&server, "node-11", "1");
    assert_eq!(host.offered(), "-");
    server
        .client()
        .pause_or_resume(Rollouts::Channel("stable"), false)
        .unwrap();
    assert_eq!(host.offered(), "2", "an operator accepts it");

    // The next release is a new rollout.
    server.publish(&lab.release("3"));
    assert_eq!(rollout(&server, "stable").status, "active");
    assert_eq!(total(&server, "stable"), Tally::default());
}

#[test]
fn a_canary_goes_first() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    set(&server, "first", "stable", Policy::default());
    let canary = Some("first".to_owned());
    set(
        &server,
        "stable",
        "stable",
        Policy {
            canary,
            ..Policy::default()
        },
    );
    server.publish(&lab.release("3"));
    let mut early = TestHost::new(&server, "early", "2");
    early.app.track = "first".into();
    let late = TestHost::new(&server, "late", "2");
    assert_eq!((early.offered(), late.offered()), ("3".into(), "-".into()));
    assert_eq!(rollout(&server, "stable").status, "awaiting_canary");
    early.tell(Event::staged(&version("3")));
    early.runs("3");
    // It says nothing, but it runs well.
    assert_eq!(early.offered(), "-");
    assert_eq!(total(&server, "first").good, 1);
    until("the canary to pass", || late.offered() == "3");
    until("the first group to be complete", || {
        rollout(&server, "first").status == "complete"
    });
}

#[test]
fn a_policy_counts_at_once_for_a_rollout_that_goes_on() {
    let lab = Lab::new();
    let server = lab.start();
    let client = server.client();
    server.publish(&lab.release("2"));
    client.set_channel(&channel("beta"), &version("2")).unwrap();
    set(&server, "web", "stable", Policy::default());
    let before = rollout(&server, "web").id;
    // Another channel with the same release, and other waves.
    set(&server, "web", "beta", Policy::staged(7.0));
    let after = rollout(&server, "web");
    assert_eq!((after.id, after.waves.len()), (before, 7));
    // The same with a canary and nothing else.
    let canary = Some("beta".to_owned());
    let policy = Policy {
        canary,
        ..Policy::staged(7.0)
    };
    set(&server, "web", "stable", policy);
    assert_eq!(rollout(&server, "web").status, "awaiting_canary");
}

#[test]
fn floors_are_passed_one_hop_at_a_time() {
    let lab = Lab::new();
    let server = lab.start();
    let client = server.client();
    for (dir, track) in [
        (lab.release("3"), "beta"),
        (lab.release_above("5", "3"), "beta"),
        (lab.release_above("6", "5"), "stable"),
    ] {
        client
            .publish(&dir, &channel(track), &mut |_, _| ())
            .unwrap();
    }
    let mut host = TestHost::new(&server, "old", "1");
    for next in ["3", "5", "6"] {
        assert_eq!(host.offered(), next);
        host.runs(next);
        host.tell(Event::good(&version(next), &version("1")));
    }
    assert_eq!(host.offered(), "-");
    for at in ["3", "5", "6"] {
        let tally = stop(&server, "stable", at).waves[0].tally;
        assert_eq!((tally.granted, tally.good), (1, 1), "at {at}");
    }
}

/// Publishes 2, and then 3 for hosts that run at least 2.
fn with_a_stop(lab: &Lab, server: &Running) {
    server.publish(&lab.release("2"));
    server.publish(&lab.release_above("3", "2"));
}

/// The rollout of a release that hosts of the group go to first.
fn stop(server: &Running, group: &str, at: &str) -> RolloutState {
    let all = server.client().rollouts().unwrap();
    all.into_iter()
        .find(|rollout| rollout.group == group && rollout.version == version(at))
        .unwrap()
}

#[test]
fn a_cap_counts_for_stops_on_the_way() {
    let lab = Lab::new();
    let server = lab.start();
    with_a_stop(&lab, &server);
    let cap = Some(Cap {
        hosts: 1,
        minutes: 60,
    });
    let policy = Policy {
        cap,
        ..Policy::default()
    };
    set(&server, "web", "stable", policy);
    let mut offered = vec![];
    for number in 0..5 {
        let mut host = TestHost::new(&server, &format!("old-{number}"), "1");
        host.app.track = "web".into();
        let answer = host.offered();
        assert_eq!(host.offered(), answer, "asking again changes nothing");
        offered.push(answer);
    }
    assert_eq!(offered, ["2", "-", "-", "-", "-"]);
    let mut near = TestHost::new(&server, "near", "2");
    near.app.track = "web".into();
    assert_eq!(
        near.offered(),
        "-",
        "the cap is the group's, whatever the release"
    );
    assert_eq!(stop(&server, "web", "2").waves[0].tally.granted, 1);
    assert_eq!(total(&server, "web").granted, 0);
}

#[test]
fn a_bad_stop_on_the_way_halts_by_itself() {
    let lab = Lab::new();
    let mut server = lab.start();
    with_a_stop(&lab, &server);
    for number in 0..10 {
        let host = TestHost::new(&server, &format!("old-{number}"), "1");
        assert_eq!(host.offered(), "2");
        host.tell(Event::staged(&version("2")));
        host.tell(Event::failed(&version("2"), None, 50, "no network"));
    }
    let late = TestHost::new(&server, "late", "1");
    assert_eq!(late.offered(), "-", "it goes on after ten failures");
    let state = stop(&server, "stable", "2");
    assert_eq!(state.status, "halted");
    let reason = state.reason.unwrap();
    assert!(reason.starts_with("10 of 10 hosts"), "{reason}");
    let told = server.client().activity(false).unwrap();
    assert!(
        told.iter().any(|entry| entry.action == "halted"
            && entry.subject == "release 2 in group stable"
            && entry.detail == reason),
        "{told:?}"
    );

    // Whoever does not need it goes on.
    let mut near = TestHost::new(&server, "near", "2");
    assert_eq!(near.offered(), "3");
    near.runs("3");
    near.tell(Event::good(&version("3"), &version("2")));
    let main = rollout(&server, "stable");
    assert_eq!(
        (main.version, main.status.as_str()),
        (version("3"), "active")
    );
    assert_eq!(total(&server, "stable").good, 1);

    // It stays so, also in a group that comes later, until an operator accepts it.
    assert_eq!(server.signal(Signal::KILL), None);
    let server = lab.start();
    assert_eq!(stop(&server, "stable", "2").status, "halted");
    set(&server, "second", "stable", Policy::default());
    let mut elsewhere = TestHost::new(&server, "elsewhere", "1");
    elsewhere.app.track = "second".into();
    assert_eq!(elsewhere.offered(), "-");
    let reason = stop(&server, "second", "2").reason.unwrap();
    assert!(reason.starts_with("halted in group stable: "), "{reason}");
    let mut late = TestHost::new(&server, "late", "1");
    assert_eq!(late.offered(), "-");
    server
        .client()
        .pause_or_resume(Rollouts::Group("stable"), false)
        .unwrap();
    assert_eq!(late.offered(), "2");
    late.runs("2");
    late.tell(Event::good(&version("2"), &version("1")));
    assert_eq!(late.offered(), "3");
    let tally = stop(&server, "stable", "2").waves[0].tally;
    assert_eq!((tally.granted, tally.good, tally.failed), (11, 1, 10));
    let total = total(&server, "stable");
    assert_eq!((total.granted, total.good), (2, 1));
}

#[test]
fn a_withdrawn_stop_is_left_out() {
    let lab = Lab::new();
    let server = lab.start();
    let client = server.client();
    with_a_stop(&lab, &server);
    let host = TestHost::new(&server, "old", "1");
    assert_eq!(host.offered(), "2");
    client.withdraw(&version("2"), Some("eats disks")).unwrap();
    assert_eq!(host.offered(), "-");
    let waits = client.find_hosts("old").unwrap().remove(0).waits;
    assert_eq!(waits.as_deref(), Some("it has to run 2 first"));
    let state = stop(&server, "stable", "2");
    assert_eq!(state.status, "halted");
    assert!(state.reason.unwrap().ends_with("eats disks"));
    client
        .pause_or_resume(Rollouts::Group("stable"), false)
        .unwrap();
    assert_eq!(host.offered(), "-", "what was withdrawn stays so");
    client.withdraw(&version("2"), None).unwrap();
    assert_eq!(host.offered(), "-", "its rollout is still halted");
    client
        .pause_or_resume(Rollouts::Group("stable"), false)
        .unwrap();
    assert_eq!(host.offered(), "2");
    // A pause is the group's, also for a stop that nobody was sent to yet.
    set(&server, "web", "stable", Policy::default());
    client
        .pause_or_resume(Rollouts::Group("web"), true)
        .unwrap();
    let mut held = TestHost::new(&server, "held", "1");
    held.app.track = "web".into();
    assert_eq!(held.offered(), "-");
    assert_eq!(stop(&server, "web", "2").status, "paused");
    // One of them goes on.
    let one = version("2");
    client
        .pause_or_resume(Rollouts::Release("web", &one), false)
        .unwrap();
    assert_eq!(held.offered(), "2");
    assert_eq!(rollout(&server, "web").status, "paused");
    let nowhere = version("9");
    let refused = client.pause_or_resume(Rollouts::Release("web", &nowhere), false);
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("release 9 in group web has no rollout"),
        "{refused}"
    );
}

#[test]
fn a_canary_goes_first_to_stops_that_it_needs() {
    let lab = Lab::new();
    let server = lab.start();
    with_a_stop(&lab, &server);
    let after = |canary: &str| Policy {
        canary: Some(canary.to_owned()),
        ..Policy::default()
    };
    let host = |name: &str, track: &str| {
        let mut host = TestHost::new(&server, name, "1");
        host.app.track = track.into();
        host
    };
    for name in ["first", "empty"] {
        set(&server, name, "stable", Policy::default());
    }
    set(&server, "second", "stable", after("first"));
    set(&server, "third", "stable", after("empty"));

    let mut early = host("early", "first");
    let late = host("late", "second");
    let alone = host("alone", "third");
    assert_eq!((early.offered(), late.offered()), ("2".into(), "-".into()));
    let waits = server.client().find_hosts("late").unwrap().remove(0).waits;
    assert_eq!(waits.as_deref(), Some("group first goes first"));
    alone.offered();
    until("the canary to be found empty", || alone.offered() == "2");
    assert_eq!(late.offered(), "-", "the canary has not run it yet");
    early.tell(Event::staged(&version("2")));
    early.runs("2");
    assert_eq!(early.offered(), "3");
    until("the canary to pass", || late.offered() == "2");
}

#[test]
fn who_forces_it_is_counted() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    server
        .client()
        .pause_or_resume(Rollouts::Group("stable"), true)
        .unwrap();
    let mut host = TestHost::new(&server, "by-hand", "1");
    assert_eq!(host.offered(), "-");
    host.app.force = true;
    assert_eq!((host.offered(), host.offered()), ("2".into(), "2".into()));
    host.tell(Event::staged(&version("2")));
    host.tell(Event::failed(&version("2"), None, 50, "no network"));
    let total = total(&server, "stable");
    assert_eq!((total.granted, total.good, total.failed), (1, 0, 1));
}

#[test]
fn channels_are_promoted_and_releases_withdrawn() {
    let lab = Lab::new();
    let server = lab.start();
    let client = server.client();
    client
        .publish(&lab.release("2"), &channel("beta"), &mut |_, _| ())
        .unwrap();
    let host = TestHost::new(&server, "node", "1");
    assert_eq!(host.offered(), "-");
    // Who signs asks first, and means one release.
    let (beta, stable, other) = (channel("beta"), channel("stable"), version("1"));
    client
        .check_promotion(&beta, &stable, Some(&version("2")))
        .unwrap();
    for refused in [
        client.check_promotion(&beta, &stable, Some(&other)),
        client.promote(&beta, &stable, Some(&other)).map(drop),
    ] {
        let refused = refused.unwrap_err().to_string();
        assert!(
            refused.contains("has release 2 by now and not 1"),
            "{refused}"
        );
    }
    assert_eq!(host.offered(), "-");
    let state = client
        .promote(&channel("beta"), &channel("stable"), None)
        .unwrap();
    assert_eq!(state.version, Some(version("2")));
    assert_eq!(host.offered(), "2");
    client
        .pause_or_resume(Rollouts::Group("stable"), true)
        .unwrap();
    assert_eq!(
        (host.offered(), rollout(&server, "stable").status),
        ("-".into(), "paused".into())
    );
    client
        .pause_or_resume(Rollouts::Group("stable"), false)
        .unwrap();
    assert_eq!(host.offered(), "2");

    client.withdraw(&version("2"), Some("eats disks")).unwrap();
    assert_eq!(host.offered(), "-");
    assert_eq!(
        client.releases().unwrap()[0].withdrawn_reason.as_deref(),
        Some("eats disks")
    );
    let refused = client
        .set_channel(&channel("alpha"), &version("2"))
        .unwrap_err()
        .to_string();
    assert!(refused.contains("was withdrawn (eats disks)"), "{refused}");
    for refused in [
        client.check_promotion(&beta, &channel("alpha"), None),
        client.promote(&beta, &channel("alpha"), None).map(drop),
    ] {
        let refused = refused.unwrap_err();
        let hint = refused.hint().unwrap();
        assert!(hint.ends_with("orlop release restore 2"), "{hint}");
    }
    let refused = client
        .pause_or_resume(Rollouts::Group("stable"), false)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("was withdrawn"), "{refused}");
    client.withdraw(&version("2"), None).unwrap();
    assert_eq!(host.offered(), "-", "its rollout is still halted");
    client
        .pause_or_resume(Rollouts::Group("stable"), false)
        .unwrap();
    assert_eq!(host.offered(), "2");

    let done: Vec<_> = client
        .activity(true)
        .unwrap()
        .into_iter()
        .map(|entry| entry.action)
        .collect();
    for action in [
        "promoted",
        "paused",
        "resumed",
        "withdrawn",
        "allowed again",
        "uploaded",
    ] {
        assert!(
            done.iter().any(|done| done == action),
            "{action} is not in {done:?}"
        );
    }
}

#[test]
fn mistakes_are_named() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    let put = |name: &str, body: &str| {
        server.refused("PUT", &format!("/api/v1/groups/{name}"), body.as_bytes())
    };
    let cases = [
        (
            put("Web", r#"{"channel":"stable"}"#),
            "400 \"Web\" cannot name a group",
        ),
        (
            put("web", r#"{"channel":"nowhere"}"#),
            "409 there is no channel nowhere",
        ),
        (
            put("beta", r#"{"channel":"stable"}"#),
            "409 beta is a channel, so the group of that name follows it",
        ),
        (
            put("web", r#"{"channel":"stable","policy":{"waves":[5]}}"#),
            "400 waves: [5] has to rise",
        ),
        (
            put("web", r#"{"channel":"stable","policy":{"canary":"lab"}}"#),
            "400 canary: there is no group lab",
        ),
        (
            put(
                "web",
                r#"{"channel":"stable","policy":{"window":{"start":"22:00","minutes":60,"zone":"Mars"}}}"#,
            ),
            "400 window: zone \"Mars\"",
        ),
        (
            server.refused("POST", "/api/v1/rollouts/beta/pause", b""),
            "404 group beta has no rollout",
        ),
        (
            server.refused("POST", "/api/v1/releases/9/withdraw", br#"{"reason":"x"}"#),
            "404 there is no finished release 9",
        ),
        (
            server.refused(
                "POST",
                "/api/v1/channels/beta/promote",
                br#"{"from":"alpha"}"#,
            ),
            "409 channel alpha has no release to promote",
        ),
        (
            server.refused("PUT", "/api/v1/hosts/abc", br#"{"group":null}"#),
            "404 no host abc is known",
        ),
    ];
    for (got, expect) in cases {
        assert!(got.starts_with(expect), "{got}, expected {expect}");
    }
    assert_eq!(
        server.client().groups().unwrap().len(),
        3,
        "nothing was half done"
    );
}
