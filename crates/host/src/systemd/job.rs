use std::fmt;

use super::SystemdError;

/// The `result` of JobRemoved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobResult {
    Done,
    /// Nothing was to be done, e.g. a condition of the unit did not hold.
    Skipped,
    Failed,
    Timeout,
    Canceled,
    Dependency,
    Other(String),
}

impl From<&str> for JobResult {
    fn from(text: &str) -> Self {
        match text {
            "done" => Self::Done,
            "skipped" => Self::Skipped,
            "failed" => Self::Failed,
            "timeout" => Self::Timeout,
            "canceled" => Self::Canceled,
            "dependency" => Self::Dependency,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for JobResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Skipped => "skipped",
            Self::Failed => "it failed",
            Self::Timeout => "it took too long",
            Self::Canceled => "another job cancelled it",
            Self::Dependency => "a unit it needs failed",
            Self::Other(text) => text,
        })
    }
}

impl JobResult {
    /// The command that shows why.
    pub fn look_at(&self, unit: &str) -> String {
        match self {
            Self::Failed | Self::Timeout => format!("journalctl -u {unit}"),
            _ => format!("systemctl status {unit}"),
        }
    }

    pub(super) fn check(self, verb: &'static str, unit: &str) -> Result<(), SystemdError> {
        match self {
            Self::Done | Self::Skipped => Ok(()),
            result => Err(SystemdError::Job {
                verb,
                unit: unit.to_owned(),
                result,
            }),
        }
    }
}
