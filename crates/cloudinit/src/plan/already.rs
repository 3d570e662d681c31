//! What is so already: there is nothing to do about it, and nothing to show.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{FileOp, FileWrite};
use crate::root::{Entry, Last, walk};

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
    let Some((entry, meta)) = look(&write.path, root) else {
        return false;
    };
    meta.is_file()
        && meta.len() == write.content.len() as u64
        && meta.mode() & 0o7777 == write.mode
        && (meta.uid(), meta.gid()) == (write.owner.uid, write.owner.gid)
        && entry.read().is_ok_and(|bytes| bytes == write.content)
}

/// In one of the two ways to mask a unit; anything else is somebody's unit.
pub(crate) fn is_masked(path: &str, root: &Path) -> bool {
    links_to(path, "/dev/null", root)
        || look(path, root).is_some_and(|(_, meta)| meta.is_file() && meta.len() == 0)
}

pub(crate) fn links_to(path: &str, wanted: &str, root: &Path) -> bool {
    look(path, root)
        .and_then(|(entry, _)| std::fs::read_link(entry.path()).ok())
        .is_some_and(|target| target == Path::new(wanted))
}

fn look(path: &str, root: &Path) -> Option<(Entry, Metadata)> {
    let entry = walk(root, path, Last::Itself).ok()?.entry()?;
    let meta = entry.stat().ok()?;
    Some((entry, meta))
}
