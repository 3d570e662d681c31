use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use raft::eraftpb::Entry;

use super::disk::{Disk, Recovered, write_source};
use crate::machine::Machine;
use crate::machine::checkpoint::Source;
use crate::wal::{Batch, Owner};

const OWNER: Owner = Owner {
    cluster: 7,
    member: 1,
};

fn machine(index: u64, term: u64) -> Machine {
    let mut machine = Machine::default();
    machine.cluster_id = OWNER.cluster;
    (machine.applied, machine.applied_term) = (index, term);
    machine
}

fn append(recovered: &mut Recovered, indices: std::ops::RangeInclusive<u64>, term: u64) {
    let entry = |index| Entry {
        index,
        term,
        ..Entry::default()
    };
    let batch = Batch {
        entries: indices.map(entry).collect(),
        ..Batch::default()
    };
    recovered.wal.append(&batch).expect("room");
    recovered.wal.sync().expect("a disk");
}

fn places(recovered: &Recovered) -> Vec<(u64, u64)> {
    recovered
        .entries
        .iter()
        .map(|e| (e.index, e.term))
        .collect()
}

/// A leader's snapshot, as it is put in place before Raft hears of it.
fn settle(disk: &Disk, dir: &Path, machine: Machine) {
    let (part, path) = (dir.join("incoming"), disk.path_of(machine.applied));
    write_source(Source::new(&Arc::new(RwLock::new(machine))), &part).expect("room");
    disk.settle(&part, &path).expect("a disk");
}

#[test]
fn what_follows_a_checkpoint_of_another_history_is_found_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Disk::open(dir.path(), None).expect("empty");
    let mut first = disk.create(machine(1, 1), OWNER).expect("empty");
    // Nobody else had these.
    append(&mut first, 2..=12, 1);
    drop(first);
    settle(&disk, dir.path(), machine(10, 2));

    let mut second = disk.recover().expect("sound");
    assert_eq!(places(&second), []);
    append(&mut second, 11..=11, 2);
    drop(second);

    let mut third = disk.recover().expect("sound");
    assert_eq!(places(&third), [(11, 2)]);
    append(&mut third, 12..=13, 2);
    drop(third);
    settle(&disk, dir.path(), machine(11, 2));
    let last = disk.recover().expect("sound");
    assert_eq!(places(&last), [(12, 2), (13, 2)]);
}
