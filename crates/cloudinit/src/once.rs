//! What is handed over once: Azure's disc is there at a machine's first boot, and gone at the next. From then on this
//! host has the one copy, which counts like the disc for as long as the machine is the same.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::datasource::Found;
use crate::forget::machine;
use crate::status::put;

/// For root only: there may be secrets in it.
const COPY: &str = "/var/lib/cloudinit/disc.json";

#[derive(Serialize, Deserialize)]
struct Copy {
    machine: Option<String>,
    disc: Found,
}

/// The disc, or what it said when it was there.
pub(crate) fn disc(root: &Path, disc: Option<Found>) -> Option<Found> {
    match disc {
        // What cannot be read says nothing new.
        Some(disc) if disc.silent => Some(match recall(root) {
            Some(copy) => disc.completed(copy),
            None => disc,
        }),
        Some(disc) => {
            if let Err(error) = keep(root, &disc) {
                let error = anyhow::Error::new(error);
                tracing::warn!("there will be no user-data at the next boot: {error:#}");
            }
            Some(disc)
        }
        None => recall(root),
    }
}

fn keep(root: &Path, disc: &Found) -> Result<(), host::atomic::WriteError> {
    let copy = Copy {
        machine: machine(root),
        disc: disc.clone(),
    };
    let bytes = serde_json::to_vec(&copy).unwrap_or_default();
    if std::fs::read(host::under(root, COPY)).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    put(root, COPY, &bytes, 0o600)
}

fn recall(root: &Path) -> Option<Found> {
    let bytes = std::fs::read(host::under(root, COPY)).ok()?;
    let Copy {
        machine: of,
        mut disc,
    } = serde_json::from_slice(&bytes).ok()?;
    // A copy of this machine's own disk is another machine, which gets a disc of its own.
    if of.is_none() || of != machine(root) {
        return None;
    }
    disc.origin.push_str(", as it was when it was there");
    Some(disc)
}
