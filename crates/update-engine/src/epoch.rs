//! The highest epoch of a release that was good here, below which this host does not go again.
//!
//! It is noted where the daemon cannot write: whoever takes over the daemon could set its memory back.
//! What was never good is not noted, or a bad release would keep its host from what it falls back to.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context as _;
use host::os_release::OsRelease;

use crate::paths::Paths;

/// What runs says it of itself, so that it holds on a host that has never updated.
fn running(root: &Path) -> anyhow::Result<u64> {
    let epoch = OsRelease::of_usr(root)?.epoch();
    epoch.context("/usr/lib/os-release: ORLOP_EPOCH")
}

/// A note that cannot be read is as none: what runs counts in any case, and a host that never updates
/// again would be worse.
fn noted(paths: &Paths) -> u64 {
    let path = paths.epoch();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return 0,
        Err(e) => {
            tracing::error!("{}: {e}; going by what runs alone", path.display());
            return 0;
        }
    };
    text.trim().parse().unwrap_or_else(|e| {
        tracing::error!("{}: {e}; going by what runs alone", path.display());
        0
    })
}

/// Of what runs, and of all that was good before.
pub(crate) fn highest(paths: &Paths) -> anyhow::Result<u64> {
    Ok(running(paths.root())?.max(noted(paths)))
}

/// What runs is good.
pub(crate) fn note(paths: &Paths) -> anyhow::Result<()> {
    let highest = highest(paths)?;
    if highest <= noted(paths) {
        return Ok(());
    }
    let path = paths.epoch();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    host::atomic::write(&path, format!("{highest}\n").as_bytes(), 0o644, None)?;
    Ok(())
}
