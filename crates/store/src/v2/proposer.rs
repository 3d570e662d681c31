//! What the HTTP layer needs from the server around it.

use std::future::Future;

use serde::Serialize;

use super::request::Request;
use super::store::{Outcome, Shared};

/// Where the log stands, for the headers.
#[derive(Clone, Copy, Debug, Default)]
pub struct RaftState {
    pub index: u64,
    pub term: u64,
}

/// The log did not take the request, or did not answer in time. The text is the server's, such as
/// `etcdserver: request timed out`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

/// A member of the cluster, as `/v2/members` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
}

/// Why the list of members was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    #[error("membership: ID exists")]
    IdExists,
    #[error("membership: peerURL exists")]
    PeerUrlExists,
    #[error("membership: ID removed")]
    IdRemoved,
    #[error("membership: ID not found")]
    IdNotFound,
    /// Too few members, no leader, no answer in time.
    #[error("{0}")]
    Other(String),
}

/// `/v2/stats/self`.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SelfStats {
    pub name: String,
    /// In hexadecimal.
    pub id: String,
    /// `StateLeader`, `StateFollower`, `StateCandidate`.
    pub state: String,
    pub start_time: jiff::Timestamp,
    pub leader_info: LeaderInfo,
    pub recv_append_request_cnt: u64,
    pub send_append_request_cnt: u64,
}

/// Who leads, and since when.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaderInfo {
    pub leader: String,
    /// As Go writes a duration.
    pub uptime: String,
    pub start_time: jiff::Timestamp,
}

/// `/v2/stats/leader`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LeaderStats {
    pub leader: String,
    /// By the follower's identity in hexadecimal.
    pub followers: std::collections::BTreeMap<String, FollowerStats>,
}

/// How a follower does.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FollowerStats {
    pub latency: Latency,
    pub counts: Counts,
}

/// Milliseconds until an append was answered.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    pub current: f64,
    pub average: f64,
    pub standard_deviation: f64,
    pub minimum: f64,
    pub maximum: f64,
}

/// Appends that were answered, and those that were not.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    pub fail: u64,
    pub success: u64,
}

/// The server around the store.
pub trait Proposer: Send + Sync + 'static {
    /// The store that this member applies its log to.
    fn store(&self) -> &Shared;

    /// Puts a request through the log. Answers when this member has applied it.
    fn propose(&self, request: Request) -> impl Future<Output = Result<Outcome, Failure>> + Send;

    /// Returns when the store has all that was acknowledged before the call.
    fn linearize(&self) -> impl Future<Output = Result<(), Failure>> + Send;

    fn raft(&self) -> RaftState;

    fn cluster_id(&self) -> u64;

    fn members(&self) -> Vec<Member>;

    /// The leader's identity; none during an election.
    fn leader(&self) -> Option<u64>;

    fn add_member(
        &self,
        peer_urls: Vec<String>,
    ) -> impl Future<Output = Result<Member, MemberError>> + Send;

    fn remove_member(&self, id: u64) -> impl Future<Output = Result<(), MemberError>> + Send;

    fn update_member(
        &self,
        id: u64,
        peer_urls: Vec<String>,
    ) -> impl Future<Output = Result<(), MemberError>> + Send;

    fn self_stats(&self) -> SelfStats;

    /// None when this member does not lead.
    fn leader_stats(&self) -> Option<LeaderStats>;

    /// The time, in nanoseconds since 1970.
    fn now(&self) -> i64;
}
