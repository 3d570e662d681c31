//! What is so already: there is nothing to do about it, and nothing to show.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{FileOp, FileWrite};
use crate::root::resolve;

impl FileOp {
    /// Doing it would change nothing.
    pub fn is_done(&self, root: &Path) -> bool {
        match self {
            Self::Write(write) => is_already(write, root),
            Self::Mask { path, .. } => links_to(path, "/dev/null", root),
            Self::Link { path, target, .. } => links_to(path, target, root),
            Self::Directory {
                path, mode, owner, ..
            } => look(path, root).is_some_and(|(_, meta)| {
                meta.is_dir()
                    && meta.mode() & 0o7777 == *mode
                    && (meta.uid(), meta.gid()) == (owner.uid, owner.gid)
            }),
            Self::Unmask { path } => !is_masked(path, root),
        }
    }
}

/// The file is there with this content, mode and owner.
pub fn is_already(write: &FileWrite, root: &Path) -> bool {
    let Some((path, meta)) = look(&write.path, root) else {
        return false;
    };
    meta.is_file()
        && meta.len() == write.content.len() as u64
        && meta.mode() & 0o7777 == write.mode
        && (meta.uid(), meta.gid()) == (write.owner.uid, write.owner.gid)
        && std::fs::read(&path).is_ok_and(|bytes| bytes == write.content)
}

/// In one of the two ways to mask a unit; anything else is somebody's unit.
pub(crate) fn is_masked(path: &str, root: &Path) -> bool {
    links_to(path, "/dev/null", root)
        || look(path, root).is_some_and(|(_, meta)| meta.is_file() && meta.len() == 0)
}

pub(crate) fn links_to(path: &str, wanted: &str, root: &Path) -> bool {
    resolve(root, path)
        .and_then(std::fs::read_link)
        .is_ok_and(|target| target == Path::new(wanted))
}

fn look(path: &str, root: &Path) -> Option<(PathBuf, Metadata)> {
    let path = resolve(root, path).ok()?;
    let meta = path.symlink_metadata().ok()?;
    Some((path, meta))
}
