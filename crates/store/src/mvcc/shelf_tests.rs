use super::{Shelf, Store, find, view};
use crate::pb::etcdserverpb::RangeRequest;

const KEYS: u64 = 300;

/// The same on every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn same(shelved: &Store, plain: &Store) {
    assert_eq!(shelved.revision(), plain.revision());
    assert_eq!(shelved.bytes(), plain.bytes());
    assert_eq!(shelved.live_keys(), plain.live_keys());
    assert_eq!(
        shelved.hash(shelved.revision()),
        plain.hash(plain.revision())
    );
    let alive = |store: &Store| -> Vec<_> {
        let all = store.alive(&[0], &[0], store.revision());
        all.map(|(key, version)| (key.clone(), version.pair))
            .collect()
    };
    assert_eq!(alive(shelved), alive(plain));
    let from = plain.compact_revision() + 1;
    let changes = |store: &Store| -> Vec<_> {
        let all = store.changes(&[0], &[0], from, store.revision());
        all.into_iter()
            .map(|c| (c.key, c.version.pair, c.previous.map(|p| p.load())))
            .collect()
    };
    assert_eq!(changes(shelved), changes(plain));
    let pages = |store: &Store| -> Vec<_> {
        let page = store.page(None, store.revision(), usize::MAX);
        page.into_iter()
            .flat_map(|(_, versions)| versions)
            .map(|version| version.read().pair)
            .collect()
    };
    assert_eq!(pages(shelved), pages(plain));
}

fn step(store: &mut Store, chance: &mut Chance) {
    match chance.below(100) {
        0..90 => {
            let key = format!("key/{:05}", chance.below(KEYS));
            let size = [10, 80, 300, 5000][usize::try_from(chance.below(4)).unwrap_or(0)];
            let byte = u8::try_from(chance.below(256)).unwrap_or(0);
            let mut write = store.write();
            write.put(key.as_bytes(), &vec![byte; size], 0);
            write.finish();
        }
        90..98 => {
            let key = format!("key/{:05}", chance.below(KEYS));
            let end = format!("key/{:05}", chance.below(KEYS));
            let one = chance.below(4) > 0;
            let mut write = store.write();
            write.delete(key.as_bytes(), if one { b"" } else { end.as_bytes() });
            write.finish();
        }
        98 => {
            let span = store.revision() - store.compact_revision();
            let back = chance.below(span.unsigned_abs() + 1);
            let revision = store.revision() - i64::try_from(back).unwrap_or(0);
            let _ = store.compact(revision);
        }
        _ => while store.reclaim(100, None) {},
    }
}

#[test]
fn what_lies_on_the_shelf_reads_as_if_it_were_here() {
    let dir = tempfile::tempdir().expect("a directory");
    for (seed, room) in [(1, 0), (2, 10_000), (3, 200_000)] {
        let (mut plain, mut shelved) = (Store::default(), Store::default());
        shelved.shelve(Shelf::new(dir.path(), room));
        let (mut one, mut other) = (Chance(seed), Chance(seed));
        for i in 0..6000 {
            step(&mut plain, &mut one);
            step(&mut shelved, &mut other);
            if i % 500 == 0 {
                same(&shelved, &plain);
            }
        }
        same(&shelved, &plain);
        assert!(shelved.movable.1 <= room, "{:?}", shelved.movable);
        assert!(shelved.recent.len() <= 2 * shelved.movable.0 + 1000);
        let left = std::fs::read_dir(dir.path()).expect("a directory").count();
        assert_eq!(left, 0, "files without a name");
    }
}

#[test]
fn space_of_what_was_compacted_is_used_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut store = Store::default();
    store.shelve(Shelf::new(dir.path(), 0));
    // Every tenth stays and has to be moved out of files that are dead but for it.
    for round in 0..40_u64 {
        for n in 0..100_u64 {
            let key = if n % 10 == 0 {
                format!("stays/{round}/{n}")
            } else {
                format!("goes/{n}")
            };
            let mut write = store.write();
            write.put(key.as_bytes(), &vec![b'v'; 100_000], 0);
            write.finish();
        }
        store.compact(store.revision()).expect("newer");
        while store.reclaim(1000, None) {}
    }
    let extent = store.shelf.as_ref().map(Shelf::extent);
    let (written, live) = extent.expect("a shelf");
    assert_eq!(store.live_keys(), 490);
    assert!(live > 49_000_000, "{live}");
    assert!(written < 2 * live + (130 << 20), "{written} for {live}");
    for (_, version) in store.alive(&[0], &[0], store.revision()) {
        assert_eq!(view(&version.pair).value.len(), 100_000);
    }
}

#[test]
fn what_was_found_can_be_read_once_it_is_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut store = Store::default();
    store.shelve(Shelf::new(dir.path(), 1000));
    let fill = |store: &mut Store, byte: u8| {
        for n in 0..100 {
            let mut write = store.write();
            write.put(format!("k{n}").as_bytes(), &vec![byte; 100_000], 0);
            write.finish();
        }
    };
    fill(&mut store, b'a');
    let request = RangeRequest {
        key: vec![0],
        range_end: vec![0],
        ..RangeRequest::default()
    };
    let found = find(&store, &request, store.revision()).expect("in range");
    fill(&mut store, b'b');
    fill(&mut store, b'c');
    store.compact(store.revision()).expect("newer");
    while store.reclaim(1000, None) {}
    let response = found.read();
    assert_eq!((response.kvs.len(), response.count), (100, 100));
    let old = |pair| view(pair).value.iter().all(|byte| *byte == b'a');
    assert!(response.kvs.iter().all(|pair| old(pair)));
}

#[test]
fn without_a_directory_values_stay_in_memory() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut plain, mut shelved) = (Store::default(), Store::default());
    shelved.shelve(Shelf::new(&dir.path().join("none"), 1000));
    let (mut one, mut other) = (Chance(7), Chance(7));
    for _ in 0..1000 {
        step(&mut plain, &mut one);
        step(&mut shelved, &mut other);
    }
    same(&shelved, &plain);
    std::fs::create_dir(dir.path().join("none")).expect("made");
    for _ in 0..1000 {
        step(&mut plain, &mut one);
        step(&mut shelved, &mut other);
    }
    same(&shelved, &plain);
    assert!(shelved.movable.1 <= 1000, "{:?}", shelved.movable);
}

#[test]
fn a_version_is_as_small_as_without_a_shelf() {
    assert_eq!(size_of::<super::Slot>(), 32);
    assert_eq!(size_of::<super::History>(), 32);
}
