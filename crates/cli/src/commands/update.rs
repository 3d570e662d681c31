//! `orlop update`

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use release::Channel;
use release::status::{EngineStatus, UpdateState};
use rustix::fs::{FlockOperation, fcntl_lock};
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
    /// Write what --download-only fetched, and ask no server
    #[arg(long, conflicts_with_all = ["check", "download_only", "from", "channel"])]
    apply: bool,
    /// Follow this channel from now on, and update to its release. An older release needs --force
    #[arg(long, conflicts_with = "check", value_name = "NAME")]
    channel: Option<Channel>,
    /// Take the newest release of this published tree (tuf/ and a directory for each version), whatever the server says;
    /// a directory is one that orlop release export made, such as on a USB stick
    #[arg(long, value_name = "DIR|URL")]
    from: Option<String>,
    /// Believe metadata that is past its date, this once: for a tree that was copied long ago
    #[arg(long)]
    allow_expired: bool,
    /// Forget which releases failed here, and have the server forget it; installs nothing
    #[arg(long, conflicts_with_all = ["check", "force", "download_only", "apply", "channel", "from", "allow_expired"])]
    clear_failed: bool,
    #[command(flatten)]
    output: Output,
}

pub fn run(args: &Args) -> Result<Exit> {
    if args.clear_failed {
        return clear_failed(args.output);
    }
    if let Some(channel) = &args.channel {
        let changed = host::conf::follow(Path::new("/"), channel)
            .context("the channel stays as it was (only root may change it, try sudo)")?;
        match changed {
            true => eprintln!("this host follows {channel} from now on"),
            false => eprintln!("this host follows {channel} already"),
        }
    }
    let (_tree, from) = match &args.from {
        Some(from) if !is_url(from) => {
            let tree = Tree::serve(Path::new(from))?;
            let url = tree.url();
            (Some(tree), Some(url))
        }
        from => (None, from.clone()),
    };
    let Args {
        force,
        download_only,
        allow_expired,
        ..
    } = args;
    let (method, parameters) = if args.check {
        let parameters = json!({ "from": from, "allow_expired": allow_expired });
        ("Check", parameters)
    } else {
        let parameters = json!({
            "force": force, "download_only": download_only, "apply": args.apply, "from": from,
            "allow_expired": allow_expired,
        });
        ("Update", parameters)
    };
    // The writer does not take the daemon's word for it that root wants this.
    let permissions = [(*allow_expired, ALLOW_EXPIRED), (*force, ALLOW_OLDER)];
    let wanted = permissions.iter().filter(|(wanted, _)| *wanted);
    let allowed: Result<Vec<File>> = wanted.map(|(_, path)| hold(Path::new(path))).collect();
    let allowed = allowed?;
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

/// Who holds a lock for writing on it is root and allows an update to believe expired metadata; see
/// `update-engine`'s `trust`.
const ALLOW_EXPIRED: &str = "/run/orlop/update-allow-expired";
/// Likewise, to be to an older release.
const ALLOW_OLDER: &str = "/run/orlop/update-allow-older";

/// Until it is dropped or this process ends in another way. The file stays: removed, it could be the one
/// that somebody else is about to lock.
fn hold(path: &Path) -> Result<File> {
    let open = || -> std::io::Result<File> {
        let file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)?;
        // Whatever the umask says: update-engine is not root, and has to see the lock.
        file.set_permissions(Permissions::from_mode(0o644))?;
        Ok(file)
    };
    let file = open().with_context(|| {
        format!(
            "cannot write {}; only root may do that, try sudo",
            path.display()
        )
    })?;
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)
        .context("another orlop update with --force or --allow-expired runs; wait for it")?;
    Ok(file)
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
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use release::status::FailedRelease;

    /// As the kernel has it, which asks everybody but the process itself.
    fn is_locked(path: &Path) -> bool {
        let inode = std::fs::metadata(path).unwrap().ino();
        let pid = std::process::id().to_string();
        std::fs::read_to_string("/proc/locks")
            .unwrap()
            .lines()
            .any(|line| {
                let words: Vec<_> = line.split_whitespace().collect();
                words[1..=4] == ["POSIX", "ADVISORY", "WRITE", &pid]
                    && words[5].ends_with(&format!(":{inode}"))
            })
    }

    #[test]
    fn what_is_allowed_is_for_as_long_as_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("allow");
        for _ in 0..2 {
            let held = hold(&path).unwrap();
            assert!(is_locked(&path));
            let mode = held.metadata().unwrap().mode();
            assert_eq!(mode & 0o777, 0o644);
            drop(held);
            assert!(!is_locked(&path));
        }
        let nowhere = hold(&dir.path().join("none/allow")).unwrap_err();
        assert!(nowhere.to_string().contains("try sudo"), "{nowhere}");
    }

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
            epoch: 0,
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
