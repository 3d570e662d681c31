//! `orlop down`

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use vm::ssh::Key;
use vm::{machine, node, server};

use super::lab;
use crate::exit::Exit;
use crate::progress::Step;

/// Stop nodes; their disks stay, and `up` goes on with them
#[derive(clap::Args)]
pub struct Args {
    /// The nodes; without any, all of them and the update-server
    nodes: Vec<String>,
    /// Pull the plug instead of shutting down
    #[arg(long)]
    now: bool,
    /// Delete their disks as well
    #[arg(long)]
    wipe: bool,
}

pub fn run(args: &Args) -> Result<Exit> {
    let lab = lab()?;
    let _lock = lab.lock("the nodes", "down")?;
    let nodes = if args.nodes.is_empty() {
        node::all(&lab)?
    } else {
        let picked = args.nodes.iter().map(|name| node::pick(&lab, Some(name)));
        picked.collect::<Result<_>>()?
    };
    let key = Key::ensure(&lab)?;
    // A node on its way down takes some seconds in emulation; a wiped one has nothing to lose.
    let patience = if args.now || args.wipe {
        Duration::ZERO
    } else {
        Duration::from_secs(60)
    };
    for (dir, node) in nodes {
        let step = Step::begin(&node.name);
        let was_running = machine::stop(&dir, &node, &key, patience)?;
        let state = if was_running { "stopped" } else { "was off" };
        if args.wipe {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
            step.done(&format!("{state}, its disk is deleted"));
        } else {
            step.done(state);
        }
    }
    if args.nodes.is_empty()
        && let Some(server) = server::Server::running(&lab.server())
    {
        let step = Step::begin("update-server");
        server.stop();
        step.done("stopped");
    }
    Ok(Exit::Ok)
}
