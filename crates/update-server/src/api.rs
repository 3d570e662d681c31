//! What the REST API says, as JSON. Scripts read it: fields are added, never renamed.

use jiff::Timestamp;
use release::status::{FailedRelease, Health};
use release::{Channel, File, Sha256, Slot, Version};
use serde::{Deserialize, Serialize};

/// A host, as it last described itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    pub machine_id: String,
    pub hostname: Option<String>,
    /// Text, because a foreign client's version need not be one of ours.
    pub version: String,
    pub slot: Option<Slot>,
    pub channel: String,
    pub health: Option<Health>,
    pub boot_id: Option<String>,
    pub first_seen: Timestamp,
    pub last_seen: Timestamp,
    pub last_event: Option<Event>,
    /// What this host tried and left again.
    pub failed: Vec<FailedRelease>,
    /// What it will be offered when it asks next.
    pub available: Option<Version>,
}

/// A step in the life of an update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub id: i64,
    pub at: Timestamp,
    pub machine_id: String,
    pub hostname: Option<String>,
    /// In words: downloaded, staged, good, failed, …
    pub event: String,
    pub event_type: u32,
    pub event_result: u32,
    pub version: Option<String>,
    pub previous_version: Option<String>,
    pub error_code: Option<i64>,
    pub reason: Option<String>,
}

/// A finished release.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Release {
    pub version: Version,
    pub id: Sha256,
    pub architecture: String,
    pub created: Timestamp,
    pub published: Timestamp,
    /// Bytes of `/usr` in the slot.
    pub usr_size: u64,
    /// Bytes that a full update downloads.
    pub download_size: u64,
    pub uki_size: u64,
    pub files: Vec<File>,
    /// Channels that point at it.
    pub channels: Vec<Channel>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelState {
    pub name: Channel,
    pub version: Option<Version>,
    pub changed: Option<Timestamp>,
    /// Hosts that follow it.
    pub hosts: u64,
}

/// The body of `PUT /api/v1/channels/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetChannel {
    pub version: Version,
}

/// `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerHealth {
    pub status: String,
    pub version: String,
    pub hosts: u64,
    pub releases: u64,
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}
