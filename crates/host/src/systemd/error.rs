use std::time::Duration;

use super::{DbusError, JobResult};

#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    #[error("cannot reach systemd on {address}")]
    Connect {
        address: String,
        #[source]
        source: DbusError,
    },
    #[error("no such unit: {unit}; `systemctl list-unit-files` shows those there are")]
    NoSuchUnit { unit: String },
    #[error("{unit} is masked; `systemctl unmask {unit}` allows it again")]
    Masked { unit: String },
    #[error("not allowed to {verb} {unit}; only root may")]
    Denied { verb: &'static str, unit: String },
    #[error("cannot {verb} {unit}")]
    Call {
        verb: &'static str,
        unit: String,
        #[source]
        source: DbusError,
    },
    #[error("{verb} of {unit}: {result}; see `{}`", result.look_at(unit))]
    Job {
        verb: &'static str,
        unit: String,
        result: JobResult,
    },
    #[error("{verb} of {unit} has not finished within {} s", limit.as_secs_f32())]
    JobTimeout {
        verb: &'static str,
        unit: String,
        limit: Duration,
    },
}

impl SystemdError {
    /// The connection is of no use any more; a new one may be.
    pub fn is_connection(&self) -> bool {
        match self {
            Self::Connect { .. } => true,
            Self::Call { source, .. } => !matches!(source, DbusError::Reply { .. }),
            _ => false,
        }
    }

    pub(super) fn from_call(verb: &'static str, unit: &str, source: DbusError) -> Self {
        let unit = unit.to_owned();
        let name = match &source {
            DbusError::Reply { name, .. } => name.as_str(),
            _ => "",
        };
        match name {
            "org.freedesktop.systemd1.NoSuchUnit" => Self::NoSuchUnit { unit },
            "org.freedesktop.systemd1.UnitMasked" => Self::Masked { unit },
            "org.freedesktop.DBus.Error.AccessDenied"
            | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => {
                Self::Denied { verb, unit }
            }
            _ => Self::Call { verb, unit, source },
        }
    }
}
