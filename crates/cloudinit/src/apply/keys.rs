//! `~/.ssh/authorized_keys`: our keys between two marks, everybody else's as they are.
//!
//! The original keeps a directory of key files and makes `authorized_keys` from it, which loses
//! keys that a person adds to the file itself. One file with a block of ours loses nothing.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use super::files::give;
use super::{ApplyError, Changes};
use crate::plan::{Keys, Plan};
use crate::root::resolve;

/// The name of the block, unless somebody wants another one beside it.
pub const KEY_NAME: &str = "coreos-cloudinit";

pub(super) fn authorize(
    root: &Path,
    all: &[Keys],
    name: &str,
    changes: &mut Changes,
) -> Result<(), ApplyError> {
    for user in together(all) {
        write(root, &user, name, changes)?;
    }
    Ok(())
}

/// Users whose `authorized_keys` would change.
pub fn unauthorized(plan: &Plan, root: &Path) -> Vec<Keys> {
    let name = plan.key_name.as_deref().unwrap_or(KEY_NAME);
    let mut users = together(&plan.keys);
    users.retain(|user| {
        let old = resolve(root, &file(user)).and_then(std::fs::read_to_string);
        !old.is_ok_and(|old| old == authorized_keys(&old, &user.keys, name))
    });
    users
}

/// A user may be named twice, in `users` and by `ssh_authorized_keys`: both count.
fn together(all: &[Keys]) -> Vec<Keys> {
    let mut users: Vec<Keys> = Vec::new();
    for more in all {
        let known = users.iter().position(|user| user.user == more.user);
        let index = known.unwrap_or_else(|| {
            let mut user = more.clone();
            user.keys.clear();
            users.push(user);
            users.len() - 1
        });
        for key in &more.keys {
            if !users[index].keys.contains(key) {
                users[index].keys.push(key.clone());
            }
        }
    }
    users
}

fn file(user: &Keys) -> String {
    format!("{}/.ssh/authorized_keys", user.home)
}

fn write(root: &Path, user: &Keys, name: &str, changes: &mut Changes) -> Result<(), ApplyError> {
    let owner = (user.uid, user.gid);
    let path = file(user);
    let full = resolve(root, &path).map_err(ApplyError::io(Path::new(&path), "resolve"))?;
    let dir = full.parent().unwrap_or(root);
    if dir.symlink_metadata().is_err() {
        let make = DirBuilder::new().mode(0o700).create(dir);
        make.map_err(ApplyError::io(dir, "make"))?;
        // The umask may have taken more than sshd likes.
        let closed = Permissions::from_mode(0o700);
        std::fs::set_permissions(dir, closed).map_err(ApplyError::io(dir, "change the mode of"))?;
        give(dir, owner)?;
    }
    let old = match std::fs::read_to_string(&full) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(ApplyError::io(&full, "read")(error)),
    };
    let new = authorized_keys(&old, &user.keys, name);
    if new != old {
        let ours = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        host::atomic::write(
            &full,
            new.as_bytes(),
            0o600,
            (owner != ours).then_some(owner),
        )?;
        changes.done.push(format!(
            "authorized {} keys for {}",
            user.keys.len(),
            user.user
        ));
    }
    Ok(())
}

/// `old` with our block replaced, or added at the end.
pub fn authorized_keys(old: &str, keys: &[String], name: &str) -> String {
    let begin_line = format!("# BEGIN {name}: these lines are replaced at every boot");
    let end_line = format!("# END {name}");
    let block = format!("{begin_line}\n{}\n{end_line}\n", keys.join("\n"));
    let begin = old.find(&begin_line);
    let end = begin.and_then(|begin| {
        let end = old[begin..].find(&end_line)?;
        Some(begin + end + end_line.len())
    });
    if let (Some(begin), Some(end)) = (begin, end) {
        let rest = old[end..].strip_prefix('\n').unwrap_or(&old[end..]);
        return format!("{}{block}{rest}", &old[..begin]);
    }
    let newline = if old.is_empty() || old.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    format!("{old}{newline}{block}")
}
