//! Text for people.

use std::fmt::Write;
use std::path::Path;

use cloudinit::apply::CallState;
use cloudinit::finding::Finding;
use cloudinit::plan::{FileOp, FileWrite, Plan, is_already};
use cloudinit::status::{State, Status};

/// `FILE:LINE:COLUMN: …`, which editors can jump to.
pub(crate) fn findings(file: &Path, findings: &[Finding]) -> String {
    findings
        .iter()
        .map(|finding| format!("{}:{finding}\n", file.display()))
        .collect()
}

pub(crate) fn plan(plan: &Plan, root: &Path) -> String {
    let mut out = String::new();
    if let Some(name) = &plan.hostname {
        let _ = writeln!(out, "set the host name to {name}");
    }
    for line in &plan.account_changes {
        let _ = writeln!(out, "{line}");
    }
    for keys in &plan.keys {
        let _ = writeln!(out, "authorize {} keys for {}", keys.keys.len(), keys.user);
    }
    for op in &plan.files {
        match op {
            FileOp::Write(write) => out += &file(write, root),
            FileOp::Mask { path, .. } => {
                let _ = writeln!(out, "mask {path}");
            }
            FileOp::Unmask { .. } => {}
        }
    }
    for call in &plan.calls {
        let _ = writeln!(out, "{call}");
    }
    if out.is_empty() {
        out.push_str("nothing to do\n");
    }
    out
}

fn file(write: &FileWrite, root: &Path) -> String {
    let FileWrite {
        path, mode, owner, ..
    } = write;
    let what = format!("{path} ({mode:04o} {})", owner.name);
    if is_already(write, root) {
        return format!("keep {what}\n");
    }
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
