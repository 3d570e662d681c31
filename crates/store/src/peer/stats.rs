//! How long followers take to answer: `/v2/stats/leader`.

use std::collections::HashMap;
use std::time::Duration;

use crate::v2::{Counts, FollowerStats, Latency};

/// One follower, as the leader sees it.
#[derive(Debug, Default)]
struct Follower {
    /// The append that is being timed: its last index, and when it went out. Later ones ride on it.
    asked: Option<(u64, Duration)>,
    success: u64,
    fail: u64,
    current: f64,
    minimum: f64,
    maximum: f64,
    sum: f64,
    squares: f64,
}

/// All followers, by their identity.
#[derive(Debug, Default)]
pub(crate) struct Followers(HashMap<u64, Follower>);

impl Followers {
    /// Entries up to `index` go out.
    pub(crate) fn sent(&mut self, to: u64, index: u64, now: Duration) {
        let follower = self.0.entry(to).or_default();
        follower.asked.get_or_insert((index, now));
    }

    /// The follower has everything up to `index`.
    pub(crate) fn answered(&mut self, from: u64, index: u64, now: Duration) {
        let Some(follower) = self.0.get_mut(&from) else {
            return;
        };
        let Some((_, since)) = follower.asked.take_if(|(asked, _)| *asked <= index) else {
            return;
        };
        let took = now.saturating_sub(since).as_secs_f64() * 1000.0;
        if follower.success == 0 || took < follower.minimum {
            follower.minimum = took;
        }
        follower.success += 1;
        follower.current = took;
        follower.maximum = follower.maximum.max(took);
        follower.sum += took;
        follower.squares += took * took;
    }

    /// The follower cannot be reached; what was on its way is not timed any more.
    pub(crate) fn failed(&mut self, to: u64) {
        let follower = self.0.entry(to).or_default();
        follower.asked = None;
        follower.fail += 1;
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a count of answers for an average"
    )]
    pub(crate) fn of(&self, id: u64) -> FollowerStats {
        let Some(follower) = self.0.get(&id) else {
            return FollowerStats::default();
        };
        let count = follower.success.max(1) as f64;
        let average = follower.sum / count;
        FollowerStats {
            latency: Latency {
                current: follower.current,
                average,
                standard_deviation: (follower.squares / count - average * average)
                    .max(0.0)
                    .sqrt(),
                minimum: follower.minimum,
                maximum: follower.maximum,
            },
            counts: Counts {
                fail: follower.fail,
                success: follower.success,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_append_is_timed_and_failures_are_counted() {
        let at = Duration::from_millis;
        let mut followers = Followers::default();
        followers.sent(2, 10, at(0));
        followers.sent(2, 11, at(1));
        followers.answered(2, 9, at(2));
        followers.answered(2, 11, at(4));
        followers.sent(2, 12, at(10));
        followers.answered(2, 12, at(12));
        followers.sent(2, 13, at(20));
        followers.failed(2);
        followers.answered(2, 13, at(30));
        let seen = followers.of(2);
        assert_eq!((seen.counts.success, seen.counts.fail), (2, 1));
        let latency = seen.latency;
        let all = [
            latency.minimum,
            latency.average,
            latency.maximum,
            latency.current,
            latency.standard_deviation,
        ];
        let expected = [2.0, 3.0, 4.0, 2.0, 1.0];
        assert!(
            all.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
            "{all:?}"
        );
        assert_eq!(followers.of(3).counts.success, 0);
    }
}
