//! Keys and their versions. Every revision since the last compaction can be read, which also gives checkpoints and
//! snapshots their consistent view while writes go on. Keys are in memory; so are the pairs of a small state, and those of a
//! big one that were written lately. The others lie on a shelf ([`shelf`]).

mod load;
mod pair;
mod past;
mod range;
mod shelf;
#[cfg(test)]
mod shelf_tests;
#[cfg(test)]
mod tests;
mod txn;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

pub use load::{Loaded, Loading};
pub use pair::{View, view};
pub use past::{Past, Search};
pub use range::{check as check_range, find, range};
pub use shelf::{Lazy, Shelf};
pub use txn::{check as check_txn, check_delete, check_put, delete, execute, look, put};

use crate::error::{self, Error};
use crate::wire::Encoded;
use shelf::Place;

pub type Key = Arc<[u8]>;

/// What one version costs beside its bytes, roughly: allocation, revision, its share of the index.
const OVERHEAD: u64 = 64;

#[derive(Debug, Clone)]
pub struct Version {
    pub main: i64,
    pub sub: u32,
    /// Deleted by this revision. The pair then has a key and a revision only.
    pub dead: bool,
    pub pair: Encoded,
}

#[derive(Debug, Clone)]
enum Pair {
    Here(Encoded),
    Shelved(Place),
}

impl Pair {
    fn length(&self) -> usize {
        match self {
            Self::Here(pair) => pair.0.len(),
            Self::Shelved(place) => place.length(),
        }
    }
}

/// A version as it is kept.
#[derive(Debug, Clone)]
struct Slot {
    main: i64,
    sub: u32,
    dead: bool,
    pair: Pair,
}

impl Slot {
    fn of(version: Version) -> Self {
        Self {
            main: version.main,
            sub: version.sub,
            dead: version.dead,
            pair: Pair::Here(version.pair),
        }
    }

    fn version(&self, pair: Encoded) -> Version {
        Version {
            main: self.main,
            sub: self.sub,
            dead: self.dead,
            pair,
        }
    }

    /// In memory, and need not be.
    fn is_movable(&self) -> bool {
        matches!(self.pair, Pair::Here(_)) && shelf::fits(self.pair.length())
    }
}

/// A version whose pair may have to be read first, which can be done without a lock on the store.
#[derive(Debug, Clone)]
pub struct Unread {
    slot: Slot,
    pair: Lazy,
}

impl Unread {
    pub fn read(self) -> Version {
        self.slot.version(self.pair.load())
    }
}

/// The versions of a key, oldest first. Most keys have one.
#[derive(Debug)]
enum History {
    One(Slot),
    Many(Vec<Slot>),
}

impl History {
    fn versions(&self) -> &[Slot] {
        match self {
            Self::One(version) => std::slice::from_ref(version),
            Self::Many(versions) => versions,
        }
    }

    fn versions_mut(&mut self) -> &mut [Slot] {
        match self {
            Self::One(version) => std::slice::from_mut(version),
            Self::Many(versions) => versions,
        }
    }

    /// That of a revision.
    fn find_mut(&mut self, main: i64) -> Option<&mut Slot> {
        let versions = self.versions_mut();
        let at = versions.partition_point(|v| v.main < main);
        versions[at..]
            .iter_mut()
            .take_while(|v| v.main == main)
            .last()
    }

    fn last(&self) -> Option<&Slot> {
        self.versions().last()
    }

    fn push(&mut self, version: Slot) {
        match self {
            Self::One(first) => *self = Self::Many(vec![first.clone(), version]),
            Self::Many(versions) => versions.push(version),
        }
    }

    /// As of a revision; `None` also for a key that was deleted by then.
    fn at(&self, revision: i64) -> Option<&Slot> {
        let versions = self.versions();
        let after = versions.partition_point(|v| v.main <= revision);
        after
            .checked_sub(1)
            .and_then(|i| versions.get(i))
            .filter(|v| !v.dead)
    }
}

/// A version that came into being, and the one before it.
#[derive(Debug, Clone)]
pub struct Change {
    pub key: Key,
    pub version: Version,
    pub previous: Option<Lazy>,
}

#[derive(Debug)]
pub struct Store {
    keys: BTreeMap<Key, History>,
    revision: i64,
    compact_revision: i64,
    /// Which key lost a version by which revision: all that a compaction has to look at.
    superseded: VecDeque<(i64, Key)>,
    /// Deletions at the very revision of a compaction: a watch that starts there hears of them, so they go with the next.
    tombstones: VecDeque<(i64, Key)>,
    bytes: u64,
    live: u64,
    shelf: Option<Shelf>,
    /// Versions in memory that the shelf could take, the oldest first; some of them are gone.
    recent: VecDeque<(i64, Key)>,
    /// How many they are, and how many bytes.
    movable: (usize, u64),
}

impl Default for Store {
    fn default() -> Self {
        Self {
            keys: BTreeMap::new(),
            // As etcd: an empty store is at 1, the first write makes 2.
            revision: 1,
            compact_revision: -1,
            superseded: VecDeque::new(),
            tombstones: VecDeque::new(),
            bytes: 0,
            live: 0,
            shelf: None,
            recent: VecDeque::new(),
            movable: (0, 0),
        }
    }
}

/// The range that a key and its end mean on the wire.
pub fn bounds<'a>(key: &'a [u8], end: &'a [u8]) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    match end {
        [] => (Bound::Included(key), Bound::Included(key)),
        [0] => (Bound::Included(key), Bound::Unbounded),
        _ if end <= key => (Bound::Included(key), Bound::Excluded(key)),
        _ => (Bound::Included(key), Bound::Excluded(end)),
    }
}

/// Whether a key lies in such a range.
pub fn contains(key: &[u8], end: &[u8], candidate: &[u8]) -> bool {
    match end {
        [] => candidate == key,
        [0] => candidate >= key,
        _ => candidate >= key && candidate < end,
    }
}

fn lazy(shelf: Option<&Shelf>, slot: &Slot) -> Lazy {
    match (&slot.pair, shelf) {
        (Pair::Here(pair), _) => Lazy::Here(pair.clone()),
        (Pair::Shelved(place), Some(shelf)) => shelf.find(*place),
        (Pair::Shelved(_), None) => Lazy::Here(Encoded::default()),
    }
}

impl Store {
    pub fn revision(&self) -> i64 {
        self.revision
    }

    pub fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    /// Bytes of all versions that are still there.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn live_keys(&self) -> u64 {
        self.live
    }

    /// From now on, what was not written lately is kept on a shelf.
    pub fn shelve(&mut self, shelf: Shelf) {
        self.shelf = Some(shelf);
    }

    /// Adds the version that `make` makes of the one before, if there is one that is alive.
    fn insert(
        &mut self,
        key: Key,
        make: impl FnOnce(&Key, Option<Lazy>) -> Version,
    ) -> (Key, Version) {
        let shelf = self.shelf.as_ref();
        let entry = self.keys.entry(key);
        let last = match &entry {
            Entry::Occupied(known) => known.get().last().filter(|v| !v.dead),
            Entry::Vacant(_) => None,
        };
        let before = last.is_some();
        let version = make(entry.key(), last.map(|slot| lazy(shelf, slot)));
        let slot = Slot::of(version.clone());
        let (main, alive) = (slot.main, !slot.dead);
        self.bytes += slot.pair.length() as u64 + OVERHEAD;
        if shelf.is_some() && slot.is_movable() {
            self.movable.0 += 1;
            self.movable.1 += slot.pair.length() as u64;
            self.recent.push_back((main, entry.key().clone()));
        }
        let key = entry.key().clone();
        match entry {
            Entry::Occupied(mut known) => {
                known.get_mut().push(slot);
                self.superseded.push_back((main, key.clone()));
            }
            Entry::Vacant(place) => {
                if !alive {
                    self.superseded.push_back((main, key.clone()));
                }
                place.insert(History::One(slot));
            }
        }
        match (before, alive) {
            (false, true) => self.live += 1,
            (true, false) => self.live -= 1,
            _ => {}
        }
        self.put_away();
        (key, version)
    }

    /// Moves what was not written lately to the shelf.
    fn put_away(&mut self) {
        let Some(shelf) = &mut self.shelf else { return };
        while self.movable.1 > shelf.room {
            let Some((main, key)) = self.recent.pop_front() else {
                return;
            };
            let slot = self.keys.get_mut(&key).and_then(|h| h.find_mut(main));
            let Some(slot) = slot.filter(|slot| slot.is_movable()) else {
                continue;
            };
            let Pair::Here(pair) = &slot.pair else {
                continue;
            };
            let Some(place) = shelf.put(&pair.0) else {
                self.recent.push_front((main, key));
                return;
            };
            slot.pair = Pair::Shelved(place);
            self.movable.0 -= 1;
            self.movable.1 -= place.length() as u64;
        }
        // A compaction may have taken most of them, but one at the front stays.
        if self.recent.len() > 2 * self.movable.0 + 1000 {
            for _ in 0..4 {
                let Some((main, key)) = self.recent.pop_front() else {
                    return;
                };
                let slot = self.keys.get_mut(&key).and_then(|h| h.find_mut(main));
                if slot.is_some_and(|slot| slot.is_movable()) {
                    self.recent.push_back((main, key));
                }
            }
        }
    }

    /// What a version that is about to go took.
    fn forget(&mut self, slot: &Slot) {
        self.bytes -= slot.pair.length() as u64 + OVERHEAD;
        if let Some(shelf) = &mut self.shelf {
            if slot.is_movable() {
                self.movable.0 -= 1;
                self.movable.1 -= slot.pair.length() as u64;
            } else if let Pair::Shelved(place) = slot.pair {
                shelf.forget(place);
            }
        }
    }

    fn lazy(&self, slot: &Slot) -> Lazy {
        lazy(self.shelf.as_ref(), slot)
    }

    fn unread(&self, slot: &Slot) -> Unread {
        Unread {
            slot: slot.clone(),
            pair: self.lazy(slot),
        }
    }

    fn read(&self, slot: &Slot) -> Version {
        slot.version(self.lazy(slot).load())
    }

    /// Opens a change of the state, which is one revision if it writes anything.
    pub fn write(&mut self) -> Write<'_> {
        Write {
            main: self.revision + 1,
            changes: Vec::new(),
            store: self,
        }
    }

    pub fn get(&self, key: &[u8]) -> Option<Version> {
        let last = self.keys.get(key)?.last().filter(|v| !v.dead)?;
        Some(self.read(last))
    }

    pub fn has(&self, key: &[u8]) -> bool {
        self.keys
            .get(key)
            .and_then(History::last)
            .is_some_and(|v| !v.dead)
    }

    pub fn check_revision(&self, revision: i64) -> Result<(), Error> {
        if revision > self.revision {
            Err(error::FUTURE_REVISION)
        } else if revision < self.compact_revision {
            Err(error::COMPACTED)
        } else {
            Ok(())
        }
    }

    /// Goes on from a later revision; what lies between never was.
    pub fn bump(&mut self, by: i64) {
        self.revision += by;
    }

    /// What is alive in a range at a revision.
    pub fn alive<'a>(
        &'a self,
        key: &'a [u8],
        end: &'a [u8],
        revision: i64,
    ) -> impl Iterator<Item = (&'a Key, Version)> + 'a {
        self.slots(key, end, revision)
            .map(|(key, slot)| (key, self.read(slot)))
    }

    fn slots<'a>(
        &'a self,
        key: &'a [u8],
        end: &'a [u8],
        revision: i64,
    ) -> impl Iterator<Item = (&'a Key, &'a Slot)> + 'a {
        let one = end
            .is_empty()
            .then(|| self.keys.get_key_value(key))
            .flatten();
        let many = (!end.is_empty()).then(|| self.keys.range::<[u8], _>(bounds(key, end)));
        one.into_iter()
            .chain(many.into_iter().flatten())
            .filter_map(move |(k, h)| Some((k, h.at(revision)?)))
    }

    /// All that happened in a range between two revisions, both included, in order.
    pub fn changes(&self, key: &[u8], end: &[u8], from: i64, to: i64) -> Vec<Change> {
        let mut search = Search::new(key, end, (from, to), usize::MAX);
        while search.step(self, usize::MAX) {}
        search.done().0.into_iter().map(Past::read).collect()
    }

    /// Forgets what was superseded by `revision`. The space comes back by [`Store::reclaim`].
    pub fn compact(&mut self, revision: i64) -> Result<(), Error> {
        if revision <= self.compact_revision {
            return Err(error::COMPACTED);
        }
        if revision > self.revision {
            return Err(error::FUTURE_REVISION);
        }
        self.compact_revision = revision;
        Ok(())
    }

    pub fn wants_reclaim(&self) -> bool {
        self.is_due(self.compact_revision) || self.shelf.as_ref().is_some_and(Shelf::wants_clearing)
    }

    fn is_due(&self, until: i64) -> bool {
        let (tombstone, superseded) = (self.tombstones.front(), self.superseded.front());
        tombstone.is_some_and(|(main, _)| *main < until)
            || superseded.is_some_and(|(main, _)| *main <= until)
    }

    /// The next key to prune, and the revision at which it lost a version.
    fn next_due(&mut self, until: i64) -> Option<(i64, Key)> {
        let tombstone = self.tombstones.front();
        if tombstone.is_some_and(|(main, _)| *main < until) {
            return self.tombstones.pop_front();
        }
        let superseded = self.superseded.front();
        superseded
            .is_some_and(|(main, _)| *main <= until)
            .then(|| self.superseded.pop_front())?
    }

    /// Frees at most `steps` of what compaction gave up; says whether there is more. `pinned` is the oldest revision
    /// that somebody still reads.
    pub fn reclaim(&mut self, steps: usize, pinned: Option<i64>) -> bool {
        let until = self.compact_revision.min(pinned.unwrap_or(i64::MAX));
        for _ in 0..steps {
            let Some((main, key)) = self.next_due(until) else {
                break;
            };
            self.prune(&key, until);
            if main == until
                && let Some(slot) = self.keys.get_mut(&key).and_then(|h| h.find_mut(until))
                && slot.dead
            {
                self.tombstones.push_back((main, key));
            }
        }
        self.is_due(until) || self.clear_shelf()
    }

    /// Moves the rest of a file that is mostly dead to another; says whether there is more.
    fn clear_shelf(&mut self) -> bool {
        let Some(shelf) = &mut self.shelf else {
            return false;
        };
        for (place, pair) in shelf.next_to_clear() {
            let known = view(&pair);
            let slot = self
                .keys
                .get_mut(known.key)
                .and_then(|h| h.find_mut(known.mod_revision))
                .filter(|slot| matches!(slot.pair, Pair::Shelved(at) if at == place));
            let Some(slot) = slot else { continue };
            let Some(moved) = shelf.put(&pair.0) else {
                shelf.postpone();
                break;
            };
            slot.pair = Pair::Shelved(moved);
            shelf.forget(place);
        }
        shelf.wants_clearing()
    }

    fn prune(&mut self, key: &Key, until: i64) {
        let Some(History::Many(versions)) = self.keys.get_mut(key) else {
            if self
                .keys
                .get(key)
                .and_then(History::last)
                .is_some_and(|v| v.dead && v.main < until)
                && let Some(history) = self.keys.remove(key)
            {
                for slot in history.versions() {
                    self.forget(slot);
                }
            }
            return;
        };
        let mut gone = versions.partition_point(|v| v.main <= until);
        // The newest of them is still what a reader at `until` sees, unless it says "deleted". What was deleted just then is
        // news to a watch that starts there.
        if let Some(newest) = gone.checked_sub(1).map(|i| &versions[i])
            && (!newest.dead || newest.main == until)
        {
            gone -= 1;
        }
        let forgotten: Vec<Slot> = versions.drain(..gone).collect();
        match versions.as_slice() {
            [] => {
                self.keys.remove(key);
            }
            [one] => {
                let one = one.clone();
                self.keys.insert(key.clone(), History::One(one));
            }
            _ if versions.capacity() > 4 * versions.len() => versions.shrink_to_fit(),
            _ => {}
        }
        for slot in &forgotten {
            self.forget(slot);
        }
    }

    /// Versions of the keys from `after` on (all of them if `None`), as they were at `revision`: the pages of a
    /// checkpoint. What is newer is left out, what compaction may drop is not.
    pub fn page(&self, after: Option<&Key>, revision: i64, keys: usize) -> Vec<(Key, Vec<Unread>)> {
        let start = after.map_or(Bound::Unbounded, |k| Bound::Excluded(&**k));
        self.keys
            .range::<[u8], _>((start, Bound::Unbounded))
            .take(keys)
            .map(|(key, history)| {
                let versions = history.versions();
                let end = versions.partition_point(|v| v.main <= revision);
                let unread = versions[..end].iter().map(|slot| self.unread(slot));
                (key.clone(), unread.collect())
            })
            .collect()
    }

    /// A checksum of what can be read at `revision` and since the last compaction; the same on every member.
    pub fn hash(&self, revision: i64) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        for (key, history) in &self.keys {
            let versions = history.versions();
            let end = versions.partition_point(|v| v.main <= revision);
            for (i, version) in versions[..end].iter().enumerate() {
                let next = versions.get(i + 1).map_or(i64::MAX, |v| v.main);
                if next <= self.compact_revision
                    || (version.dead && version.main <= self.compact_revision)
                {
                    continue;
                }
                crc.update(key);
                crc.update(&version.main.to_le_bytes());
                crc.update(&version.sub.to_le_bytes());
                crc.update(&[u8::from(version.dead)]);
                crc.update(&self.lazy(version).load().0);
            }
        }
        crc.finalize()
    }
}

/// A revision in the making. What it writes can be read at once; the revision counts from [`Write::finish`] on.
pub struct Write<'a> {
    store: &'a mut Store,
    main: i64,
    changes: Vec<Change>,
}

impl Write<'_> {
    /// The store, with what has been written so far.
    pub fn store(&self) -> &Store {
        self.store
    }

    /// The revision that a reader inside of this change sees, and that its answers carry.
    pub fn revision(&self) -> i64 {
        if self.changes.is_empty() {
            self.main - 1
        } else {
            self.main
        }
    }

    fn sub(&self) -> u32 {
        u32::try_from(self.changes.len()).unwrap_or(u32::MAX)
    }

    pub fn put(&mut self, key: &[u8], value: &[u8], lease: i64) -> Option<Encoded> {
        let (main, sub) = (self.main, self.sub());
        let mut previous = None;
        let (key, version) = self.store.insert(Key::from(key), |key, last| {
            previous = last.map(|last| last.load());
            let last = previous.as_ref().map(|pair| view(&pair.0));
            let (create_revision, version) =
                last.map_or((main, 1), |last| (last.create_revision, last.version + 1));
            let pair = View {
                key,
                create_revision,
                mod_revision: main,
                version,
                value,
                lease,
            };
            Version {
                main,
                sub,
                dead: false,
                pair: pair.encode(),
            }
        });
        self.changes.push(Change {
            key,
            version,
            previous: previous.clone().map(Lazy::Here),
        });
        previous
    }

    /// Deletes what is alive in the range and returns it.
    pub fn delete(&mut self, key: &[u8], end: &[u8]) -> Vec<Lazy> {
        let doomed: Vec<(Key, Lazy)> = self
            .store
            .slots(key, end, i64::MAX)
            .map(|(key, slot)| (key.clone(), self.store.lazy(slot)))
            .collect();
        doomed
            .into_iter()
            .map(|(key, previous)| {
                let tombstone = View {
                    key: &key,
                    mod_revision: self.main,
                    ..View::default()
                }
                .encode();
                let version = Version {
                    main: self.main,
                    sub: self.sub(),
                    dead: true,
                    pair: tombstone,
                };
                let (key, version) = self.store.insert(key, |_, _| version);
                self.changes.push(Change {
                    key,
                    version,
                    previous: Some(previous.clone()),
                });
                previous
            })
            .collect()
    }

    pub fn finish(self) -> Vec<Change> {
        if !self.changes.is_empty() {
            self.store.revision = self.main;
        }
        self.changes
    }
}
