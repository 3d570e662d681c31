//! What became of the release that was staged, seen from the boot after it.

use jiff::Timestamp;
use release::status::{FailedRelease, SlotStatus};
use release::{Sha256, Version};
use serde::{Deserialize, Serialize};

use super::{Action, Engine, Problem, Why};
use crate::memory::{Code, Report, Staging};

/// What earlier boots left in `/var/lib/orlop/boot`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// One per boot in which userspace started, since the last good one.
    pub attempts: Vec<Attempt>,
    pub failure: Option<Failure>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub usrhash: Sha256,
}

/// Written by `boot-failed` before it reboots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub usrhash: Sha256,
    pub reason: String,
}

impl Evidence {
    /// What is about other releases than the running one.
    pub fn of_others(mut self, running: Option<Sha256>) -> Self {
        self.attempts.retain(|a| Some(a.usrhash) != running);
        self.failure = self.failure.filter(|f| Some(f.usrhash) != running);
        self
    }

    pub fn is_empty(&self) -> bool {
        self.attempts.is_empty() && self.failure.is_none()
    }

    /// Why the release with this root hash did not become healthy in `tries` boots.
    fn reason(&self, root_hash: Option<Sha256>, tries: u8) -> String {
        if let Some(failure) = self
            .failure
            .as_ref()
            .filter(|f| Some(f.usrhash) == root_hash)
        {
            return failure.reason.clone();
        }
        match self
            .attempts
            .iter()
            .filter(|a| Some(a.usrhash) == root_hash)
            .count()
        {
            0 => format!(
                "no trace of a started userspace in {tries} tries (kernel or initrd failed)"
            ),
            n => format!("userspace started {n} times but never reached boot-complete.target"),
        }
    }
}

impl Engine {
    /// Compares the memory with the disk. Needed at start, and when a writer's end
    /// was not seen.
    pub(super) fn reconcile(&mut self, now: Timestamp) -> Vec<Action> {
        self.reconciled = true;
        let evidence = &std::mem::take(&mut self.memory.evidence);
        if let Some(rollback) = self
            .memory
            .rollback
            .take_if(|r| r.boot_id != self.host.boot_id)
        {
            tracing::info!(
                "version {} runs after a rollback to {}",
                self.host.version,
                rollback.to
            );
        }
        if let Some(rollback) = &self.memory.rollback {
            return vec![Action::AskReboot {
                version: rollback.to.clone(),
                reason: Why::Rollback,
            }];
        }
        self.remember_what_runs();
        match self.memory.staging.clone() {
            // It is what runs: whether it is good shows soon.
            Some(staging) if Some(staging.root_hash) == self.host.root_hash => {
                vec![Action::WithdrawReboot]
            }
            Some(staging) => self.reconcile_staging(staging, evidence, now),
            None => {
                self.look_for_rot(evidence, now);
                vec![Action::WithdrawReboot]
            }
        }
    }

    /// The release that was to be written over the staged one was refused, and the staged one was booted.
    pub(super) fn remember_what_runs(&mut self) {
        let running = self.host.root_hash;
        let before = self.memory.staging.as_ref().and_then(|s| s.over.as_deref());
        if let Some(before) = before.filter(|s| Some(s.root_hash) == running) {
            self.memory.staging = Some(before.clone());
        }
    }

    fn reconcile_staging(
        &mut self,
        mut staging: Staging,
        evidence: &Evidence,
        now: Timestamp,
    ) -> Vec<Action> {
        let there = self
            .other_slot()
            .filter(|s| s.root_hash == Some(staging.root_hash))
            .cloned();
        // Nothing was written: what was staged before is there as it was.
        if there.is_none()
            && let Some(before) = staging.over.take()
            && self
                .other_slot()
                .is_some_and(|s| s.root_hash == Some(before.root_hash))
        {
            self.memory.staging = Some((*before).clone());
            return self.reconcile_staging(*before, evidence, now);
        }
        let same_boot = staging.boot_id == self.host.boot_id;
        // The boot loader takes it only if the running one has no tries left.
        let passed_over = staging.version <= self.host.version
            && self
                .booted_slot()
                .is_some_and(|s| s.tries_left.is_some_and(|n| n > 0));
        let failed = match there {
            // What follows the writing is missing. Asked for again with each look at the slots until it is done.
            Some(SlotStatus {
                tries_left: Some(1..),
                ..
            }) if same_boot && passed_over => {
                self.reconciled = false;
                self.last_error = None;
                return vec![Action::WithdrawReboot, Action::RollBack];
            }
            // It never was the boot loader's turn to take it, so it did not fail.
            Some(SlotStatus {
                tries_left: Some(1..),
                ..
            }) if staging.version <= self.host.version && !same_boot => {
                tracing::warn!(
                    "version {} was written, but the next boot was not made to take it",
                    staging.version
                );
                self.memory.staging = None;
                return vec![Action::WithdrawReboot];
            }
            Some(SlotStatus {
                tries_left: Some(1..),
                ..
            }) if same_boot => {
                let version = staging.version.clone();
                let held = staging.held;
                self.memory.staging = Some(Staging {
                    committed: true,
                    over: None,
                    ..staging
                });
                self.last_error = None;
                if held {
                    return vec![Action::WithdrawReboot];
                }
                return vec![Action::AskReboot {
                    version,
                    reason: Why::Update,
                }];
            }
            Some(SlotStatus {
                tries_left: Some(0),
                tries_done,
                ..
            }) => evidence.reason(Some(staging.root_hash), tries_done.unwrap_or(0)),
            // Failing it may be harsh, but staging it again would reboot this host for ever.
            Some(SlotStatus {
                tries_left: Some(n),
                ..
            }) => {
                format!(
                    "the host was rebooted, but the boot loader chose version {} although {n} tries were left",
                    self.host.version
                )
            }
            // A write that was cut off: nothing was bootable, so nothing failed.
            _ => {
                tracing::warn!(
                    "version {} was not completely written; it will be fetched again",
                    staging.version
                );
                self.memory.staging = None;
                return vec![Action::WithdrawReboot];
            }
        };
        self.memory.staging = None;
        self.fell_back(staging.version, Some(staging.id), failed, now);
        vec![Action::WithdrawReboot]
    }

    /// A release that was good once can rot: the newer one lies in the other slot with no tries
    /// left, and nobody staged it.
    fn look_for_rot(&mut self, evidence: &Evidence, now: Timestamp) {
        let Some(SlotStatus {
            root_hash,
            version,
            tries_left: Some(0),
            tries_done,
            ..
        }) = self.other_slot().cloned()
        else {
            return;
        };
        let Some(version) = version else { return };
        if root_hash.is_some() && root_hash == self.memory.excused {
            return;
        }
        let known = root_hash.and_then(|hash| self.memory.known(hash));
        let id = known.and_then(|k| k.id);
        let listed = self
            .memory
            .failed
            .iter()
            .any(|f| f.version == version && f.id == id);
        if version > self.host.version && !listed {
            let reason = evidence.reason(root_hash, tries_done.unwrap_or(0));
            self.fell_back(version, id, reason, now);
        }
    }

    fn fell_back(&mut self, version: Version, id: Option<Sha256>, reason: String, now: Timestamp) {
        tracing::error!(
            "version {version} failed, back on {}: {reason}",
            self.host.version
        );
        self.last_error = Some(Problem {
            code: Some(Code::FellBack),
            message: format!("version {version} failed: {reason}"),
        });
        self.memory.remember_failure(FailedRelease {
            version: version.clone(),
            id,
            reason: reason.clone(),
            at: now,
        });
        self.memory.report(Report::Failed {
            version,
            release: id,
            code: Code::FellBack,
            reason,
        });
    }
}
