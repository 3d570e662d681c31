//! Raft: the log that all members agree on, and the thread that owns it.

pub mod core;
pub mod disk;
pub mod driver;
mod log;

pub use self::core::{Actions, Core, Event, Options, Standing};
pub use self::driver::Node;
