//! `io.orlop.UpdateEngine`: how `orlop status`, `orlop update` and `varlinkctl` talk to us.

use std::path::Path;
use std::sync::PoisonError;
use std::sync::mpsc::{self, Sender};

use host::varlink::{Call, Handler, Info, Interface, Listener, Replier, VarlinkError};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Input, Shown};
use crate::engine::{Ask, Event};

const ENGINE: Interface = Interface {
    name: "io.orlop.UpdateEngine",
    description: "\
# Keeps this host on the newest release of its channel.
interface io.orlop.UpdateEngine

# The content of /run/update-engine/status.json.
method GetStatus() -> (status: object)

# Asks the server; installs nothing. `available` is the version that Update would install.
# `from`, `allow_expired`: as with Update.
method Check(from: ?string, allow_expired: ?bool) -> (status: object, available: ?string)

# Checks, downloads and writes. With `more`, the status is sent each time it changes.
# `force` also takes a version that failed here before, or an older one, and tells the server so. The writer takes
# an older one only while root holds a lock for writing (fcntl) on /run/orlop/update-allow-older.
# `download_only` fetches and does not write; `apply` writes what was so fetched, and asks no server. `from` is the URL of a
# published tree that is taken instead of what the server says: `tuf/` and a directory for each version. `allow_expired`
# believes metadata past its date, for this update and only while root holds such a lock on
# /run/orlop/update-allow-expired.
method Update(force: ?bool, download_only: ?bool, apply: ?bool, from: ?string, allow_expired: ?bool) ->
  (status: object, available: ?string)

# Makes the next boot take the other slot. The rebooting is the reboot manager's (or yours).
method Rollback() -> (status: object, available: ?string)

# Forgets which releases failed here, and has the server forget it.
method ClearFailed() -> (status: object, available: ?string)

# Asks for no reboot into a staged release (which boots all the same at the next one, whoever asks for it),
# and shows the last error no longer. Over with the next Update.
method Reset() -> (status: object, available: ?string)

# Not now: see the message.
error Busy (message: string)

# It was tried and did not work: see the message.
error Failed (message: string)
",
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Update {
    #[serde(default)]
    force: Option<bool>,
    #[serde(default)]
    download_only: Option<bool>,
    #[serde(default)]
    apply: Option<bool>,
    #[serde(default)]
    from: Option<String>,
    #[serde(default)]
    allow_expired: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Check {
    #[serde(default)]
    from: Option<String>,
    #[serde(default)]
    allow_expired: Option<bool>,
}

/// The longest call has the address of a tree.
const LONGEST_CALL: usize = 4096;

/// With the slash at its end that everything else relies on.
fn tree(from: Option<String>) -> Result<Option<String>, VarlinkError> {
    let Some(url) = from else { return Ok(None) };
    match url.starts_with("http://") || url.starts_with("https://") {
        true => Ok(Some(format!("{}/", url.trim_end_matches('/')))),
        false => Err(VarlinkError::message(
            "io.orlop.UpdateEngine.Failed",
            format!("{url:?} is no http:// or https:// address"),
        )),
    }
}

/// Accepts callers on a thread of its own.
pub(super) fn listen(path: &Path, shown: &Shown, inputs: Sender<Input>) -> anyhow::Result<()> {
    // Anyone may look; who may change something is decided per call.
    let listener = Listener::bind(path, 0o666)?.with_limit(LONGEST_CALL);
    let shown = shown.clone();
    super::spawn("varlink", move || {
        let inputs = std::sync::Mutex::new(inputs);
        listener.serve(move || Service {
            shown: shown.clone(),
            inputs: inputs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        })
    })
}

struct Service {
    shown: Shown,
    inputs: Sender<Input>,
}

impl Handler for Service {
    fn info(&self) -> Info {
        Info::orlop("update-engine")
    }

    fn interfaces(&self) -> &[Interface] {
        &[ENGINE]
    }

    fn call(&mut self, call: &Call, replier: &mut Replier<'_>) -> Result<Value, VarlinkError> {
        let method = call
            .method
            .rsplit_once('.')
            .map_or("", |(_, method)| method);
        let event = match method {
            "GetStatus" => {
                let _: Nothing = call.params()?;
                let status = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
                return Ok(json!({ "status": *status }));
            }
            "Update" => {
                let update: Update = call.params()?;
                Event::Asked(Ask {
                    install: true,
                    force: update.force.unwrap_or(false),
                    download_only: update.download_only.unwrap_or(false),
                    apply: update.apply.unwrap_or(false),
                    from: tree(update.from)?,
                    allow_expired: update.allow_expired.unwrap_or(false),
                })
            }
            "Check" => {
                let check: Check = call.params()?;
                Event::Asked(Ask {
                    from: tree(check.from)?,
                    allow_expired: check.allow_expired.unwrap_or(false),
                    ..Ask::LOOK
                })
            }
            _ => {
                let _: Nothing = call.params()?;
                match method {
                    "Rollback" => Event::AskedRollback,
                    "ClearFailed" => Event::ClearFailed,
                    "Reset" => Event::Reset,
                    _ => return Err(VarlinkError::method_not_found(&call.method)),
                }
            }
        };
        // Who runs as us could do all of it anyway.
        if call.peer_uid != rustix::process::geteuid().as_raw() {
            call.require_root()?;
        }
        self.wish(event, replier)
    }
}

impl Service {
    fn wish(&self, event: Event, replier: &mut Replier<'_>) -> Result<Value, VarlinkError> {
        let failed =
            |message: String| VarlinkError::message("io.orlop.UpdateEngine.Failed", message);
        let (caller, answers) = mpsc::channel();
        if self.inputs.send(Input::Wish(event, caller)).is_err() {
            return Err(failed("update-engine is stopping".into()));
        }
        loop {
            match answers.recv() {
                Ok(Answer::Refused(busy)) => {
                    return Err(VarlinkError::message(
                        "io.orlop.UpdateEngine.Busy",
                        busy.to_string(),
                    ));
                }
                // A caller that hung up stops listening, not the update.
                Ok(Answer::Progress(status)) => drop(replier.progress(json!({ "status": status }))),
                Ok(Answer::Done {
                    error: Some(error), ..
                }) => return Err(failed(error)),
                Ok(Answer::Done {
                    status,
                    available,
                    error: None,
                }) => {
                    return Ok(json!({ "status": status, "available": available }));
                }
                Err(_) => return Err(failed("update-engine is stopping".into())),
            }
        }
    }
}
