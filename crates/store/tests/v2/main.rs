//! Our store next to Debian's etcd: the same questions to both, and the answers compared.
#![allow(clippy::unwrap_used, reason = "a test")]

mod align;
mod cluster;
mod compare;
mod discovery;
mod etcdctl;
mod gateway;
mod http;
mod keys;
mod peer;
mod script;
mod single;
mod snapshot;
