//! A store from a checkpoint. Versions come in the order of their keys, so the index is built at once at the end, and what
//! does not fit into memory goes to the shelf without a detour.

use std::sync::Arc;

use super::{History, Key, OVERHEAD, Pair, Shelf, Slot, Store, shelf, view};
use crate::wire::Encoded;

/// A version as a checkpoint has it.
#[derive(Debug, Clone, Copy)]
pub struct Loaded<'a> {
    pub main: i64,
    pub sub: u32,
    pub dead: bool,
    pub pair: &'a [u8],
}

#[derive(Debug)]
pub struct Loading {
    store: Store,
    keys: Vec<(Key, History)>,
    /// Keys that hang from a lease by their newest version.
    leased: Vec<(i64, Key)>,
}

impl Loading {
    /// A shelf takes what need not be in memory.
    pub fn new(revision: i64, compact_revision: i64, shelf: Option<Shelf>) -> Self {
        Self {
            store: Store {
                revision,
                compact_revision,
                shelf,
                ..Store::default()
            },
            keys: Vec::new(),
            leased: Vec::new(),
        }
    }

    /// Takes the next version; those of a key come oldest first. Says whether it is one, and behind those before.
    #[must_use]
    pub fn take(&mut self, version: Loaded<'_>) -> bool {
        let known = view(version.pair);
        let main = version.main;
        let (key, before) = match self.keys.last_mut() {
            Some((key, history)) if **key == *known.key => {
                let Some(last) = history.last() else {
                    return false;
                };
                if (last.main, last.sub) >= (main, version.sub) {
                    return false;
                }
                let key = key.clone();
                self.store.live -= u64::from(!last.dead);
                self.store.superseded.push_back((main, key.clone()));
                self.leased.pop_if(|(_, leased)| Arc::ptr_eq(leased, &key));
                (key, Some(history))
            }
            Some((key, _)) if **key > *known.key => return false,
            _ => {
                let key = Key::from(known.key);
                if version.dead {
                    self.store.superseded.push_back((main, key.clone()));
                }
                (key, None)
            }
        };
        self.store.bytes += version.pair.len() as u64 + OVERHEAD;
        self.store.live += u64::from(!version.dead);
        if known.lease != 0 && !version.dead {
            self.leased.push((known.lease, key.clone()));
        }
        let slot = Slot {
            main,
            sub: version.sub,
            dead: version.dead,
            pair: self.store.keep(main, &key, version.pair),
        };
        match before {
            Some(history) => history.push(slot),
            None => self.keys.push((key, History::One(slot))),
        }
        true
    }

    /// The store, and which key hangs from which lease.
    pub fn done(mut self) -> (Store, Vec<(i64, Key)>) {
        let superseded = self.store.superseded.make_contiguous();
        superseded.sort_by_key(|(main, _)| *main);
        // In order already, which makes this one pass.
        self.store.keys = self.keys.into_iter().collect();
        (self.store, self.leased)
    }
}

impl Store {
    fn keep(&mut self, main: i64, key: &Key, pair: &[u8]) -> Pair {
        let here = || Pair::Here(Encoded(Arc::from(pair)));
        let Some(shelf) = self.shelf.as_mut().filter(|_| shelf::fits(pair.len())) else {
            return here();
        };
        let length = pair.len() as u64;
        if self.movable.1 + length > shelf.room
            && let Some(place) = shelf.put(pair)
        {
            return Pair::Shelved(place);
        }
        self.movable.0 += 1;
        self.movable.1 += length;
        self.recent.push_back((main, key.clone()));
        here()
    }
}
