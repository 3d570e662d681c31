//! What would fail half-way is found before the first change.

use std::fs::FileType;
use std::path::Path;

use rustix::fs::StatVfsMountFlags;

use super::ApplyError;
use crate::finding::Finding;
use crate::plan::{FileOp, Home, Plan};
use crate::root::{Last, Walk, is_foreign, walk};

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
    let homes = plan
        .homes
        .iter()
        .enumerate()
        .map(|(index, it)| (home(root, it, &plan.homes[..index]), &it.place));
    homes
        .chain(files)
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
    let Some(way) = way(root, path)? else {
        return Ok(());
    };
    takes_writes(&way, path)?;
    if kind(way).is_some_and(|kind| kind.is_dir()) {
        return Err(ApplyError::refused(
            path,
            "there is a directory in its place",
        ));
    }
    Ok(())
}

/// What a user made of a directory is no reason to refuse everybody's user-data: `apply` warns of it, and it is `None`
/// here.
fn way(root: &Path, path: &str) -> Result<Option<Walk>, ApplyError> {
    match walk(root, path, Last::Itself) {
        Ok(way) => Ok(Some(way).filter(|way| !way.is_foreign())),
        Err(_) if is_foreign(root, path) => Ok(None),
        Err(error) => Err(ApplyError::way(path)(error)),
    }
}

fn takes_writes(way: &Walk, path: &str) -> Result<(), ApplyError> {
    let (nearest, shown) = way.nearest();
    let fs = rustix::fs::fstatvfs(nearest)
        .map_err(|error| ApplyError::io(shown, "look at")(error.into()))?;
    if fs.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(ApplyError::refused(path, "the file system is read-only"));
    }
    Ok(())
}

fn kind(way: Walk) -> Option<FileType> {
    Some(way.entry()?.stat().ok()?.file_type())
}

/// `path` is a directory, or can become one.
fn directory(root: &Path, path: &str) -> Result<(), ApplyError> {
    let Some(way) = way(root, path)? else {
        return Ok(());
    };
    match kind(way) {
        Some(kind) if kind.is_dir() => Ok(()),
        Some(_) => Err(ApplyError::refused(path, "there is a file in its place")),
        None => target(root, path),
    }
}

/// What belongs to the system, or is no place for files. Below the others there may be homes.
const NO_HOMES: [&str; 21] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt",
    "/proc", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/tmp",
];
const NONE_BELOW: [&str; 4] = ["/boot", "/dev", "/proc", "/sys"];

/// `home` is one user's directory, or can become it.
fn home(root: &Path, home: &Home, before: &[Home]) -> Result<(), ApplyError> {
    let path = home.path.as_str();
    let refuse = |problem: &str| Err(ApplyError::refused(path, problem));
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if !path.starts_with('/') || parts.contains(&"..") {
        return refuse("a home is an absolute path");
    }
    let plain = format!("/{}", parts.join("/"));
    let below = |dir: &str| {
        plain
            .strip_prefix(dir)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    if NO_HOMES.contains(&plain.as_str()) || NONE_BELOW.into_iter().any(below) {
        return refuse("a directory of the system is no home");
    }
    if before
        .iter()
        .any(|other| other.path == path && other.uid != home.uid)
    {
        return refuse("it is another user's home already");
    }
    match walk(root, path, Last::Followed) {
        Ok(way) if way.is_foreign() => Ok(()),
        Ok(way) => match kind(way) {
            Some(kind) if kind.is_dir() => Ok(()),
            Some(_) => refuse("there is a file in its place"),
            None => target(root, path),
        },
        Err(_) if is_foreign(root, path) => Ok(()),
        Err(error) => Err(ApplyError::way(path)(error)),
    }
}

fn ssh_dir(root: &Path, home: &str) -> Result<(), ApplyError> {
    let path = format!("{home}/.ssh");
    match way(root, &path)? {
        Some(way) => takes_writes(&way, &path),
        None => Ok(()),
    }
}
