//! Raft: the log that all members agree on, and the thread that owns it.

pub mod core;
pub mod disk;
#[cfg(test)]
mod disk_tests;
pub mod driver;
mod log;

pub use self::core::{Actions, Core, Event, Options, Standing};
pub use self::driver::Node;
