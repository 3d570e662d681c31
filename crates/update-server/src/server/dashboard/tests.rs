use jiff::Timestamp;

use super::overview::{Fleet, Page};
use super::*;
use crate::api::{HistoryPoint, Overview, RolloutState, VersionCount, WaveState};
use crate::rollout::Tally;

#[test]
fn times_as_people_say_them() {
    let all = [-7200, -3, 4, 5, 89, 90, 5399, 5400, 172_799, 172_800].map(ago);
    assert_eq!(
        all,
        [
            "in 2 h",
            "just now",
            "just now",
            "5 s ago",
            "89 s ago",
            "2 min ago",
            "90 min ago",
            "2 h ago",
            "48 h ago",
            "2 days ago"
        ]
    );
}

fn empty() -> Fleet {
    Fleet {
        overview: Overview::default(),
        left: 0,
        channels: vec![],
        rollouts: vec![],
        no_release: true,
        events: vec![],
        activity: vec![],
        expires: None,
    }
}

fn render(fleet: Fleet, who: Option<&Who>) -> String {
    let now = Timestamp::UNIX_EPOCH;
    let frame = Frame::new("Fleet", "overview", who, now);
    Page::new(fleet, frame, now, "http://10.0.2.2:8090")
        .render()
        .unwrap()
}

#[test]
fn an_empty_fleet_says_what_to_do() {
    let html = render(empty(), None);
    for text in [
        "orlop release publish",
        "orlop up",
        "SERVER=http://10.0.2.2:8090/v1/update/",
    ] {
        assert!(html.contains(text), "{text} is not in {html}");
    }
}

#[test]
fn what_hosts_claim_is_escaped() {
    let evil = "<script>alert(1)</script>\"'&";
    let now = Timestamp::UNIX_EPOCH;
    let event = Event {
        id: 1,
        at: now,
        machine_id: evil.into(),
        hostname: Some(evil.into()),
        event: "failed".into(),
        event_type: 3,
        event_result: 0,
        version: Some(evil.into()),
        previous_version: Some(evil.into()),
        error_code: None,
        reason: Some(evil.into()),
    };
    let versions = vec![VersionCount {
        version: evil.into(),
        hosts: 3,
    }];
    let point = |hour: i64| HistoryPoint {
        at: Timestamp::from_second(hour * 3600).unwrap(),
        versions: versions.clone(),
    };
    let fleet = Fleet {
        overview: Overview {
            hosts: 3,
            versions: versions.clone(),
            history: vec![point(0), point(1)],
            ..Overview::default()
        },
        events: vec![event],
        ..empty()
    };
    let html = render(fleet, None);
    assert_eq!(html.matches("<script").count(), 1, "only ours: {html}");
    assert!(html.contains("&#60;script&#62;alert(1)"), "{html}");
    assert!(!html.contains(evil) && !html.contains("\"'&"), "{html}");
}

#[test]
fn metadata_that_nobody_renews_is_noticed() {
    let page = |hours: i64| {
        let expires = Timestamp::from_second(hours * 3600).unwrap();
        render(
            Fleet {
                expires: Some(expires),
                ..empty()
            },
            None,
        )
    };
    let renew = "orlop keys sign";
    let over = page(-3);
    assert!(over.contains("Hosts take no release") && over.contains(renew));
    let soon = page(3);
    assert!(soon.contains("expires <time") && soon.contains("in 3 h") && soon.contains(renew));
    assert!(!soon.contains("Hosts take no release"));
    assert!(!page(48).contains(renew) && !render(empty(), None).contains(renew));
}

#[test]
fn only_operators_have_buttons() {
    let rollout = || RolloutState {
        id: 1,
        group: "stable".into(),
        version: "2".parse().unwrap(),
        stop: true,
        status: "halted".into(),
        reason: Some("12 of 20 hosts".into()),
        started: Timestamp::UNIX_EPOCH,
        changed: Timestamp::UNIX_EPOCH,
        wave: 1,
        next_wave: None,
        waves: vec![
            WaveState {
                share: 1,
                open: true,
                tally: Tally {
                    granted: 20,
                    good: 8,
                    failed: 12,
                    ..Tally::default()
                },
            },
            WaveState {
                share: 100,
                open: false,
                tally: Tally::default(),
            },
        ],
    };
    let page = |who: Option<&Who>| {
        render(
            Fleet {
                rollouts: vec![rollout()],
                ..empty()
            },
            who,
        )
    };
    let who = |role| Who {
        actor: "ann".into(),
        role,
        csrf: Some("s3cret".into()),
    };
    assert!(!page(None).contains("action=\"/do\""));
    assert!(!page(Some(&who(Role::Viewer))).contains("action=\"/do\""));
    let html = page(Some(&who(Role::Operator)));
    assert!(
        html.contains("value=\"resume\"") && html.contains("value=\"s3cret\""),
        "{html}"
    );
    assert!(html.contains("on the way"), "a stop is called one: {html}");
    assert!(
        html.contains("12 of 20 hosts") && html.contains("8 good, 12 bad, 0 waiting"),
        "{html}"
    );
}
