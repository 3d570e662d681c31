//! The images: one directory (on btrfs a subvolume) each, below `/var/lib/machines`.
//!
//! An import works in `.NAME.part` and renames at the very end, so a directory with a valid name is
//! a whole image. Names cannot start with a dot, and machined does not show such directories.

mod error;
mod import;
mod source;
mod tree;
mod unpack;

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use host::os_release::OsRelease;
use serde::{Deserialize, Serialize};

use crate::name::Name;

pub use error::StoreError;
pub use import::{Imported, Request};
pub use source::Source;

pub const DIR: &str = "/var/lib/machines";

/// The images of one system.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// Where an image came from; beside it in `.NAME.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub source: String,
    /// Of the archive as it was read; `None` for a directory.
    pub sha256: Option<String>,
    /// RFC 3339.
    pub imported: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Image {
    pub name: Name,
    /// What its os-release calls it.
    pub os: Option<String>,
    /// `None` for images that something else put there.
    pub origin: Option<Origin>,
}

impl Store {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    fn dir(&self) -> PathBuf {
        host::under(&self.root, DIR)
    }

    pub fn path(&self, name: &Name) -> PathBuf {
        self.dir().join(name.as_str())
    }

    fn hidden(&self, name: &Name, suffix: &str) -> PathBuf {
        self.dir().join(format!(".{name}.{suffix}"))
    }

    pub fn get(&self, name: &Name) -> Result<Image, StoreError> {
        if !self.path(name).is_dir() {
            return Err(StoreError::NoSuchImage {
                name: name.clone(),
                known: self.names()?,
            });
        }
        Ok(self.describe(name.clone()))
    }

    /// All images, by name.
    pub fn list(&self) -> Result<Vec<Image>, StoreError> {
        Ok(self
            .names()?
            .into_iter()
            .map(|name| self.describe(name))
            .collect())
    }

    fn names(&self) -> Result<Vec<Name>, StoreError> {
        let dir = self.dir();
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(StoreError::at("read", &dir))?,
        };
        let is_dir = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        let mut names: Vec<Name> = entries
            .flatten()
            .filter(is_dir)
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    fn describe(&self, name: Name) -> Image {
        let os = OsRelease::read(&self.path(&name))
            .ok()
            .and_then(|os| os.get("PRETTY_NAME").map(str::to_owned));
        let origin = std::fs::read(self.hidden(&name, "json")).ok();
        let origin = origin.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Image { name, os, origin }
    }

    /// Removes an image. From the first step on it is no image any more, however far this comes.
    pub fn remove(&self, name: &Name) -> Result<(), StoreError> {
        let _lock = self.lock(name)?;
        self.get(name)?;
        if self.in_use(name)? {
            return Err(StoreError::InUse { name: name.clone() });
        }
        let gone = self.hidden(name, "part");
        tree::remove(&gone)?;
        std::fs::rename(self.path(name), &gone)
            .map_err(StoreError::at("remove", &self.path(name)))?;
        // The lock stays: without its file, two could hold it.
        let note = self.hidden(name, "json");
        host::atomic::remove(&note).map_err(|error| StoreError::Io {
            step: "remove",
            path: note,
            source: error.source,
        })?;
        tree::remove(&gone)
    }

    /// systemd-nspawn holds this lock on an image that it runs directly (not on a snapshot).
    pub fn in_use(&self, name: &Name) -> Result<bool, StoreError> {
        let path = self.dir().join(format!(".#{name}.lck"));
        let file = match File::options().read(true).write(true).open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(StoreError::at("open", &path))?,
        };
        // nspawn takes an open-file lock, which this kind conflicts with.
        match rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Ok(true),
            Err(errno) => Err(StoreError::Io {
                step: "lock",
                path,
                source: errno.into(),
            }),
        }
    }

    /// One import or removal of a name at a time.
    fn lock(&self, name: &Name) -> Result<File, StoreError> {
        let dir = self.dir();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(StoreError::at("make", &dir))?;
        let path = self.hidden(name, "lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(StoreError::at("open", &path))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Busy { name: name.clone() }),
            Err(errno) => Err(StoreError::Io {
                step: "lock",
                path,
                source: errno.into(),
            }),
        }
    }
}
