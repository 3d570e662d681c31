//! `orlop update`

use std::path::Path;

use anyhow::{Context, Result};
use release::status::{EngineStatus, UpdateState};
use serde_json::json;

use super::engine;
use super::tree::Tree;
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
    /// Fetch and check, and write nothing yet
    #[arg(long, conflicts_with = "check")]
    download_only: bool,
    /// Take the newest release of this published tree (tuf/ and a directory for each version), whatever the server says;
    /// a directory is one that orlop release export made, such as on a USB stick
    #[arg(long, value_name = "DIR|URL")]
    from: Option<String>,
    /// Believe metadata that is past its date, this once: for a tree that was copied long ago
    #[arg(long)]
    allow_expired: bool,
    /// Forget which releases failed here, and have the server forget it; installs nothing
    #[arg(long, conflicts_with_all = ["check", "force", "download_only", "from", "allow_expired"])]
    clear_failed: bool,
    #[command(flatten)]
    output: Output,
}

pub fn run(args: &Args) -> Result<Exit> {
    if args.clear_failed {
        return clear_failed(args.output);
    }
    let (_tree, from) = match &args.from {
        Some(from) if !is_url(from) => {
            let tree = Tree::serve(Path::new(from))?;
            let url = tree.url();
            (Some(tree), Some(url))
        }
        from => (None, from.clone()),
    };
    let (method, parameters) = if args.check {
        ("Check", json!({ "from": from }))
    } else {
        let Args {
            force,
            download_only,
            ..
        } = args;
        let parameters = json!({ "force": force, "download_only": download_only, "from": from });
        ("Update", parameters)
    };
    let allowed = args.allow_expired.then(allow_expired).transpose()?;
    let step = Step::begin("update");
    let answer = engine::call(method, &parameters, &mut |status| {
        step.detail(&phase(status))
    });
    drop(step);
    drop(allowed);
    let answer = answer?;
    output::print(args.output.output, &answer, |answer| {
        match (&answer.status.staged, &answer.available) {
            (Some(staged), _) => {
                let how = match staged.soft_reboot {
                    true => "a reboot; systemctl soft-reboot is enough",
                    false => "a reboot",
                };
                format!(
                    "version {} is in slot {} and waits for {how}\n",
                    staged.version, staged.slot
                )
            }
            (None, Some(version)) => format!("version {version} is available\n"),
            (None, None) => "this host has the newest release of its channel\n".into(),
        }
    })?;
    Ok(Exit::Ok)
}

fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// What update-engine and its writer read; see `update-engine`'s `trust`.
const OVERRIDES: &str = "/run/orlop/update-overrides.json";
/// Should nobody be left to take it back.
const ALLOWED_FOR: std::time::Duration = std::time::Duration::from_secs(3600);

/// Takes the permission back, to what it was.
struct Allowed {
    before: Option<Vec<u8>>,
}

fn allow_expired() -> Result<Allowed> {
    let before = std::fs::read(OVERRIDES).ok();
    let mut content = match &before {
        Some(text) => serde_json::from_slice(text)
            .with_context(|| format!("{OVERRIDES} is damaged; remove it"))?,
        None => json!({}),
    };
    let until = jiff::Timestamp::now() + ALLOWED_FOR;
    // What the file allowed for some time is not allowed for longer by this.
    if before.is_none() {
        content["until"] = json!(until);
    }
    content["allow_expired"] = json!(true);
    std::fs::create_dir_all("/run/orlop")
        .and_then(|()| std::fs::write(OVERRIDES, content.to_string()))
        .with_context(|| format!("cannot write {OVERRIDES}; only root may do that, try sudo"))?;
    Ok(Allowed { before })
}

impl Drop for Allowed {
    fn drop(&mut self) {
        let _ = match &self.before {
            Some(before) => std::fs::write(OVERRIDES, before),
            None => std::fs::remove_file(OVERRIDES),
        };
    }
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
