//! The files, as they are written. Unknown fields stay part of what is signed, and are not read.

use std::collections::BTreeMap;

use jiff::Timestamp as Time;
use serde::{Deserialize, Serialize};

use crate::Sha256;

/// A file: what is signed, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    pub signatures: Vec<Signature>,
    pub signed: serde_json::Value,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    pub keyid: String,
    /// Hex.
    pub sig: String,
}

/// `_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Root,
    Timestamp,
    Snapshot,
    Targets,
}

/// Part of every file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Common {
    #[serde(rename = "_type")]
    pub(super) kind: Kind,
    pub(super) spec_version: String,
    pub(super) version: u64,
    pub(super) expires: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    #[serde(rename = "_type")]
    pub kind: Kind,
    pub spec_version: String,
    pub version: u64,
    pub expires: Time,
    pub consistent_snapshot: bool,
    pub keys: BTreeMap<String, Key>,
    /// By the name of the role.
    pub roles: BTreeMap<String, Role>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamp {
    #[serde(rename = "_type")]
    pub kind: Kind,
    pub spec_version: String,
    pub version: u64,
    pub expires: Time,
    /// Of `snapshot.json` alone.
    pub meta: BTreeMap<String, FileMeta>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    #[serde(rename = "_type")]
    pub kind: Kind,
    pub spec_version: String,
    pub version: u64,
    pub expires: Time,
    /// Of `targets.json` and of each channel's.
    pub meta: BTreeMap<String, FileMeta>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    #[serde(rename = "_type")]
    pub kind: Kind,
    pub spec_version: String,
    pub version: u64,
    pub expires: Time,
    pub targets: BTreeMap<String, TargetMeta>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegations: Option<Delegations>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub keytype: String,
    pub scheme: String,
    pub keyval: KeyValue,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// Hex.
    pub public: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    pub keyids: Vec<String>,
    pub threshold: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMeta {
    pub version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<Hashes>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hashes {
    pub sha256: Sha256,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetMeta {
    pub length: u64,
    pub hashes: Hashes,
    /// Version, epoch and the like, for people and tools; hosts read the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<serde_json::Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegations {
    pub keys: BTreeMap<String, Key>,
    pub roles: Vec<Delegation>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegation {
    pub name: String,
    pub keyids: Vec<String>,
    pub threshold: u32,
    pub terminating: bool,
    /// `stable/*`: no other role may speak of the channel.
    pub paths: Vec<String>,
}

impl Delegation {
    /// Shell patterns of the form that we write: a directory and a star, which stops at a slash.
    pub fn allows(&self, path: &str) -> bool {
        self.paths
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                None => pattern == path,
                Some(start) => path
                    .strip_prefix(start)
                    .is_some_and(|rest| !rest.is_empty() && !rest.contains('/')),
            })
    }
}
