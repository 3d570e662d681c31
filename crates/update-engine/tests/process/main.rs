//! The real programs, on a host made of files: a root directory and a disk image.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

mod addresses;
mod disks;
mod every;
mod extensions;
mod faults;
mod health;
mod host;
mod kills;
mod later;
mod network;
mod requests;
mod rules;
mod server;
mod signed;
mod trust;
mod update;
mod update1;
mod ways;
