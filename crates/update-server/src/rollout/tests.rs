//! Single steps, on a clock of our own.

use jiff::{SignedDuration, Timestamp};

use super::*;

/// A group of hosts named 0, 1, 2, … and its rollout.
struct Group {
    policy: Policy,
    rollout: Rollout,
    hosts: u64,
    now: Timestamp,
    grants: Vec<Option<Grant>>,
    told: Vec<String>,
}

impl Group {
    fn new(policy: Policy, hosts: usize) -> Self {
        policy.check("web").unwrap();
        // A Monday.
        let now = "2026-11-23T12:00:00Z".parse().unwrap();
        Self {
            rollout: Rollout::new(&policy, "release", now),
            grants: vec![None; hosts],
            told: vec![],
            policy,
            hosts: hosts as u64,
            now,
        }
    }

    fn step(&mut self, event: Event<'_>) -> Vec<Action> {
        let out = step(&self.policy, self.rollout.clone(), event, self.now);
        self.rollout = out.rollout;
        for action in &out.actions {
            if *action == Action::RegroupGrants {
                let grants = self.grants.iter_mut().flatten();
                grants.for_each(|grant| grant.wave = 0);
            }
            if let Action::Tell(note) = action {
                self.told.push(match note {
                    Note::CanaryPassed => "canary passed".into(),
                    Note::WaveOpened { number, share } => format!("wave {number}: {share} %"),
                    Note::Halted { reason } => format!("halted: {reason}"),
                    Note::Completed => "completed".into(),
                    Note::Lost => "lost".into(),
                });
            }
        }
        out.actions
    }

    fn host(&mut self, host: usize, what: HostEvent<'_>) -> String {
        let name = host.to_string();
        let grant = self.grants[host];
        let actions = self.step(Event::Host {
            id: &name,
            grant,
            what,
        });
        let mut answer = String::new();
        for action in actions {
            match action {
                Action::SaveGrant(grant) => self.grants[host] = Some(grant),
                Action::Offer => answer = "offer".into(),
                Action::Hold(hold) => answer = hold.to_string(),
                Action::Tell(_) | Action::RegroupGrants => {}
            }
        }
        answer
    }

    fn asks(&mut self, host: usize) -> String {
        self.host(host, HostEvent::Asks)
    }

    /// How many hosts are offered it when all ask.
    fn all_ask(&mut self) -> usize {
        (0..self.grants.len())
            .filter(|host| self.asks(*host) == "offer")
            .count()
    }

    fn all_granted_are(&mut self, what: HostEvent<'_>) {
        for host in 0..self.grants.len() {
            if self.grants[host].is_some_and(|g| g.expires.is_some()) {
                self.host(host, what);
            }
        }
    }

    fn wait(&mut self, hours: i64) {
        self.now = self
            .now
            .checked_add(SignedDuration::from_hours(hours))
            .unwrap();
        let running = self
            .grants
            .iter()
            .flatten()
            .filter(|g| g.state == GrantState::Good)
            .count();
        self.step(Event::Tick {
            hosts: self.hosts,
            behind: self.hosts - running as u64,
            canary: Canary::None,
        });
    }

    fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }
}

#[test]
fn at_once_unless_told_otherwise() {
    let mut group = Group::new(Policy::default(), 50);
    assert_eq!(group.all_ask(), 50);
    assert_eq!(group.rollout.total().waiting(), 50);
    group.all_granted_are(HostEvent::Good);
    group.wait(1);
    assert_eq!(group.told(), ["completed"]);
    assert_eq!(group.rollout.status, Status::Complete);
    assert_eq!(group.asks(3), "offer", "also to one that was reset");
}

#[test]
fn waves_take_time_and_evidence() {
    let mut group = Group::new(Policy::staged(7.0), 1000);
    let first = group.all_ask();
    assert!((4..=20).contains(&first), "1 % of 1000 are {first}");
    assert_eq!(group.all_ask(), first, "asking again changes nothing");
    group.wait(25);
    assert_eq!(group.rollout.wave, 0, "nobody has tried it yet");
    group.all_granted_are(HostEvent::Good);
    group.wait(0);
    assert_eq!(group.rollout.wave, 1);
    let second = group.all_ask();
    assert!((35..=70).contains(&second), "5 % of 1000 are {second}");
    group.all_granted_are(HostEvent::Good);
    group.wait(23);
    assert_eq!(group.rollout.wave, 1, "its day is not over");
    for _ in 0..6 {
        group.wait(24);
        group.all_ask();
        group.all_granted_are(HostEvent::Good);
    }
    group.wait(1);
    assert_eq!(
        group.told(),
        [
            "wave 2: 5 %",
            "wave 3: 15 %",
            "wave 4: 40 %",
            "wave 5: 60 %",
            "wave 6: 90 %",
            "wave 7: 100 %",
            "completed"
        ]
    );
}

#[test]
fn a_small_group_is_not_held_up_by_empty_waves() {
    let mut group = Group::new(Policy::staged(7.0), 3);
    for _ in 0..7 {
        group.all_ask();
        group.all_granted_are(HostEvent::Good);
        group.wait(24);
    }
    assert_eq!(group.rollout.status, Status::Complete);
}

#[test]
fn hosts_that_are_off_do_not_hold_it_up_for_ever() {
    let mut group = Group::new(Policy::staged(7.0), 1000);
    group.wait(24);
    group.wait(24);
    assert_eq!(group.rollout.wave, 0, "twenty hosts should have asked");
    group.wait(24);
    assert_eq!(group.rollout.wave, 1);
}

#[test]
fn a_grant_that_nothing_becomes_of_expires() {
    let mut group = Group::new(Policy::default(), 20);
    assert_eq!(
        (group.asks(0), group.asks(1), group.asks(2)),
        ("offer".into(), "offer".into(), "offer".into())
    );
    group.host(1, HostEvent::Started);
    group.host(2, HostEvent::Started);
    group.host(0, HostEvent::Expired { heard: true });
    assert_eq!(group.rollout.total().granted, 3, "too early");
    group.wait(5);
    group.all_granted_are(HostEvent::Expired { heard: true });
    let states =
        |group: &Group| [0, 1, 2].map(|host: usize| group.grants[host].map(|g| g.state.as_str()));
    assert_eq!(
        states(&group),
        [Some("lapsed"), Some("started"), Some("started")]
    );
    group.wait(24 * 9);
    group.host(1, HostEvent::Expired { heard: true });
    group.host(2, HostEvent::Expired { heard: false });
    assert_eq!(
        states(&group),
        [Some("lapsed"), Some("lapsed"), Some("lost")]
    );
    let total = group.rollout.total();
    assert_eq!((total.granted, total.lost, total.waiting()), (1, 1, 0));
    assert_eq!(group.told(), ["lost"]);
    // Both may come again, and the lost one may turn up after all.
    assert_eq!(group.asks(0), "offer");
    group.host(2, HostEvent::Good);
    let total = group.rollout.total();
    assert_eq!((total.granted, total.lost, total.good), (2, 0, 1));
}

#[test]
fn too_many_failures_stop_it_and_an_operator_may_go_on() {
    let mut group = Group::new(Policy::default(), 100);
    group.all_ask();
    for host in 0..9 {
        group.host(
            host,
            HostEvent::Failed {
                reason: "no network\nat all",
            },
        );
    }
    assert_eq!(
        group.rollout.status,
        Status::Active,
        "nine are too few to tell"
    );
    group.host(
        9,
        HostEvent::Failed {
            reason: "no network\nat all",
        },
    );
    let told = group.told();
    assert_eq!(
        told,
        [
            "halted: 10 of 10 hosts in wave 1 (100 %) did not keep it, the budget is 2 %; the last: no network"
        ]
    );
    assert_eq!(group.asks(50), "the rollout was halted");
    group.host(
        9,
        HostEvent::Failed {
            reason: "told twice",
        },
    );
    assert_eq!(group.rollout.total().failed, 10);

    group.step(Event::Resume);
    assert_eq!(group.asks(50), "offer");
    for host in 10..19 {
        group.host(host, HostEvent::Failed { reason: "again" });
    }
    assert_eq!(
        group.rollout.status,
        Status::Active,
        "what was seen is accepted"
    );
    group.host(19, HostEvent::Failed { reason: "again" });
    assert!(matches!(group.rollout.status, Status::Halted { .. }));

    let mut off = Group::new(
        Policy {
            halt: Halt {
                enabled: false,
                ..Halt::default()
            },
            ..Policy::default()
        },
        100,
    );
    off.all_ask();
    off.all_granted_are(HostEvent::Failed { reason: "x" });
    assert_eq!(
        (off.rollout.status.clone(), off.rollout.total().failed),
        (Status::Active, 100)
    );
}

#[test]
fn a_late_wave_is_judged_by_itself() {
    let mut group = Group::new(
        Policy {
            waves: vec![50, 100],
            days: 2.0,
            ..Policy::default()
        },
        2000,
    );
    group.all_ask();
    group.all_granted_are(HostEvent::Good);
    group.wait(24);
    group.all_ask();
    let late: Vec<usize> = (0..2000)
        .filter(|h| group.grants[*h].is_some_and(|g| g.wave == 1))
        .collect();
    for (n, host) in late.iter().enumerate() {
        let what = if n % 4 == 0 {
            HostEvent::Failed { reason: "x" }
        } else {
            HostEvent::Good
        };
        group.host(*host, what);
        if matches!(group.rollout.status, Status::Halted { .. }) {
            assert!(n < 60, "a thousand good ones hid it until {n}");
            return;
        }
    }
    panic!("not halted");
}

#[test]
fn caps_windows_and_pauses() {
    let window = Window {
        days: vec![Day::Tue],
        start: "02:00".parse().unwrap(),
        minutes: 120,
        zone: "Europe/Berlin".into(),
    };
    let policy = Policy {
        cap: Some(Cap {
            hosts: 10,
            minutes: 60,
        }),
        window: Some(window),
        ..Policy::default()
    };
    let mut group = Group::new(policy, 100);
    assert_eq!(
        group.asks(0),
        "the update window opens at 2026-11-24T01:00:00Z"
    );
    group.now = "2026-11-24T01:00:00Z".parse().unwrap();
    assert_eq!(group.all_ask(), 10);
    assert_eq!(
        group.asks(99),
        "enough hosts update now; more from 2026-11-24T02:00:00Z"
    );
    group.step(Event::Pause { by: "ann" });
    assert_eq!(
        (group.asks(0), group.asks(99)),
        (
            "the rollout is paused".into(),
            "the rollout is paused".into()
        )
    );
    group.step(Event::Resume);
    group.wait(1);
    assert_eq!(group.all_ask(), 20);
    group.wait(1);
    assert_eq!(
        group.asks(0),
        "offer",
        "who began may finish outside of the window"
    );
    assert_eq!(
        group.asks(99),
        "the update window opens at 2026-12-01T01:00:00Z"
    );
}

#[test]
fn a_pause_stops_the_clock_of_the_wave() {
    let mut group = Group::new(Policy::staged(7.0), 1000);
    group.all_ask();
    group.all_granted_are(HostEvent::Good);
    group.wait(20);
    group.step(Event::Pause { by: "ann" });
    group.wait(100);
    group.step(Event::Resume);
    group.wait(3);
    assert_eq!(group.rollout.wave, 0);
    group.wait(1);
    assert_eq!(group.rollout.wave, 1);
}

#[test]
fn a_canary_that_comes_late_is_waited_for_unless_somebody_was_given_it() {
    let with = |canary: Option<&str>| Policy {
        canary: canary.map(String::from),
        ..Policy::default()
    };
    let mut group = Group::new(with(None), 10);
    let waits = "group first goes first";
    group.policy = with(Some("first"));
    group.step(Event::Replan);
    assert_eq!(group.asks(0), waits);
    // The same in a pause, and back.
    group.step(Event::Pause { by: "ann" });
    group.policy = with(None);
    group.step(Event::Replan);
    group.step(Event::Resume);
    assert_eq!(group.asks(0), "offer");

    let mut group = Group::new(with(None), 10);
    group.step(Event::Pause { by: "ann" });
    group.policy = with(Some("first"));
    group.step(Event::Replan);
    group.step(Event::Resume);
    assert_eq!(group.asks(0), waits);

    let mut group = Group::new(with(None), 10);
    group.all_ask();
    group.policy = with(Some("first"));
    group.step(Event::Replan);
    assert_eq!(group.asks(0), "offer");
}

#[test]
fn the_canary_goes_first() {
    let mut group = Group::new(
        Policy {
            canary: Some("first".into()),
            ..Policy::default()
        },
        10,
    );
    assert_eq!(group.all_ask(), 0);
    let tick = |canary| Event::Tick {
        hosts: 10,
        behind: 10,
        canary,
    };
    group.step(tick(Canary::Running));
    assert_eq!(group.asks(0), "group first goes first");
    // Paused meanwhile, it waits on.
    group.step(Event::Pause { by: "ann" });
    group.step(tick(Canary::Passed));
    assert_eq!(group.asks(0), "the rollout is paused");
    group.step(Event::Resume);
    group.step(tick(Canary::Passed));
    assert_eq!(group.told(), ["canary passed"]);
    assert_eq!(group.asks(0), "offer");

    let mut group = Group::new(
        Policy {
            canary: Some("first".into()),
            ..Policy::default()
        },
        10,
    );
    group.step(Event::Halt {
        reason: "halted in group first",
    });
    group.step(tick(Canary::Passed));
    assert_eq!(group.asks(0), "the rollout was halted");
}

#[test]
fn a_host_that_asked_before_its_reboot_and_never_again_is_lost() {
    let at = |hours: i64| Timestamp::from_second(1_795_000_000 + hours * 3600).unwrap();
    // Eight days, of which the last counts.
    let seen = |hours| heard(at(0), at(192), at(hours));
    assert!(!seen(1) && !seen(168) && seen(169) && seen(192));
    // One day, of which half counts.
    let seen = |hours| heard(at(0), at(24), at(hours));
    assert!(!seen(1) && !seen(12) && seen(13));
}

#[test]
fn a_halt_does_not_spare_the_canary() {
    let policy = Policy {
        canary: Some("first".into()),
        ..Policy::staged(7.0)
    };
    let tick = |canary| Event::Tick {
        hosts: 1000,
        behind: 1000,
        canary,
    };
    let halt = Event::Halt {
        reason: "the release was withdrawn: a mistake",
    };
    let later = |group: &mut Group, hours: i64| {
        let by = SignedDuration::from_hours(hours);
        group.now = group.now.checked_add(by).unwrap();
    };
    for paused in [false, true] {
        let mut group = Group::new(policy.clone(), 1000);
        later(&mut group, 100);
        if paused {
            group.step(Event::Pause { by: "ann" });
        }
        group.step(halt.clone());
        later(&mut group, 100);
        group.step(Event::Resume);
        assert_eq!(group.rollout.status, Status::AwaitingCanary);
        assert_eq!(group.asks(0), "group first goes first");
        // The wait is not the wave's.
        group.step(tick(Canary::Passed));
        assert_eq!(group.rollout.wave_since, group.now);
    }

    // A canary that goes meanwhile is not waited for, and neither is the time in a pause.
    let mut group = Group::new(policy.clone(), 1000);
    group.step(halt.clone());
    group.policy = Policy::staged(7.0);
    group.step(Event::Replan);
    later(&mut group, 100);
    group.step(Event::Resume);
    assert_eq!(group.rollout.status, Status::Active);
    assert_eq!(group.rollout.wave_since, group.now);
    group.step(Event::Pause { by: "ann" });
    later(&mut group, 100);
    group.step(halt);
    group.step(Event::Resume);
    assert_eq!(group.rollout.wave_since, group.now);

    // As it was stored before.
    let old = r#"{"is":"halted","reason":"x","elapsed":7}"#;
    assert_eq!(
        serde_json::from_str::<Status>(old).unwrap(),
        Status::Halted {
            reason: "x".into(),
            elapsed: 7,
            awaiting_canary: false
        }
    );
}

#[test]
fn a_canary_that_did_not_keep_it_has_not_gone_well() {
    let with = |hosts: usize, bad: usize| {
        let mut group = Group::new(Policy::default(), hosts);
        assert!(!group.rollout.went_well(&group.policy), "nobody had it");
        group.all_ask();
        assert!(!group.rollout.went_well(&group.policy), "nobody is through");
        for host in 0..hosts {
            let what = if host < bad {
                HostEvent::Failed { reason: "x" }
            } else {
                HostEvent::Good
            };
            group.host(host, what);
        }
        group.wait(1);
        group
    };
    let well = |hosts, bad| {
        let group = with(hosts, bad);
        assert_eq!(group.rollout.status, Status::Complete);
        group.rollout.went_well(&group.policy)
    };
    assert!(well(1, 0) && well(9, 0) && well(200, 2));
    assert!(!well(1, 1) && !well(9, 9) && !well(9, 1));

    // What an operator accepted is not held against it.
    let mut group = with(30, 20);
    assert!(matches!(group.rollout.status, Status::Halted { .. }));
    assert!(!group.rollout.went_well(&group.policy));
    group.step(Event::Resume);
    assert!(group.rollout.went_well(&group.policy));

    // Nobody needed it.
    let mut group = Group::new(Policy::default(), 5);
    group.step(Event::Tick {
        hosts: 5,
        behind: 0,
        canary: Canary::None,
    });
    assert!(group.rollout.went_well(&group.policy));
}

#[test]
fn other_waves_begin_anew_and_take_nothing_back() {
    let mut group = Group::new(Policy::default(), 1000);
    for host in 0..100 {
        assert_eq!(group.asks(host), "offer");
    }
    group.policy = Policy::staged(7.0);
    group.step(Event::Replan);
    assert_eq!(group.rollout.total().granted, 100);
    let offered = group.all_ask();
    assert!((100..130).contains(&offered), "{offered}");
    group.step(Event::Supersede);
    assert_eq!(group.asks(0), "the rollout is over");
}

#[test]
fn other_waves_keep_what_was_counted_and_accepted() {
    let waves = |waves: Vec<u8>| Policy {
        waves,
        days: 2.0,
        ..Policy::default()
    };
    let mut group = Group::new(waves(vec![50, 100]), 100);
    group.all_ask();
    group.all_granted_are(HostEvent::Failed { reason: "x" });
    assert!(matches!(group.rollout.status, Status::Halted { .. }));
    group.step(Event::Resume);
    let failed = group.rollout.total().failed;
    group.wait(72);
    let mut late = (0..100).filter(|host| group.grants[*host].is_none());
    let late = [late.next().unwrap(), late.next().unwrap()];
    for host in late {
        assert_eq!(group.asks(host), "offer");
    }

    group.policy = waves(vec![5, 50, 100]);
    group.step(Event::Replan);
    // One more is not too many: the others were accepted.
    group.host(late[0], HostEvent::Failed { reason: "x" });
    assert_eq!(group.rollout.status, Status::Active);
    // It is counted where it is taken away again.
    group.host(late[1], HostEvent::Good);
    group.host(late[0], HostEvent::Good);
    let total = group.rollout.total();
    assert_eq!((total.good, total.failed), (2, failed));
    assert_eq!(group.rollout.tallies[0], total);
}

proptest::proptest! {
    /// Whatever happens in whatever order: the counts are those of the grants.
    #[test]
    fn counts_are_those_of_the_grants(events in proptest::collection::vec((0_usize..12, 0_u8..9), 1..120)) {
        let mut group = Group::new(Policy { waves: vec![50, 100], days: 1.0, ..Policy::default() }, 12);
        for (host, what) in events {
            match what {
                0 | 1 => drop(group.asks(host)),
                2 => drop(group.host(host, HostEvent::Started)),
                3 => drop(group.host(host, HostEvent::Good)),
                4 => drop(group.host(host, HostEvent::Failed { reason: "x" })),
                5 => drop(group.host(host, HostEvent::Expired { heard: true })),
                6 => drop(group.host(host, HostEvent::Expired { heard: false })),
                7 => group.wait(7),
                _ => drop(group.step(Event::Resume)),
            }
            let count = |state| group.grants.iter().flatten().filter(|g| g.state == state).count() as u64;
            let total = group.rollout.total();
            proptest::prop_assert_eq!(total.good, count(GrantState::Good));
            proptest::prop_assert_eq!(total.failed, count(GrantState::Failed));
            proptest::prop_assert_eq!(total.lost, count(GrantState::Lost));
            proptest::prop_assert_eq!(total.waiting(), count(GrantState::Offered) + count(GrantState::Started));
        }
    }
}

#[test]
fn whoever_forces_it_is_not_held_up_but_counted() {
    let cap = Some(Cap {
        hosts: 1,
        minutes: 60,
    });
    let policy = Policy {
        cap,
        ..Policy::staged(7.0)
    };
    let mut group = Group::new(policy, 1000);
    let wave_of = |group: &Group, host: usize| {
        let position = group.rollout.position(&host.to_string());
        group.policy.wave_of(position)
    };
    let late = (0..1000).find(|host| wave_of(&group, *host) > 2).unwrap();
    let early = (0..1000).find(|host| wave_of(&group, *host) == 0).unwrap();
    assert!(group.asks(late).starts_with("its turn comes with wave "));
    group.step(Event::Halt {
        reason: "no network",
    });
    assert_eq!(group.host(late, HostEvent::Forces), "offer");
    assert_eq!(group.host(late, HostEvent::Forces), "offer");
    assert_eq!(
        group.grants[late].unwrap().wave,
        0,
        "the newest that is open"
    );
    assert_eq!(group.rollout.total().granted, 1);
    group.host(late, HostEvent::Good);
    assert_eq!(group.rollout.total().good, 1);
    group.step(Event::Resume);
    let held = group.asks(early);
    assert!(held.starts_with("enough hosts update now"), "{held}");
}

#[test]
fn hosts_that_never_needed_it_are_not_waited_for() {
    let mut group = Group::new(Policy::staged(7.0), 400);
    let early = (0..400).find(|host: &usize| {
        let position = group.rollout.position(&host.to_string());
        group.policy.wave_of(position) <= 1
    });
    group.rollout.wave = 1;
    let early = early.unwrap();
    assert_eq!(group.asks(early), "offer");
    group.host(early, HostEvent::Good);
    let tick = |behind| Event::Tick {
        hosts: 10_000,
        behind,
        canary: Canary::None,
    };
    group.now = group
        .now
        .checked_add(SignedDuration::from_hours(25))
        .unwrap();
    group.step(tick(9_999));
    assert_eq!(
        group.rollout.wave, 1,
        "of so many more should have said how it went"
    );
    group.step(tick(39));
    assert_eq!(group.rollout.wave, 2);
}
