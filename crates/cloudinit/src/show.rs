//! Text for people.

use std::fmt::Write;
use std::path::Path;

use cloudinit::apply::{self, CallState};
use cloudinit::finding::Finding;
use cloudinit::imports::{Imported, Purpose};
use cloudinit::plan::{Call, FileOp, FileWrite, Plan};
use cloudinit::status::{State, Status};

/// `FILE:LINE:COLUMN: …`, which editors can jump to.
pub(crate) fn findings(file: &Path, findings: &[Finding]) -> String {
    findings
        .iter()
        .map(|finding| format!("{}:{finding}\n", file.display()))
        .collect()
}

/// What would change. `known` was fetched before.
pub(crate) fn plan(plan: &Plan, root: &Path, known: &Imported) -> String {
    let mut out = String::new();
    if let Some(name) = &plan.hostname
        && !apply::is_named(root, name)
    {
        let _ = writeln!(out, "set the host name to {name}");
    }
    for line in &plan.account_changes {
        let _ = writeln!(out, "{line}");
    }
    for user in apply::unauthorized(plan, root) {
        let _ = writeln!(out, "authorize {} keys for {}", user.keys.len(), user.user);
    }
    for import in &plan.imports {
        let what = match import.value.purpose {
            _ if known.has(&import.value) => continue,
            Purpose::Keys => "keys",
            Purpose::File => "a file",
            Purpose::UserData => "user-data",
        };
        let _ = writeln!(out, "fetch {what} from {}", import.value.url);
    }
    let (done, left): (Vec<&FileOp>, Vec<&FileOp>) =
        plan.files.iter().partition(|op| op.is_done(root));
    for op in &left {
        match op {
            FileOp::Write(write) => out += &file(write, root),
            FileOp::Mask { path, .. } => {
                let _ = writeln!(out, "mask {path}");
            }
            FileOp::Directory {
                path, mode, owner, ..
            } => {
                let _ = writeln!(out, "directory {path} ({mode:04o} {})", owner.name);
            }
            FileOp::Link { path, target, .. } => {
                let _ = writeln!(out, "link {path} to {target}");
            }
            FileOp::Unmask { path } => {
                let _ = writeln!(out, "unmask {path}");
            }
        }
    }
    let before = Status::read(root).map_or_else(Vec::new, |status| status.calls);
    let units = left.iter().any(|op| apply::is_for_systemd(op.path()));
    for status in apply::planned(plan, &before) {
        // systemd has read again what was changed before.
        let unneeded = status.call == Call::Reload && !units;
        let open = matches!(status.state, CallState::Pending | CallState::Failed);
        if open && !unneeded {
            let _ = writeln!(out, "{}", status.call);
        }
    }
    let same = done
        .iter()
        .filter(|op| !matches!(op, FileOp::Unmask { .. }));
    match (out.is_empty(), same.count()) {
        (true, 0) => out.push_str("nothing to do\n"),
        (true, count) => {
            let _ = writeln!(out, "nothing to do: {count} files are as they should be");
        }
        (false, _) => {}
    }
    out
}

fn file(write: &FileWrite, root: &Path) -> String {
    let FileWrite {
        path, mode, owner, ..
    } = write;
    let what = format!("{path} ({mode:04o} {})", owner.name);
    let old = std::fs::read(host::under(root, path));
    let verb = if old.is_ok() { "change" } else { "write" };
    let texts = (
        String::from_utf8(old.unwrap_or_default()),
        std::str::from_utf8(&write.content),
    );
    match texts {
        (Ok(old), Ok(new)) => format!("{verb} {what}\n{}", difference(&old, new)),
        _ => format!("{verb} {what}, {} bytes\n", write.content.len()),
    }
}

/// The lines between what both have in common at the start and at the end.
fn difference(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let same =
        |pairs: &mut dyn Iterator<Item = (&&str, &&str)>| pairs.take_while(|(a, b)| a == b).count();
    let start = same(&mut old.iter().zip(&new));
    let (old, new) = (&old[start..], &new[start..]);
    let end = same(&mut old.iter().rev().zip(new.iter().rev()));
    let (old, new) = (&old[..old.len() - end], &new[..new.len() - end]);
    let mut out = String::new();
    for line in old {
        let _ = writeln!(out, "  - {line}");
    }
    for line in new {
        let _ = writeln!(out, "  + {line}");
    }
    out
}

/// One line, and the errors.
pub(crate) fn summary(status: &Status) -> String {
    let source = status.datasource.as_deref().unwrap_or("no source");
    let changes = status.changed.len();
    let mut out = match status.state {
        State::NoData => "cloudinit: no user-data on this machine\n".to_owned(),
        State::Waiting => "cloudinit: waits for the network\n".to_owned(),
        State::Applied => format!("cloudinit: {source}: applied, {changes} changes\n"),
        State::Invalid => {
            format!("cloudinit: {source}: the user-data has errors, nothing of it is applied\n")
        }
        State::Failed => format!(
            "cloudinit: {source}: failed: {}\n",
            status.error.as_deref().unwrap_or_default()
        ),
    };
    for finding in status.findings.iter().filter(|finding| finding.is_error()) {
        let _ = writeln!(out, "cloudinit: user-data:{finding}");
    }
    out
}

pub(crate) fn status(status: &Status) -> String {
    let mut out = summary(status);
    for finding in status.findings.iter().filter(|finding| !finding.is_error()) {
        let _ = writeln!(out, "  user-data:{finding}");
    }
    if matches!(status.state, State::NoData | State::Waiting) {
        for line in &status.tried {
            let _ = writeln!(out, "  {line}");
        }
    }
    for line in &status.changed {
        let _ = writeln!(out, "  {line}");
    }
    for call in &status.calls {
        let state = match call.state {
            CallState::Pending => "waiting",
            CallState::Done => "done",
            CallState::Unneeded => "not needed",
            CallState::Failed => "failed",
        };
        let _ = write!(out, "  {}: {state}", call.call);
        let _ = match &call.error {
            Some(error) => writeln!(out, ": {error}"),
            None => writeln!(out),
        };
    }
    out
}
