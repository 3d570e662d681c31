//! `orlop-store`: etcd's API on Raft. The way of a write, in the order of the modules: `api` → `propose` → `node`
//! (Raft) → `wal` → `machine` (apply) → `mvcc` → `watch`.

pub mod api;
pub mod auth;
pub mod bench;
pub mod config;
pub mod error;
#[doc(hidden)]
pub mod fuzz;
pub mod http;
pub mod machine;
pub mod metrics;
pub mod mvcc;
pub mod node;
pub mod old;
pub mod pb;
pub mod peer;
pub mod propose;
pub mod server;
pub mod snapshot;
pub mod tls;
pub mod v2;
pub mod wal;
pub mod watch;
#[cfg(test)]
mod watch_tests;
pub mod wire;
