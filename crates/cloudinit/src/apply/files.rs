//! One change each: skipped where it is so already, atomic where it is not.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, PermissionsExt, chown, fchown, lchown, symlink,
};
use std::path::Path;

use host::atomic::WriteError;

use super::calls::is_alias;
use super::{ApplyError, Changes};
use crate::finding::Place;
use crate::plan::{FileOp, FileWrite, Home, Owner, is_already, is_masked, links_to};
use crate::root::{Entry, Last, Walk, walk};

const HOSTNAME: &str = "/proc/sys/kernel/hostname";

pub(super) fn run(root: &Path, op: &FileOp, changes: &mut Changes) -> Result<(), ApplyError> {
    match op {
        FileOp::Write(file) => write(root, file, changes),
        FileOp::Mask { path, .. } => {
            if link(root, path, "/dev/null")? {
                changed(path, format!("masked {path}"), changes);
            }
            Ok(())
        }
        FileOp::Link { path, target, .. } => {
            if link(root, path, target)? {
                changed(path, format!("linked {path} to {target}"), changes);
            }
            Ok(())
        }
        FileOp::Directory {
            path, mode, owner, ..
        } => directory(root, path, *mode, owner, changes),
        FileOp::Unmask { path } => unmask(root, path, changes),
    }
}

pub(super) fn write(
    root: &Path,
    file: &FileWrite,
    changes: &mut Changes,
) -> Result<(), ApplyError> {
    if is_already(file, root) {
        return Ok(());
    }
    let entry = parents(root, &file.path)?;
    // Files of root need no chown where we are root, and cannot have one where a test is not.
    let ours = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let owner = (file.owner.uid, file.owner.gid);
    host::atomic::write(
        &entry.path(),
        &file.content,
        file.mode,
        (owner != ours).then_some(owner),
    )
    .map_err(named(&entry))?;
    changed(&file.path, format!("wrote {}", file.path), changes);
    Ok(())
}

fn changed(path: &str, what: String, changes: &mut Changes) {
    changes.units |= is_for_systemd(path);
    changes.done.push(what);
}

/// After a change there, systemd has to read its units again.
pub fn is_for_systemd(path: &str) -> bool {
    path.contains("/systemd/system/") && !is_alias(path)
}

/// The last part of a path, the directories before it made.
pub(super) fn parents(root: &Path, path: &str) -> Result<Entry, ApplyError> {
    walk(root, path, Last::Itself)
        .and_then(Walk::made)
        .map_err(ApplyError::way(path))
}

/// With the path that a person knows.
pub(super) fn named(entry: &Entry) -> impl FnOnce(WriteError) -> ApplyError {
    let path = entry.shown();
    move |error| ApplyError::Write(WriteError { path, ..error })
}

/// A link, put into place whole. `false`: it was there.
fn link(root: &Path, path: &str, target: &str) -> Result<bool, ApplyError> {
    if links_to(path, target, root) {
        return Ok(false);
    }
    let entry = parents(root, path)?;
    let full = entry.shown();
    let temp = entry.beside(&part(&entry));
    host::atomic::remove(&temp).map_err(named(&entry))?;
    symlink(target, &temp).map_err(ApplyError::io(&full, "link"))?;
    std::fs::rename(&temp, entry.path()).map_err(ApplyError::io(&full, "replace"))?;
    Ok(true)
}

/// The name of what is to become an entry.
fn part(entry: &Entry) -> OsString {
    let mut part = OsString::from(".part-");
    part.push(entry.name());
    part
}

fn directory(
    root: &Path,
    path: &str,
    mode: u32,
    owner: &Owner,
    changes: &mut Changes,
) -> Result<(), ApplyError> {
    let entry = parents(root, path)?;
    let full = entry.shown();
    let ids = (owner.uid, owner.gid);
    let is = |meta: &Metadata| {
        meta.is_dir() && (meta.mode() & 0o7777, (meta.uid(), meta.gid())) == (mode, ids)
    };
    match entry.stat() {
        Ok(meta) if is(&meta) => return Ok(()),
        Ok(_) => {}
        Err(_) => std::fs::create_dir(entry.path()).map_err(ApplyError::io(&full, "make"))?,
    }
    let dir = entry.directory().map_err(ApplyError::io(&full, "open"))?;
    give_open(&dir, ids).map_err(ApplyError::io(&full, "change the owner of"))?;
    dir.set_permissions(Permissions::from_mode(mode))
        .map_err(ApplyError::io(&full, "change the mode of"))?;
    changed(path, format!("made {path}"), changes);
    Ok(())
}

/// Takes away a link to `/dev/null` or an empty file, the two ways to mask a unit; anything else
/// is somebody's unit and stays.
fn unmask(root: &Path, path: &str, changes: &mut Changes) -> Result<(), ApplyError> {
    if is_masked(path, root) {
        let entry = parents(root, path)?;
        host::atomic::remove(&entry.path()).map_err(named(&entry))?;
        changed(path, format!("unmasked {path}"), changes);
    }
    Ok(())
}

/// The name is that of the next boot, and of this one.
pub fn is_named(root: &Path, name: &str) -> bool {
    is_already(&hostname_file(name), root)
        && running_name(root).is_ok_and(|now| now.is_none_or(|now| now == name))
}

fn hostname_file(name: &str) -> FileWrite {
    FileWrite {
        path: "/etc/hostname".to_owned(),
        content: format!("{name}\n").into_bytes(),
        mode: 0o644,
        owner: Owner::root(),
        place: Place::whole(),
    }
}

/// `None`: not a running system.
fn running_name(root: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(host::under(root, HOSTNAME)) {
        Ok(name) => Ok(Some(name.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The name for the next boot, and for now. The kernel's file takes root's write without any
/// capability, where sethostname(2) would want CAP_SYS_ADMIN.
pub(super) fn hostname(root: &Path, name: &str, changes: &mut Changes) -> Result<(), ApplyError> {
    write(root, &hostname_file(name), changes)?;
    let now = host::under(root, HOSTNAME);
    let current = running_name(root).map_err(ApplyError::io(&now, "read"))?;
    if current.is_some_and(|current| current != name) {
        std::fs::write(&now, name).map_err(ApplyError::io(&now, "write"))?;
        changes.done.push(format!("set the host name to {name}"));
    }
    Ok(())
}

/// A home with the skeleton in it, complete or not there at all.
pub(super) fn home(root: &Path, home: &Home, changes: &mut Changes) -> Result<(), ApplyError> {
    let entry = parents(root, &home.path)?;
    if entry.is_there() {
        return Ok(());
    }
    // It is made by its path, part by part, which somebody else could lead elsewhere meanwhile.
    if entry.is_foreign() {
        let problem = "it is below a directory that is not root's";
        return Err(ApplyError::refused(&home.path, problem));
    }
    let full = entry.shown();
    let temp = full.with_file_name(part(&entry));
    match std::fs::remove_dir_all(&temp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ApplyError::io(&temp, "remove")(error));
        }
        _ => {}
    }
    let skeleton = host::under(root, "/etc/skel");
    copy_tree(&skeleton, &temp, (home.uid, home.gid))?;
    let closed = Permissions::from_mode(0o700);
    std::fs::set_permissions(&temp, closed).map_err(ApplyError::io(&temp, "change the mode of"))?;
    std::fs::rename(&temp, &full).map_err(ApplyError::io(&full, "make"))?;
    changes.done.push(format!("made {}", home.path));
    Ok(())
}

/// Directories, files and links; there is nothing else in a skeleton.
fn copy_tree(from: &Path, to: &Path, owner: (u32, u32)) -> Result<(), ApplyError> {
    DirBuilder::new()
        .mode(0o755)
        .create(to)
        .map_err(ApplyError::io(to, "make"))?;
    give(to, owner)?;
    let entries = match std::fs::read_dir(from) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ApplyError::io(from, "read")(error)),
    };
    for entry in entries {
        let entry = entry.map_err(ApplyError::io(from, "read"))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry
            .file_type()
            .map_err(ApplyError::io(&source, "look at"))?;
        if kind.is_dir() {
            copy_tree(&source, &target, owner)?;
        } else if kind.is_symlink() {
            std::fs::read_link(&source)
                .and_then(|link| symlink(link, &target))
                .map_err(ApplyError::io(&target, "link"))?;
            give(&target, owner)?;
        } else if kind.is_file() {
            std::fs::copy(&source, &target).map_err(ApplyError::io(&target, "write"))?;
            give(&target, owner)?;
        }
    }
    Ok(())
}

pub(super) fn give_open(file: &File, (uid, gid): (u32, u32)) -> io::Result<()> {
    let ours = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    match ours == (uid, gid) {
        true => Ok(()),
        false => fchown(file, Some(uid), Some(gid)),
    }
}

fn give(path: &Path, (uid, gid): (u32, u32)) -> Result<(), ApplyError> {
    let ours = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    if ours == (uid, gid) {
        return Ok(());
    }
    let link = path.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
    let give = if link { lchown } else { chown };
    give(path, Some(uid), Some(gid)).map_err(ApplyError::io(path, "change the owner of"))
}
