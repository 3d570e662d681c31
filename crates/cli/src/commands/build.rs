//! `orlop build`

use anyhow::Result;

use crate::exit::Exit;
use crate::output::{Format, Output};

/// Build a release from Debian packages and os/
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    build: image::cli::BuildArgs,
    #[command(flatten)]
    output: Output,
}

pub fn run(args: &Args) -> Result<Exit> {
    image::cli::run(&args.build, args.output.output == Format::Json)?;
    Ok(Exit::Ok)
}
