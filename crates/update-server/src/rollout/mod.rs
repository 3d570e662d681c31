//! How a release spreads over a group of hosts: who may have it when, and when that stops.
//!
//! Pure. [`step`] takes a [`Rollout`] (one release in one group), one [`Event`] and the time, and
//! gives the rollout as it is then and what is to be done. The server keeps rollouts and grants in
//! its database and runs the [`Action`]s; the tests keep ten thousand hosts in a vector.
//!
//! A host that may have the release gets a [`Grant`], and with it everything that is counted. Of a
//! grant something becomes in any case: the host runs the release, or left it, or was lost with it,
//! or never began and has to ask again. So no rollout waits for ever.

mod evidence;
mod policy;
#[cfg(test)]
mod simulation;
mod step;
#[cfg(test)]
mod tests;
mod window;

use jiff::{SignedDuration, Timestamp};
use release::Sha256;
use serde::{Deserialize, Serialize};

pub use evidence::exceeds;
pub use policy::{Cap, Halt, Policy, PolicyError};
pub use step::{Action, Canary, Event, HostEvent, Note, Step, step};
pub use window::{Day, Open, Window, WindowError};

/// One release on its way through one group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// Decides the order of hosts; another release has another order, so that it is not always
    /// the same hosts that go first.
    pub seed: String,
    pub started: Timestamp,
    pub status: Status,
    /// The newest open wave, and since when.
    pub wave: usize,
    pub wave_since: Timestamp,
    /// One for each wave.
    pub tallies: Vec<Tally>,
    /// What the cap counts: since when, and how many hosts.
    pub period: Option<(Timestamp, u32)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Status {
    AwaitingCanary,
    Active,
    /// By an operator; `elapsed` of the wave's time (in seconds) had passed.
    Paused {
        by: String,
        elapsed: i64,
        awaiting_canary: bool,
    },
    /// By itself, or because it stopped elsewhere.
    Halted {
        reason: String,
        elapsed: i64,
        #[serde(default)]
        awaiting_canary: bool,
    },
    /// Every host has it. Late ones still get it.
    Complete,
    /// The channel points at something else.
    Superseded,
}

impl Status {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::AwaitingCanary => "awaiting_canary",
            Self::Active => "active",
            Self::Paused { .. } => "paused",
            Self::Halted { .. } => "halted",
            Self::Complete => "complete",
            Self::Superseded => "superseded",
        }
    }
}

/// What became of the hosts of a wave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Tally {
    /// Were offered it and have not lost their turn.
    pub granted: u64,
    pub good: u64,
    pub failed: u64,
    /// Began, and were never heard of again.
    pub lost: u64,
    /// Verdicts (good, bad) that an operator has seen and accepted by resuming.
    #[serde(default)]
    pub accepted: (u64, u64),
}

impl Tally {
    pub fn settled(&self) -> u64 {
        self.good + self.bad()
    }

    pub fn bad(&self) -> u64 {
        self.failed + self.lost
    }

    /// Granted, and no verdict yet.
    pub fn waiting(&self) -> u64 {
        self.granted.saturating_sub(self.settled())
    }

    fn unaccepted(&self) -> (u64, u64) {
        let (good, bad) = self.accepted;
        (
            self.good.saturating_sub(good),
            self.bad().saturating_sub(bad),
        )
    }
}

/// A host's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub wave: usize,
    pub state: GrantState,
    /// When something becomes of it without the host's doing; none once it has.
    pub expires: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GrantState {
    /// May begin.
    Offered,
    /// Downloads or has staged it.
    Started,
    Good,
    Failed,
    Lost,
    /// Never began; has to ask again.
    Lapsed,
}

impl GrantState {
    pub const ALL: [Self; 6] = [
        Self::Offered,
        Self::Started,
        Self::Good,
        Self::Failed,
        Self::Lost,
        Self::Lapsed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Started => "started",
            Self::Good => "good",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Lapsed => "lapsed",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// Is a host still there when its grant's time is over? It has to have been seen near the end: one
/// that asks while the release waits for its reboot, and does not come back from that, is lost.
pub fn heard(began: Timestamp, expires: Timestamp, seen: Timestamp) -> bool {
    let half = expires.duration_since(began).as_secs() / 2;
    let end = half.clamp(0, 86_400);
    seen.as_second() > expires.as_second().saturating_sub(end)
}

/// Why a host does not get it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    Canary(String),
    Wave { number: usize },
    Window { opens: Timestamp },
    Cap { until: Timestamp },
    Paused,
    Halted,
    Superseded,
}

impl std::fmt::Display for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Canary(group) => write!(f, "group {group} goes first"),
            Self::Wave { number } => write!(f, "its turn comes with wave {number}"),
            Self::Window { opens } => write!(f, "the update window opens at {opens}"),
            Self::Cap { until } => write!(f, "enough hosts update now; more from {until:.0}"),
            Self::Paused => f.write_str("the rollout is paused"),
            Self::Halted => f.write_str("the rollout was halted"),
            Self::Superseded => f.write_str("the rollout is over"),
        }
    }
}

/// What a host may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It was granted before.
    Standing,
    /// It is granted now.
    New { wave: usize },
}

impl Rollout {
    pub fn new(policy: &Policy, seed: &str, now: Timestamp) -> Self {
        Self {
            seed: seed.into(),
            started: now,
            status: match policy.canary {
                Some(_) => Status::AwaitingCanary,
                None => Status::Active,
            },
            wave: 0,
            wave_since: now,
            tallies: vec![Tally::default(); policy.waves.len().max(1)],
            period: None,
        }
    }

    /// Where a host stands in the order, from 0 to 1.
    pub fn position(&self, host: &str) -> f64 {
        let digest = Sha256::of(format!("{}/{host}", self.seed));
        let mut first = [0; 8];
        first.copy_from_slice(&digest.0[..8]);
        // 53 bits are what a float holds.
        (u64::from_be_bytes(first) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// May this host have it now? Changes nothing.
    pub fn turn(
        &self,
        policy: &Policy,
        host: &str,
        grant: Option<&Grant>,
        now: Timestamp,
    ) -> Result<Turn, Hold> {
        match &self.status {
            Status::AwaitingCanary => {
                return Err(Hold::Canary(policy.canary.clone().unwrap_or_default()));
            }
            Status::Paused { .. } => return Err(Hold::Paused),
            Status::Halted { .. } => return Err(Hold::Halted),
            Status::Superseded => return Err(Hold::Superseded),
            Status::Active | Status::Complete => {}
        }
        // Whoever began may finish, window and cap or not. A verdict does not end a turn: who
        // comes back to it (forced, or reset) was counted already.
        if grant.is_some_and(|grant| grant.state != GrantState::Lapsed) {
            return Ok(Turn::Standing);
        }
        let wave = policy.wave_of(self.position(host));
        if wave > self.wave {
            return Err(Hold::Wave { number: wave + 1 });
        }
        if let Some(window) = &policy.window
            && let Open::NotBefore(opens) = window.at(now)
        {
            return Err(Hold::Window { opens });
        }
        if let Some(cap) = &policy.cap
            && let Some((since, hosts)) = self.period
        {
            let until = policy::later(since, SignedDuration::from_mins(cap.minutes.into()));
            if now < until && hosts >= cap.hosts {
                return Err(Hold::Cap { until });
            }
        }
        Ok(Turn::New { wave })
    }

    /// Whoever forces it at the host has it whatever the rollout says. It counts with those whose
    /// turn it is.
    pub fn forced(&self, policy: &Policy, host: &str, grant: Option<&Grant>) -> Turn {
        if grant.is_some_and(|grant| grant.state != GrantState::Lapsed) {
            return Turn::Standing;
        }
        let wave = policy.wave_of(self.position(host)).min(self.wave);
        Turn::New { wave }
    }

    pub fn total(&self) -> Tally {
        let mut total = Tally::default();
        for tally in &self.tallies {
            total.granted += tally.granted;
            total.good += tally.good;
            total.failed += tally.failed;
            total.lost += tally.lost;
            total.accepted.0 += tally.accepted.0;
            total.accepted.1 += tally.accepted.1;
        }
        total
    }

    /// Did it go well with everybody whose turn came? Few hosts are held to more than many: a
    /// budget says nothing of a handful, so none of them may have left it.
    pub fn went_well(&self, policy: &Policy) -> bool {
        let total = self.total();
        let everybody = match self.status {
            // Nobody needed it.
            Status::Complete if total.granted == 0 => return total.bad() == 0,
            Status::Complete => true,
            Status::Active => self.wave + 1 >= self.tallies.len() && total.waiting() == 0,
            _ => false,
        };
        let (good, bad) = total.unaccepted();
        let few = good + bad < u64::from(policy.halt.minimum_sample);
        let kept = if few {
            bad == 0
        } else {
            !exceeds(policy.halt.failure_budget, good, bad)
        };
        everybody && total.good > 0 && kept
    }

    /// When the next wave opens, if nothing speaks against it.
    pub fn next_wave(&self, policy: &Policy) -> Option<Timestamp> {
        (self.status == Status::Active && self.wave + 1 < self.tallies.len())
            .then(|| policy::later(self.wave_since, policy.wave_length()))
    }
}
