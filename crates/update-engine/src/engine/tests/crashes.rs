//! `state.json` and the disk, and a power cut between any two steps of either.
//!
//! Walks through the lives of a host: an engine, what it saved last, two slots, a boot loader that
//! counts, a worker whose steps on the disk are separate, an operator. Version 2 is good, 3 never
//! gets healthy. At each step one of what can happen happens, and often the power fails: before the
//! memory is saved (it is replaced whole, so it is the old one then), after it, before and between
//! the writer's steps. What must hold is asked all the time.
//!
//! One thing is taken for granted: after a fallback the power is not cut in three boots in a row
//! before the good release is up. Both slots would be exhausted then, and the boot loader would take
//! the newer one, which is the broken one.

use std::collections::{HashSet, VecDeque};

use super::*;
use crate::engine::AfterStaging;
use crate::memory::Staging;

const WALKS: u64 = 1_000;
const STEPS: usize = 120;
const TRIES: u8 = 3;

/// xorshift: a walk that fails is repeated by its number.
struct Luck(u64);

impl Luck {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % n
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Content {
    /// The release whose root hash the partition table names.
    version: Option<&'static str>,
    /// None: no valid boot entry.
    tries: Option<(u8, u8)>,
}

/// What the worker has still to do, first things first.
#[derive(Clone, Debug)]
enum Work {
    ReadSlots,
    /// Forced: what the operator wants is older than what he has.
    Check(bool),
    Reopen(Sha256),
    Download(&'static str),
    /// With the steps on the disk that are done.
    Stage(&'static str, AfterStaging, u8),
    RollBack,
    Tell(usize),
}

struct World {
    luck: Luck,
    engine: Engine,
    saved: Memory,
    slots: [Content; 2],
    booted: usize,
    boots: u32,
    good: bool,
    /// `/run/update-engine/reboot-needed`
    asked: bool,
    work: VecDeque<Work>,
    crashes: usize,
    failures: usize,
    seen: HashSet<String>,
    log: VecDeque<String>,
}

fn known(version: &Version) -> &'static str {
    match version.to_string().as_str() {
        "1" => "1",
        "2" => "2",
        "3" => "3",
        other => panic!("{other}"),
    }
}

impl World {
    fn new(walk: u64) -> Self {
        let full = Content {
            version: Some("1"),
            tries: Some((TRIES - 1, 1)),
        };
        let mut world = Self {
            luck: Luck(walk.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            engine: engine("1", 1, Memory::default()),
            saved: Memory::default(),
            slots: [full, Content::default()],
            booted: 0,
            boots: 1,
            good: false,
            asked: false,
            work: VecDeque::new(),
            crashes: 0,
            failures: 0,
            seen: HashSet::new(),
            log: VecDeque::new(),
        };
        world.take(Event::NotGoodYet);
        world
    }

    fn running(&self) -> &'static str {
        self.slots[self.booted].version.unwrap()
    }

    fn other(&mut self) -> &mut Content {
        &mut self.slots[1 - self.booted]
    }

    fn found(&self) -> Event {
        let slots = [("a", 0), ("b", 1)].map(|(name, i)| {
            let content = &self.slots[i];
            SlotStatus {
                slot: name.parse().unwrap(),
                booted: i == self.booted,
                version: None,
                root_hash: content.version.map(root_hash),
                tries_left: content.tries.map(|(left, _)| left),
                tries_done: content.tries.map(|(_, done)| done),
            }
        });
        Event::Found(Ok(slots.into()))
    }

    /// As the driver: decide, remember, act. False: the power failed on the way.
    fn take(&mut self, event: Event) -> bool {
        let (next, actions) = step(self.engine.clone(), event, Timestamp::UNIX_EPOCH);
        if self.luck.one_in(25) {
            self.crash();
            return false;
        }
        self.engine = next;
        // Through its text, as over a reboot.
        let text = serde_json::to_vec(&self.engine.memory).unwrap();
        self.saved = serde_json::from_slice(&text).unwrap();
        if self.luck.one_in(25) {
            self.crash();
            return false;
        }
        let mut events = Vec::new();
        for action in actions {
            match action {
                Action::ReadSlots => self.work.push_back(Work::ReadSlots),
                Action::LookForGood if self.good => {
                    events.extend([self.found(), Event::Good]);
                }
                Action::LookForGood | Action::Clean { .. } | Action::Discard(..) => {}
                Action::LookForExtensions => events.push(Event::Looked),
                Action::Check(ask) => self.work.push_back(Work::Check(ask.force)),
                Action::Reopen(id, _) => self.work.push_back(Work::Reopen(id)),
                Action::Download(offer) => {
                    let version = known(&offer.manifest.version);
                    let failed = &self.saved.failed;
                    let forced =
                        matches!(&self.engine.phase, Phase::Downloading { ask, .. } if ask.force);
                    assert!(
                        forced || !failed.iter().any(|f| f.version == offer.manifest.version),
                        "{version} failed here and is fetched again"
                    );
                    self.work.push_back(Work::Download(version));
                }
                Action::Stage(offer, after) => {
                    let version = known(&offer.manifest.version);
                    assert!(self.good, "{version} is written in a boot that is not good");
                    let noted = self.saved.staging.as_ref();
                    assert!(
                        noted.is_some_and(|s: &Staging| s.version == offer.manifest.version),
                        "{version} is written and nobody would know"
                    );
                    self.work.push_back(Work::Stage(version, after, 0));
                }
                Action::RollBack => self.work.push_back(Work::RollBack),
                Action::AskReboot { .. } => self.asked = true,
                Action::WithdrawReboot => self.asked = false,
                Action::Tell(reports) => self.work.push_back(Work::Tell(reports.len())),
            }
        }
        self.hold();
        events.into_iter().all(|event| self.take(event))
    }

    /// What holds after each step.
    fn hold(&mut self) {
        assert_eq!(
            root_hash(self.running()),
            self.engine.host.root_hash.unwrap(),
            "what runs was overwritten"
        );
        let can_start = |c: &Content| c.version.is_some() && c.tries.is_some();
        assert!(self.slots.iter().any(can_start), "nothing can be booted");
        let settled = self.engine.is_settled() && self.work.is_empty() && self.engine.reconciled;
        let other = &self.slots[1 - self.booted];
        if settled {
            let status = self.engine.status();
            if let Some(staged) = &status.staged {
                assert_eq!(Some(known(&staged.version)), other.version, "{status:?}");
                assert!(other.tries.is_some_and(|(left, _)| left > 0), "{status:?}");
            }
            let comes_next = other.tries.is_some_and(|(left, _)| left > 0)
                && other.version > Some(self.running());
            assert!(
                !comes_next || status.staged.is_some(),
                "it boots next, and nobody knows: {status:?}"
            );
            let waits = status.staged.is_some() || self.saved.rollback.is_some();
            assert!(!self.asked || waits, "a reboot for nothing: {status:?}");
            let exhausted = other.tries.is_some_and(|(left, _)| left == 0);
            if exhausted && other.version == Some("3") {
                self.failures += 1;
                let listed = self.saved.failed.iter().any(|f| known(&f.version) == "3");
                assert!(listed, "3 failed, and nobody knows: {:?}", self.saved);
            }
        }
        for failed in &self.saved.failed {
            assert!(
                !failed.reason.contains("boot loader chose"),
                "it was never its turn: {failed:?}"
            );
        }
        let engine = &self.engine;
        self.log.push_back(format!(
            "{} {:?} booted {} good {}\n",
            show_phase(engine),
            self.slots,
            self.booted,
            self.good
        ));
        if self.log.len() > 60 {
            self.log.pop_front();
        }
        self.seen.insert(format!(
            "{:?} {} {:?} {:?} {} {:?}",
            self.slots,
            self.booted,
            show_phase(engine),
            self.saved
                .staging
                .as_ref()
                .map(|s| (&s.version, s.committed)),
            self.good,
            self.work
        ));
    }

    /// The power fails, or somebody reboots.
    fn crash(&mut self) {
        self.crashes += 1;
        // See above: the last try of a release that works is not cut short.
        let last = self.slots[self.booted].tries == Some((0, TRIES));
        let went_back = self.slots[1 - self.booted]
            .tries
            .is_some_and(|(left, _)| left > 0);
        if last && !self.good && !went_back && self.running() != "3" {
            self.slots[self.booted].tries = Some((TRIES, 0));
        }
        loop {
            self.work.clear();
            (self.good, self.asked) = (false, false);
            self.boots += 1;
            // systemd-boot: entries that are exhausted come last, else the newest first.
            let rank = |i: &usize| {
                let content = &self.slots[*i];
                let (left, _) = content.tries.unwrap();
                (left > 0, content.version)
            };
            let startable = [0, 1].into_iter().filter(|i| {
                let content = &self.slots[*i];
                content.version.is_some() && content.tries.is_some()
            });
            self.booted = startable.max_by_key(rank).unwrap();
            let tries = self.slots[self.booted].tries.as_mut().unwrap();
            if tries.0 > 0 {
                *tries = (tries.0 - 1, tries.1 + 1);
            }
            let version = self.running();
            self.engine = engine(version, self.boots, self.saved.clone());
            // 3 fails with or without a daemon that runs meanwhile.
            if version != "3" || self.luck.one_in(2) {
                break;
            }
        }
        let (next, _) = step(
            self.engine.clone(),
            Event::NotGoodYet,
            Timestamp::UNIX_EPOCH,
        );
        self.engine = next;
        self.hold();
    }

    /// One of what can happen.
    fn happen(&mut self) {
        if self.luck.one_in(40) {
            return self.crash();
        }
        if let Some(work) = self.work.pop_front() {
            let wish = Event::AskedRollback;
            if self.luck.one_in(20) && self.engine.admits(&wish).is_ok() && !self.take(wish) {
                return;
            }
            return self.perform(work);
        }
        match self.engine.phase {
            Phase::Proving if !self.good && self.running() == "3" => self.crash(),
            Phase::Proving => {
                if !self.good && self.luck.one_in(2) {
                    // mark-good: the tries first, then the word.
                    self.slots[self.booted].tries = Some((TRIES, 0));
                    if self.luck.one_in(10) {
                        return self.crash();
                    }
                    self.good = true;
                }
                self.take(Event::Timer);
            }
            Phase::Idle { .. } => {
                let event = match self.luck.below(11) {
                    0 => Event::AskedRollback,
                    1 => Event::Reset,
                    3 => Event::Asked(Ask {
                        force: true,
                        ..Ask::POLL
                    }),
                    4 => Event::Asked(Ask {
                        download_only: true,
                        ..Ask::POLL
                    }),
                    5 => Event::Asked(Ask {
                        apply: true,
                        ..Ask::POLL
                    }),
                    2 if self.asked => return self.crash(),
                    _ => Event::Timer,
                };
                if self.engine.admits(&event).is_ok() {
                    self.take(event);
                }
            }
            _ => {}
        }
    }

    fn can_go_back(&self) -> bool {
        let other = &self.slots[1 - self.booted];
        other.tries.is_some_and(|(left, _)| left > 0)
    }

    fn trouble(&self, code: Code, version: Option<&str>) -> Event {
        Event::Trouble(Trouble {
            code,
            message: "no".into(),
            version: version.map(|v| v.parse().unwrap()),
            release: version.map(|v| offer(&[v]).manifest.id()),
        })
    }

    fn perform(&mut self, work: Work) {
        let event = match work {
            Work::ReadSlots if self.luck.one_in(10) => Event::Found(Err("busy".into())),
            Work::ReadSlots => self.found(),
            Work::Check(true) => match self.luck.below(2) {
                0 => Event::Offered(offer(&["1"])),
                _ => Event::Offered(offer(&["2"])),
            },
            Work::Check(false) => match self.luck.below(6) {
                0 => Event::NothingNew,
                1 => self.trouble(Code::Server, None),
                2 | 3 => Event::Offered(offer(&["2"])),
                _ => Event::Offered(offer(&["3"])),
            },
            Work::Reopen(id) => match ["1", "2", "3"].map(|it| offer(&[it])) {
                _ if self.luck.one_in(5) => self.trouble(Code::Download, None),
                all => {
                    let it = all.into_iter().find(|it| it.manifest.id() == id);
                    Event::Offered(it.unwrap())
                }
            },
            Work::Download(version) => match self.luck.below(5) {
                0 => self.trouble(Code::Download, Some(version)),
                _ => Event::Downloaded,
            },
            Work::Tell(count) => match self.luck.one_in(4) {
                true => Event::Told(Err("away".into())),
                false => Event::Told(Ok(count)),
            },
            Work::RollBack if self.luck.one_in(8) || !self.can_go_back() => {
                self.trouble(Code::Write, None)
            }
            Work::RollBack => {
                self.slots[self.booted].tries = Some((0, TRIES));
                let slot = ["b", "a"][self.booted];
                // The writer may die with the answer.
                match self.luck.one_in(8) {
                    true => self.trouble(Code::Write, None),
                    false => Event::RolledBack {
                        slot: slot.parse().unwrap(),
                        version: None,
                    },
                }
            }
            Work::Stage(version, after, done) => {
                // The writer's preflight.
                let exhausted = self.slots[self.booted].tries == Some((0, TRIES));
                let refused = done == 0 && (exhausted || self.luck.one_in(8));
                let last = match after {
                    AfterStaging::Nothing => 3,
                    AfterStaging::ExhaustRunning => 4,
                };
                match done {
                    0 if refused => {}
                    0 => self.other().tries = None,
                    1 => self.other().version = None,
                    2 => self.other().version = Some(version),
                    3 => self.other().tries = Some((TRIES, 0)),
                    _ => self.slots[self.booted].tries = Some((0, TRIES)),
                }
                let slot = ["b", "a"][self.booted];
                if self.luck.one_in(8) || refused {
                    self.trouble(Code::Write, Some(version))
                } else if done < last {
                    self.work.push_front(Work::Stage(version, after, done + 1));
                    return self.hold();
                } else {
                    Event::Staged(slot.parse().unwrap())
                }
            }
        };
        self.take(event);
    }

    /// From here on nothing fails any more, and the channel has a newer good release: it arrives.
    fn come_to_rest(&mut self) {
        let calm = |world: &mut Self, event: Event| {
            let (next, actions) = step(world.engine.clone(), event, Timestamp::UNIX_EPOCH);
            world.engine = next;
            actions
        };
        for _ in 0..8 {
            self.crash();
            if self.running() == "3" {
                continue;
            }
            self.slots[self.booted].tries = Some((TRIES, 0));
            let found = self.found();
            let _ = calm(self, found);
            let _ = calm(self, Event::Good);
            if self.engine.memory.staging.is_some() {
                // It is the other slot's turn first.
                self.saved = self.engine.memory.clone();
                continue;
            }
            let _ = calm(self, Event::Timer);
            let _ = calm(self, Event::Offered(offer(&["4"])));
            let actions = calm(self, Event::Downloaded);
            assert!(
                actions.iter().any(|a| matches!(a, Action::Stage(..))),
                "{} {:?}",
                show_phase(&self.engine),
                self.engine.last_error
            );
            return;
        }
        panic!(
            "this host never gets to rest: {:?} {} {:?} {:?}",
            self.slots, self.booted, self.saved.staging, self.log
        );
    }
}

#[test]
fn no_crash_makes_memory_and_disk_disagree() {
    let (mut states, mut crashes, mut failures) = (HashSet::new(), 0, 0);
    for walk in 1..=WALKS {
        let lived = std::panic::catch_unwind(|| {
            let mut world = World::new(walk);
            for _ in 0..STEPS {
                world.happen();
            }
            world.come_to_rest();
            world
        });
        let world = lived.unwrap_or_else(|_| panic!("see above: walk {walk}"));
        states.extend(world.seen);
        crashes += world.crashes;
        failures += world.failures;
    }
    println!("{crashes} power cuts, {} different states", states.len());
    assert!(crashes > 10_000 && failures > 100 && states.len() > 400);
}
