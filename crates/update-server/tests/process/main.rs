//! The real binary over real HTTP.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod support;

mod browser;
mod fleet;
mod load;
mod oidc;
mod postgres;
mod publish;
mod refusals;
mod rollout;
mod s3;
mod service;
mod signin;
mod wire;
