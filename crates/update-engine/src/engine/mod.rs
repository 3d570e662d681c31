//! The engine as a value: `step(engine, event, now) -> (engine, actions)`.
//!
//! ```text
//!                                   ┌──────── failed, refused, nothing new ───────┐
//! Starting ─not good─▶ Proving ──good──▶ Idle ──timer/asked──▶ Checking ──offer──▶ Downloading
//!                                        ▲ │                                          │
//!                      staged, failed ───┤ └──asked──▶ RollingBack                downloaded
//!                                        └───────────────── Writing ◀─────────────────┘
//! ```
//!
//! Nothing here reads a clock, a file or a socket. The driver ([`crate::daemon`]) runs the
//! actions, turns their results into events, saves the memory before it runs the actions of the
//! same step, and publishes the status whenever it changed.

mod accept;
mod reconcile;
mod status;
mod step;
#[cfg(test)]
mod tests;

use std::time::Duration;

use release::status::SlotStatus;
use release::{Channel, Manifest, Sha256, Slot, Verified, Version};

pub use accept::Refusal;
pub(crate) use accept::{Facts, suits};
pub use reconcile::{Attempt, Evidence, Failure};
pub use step::step;

use crate::memory::{Code, Memory, Report};
use crate::trust::Follow;
use crate::way::Way;

#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    pub host: Host,
    pub settings: Settings,
    pub memory: Memory,
    pub slots: Vec<SlotStatus>,
    /// Why the slots could not be looked at.
    pub slots_problem: Option<String>,
    pub phase: Phase,
    /// The slots were looked at and compared with the memory.
    pub reconciled: bool,
    /// This boot was marked good.
    pub good: bool,
    /// Reports are on their way to the server.
    pub telling: bool,
    /// Looks for extensions that are still to come, each for somebody who asked meanwhile.
    pub looks: u32,
    pub last_error: Option<Problem>,
    /// The release a check without installing found.
    pub available: Option<Version>,
}

/// What the last attempt ended with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// None: the server has no use for it.
    pub code: Option<Code>,
    pub message: String,
}

/// What runs. Does not change while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub version: Version,
    /// None: `/usr` is not one of our verity images.
    pub root_hash: Option<Sha256>,
    pub boot_id: String,
    pub architecture: &'static str,
    /// Names kernel, initrd and command line. None: nobody knows.
    pub kernel: Option<Sha256>,
    /// Of what runs, or the highest that was good here before.
    pub epoch: u64,
    /// Nothing is remembered over a reboot, so a release that failed would be tried for ever.
    pub volatile: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub channel: Channel,
    /// Whose signed releases are taken.
    pub follow: Follow,
    /// None: updates are off.
    pub server: Option<String>,
    pub interval: Duration,
    /// Bytes per second that a download may take. None: as fast as it comes.
    pub rate: Option<u64>,
    /// Why `update.conf` cannot be used. Updates are off then.
    pub problem: Option<String>,
}

/// A release that is offered by the server and signed by someone we trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub manifest: Verified<Manifest>,
    /// The signed bytes, for the writer to check again.
    pub envelope: String,
    /// Where its files are, each ending in a slash. The first is where the manifest came from, the
    /// others are taken when it stops answering.
    pub bases: Vec<String>,
    /// It was asked for by somebody who allows metadata past its date; the writer looks whether root does.
    pub allow_expired: bool,
    /// How it can come here. The first one is taken; when it turns out to lead nowhere, the next.
    pub ways: Vec<Way>,
}

impl Offer {
    pub fn way(&self) -> &Way {
        self.ways.first().unwrap_or(&Way::Whole)
    }

    /// Bytes to download, as far as that is known beforehand.
    pub fn download_size(&self) -> u64 {
        self.way().download_size(&self.manifest)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Waits to hear whether this is a new boot, or only we were restarted: then for the slots.
    Starting,
    /// Waits for this boot to be marked good: a host that may be about to fall back starts nothing.
    Proving,
    Idle {
        failures: u32,
        first: bool,
    },
    Checking {
        ask: Ask,
        failures: u32,
        /// The server was asked without force, and somebody has come who wants it.
        again: bool,
        /// Somebody waits with going back until this is over.
        roll_back: bool,
    },
    Downloading {
        offer: Box<Offer>,
        failures: u32,
        done: u64,
        ask: Ask,
    },
    Writing {
        offer: Box<Offer>,
        failures: u32,
        done: u64,
        ask: Ask,
    },
    RollingBack {
        failures: u32,
    },
}

/// What a check is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    pub install: bool,
    /// Also a release that failed here before, or an older one.
    pub force: bool,
    /// Fetch it, and write nothing.
    pub download_only: bool,
    /// What was fetched, and no other: no server is asked.
    pub apply: bool,
    /// From this published tree (its URL ends in a slash) instead of where the server says.
    pub from: Option<String>,
    /// Believe metadata past its date, if root stands by that.
    pub allow_expired: bool,
}

impl Ask {
    pub const POLL: Self = Self {
        install: true,
        force: false,
        download_only: false,
        apply: false,
        from: None,
        allow_expired: false,
    };
    fn is_to_write(&self) -> bool {
        self.install && !self.download_only
    }

    /// Only for the server to hear of this host, and the host of the release.
    pub const LOOK: Self = Self {
        install: false,
        force: false,
        download_only: false,
        apply: false,
        from: None,
        allow_expired: false,
    };
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// What is on the disk. Err: why nobody knows.
    Found(Result<Vec<SlotStatus>, String>),
    NotGoodYet,
    Good,
    Timer,
    Asked(Ask),
    AskedRollback,
    ClearFailed,
    /// Ask for no reboot, and show no error.
    Reset,
    NothingNew,
    Offered(Box<Offer>),
    Progress(u64),
    Downloaded,
    /// The way that was taken does not lead to the image: why.
    WayClosed(Trouble),
    Staged(Slot),
    RolledBack {
        slot: Slot,
        version: Option<Version>,
    },
    Trouble(Trouble),
    /// The server took this many reports.
    Told(Result<usize, String>),
    /// What the running release has of the wanted extensions is here, or could not be had.
    Looked,
}

/// A worker's failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub code: Code,
    pub message: String,
    /// The version it is about; with a bad signature, the one the server named.
    pub version: Option<Version>,
    /// Its release, if the signature was good.
    pub release: Option<Sha256>,
}

impl From<Trouble> for Problem {
    fn from(trouble: Trouble) -> Self {
        Self {
            code: Some(trouble.code),
            message: trouble.message,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    ReadSlots,
    LookForGood,
    Check(Ask),
    /// Look at a release that was downloaded to be written later, as if it were offered now; with expired metadata, if
    /// that is allowed.
    Reopen(Sha256, bool),
    Download(Box<Offer>),
    /// Delete what was downloaded for a way that is closed and does not serve the offer's next one.
    Discard(Box<Offer>, Way),
    Stage(Box<Offer>, AfterStaging),
    RollBack,
    /// Let the reboot manager know.
    AskReboot {
        version: Version,
        reason: Why,
    },
    /// Nothing waits for a reboot (any more).
    WithdrawReboot,
    Tell(Vec<Report>),
    /// Fetch wanted extensions of the running release, as each check does.
    LookForExtensions,
    /// Delete downloads of other releases.
    Clean {
        keep: Option<Sha256>,
    },
}

/// The boot loader picks the highest version, so an older one only boots when the running one's
/// entry is exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterStaging {
    Nothing,
    ExhaustRunning,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    Update,
    Rollback,
}

/// Why a request was not even started; the caller hears it at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    #[error(
        "this boot has not been marked good yet; wait for boot-complete.target, or see what failed with systemctl --failed"
    )]
    NotGood,
    #[error("an update is being downloaded or written; try again when it is done")]
    Updating,
    #[error("the slots are being looked at; try again in a moment")]
    Looking,
    #[error("a rollback is being written, or waits for a reboot")]
    RollingBack,
    #[error(
        "an update is staged in the other slot, so there is nothing to go back to; a reboot boots it"
    )]
    Staged,
    #[error("the other slot holds nothing that can be booted")]
    NothingThere,
    #[error("nothing was downloaded to be installed later: orlop update --download-only does that")]
    NothingDownloaded,
    #[error("updates are switched off: set SERVER= in /etc/coreos/update.conf")]
    NoServer,
    #[error("{0}")]
    BadConfiguration(String),
}

impl Engine {
    pub fn new(host: Host, settings: Settings, memory: Memory) -> Self {
        Self {
            host,
            settings,
            memory,
            slots: Vec::new(),
            slots_problem: None,
            phase: Phase::Starting,
            reconciled: false,
            good: false,
            telling: false,
            looks: 0,
            last_error: None,
            available: None,
        }
    }

    /// How long to wait in this state before [`Event::Timer`]; none: something else will happen.
    /// `luck`, 0 to 1, spreads a fleet that was switched on at once.
    pub fn delay(&self, luck: f64) -> Option<Duration> {
        let interval = self.settings.interval;
        match &self.phase {
            Phase::Proving => Some(Duration::from_secs(1)),
            Phase::Idle { .. } if self.settings.server.is_none() => None,
            Phase::Idle { first: true, .. } => {
                let half = interval / 2;
                Some(
                    half.clamp(Duration::from_secs(5), Duration::from_secs(60))
                        .min(interval)
                        .mul_f64(0.8 + 0.4 * luck),
                )
            }
            Phase::Idle { failures: 0, .. } => Some(interval.mul_f64(0.9 + 0.2 * luck)),
            Phase::Idle { failures, .. } => {
                let backoff = Duration::from_secs(30) * 2_u32.pow((failures - 1).min(10));
                Some(backoff.min(interval).mul_f64(0.6 + 0.4 * luck))
            }
            _ => None,
        }
    }

    /// Whether a request can be served now; joining a running check or update is fine.
    pub fn admits(&self, event: &Event) -> Result<(), Busy> {
        match (event, &self.phase) {
            (
                Event::Asked(Ask {
                    from: None,
                    apply: false,
                    ..
                }),
                _,
            ) if self.settings.server.is_none() => {
                let problem = self.settings.problem.clone();
                Err(problem.map_or(Busy::NoServer, Busy::BadConfiguration))
            }
            (Event::Asked(_) | Event::AskedRollback, Phase::Starting | Phase::Proving) => {
                Err(Busy::NotGood)
            }
            (Event::Asked(_) | Event::AskedRollback, Phase::RollingBack { .. }) => {
                Err(Busy::RollingBack)
            }
            (Event::Asked(Ask { apply: true, .. }), Phase::Idle { .. })
                if self.memory.downloaded.is_none() =>
            {
                Err(Busy::NothingDownloaded)
            }
            (Event::Asked(_), _) => Ok(()),
            (Event::AskedRollback, Phase::Idle { .. }) => self.admits_rollback(),
            // Decided at its end.
            (Event::AskedRollback, Phase::Checking { .. }) if !self.reconciled => Ok(()),
            (Event::AskedRollback, Phase::Checking { .. }) => self.admits_rollback(),
            (Event::Reset, Phase::Starting | Phase::Proving) => Err(Busy::NotGood),
            (Event::Reset, Phase::Idle { .. }) if self.memory.rollback.is_none() => Ok(()),
            (Event::Reset, Phase::Idle { .. } | Phase::RollingBack { .. }) => {
                Err(Busy::RollingBack)
            }
            (Event::AskedRollback | Event::Reset, _) => Err(Busy::Updating),
            _ => Ok(()),
        }
    }

    pub(super) fn admits_rollback(&self) -> Result<(), Busy> {
        let bootable = self
            .other_slot()
            .is_some_and(|s| s.tries_left.is_some_and(|n| n > 0));
        match bootable {
            // What is staged may be unknown.
            _ if !self.reconciled => Err(Busy::Looking),
            _ if self.memory.rollback.is_some() => Err(Busy::RollingBack),
            _ if self.staged().is_some() => Err(Busy::Staged),
            true => Ok(()),
            false => Err(Busy::NothingThere),
        }
    }

    /// Releases of an earlier one are refused. Neither a memory that was lost nor a host that was installed
    /// with it and has never updated makes it lower.
    pub fn epoch(&self) -> u64 {
        self.memory.epoch.max(self.host.epoch)
    }

    /// Nothing is going on: whoever waits for an outcome has it now.
    pub fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Idle { .. }) && self.looks == 0
    }

    /// The release that waits for a reboot.
    fn staged(&self) -> Option<&crate::memory::Staging> {
        let here =
            |s: &&crate::memory::Staging| s.committed && Some(s.root_hash) != self.host.root_hash;
        self.memory.staging.as_ref().filter(here)
    }

    /// The staged release goes with the kernel that runs, so userspace alone needs to start anew.
    pub fn soft_reboot_is_enough(&self) -> bool {
        self.staged()
            .is_some_and(|s| s.kernel.is_some() && s.kernel == self.host.kernel)
    }

    fn is_held(&self) -> bool {
        self.memory.staging.as_ref().is_some_and(|s| s.held)
    }

    fn booted_slot(&self) -> Option<&SlotStatus> {
        self.slots.iter().find(|s| s.booted)
    }

    fn other_slot(&self) -> Option<&SlotStatus> {
        // Both slots not booted: this system did not come from a slot, so neither is "the other".
        self.booted_slot()?;
        self.slots.iter().find(|s| !s.booted)
    }
}
