//! What an operator allows against the rules. Root alone can write the files, so that whoever takes
//! over the daemon cannot allow itself anything.
//!
//! One file allows something for a while, to whoever reads it. The others allow a single update to
//! believe expired metadata, or to be to an older release: `orlop update` with `--allow-expired` or
//! `--force` holds a lock on them while it waits for that update, and the kernel takes it back however
//! that process ends. Who asks for the metadata says whether it is for such an update, so that no other
//! one makes use of it; to an older release the daemon goes in such an update only.

use std::fs::File;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Flock, FlockType, fcntl_getlk};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::paths::Paths;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    pub(crate) allow_expired: bool,
    pub(crate) allow_rollback: bool,
    /// A release that is older than the running one.
    pub(crate) allow_older: bool,
}

/// The content of `/run/orlop/update-overrides.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(default)]
    allow_expired: bool,
    #[serde(default)]
    allow_rollback: bool,
    #[serde(default)]
    allow_older: bool,
    until: Timestamp,
}

impl Overrides {
    /// `once`: for an update that was asked for with expired metadata allowed.
    pub(crate) fn read(paths: &Paths, now: Timestamp, once: bool) -> Self {
        let for_a_while = Self::for_a_while(&paths.overrides(), now);
        Self {
            allow_expired: for_a_while.allow_expired || (once && is_held(&paths.allow_expired())),
            allow_older: for_a_while.allow_older || is_held(&paths.allow_older()),
            ..for_a_while
        }
    }

    /// A file that is missing, unreadable or over allows nothing.
    pub(super) fn for_a_while(path: &Path, now: Timestamp) -> Self {
        let Ok(text) = std::fs::read(path) else {
            return Self::default();
        };
        match serde_json::from_slice::<Content>(&text) {
            Ok(content) if now < content.until => Self {
                allow_expired: content.allow_expired,
                allow_rollback: content.allow_rollback,
                allow_older: content.allow_older,
            },
            Ok(_) => Self::default(),
            Err(e) => {
                tracing::warn!("{}: {e}; it allows nothing", path.display());
                Self::default()
            }
        }
    }
}

/// Whether a process has it locked for writing, which takes the right to write to it. To ask does not.
fn is_held(path: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else {
        return false;
    };
    let conflict = fcntl_getlk(File::from(file), &Flock::from(FlockType::ReadLock));
    matches!(conflict, Ok(Some(_)))
}
