//! The process with the disk: one connection, from a socket that only root and update-engine reach.
//!
//! It has no network and no capabilities, and it trusts nobody: the signature, the digests and the
//! rules that keep the running system safe are all checked here, whatever the daemon checked.

mod image;
mod preflight;
mod stage;

use host::varlink::{Call, Connection, Handler, Info, Interface, Replier, VarlinkError};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::paths::Paths;
use crate::slots::{Access, NoDisk, Source, to_disk};
use crate::wire;

/// How it ended, as far as the disk is concerned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriterError {
    /// Before the first write.
    #[error("{0}")]
    Refused(String),
    /// After it. The slot being written cannot be booted.
    #[error("{0}")]
    Failed(String),
    /// The delta or the blocks do not lead to the image; another way may. What was being written
    /// cannot be booted.
    #[error("{0}")]
    WayClosed(String),
}

impl From<NoDisk> for WriterError {
    fn from(error: NoDisk) -> Self {
        Self::Refused(error.to_string())
    }
}

/// Any error before the first write is a refusal.
impl From<anyhow::Error> for WriterError {
    fn from(error: anyhow::Error) -> Self {
        Self::Refused(format!("{error:#}"))
    }
}

/// Serves the connection on standard input, then ends.
pub fn serve(source: Source) -> anyhow::Result<()> {
    let connection = Connection::from_stdin()?;
    match connection.serve(&mut Writer { source }) {
        // What was begun was finished all the same.
        Err(VarlinkError::Closed) => tracing::info!("the caller hung up"),
        other => other?,
    }
    Ok(())
}

struct Writer {
    source: Source,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl Handler for Writer {
    fn info(&self) -> Info {
        Info::orlop("update-writer")
    }

    fn interfaces(&self) -> &[Interface] {
        &[wire::WRITER]
    }

    fn call(&mut self, call: &Call, replier: &mut Replier<'_>) -> Result<Value, VarlinkError> {
        let answer = match call.method.as_str() {
            wire::GET_SLOTS => {
                let _: Nothing = call.params()?;
                self.slots()
            }
            wire::STAGE => {
                let stage: wire::Stage = call.params()?;
                self.stage(&stage, &mut |done, total| {
                    // The daemon may be gone; the slot is finished all the same.
                    let _ = replier.progress(json!({ "done": done, "total": total }));
                })
            }
            wire::MISSING => {
                let missing: wire::Missing = call.params()?;
                self.missing(&missing)
            }
            wire::ROLLBACK => {
                let _: Nothing = call.params()?;
                self.roll_back()
            }
            method => return Err(VarlinkError::method_not_found(method)),
        };
        answer.map_err(|error| {
            tracing::error!("{error}");
            match error {
                WriterError::Refused(message) => VarlinkError::message(wire::REFUSED, message),
                WriterError::Failed(message) => VarlinkError::message(wire::FAILED, message),
                WriterError::WayClosed(message) => VarlinkError::message(wire::WAY_CLOSED, message),
            }
        })
    }
}

/// The running release is good, and must outlast whatever becomes of the new one: should that fail, no
/// number of power cuts makes the boot loader give up what it falls back to. mark-good counts again.
fn keep_running_bootable(disk: &crate::slots::Disk) -> anyhow::Result<()> {
    match disk.entry(disk.booted)? {
        Some(entry) if entry.valid && entry.counted => {
            disk.esp()?.uncount(to_disk(disk.booted))?;
        }
        _ => {}
    }
    Ok(())
}

impl Writer {
    fn slots(&self) -> Result<Value, WriterError> {
        let disk = self.source.open(Access::Read)?;
        Ok(json!({ "slots": disk.slots()? }))
    }

    fn stage(
        &self,
        call: &wire::Stage,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Value, WriterError> {
        let paths = Paths::new(&self.source.root);
        let payload = preflight::verify(&self.source, &paths, call)?;
        let disk = self.source.open(Access::Write)?;
        preflight::suits(&self.source.root, &disk, &payload)?;
        let payload = payload.with_uki(&disk)?;
        keep_running_bootable(&disk)?;
        let slot = disk.passive();
        tracing::info!(
            "writing version {} to slot {slot} of {} ({:?})",
            payload.manifest.version,
            disk.path.display(),
            call.way
        );
        stage::run(&disk, payload, progress)?;
        tracing::info!("slot {slot} boots next");
        Ok(json!({ "slot": slot }))
    }

    fn missing(&self, call: &wire::Missing) -> Result<Value, WriterError> {
        let index = preflight::index(&Paths::new(&self.source.root), call)?;
        let disk = self.source.open(Access::Read)?;
        let have = image::have(&disk)?;
        let ranges = index.missing(&have);
        Ok(json!(wire::Ranges { ranges }))
    }

    /// The running slot's entry keeps its file but has no tries left: the boot loader puts it last.
    fn roll_back(&self) -> Result<Value, WriterError> {
        let disk = self.source.open(Access::Write)?;
        let target = disk.passive();
        preflight::boot_is_good(&Paths::new(&self.source.root))?;
        if !disk.entry(target)?.is_some_and(|entry| entry.is_bootable()) {
            return Err(WriterError::Refused(format!(
                "slot {target} has no boot entry with tries left, so there is nothing to go back to"
            )));
        }
        let Some(running) = disk.entry(disk.booted)? else {
            return Err(WriterError::Refused(format!(
                "slot {} has no boot entry: the kernel was not started by the boot loader, choose the slot where it was started",
                disk.booted
            )));
        };
        let exhaust = || -> anyhow::Result<()> {
            disk.esp()?
                .set_tries(to_disk(disk.booted), 0, running.tries_done)?;
            Ok(())
        };
        exhaust().map_err(|e| WriterError::Failed(format!("{e:#}")))?;
        Ok(json!({ "slot": target, "version": null }))
    }
}
