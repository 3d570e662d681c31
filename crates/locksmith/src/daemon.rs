//! The driver: waits for signals and for time, feeds the machine, carries out its actions.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use host::conf::RebootType;
use host::signals::{SIGHUP, SIGINT, SIGTERM, Signals};
use host::systemd::Systemd;
use jiff::Zoned;

use crate::lock::{self, Lock};
use crate::machine::{Action, Event, State, step};
use crate::needed;
use crate::policy::Policy;
use crate::status::rule_name;

/// How often to look whether the release still waits, and whether the clock was set.
const LOOK: Duration = Duration::from_secs(5);

pub fn run(root: &Path) -> Result<()> {
    let mut signals =
        Signals::watch(&[SIGTERM, SIGINT, SIGHUP]).context("cannot watch for signals")?;
    let mut state = State::new(read_policy(root));
    let reboot = || match root == Path::new("/") {
        true => {
            let systemd = Systemd::connect()?;
            match Policy::reboot_type(root) {
                RebootType::Hard => systemd.reboot()?,
                RebootType::Auto => systemd.soft_reboot()?,
            }
            Ok(())
        }
        // The files of some other system say nothing about this machine.
        false => anyhow::bail!("{} is not the running system", root.display()),
    };
    let mut world = World {
        lock: None,
        reboot: &reboot,
    };
    if let Err(error) = host::notify::ready("started") {
        tracing::warn!("cannot tell the service manager that we are ready: {error}");
    }
    loop {
        let now = Zoned::now();
        // Cheap, and whoever changes a file need not know that we run just now.
        if Policy::read(root).0 != state.policy {
            let changed = Event::Policy(read_policy(root));
            match drive(state, changed, &now, &mut world) {
                Some(next) => state = next,
                None => return Ok(()),
            }
        }
        let event = match needed::read(root) {
            Some(version) => Event::Needed { version },
            None => Event::NotNeeded,
        };
        for event in [event, Event::Tick] {
            match drive(state, event, &now, &mut world) {
                Some(next) => state = next,
                None => return Ok(()),
            }
        }
        match signals
            .wait(pause(&state, &Zoned::now()))
            .context("cannot wait for signals")?
        {
            None => {}
            Some(SIGHUP) => match drive(
                state,
                Event::Policy(read_policy(root)),
                &Zoned::now(),
                &mut world,
            ) {
                Some(next) => state = next,
                None => return Ok(()),
            },
            Some(_) => return Ok(()),
        }
    }
}

fn read_policy(root: &Path) -> Policy {
    let (policy, conf) = Policy::read(root);
    for warning in conf.iter().flat_map(|conf| &conf.warnings) {
        tracing::warn!("{warning}");
    }
    if let Some(problem) = policy.problem(conf.map(|conf| conf.reboot_strategy)) {
        tracing::error!("{problem}");
    }
    let window = policy
        .window
        .map_or("any time".to_owned(), |window| window.to_string());
    tracing::info!("strategy {}, window: {window}", rule_name(&policy.rule));
    policy
}

fn pause(state: &State, now: &Zoned) -> Duration {
    match state.wake() {
        Some(at) => Duration::try_from(at.duration_since(now))
            .unwrap_or_default()
            .clamp(Duration::from_millis(10), LOOK),
        None => LOOK,
    }
}

/// What the actions act on.
struct World<'a> {
    /// The fleet's lock; none in this release.
    lock: Option<Box<dyn Lock>>,
    reboot: &'a dyn Fn() -> Result<()>,
}

/// Feeds `event` and everything that follows from it. `None`: time to exit.
fn drive(mut state: State, event: Event, now: &Zoned, world: &mut World<'_>) -> Option<State> {
    let mut events = VecDeque::from([event]);
    while let Some(event) = events.pop_front() {
        let (next, actions) = step(state, event, now);
        state = next;
        for action in actions {
            match action {
                Action::Say(text) => {
                    tracing::info!("{text}");
                    if let Err(error) = host::notify::status(&text) {
                        tracing::debug!("cannot set the status of the unit: {error}");
                    }
                }
                Action::Complain(text) => tracing::error!("{text}"),
                Action::Lock(request) => {
                    let answer = match &mut world.lock {
                        Some(lock) => lock.request(&request),
                        None => lock::Event::Unavailable,
                    };
                    events.push_back(Event::Lock(answer));
                }
                Action::Reboot => {
                    if let Err(error) = (world.reboot)() {
                        events.push_back(Event::RebootFailed {
                            reason: format!("{error:#}"),
                        });
                    }
                }
                Action::Exit => return None,
            }
        }
    }
    Some(state)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::machine::Phase;
    use crate::policy::Rule;

    /// Grants or denies, and remembers what was asked.
    struct FakeLock(Vec<lock::Event>);

    impl Lock for FakeLock {
        fn request(&mut self, _: &lock::Request) -> lock::Event {
            self.0.remove(0)
        }
    }

    fn go(rule: Rule, lock: Option<Box<dyn Lock>>, fail: bool) -> (Phase, u32) {
        let reboots = Cell::new(0);
        let reboot = || {
            reboots.set(reboots.get() + 1);
            if fail {
                anyhow::bail!("no bus")
            }
            Ok(())
        };
        let mut world = World {
            lock,
            reboot: &reboot,
        };
        let now: Zoned = "2026-11-23T10:00:00[UTC]".parse().unwrap();
        let state = State::new(Policy { rule, window: None });
        let state = drive(
            state,
            Event::Needed {
                version: "2".into(),
            },
            &now,
            &mut world,
        )
        .unwrap();
        (state.phase, reboots.get())
    }

    #[test]
    fn best_effort_reboots_without_a_service_and_respects_one() {
        let (phase, reboots) = go(Rule::LockIfAny, None, false);
        assert!(
            matches!(phase, Phase::Rebooting { .. }) && reboots == 1,
            "{phase:?}"
        );
        let lock = FakeLock(vec![lock::Event::Denied {
            holders: vec!["other".into()],
        }]);
        let (phase, reboots) = go(Rule::LockIfAny, Some(Box::new(lock)), false);
        assert!(
            matches!(phase, Phase::Locking { .. }) && reboots == 0,
            "{phase:?}"
        );
        let lock = FakeLock(vec![lock::Event::Granted { revision: 1 }]);
        let (phase, reboots) = go(Rule::LockIfAny, Some(Box::new(lock)), false);
        assert!(
            matches!(phase, Phase::Rebooting { .. }) && reboots == 1,
            "{phase:?}"
        );
    }

    #[test]
    fn a_reboot_that_fails_is_planned_again() {
        let (phase, reboots) = go(Rule::Free, None, true);
        let Phase::Retrying { at, .. } = phase else {
            panic!("{phase:?}")
        };
        assert_eq!((at.second(), reboots), (30, 1));
    }
}
