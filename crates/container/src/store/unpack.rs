//! A tar archive into a directory, and never beside it.

use std::io::Read;
use std::path::{Component, Path};

use tar::{Archive, EntryType};

use super::StoreError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) entries: u64,
    /// Device nodes and the like: systemd-nspawn makes a `/dev` of its own.
    pub(super) skipped: u64,
}

/// Unpacks into `dir`. `privileged`: with owners and extended attributes, which only root may set.
pub(super) fn unpack(
    reader: impl Read,
    dir: &Path,
    privileged: bool,
) -> Result<Counts, StoreError> {
    let mut archive = Archive::new(reader);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_preserve_ownerships(privileged);
    archive.set_unpack_xattrs(privileged);
    let mut counts = Counts::default();
    let mut directories = Vec::new();
    for entry in archive.entries().map_err(StoreError::Archive)? {
        let mut entry = entry.map_err(read_error)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let outside = |path: &Path| {
            path.components().any(|part| {
                matches!(
                    part,
                    Component::ParentDir | Component::RootDir | Component::Prefix(_)
                )
            })
        };
        if outside(&entry.path().map_err(StoreError::Archive)?) {
            return Err(StoreError::Traversal { entry: name });
        }
        match entry.header().entry_type() {
            EntryType::Directory => {
                directories.push((name, entry));
                counts.entries += 1;
            }
            EntryType::Regular
            | EntryType::Continuous
            | EntryType::GNUSparse
            | EntryType::Symlink
            | EntryType::Link => {
                place(&mut entry, dir, &name)?;
                counts.entries += 1;
            }
            EntryType::XGlobalHeader => {}
            _ => counts.skipped += 1,
        }
    }
    // A directory gets its mode and owner when nothing is to be written into it any more, the
    // deepest first.
    directories.sort_by(|(a, _), (b, _)| b.cmp(a));
    for (name, mut entry) in directories {
        place(&mut entry, dir, &name)?;
    }
    Ok(counts)
}

fn place<R: Read>(entry: &mut tar::Entry<'_, R>, dir: &Path, name: &str) -> Result<(), StoreError> {
    match entry.unpack_in(dir) {
        Ok(true) => Ok(()),
        Ok(false) => Err(StoreError::Traversal {
            entry: name.to_owned(),
        }),
        // The tar crate has no kind for it: a link of the archive leads out of the directory.
        Err(error) if full_text(&error).contains("outside of destination") => {
            Err(StoreError::Traversal {
                entry: name.to_owned(),
            })
        }
        Err(source) => Err(StoreError::Entry {
            entry: name.to_owned(),
            source,
        }),
    }
}

fn full_text(error: &std::io::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

fn read_error(error: std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => StoreError::Truncated,
        _ => StoreError::Archive(error),
    }
}
