//! The transitions. One arm per legal pair of phase and event, read from top to bottom.

use jiff::Timestamp;
use release::status::FailedRelease;
use release::{Sha256, Slot, Version};

use super::accept::accept;
use super::{Action, AfterStaging, Ask, Engine, Event, Offer, Phase, Problem, Trouble, Why};
use crate::memory::{ClosedWay, Code, Known, Report, Rollback, Staging};
use crate::way::Way;

pub fn step(mut engine: Engine, event: Event, now: Timestamp) -> (Engine, Vec<Action>) {
    let reports = engine.memory.reports.len();
    let told = matches!(event, Event::Told(Ok(_)));
    let mut actions = engine.apply(event, now);
    // After a failure to tell, the next check is the next occasion: not every second.
    let occasion = told
        || engine.memory.reports.len() > reports
        || actions.iter().any(|a| matches!(a, Action::Check(_)));
    if occasion {
        engine.tell(&mut actions);
    }
    (engine, actions)
}

impl Engine {
    fn apply(&mut self, event: Event, now: Timestamp) -> Vec<Action> {
        let phase = std::mem::replace(&mut self.phase, Phase::Starting);
        let (phase, actions) = match (phase, event) {
            (phase, Event::Found(found)) => self.found(phase, found, now),
            (phase, Event::Told(result)) => (phase, self.told(result)),
            (phase, Event::Looked) => {
                self.looks = self.looks.saturating_sub(1);
                (phase, Vec::new())
            }
            (phase, Event::ClearFailed) => {
                self.clear_failed();
                (phase, Vec::new())
            }

            (Phase::Starting, Event::NotGoodYet) => (Phase::Proving, Vec::new()),
            (Phase::Proving, Event::NotGoodYet) => (Phase::Proving, Vec::new()),
            (Phase::Proving, Event::Timer) => (Phase::Proving, vec![Action::LookForGood]),
            (Phase::Proving, Event::Good) => (
                Phase::Idle {
                    failures: 0,
                    first: true,
                },
                self.became_good(),
            ),

            (Phase::Idle { failures, .. }, Event::Timer) => {
                let ask = match self.host.volatile {
                    true => Ask::LOOK,
                    false => Ask::POLL,
                };
                self.check(ask, failures)
            }
            (Phase::Idle { failures, .. }, Event::Asked(ask)) => {
                let wanted = ask.is_to_write().then(|| self.no_longer_held()).flatten();
                let (phase, mut actions) = self.check(ask, failures);
                actions.extend(wanted);
                (phase, actions)
            }
            (Phase::Idle { first, .. }, Event::Reset) => {
                let phase = Phase::Idle { failures: 0, first };
                (phase, self.reset())
            }
            (Phase::Idle { failures, .. }, Event::AskedRollback) => {
                (Phase::RollingBack { failures }, vec![Action::RollBack])
            }

            (
                Phase::Checking {
                    ask,
                    failures,
                    again,
                    roll_back,
                },
                Event::Asked(more),
            ) => {
                let again = again | (more.force & !ask.force);
                let again = again | (more.from.is_some() & (more.from != ask.from));
                let again = again | (ask.apply & !more.apply);
                let again = again | (more.allow_expired & !ask.allow_expired);
                let allow_expired = ask.allow_expired | more.allow_expired;
                // What was allowed to somebody who only looks is installed for nobody.
                let installs = |ask: &Ask| ask.install & (ask.allow_expired | !allow_expired);
                let install = installs(&ask) | installs(&more);
                let ask = Ask {
                    install,
                    force: ask.force | more.force,
                    // Whoever wants more than a download gets it.
                    download_only: install & !ask.is_to_write() & !more.is_to_write(),
                    apply: ask.apply & more.apply,
                    from: more.from.or(ask.from),
                    allow_expired,
                };
                let phase = Phase::Checking {
                    ask,
                    failures,
                    again,
                    roll_back,
                };
                (phase, self.look_again())
            }
            (
                Phase::Checking {
                    ask,
                    failures,
                    again,
                    ..
                },
                Event::AskedRollback,
            ) => {
                let phase = Phase::Checking {
                    ask,
                    failures,
                    again,
                    roll_back: true,
                };
                (phase, Vec::new())
            }
            // Whatever is offered would be written over the release that is gone back to.
            (
                Phase::Checking {
                    failures,
                    roll_back: true,
                    ..
                },
                Event::NothingNew | Event::Offered(_) | Event::Trouble(_),
            ) => match self.admits_rollback() {
                Ok(()) => (Phase::RollingBack { failures }, vec![Action::RollBack]),
                Err(busy) => {
                    self.last_error = Some(Problem {
                        code: None,
                        message: busy.to_string(),
                    });
                    let first = false;
                    (Phase::Idle { failures, first }, Vec::new())
                }
            },
            (
                Phase::Checking {
                    ask,
                    failures,
                    again: true,
                    ..
                },
                Event::NothingNew | Event::Offered(_) | Event::Trouble(_),
            ) => self.check(ask, failures),
            (Phase::Checking { .. }, Event::NothingNew) => {
                self.checked(now, None);
                (idle(), Vec::new())
            }
            (Phase::Checking { ask, failures, .. }, Event::Offered(offer)) => {
                self.offered(offer, ask, failures, now)
            }

            (
                Phase::Downloading {
                    offer,
                    failures,
                    done,
                    mut ask,
                },
                Event::Asked(more),
            ) => {
                ask.download_only &= !more.is_to_write();
                let phase = Phase::Downloading {
                    offer,
                    failures,
                    done,
                    ask,
                };
                (phase, self.look_again())
            }
            // Who asks meanwhile gets this update's outcome.
            (phase @ Phase::Writing { .. }, Event::Asked(_)) => (phase, self.look_again()),
            (
                Phase::Downloading {
                    offer,
                    failures,
                    ask,
                    ..
                },
                Event::Progress(done),
            ) => (
                Phase::Downloading {
                    offer,
                    failures,
                    done,
                    ask,
                },
                Vec::new(),
            ),
            (
                Phase::Downloading {
                    offer,
                    failures,
                    ask,
                    ..
                },
                Event::Downloaded,
            ) => self.downloaded(offer, failures, ask),

            (
                Phase::Writing {
                    offer,
                    failures,
                    ask,
                    ..
                },
                Event::Progress(done),
            ) => (
                Phase::Writing {
                    offer,
                    failures,
                    done,
                    ask,
                },
                Vec::new(),
            ),
            (
                Phase::Downloading {
                    offer,
                    failures,
                    ask,
                    ..
                },
                Event::WayClosed(trouble),
            ) => self.next_way(offer, failures, ask, trouble, now),
            (
                Phase::Writing {
                    offer,
                    failures,
                    ask,
                    ..
                },
                Event::WayClosed(trouble),
            ) => {
                self.memory.remember_closed(ClosedWay {
                    id: offer.manifest.id(),
                    from: self.host.root_hash,
                    way: offer.way().name(),
                });
                let (phase, actions) = self.next_way(offer, failures, ask, trouble, now);
                (phase, self.ask_the_disk(actions))
            }
            (Phase::Writing { offer, .. }, Event::Staged(slot)) => {
                (idle(), self.staged_in(&offer, slot))
            }

            (Phase::RollingBack { .. }, Event::RolledBack { slot, version }) => {
                (idle(), self.rolled_back(slot, version, now))
            }

            (
                Phase::Checking { failures, .. } | Phase::Downloading { failures, .. },
                Event::Trouble(trouble),
            ) => self.trouble(trouble, failures, now),
            (Phase::Writing { failures, .. }, Event::Trouble(trouble)) => {
                let (phase, actions) = self.trouble(trouble, failures, now);
                (phase, self.ask_the_disk(actions))
            }
            (Phase::RollingBack { failures }, Event::Trouble(trouble)) => {
                // The operator hears of it; it says nothing about the next check.
                self.last_error = Some(trouble.into());
                (
                    Phase::Idle {
                        failures,
                        first: false,
                    },
                    vec![Action::ReadSlots],
                )
            }

            // Of a release that was written already; see `reconcile`.
            (phase, Event::RolledBack { .. }) => (phase, vec![Action::ReadSlots]),
            (phase @ (Phase::Idle { .. } | Phase::Proving), Event::Trouble(trouble)) => {
                tracing::warn!("{}", trouble.message);
                self.last_error = Some(trouble.into());
                (phase, Vec::new())
            }

            // A late answer of a worker, or a request that `admits` would have refused.
            (phase, event) => {
                tracing::warn!("{event:?} means nothing in {phase:?}; ignored");
                (phase, Vec::new())
            }
        };
        self.phase = phase;
        actions
    }

    fn found(
        &mut self,
        phase: Phase,
        found: Result<Vec<release::status::SlotStatus>, String>,
        now: Timestamp,
    ) -> (Phase, Vec<Action>) {
        let mut actions = Vec::new();
        match found {
            Ok(slots) => {
                self.slots = slots;
                self.name_the_slots();
                self.slots_problem = None;
                if !self.reconciled {
                    actions = self.reconcile(now);
                }
            }
            Err(reason) => {
                tracing::warn!("the slots are unknown: {reason}");
                self.slots_problem = Some(reason);
            }
        }
        match phase {
            Phase::Starting => {
                actions.push(Action::LookForGood);
                (Phase::Proving, actions)
            }
            phase => (phase, actions),
        }
    }

    /// The writer sees root hashes only; which versions they are is remembered here.
    fn name_the_slots(&mut self) {
        for slot in &mut self.slots {
            let Some(root_hash) = slot.root_hash else {
                continue;
            };
            slot.version = match Some(root_hash) == self.host.root_hash {
                true => Some(self.host.version.clone()),
                false => self.memory.known(root_hash).map(|k| k.version.clone()),
            };
        }
    }

    fn became_good(&mut self) -> Vec<Action> {
        self.good = true;
        self.remember_what_runs();
        self.memory.epoch = self.epoch();
        let version = self.host.version.clone();
        let arrived = self
            .memory
            .staging
            .take_if(|s| Some(s.root_hash) == self.host.root_hash);
        if let Some(staging) = arrived {
            self.memory.epoch = self.memory.epoch.max(staging.epoch);
            self.memory.report(Report::Running {
                version: version.clone(),
                previous: Some(staging.from),
            });
        } else if self.memory.good.is_none() {
            self.memory.report(Report::Running {
                version: version.clone(),
                previous: None,
            });
        }
        self.memory.good = Some(version.clone());
        // Should it rot later, that is news again.
        self.memory
            .excused
            .take_if(|hash| Some(*hash) == self.host.root_hash);
        if let Some(root_hash) = self
            .host
            .root_hash
            .filter(|h| self.memory.known(*h).is_none())
        {
            self.memory.remember_release(Known {
                version,
                id: None,
                root_hash,
            });
        }
        // A download that a reboot or a crash cut off goes on where it was.
        let keep = self.memory.announced;
        let mut actions = vec![Action::Clean { keep }];
        if !self.reconciled {
            actions.push(Action::ReadSlots);
        }
        actions
    }

    fn check(&mut self, ask: Ask, failures: u32) -> (Phase, Vec<Action>) {
        self.available = None;
        let mut actions = Vec::new();
        if !self.reconciled {
            actions.push(Action::ReadSlots);
        }
        actions.push(match self.memory.downloaded.filter(|_| ask.apply) {
            Some(id) => Action::Reopen(id, ask.allow_expired),
            None => Action::Check(ask.clone()),
        });
        let phase = Phase::Checking {
            ask,
            failures,
            again: false,
            roll_back: false,
        };
        (phase, actions)
    }

    /// What is wanted may have changed since the check that is joined looked.
    fn look_again(&mut self) -> Vec<Action> {
        self.looks += 1;
        vec![Action::LookForExtensions]
    }

    fn clear_failed(&mut self) {
        self.memory.failed.clear();
        self.memory.closed.clear();
        self.memory.complained = None;
        self.last_error = None;
        // Its entry stays exhausted until it is written again, which must not fail it again.
        let exhausted = self.other_slot().filter(|s| s.tries_left == Some(0));
        if let Some(slot) = exhausted {
            self.memory.excused = slot.root_hash;
        }
        // Also with an empty list: the server's may be longer.
        self.memory.report(Report::FailuresCleared);
    }

    /// Back to waiting for the next check: no reboot is asked for, no error shown.
    fn reset(&mut self) -> Vec<Action> {
        self.last_error = None;
        match &mut self.memory.staging {
            Some(staging) => staging.held = true,
            None => return Vec::new(),
        }
        vec![Action::WithdrawReboot]
    }

    fn no_longer_held(&mut self) -> Option<Action> {
        let staging = self.memory.staging.as_mut().filter(|s| s.held)?;
        staging.held = false;
        Some(Action::AskReboot {
            version: staging.version.clone(),
            reason: Why::Update,
        })
    }

    fn checked(&mut self, now: Timestamp, error: Option<Problem>) {
        self.memory.last_check = Some(now);
        self.last_error = error;
    }

    fn offered(
        &mut self,
        mut offer: Box<Offer>,
        ask: Ask,
        failures: u32,
        now: Timestamp,
    ) -> (Phase, Vec<Action>) {
        let version = offer.manifest.version.clone();
        match accept(self, &offer, &ask) {
            Err(refusal) if refusal.is_nothing_new() => {
                self.checked(now, None);
                (idle(), Vec::new())
            }
            Err(refusal) => {
                tracing::warn!("{refusal}");
                let (code, message) = (refusal.code(), refusal.to_string());
                if let Some(code) = code {
                    let id = Some(offer.manifest.id());
                    self.complain(code, version, id, message.clone());
                }
                self.checked(now, Some(Problem { code, message }));
                (idle(), Vec::new())
            }
            Ok(()) if !ask.install => {
                self.checked(now, None);
                self.available = Some(version);
                (idle(), Vec::new())
            }
            Ok(()) => {
                self.checked(now, None);
                let closed = self.drop_closed_ways(&mut offer);
                tracing::info!(
                    "downloading version {version}: {} ({} bytes)",
                    offer.way(),
                    offer.download_size()
                );
                let id = Some(offer.manifest.id());
                self.memory.downloaded.take_if(|old| Some(*old) != id);
                if std::mem::replace(&mut self.memory.announced, id) != id {
                    self.memory.report(Report::DownloadStarted { version });
                }
                let mut actions = vec![Action::Clean {
                    keep: Some(offer.manifest.id()),
                }];
                let closed = closed.into_iter();
                actions.extend(closed.map(|way| Action::Discard(offer.clone(), way)));
                actions.push(Action::Download(offer.clone()));
                (
                    Phase::Downloading {
                        offer,
                        failures,
                        done: 0,
                        ask,
                    },
                    actions,
                )
            }
        }
    }

    /// One is left in any case: the last is the one that depends on nothing that is here.
    fn drop_closed_ways(&self, offer: &mut Offer) -> Vec<Way> {
        let id = offer.manifest.id();
        let is_closed = |way: &Way| {
            self.memory.closed.contains(&ClosedWay {
                id,
                from: self.host.root_hash,
                way: way.name(),
            })
        };
        let mut closed = Vec::new();
        while offer.ways.len() > 1 && offer.ways.first().is_some_and(is_closed) {
            closed.push(offer.ways.remove(0));
        }
        closed
    }

    /// A delta that does not fit costs a larger download, not the update.
    fn next_way(
        &mut self,
        mut offer: Box<Offer>,
        failures: u32,
        ask: Ask,
        trouble: Trouble,
        now: Timestamp,
    ) -> (Phase, Vec<Action>) {
        if offer.ways.len() < 2 {
            return self.trouble(trouble, failures, now);
        }
        tracing::warn!("{}", trouble.message);
        let closed = offer.ways.remove(0);
        tracing::info!("trying {} ({} bytes)", offer.way(), offer.download_size());
        // Both at once may be more than there is room for.
        let actions = vec![
            Action::Discard(offer.clone(), closed),
            Action::Download(offer.clone()),
        ];
        let phase = Phase::Downloading {
            offer,
            failures,
            done: 0,
            ask,
        };
        (phase, actions)
    }

    fn downloaded(&mut self, offer: Box<Offer>, failures: u32, ask: Ask) -> (Phase, Vec<Action>) {
        let manifest = &offer.manifest;
        if ask.download_only {
            tracing::info!("version {} is here, and not written yet", manifest.version);
            self.last_error = None;
            self.available = Some(manifest.version.clone());
            self.memory.downloaded = Some(manifest.id());
            return (idle(), Vec::new());
        }
        let Some(slot) = self.other_slot().map(|s| s.slot) else {
            let message = format!(
                "version {} cannot be written: the slots are gone",
                manifest.version
            );
            let trouble = Trouble {
                code: Code::Write,
                message,
                version: Some(manifest.version.clone()),
                release: Some(manifest.id()),
            };
            return self.failed(trouble, failures);
        };
        self.memory.report(Report::Downloaded {
            version: manifest.version.clone(),
        });
        self.memory.remember_release(Known {
            version: manifest.version.clone(),
            id: Some(manifest.id()),
            root_hash: manifest.usr.root_hash,
        });
        // Until a writer begins, what was staged before is there.
        let before = self.memory.staging.take();
        let over = before.and_then(|mut s| {
            let over = s.over.take();
            match s.committed {
                true => Some(Box::new(s)),
                false => over,
            }
        });
        self.memory.staging = Some(Staging {
            version: manifest.version.clone(),
            id: manifest.id(),
            root_hash: manifest.usr.root_hash,
            epoch: manifest.epoch,
            kernel: manifest.kernel,
            slot,
            from: self.host.version.clone(),
            boot_id: self.host.boot_id.clone(),
            committed: false,
            held: false,
            over,
        });
        let after = match manifest.version > self.host.version {
            true => AfterStaging::Nothing,
            false => {
                // It is left because it was asked for, not because it failed.
                self.memory.excused = self.host.root_hash;
                AfterStaging::ExhaustRunning
            }
        };
        tracing::info!("writing version {} to slot {slot}", manifest.version);
        // A release that was staged before is overwritten now: rebooting would not bring it.
        let actions = vec![Action::WithdrawReboot, Action::Stage(offer.clone(), after)];
        (
            Phase::Writing {
                offer,
                failures,
                done: 0,
                ask,
            },
            actions,
        )
    }

    fn staged_in(&mut self, offer: &Offer, slot: Slot) -> Vec<Action> {
        let version = offer.manifest.version.clone();
        tracing::info!("version {version} is staged in slot {slot} and waits for a reboot");
        if let Some(staging) = &mut self.memory.staging {
            staging.slot = slot;
            staging.committed = true;
            staging.over = None;
        }
        self.last_error = None;
        self.available = None;
        self.memory.downloaded = None;
        // Forced back in by the operator: it gets a new chance.
        let id = offer.manifest.id();
        self.memory.failed.retain(|f| f.id != Some(id));
        self.memory.report(Report::Staged {
            version: version.clone(),
        });
        vec![
            Action::ReadSlots,
            Action::AskReboot {
                version,
                reason: Why::Update,
            },
            Action::Clean { keep: None },
        ]
    }

    fn rolled_back(&mut self, slot: Slot, version: Option<Version>, now: Timestamp) -> Vec<Action> {
        let from = self.host.version.clone();
        let to = version
            .or_else(|| self.other_slot()?.version.clone())
            .unwrap_or_else(|| from.clone());
        tracing::info!("the next boot goes back from version {from} to {to} in slot {slot}");
        let reason = format!("rolled back by the operator to version {to}");
        let id = self
            .host
            .root_hash
            .and_then(|hash| self.memory.known(hash))
            .and_then(|k| k.id);
        self.memory.remember_failure(FailedRelease {
            version: from.clone(),
            id,
            reason: reason.clone(),
            at: now,
        });
        self.memory.rollback = Some(Rollback {
            to: to.clone(),
            boot_id: self.host.boot_id.clone(),
        });
        self.memory.report(Report::Failed {
            version: from,
            release: id,
            code: Code::RolledBack,
            reason,
        });
        self.last_error = None;
        vec![
            Action::ReadSlots,
            Action::AskReboot {
                version: to,
                reason: Why::Rollback,
            },
        ]
    }

    /// What was staged before is there still, unless the writer had begun. It may also have died right
    /// after its last write: only the disk knows.
    fn ask_the_disk(&mut self, mut actions: Vec<Action>) -> Vec<Action> {
        self.reconciled = false;
        if !actions.contains(&Action::ReadSlots) {
            actions.insert(0, Action::ReadSlots);
        }
        actions
    }

    fn trouble(&mut self, trouble: Trouble, failures: u32, now: Timestamp) -> (Phase, Vec<Action>) {
        self.memory.last_check = Some(now);
        self.failed(trouble, failures)
    }

    fn failed(&mut self, trouble: Trouble, failures: u32) -> (Phase, Vec<Action>) {
        tracing::warn!("{}", trouble.message);
        self.last_error = Some(trouble.clone().into());
        let code = trouble.code;
        if let Some(version) = trouble.version {
            self.complain(code, version, trouble.release, trouble.message);
        }
        let actions = match code {
            Code::Write => self.ask_the_disk(Vec::new()),
            _ => Vec::new(),
        };
        (
            Phase::Idle {
                failures: failures + 1,
                first: false,
            },
            actions,
        )
    }

    /// The first time in a row is news, the following are not.
    fn complain(&mut self, code: Code, version: Version, release: Option<Sha256>, reason: String) {
        let complaint = Some((version.clone(), code));
        if std::mem::replace(&mut self.memory.complained, complaint.clone()) != complaint {
            self.memory.report(Report::Failed {
                version,
                release,
                code,
                reason,
            });
        }
    }

    /// One batch of reports at a time; whatever comes meanwhile goes with the next.
    fn tell(&mut self, actions: &mut Vec<Action>) {
        if !self.telling && !self.memory.reports.is_empty() && self.settings.server.is_some() {
            self.telling = true;
            // Ahead of a check or a download, which may take long.
            actions.insert(0, Action::Tell(self.memory.reports.clone()));
        }
    }

    fn told(&mut self, result: Result<usize, String>) -> Vec<Action> {
        self.telling = false;
        match result {
            Ok(count) => drop(
                self.memory
                    .reports
                    .drain(..count.min(self.memory.reports.len())),
            ),
            Err(reason) => tracing::info!("the server was not told, later again: {reason}"),
        }
        Vec::new()
    }
}

fn idle() -> Phase {
    Phase::Idle {
        failures: 0,
        first: false,
    }
}
