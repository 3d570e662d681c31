//! Defects of the kinds that real stores have had, planted into what surrounds the core.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A write counts as on disk before it is.
    SyncLies,
    /// The vote and the term are not kept over a restart.
    ForgetsVote,
    /// The last entry that was synced is gone after a restart.
    LosesLastEntry,
    /// A read is answered without asking anybody.
    ReadsLocally,
    /// A write is acknowledged when it is proposed.
    AcknowledgesEarly,
    /// A checkpoint says that it is older than it is: entries are applied twice.
    CheckpointTooOld,
    /// A checkpoint says that it is newer than it is: an entry is left out.
    CheckpointTooNew,
    /// A snapshot that is sent lacks a key.
    SnapshotLosesKey,
    /// A snapshot that is sent says it is of the index that was asked for, though the state has gone on.
    SnapshotStale,
    /// Watchers are not told of a change.
    DropsEvent,
    /// Watchers are told of a change twice.
    RepeatsEvent,
    /// Watchers are told of changes in the wrong order.
    SwapsEvents,
    /// A member stores something else than the others.
    Corrupts,
    /// A member's clock runs ten times too fast, and it ends leases by it.
    FastClock,
}

impl Bug {
    pub(crate) const ALL: [Self; 14] = [
        Self::SyncLies,
        Self::ForgetsVote,
        Self::LosesLastEntry,
        Self::ReadsLocally,
        Self::AcknowledgesEarly,
        Self::CheckpointTooOld,
        Self::CheckpointTooNew,
        Self::SnapshotLosesKey,
        Self::SnapshotStale,
        Self::DropsEvent,
        Self::RepeatsEvent,
        Self::SwapsEvents,
        Self::Corrupts,
        Self::FastClock,
    ];
}
