//! `~/.ssh/authorized_keys`: our keys between two marks, everybody else's as they are.
//!
//! The original keeps a directory of key files and makes `authorized_keys` from it, which loses
//! keys that a person adds to the file itself. One file with a block of ours loses nothing.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use super::files::give;
use super::{ApplyError, Changes};
use crate::plan::Keys;
use crate::root::resolve;

const BEGIN: &str = "# BEGIN coreos-cloudinit: these lines are replaced at every boot";
const END: &str = "# END coreos-cloudinit";

/// A user may be named twice, in `users` and by `ssh_authorized_keys`: both count.
pub(super) fn authorize(
    root: &Path,
    all: &[Keys],
    changes: &mut Changes,
) -> Result<(), ApplyError> {
    for (index, first) in all.iter().enumerate() {
        if all[..index].iter().any(|other| other.user == first.user) {
            continue;
        }
        let mut keys: Vec<&str> = Vec::new();
        for key in all
            .iter()
            .filter(|k| k.user == first.user)
            .flat_map(|k| &k.keys)
        {
            if !keys.contains(&key.as_str()) {
                keys.push(key);
            }
        }
        write(root, first, &keys, changes)?;
    }
    Ok(())
}

fn write(root: &Path, user: &Keys, keys: &[&str], changes: &mut Changes) -> Result<(), ApplyError> {
    let owner = (user.uid, user.gid);
    let path = format!("{}/.ssh/authorized_keys", user.home);
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
    let new = authorized_keys(&old, keys);
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
        changes
            .done
            .push(format!("authorized {} keys for {}", keys.len(), user.user));
    }
    Ok(())
}

/// `old` with our block replaced, or added at the end.
pub fn authorized_keys(old: &str, keys: &[&str]) -> String {
    let block = format!("{BEGIN}\n{}\n{END}\n", keys.join("\n"));
    let begin = old.find(BEGIN);
    let end = begin.and_then(|begin| old[begin..].find(END).map(|end| begin + end + END.len()));
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
