//! What is on a disk: the partition table, the two slots, the hash trees and the boot entries.
//!
//! Everything works on any `Read + Write + Seek` ([`io::BlockIo`]), so an image file, a block
//! device and a vector in a test are the same thing, and building an image needs no root.
//! Only [`dm`] changes a running kernel.
//!
//! The order of writes that keeps a machine bootable through a power cut is in one place:
//! `stage`.

#[cfg(feature = "esp")]
pub mod datadisk;
pub mod dm;
#[cfg(feature = "esp")]
pub mod esp;
pub mod gpt;
mod guid;
pub mod io;
mod slot;
#[cfg(feature = "esp")]
pub mod stage;
#[cfg(feature = "sysfs")]
pub mod sysfs;
pub mod verity;

pub use guid::{Guid, GuidError};
pub use slot::{Slot, SlotError};
