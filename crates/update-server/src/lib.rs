//! The update server: hosts ask it over Omaha what to run, the operator publishes releases to it
//! and sees on its dashboard what became of them.
//!
//! - [`server`] is the service. One request's way: `routes` → a handler (`checkin`, `upload`,
//!   `rest`, `dashboard`) → one closure over the [`server`]'s database.
//! - [`rollout`] is the policy: who may have a release when. Pure.
//! - [`client`] is the operator's end of the REST API, with the types in [`api`].
//!
//! A host trusts nothing that comes from here except a manifest signed by a key it already has.
//! The server still refuses what is not signed by a key it knows: mistakes should show at
//! publishing, not on the fleet.

pub mod api;
#[cfg(feature = "server")]
pub mod bench;
pub mod client;
pub mod rollout;
#[cfg(feature = "server")]
pub mod server;
