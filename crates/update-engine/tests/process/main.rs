//! The real programs, on a host made of files: a root directory and a disk image.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

mod faults;
mod host;
mod kills;
mod network;
mod server;
mod update;
