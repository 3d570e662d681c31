//! `orlop completions`

use anyhow::Result;
use clap_complete::Shell;

use crate::exit::Exit;

/// Print completions for a shell
#[derive(clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

pub fn run(args: &Args, command: &mut clap::Command) -> Result<Exit> {
    clap_complete::generate(args.shell, command, "orlop", &mut std::io::stdout());
    Ok(Exit::Ok)
}
