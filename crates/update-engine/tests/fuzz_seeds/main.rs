//! What the fuzz targets of `fuzz/update` start from and have found, once more with every test, and
//! each of it cut off and changed at some places. `ORLOP_WRITE_SEEDS=1` writes what is made here.

#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]
// The targets are programs of their own elsewhere.
#![allow(unused_attributes)]

mod made;

extern crate self as libfuzzer_sys;
extern crate self as update_fuzz;

#[path = "../../../../fuzz/in_tests.rs"]
mod in_tests;
#[path = "../../../../fuzz/update/src/lib.rs"]
mod targets;

#[path = "../../../../fuzz/update/fuzz_targets/delta.rs"]
mod on_delta;
#[path = "../../../../fuzz/update/fuzz_targets/gpt.rs"]
mod on_gpt;
#[path = "../../../../fuzz/update/fuzz_targets/manifest.rs"]
mod on_manifest;
#[path = "../../../../fuzz/update/fuzz_targets/omaha.rs"]
mod on_omaha;
#[path = "../../../../fuzz/update/fuzz_targets/parts.rs"]
mod on_parts;
#[path = "../../../../fuzz/update/fuzz_targets/segment.rs"]
mod on_segment;
#[path = "../../../../fuzz/update/fuzz_targets/tuf.rs"]
mod on_tuf;

use std::fs;
use std::path::PathBuf;

pub use targets::*;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 7] = [
    ("omaha", on_omaha::run),
    ("manifest", on_manifest::run),
    ("tuf", on_tuf::run),
    ("delta", on_delta::run),
    ("segment", on_segment::run),
    ("parts", on_parts::run),
    ("gpt", on_gpt::run),
];

fn seeds() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/update/seeds")
}

#[test]
fn seeds_and_what_is_near_them() {
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    in_tests::assert_all(seeds().parent().unwrap(), &names);
    let made = made::all();
    if std::env::var_os("ORLOP_WRITE_SEEDS").is_some() {
        for (name, bytes) in &made {
            let path = seeds().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
    for (target, run) in TARGETS {
        let stored = fs::read_dir(seeds().join(target)).into_iter().flatten();
        let stored = stored.map(|entry| fs::read(entry.unwrap().path()).unwrap());
        let fresh = made
            .iter()
            .filter(|(name, _)| name.split('/').next() == Some(target))
            .map(|(_, bytes)| bytes.clone());
        let mut all: Vec<Vec<u8>> = stored.chain(fresh).collect();
        assert!(!all.is_empty(), "fuzz/update/seeds/{target} is empty");
        all.sort();
        all.dedup();
        // A disk is large and signing takes time, so fewer of them.
        let changes = if ["gpt", "tuf"].contains(&target) {
            40
        } else {
            200
        };
        let (mut changed_inputs, mut ends) = (0, 0);
        for seed in all {
            run(&seed);
            for i in 0..changes {
                let at = seed.len() * i / changes;
                run(&seed[..at]);
                let mut changed = seed.clone();
                if let Some(byte) = changed.get_mut(at) {
                    *byte ^= 1 << (i % 8);
                }
                let before = COUNT.ends();
                run(&changed);
                ends += COUNT.ends() - before;
                changed_inputs += 1;
            }
        }
        // Where a sum or a signature stops everything that is not a seed, the target tries nothing.
        let reached = format!("{target}: {ends} of {changed_inputs} changed inputs got to the end");
        println!("{reached}");
        assert!(ends * 10 >= changed_inputs, "{reached}");
    }
}
