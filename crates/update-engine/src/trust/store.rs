//! The metadata that was believed last: what newer metadata is measured by.

use std::path::{Path, PathBuf};

use super::TrustError;

#[derive(Clone, Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// None also for what cannot be read: it is fetched again then.
    pub(crate) fn read(&self, file: &str) -> Option<Vec<u8>> {
        std::fs::read(self.dir.join(file)).ok()
    }

    pub(crate) fn write(&self, file: &str, bytes: &[u8]) -> Result<(), TrustError> {
        if self.read(file).as_deref() == Some(bytes) {
            return Ok(());
        }
        let path = self.dir.join(file);
        let failed = |what, source| TrustError::File {
            path: path.clone(),
            what,
            source,
        };
        std::fs::create_dir_all(&self.dir).map_err(|e| failed("make the directory of", e))?;
        host::atomic::write(&path, bytes, 0o644, None)
            .map_err(|e| failed("write", std::io::Error::other(e)))
    }
}
