//! Directories that are subvolumes where the file system can.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use host::child;

use super::StoreError;

const BTRFS_MAGIC: i64 = 0x9123_683e;
/// Every btrfs subvolume's root has this inode number.
const SUBVOLUME_INODE: u64 = 256;

fn on_btrfs(path: &Path) -> Result<bool, StoreError> {
    rustix::fs::statfs(path)
        .map(|stat| stat.f_type == BTRFS_MAGIC)
        .map_err(|errno| StoreError::Io {
            step: "look at",
            path: path.to_owned(),
            source: errno.into(),
        })
}

/// Makes `path`. It is as private as its parent, which is root's alone.
pub(super) fn create(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    if on_btrfs(parent)? {
        let made = child::run(
            Command::new("btrfs")
                .args(["-q", "subvolume", "create"])
                .arg(path),
        );
        match made {
            Ok(_) => return Ok(()),
            // A directory does as well; only snapshots are slower.
            Err(child::ChildError::NotFound { .. }) => {}
            Err(error) => return Err(StoreError::Child(error)),
        }
    }
    DirBuilder::new()
        .mode(0o755)
        .create(path)
        .map_err(StoreError::at("make", path))
}

/// Removes all of `path`; that there is nothing is fine.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    let inode = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(StoreError::at("look at", path))?.ino(),
    };
    // One call instead of one per file. It fails where the image made subvolumes of its own; then
    // the slow way works.
    if inode == SUBVOLUME_INODE
        && on_btrfs(path)?
        && child::run(
            Command::new("btrfs")
                .args(["-q", "subvolume", "delete"])
                .arg(path),
        )
        .is_ok()
    {
        return Ok(());
    }
    std::fs::remove_dir_all(path).map_err(StoreError::at("remove", path))
}

/// Copies a directory with all that it has.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    let mut command = Command::new("cp");
    command
        .args(["-a", "--reflink=auto", "--"])
        .arg(from.join("."))
        .arg(to);
    child::run(&mut command)
        .map(drop)
        .map_err(StoreError::Child)
}
