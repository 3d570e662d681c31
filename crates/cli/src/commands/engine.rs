//! The host's update-engine, as `update` and `rollback` talk to it.

use anyhow::{Context, Result, bail};
use host::varlink::{Client, VarlinkError};
use release::Version;
use release::status::EngineStatus;
use serde::{Deserialize, Serialize};
use serde_json::Value;

const SOCKET: &str = "/run/update-engine/io.orlop.UpdateEngine";

/// What update-engine answers; while it works, `available` is missing.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    pub status: EngineStatus,
    #[serde(default)]
    pub available: Option<Version>,
}

/// Calls a method and hears of each change until it is done.
pub fn call(
    method: &str,
    parameters: &Value,
    on_change: &mut dyn FnMut(&EngineStatus),
) -> Result<Answer> {
    let mut client = Client::connect(SOCKET).context(
        "update-engine does not run here; on a host, systemctl status update-engine says why",
    )?;
    let mut last = None;
    for reply in client.call_more(&format!("io.orlop.UpdateEngine.{method}"), parameters)? {
        let reply = reply.map_err(explain)?;
        let answer: Answer = serde_json::from_value(reply)
            .context("update-engine answers something else than expected")?;
        on_change(&answer.status);
        last = Some(answer);
    }
    match last {
        Some(answer) => Ok(answer),
        None => bail!("update-engine gave no answer"),
    }
}

fn explain(error: VarlinkError) -> anyhow::Error {
    let denied = matches!(&error, VarlinkError::Reply { name, .. } if name == "org.varlink.service.PermissionDenied");
    let error = anyhow::Error::from(error);
    if denied {
        error.context("only root may do that; try it with sudo")
    } else {
        error
    }
}
