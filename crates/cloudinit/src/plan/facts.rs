//! What a plan needs to know about the host.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Accounts;
use crate::root::{Entry, Last, Walk, WalkError, walk};

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
    root: PathBuf,
}

const UNITS: [&str; 6] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

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
            root: root.to_owned(),
        })
    }
}

impl Facts {
    /// What is in a file now; nothing where it cannot be read. An error where it is somebody else's to say which file
    /// that is.
    pub(super) fn content(&self, path: &str) -> Result<Vec<u8>, String> {
        let entry = match walk(&self.root, path, Last::Followed) {
            Ok(walk) => walk.entry(),
            Err(error @ WalkError::Foreign { .. }) => return Err(error.to_string()),
            Err(_) => None,
        };
        let Some(entry) = entry.filter(Entry::is_there) else {
            return Ok(Vec::new());
        };
        match entry.read() {
            Err(error) if entry.is_foreign() => Err(error.to_string()),
            read => Ok(read.unwrap_or_default()),
        }
    }

    pub(super) fn has_systemd(&self) -> bool {
        self.has("/usr/lib/systemd/system") || self.has("/lib/systemd/system")
    }

    /// Whether systemd knows a unit of this name; an instance by its template.
    pub(super) fn has_unit(&self, name: &str) -> bool {
        let template = template(name).unwrap_or_default();
        let known = |name: &str| UNITS.iter().any(|dir| self.has(&format!("{dir}/{name}")));
        known(name) || (!template.is_empty() && known(&template))
    }

    pub(super) fn has(&self, path: &str) -> bool {
        let entry = walk(&self.root, path, Last::Itself).map(Walk::entry);
        entry.is_ok_and(|entry| entry.is_some_and(|entry| entry.is_there()))
    }
}

/// `a@.service` of `a@b.service`.
pub(super) fn template(unit: &str) -> Option<String> {
    let (name, rest) = unit.split_once('@')?;
    let (_, kind) = rest.rsplit_once('.')?;
    Some(format!("{name}@.{kind}"))
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
