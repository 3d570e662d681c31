//! What a plan needs to know about the host.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Accounts;

#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct FactsError {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

#[derive(Debug, Clone)]
pub struct Facts {
    pub accounts: Accounts,
    /// What `update.conf` says now, or what the release gives to start from.
    pub update_conf: String,
    pub environment: Option<String>,
    pub hostname: String,
}

impl Facts {
    pub fn read(root: &Path, now: SystemTime) -> Result<Self, FactsError> {
        let today = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs() / 86_400);
        let update_conf = match read(root, "/etc/coreos/update.conf")? {
            Some(text) => text,
            None => read(root, "/usr/share/coreos/update.conf")?.unwrap_or_default(),
        };
        Ok(Self {
            accounts: Accounts::read(root, today)?,
            update_conf,
            environment: read(root, "/etc/environment")?,
            hostname: host::machine::hostname(),
        })
    }
}

/// A text file, if it is there.
pub(super) fn read(root: &Path, path: &str) -> Result<Option<String>, FactsError> {
    let path = host::under(root, path);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FactsError { path, source }),
    }
}
