//! The fleet's lock: at most so many hosts of a group reboot at a time.
//!
//! A host takes the lock, keeps it over the reboot, and gives it back once it is healthy again. The
//! rules are here and pure; what talks to the lock service implements [`Lock`]. This release has no
//! lock service, so the daemon answers every request with [`Event::Unavailable`].

use jiff::{SignedDuration, Zoned};

/// A lock service. Requests are answered in time or with [`Event::Unavailable`].
pub trait Lock {
    fn request(&mut self, request: &Request) -> Event;
}

/// What to ask of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Acquire,
    Release { revision: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// We want to reboot.
    Want,
    /// We no longer want to.
    Unwant,
    Tick,
    /// The revision fences: whoever holds an older one has lost the lock without knowing.
    Granted {
        revision: u64,
    },
    /// Enough others reboot now.
    Denied {
        holders: Vec<String>,
    },
    Released,
    /// There is no service, or it does not answer.
    Unavailable,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Free,
    Acquiring { tries: u32 },
    Waiting { tries: u32, retry: Zoned },
    Held { revision: u64 },
    Releasing { revision: u64 },
}

impl State {
    pub fn wake(&self) -> Option<&Zoned> {
        match self {
            Self::Waiting { retry, .. } => Some(retry),
            _ => None,
        }
    }
}

/// One step. A pair that makes no sense, such as a grant we did not ask for, changes nothing,
/// except that a lock we do not want is given back.
pub fn step(state: State, event: &Event, now: &Zoned) -> (State, Option<Request>) {
    use State::{Acquiring, Free, Held, Releasing, Waiting};
    match (state, event) {
        (Free, Event::Want) => (Acquiring { tries: 1 }, Some(Request::Acquire)),
        (Acquiring { .. }, Event::Granted { revision }) => (
            Held {
                revision: *revision,
            },
            None,
        ),
        (Acquiring { tries }, Event::Denied { .. } | Event::Unavailable) => (
            Waiting {
                tries,
                retry: now.saturating_add(delay(tries)),
            },
            None,
        ),
        (Waiting { tries, retry }, Event::Tick) if *now >= retry => {
            (Acquiring { tries: tries + 1 }, Some(Request::Acquire))
        }
        (Acquiring { .. } | Waiting { .. }, Event::Unwant) => (Free, None),
        (Held { revision }, Event::Unwant) => {
            (Releasing { revision }, Some(Request::Release { revision }))
        }
        (Free, Event::Granted { revision }) => (
            Releasing {
                revision: *revision,
            },
            Some(Request::Release {
                revision: *revision,
            }),
        ),
        (Releasing { .. }, Event::Released) => (Free, None),
        // It must not stay taken for ever: others wait for it.
        (Releasing { revision }, Event::Tick) => {
            (Releasing { revision }, Some(Request::Release { revision }))
        }
        (state, _) => (state, None),
    }
}

/// Others hold the lock for about as long as a reboot takes.
fn delay(tries: u32) -> SignedDuration {
    SignedDuration::from_secs(5 << tries.saturating_sub(1).min(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_asked_for_waited_for_held_and_given_back() {
        let mut now: Zoned = "2026-11-23T10:00:00[UTC]".parse().unwrap();
        let mut state = State::Free;
        let mut go = |seconds: i64, event: Event| {
            now = now.saturating_add(SignedDuration::from_secs(seconds));
            let (next, request) = step(state.clone(), &event, &now);
            state = next;
            (state.clone(), request)
        };
        let denied = || Event::Denied {
            holders: vec!["a".into()],
        };
        assert_eq!(
            go(0, Event::Want),
            (State::Acquiring { tries: 1 }, Some(Request::Acquire))
        );
        assert!(matches!(
            go(0, denied()),
            (State::Waiting { tries: 1, .. }, None)
        ));
        assert!(matches!(go(4, Event::Tick), (State::Waiting { .. }, None)));
        assert_eq!(
            go(1, Event::Tick),
            (State::Acquiring { tries: 2 }, Some(Request::Acquire))
        );
        assert!(matches!(
            go(0, Event::Unavailable),
            (State::Waiting { tries: 2, .. }, None)
        ));
        assert_eq!(
            go(10, Event::Tick),
            (State::Acquiring { tries: 3 }, Some(Request::Acquire))
        );
        assert_eq!(
            go(0, Event::Granted { revision: 7 }),
            (State::Held { revision: 7 }, None)
        );
        assert_eq!(go(0, Event::Want), (State::Held { revision: 7 }, None));
        assert_eq!(
            go(0, Event::Unwant),
            (
                State::Releasing { revision: 7 },
                Some(Request::Release { revision: 7 })
            )
        );
        assert_eq!(
            go(5, Event::Tick),
            (
                State::Releasing { revision: 7 },
                Some(Request::Release { revision: 7 })
            )
        );
        assert_eq!(go(0, Event::Released), (State::Free, None));
    }

    #[test]
    fn a_grant_that_comes_too_late_is_given_back() {
        let now: Zoned = "2026-11-23T10:00:00[UTC]".parse().unwrap();
        let (state, _) = step(State::Acquiring { tries: 1 }, &Event::Unwant, &now);
        assert_eq!(state, State::Free);
        let (_, request) = step(state, &Event::Granted { revision: 9 }, &now);
        assert_eq!(request, Some(Request::Release { revision: 9 }));
    }

    #[test]
    fn waiting_grows_up_to_80_seconds() {
        let delays: Vec<_> = (1..=8).map(|tries| delay(tries).as_secs()).collect();
        assert_eq!(delays, [5, 10, 20, 40, 80, 80, 80, 80]);
    }
}
