//! The same requests to Debian's etcd and to our store; the answers are compared field by field.

use std::path::Path;

use super::align::align;
use super::compare::{Volatile, compare};
use super::peer;

/// Headers that differ between any two servers, or between any two runs.
const VOLATILE_HEADERS: [&str; 3] = ["x-etcd-cluster-id", "x-raft-index", "x-raft-term"];

/// The same for what is in bodies. That they are there is compared, and of what kind.
const VOLATILE_FIELDS: [&str; 14] = [
    "expiration",
    "ttl",
    "id",
    "name",
    "peerURLs",
    "clientURLs",
    "startTime",
    "uptime",
    "leader",
    "recvAppendRequestCnt",
    "sendAppendRequestCnt",
    // etcd counts some refusals as successes, and its own bookkeeping too.
    "getsSuccess",
    "getsFail",
    "setsSuccess",
];

#[test]
fn answers_are_those_of_etcd() {
    let etcd = peer::Peer::start(&peer::programs().join("etcd"), &["--enable-v2"]);
    let ours = peer::Peer::start(Path::new(env!("CARGO_BIN_EXE_orlop-store")), &[]);
    align(&etcd.address, &ours.address);
    let volatile = Volatile {
        headers: &VOLATILE_HEADERS,
        fields: &VOLATILE_FIELDS,
        versions: |_| {},
    };
    let script = include_str!("requests.txt");
    let (compared, differences) = compare(&etcd.address, &ours.address, script, &volatile);
    assert!(
        differences.is_empty(),
        "{} of {compared} answers differ:\n\n{}",
        differences.len(),
        differences.join("\n\n")
    );
    assert!(compared >= 150, "only {compared} answers were compared");
    println!("{compared} answers are the same");
}
