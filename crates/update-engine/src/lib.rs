//! How a host gets from one release to the next.
//!
//! Two processes, split where the danger lies: [`daemon`] talks to the network and has no disk,
//! [`writer`] has the disk and no network. They meet on a Unix socket, and the writer believes
//! nothing that it did not check itself. [`engine`] decides; it is pure. [`extensions`] are parts of `/usr` that only some hosts want. [`good`] and
//! [`boot_failed`] are what a boot ends with, [`health`] decides which of them.

pub mod boot_failed;
pub mod daemon;
pub mod engine;
mod epoch;
pub mod extensions;
pub mod fetch;
pub mod good;
pub mod health;
mod keys;
pub mod memory;
pub mod next_root;
mod paths;
mod slots;
mod trust;
pub mod way;
mod wire;
pub mod writer;

pub use slots::Source;
pub use trust::Follow;
