//! One file a command: its arguments and a function `run`.

pub mod bench;
mod bench_config;
mod bench_store;
pub mod build;
pub mod compare;
pub mod completions;
pub mod console;
pub mod delta;
pub mod down;
pub mod engine;
pub mod extension;
pub mod fleet;
pub mod keys;
pub mod man;
pub mod pki;
pub mod ps;
pub mod releases;
pub mod rollback;
pub mod rollout;
pub mod scenario;
pub mod schema;
pub mod serve;
pub mod ssh;
pub mod status;
pub mod test;
pub mod tree;
pub mod tuf;
pub mod up;
pub mod update;

use std::process::ExitCode;

use anyhow::{Context, Result};
use container::cli::ContainerArgs;
use vm::lab::Lab;

use crate::exit::Exit;

/// The lab of the checkout that we are in.
pub fn lab() -> Result<Lab> {
    Lab::find(&std::env::current_dir().context("cannot tell the current directory")?)
}

/// `orlop container`: the exit code is that of the container's command.
pub fn container(args: ContainerArgs) -> ExitCode {
    container::cli::main(args).unwrap_or_else(|error| Exit::of(Err(error)).into())
}
