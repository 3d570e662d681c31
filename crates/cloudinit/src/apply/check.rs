//! What would fail half-way is found before the first change.

use std::path::Path;

use rustix::fs::StatVfsMountFlags;

use super::ApplyError;
use crate::finding::Finding;
use crate::plan::{FileOp, Plan};
use crate::root::resolve;

pub fn check(plan: &Plan, root: &Path) -> Vec<Finding> {
    let accounts = plan
        .accounts
        .iter()
        .map(|write| (&write.path, &write.place));
    let files = plan.files.iter().filter_map(|op| match op {
        FileOp::Write(write) => Some((&write.path, &write.place)),
        FileOp::Mask { path, place } | FileOp::Link { path, place, .. } => Some((path, place)),
        FileOp::Directory { .. } | FileOp::Unmask { .. } => None,
    });
    let directories = plan.files.iter().filter_map(|op| match op {
        FileOp::Directory { path, place, .. } => Some((directory(root, path), place)),
        _ => None,
    });
    let files = accounts
        .chain(files)
        .map(|(path, place)| (target(root, path), place));
    let keys = plan
        .keys
        .iter()
        .map(|keys| (ssh_dir(root, &keys.home), &keys.place));
    files
        .chain(keys)
        .chain(directories)
        .filter_map(|(result, place)| {
            let error = anyhow::Error::new(result.err()?);
            Some(place.error(format!("{error:#}")))
        })
        .collect()
}

/// `path` can be written: nothing but directories on the way, no directory in its place, and a file
/// system that takes writes.
fn target(root: &Path, path: &str) -> Result<(), ApplyError> {
    let full = resolve(root, path).map_err(ApplyError::io(Path::new(path), "resolve"))?;
    if std::fs::symlink_metadata(&full).is_ok_and(|meta| meta.is_dir()) {
        return Err(ApplyError::refused(
            path,
            "there is a directory in its place",
        ));
    }
    above(&full, path)
}

/// What is nearest above it is a directory of a file system that takes writes.
fn above(full: &Path, path: &str) -> Result<(), ApplyError> {
    let nearest = full
        .ancestors()
        .skip(1)
        .find(|dir| dir.symlink_metadata().is_ok());
    let Some(nearest) = nearest else {
        return Ok(());
    };
    if !nearest.is_dir() {
        let problem = format!("{} is not a directory", nearest.display());
        return Err(ApplyError::refused(path, problem));
    }
    let fs = rustix::fs::statvfs(nearest)
        .map_err(|error| ApplyError::io(nearest, "look at")(error.into()))?;
    if fs.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(ApplyError::refused(path, "the file system is read-only"));
    }
    Ok(())
}

/// `path` is a directory, or can become one.
fn directory(root: &Path, path: &str) -> Result<(), ApplyError> {
    let full = resolve(root, path).map_err(ApplyError::io(Path::new(path), "resolve"))?;
    match std::fs::symlink_metadata(&full) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(ApplyError::refused(path, "there is a file in its place")),
        Err(_) => target(root, path),
    }
}

/// What its user made of `.ssh` is no reason to refuse everybody's user-data: `keys` warns of it.
fn ssh_dir(root: &Path, home: &str) -> Result<(), ApplyError> {
    let path = format!("{home}/.ssh");
    let full = resolve(root, &path).map_err(ApplyError::io(Path::new(&path), "resolve"))?;
    above(&full, &path)
}
