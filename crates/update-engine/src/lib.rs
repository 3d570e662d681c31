//! How a host gets from one release to the next.
//!
//! Two processes, split where the danger lies: [`daemon`] talks to the network and has no disk,
//! [`writer`] has the disk and no network. They meet on a Unix socket, and the writer believes
//! nothing that it did not check itself. [`engine`] decides; it is pure. [`good`] and
//! [`boot_failed`] are what a boot ends with.

pub mod boot_failed;
pub mod daemon;
pub mod engine;
pub mod fetch;
pub mod good;
mod keys;
pub mod memory;
mod paths;
mod slots;
mod wire;
pub mod writer;

pub use slots::Source;
