//! `orlop update`

use anyhow::Result;
use release::status::{EngineStatus, UpdateState};
use serde_json::json;

use super::engine;
use crate::exit::Exit;
use crate::output::{self, Output};
use crate::progress::Step;

/// Update this host to its channel's release
#[derive(clap::Args)]
pub struct Args {
    /// Ask the server, and install nothing
    #[arg(long)]
    check: bool,
    /// Also take a release that failed here before, or an older one
    #[arg(long, conflicts_with = "check")]
    force: bool,
    /// Forget which releases failed here, and have the server forget it; installs nothing
    #[arg(long, conflicts_with_all = ["check", "force"])]
    clear_failed: bool,
    #[command(flatten)]
    output: Output,
}

pub fn run(args: &Args) -> Result<Exit> {
    if args.clear_failed {
        return clear_failed(args.output);
    }
    let (method, parameters) = if args.check {
        ("Check", json!({}))
    } else {
        ("Update", json!({ "force": args.force }))
    };
    let step = Step::begin("update");
    let answer = engine::call(method, &parameters, &mut |status| {
        step.detail(&phase(status))
    })?;
    drop(step);
    output::print(args.output.output, &answer, |answer| {
        match (&answer.status.staged, &answer.available) {
            (Some(staged), _) => {
                format!(
                    "version {} is in slot {} and waits for a reboot\n",
                    staged.version, staged.slot
                )
            }
            (None, Some(version)) => format!("version {version} is available\n"),
            (None, None) => "this host has the newest release of its channel\n".into(),
        }
    })?;
    Ok(Exit::Ok)
}

fn clear_failed(output: Output) -> Result<Exit> {
    let before = engine::call("GetStatus", &json!({}), &mut |_| {})?;
    let answer = engine::call("ClearFailed", &json!({}), &mut |_| {})?;
    output::print(output.output, &answer, |_| forgotten(&before.status))?;
    Ok(Exit::Ok)
}

fn forgotten(before: &EngineStatus) -> String {
    let mut text = String::new();
    for failed in &before.failed {
        text += &format!("forgot that {} failed: {}\n", failed.version, failed.reason);
    }
    if before.failed.is_empty() {
        text += "the failed list of this host was empty\n";
    }
    text + match before.server {
        Some(_) => {
            "the server is told to forget too; whatever is on the channel is tried again at the next check\n"
        }
        None => "updates are switched off, so the server hears of it when SERVER= is set again\n",
    }
}

fn phase(status: &EngineStatus) -> String {
    let percent = status.update.progress.map_or(String::new(), |progress| {
        format!(" {:.0} %", progress * 100.0)
    });
    let phase = match status.update.state {
        UpdateState::Idle => "idle",
        UpdateState::Checking => "asks the server",
        UpdateState::Downloading => "downloads",
        UpdateState::Writing => "writes the passive slot",
        UpdateState::Staged => "waits for a reboot",
        UpdateState::Error => "failed",
    };
    format!("{phase}{percent}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use release::status::FailedRelease;

    #[test]
    fn what_was_forgotten_is_named() {
        let mut status = EngineStatus {
            update: release::status::UpdateStatus::default(),
            staged: None,
            rollback: None,
            failed: vec![FailedRelease {
                version: "3".parse().unwrap(),
                id: None,
                reason: "sshd.service failed".into(),
                at: "1970-01-01T00:00:00Z".parse().unwrap(),
            }],
            slots: vec![],
            channel: release::Channel::stable(),
            server: Some("http://server/v1/update/".into()),
        };
        assert_eq!(
            forgotten(&status),
            "forgot that 3 failed: sshd.service failed\n\
             the server is told to forget too; whatever is on the channel is tried again at the next check\n"
        );
        status.failed.clear();
        status.server = None;
        assert_eq!(
            forgotten(&status),
            "the failed list of this host was empty\n\
             updates are switched off, so the server hears of it when SERVER= is set again\n"
        );
    }
}
