//! Writing: keys for their owner alone, directories in one piece.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::Error;

fn io(path: &Path, what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, what, source }
}

/// A directory that others may not look into, if it is not there.
pub(crate) fn directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io(path, "make the directory"))
}

pub(crate) fn private(path: &Path, text: &str) -> Result<(), Error> {
    create(path, text, 0o600)
}

pub(crate) fn public(path: &Path, text: &str) -> Result<(), Error> {
    create(path, text, 0o644)
}

fn create(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(io(path, "create"))?;
    file.write_all(text.as_bytes()).map_err(io(path, "write"))?;
    file.sync_all().map_err(io(path, "write"))
}

/// A directory in the making. Dropped before it has become one, it leaves nothing behind.
pub(crate) struct Staged(tempfile::TempDir);

impl Staged {
    pub(crate) fn new(parent: &Path, name: &str) -> Result<Staged, Error> {
        directory(parent)?;
        tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .tempdir_in(parent)
            .map(Staged)
            .map_err(io(parent, "make a directory in it"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes its place. What it replaces is moved aside first and removed last, so that one of them is always there.
    pub(crate) fn become_dir(self, dir: &Path, replace: bool) -> Result<(), Error> {
        let aside = replace.then(|| self.path().with_extension("old"));
        if let Some(aside) = &aside
            && dir.exists()
        {
            fs::rename(dir, aside).map_err(io(dir, "move aside"))?;
        }
        if let Err(error) = fs::rename(self.path(), dir) {
            if let Some(aside) = &aside {
                let _ = fs::rename(aside, dir);
            }
            return Err(io(dir, "put in place")(error));
        }
        // It is no temporary directory any more.
        let _ = self.0.keep();
        if let Some(aside) = aside {
            let _ = fs::remove_dir_all(aside);
        }
        if let Some(parent) = dir.parent() {
            let synced = File::open(parent).and_then(|parent| parent.sync_all());
            synced.map_err(io(parent, "write"))?;
        }
        Ok(())
    }
}
