//! locksmith decides when a host with a staged release reboots into it.
//!
//! update-engine leaves `/run/update-engine/reboot-needed`; `locksmith.path` sees it and starts the
//! daemon, which lives until the reboot, or until none is needed any more. The decisions are in
//! [`machine`] and pure; [`daemon`] carries them out.

pub mod daemon;
pub mod lock;
pub mod machine;
pub mod needed;
pub mod policy;
pub mod status;
pub mod window;
