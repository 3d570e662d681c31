//! Leases: what is replicated (their keys and times to live), and, on the leader alone, when they end.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{self, Error};
use crate::mvcc::Key;

/// The longest time to live, in seconds; etcd's.
const MAX_TTL: i64 = 9_000_000_000;

#[derive(Debug, Default, Clone)]
pub struct Lease {
    pub ttl: i64,
    /// The revision at which it was granted: what is newer was written under a later holder.
    pub revision: i64,
    pub keys: BTreeSet<Key>,
}

#[derive(Debug, Default)]
pub struct Leases {
    all: BTreeMap<i64, Lease>,
    /// `None` on followers: only a leader that a quorum confirms ends leases, and it does so through the log.
    deadlines: Mutex<Option<HashMap<i64, Duration>>>,
    /// No lease ends sooner than a leader can be replaced.
    pub minimum: i64,
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(ttl.max(0).cast_unsigned())
}

impl Leases {
    pub fn exists(&self, id: i64) -> bool {
        self.all.contains_key(&id)
    }

    pub fn get(&self, id: i64) -> Option<&Lease> {
        self.all.get(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (i64, &Lease)> {
        self.all.iter().map(|(id, lease)| (*id, lease))
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Returns the time to live that was granted.
    pub fn grant(&mut self, id: i64, ttl: i64, revision: i64, now: Duration) -> Result<i64, Error> {
        if ttl > MAX_TTL {
            return Err(error::LEASE_TTL_TOO_LARGE);
        }
        if self.exists(id) {
            return Err(error::LEASE_EXISTS);
        }
        let ttl = ttl.max(self.minimum).max(1);
        self.restore(id, ttl, revision);
        if let Some(deadlines) = self.deadlines.get_mut() {
            deadlines.insert(id, now + seconds(ttl));
        }
        Ok(ttl)
    }

    pub fn restore(&mut self, id: i64, ttl: i64, revision: i64) {
        self.all.insert(
            id,
            Lease {
                ttl,
                revision,
                keys: BTreeSet::new(),
            },
        );
    }

    /// Returns the lease, whose keys have to go too.
    pub fn revoke(&mut self, id: i64) -> Result<Lease, Error> {
        if let Some(deadlines) = self.deadlines.get_mut() {
            deadlines.remove(&id);
        }
        self.all.remove(&id).ok_or(error::LEASE_NOT_FOUND)
    }

    pub fn attach(&mut self, id: i64, key: &Key) {
        if let Some(lease) = self.all.get_mut(&id) {
            lease.keys.insert(key.clone());
        }
    }

    pub fn detach(&mut self, id: i64, key: &Key) {
        if let Some(lease) = self.all.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    /// A new leader knows nothing of the renewals before it, so every lease gets its whole time again.
    pub fn lead(&mut self, now: Duration) {
        let deadlines = self
            .all
            .iter()
            .map(|(id, lease)| (*id, now + seconds(lease.ttl)));
        *self.deadlines.get_mut() = Some(deadlines.collect());
    }

    pub fn follow(&mut self) {
        *self.deadlines.get_mut() = None;
    }

    /// Returns the time to live; `None` if there is no such lease.
    pub fn renew(&self, id: i64, now: Duration) -> Result<Option<i64>, Error> {
        let mut deadlines = self.deadlines.lock();
        let deadlines = deadlines.as_mut().ok_or(error::NOT_LEADER)?;
        let Some(lease) = self.all.get(&id) else {
            return Ok(None);
        };
        let Some(deadline) = deadlines.get_mut(&id) else {
            return Ok(None);
        };
        if *deadline <= now {
            // Its end is on the way through the log; nobody can stop that any more.
            return Ok(None);
        }
        *deadline = now + seconds(lease.ttl);
        Ok(Some(lease.ttl))
    }

    /// Seconds that are left; `None` if there is no such lease.
    pub fn remaining(&self, id: i64, now: Duration) -> Result<Option<i64>, Error> {
        let deadlines = self.deadlines.lock();
        let deadlines = deadlines.as_ref().ok_or(error::NOT_LEADER)?;
        Ok(deadlines.get(&id).map(|deadline| {
            i64::try_from(deadline.saturating_sub(now).as_secs()).unwrap_or(i64::MAX)
        }))
    }

    pub fn expired(&self, now: Duration) -> Vec<i64> {
        let deadlines = self.deadlines.lock();
        let Some(deadlines) = deadlines.as_ref() else {
            return Vec::new();
        };
        deadlines
            .iter()
            .filter(|(_, deadline)| **deadline <= now)
            .map(|(id, _)| *id)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_leader_ends_leases_and_a_new_one_gives_them_all_their_time() {
        let at = Duration::from_secs;
        let mut leases = Leases {
            minimum: 2,
            ..Leases::default()
        };
        assert_eq!(leases.grant(1, 5, 1, at(0)), Ok(5));
        assert_eq!(leases.grant(1, 5, 1, at(0)), Err(error::LEASE_EXISTS));
        assert_eq!(
            leases.grant(2, MAX_TTL + 1, 1, at(0)),
            Err(error::LEASE_TTL_TOO_LARGE)
        );
        assert_eq!(leases.grant(2, 0, 1, at(0)), Ok(2));
        assert!(leases.expired(at(100)).is_empty());
        assert_eq!(leases.renew(1, at(0)), Err(error::NOT_LEADER));

        leases.lead(at(100));
        assert_eq!(leases.remaining(1, at(101)), Ok(Some(4)));
        assert_eq!(leases.expired(at(102)), [2]);
        assert_eq!(leases.renew(1, at(104)), Ok(Some(5)));
        assert_eq!(leases.renew(2, at(104)), Ok(None));
        assert_eq!(leases.expired(at(108)), [2]);
        leases.follow();
        assert!(leases.expired(at(200)).is_empty());
    }
}
