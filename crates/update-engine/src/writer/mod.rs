//! The process with the disk: one connection, from a socket that only root and update-engine reach.
//!
//! It has no network and no capabilities, and it trusts nobody: the signature, the digests and the
//! rules that keep the running system safe are all checked here, whatever the daemon checked. Only the list of
//! what failed here is the daemon's alone: what is on it does no more than fall back once more.

mod image;
mod preflight;
mod stage;

use std::time::Instant;

use host::varlink::{Call, Connection, Handler, Info, Interface, Replier, VarlinkError};
use release::tuf::TufError;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::memory::Code;
use crate::paths::Paths;
use crate::slots::{Access, NoDisk, Source, to_disk};
use crate::trust::TrustError;
use crate::wire;

/// How it ended, as far as the disk is concerned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriterError {
    /// Before the first write.
    #[error("{0}")]
    Refused(String),
    /// The same, for a reason that has a code of its own.
    #[error("{1}")]
    RefusedFor(Code, String),
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

impl From<TrustError> for WriterError {
    fn from(error: TrustError) -> Self {
        match error {
            TrustError::Tuf(error) => error.into(),
            // Here it is not the server's fault.
            error => Self::Refused(error.to_string()),
        }
    }
}

impl From<TufError> for WriterError {
    fn from(error: TufError) -> Self {
        Self::RefusedFor(error.code().into(), error.to_string())
    }
}

/// Any error before the first write is a refusal.
impl From<anyhow::Error> for WriterError {
    fn from(error: anyhow::Error) -> Self {
        Self::Refused(format!("{error:#}"))
    }
}

fn refused(code: Code, message: &str) -> VarlinkError {
    let parameters = json!({ "message": message, "code": code.number() });
    VarlinkError::reply(wire::REFUSED, parameters)
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
                WriterError::Refused(message) => refused(Code::Refused, &message),
                WriterError::RefusedFor(code, message) => refused(code, &message),
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

/// In MiB, rounded up.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib.div_ceil(1024))
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
        let begin = Instant::now();
        stage::run(&disk, payload, progress)?;
        let seconds = begin.elapsed().as_secs_f64();
        let memory = peak_memory().map_or("an unknown number of".into(), |it| it.to_string());
        tracing::info!("slot {slot} boots next: {seconds:.1} s, at most {memory} MiB of memory");
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
