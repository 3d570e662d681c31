//! Whether a signed release suits this host.

use release::{Manifest, Version};

use super::{Ask, Engine, Offer};
use crate::memory::Code;

/// Why an offered release is not installed. Nothing is wrong with the transport: asking again
/// soon would bring the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the server offers version {0}, which already runs")]
    Running(Version),
    #[error("version {0} is already staged and waits for a reboot")]
    Staged(Version),
    #[error(
        "version {0} is not written: a rollback waits for a reboot, and would boot the slot it goes to"
    )]
    RollbackWaits(Version),
    #[error("version {version} is for {got}, this host is {want}")]
    Architecture {
        version: Version,
        got: String,
        want: &'static str,
    },
    #[error("version {version} failed here before ({reason}); not tried again unless forced")]
    Failed { version: Version, reason: String },
    #[error("version {offered} is older than the running {running}; not installed unless forced")]
    Older { offered: Version, running: Version },
    #[error("version {offered} is older than the staged {staged}; not installed unless forced")]
    OlderThanStaged { offered: Version, staged: Version },
    #[error(
        "version {offered} can only be reached from {minimum} on, {running} runs: update to {minimum} first"
    )]
    Floor {
        offered: Version,
        minimum: Version,
        running: Version,
    },
    #[error(
        "version {version} has epoch {got}, this host has seen {seen}: releases of earlier epochs are withdrawn"
    )]
    Epoch {
        version: Version,
        got: u64,
        seen: u64,
    },
    #[error("version {version} cannot be written: {why}")]
    NoSlot { version: Version, why: String },
}

impl Refusal {
    /// The server offered what is here already: the normal answer of a server that does not compare.
    pub fn is_nothing_new(&self) -> bool {
        matches!(self, Self::Running(_) | Self::Staged(_))
    }
}

impl Refusal {
    /// It is the release that does not fit this host: whoever published it should hear of it.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Architecture { .. } => Some(Code::Architecture),
            Self::Older { .. } | Self::OlderThanStaged { .. } => Some(Code::Older),
            Self::Floor { .. } => Some(Code::MinimumSource),
            Self::Epoch { .. } => Some(Code::Epoch),
            Self::Running(_)
            | Self::Staged(_)
            | Self::RollbackWaits(_)
            | Self::Failed { .. }
            | Self::NoSlot { .. } => None,
        }
    }
}

/// Signatures are checked before; this is about suitability only.
pub(super) fn accept(engine: &Engine, offer: &Offer, ask: &Ask) -> Result<(), Refusal> {
    let manifest = &offer.manifest;
    let version = || manifest.version.clone();
    let running = &engine.host.version;

    if Some(manifest.usr.root_hash) == engine.host.root_hash {
        return Err(Refusal::Running(version()));
    }
    if let Some(staged) = engine.staged() {
        if staged.id == manifest.id() {
            return Err(Refusal::Staged(version()));
        }
        if manifest.version < staged.version && !ask.force {
            return Err(Refusal::OlderThanStaged {
                offered: version(),
                staged: staged.version.clone(),
            });
        }
    }
    // Also one of which nobody heard that it was written: the only slot that can still be tried is the
    // other one.
    let exhausted = engine
        .booted_slot()
        .is_some_and(|s| s.tries_left == Some(0));
    if engine.memory.rollback.is_some() || exhausted {
        return Err(Refusal::RollbackWaits(version()));
    }
    let facts = Facts {
        version: running,
        architecture: engine.host.architecture,
        epoch: engine.epoch(),
    };
    suits(manifest, &facts, ask.force)?;
    if !ask.force {
        if manifest.version == *running {
            return Err(Refusal::Running(version()));
        }
        if let Some(failure) = engine.memory.failure_of(&manifest.version, manifest.id()) {
            return Err(Refusal::Failed {
                version: version(),
                reason: failure.reason.clone(),
            });
        }
    }
    if engine.other_slot().is_none() {
        let why = engine.slots_problem.clone();
        let why =
            why.unwrap_or_else(|| "this system does not run from one of the disk's slots".into());
        return Err(Refusal::NoSlot {
            version: version(),
            why,
        });
    }
    Ok(())
}

/// What a release is measured by.
pub(crate) struct Facts<'a> {
    pub(crate) version: &'a Version,
    pub(crate) architecture: &'static str,
    pub(crate) epoch: u64,
}

/// What holds for every way into a slot. The daemon asks before it downloads; the writer asks again, with
/// facts and a permission (`older`) that the daemon cannot change.
pub(crate) fn suits(manifest: &Manifest, host: &Facts<'_>, older: bool) -> Result<(), Refusal> {
    let version = || manifest.version.clone();
    if manifest.architecture != host.architecture {
        return Err(Refusal::Architecture {
            version: version(),
            got: manifest.architecture.clone(),
            want: host.architecture,
        });
    }
    if manifest.epoch < host.epoch {
        return Err(Refusal::Epoch {
            version: version(),
            got: manifest.epoch,
            seen: host.epoch,
        });
    }
    let minimum = manifest.minimum_source_version.as_ref();
    if let Some(minimum) = minimum.filter(|minimum| host.version < *minimum) {
        return Err(Refusal::Floor {
            offered: version(),
            minimum: minimum.clone(),
            running: host.version.clone(),
        });
    }
    if manifest.version < *host.version && !older {
        return Err(Refusal::Older {
            offered: version(),
            running: host.version.clone(),
        });
    }
    Ok(())
}
