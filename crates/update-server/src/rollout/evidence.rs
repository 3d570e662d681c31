//! Is this release worse than we put up with? Asked after every verdict, so the test has to hold
//! at every look: it is a bet against "at most `budget` of the hosts fail".
//!
//! For each of a few worse rates the likelihood ratio of the verdicts so far is a fair bet; so is
//! their mean. By Ville's inequality it ever reaches [`ENOUGH`] with a probability of at most
//! 1/[`ENOUGH`] if the release keeps to its budget. Many rates at once find a release that breaks
//! every host after a handful, and one that breaks a few more than it should in due time.

/// Stop once the bet has won this much: one good release in a thousand waves is stopped in error.
const ENOUGH: f64 = 1000.0;

/// Worse rates, as multiples of the budget, and then outright.
const TIMES: [f64; 3] = [2.0, 4.0, 8.0];
const RATES: [f64; 3] = [0.25, 0.5, 0.9];

/// Did more fail than the budget explains?
pub fn exceeds(budget: f64, good: u64, bad: u64) -> bool {
    let worse = TIMES
        .iter()
        .map(|times| times * budget)
        .chain(RATES)
        .filter(|rate| *rate > budget && *rate < 1.0);
    let ratio = |rate: f64| {
        bad as f64 * (rate / budget).ln() + good as f64 * ((1.0 - rate) / (1.0 - budget)).ln()
    };
    // The sum of the exponentials may overflow to infinity, which is enough as well.
    let (sum, number) = worse.fold((0.0, 0.0), |(sum, number), rate| {
        (sum + ratio(rate).exp(), number + 1.0)
    });
    sum / number >= ENOUGH
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many verdicts in a row of this pattern (how many of ten are bad).
    fn stops_after(bad_of_ten: u64) -> Option<u64> {
        let (mut good, mut bad) = (0, 0);
        for n in 1..=5000 {
            if (n * bad_of_ten) % 10 < bad_of_ten {
                bad += 1;
            } else {
                good += 1;
            }
            if exceeds(0.02, good, bad) {
                return Some(n);
            }
        }
        None
    }

    #[test]
    fn the_worse_the_sooner() {
        assert_eq!(stops_after(10), Some(3));
        assert_eq!(stops_after(5), Some(8));
        assert!(stops_after(1).is_some_and(|n| (20..150).contains(&n)));
        assert_eq!(stops_after(0), None);
    }

    #[test]
    fn a_good_release_may_fail_here_and_there() {
        for total in [10, 100, 1000, 100_000] {
            assert!(
                !exceeds(0.02, total - total / 50, total / 50),
                "2 % of {total}"
            );
        }
        assert!(!exceeds(0.02, 1, 1) && !exceeds(0.02, 0, 0));
        // A hundred thousand verdicts do not overflow into nonsense.
        assert!(exceeds(0.02, 0, 100_000) && !exceeds(0.5, 100_000, 0));
    }
}
