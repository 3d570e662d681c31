//! What the fuzz targets start from, and what they have found, once more: see `fuzz/cloudinit`.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a failed step is a failed test; clippy only knows test functions, not their helpers"
)]
#![allow(
    unused_attributes,
    reason = "the targets are programs of their own elsewhere"
)]

extern crate self as libfuzzer_sys;

#[path = "../../../fuzz/in_tests.rs"]
mod in_tests;

#[path = "../../../fuzz/cloudinit/fuzz_targets/mime.rs"]
mod mime;
#[path = "../../../fuzz/cloudinit/fuzz_targets/network_debian.rs"]
mod network_debian;
#[path = "../../../fuzz/cloudinit/fuzz_targets/network_nocloud.rs"]
mod network_nocloud;
#[path = "../../../fuzz/cloudinit/fuzz_targets/network_openstack.rs"]
mod network_openstack;
#[path = "../../../fuzz/cloudinit/fuzz_targets/network_packet.rs"]
mod network_packet;
#[path = "../../../fuzz/cloudinit/fuzz_targets/network_vmware.rs"]
mod network_vmware;
#[path = "../../../fuzz/cloudinit/fuzz_targets/user_data.rs"]
mod user_data;
#[path = "../../../fuzz/cloudinit/fuzz_targets/yaml.rs"]
mod yaml;

use std::path::{Path, PathBuf};

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 8] = [
    ("mime", mime::run),
    ("network_debian", network_debian::run),
    ("network_nocloud", network_nocloud::run),
    ("network_openstack", network_openstack::run),
    ("network_packet", network_packet::run),
    ("network_vmware", network_vmware::run),
    ("user_data", user_data::run),
    ("yaml", yaml::run),
];

#[test]
fn every_seed_is_read_or_refused() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/cloudinit");
    in_tests::assert_all(&dir, &TARGETS.map(|(name, _)| name));
    let list = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    for (target, run) in TARGETS {
        let seeds = list(&dir.join("seeds").join(target));
        assert!(!seeds.is_empty(), "no seeds of {target}");
        for seed in seeds {
            run(&std::fs::read(&seed).unwrap());
        }
    }
}
