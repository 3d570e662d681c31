//! `orlop man`

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::exit::Exit;

/// Write the manual pages
#[derive(clap::Args)]
pub struct Args {
    /// Where to
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub fn run(args: &Args, command: clap::Command) -> Result<Exit> {
    let dir = &args.dir;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    clap_mangen::generate_to(command, dir)
        .with_context(|| format!("cannot write to {}", dir.display()))?;
    Ok(Exit::Ok)
}
