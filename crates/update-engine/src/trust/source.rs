//! Where metadata comes from.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use release::tuf::TufError;
use rustix::fs::{Mode, OFlags};

use super::TrustError;
use crate::fetch::{FetchError, Fetcher};

pub(crate) trait Source {
    /// `stored` is the role's name, such as `snapshot.json`; `file` that of the version that is
    /// looked for, such as `5.snapshot.json`.
    fn get(&self, stored: &str, file: &str, limit: u64) -> Result<Vec<u8>, NoFile>;
}

#[derive(Debug)]
pub(crate) enum NoFile {
    /// There is no such file: with roots, the end of the chain.
    Missing(String),
    TooLong {
        file: String,
        limit: u64,
    },
    Other(String),
}

impl From<NoFile> for TrustError {
    fn from(error: NoFile) -> Self {
        match error {
            NoFile::Missing(why) | NoFile::Other(why) => Self::Away(why),
            NoFile::TooLong { file, limit } => TufError::Endless { file, limit }.into(),
        }
    }
}

/// A published directory of metadata; `base` ends in a slash.
pub(crate) struct FromNetwork<'a> {
    pub(crate) fetcher: &'a Fetcher,
    pub(crate) base: &'a str,
}

impl Source for FromNetwork<'_> {
    fn get(&self, _stored: &str, file: &str, limit: u64) -> Result<Vec<u8>, NoFile> {
        let url = format!("{}{file}", self.base);
        self.fetcher.get(&url, limit).map_err(|error| match error {
            FetchError::Status {
                status: 403 | 404 | 410,
                ..
            } => NoFile::Missing(error.to_string()),
            FetchError::TooLong { limit, .. } => NoFile::TooLong { file: url, limit },
            error => NoFile::Other(error.to_string()),
        })
    }
}

/// What the daemon stored, for the writer. Everything about it is suspicious, the file's type too.
pub(crate) struct FromDirectory {
    pub(crate) dir: PathBuf,
}

impl Source for FromDirectory {
    fn get(&self, stored: &str, _file: &str, limit: u64) -> Result<Vec<u8>, NoFile> {
        let path = self.dir.join(stored);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => {
                return Err(NoFile::Missing(format!("{} is missing", path.display())));
            }
            Err(e) => return Err(NoFile::Other(format!("{}: {e}", path.display()))),
        };
        let other = |e: std::io::Error| NoFile::Other(format!("{}: {e}", path.display()));
        if !file.metadata().map_err(other)?.is_file() {
            return Err(NoFile::Other(format!("{} is not a file", path.display())));
        }
        let mut bytes = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(other)?;
        if bytes.len() as u64 > limit {
            let file = path.display().to_string();
            return Err(NoFile::TooLong { file, limit });
        }
        Ok(bytes)
    }
}
