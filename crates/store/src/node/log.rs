//! The recent entries in memory, as Raft reads them. They are on disk too, but nobody reads them there.

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

#[derive(Debug, Default)]
pub(super) struct Log {
    entries: VecDeque<Entry>,
    /// Index and term before the first entry.
    before: (u64, u64),
    bytes: usize,
    pub(super) hard_state: HardState,
    pub(super) conf: ConfState,
    /// Index and term up to which the state machine has come: what a snapshot made now would be of.
    pub(super) applied: (u64, u64),
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + 64
}

impl Log {
    /// The log of a member that starts from a checkpoint.
    pub(super) fn new(
        checkpoint: (u64, u64),
        conf: ConfState,
        hard_state: HardState,
        entries: Vec<Entry>,
    ) -> Self {
        let mut log = Self {
            before: checkpoint,
            applied: checkpoint,
            conf,
            hard_state,
            ..Self::default()
        };
        log.append(entries);
        log
    }

    fn first(&self) -> u64 {
        self.before.0 + 1
    }

    fn last(&self) -> u64 {
        self.entries.back().map_or(self.before.0, |e| e.index)
    }

    pub(super) fn append(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            while self
                .entries
                .back()
                .is_some_and(|last| last.index >= entry.index)
            {
                if let Some(gone) = self.entries.pop_back() {
                    self.bytes -= size(&gone);
                }
            }
            self.bytes += size(&entry);
            self.entries.push_back(entry);
        }
    }

    /// Starts again behind a snapshot of the leader.
    pub(super) fn restart(&mut self, at: (u64, u64), conf: ConfState) {
        self.entries.clear();
        self.bytes = 0;
        self.before = at;
        self.applied = at;
        self.conf = conf;
    }

    /// Forgets entries that are applied, but for those that a slow follower may still ask for.
    pub(super) fn trim(&mut self, keep: u64, bytes: usize) {
        while let Some(first) = self.entries.front() {
            let behind = self.applied.0.saturating_sub(first.index);
            if first.index >= self.applied.0 || (behind < keep && self.bytes <= bytes) {
                return;
            }
            self.before = (first.index, first.term);
            self.bytes -= size(first);
            self.entries.pop_front();
        }
    }

    fn position(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.first())?).ok()
    }
}

impl Storage for Log {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        let (Some(from), Some(to)) = (self.position(low), self.position(high)) else {
            return Err(Error::Store(StorageError::Compacted));
        };
        if to > self.entries.len() {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let mut room = max_size.into().unwrap_or(u64::MAX);
        let mut found = Vec::new();
        for entry in self.entries.range(from..to) {
            let size = size(entry) as u64;
            if !found.is_empty() && size > room {
                break;
            }
            room = room.saturating_sub(size);
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        let Some(at) = self.position(index) else {
            return Err(Error::Store(StorageError::Compacted));
        };
        self.entries
            .get(at)
            .map(|e| e.term)
            .ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    /// Its place only. The data is taken from the state when the message is sent.
    fn snapshot(&self, request_index: u64, _to: u64) -> Result<Snapshot> {
        if self.applied.0 < request_index {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = self.applied.0;
        metadata.term = self.applied.1;
        metadata.set_conf_state(self.conf.clone());
        Ok(snapshot)
    }
}
