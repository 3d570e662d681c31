//! The engine's status in update_engine's words.

use std::path::Path;

use anyhow::Context as _;
use release::status::{EngineStatus, UpdateState};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Status {
    /// Seconds since 1970; 0: never.
    pub(crate) last_checked_time: i64,
    pub(crate) progress: f64,
    pub(crate) current_operation: String,
    pub(crate) new_version: String,
    pub(crate) new_size: i64,
}

impl Status {
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path)
            .with_context(|| format!("cannot read {} (does update-engine run?)", path.display()))?;
        let status = serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged", path.display()))?;
        Ok(Self::of(&status))
    }

    /// In the order of the interface.
    pub(crate) fn into_arguments(self) -> (i64, f64, String, String, i64) {
        (
            self.last_checked_time,
            self.progress,
            self.current_operation,
            self.new_version,
            self.new_size,
        )
    }

    fn of(status: &EngineStatus) -> Self {
        let update = &status.update;
        let staged = status.staged.as_ref().map(|s| &s.version);
        let version = update.version.as_ref().or(staged);
        Self {
            last_checked_time: update.last_check.map_or(0, |at| at.as_second()),
            progress: update.progress.unwrap_or(0.0),
            current_operation: operation(update.state).into(),
            // What CoreOS says where there is none.
            new_version: version.map_or_else(|| "0.0.0".into(), ToString::to_string),
            new_size: update.size.and_then(|n| n.try_into().ok()).unwrap_or(0),
        }
    }
}

fn operation(state: UpdateState) -> &'static str {
    match state {
        UpdateState::Idle => "UPDATE_STATUS_IDLE",
        UpdateState::Checking => "UPDATE_STATUS_CHECKING_FOR_UPDATE",
        UpdateState::Downloading => "UPDATE_STATUS_DOWNLOADING",
        UpdateState::Writing => "UPDATE_STATUS_FINALIZING",
        UpdateState::Staged => "UPDATE_STATUS_UPDATED_NEED_REBOOT",
        UpdateState::Error => "UPDATE_STATUS_REPORTING_ERROR_EVENT",
    }
}
