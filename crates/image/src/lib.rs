//! Building the operating system: Debian packages and `os/` in, a signed release and its disk image
//! out. The order of the walk is in [`build::build`].

pub mod apt;
pub mod binaries;
pub mod build;
pub mod cli;
mod compose;
mod cpio;
mod deb;
pub mod deltas;
mod diskimg;
mod extension;
pub mod fetch;
mod inputs;
pub mod keys;
mod lists;
pub mod lock;
mod modules;
pub mod peer;
pub mod repository;
mod sbom;
mod tools;
mod tree;
pub mod uki;

pub use build::{BuildOptions, Summary, build, summary};
