//! What the REST API says, as JSON. Scripts read it: fields are added, never renamed.

use jiff::Timestamp;
use release::status::{FailedRelease, Health};
use release::{Channel, File, Sha256, Slot, Version};
use serde::{Deserialize, Serialize};

use crate::rollout::{Policy, Tally};

/// A host, as it last described itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Host {
    pub machine_id: String,
    pub hostname: Option<String>,
    /// Text, because a foreign client's version need not be one of ours.
    pub version: String,
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    pub slot: Option<Slot>,
    pub channel: String,
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    pub health: Option<Health>,
    pub boot_id: Option<String>,
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub first_seen: Timestamp,
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub last_seen: Timestamp,
    pub last_event: Option<Event>,
    /// What this host tried and left again.
    #[cfg_attr(feature = "server", schema(value_type = Vec<Object>))]
    pub failed: Vec<FailedRelease>,
    /// What it will be offered when it asks next.
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    pub available: Option<Version>,
    /// The group whose policy holds for it.
    #[serde(default)]
    pub group: Option<String>,
    /// The group that an operator put it into, whatever it says itself.
    #[serde(default)]
    pub assigned: Option<String>,
    /// Why it stays with what it runs.
    #[serde(default)]
    pub waits: Option<String>,
}

/// A step in the life of an update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Event {
    pub id: i64,
    #[cfg_attr(feature = "server", schema(value_type = String))]
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
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Release {
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub version: Version,
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub id: Sha256,
    pub architecture: String,
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub created: Timestamp,
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub published: Timestamp,
    /// Bytes of `/usr` in the slot.
    pub usr_size: u64,
    /// Bytes that a full update downloads.
    pub download_size: u64,
    pub uki_size: u64,
    /// It is Flatcar's, and offered to Flatcar's hosts alone. The sizes of `/usr` and UKI are not known then.
    #[serde(default)]
    pub flatcar: bool,
    #[cfg_attr(feature = "server", schema(value_type = Vec<Object>))]
    pub files: Vec<File>,
    /// Channels that point at it.
    #[cfg_attr(feature = "server", schema(value_type = Vec<String>))]
    pub channels: Vec<Channel>,
    #[serde(default)]
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    pub minimum_source_version: Option<Version>,
    /// When an operator took it back; it is offered to nobody then.
    #[serde(default)]
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    pub withdrawn: Option<Timestamp>,
    #[serde(default)]
    pub withdrawn_reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ChannelState {
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub name: Channel,
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    pub version: Option<Version>,
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    pub changed: Option<Timestamp>,
    /// Hosts that follow it.
    pub hosts: u64,
}

/// The body of `PUT /api/v1/channels/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct SetChannel {
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub version: Version,
}

/// The body of `POST /api/v1/channels/NAME/promote`, and of `…/promote/check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Promote {
    /// The channel whose release is taken over.
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub from: Channel,
    /// The release that is meant: refused if the channel has another one by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    pub version: Option<Version>,
}

/// The body of `POST /api/v1/releases/VERSION/withdraw`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Withdraw {
    pub reason: String,
}

/// Hosts that take releases in the same way. A host belongs to the group that its `GROUP=` names,
/// or to the one that an operator put it into.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct GroupState {
    pub name: String,
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub channel: Channel,
    pub description: String,
    pub policy: Policy,
    /// False: it came with the channel of its name and has the default policy.
    pub own: bool,
    pub hosts: u64,
    pub rollout: Option<RolloutState>,
    /// Of releases that some of its hosts go to first.
    #[serde(default)]
    pub stops: Vec<RolloutState>,
}

/// The body of `PUT /api/v1/groups/NAME`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SetGroup {
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub channel: Channel,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub policy: Policy,
}

/// A release on its way through a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct RolloutState {
    pub id: i64,
    pub group: String,
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub version: Version,
    /// Hosts below the minimum source version of what the channel points at go there first.
    #[serde(default)]
    pub stop: bool,
    /// `awaiting_canary`, `active`, `paused`, `halted`, `complete` or `superseded`.
    pub status: String,
    /// Who paused it, or why it halted.
    pub reason: Option<String>,
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub started: Timestamp,
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub changed: Timestamp,
    /// The newest open wave, counted from 1.
    pub wave: usize,
    /// When the next wave opens, if nothing speaks against it.
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    pub next_wave: Option<Timestamp>,
    pub waves: Vec<WaveState>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct WaveState {
    /// In percent of the group.
    pub share: u8,
    pub open: bool,
    #[serde(flatten)]
    pub tally: Tally,
}

/// The body of `PUT /api/v1/hosts/ID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AssignHost {
    /// None: the group that the host names itself.
    pub group: Option<String>,
}

/// What an operator did, or the server by itself (no actor).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Activity {
    pub id: i64,
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub at: Timestamp,
    pub actor: Option<String>,
    pub action: String,
    pub subject: String,
    pub detail: String,
}

/// `GET /api/v1/overview`: the fleet in numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Overview {
    pub hosts: u64,
    pub healthy: u64,
    /// How many hosts run what, most first.
    pub versions: Vec<VersionCount>,
    /// The same, every hour.
    pub history: Vec<HistoryPoint>,
    /// Why hosts left releases, most first.
    pub failures: Vec<FailureCount>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct VersionCount {
    pub version: String,
    pub hosts: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct HistoryPoint {
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub at: Timestamp,
    pub versions: Vec<VersionCount>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct FailureCount {
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub version: Version,
    /// The first line of what the hosts said.
    pub reason: String,
    pub hosts: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees everything.
    Viewer,
    /// Changes things as well.
    Operator,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Viewer, Self::Operator]
            .into_iter()
            .find(|role| role.as_str() == name)
    }
}

/// A token as `GET /api/v1/tokens` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct TokenState {
    pub name: String,
    pub role: Role,
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub made: Timestamp,
}

/// The body of `POST /api/v1/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MakeToken {
    pub name: String,
    pub role: Role,
}

/// Its answer: the only time that the token is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct NewToken {
    pub name: String,
    pub role: Role,
    pub token: String,
}

/// `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ServerHealth {
    pub status: String,
    pub version: String,
    pub hosts: u64,
    pub releases: u64,
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    pub error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}
