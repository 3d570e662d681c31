//! Ten thousand hosts and bad releases, on a clock that costs nothing. The code that decides is the
//! server's; hosts ask, download, reboot, fail and vanish as hosts do.

use jiff::{SignedDuration, Timestamp};

use super::*;

const HOSTS: usize = 10_000;
const STEP_MINUTES: i64 = 10;

/// Repeatable noise (splitmix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn chance(&mut self, probability: f64) -> bool {
        ((self.next() >> 11) as f64 / (1_u64 << 53) as f64) < probability
    }

    fn between(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low) as u64) as i64
    }
}

/// What is wrong with a release.
#[derive(Clone, Copy, Debug)]
struct Bad {
    /// Hosts that fall back and say so, and how long (in minutes) that takes after the reboot.
    fails: f64,
    after: i64,
    /// Hosts that are never heard of again.
    vanishes: f64,
    /// Only this part of the fleet (say, one kind of machine) is hit at all.
    hit: f64,
}

const fn fails(fails: f64) -> Bad {
    Bad {
        fails,
        after: 5,
        vanishes: 0.0,
        hit: 1.0,
    }
}

/// A release and how many of the 10,000 hosts may have been given it when it stops.
const BAD: [(Bad, u64); 20] = [
    // What breaks everywhere has to end with the first wave: 1 %.
    (fails(1.0), 130),
    (fails(0.9), 130),
    (fails(0.75), 130),
    (fails(0.6), 130),
    (fails(0.5), 130),
    (fails(0.4), 130),
    (fails(0.3), 130),
    (fails(0.25), 130),
    // What breaks one host in five to one in eight: with the second, 5 %.
    (fails(0.2), 560),
    (fails(0.15), 560),
    (fails(0.125), 560),
    // One in ten to one in twelve: with the third, 15 %.
    (fails(0.1), 1600),
    (fails(0.08), 1600),
    // Thrice the budget: with the fourth, 40 %.
    (fails(0.06), 4200),
    // Fails late, after the wave has grown.
    (
        Bad {
            after: 12 * 60,
            ..fails(0.5)
        },
        130,
    ),
    (
        Bad {
            after: 20 * 60,
            ..fails(1.0)
        },
        130,
    ),
    // One kind of machine in five, on which it always fails; and one in ten.
    (
        Bad {
            hit: 0.2,
            ..fails(1.0)
        },
        560,
    ),
    (
        Bad {
            hit: 0.1,
            ..fails(1.0)
        },
        1600,
    ),
    // Nobody comes back to tell.
    (
        Bad {
            vanishes: 1.0,
            ..fails(0.0)
        },
        130,
    ),
    (
        Bad {
            vanishes: 0.3,
            ..fails(0.2)
        },
        130,
    ),
];

#[derive(Clone, Copy)]
struct Host {
    asks_next: i64,
    every: i64,
    grant: Option<Grant>,
    /// What becomes of its update, and when.
    fate: Option<(i64, Fate)>,
    seen: i64,
    began: i64,
    done: bool,
    gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Starts,
    Good,
    Fails,
    Vanishes,
}

struct Outcome {
    rollout: Rollout,
    /// Minutes until it ended.
    minutes: i64,
}

impl Outcome {
    /// Hosts that were ever given it.
    fn exposed(&self) -> u64 {
        self.rollout.total().granted
    }
}

/// Runs one release until the rollout ends one way or the other.
fn simulate(policy: &Policy, bad: Bad, seed: u64) -> Outcome {
    let start: Timestamp = "2026-11-23T08:00:00Z".parse().unwrap();
    let at = |minutes: i64| {
        start
            .checked_add(SignedDuration::from_mins(minutes))
            .unwrap()
    };
    let mut noise = Noise(seed);
    let names: Vec<String> = (0..HOSTS).map(|n| format!("{n:032x}")).collect();
    let mut hosts: Vec<Host> = (0..HOSTS)
        .map(|_| {
            let every = noise.between(60, 240);
            Host {
                asks_next: noise.between(0, every),
                every,
                grant: None,
                fate: None,
                seen: 0,
                began: 0,
                done: false,
                gone: false,
            }
        })
        .collect();
    let mut rollout = Rollout::new(policy, &format!("release {seed}"), start);
    let mut minutes = 0;
    while minutes < 60 * 24 * 60 {
        let now = at(minutes);
        for (host, name) in hosts.iter_mut().zip(&names) {
            let feed = |rollout: &mut Rollout, grant: &mut Option<Grant>, what| {
                let event = Event::Host {
                    id: name,
                    grant: *grant,
                    what,
                };
                let out = step(policy, rollout.clone(), event, now);
                *rollout = out.rollout;
                let mut offered = false;
                for action in out.actions {
                    match action {
                        Action::SaveGrant(new) => *grant = Some(new),
                        Action::Offer => offered = true,
                        _ => {}
                    }
                }
                offered
            };
            if let Some(grant) = host.grant.filter(|g| g.expires.is_some_and(|e| e <= now)) {
                let expires = grant.expires.unwrap();
                let heard = heard(at(host.began), expires, at(host.seen));
                feed(&mut rollout, &mut host.grant, HostEvent::Expired { heard });
                assert!(host.grant != Some(grant), "nothing became of {grant:?}");
            }
            if let Some((when, fate)) = host.fate.filter(|(when, _)| *when <= minutes) {
                host.fate = None;
                if fate != Fate::Vanishes {
                    host.seen = minutes;
                }
                match fate {
                    Fate::Starts => {
                        host.began = minutes;
                        feed(&mut rollout, &mut host.grant, HostEvent::Started);
                        let reboot = when + noise.between(5, 60);
                        let hit = noise.chance(bad.hit);
                        host.fate = Some(if hit && noise.chance(bad.vanishes) {
                            (reboot, Fate::Vanishes)
                        } else if hit && noise.chance(bad.fails) {
                            (reboot + bad.after, Fate::Fails)
                        } else {
                            (reboot, Fate::Good)
                        });
                    }
                    Fate::Good => {
                        host.done = true;
                        feed(&mut rollout, &mut host.grant, HostEvent::Good);
                    }
                    Fate::Fails => {
                        host.done = true;
                        let what = HostEvent::Failed {
                            reason: "sshd.service failed",
                        };
                        feed(&mut rollout, &mut host.grant, what);
                    }
                    Fate::Vanishes => host.gone = true,
                }
            }
            if host.gone || host.done || host.asks_next > minutes {
                continue;
            }
            host.asks_next = minutes + host.every;
            host.seen = minutes;
            // Also while the release waits for its reboot.
            if feed(&mut rollout, &mut host.grant, HostEvent::Asks) && host.fate.is_none() {
                host.fate = Some((minutes + noise.between(1, 20), Fate::Starts));
            }
        }
        let runs = |host: &&Host| host.grant.is_some_and(|g| g.state == GrantState::Good);
        let behind = (HOSTS - hosts.iter().filter(runs).count()) as u64;
        let event = Event::Tick {
            hosts: HOSTS as u64,
            behind,
            canary: Canary::None,
        };
        rollout = step(policy, rollout, event, now).rollout;
        if rollout.status != Status::Active {
            break;
        }
        minutes += STEP_MINUTES;
    }
    Outcome { rollout, minutes }
}

#[test]
fn twenty_bad_releases_halt_within_their_budgets() {
    let policy = Policy {
        finish_within_days: 1,
        ..Policy::staged(7.0)
    };
    let one = |index: usize| {
        let (bad, budget) = BAD[index];
        let outcome = simulate(&policy, bad, 1000 + index as u64);
        let Status::Halted { reason, .. } = &outcome.rollout.status else {
            panic!("{bad:?} was not halted: {:?}", outcome.rollout);
        };
        let exposed = outcome.exposed();
        println!(
            "{index:2}: exposed {exposed:5} of {budget:5} after {:5.1} h: {reason}",
            outcome.minutes as f64 / 60.0
        );
        assert!(
            exposed <= budget,
            "{bad:?}: {exposed} hosts were given it, {budget} are allowed"
        );
        assert!(exposed >= 3, "{bad:?} was judged by {exposed} hosts");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| (0..BAD.len()).step_by(2).for_each(one));
        (1..BAD.len()).step_by(2).for_each(one);
    });
}

#[test]
fn good_releases_arrive_everywhere() {
    // Half of the budget fails, and a few never come back.
    let policy = Policy {
        finish_within_days: 1,
        ..Policy::staged(2.0)
    };
    for seed in 0..3 {
        let bad = Bad {
            vanishes: 0.002,
            ..fails(0.008)
        };
        let outcome = simulate(&policy, bad, seed);
        let total = outcome.rollout.total();
        assert!(
            !matches!(outcome.rollout.status, Status::Halted { .. }),
            "{:?}",
            outcome.rollout
        );
        assert_eq!(total.granted, HOSTS as u64, "{:?}", outcome.rollout);
        assert_eq!(
            total.waiting(),
            0,
            "something sticks: {:?}",
            outcome.rollout
        );
    }
}
