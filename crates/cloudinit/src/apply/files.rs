//! One change each: skipped where it is so already, atomic where it is not.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use super::calls::is_alias;
use super::{ApplyError, Changes};
use crate::finding::Place;
use crate::plan::{FileOp, FileWrite, Home, Owner, is_already};
use crate::root::resolve;

pub(super) fn run(root: &Path, op: &FileOp, changes: &mut Changes) -> Result<(), ApplyError> {
    match op {
        FileOp::Write(file) => write(root, file, changes),
        FileOp::Mask { path, .. } => mask(root, path, changes),
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
    let path = parents(root, &file.path)?;
    // Files of root need no chown where we are root, and cannot have one where a test is not.
    let ours = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let owner = (file.owner.uid, file.owner.gid);
    host::atomic::write(
        &path,
        &file.content,
        file.mode,
        (owner != ours).then_some(owner),
    )?;
    changed(&file.path, format!("wrote {}", file.path), changes);
    Ok(())
}

fn changed(path: &str, what: String, changes: &mut Changes) {
    changes.units |= path.contains("/systemd/system/") && !is_alias(path);
    changes.done.push(what);
}

/// The full path, its directories made.
fn parents(root: &Path, path: &str) -> Result<PathBuf, ApplyError> {
    let full = resolve(root, path).map_err(ApplyError::io(Path::new(path), "resolve"))?;
    if let Some(dir) = full.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .map_err(ApplyError::io(dir, "make"))?;
    }
    Ok(full)
}

fn mask(root: &Path, path: &str, changes: &mut Changes) -> Result<(), ApplyError> {
    if is_masked(root, path) {
        return Ok(());
    }
    let full = parents(root, path)?;
    let name = full.file_name().unwrap_or_default().to_string_lossy();
    let temp = full.with_file_name(format!(".part-{name}"));
    host::atomic::remove(&temp)?;
    symlink("/dev/null", &temp).map_err(ApplyError::io(&temp, "link"))?;
    std::fs::rename(&temp, &full).map_err(ApplyError::io(&full, "replace"))?;
    changed(path, format!("masked {path}"), changes);
    Ok(())
}

/// Takes away a link to `/dev/null` or an empty file, the two ways to mask a unit; anything else
/// is somebody's unit and stays.
fn unmask(root: &Path, path: &str, changes: &mut Changes) -> Result<(), ApplyError> {
    let full = resolve(root, path).map_err(ApplyError::io(Path::new(path), "resolve"))?;
    let empty = full
        .symlink_metadata()
        .is_ok_and(|meta| meta.is_file() && meta.len() == 0);
    if empty || is_masked(root, path) {
        host::atomic::remove(&full)?;
        changed(path, format!("unmasked {path}"), changes);
    }
    Ok(())
}

fn is_masked(root: &Path, path: &str) -> bool {
    resolve(root, path)
        .and_then(std::fs::read_link)
        .is_ok_and(|target| target == Path::new("/dev/null"))
}

/// The name for the next boot, and for now. The kernel's file takes root's write without any
/// capability, where sethostname(2) would want CAP_SYS_ADMIN.
pub(super) fn hostname(root: &Path, name: &str, changes: &mut Changes) -> Result<(), ApplyError> {
    let file = FileWrite {
        path: "/etc/hostname".to_owned(),
        content: format!("{name}\n").into_bytes(),
        mode: 0o644,
        owner: Owner::root(),
        place: Place::whole(),
    };
    write(root, &file, changes)?;
    let now = host::under(root, "/proc/sys/kernel/hostname");
    match std::fs::read_to_string(&now) {
        Ok(current) if current.trim_end() != name => {
            std::fs::write(&now, name).map_err(ApplyError::io(&now, "write"))?;
            changes.done.push(format!("set the host name to {name}"));
            Ok(())
        }
        Ok(_) => Ok(()),
        // Not a running system.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ApplyError::io(&now, "read")(error)),
    }
}

/// A home with the skeleton in it, complete or not there at all.
pub(super) fn home(root: &Path, home: &Home, changes: &mut Changes) -> Result<(), ApplyError> {
    let full =
        resolve(root, &home.path).map_err(ApplyError::io(Path::new(&home.path), "resolve"))?;
    if full.symlink_metadata().is_ok() {
        return Ok(());
    }
    parents(root, &home.path)?;
    let name = full.file_name().unwrap_or_default().to_string_lossy();
    let temp = full.with_file_name(format!(".part-{name}"));
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

pub(super) fn give(path: &Path, (uid, gid): (u32, u32)) -> Result<(), ApplyError> {
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
