//! Facts about the running machine, and actions on it.
//!
//! Whatever reads or writes a file takes the root directory as an argument, so that the same code
//! runs against `/`, a mounted image and a test's temporary directory.

pub mod atomic;
pub mod child;
pub mod cmdline;
pub mod conf;
pub mod extensions;
mod file;
#[cfg(feature = "log")]
pub mod log;
pub mod machine;
pub mod notify;
pub mod os_release;
pub mod running;
#[cfg(feature = "signals")]
pub mod signals;
#[cfg(feature = "systemd")]
pub mod systemd;
pub mod varlink;

pub use conf::UpdateConf;
pub use file::{ReadError, under};
