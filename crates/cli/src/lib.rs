//! The commands of `orlop`, one file each, for its two programs: `orlop` of a workstation (`main.rs`) and the host's
//! (`host.rs`, installed as `orlop` as well), which has only what a host needs and less than half of the size.

pub mod commands;
pub mod exit;
pub mod output;
pub mod progress;
