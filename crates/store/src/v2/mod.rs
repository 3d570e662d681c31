//! The v2 keys API: a tree of keys and directories with an index of its own, served as JSON over plain HTTP.
//!
//! - [`Store`] is the state machine. It does no IO and reads no clock: a [`Request`] carries the time it was made at,
//!   so that every member that applies it gets the same tree, the same events and the same index.
//! - [`Shared`] is the store behind a lock, as the apply path and the HTTP handlers share it.
//! - [`http::router`] speaks HTTP. It reaches the log through the trait [`Proposer`], and nothing else.
//! - [`discovery`] is the client of the discovery protocol; its server side is just keys below `_etcd/registry`.
//!
//! The tree has three name spaces, as etcd's has: `/0` for the server, `/1` for the user's keys, `/2` for users and roles.

pub mod auth;
pub mod discovery;
mod error;
mod event;
mod gojson;
mod history;
pub mod http;
mod hub;
mod path;
mod proposer;
mod request;
mod stats;
mod store;
mod tree;

pub use error::{Code, Error};
pub use event::{Action, Event, NodeView};
pub use hub::Watch;
pub use proposer::{
    Counts, Failure, FollowerStats, Latency, LeaderStats, Member, MemberError, Proposer, RaftState,
    SelfStats,
};
pub use request::Request;
pub use store::{Outcome, Shared, Store};

/// Where the user's keys are.
pub const KEYS: &str = "/1";
/// Where users, roles and the switch of v2 authentication are.
pub const AUTH: &str = "/2";
