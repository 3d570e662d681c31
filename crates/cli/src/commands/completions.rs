//! `orlop completions`

use std::io::Write;

use anyhow::{Context, Result};
use clap_complete::Shell;

use crate::exit::Exit;

/// Print completions for a shell
#[derive(clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

pub fn run(args: &Args, command: &mut clap::Command) -> Result<Exit> {
    // Into memory first: it panics when its reader has had enough.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "orlop", &mut script);
    match std::io::stdout().write_all(&script) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot print the completions")
        }
        _ => Ok(Exit::Ok),
    }
}
