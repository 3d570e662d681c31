//! What the engine tells the world: a function of its state.

use release::status::{EngineStatus, SlotRelease, UpdateState, UpdateStatus};

use super::{Engine, Offer, Phase};
use crate::memory::Code;

impl Engine {
    pub fn status(&self) -> EngineStatus {
        let staged = self.staged().map(|s| SlotRelease {
            version: s.version.clone(),
            slot: s.slot,
            soft_reboot: self.soft_reboot_is_enough(),
        });
        let rollback = self
            .other_slot()
            .filter(|_| staged.is_none() && !matches!(self.phase, Phase::Writing { .. }))
            .filter(|s| s.tries_left.is_some_and(|left| left > 0))
            .and_then(|s| {
                Some(SlotRelease {
                    version: s.version.clone()?,
                    slot: s.slot,
                    soft_reboot: false,
                })
            });
        let last = self.last_error.as_ref();
        let (message, code) = (
            last.map(|it| it.message.clone()),
            last.and_then(|it| it.code),
        );
        EngineStatus {
            update: UpdateStatus {
                state: self.update_state(staged.is_some()),
                progress: self.progress(),
                version: self.offer().map(|o| o.manifest.version.clone()),
                size: self.offer().map(Offer::download_size),
                last_check: self.memory.last_check,
                last_error: message.or_else(|| self.standing()),
                last_error_code: code.map(Code::number),
            },
            staged,
            rollback,
            failed: self.memory.failed.clone(),
            slots: self.slots.clone(),
            channel: self.settings.channel.clone(),
            server: self.settings.server.clone(),
            epoch: self.epoch(),
        }
    }

    /// What is so until a person changes it, and says why nothing happens.
    fn standing(&self) -> Option<String> {
        let by_hand = "state is volatile: updates only by hand (orlop update)";
        let by_hand = self.host.volatile.then(|| by_hand.to_owned());
        let by_hand = by_hand.filter(|_| self.settings.server.is_some());
        self.settings.problem.clone().or(by_hand)
    }

    fn update_state(&self, staged: bool) -> UpdateState {
        match &self.phase {
            Phase::Checking { .. } => UpdateState::Checking,
            Phase::Downloading { .. } => UpdateState::Downloading,
            Phase::Writing { .. } | Phase::RollingBack { .. } => UpdateState::Writing,
            Phase::Idle { failures: 1.., .. } => UpdateState::Error,
            _ if staged && !self.is_held() => UpdateState::Staged,
            _ => UpdateState::Idle,
        }
    }

    fn offer(&self) -> Option<&Offer> {
        match &self.phase {
            Phase::Downloading { offer, .. } | Phase::Writing { offer, .. } => Some(offer),
            _ => None,
        }
    }

    /// In steps of a percent: the status is published each time it changes.
    fn progress(&self) -> Option<f64> {
        let (done, total) = match &self.phase {
            Phase::Downloading { offer, done, .. } => (*done, offer.download_size()),
            Phase::Writing { offer, done, .. } => (*done, offer.manifest.usr.size),
            _ => return None,
        };
        let percent = done.saturating_mul(100) / total.max(1);
        Some(percent.min(100) as f64 / 100.0)
    }
}
