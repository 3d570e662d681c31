//! The fuzzers' corpus and changed copies of it, with every test run. `ORLOP_MUTATIONS=100000` changes more.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test; the numbers are small"
)]
#![allow(
    unused_attributes,
    reason = "the targets are programs of their own elsewhere"
)]

extern crate self as libfuzzer_sys;

#[path = "../../../fuzz/store/fuzz_targets/gateway.rs"]
mod gateway;
#[path = "../../../fuzz/in_tests.rs"]
mod in_tests;
#[path = "../../../fuzz/store/fuzz_targets/v2.rs"]
mod v2;
#[path = "../../../fuzz/store/fuzz_targets/wal.rs"]
mod wal;

use std::path::Path;

use raft::prelude::{Entry, HardState};
use store::wal::{Batch, Owner, Wal};

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/store/seeds")
        .join(target);
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .map(|found| found.map(|f| f.unwrap().path()).collect())
        .unwrap_or_default();
    files.sort();
    files.iter().map(|f| std::fs::read(f).unwrap()).collect()
}

/// Xorshift: the same changes each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }

    fn change(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 => bytes.insert(at, self.below(256) as u8),
                2 if !bytes.is_empty() => drop(bytes.remove(at)),
                3 => bytes.truncate(at),
                4 => {
                    let other = &seeds[self.below(seeds.len())];
                    bytes.extend_from_slice(&other[self.below(other.len())..]);
                }
                _ => {
                    let piece = bytes[at.min(bytes.len())..].to_vec();
                    bytes.splice(at..at, piece.into_iter().take(30));
                }
            }
        }
        bytes
    }
}

fn each(target: &str, extra: Vec<Vec<u8>>, default: usize, mut judge: impl FnMut(&[u8])) {
    let mut seeds = seeds(target);
    seeds.extend(extra);
    assert!(!seeds.is_empty(), "no seeds of {target}");
    seeds.iter().for_each(|seed| judge(seed));
    let mutations = std::env::var("ORLOP_MUTATIONS").ok();
    let count = mutations.map_or(default, |text| text.parse().unwrap());
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for _ in 0..count {
        judge(&dice.change(&seeds));
    }
}

#[test]
fn requests_of_v2() {
    each("v2", Vec::new(), 20_000, v2::run);
}

#[test]
fn json_of_the_gateway() {
    each("gateway", Vec::new(), 2_000, gateway::run);
}

/// A log as it really is, without the zeros behind it.
fn log() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let owner = Owner {
        cluster: 7,
        member: 1,
    };
    let mut wal = Wal::create(dir.path(), owner).unwrap();
    for index in 1..=5 {
        let entry = Entry {
            index,
            term: 1,
            data: vec![index as u8; 30].into(),
            ..Entry::default()
        };
        let hard_state = Some(HardState {
            term: index,
            ..HardState::default()
        });
        wal.append(&Batch {
            entries: vec![entry],
            hard_state,
            ..Batch::default()
        })
        .unwrap();
        wal.sync().unwrap();
    }
    drop(wal);
    let bytes = std::fs::read(dir.path().join("0000000000000001.wal")).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
    bytes[..end].to_vec()
}

#[test]
fn logs() {
    each("wal", vec![log()], 1_000, wal::run);
}

#[test]
fn no_target_is_left_out() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/store");
    in_tests::assert_all(&dir, &["gateway", "v2", "wal"]);
}
