//! The real binary over real HTTP.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod support;

mod fleet;
mod publish;
mod service;
