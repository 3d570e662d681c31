//! The Update Framework: who may say what a channel's release is, and until when.
//!
//! ```text
//! root (offline, 2 of 3 keys; in /usr) ─▶ targets (offline) ─▶ one role for each channel
//!      └─▶ timestamp (online, days) ─▶ snapshot (online, days) ─▶ the versions of all of these
//! ```
//!
//! A subset of the specification (1.0): Ed25519, SHA-256, canonical JSON, consistent snapshots, one
//! level of delegation. [`Trusted`] is the client's workflow (section 5) without its IO: whoever has
//! bytes hands them in, in the order of the workflow, and gets a reason or the next step. [`sign`]
//! is the other side. The two are judged by python-tuf in the tests.
//!
//! Nothing here replaces the signed manifest: it is a target, found by its digest.

/// What a release's manifest is called among the targets.
pub fn target_name(channel: &str, version: &crate::Version) -> String {
    format!("{channel}/{version}.{}", crate::MANIFEST_FILE)
}

mod canonical;
mod metadata;
pub mod sign;
mod trusted;

pub use metadata::{
    Delegation, Delegations, FileMeta, Hashes, Key, KeyValue, Kind, Role, Root, Signature, Signed,
    Snapshot, TargetMeta, Targets, Timestamp,
};
pub use trusted::{ChannelTargets, Code, Limits, Trusted, TufError};
