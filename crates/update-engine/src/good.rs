//! The end of a boot that went well.
//!
//! The running slot's entry gets all its tries back. It keeps a counter as long as the other slot has a
//! release that proved itself: a slot that is good today and unreadable next month runs out of tries too,
//! and the host falls back by itself. Where there is nothing to fall back to it is not counted, or power
//! cuts alone would use its tries up.

use std::fs::{self, OpenOptions};

use anyhow::Context as _;
use disk::esp::Entry;
use release::status::SlotStatus;
use serde_json::Value;

use crate::epoch;
use crate::extensions;
use crate::paths::Paths;
use crate::slots::{Access, Disk, NoDisk, Source, to_disk};
use crate::wire;

pub(crate) const TRIES: u8 = 3;

pub fn run(source: &Source) -> anyhow::Result<()> {
    let paths = Paths::new(&source.root);
    if paths.good().exists() {
        // Once per boot: restarting a service must not undo a rollback that waits for its reboot.
        return Ok(());
    }
    // What made this boot good must be there at the next one, whatever its programs forgot to flush: a
    // host key that a power cut empties would cost the host its way in.
    flush_state(source)?;
    // Its lock is kept until the word is there: boot-failed looks for it under the same lock.
    let disk = open(source)?;
    let slots = disk.as_ref().map(rearm).transpose()?;
    let good = paths.good();
    if let Some(dir) = good.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    if let Some(slots) = slots {
        let hashes: Vec<_> = slots.iter().filter_map(|slot| slot.root_hash).collect();
        extensions::clean_verified(&paths, &hashes);
        let text = serde_json::to_vec(&wire::Slots { slots })?;
        host::atomic::write(&paths.slots(), &text, 0o644, None)?;
    }
    // On a full disk it is not noted. Failing a boot for it would be worse: the next good one notes it.
    if let Err(e) = epoch::note(&paths) {
        tracing::error!("this release's epoch is not noted: {e:#}");
    }
    forget_attempts(&paths)?;
    forget_failure(&paths, source)?;
    // Last: from now on the other slot may be overwritten.
    host::atomic::write(&good, b"", 0o644, None)?;
    tracing::info!("this boot is good");
    Ok(())
}

/// Nothing to do for a kernel that was not started from the disk's boot entries.
fn open(source: &Source) -> anyhow::Result<Option<Disk>> {
    match source.open(Access::Write) {
        Ok(disk) => Ok(Some(disk)),
        Err(e @ NoDisk::NotFromSlot(_)) => {
            tracing::info!("no boot entry to re-arm: {e}");
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// What is in the slots afterwards.
fn rearm(disk: &Disk) -> anyhow::Result<Vec<SlotStatus>> {
    let slot = disk.booted;
    match disk.entry(slot)? {
        Some(entry) if !entry.valid => {
            tracing::warn!("slot {slot} has a boot entry that cannot be started")
        }
        Some(entry) => {
            let count = is_to_be_counted(&entry, disk.entry(disk.passive())?.as_ref());
            let full = (entry.tries_left, entry.tries_done) == (TRIES, 0);
            if count && !(entry.counted && full) {
                disk.esp()?
                    .set_tries(to_disk(slot), TRIES, 0)
                    .with_context(|| format!("cannot re-arm slot {slot}"))?;
                tracing::info!("slot {slot} has {TRIES} tries again");
            }
            if !count && entry.counted {
                disk.esp()?
                    .uncount(to_disk(slot))
                    .with_context(|| format!("cannot re-arm slot {slot}"))?;
                tracing::info!("slot {slot} is not counted: there is nothing to fall back to");
            }
        }
        None => tracing::info!("slot {slot} has no boot entry: the kernel was started directly"),
    }
    disk.slots()
}

/// Whether running out of tries would lead anywhere. What was staged over an uncounted release has not
/// proved itself yet.
fn is_to_be_counted(running: &Entry, other: Option<&Entry>) -> bool {
    other
        .filter(|other| other.is_bootable())
        .is_some_and(|other| running.counted || !other.counted)
}

fn flush_state(source: &Source) -> anyhow::Result<()> {
    let root = &source.root;
    let dir = fs::File::open(root).with_context(|| format!("cannot open {}", root.display()))?;
    rustix::fs::syncfs(&dir).with_context(|| format!("cannot flush {}", root.display()))
}

/// The file is the initrd's; it stays, empty.
fn forget_attempts(paths: &Paths) -> anyhow::Result<()> {
    let path = paths.attempts();
    match OpenOptions::new().write(true).truncate(true).open(&path) {
        Ok(file) => file
            .sync_all()
            .with_context(|| format!("cannot flush {}", path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("cannot empty {}", path.display())),
    }
}

/// An earlier failure of what is good now says nothing any more; another release's still does.
fn forget_failure(paths: &Paths, source: &Source) -> anyhow::Result<()> {
    let path = paths.failure();
    let Ok(text) = fs::read(&path) else {
        return Ok(());
    };
    let about = serde_json::from_slice::<Value>(&text)
        .ok()
        .and_then(|v| v.get("usrhash")?.as_str().map(str::to_owned));
    if about == source.running()?.map(|hash| hash.to_string()) {
        host::atomic::remove(&path)?;
    }
    Ok(())
}
