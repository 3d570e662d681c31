//! `orlop rollback`

use anyhow::{Context, Result};
use serde_json::json;

use super::engine;
use crate::exit::Exit;
use crate::output::{self, Output};

/// Make the next boot take the other slot's release
#[derive(clap::Args)]
pub struct Args {
    /// Reboot right away
    #[arg(long)]
    reboot: bool,
    #[command(flatten)]
    output: Output,
}

pub fn run(args: &Args) -> Result<Exit> {
    let answer = engine::call("Rollback", &json!({}), &mut |_| ())?;
    output::print(args.output.output, &answer, |answer| {
        let what = answer
            .status
            .staged
            .as_ref()
            .or(answer.status.rollback.as_ref());
        let what = what.map_or("the other slot".into(), |it| {
            format!("version {} in slot {}", it.version, it.slot)
        });
        format!("the next boot takes {what}\n")
    })?;
    if args.reboot {
        host::child::run(std::process::Command::new("systemctl").arg("reboot"))
            .context("cannot reboot")?;
    }
    Ok(Exit::Ok)
}
