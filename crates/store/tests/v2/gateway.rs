//! The JSON gateway of v3: the same requests to Debian's etcd and to our program, compared field by field.

use std::path::Path;

use super::compare::{Volatile, compare};
use super::{http, peer};

/// What differs between any two servers, or between any two runs.
const VOLATILE_FIELDS: [&str; 16] = [
    "cluster_id",
    "member_id",
    "raft_term",
    "ID",
    "name",
    "peerURLs",
    "clientURLs",
    "TTL",
    "hash",
    "token",
    "dbSize",
    "dbSizeInUse",
    "leader",
    "raftIndex",
    "raftTerm",
    "raftAppliedIndex",
];

/// etcd 3.4 answers a failed precondition with 412, later ones with 400, as ours does.
fn versions(answer: &mut http::Answer) {
    if answer.status == 412 {
        answer.status = 400;
    }
}

#[test]
fn answers_are_those_of_etcd() {
    let etcd = peer::Peer::start(&peer::programs().join("etcd"), &["--enable-v2"]);
    let ours = peer::Peer::start(Path::new(env!("CARGO_BIN_EXE_orlop-store")), &[]);
    let volatile = Volatile {
        headers: &[],
        fields: &VOLATILE_FIELDS,
        versions,
    };
    let script = include_str!("gateway.txt");
    let (compared, differences) = compare(&etcd.address, &ours.address, script, &volatile);
    assert!(
        differences.is_empty(),
        "{} of {compared} answers differ:\n\n{}",
        differences.len(),
        differences.join("\n\n")
    );
    assert!(compared >= 100, "only {compared} answers were compared");
    println!("{compared} answers are the same");
}
