//! A cluster in one thread: the core of every member is real, its disk, its network and its clock are simulated, and
//! everything that goes wrong comes from a seed. `ORLOP_SEEDS=10000` runs more of them, `ORLOP_SEED=7` one, both together so many
//! from that one on.

#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of members, keys and clients are small"
)]

mod bugs;
mod byhand;
mod check;
mod cluster;
mod random;

use bugs::Bug;
use cluster::Cluster;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(seed: u64, bug: Option<Bug>) -> Result<cluster::Summary, String> {
    let mut cluster = Cluster::new(seed, bug);
    cluster.run()?;
    cluster.check()
}

#[test]
fn whatever_goes_wrong_the_promises_hold() {
    let (from, count) = match number("ORLOP_SEED") {
        Some(seed) => (seed, number("ORLOP_SEEDS").unwrap_or(1)),
        None => (0, number("ORLOP_SEEDS").unwrap_or(1000)),
    };
    let mut total = cluster::Summary::default();
    for seed in from..from + count {
        match run(seed, None) {
            Ok(summary) => total.add(&summary),
            Err(what) => panic!(
                "seed {seed}: {what}\nAgain: ORLOP_SEED={seed} cargo nextest run -p store whatever_goes_wrong"
            ),
        }
    }
    println!("{total:?}");
    if count >= 100 {
        // A simulation in which nothing happens proves nothing.
        assert!(
            total.acknowledged > 20 * count && total.reads > 10 * count,
            "{total:?}"
        );
        assert!(
            total.crashes > count && total.snapshots > 0 && total.unknown > count,
            "{total:?}"
        );
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..10 {
        assert_eq!(run(seed, None), run(seed, None));
    }
}

/// The checks are checked: with a defect in the parts around the core, they find it.
#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        let found = (0..400).find(|seed| run(*seed, Some(bug)).is_err());
        match found {
            Some(seed) => println!(
                "{bug:?}: seed {seed}: {}",
                run(seed, Some(bug)).expect_err("found")
            ),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
