//! Containers on what the host has: systemd-nspawn in a transient unit. No daemon of our own.
//!
//! An *image* is a root file system in `/var/lib/machines/NAME`. A *container* is an image that
//! runs, as `container-NAME.service` with its limits on that unit's cgroup.

pub mod cgroup;
pub mod cli;
pub mod name;
pub mod plan;
pub mod run;
pub mod spec;
pub mod store;

pub use name::Name;
pub use plan::Plan;
pub use spec::RunSpec;
pub use store::Store;
