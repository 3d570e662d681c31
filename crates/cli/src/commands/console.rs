//! `orlop console`

use anyhow::{Result, bail};
use vm::{console, machine, node};

use super::lab;
use crate::exit::Exit;

/// Attach to a node's serial console; Ctrl-] leaves it
#[derive(clap::Args)]
pub struct Args {
    /// The node; without it the first
    node: Option<String>,
    /// Print what the console said so far, and leave
    #[arg(long)]
    log: bool,
}

pub fn run(args: &Args) -> Result<Exit> {
    let (dir, node) = node::pick(&lab()?, args.node.as_deref())?;
    if args.log {
        println!("{}", machine::console_tail(&dir, usize::MAX));
        return Ok(Exit::Ok);
    }
    if node.running(&dir).is_none() {
        bail!("{} is off; --log shows what its console said", node.name);
    }
    eprintln!(
        "The console of {}; Ctrl-] leaves it. It said last:",
        node.name
    );
    eprintln!("{}", machine::console_tail(&dir, 10));
    console::attach(&dir)?;
    Ok(Exit::Ok)
}
