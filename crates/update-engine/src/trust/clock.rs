//! What time it is, for judging expiry.
//!
//! NTP is not authenticated, so whoever turns the clock back could show a host the same metadata for
//! ever. To remember when a chain was accepted is not enough: it was valid then, and a clock that is
//! held at that moment keeps it valid. So what the host has run since counts as well, by a clock that
//! nobody can set. Half of it does. A chain is then refused once the host has run for twice as long as
//! it was valid, and a clock that was wrongly ahead is caught up with by the true one: only a time at
//! which unexpired metadata was accepted is noted, so it is ahead by less than a timestamp is valid, and
//! a timestamp that was signed a moment ago is believed at any time.

use std::time::Duration;

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::{Store, TrustError};
use crate::paths::Paths;

/// Roles have files that end in `.json`, and a channel may have any name.
const FILE: &str = "accepted-at";

#[derive(Clone, Debug)]
pub(crate) struct Clock {
    /// What the clock says.
    pub(crate) now: Timestamp,
    /// The kernel's id of this boot, and how long that has lasted.
    pub(crate) boot: String,
    pub(crate) up: Duration,
    /// When the running release was built: all files of its `/usr` carry that time.
    pub(crate) built: Option<Timestamp>,
}

/// When metadata was accepted last, and the running time since, as far as it counts.
#[derive(Debug, Serialize, Deserialize)]
struct Accepted {
    at: Timestamp,
    boot: String,
    up: u64,
}

impl Clock {
    pub(crate) fn read(paths: &Paths) -> Self {
        let up = clock_gettime(ClockId::Boottime).tv_sec;
        let built = std::fs::metadata(paths.tuf_root()).and_then(|meta| meta.modified());
        Self {
            now: Timestamp::now(),
            // Not that of a soft-reboot: `up` goes on in it.
            boot: host::machine::boot_id(paths.root()).unwrap_or_default(),
            up: Duration::from_secs(u64::try_from(up).unwrap_or_default()),
            built: built.ok().and_then(|at| at.try_into().ok()),
        }
    }

    /// The clock's time, or the earliest that it can be if that is later.
    pub(crate) fn judged(&self, store: &Store) -> Timestamp {
        let earliest = self.since_accepted(store).max(self.built);
        earliest.map_or(self.now, |earliest| earliest.max(self.now))
    }

    fn since_accepted(&self, store: &Store) -> Option<Timestamp> {
        let accepted: Accepted = serde_json::from_slice(&store.read(FILE)?).ok()?;
        let before = match accepted.boot == self.boot {
            true => accepted.up,
            false => 0,
        };
        let run = self.up.saturating_sub(Duration::from_secs(before));
        accepted.at.checked_add(run / 2).ok()
    }

    /// To be noted after each look at metadata, or a host that reboots often would never get on.
    /// `accepted`: the time by which unexpired metadata was judged.
    pub(super) fn note(&self, store: &Store, accepted: Option<Timestamp>) {
        let Some(at) = accepted.max(self.since_accepted(store)) else {
            return;
        };
        let noted = Accepted {
            at,
            boot: self.boot.clone(),
            up: self.up.as_secs(),
        };
        let written = serde_json::to_vec(&noted)
            .map_err(|e| TrustError::Away(e.to_string()))
            .and_then(|text| store.write(FILE, &text));
        // A disk that is full is no reason to refuse what is good.
        if let Err(e) = written {
            tracing::warn!("when metadata was accepted is not noted: {e}");
        }
    }
}
