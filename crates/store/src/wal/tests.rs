use super::*;

const OWNER: Owner = Owner {
    cluster: 7,
    member: 1,
};

fn entry(index: u64, data: &[u8]) -> Entry {
    Entry {
        index,
        term: 1,
        data: data.to_vec().into(),
        ..Entry::default()
    }
}

fn batch(entries: Vec<Entry>) -> Batch {
    Batch {
        entries,
        ..Batch::default()
    }
}

fn write(wal: &mut Wal, range: std::ops::RangeInclusive<u64>) {
    for index in range {
        wal.append(&batch(vec![entry(index, &[index.to_le_bytes()[0]; 100])]))
            .expect("room");
        wal.sync().expect("a disk");
    }
}

fn indices(replay: &Replay) -> Vec<u64> {
    replay.entries.iter().map(|e| e.index).collect()
}

#[test]
fn reads_what_was_written_over_many_segments() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut wal = Wal::create_sized(dir.path(), OWNER, 1000).expect("empty");
    write(&mut wal, 1..=50);
    let state = HardState {
        term: 4,
        ..HardState::default()
    };
    wal.append(&Batch {
        hard_state: Some(state.clone()),
        ..Batch::default()
    })
    .expect("room");
    wal.sync().expect("a disk");
    wal.release(20).expect("known segments");
    drop(wal);
    let (wal, replay) = Wal::open(dir.path(), Some(OWNER)).expect("sound");
    let indices = indices(&replay);
    assert!(indices[0] > 1 && indices[0] <= 21, "{indices:?}");
    assert_eq!(indices.last(), Some(&50));
    assert!(indices.windows(2).all(|w| w[1] == w[0] + 1));
    assert_eq!(replay.hard_state, state);
    assert_eq!(wal.owner(), OWNER);
    drop(wal);
    let other = Owner {
        cluster: 8,
        member: 1,
    };
    assert!(matches!(
        Wal::open(dir.path(), Some(other)),
        Err(Error::Foreign { .. })
    ));
}

#[test]
fn a_later_leader_replaces_entries() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut wal = Wal::create_sized(dir.path(), OWNER, 4000).expect("empty");
    write(&mut wal, 1..=5);
    write(&mut wal, 3..=3);
    drop(wal);
    let (mut wal, replay) = Wal::open(dir.path(), None).expect("sound");
    assert_eq!(indices(&replay), [1, 2, 3]);
    // A leader's snapshot makes what was there meaningless.
    wal.append(&Batch {
        restart: Some((10, 2)),
        entries: vec![entry(11, b"x")],
        hard_state: None,
    })
    .expect("room");
    wal.sync().expect("a disk");
    drop(wal);
    let (_, replay) = Wal::open(dir.path(), None).expect("sound");
    assert_eq!(
        (indices(&replay), replay.restart),
        (vec![11], Some((10, 2)))
    );
}

/// Cuts and flips at every byte: whatever was not synced may go, whatever was synced is there or opening fails.
#[test]
fn no_damage_goes_unnoticed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut wal = Wal::create_sized(dir.path(), OWNER, 2000).expect("empty");
    write(&mut wal, 1..=4);
    let synced = wal.offset;
    wal.append(&batch(vec![entry(5, b"five"), entry(6, b"six")]))
        .expect("room");
    let end = usize::try_from(wal.offset).expect("small");
    let path = wal.segment.path.clone();
    drop(wal);
    let sound = std::fs::read(&path).expect("a file");
    for at in 0..end {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x10;
        check(dir.path(), &path, &bytes, at as u64 >= synced);

        // A torn write: the rest never reached the disk.
        if at as u64 >= synced {
            let mut bytes = sound.clone();
            bytes[at..].fill(0);
            check(dir.path(), &path, &bytes, true);
        }
    }
}

fn check(dir: &Path, path: &Path, bytes: &[u8], must_open: bool) {
    std::fs::write(path, bytes).expect("a file");
    match Wal::open(dir, None) {
        Ok((mut wal, replay)) => {
            let found = indices(&replay);
            let expected: Vec<u64> = (1..=found.len() as u64).collect();
            assert_eq!(found, expected);
            // The last synced record has nothing behind it that proves it was synced; all others do.
            assert!(found.len() >= if must_open { 4 } else { 3 }, "{found:?}");
            // It goes on from there.
            let next = found.len() as u64 + 1;
            write(&mut wal, next..=next);
            drop(wal);
            let (_, replay) = Wal::open(dir, None).expect("sound again");
            assert_eq!(replay.entries.len() as u64, next);
        }
        Err(error) => assert!(!must_open, "{error}"),
    }
}
