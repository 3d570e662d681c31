//! What systemd is asked to do, when, and how often.
//!
//! cloudinit runs before most units, so waiting for one of them could wait for ourselves. Early:
//! enabling, reloading, and our own daemons, which only need a restart if they run already. Late, by a
//! service of its own: everything the user asked for, one after the other, each job waited for,
//! as the original does. A call is made once per boot for the same content of its unit.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Changes;
use crate::config::Verb;
use crate::plan::{Call, Plan, sha256};

/// The part of systemd that is used.
pub trait Services {
    fn enable(&self, unit: &str, runtime: bool) -> anyhow::Result<()>;
    fn reload(&self) -> anyhow::Result<()>;
    /// Runs the job and waits for it.
    fn job(&self, verb: Verb, unit: &str) -> anyhow::Result<()>;
    /// Queues a restart if the unit runs.
    fn nudge(&self, unit: &str) -> anyhow::Result<()>;
    /// Queues a start.
    fn queue(&self, unit: &str) -> anyhow::Result<()>;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallStatus {
    pub call: Call,
    /// Of the files that make up the unit: the same call for other content is another call.
    pub digest: String,
    pub state: CallState,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CallState {
    Pending,
    Done,
    Failed,
    /// Nothing to do: systemd has read the files already.
    Unneeded,
}

/// Our daemons by the names that configs use, and by their own. They read their configuration when
/// they start, and the image starts them.
const OWN: [(&str, &str); 3] = [
    ("locksmithd.service", "locksmith.service"),
    ("update-engine.service", "update-engine.service"),
    ("systemd-networkd.service", "systemd-networkd.service"),
];

fn own(call: &Call) -> Option<&'static str> {
    let Call::Unit {
        verb: Verb::Restart | Verb::Stop,
        unit,
    } = call
    else {
        return None;
    };
    let found = OWN.iter().find(|(name, _)| name == unit);
    found.map(|(_, name)| *name)
}

/// A unit file under a name that only configs use: systemd need not read it.
pub(super) fn is_alias(path: &str) -> bool {
    let names = |(other, own): &(&str, &str)| other != own && path.ends_with(&format!("/{other}"));
    OWN.iter().any(names)
}

/// The plan's calls and how they stand; `before` is what this boot has seen already.
pub fn planned(plan: &Plan, before: &[CallStatus]) -> Vec<CallStatus> {
    plan.calls
        .iter()
        .map(|call| {
            let digest = digest(plan, call);
            let seen = before
                .iter()
                .find(|b| b.call == *call && b.digest == digest);
            let done = seen.is_some_and(|b| b.state != CallState::Failed) && *call != Call::Reload;
            match seen {
                Some(seen) if done => seen.clone(),
                _ => CallStatus {
                    call: call.clone(),
                    digest,
                    state: CallState::Pending,
                    error: None,
                },
            }
        })
        .collect()
}

fn digest(plan: &Plan, call: &Call) -> String {
    let belongs = |path: &str| match call {
        Call::Reload => false,
        Call::Enable { unit, .. } | Call::Unit { unit, .. } => {
            let path_of = Path::new(path);
            let named =
                |part: Option<&std::ffi::OsStr>, name: &str| part.is_some_and(|p| p == name);
            named(path_of.file_name(), unit)
                || named(
                    path_of.parent().and_then(Path::file_name),
                    &format!("{unit}.d"),
                )
                || own(call).is_some()
                    && (path == "/etc/coreos/update.conf" || path.contains("/systemd/network/"))
        }
    };
    let parts: Vec<u8> = plan
        .writes()
        .filter(|write| belongs(&write.path))
        .flat_map(|write| [write.path.as_bytes(), b"\0", &write.content, b"\0"].concat())
        .collect();
    sha256(&parts)
}

/// The calls that cannot wait for us in a circle.
pub fn carry_out_early(calls: &mut [CallStatus], changes: &Changes, services: &dyn Services) {
    for status in calls
        .iter_mut()
        .filter(|status| status.state == CallState::Pending)
    {
        let result = match &status.call {
            Call::Enable { unit, runtime } => services.enable(unit, *runtime),
            Call::Reload if !changes.units => {
                status.state = CallState::Unneeded;
                continue;
            }
            Call::Reload => services.reload(),
            call => match own(call) {
                Some(unit) => services.nudge(unit),
                None => continue,
            },
        };
        status.finish(result);
    }
}

/// The rest, in order. `progress` sees the calls after each one, to be kept for whoever asks.
pub fn carry_out_late(
    calls: &mut [CallStatus],
    services: &dyn Services,
    mut progress: impl FnMut(&[CallStatus]),
) {
    for index in 0..calls.len() {
        if calls[index].state != CallState::Pending {
            continue;
        }
        let result = match &calls[index].call {
            Call::Unit { verb, unit } => services.job(*verb, unit),
            Call::Enable { unit, runtime } => services.enable(unit, *runtime),
            Call::Reload => services.reload(),
        };
        calls[index].finish(result);
        progress(calls);
    }
}

impl CallStatus {
    fn finish(&mut self, result: anyhow::Result<()>) {
        match result {
            Ok(()) => {
                tracing::info!("{}", self.call);
                self.state = CallState::Done;
            }
            Err(error) => {
                tracing::error!("{}: {error:#}", self.call);
                self.state = CallState::Failed;
                self.error = Some(format!("{error:#}"));
            }
        }
    }
}
