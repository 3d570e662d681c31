//! The decisions: `step(state, event, now) -> (state, actions)`.

use std::fmt;

use jiff::{SignedDuration, Zoned};

use crate::lock;
use crate::policy::{Policy, Rule};
use crate::window::{Opening, opening};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub policy: Policy,
    pub phase: Phase,
    /// Has a life of its own: giving a lock back may take longer than the reason to hold it.
    pub lock: lock::State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// No release waits.
    Idle,
    /// A release waits, and the policy forbids the reboot.
    Staying { version: String },
    /// A release waits for the window.
    Waiting { version: String, opens: Zoned },
    /// The window is open; others may hold the lock.
    Locking { version: String },
    /// systemd was asked to reboot. `again`: when to ask once more, should we still be alive.
    Rebooting { version: String, again: Zoned },
    /// systemd did not take the call. Whether there is to be a reboot is decided anew at this time.
    Retrying { version: String, at: Zoned },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The configuration was read (again).
    Policy(Policy),
    Needed {
        version: String,
    },
    NotNeeded,
    /// Time has passed.
    Tick,
    Lock(lock::Event),
    RebootFailed {
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Tell the operator, in the log and in the unit's status.
    Say(String),
    Complain(String),
    Lock(lock::Request),
    Reboot,
    /// Nothing is left to do: `locksmith.path` starts us again.
    Exit,
}

/// systemd takes the call and then stops the services; longer than this and something holds it up.
const REBOOT_PATIENCE: SignedDuration = SignedDuration::from_mins(10);
const REBOOT_RETRY: SignedDuration = SignedDuration::from_secs(30);

impl State {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            phase: Phase::Idle,
            lock: lock::State::Free,
        }
    }

    /// When time alone changes something.
    pub fn wake(&self) -> Option<&Zoned> {
        let phase = match &self.phase {
            Phase::Idle | Phase::Staying { .. } | Phase::Locking { .. } => None,
            Phase::Waiting { opens, .. } => Some(opens),
            Phase::Rebooting { again, .. } => Some(again),
            Phase::Retrying { at, .. } => Some(at),
        };
        phase.into_iter().chain(self.lock.wake()).min()
    }

    fn lock_step(&mut self, event: &lock::Event, now: &Zoned, actions: &mut Vec<Action>) {
        let (lock, request) = lock::step(self.lock.clone(), event, now);
        self.lock = lock;
        actions.extend(request.map(Action::Lock));
    }

    fn reboot(&mut self, version: String, now: &Zoned, actions: &mut Vec<Action>) {
        actions.push(Action::Say(format!("rebooting into {version} now")));
        actions.push(Action::Reboot);
        self.phase = Phase::Rebooting {
            version,
            again: now.saturating_add(REBOOT_PATIENCE),
        };
    }

    /// What the policy says about rebooting into `version` now. The same plan is not said twice.
    fn decide(&mut self, version: String, now: &Zoned, actions: &mut Vec<Action>) {
        let closed = self
            .policy
            .window
            .and_then(|window| match opening(window, now) {
                Opening::Open => None,
                Opening::ClosedUntil(opens) => Some(opens),
            });
        let (phase, plan) = match (&self.policy.rule, closed) {
            (Rule::Never { why }, _) => {
                let plan = format!("{version} is staged; not rebooting: {why}");
                (Phase::Staying { version }, plan)
            }
            (_, Some(opens)) => {
                let phase = Phase::Waiting { version, opens };
                let plan = phase.to_string();
                (phase, plan)
            }
            (Rule::Free, None) => return self.reboot(version, now, actions),
            // From before a reboot that failed.
            (Rule::LockIfAny, None) if matches!(self.lock, lock::State::Held { .. }) => {
                return self.reboot(version, now, actions);
            }
            (Rule::LockIfAny, None) => {
                self.phase = Phase::Locking { version };
                return self.lock_step(&lock::Event::Want, now, actions);
            }
        };
        self.lock_step(&lock::Event::Unwant, now, actions);
        if self.phase != phase {
            actions.push(Action::Say(plan));
        }
        self.phase = phase;
    }
}

impl Phase {
    pub fn version(&self) -> Option<&str> {
        match self {
            Self::Idle => None,
            Self::Staying { version }
            | Self::Waiting { version, .. }
            | Self::Locking { version, .. }
            | Self::Rebooting { version, .. }
            | Self::Retrying { version, .. } => Some(version),
        }
    }
}

pub fn step(mut state: State, event: Event, now: &Zoned) -> (State, Vec<Action>) {
    let mut actions = Vec::new();
    match event {
        Event::Lock(event) => lock_event(&mut state, &event, now, &mut actions),
        Event::Policy(policy) => {
            state.policy = policy;
            match state.phase.clone() {
                // It may forbid now what was tried.
                Phase::Retrying { version, .. } => state.decide(version, now, &mut actions),
                _ => phase_event(&mut state, Event::Tick, now, &mut actions),
            }
        }
        Event::Tick => {
            // The window first: there is no point in asking for a lock we may not use.
            phase_event(&mut state, Event::Tick, now, &mut actions);
            state.lock_step(&lock::Event::Tick, now, &mut actions);
        }
        event => phase_event(&mut state, event, now, &mut actions),
    }
    (state, actions)
}

fn phase_event(state: &mut State, event: Event, now: &Zoned, actions: &mut Vec<Action>) {
    match (&state.phase, event) {
        (Phase::Idle, Event::Needed { version }) => state.decide(version, now, actions),
        // A lock that is not given back yet keeps us here.
        (Phase::Idle, Event::NotNeeded) if state.lock == lock::State::Free => {
            actions.push(Action::Exit)
        }
        (Phase::Idle, Event::NotNeeded | Event::Tick) => {}

        (Phase::Rebooting { version, .. }, Event::RebootFailed { reason }) => {
            actions.push(Action::Complain(format!(
                "cannot reboot: {reason}; trying again in 30 s"
            )));
            state.phase = Phase::Retrying {
                version: version.clone(),
                at: now.saturating_add(REBOOT_RETRY),
            };
        }
        (Phase::Rebooting { version, again }, Event::Tick) if now >= again => {
            state.reboot(version.clone(), now, actions);
        }
        // The reboot cannot be turned back, so what is needed or allowed no longer matters.
        (Phase::Rebooting { .. }, Event::Tick | Event::Needed { .. } | Event::NotNeeded) => {}

        (Phase::Retrying { at, .. }, Event::Needed { version }) => {
            let at = at.clone();
            state.phase = Phase::Retrying { version, at };
        }
        (Phase::Retrying { at, .. }, Event::Tick) if now < at => {}

        (_, Event::NotNeeded) => {
            state.phase = Phase::Idle;
            actions.push(Action::Say(
                "no release waits any more: not rebooting".to_owned(),
            ));
            state.lock_step(&lock::Event::Unwant, now, actions);
            if state.lock == lock::State::Free {
                actions.push(Action::Exit);
            }
        }
        (phase, Event::Needed { version }) if phase.version() == Some(&version) => {}
        (_, Event::Needed { version }) => state.decide(version, now, actions),
        (phase, Event::Tick) => {
            if let Some(version) = phase.version().map(str::to_owned) {
                state.decide(version, now, actions);
            }
        }
        (phase, event) => {
            actions.push(Action::Complain(format!(
                "did not expect {event:?} while: {phase}; ignored"
            )));
        }
    }
}

fn lock_event(state: &mut State, event: &lock::Event, now: &Zoned, actions: &mut Vec<Action>) {
    if let (Phase::Locking { version }, Rule::LockIfAny, lock::Event::Unavailable) =
        (&state.phase, &state.policy.rule, event)
    {
        let version = version.clone();
        state.lock = lock::State::Free;
        actions.push(Action::Say(
            "no lock service: rebooting without a lock".to_owned(),
        ));
        return state.reboot(version, now, actions);
    }
    state.lock_step(event, now, actions);
    let Phase::Locking { version } = &state.phase else {
        return;
    };
    let version = version.clone();
    match (&state.lock, event) {
        (lock::State::Held { .. }, _) => state.reboot(version, now, actions),
        (_, lock::Event::Denied { holders }) => {
            let holders = holders.join(", ");
            actions.push(Action::Say(format!(
                "{version} is staged; waiting for the lock, held by {holders}"
            )));
        }
        _ => {}
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("no release waits for a reboot"),
            Self::Staying { version } => write!(f, "{version} is staged; not rebooting"),
            Self::Waiting { version, opens } => {
                write!(
                    f,
                    "will reboot into {version} at {}",
                    opens.strftime("%a %Y-%m-%d %H:%M %Z")
                )
            }
            Self::Locking { version, .. } => write!(f, "{version} is staged; waiting for the lock"),
            Self::Rebooting { version, .. } => write!(f, "rebooting into {version} now"),
            Self::Retrying { version, at } => {
                write!(
                    f,
                    "rebooting into {version} failed; tried again at {}",
                    at.strftime("%H:%M:%S %Z")
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
