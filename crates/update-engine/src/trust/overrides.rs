//! What an operator allows for a while, against the rules. Root alone can write the file, so that
//! whoever takes over the daemon cannot allow itself anything.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    pub(crate) allow_expired: bool,
    pub(crate) allow_rollback: bool,
}

/// The content of `/run/orlop/update-overrides.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    allow_expired: bool,
    #[serde(default)]
    allow_rollback: bool,
    until: Timestamp,
}

impl Overrides {
    /// A file that is missing, unreadable or over allows nothing.
    pub(crate) fn read(path: &Path, now: Timestamp) -> Self {
        let Ok(text) = std::fs::read(path) else {
            return Self::default();
        };
        match serde_json::from_slice::<File>(&text) {
            Ok(file) if now < file.until => Self {
                allow_expired: file.allow_expired,
                allow_rollback: file.allow_rollback,
            },
            Ok(_) => Self::default(),
            Err(e) => {
                tracing::warn!("{}: {e}; it allows nothing", path.display());
                Self::default()
            }
        }
    }
}
