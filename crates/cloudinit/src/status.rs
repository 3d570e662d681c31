//! What cloudinit did in this boot, for whoever asks: `/run/cloudinit/status.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::apply::{CallState, CallStatus};
use crate::finding::Finding;
use crate::pipeline::Kind;

pub const PATH: &str = "/run/cloudinit/status.json";
/// Exists while calls wait for `cloudinit-units.service`.
pub const PENDING: &str = "/run/cloudinit/pending";
/// Survives the boot: what was applied last.
pub const LAST: &str = "/var/lib/cloudinit/status.json";
/// A copy of the user-data, for root only.
pub const USER_DATA: &str = "/var/lib/cloudinit/user-data";
/// User-data that has errors, for root only; not there once something was applied.
pub const REFUSED: &str = "/var/lib/cloudinit/user-data.refused";
/// What the platform said with it, for root only.
pub const METADATA: &str = "/var/lib/cloudinit/metadata.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub state: State,
    /// Where the user-data came from, e.g. `nocloud /dev/vdb`.
    pub datasource: Option<String>,
    /// What else was looked at.
    pub tried: Vec<String>,
    pub instance_id: Option<String>,
    pub kind: Kind,
    /// SHA-256 of the user-data.
    pub digest: Option<String>,
    pub findings: Vec<Finding>,
    /// What this run changed; empty when everything was so already.
    pub changed: Vec<String>,
    pub calls: Vec<CallStatus>,
    pub error: Option<String>,
    pub boot_id: String,
    pub milliseconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// No source had anything.
    NoData,
    /// A source on the network is still to be asked.
    Waiting,
    Applied,
    /// The user-data has errors: only the metadata was applied.
    Invalid,
    /// Something went wrong while applying.
    Failed,
}

impl Status {
    /// The status of this boot; one that cannot be read is as good as none.
    pub fn read(root: &Path) -> Option<Self> {
        let text = std::fs::read(host::under(root, PATH)).ok()?;
        let status: Self = serde_json::from_slice(&text).ok()?;
        let current = host::machine::boot_id(root).unwrap_or_default();
        (status.boot_id == current).then_some(status)
    }

    pub fn write(&self, root: &Path) -> Result<(), host::atomic::WriteError> {
        put(root, PATH, &self.json(), 0o644)?;
        match self.pending() {
            true => put(root, PENDING, b"", 0o644),
            false => host::atomic::remove(&host::under(root, PENDING)),
        }
    }

    /// Keeps a copy over reboots, where it says something new.
    pub fn remember(&self, root: &Path) -> Result<(), host::atomic::WriteError> {
        put(root, LAST, &self.json(), 0o600)
    }

    fn json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        json
    }

    pub fn pending(&self) -> bool {
        self.calls
            .iter()
            .any(|call| call.state == CallState::Pending)
    }
}

pub(crate) fn put(
    root: &Path,
    path: &str,
    bytes: &[u8],
    mode: u32,
) -> Result<(), host::atomic::WriteError> {
    let path = host::under(root, path);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|source| host::atomic::WriteError {
            path: dir.to_owned(),
            step: "make",
            source,
        })?;
    }
    host::atomic::write(&path, bytes, mode, None)
}
