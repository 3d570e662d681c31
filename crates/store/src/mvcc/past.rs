//! What happened before, for watchers that were not told when it did. It is looked for in pieces, so that no write waits
//! for all of it, and remembered by its place: values are read when it is their turn.

use std::ops::Bound;

use super::{Change, Key, Lazy, Store, Unread, Version, bounds};

/// A change whose pairs may have to be read first.
#[derive(Debug, Clone)]
pub struct Past {
    key: Key,
    version: Unread,
    previous: Option<Lazy>,
}

impl Past {
    pub fn main(&self) -> i64 {
        self.version.slot.main
    }

    pub fn is_dead(&self) -> bool {
        self.version.slot.dead
    }

    /// Bytes of the new pair.
    pub fn length(&self) -> usize {
        self.version.slot.pair.length()
    }

    pub fn read(self) -> Change {
        let version: Version = self.version.read();
        Change {
            key: self.key,
            version,
            previous: self.previous,
        }
    }

    fn place(&self) -> (i64, u32) {
        (self.version.slot.main, self.version.slot.sub)
    }
}

/// Looks for the oldest changes of a range, from one revision to another, both included.
#[derive(Debug)]
pub struct Search {
    key: Vec<u8>,
    end: Vec<u8>,
    from: i64,
    to: i64,
    after: Option<Key>,
    found: Vec<Past>,
    limit: usize,
    /// With so many found, the newest of them are dropped.
    room: usize,
}

impl Search {
    /// Ends with no more than twice `limit`, but for a revision that alone has more: none is torn.
    pub fn new(key: &[u8], end: &[u8], (from, to): (i64, i64), limit: usize) -> Self {
        Self {
            key: key.to_vec(),
            end: end.to_vec(),
            from,
            to,
            after: None,
            found: Vec::new(),
            limit: limit.max(1),
            room: limit.max(1).saturating_mul(2),
        }
    }

    pub fn from(&self) -> i64 {
        self.from
    }

    /// Looks at so many keys; says whether there are more. Between two steps the store may change, as long as it is not
    /// compacted beyond the revision from which on it is looked for.
    pub fn step(&mut self, store: &Store, keys: usize) -> bool {
        let (first, last) = bounds(&self.key, &self.end);
        let after = self.after.take();
        let first = after.as_ref().map_or(first, |key| Bound::Excluded(&**key));
        let mut looked_at = 0;
        let mut newest = None;
        let mut found = std::mem::take(&mut self.found);
        for (key, history) in store.keys.range::<[u8], _>((first, last)).take(keys) {
            looked_at += 1;
            newest = Some(key);
            let versions = history.versions();
            let start = versions.partition_point(|v| v.main < self.from);
            for (i, slot) in versions.iter().enumerate().skip(start) {
                if slot.main > self.to {
                    break;
                }
                let previous = i.checked_sub(1).map(|i| &versions[i]);
                found.push(Past {
                    key: key.clone(),
                    version: store.unread(slot),
                    previous: previous.filter(|v| !v.dead).map(|v| store.lazy(v)),
                });
            }
            if found.len() >= self.room {
                self.to = oldest(&mut found, self.limit);
                self.room = self.room.max(2 * found.len());
            }
        }
        self.after = newest.cloned();
        self.found = found;
        looked_at == keys
    }

    /// What was found, in order, and the revision up to which that is all.
    pub fn done(mut self) -> (Vec<Past>, i64) {
        self.found.sort_unstable_by_key(Past::place);
        (self.found, self.to)
    }
}

/// Keeps the oldest, about so many; returns the last revision of which all are kept.
fn oldest(found: &mut Vec<Past>, limit: usize) -> i64 {
    let (before, one_too_many, _) = found.select_nth_unstable_by_key(limit, Past::place);
    let cut = one_too_many.main();
    let to = if before.iter().any(|past| past.main() < cut) {
        cut - 1
    } else {
        cut
    };
    found.retain(|past| past.main() <= to);
    to
}
