//! `orlop ssh`

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, bail};
use vm::node;
use vm::ssh::{Key, Ssh};

use super::lab;
use crate::exit::Exit;

/// Open a shell in a node, or run a command there
#[derive(clap::Args)]
pub struct Args {
    /// The node; without it the first
    node: Option<String>,
    /// Log in as this user
    #[arg(short, long, default_value = "core")]
    user: String,
    /// The command and its arguments, for the node's shell
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

pub fn run(args: &Args) -> Result<Exit> {
    let lab = lab()?;
    let (dir, node) = node::pick(&lab, args.node.as_deref())?;
    if node.running(&dir).is_none() {
        bail!("{} is off; ./orlop up starts it", node.name);
    }
    let mut ssh = Ssh::new(&dir, &Key::ensure(&lab)?, node.ssh_port)
        .user(&args.user)
        .command();
    if args.command.is_empty() && std::io::stdin().is_terminal() {
        ssh.arg("-t");
    }
    if !args.command.is_empty() {
        ssh.arg("--").args(&args.command);
    }
    Err(ssh.exec()).context("cannot start ssh")
}
