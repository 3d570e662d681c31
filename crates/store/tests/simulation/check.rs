//! What clients saw, and whether that is possible.
//!
//! Every answer names a revision, and revisions say in which order things happened. So a history is linearizable if
//! that order agrees with the clock (what was answered before something else was asked comes first), and if every answer
//! is what the keys held at its revision.

use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Did {
    /// At its revision, this key got this value (`None`: was deleted).
    Wrote {
        key: u8,
        value: Option<u64>,
        revision: i64,
    },
    /// Was refused by a comparison or changed nothing; seen at that revision.
    Nothing { revision: i64 },
    Read {
        key: u8,
        value: Option<u64>,
        revision: i64,
    },
}

impl Did {
    fn revision(&self) -> i64 {
        match self {
            Self::Wrote { revision, .. }
            | Self::Nothing { revision }
            | Self::Read { revision, .. } => *revision,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Answered {
    pub(crate) asked: Duration,
    pub(crate) answered: Duration,
    pub(crate) did: Did,
}

/// What happened at each revision, as the members agree after all: key and value.
pub(crate) type Truth = BTreeMap<i64, (u8, Option<u64>)>;

pub(crate) fn linearizable(history: &[Answered], truth: &Truth) -> Result<(), String> {
    for answer in history {
        match &answer.did {
            Did::Wrote {
                key,
                value,
                revision,
            } => {
                if truth.get(revision) != Some(&(*key, *value)) {
                    return Err(format!(
                        "an acknowledged write is lost: {answer:?}, there is {:?}",
                        truth.get(revision)
                    ));
                }
            }
            Did::Read {
                key,
                value,
                revision,
            } => {
                let held = truth
                    .range(..=revision)
                    .rev()
                    .find(|(_, (k, _))| k == key)
                    .and_then(|(_, (_, value))| *value);
                if held != *value {
                    return Err(format!(
                        "a read saw what was never there: {answer:?}, there was {held:?}"
                    ));
                }
            }
            Did::Nothing { .. } => {}
        }
    }
    // The newest revision that was known to somebody before each moment.
    let mut by_answer: Vec<&Answered> = history.iter().collect();
    by_answer.sort_by_key(|a| a.answered);
    let mut by_question: Vec<&Answered> = history.iter().collect();
    by_question.sort_by_key(|a| a.asked);
    let mut known = by_answer.into_iter().peekable();
    let mut newest = 0;
    for answer in by_question {
        while let Some(earlier) = known.next_if(|a| a.answered < answer.asked) {
            newest = newest.max(earlier.did.revision());
        }
        let revision = answer.did.revision();
        let late = match answer.did {
            Did::Wrote { .. } => revision <= newest,
            Did::Nothing { .. } | Did::Read { .. } => revision < newest,
        };
        if late {
            return Err(format!(
                "stale: {answer:?} was asked when revision {newest} had been answered"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(asked: u64, answered: u64, did: Did) -> Answered {
        Answered {
            asked: Duration::from_millis(asked),
            answered: Duration::from_millis(answered),
            did,
        }
    }

    #[test]
    fn tells_the_possible_from_the_impossible() {
        let truth = Truth::from([(2, (0, Some(1))), (3, (0, Some(2)))]);
        let wrote = |value, revision| Did::Wrote {
            key: 0,
            value: Some(value),
            revision,
        };
        let read = |value, revision| Did::Read {
            key: 0,
            value,
            revision,
        };
        let cases = [
            (
                vec![at(0, 10, wrote(1, 2)), at(11, 20, read(Some(1), 2))],
                true,
            ),
            // At the same time, either order is possible.
            (vec![at(0, 10, wrote(1, 2)), at(5, 20, read(None, 1))], true),
            (
                vec![at(0, 10, wrote(1, 2)), at(11, 20, read(None, 1))],
                false,
            ),
            (vec![at(0, 10, wrote(7, 2))], false),
            (vec![at(0, 10, read(Some(2), 2))], false),
            (vec![at(0, 10, wrote(2, 3)), at(11, 20, wrote(1, 2))], false),
        ];
        for (history, possible) in cases {
            assert_eq!(
                linearizable(&history, &truth).is_ok(),
                possible,
                "{history:?}"
            );
        }
    }
}
