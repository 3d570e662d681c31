//! The service manager of the running system.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::anyhow;
use host::systemd::{Systemd, SystemdError};

use crate::apply::Services;
use crate::config::Verb;

/// A unit may pull an image before it counts as started.
const JOB_TIMEOUT: Duration = Duration::from_secs(3600);

/// Connected to when first needed, and again when the connection broke.
#[derive(Debug, Default)]
pub struct Live(RefCell<Option<Systemd>>);

impl Live {
    fn with<T>(
        &self,
        ask: impl FnOnce(&Systemd) -> Result<T, SystemdError>,
    ) -> Result<T, SystemdError> {
        let open = self.0.take();
        let systemd = match open {
            Some(systemd) => systemd,
            None => Systemd::connect()?.with_job_timeout(JOB_TIMEOUT),
        };
        let result = ask(&systemd);
        if !result.as_ref().is_err_and(SystemdError::is_connection) {
            self.0.replace(Some(systemd));
        }
        result
    }
}

impl Services for Live {
    fn enable(&self, unit: &str, runtime: bool) -> anyhow::Result<()> {
        Ok(self.with(|systemd| systemd.enable(&[unit], runtime))?)
    }

    fn reload(&self) -> anyhow::Result<()> {
        Ok(self.with(Systemd::daemon_reload)?)
    }

    fn job(&self, verb: Verb, unit: &str) -> anyhow::Result<()> {
        outcome(
            verb,
            self.with(|systemd| match verb {
                Verb::Start => systemd.start(unit),
                Verb::Stop => systemd.stop(unit),
                Verb::Restart => systemd.restart(unit),
                Verb::Reload => systemd.reload(unit),
                Verb::TryRestart => systemd.try_restart(unit),
                Verb::ReloadOrRestart => systemd.reload_or_restart(unit),
                Verb::ReloadOrTryRestart => systemd.reload_or_try_restart(unit),
            }),
        )
    }

    fn nudge(&self, unit: &str) -> anyhow::Result<()> {
        let state = self.with(|systemd| systemd.active_state(unit))?;
        if matches!(state.as_str(), "active" | "activating" | "reloading") {
            self.with(|systemd| systemd.restart_no_wait(unit))?;
        }
        Ok(())
    }

    fn queue(&self, unit: &str) -> anyhow::Result<()> {
        // A restart starts what does not run.
        Ok(self.with(|systemd| systemd.restart_no_wait(unit))?)
    }
}

/// Whoever prints it has named verb and unit already.
fn outcome(verb: Verb, result: Result<(), SystemdError>) -> anyhow::Result<()> {
    match result {
        // What does not exist is stopped.
        Err(SystemdError::NoSuchUnit { .. }) if verb == Verb::Stop => Ok(()),
        Err(SystemdError::Job { unit, result, .. }) => {
            Err(anyhow!("{result}; see `{}`", result.look_at(&unit)))
        }
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use host::systemd::JobResult;

    use super::*;

    #[test]
    fn what_does_not_exist_is_stopped() {
        let missing = || {
            Err(SystemdError::NoSuchUnit {
                unit: "a.service".to_owned(),
            })
        };
        outcome(Verb::Stop, missing()).unwrap();
        let error = outcome(Verb::Start, missing()).unwrap_err();
        assert!(error.to_string().starts_with("no such unit: a.service"));
    }

    #[test]
    fn verb_and_unit_are_not_said_twice() {
        let failed = SystemdError::Job {
            verb: "start",
            unit: "a.service".to_owned(),
            result: JobResult::Failed,
        };
        assert_eq!(
            outcome(Verb::Start, Err(failed)).unwrap_err().to_string(),
            "it failed; see `journalctl -u a.service`"
        );
    }
}
