//! `~/.ssh/authorized_keys`: our keys between two marks, everybody else's as they are.
//!
//! The original keeps a directory of key files and makes `authorized_keys` from it, which loses
//! keys that a person adds to the file itself. One file with a block of ours loses nothing.

use std::fs::{DirBuilder, File, Metadata, Permissions};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt, MetadataExt as _, OpenOptionsExt as _, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::files::give_open;
use super::{ApplyError, Changes};
use crate::plan::{Keys, Plan};
use crate::root::{Entry, Last, Walk, is_foreign, walk};

/// The name of the block, unless somebody wants another one beside it.
pub const KEY_NAME: &str = "coreos-cloudinit";

pub(super) fn authorize(
    root: &Path,
    all: &[Keys],
    name: &str,
    keep: bool,
    changes: &mut Changes,
) -> Result<(), ApplyError> {
    for user in together(all) {
        write(root, &user, name, keep, changes)?;
    }
    Ok(())
}

/// Users whose `authorized_keys` would change.
pub fn unauthorized(plan: &Plan, root: &Path) -> Vec<Keys> {
    let name = plan.key_name.as_deref().unwrap_or(KEY_NAME);
    let mut users = together(&plan.keys);
    users.retain(|user| {
        let entry = walk(root, &ssh_dir(user), Last::Itself).map(Walk::entry);
        let open = |entry: Entry| SshDir::open(&entry, user)?.read(user);
        let old = match entry {
            Ok(Some(entry)) => open(entry),
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        !old.is_ok_and(|old| {
            let here = in_block(&old, name);
            let all_here = user.keys.iter().all(|key| here.contains(key));
            (plan.keep_keys && all_here) || old == authorized_keys(&old, &user.keys, name)
        })
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

/// `~/.ssh`, held open. A home belongs to its user, who must not be able to lead root elsewhere: not by a link, and not by
/// putting one there meanwhile.
struct SshDir(File);

const FILE: &str = "authorized_keys";

fn ssh_dir(user: &Keys) -> String {
    format!("{}/.ssh", user.home)
}

impl SshDir {
    fn open(entry: &Entry, user: &Keys) -> io::Result<Self> {
        let dir = entry.directory()?;
        own(&dir.metadata()?, user)?;
        Ok(Self(dir))
    }

    fn make(entry: &Entry, user: &Keys) -> Result<Self, ApplyError> {
        let path = entry.shown();
        let make = DirBuilder::new().mode(0o700).create(entry.path());
        make.map_err(ApplyError::io(&path, "make"))?;
        let dir = entry.directory().map_err(ApplyError::io(&path, "open"))?;
        // The umask may have taken more than sshd likes.
        dir.set_permissions(Permissions::from_mode(0o700))
            .map_err(ApplyError::io(&path, "change the mode of"))?;
        give_open(&dir, (user.uid, user.gid))
            .map_err(ApplyError::io(&path, "change the owner of"))?;
        Ok(Self(dir))
    }

    /// The file's name by way of the open directory, wherever that is now.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{FILE}", self.0.as_raw_fd()))
    }

    /// Empty if it is not there.
    fn read(&self, user: &Keys) -> io::Result<Vec<u8>> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = File::options()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(self.path());
        let mut file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened?,
        };
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other(format!("{FILE} is no file")));
        }
        own(&meta, user)?;
        let mut old = Vec::new();
        file.read_to_end(&mut old)?;
        Ok(old)
    }
}

/// What is another user's got there by a trick, and what was root's may have been somebody's secret.
fn own(meta: &Metadata, user: &Keys) -> io::Result<()> {
    let single = meta.is_dir() || meta.nlink() == 1;
    match meta.uid() == user.uid || (meta.uid() == 0 && single) {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "it belongs to uid {}, not to {}",
            meta.uid(),
            user.user
        ))),
    }
}

fn write(
    root: &Path,
    user: &Keys,
    name: &str,
    keep: bool,
    changes: &mut Changes,
) -> Result<(), ApplyError> {
    let owner = (user.uid, user.gid);
    let path = ssh_dir(user);
    let opened = match walk(root, &path, Last::Itself).map(Walk::entry) {
        Ok(Some(entry)) if entry.is_there() => {
            SshDir::open(&entry, user).and_then(|dir| Ok((dir.read(user)?, dir)))
        }
        Ok(Some(entry)) => SshDir::make(&entry, user).map(|dir| Ok((Vec::new(), dir)))?,
        Ok(None) => Err(io::Error::other(format!("there is no {}", user.home))),
        Err(error) if is_foreign(root, &path) => Err(io::Error::other(error)),
        Err(error) => return Err(ApplyError::way(&path)(error)),
    };
    let (old, dir) = match opened {
        Ok(opened) => opened,
        // One user's doing is no reason to leave the others without keys.
        Err(error) => {
            let problem = format!("{path}/{FILE} is not written: {error}");
            changes.refused.push((user.place.clone(), problem));
            return Ok(());
        }
    };
    let mut keys = match keep {
        true => in_block(&old, name),
        false => Vec::new(),
    };
    for key in &user.keys {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    let new = authorized_keys(&old, &keys, name);
    if new != old {
        let ours = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        host::atomic::write(&dir.path(), &new, 0o600, (owner != ours).then_some(owner))?;
        changes
            .done
            .push(format!("authorized {} keys for {}", keys.len(), user.user));
    }
    Ok(())
}

/// The keys that stand there under our name.
fn in_block(old: &[u8], name: &str) -> Vec<String> {
    let text = String::from_utf8_lossy(old);
    let begin = format!("# BEGIN {name}: these lines are replaced at every boot");
    let lines = text.lines().skip_while(|line| *line != begin).skip(1);
    let lines = lines.take_while(|line| *line != format!("# END {name}"));
    lines.map(str::to_owned).collect()
}

/// `old` with our block replaced, or added at the end. What else is in it need not be text.
pub fn authorized_keys(old: &[u8], keys: &[String], name: &str) -> Vec<u8> {
    let begin_line = format!("# BEGIN {name}: these lines are replaced at every boot");
    let end_line = format!("# END {name}");
    let block = format!("{begin_line}\n{}\n{end_line}\n", keys.join("\n"));
    let find = |text: &[u8], what: &str| {
        text.windows(what.len())
            .position(|window| window == what.as_bytes())
    };
    let begin = find(old, &begin_line);
    let end = begin.and_then(|begin| {
        let end = find(&old[begin..], &end_line)?;
        Some(begin + end + end_line.len())
    });
    if let (Some(begin), Some(end)) = (begin, end) {
        let rest = old[end..].strip_prefix(b"\n").unwrap_or(&old[end..]);
        return [&old[..begin], block.as_bytes(), rest].concat();
    }
    let newline: &[u8] = match old.is_empty() || old.ends_with(b"\n") {
        true => b"",
        false => b"\n",
    };
    [old, newline, block.as_bytes()].concat()
}
