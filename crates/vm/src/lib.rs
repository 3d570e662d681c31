//! Virtual machines for people (`orlop up`) and for tests (`orlop scenario run`): the same code boots both.
//!
//! A machine is planned as data ([`plan::Plan`] → a QEMU command line), then started ([`machine::Machine`]). Its
//! directory under `.orlop/vm/` holds everything about it, so that another process can find, ask and stop it.
#![warn(missing_docs)]

pub mod accel;
pub mod bench;
pub mod cloud_config;
pub mod compare;
pub mod console;
pub mod image;
pub mod interrupt;
pub mod lab;
pub mod machine;
pub mod node;
pub mod plan;
pub mod process;
pub mod qmp;
pub mod replay;
pub mod saved;
pub mod scenario;
pub mod seed;
pub mod server;
pub mod ssh;
