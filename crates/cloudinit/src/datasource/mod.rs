//! Where user-data and metadata come from.
//!
//! Each source is a small file behind one trait; [`SOURCES`] is the precedence, top to bottom. Disks
//! are read in userspace, without mounting: no privileges, no kernel modules, nothing to clean up.

mod config_drive;
mod credentials;
mod disk;
mod fat;
mod files;
mod fw_cfg;
mod iso9660;
mod nocloud;
mod ovf;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::udf_image;
pub(crate) mod tool;
mod udf;
mod virtualbox;
mod vmware;
mod xenstore;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::finding::Finding;
use crate::metadata::Metadata;

pub(crate) use config_drive::openstack_metadata;
pub(crate) use nocloud::meta_data;
pub(crate) use ovf::METADATA;
pub(crate) use ovf::azure_disc;
pub use {config_drive::from_directory, ovf::from_file as ovf_file, vmware::guestinfo};

pub trait Datasource: Sync {
    fn name(&self) -> &'static str;
    /// `None`: this machine does not have it.
    fn fetch(&self, probe: &Probe<'_>) -> Result<Option<Found>, SourceError>;
}

/// What the hypervisor hands over, then disks by their label, then files. What a person said on the
/// kernel command line comes before all of these, and what a service on the network has after:
/// see [`crate::remote::detect()`].
pub const SOURCES: [&dyn Datasource; 9] = [
    &credentials::Credentials,
    &fw_cfg::FwCfg,
    &vmware::VMware,
    &virtualbox::VirtualBox,
    &xenstore::XenStore,
    &nocloud::NoCloud,
    &config_drive::ConfigDrive,
    &ovf::Ovf,
    &files::Files,
];

/// A file, if it is there.
fn file(path: &Path, what: &str) -> Result<Option<Vec<u8>>, SourceError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SourceError::Read {
            path: path.to_owned(),
            what: what.to_owned(),
            source,
        }),
    }
}

/// The machine as sources see it; a directory that looks like `/` in tests.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    pub root: &'a Path,
}

impl Probe<'_> {
    fn path(&self, path: &str) -> PathBuf {
        host::under(self.root, path)
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Found {
    /// The source and the exact place, e.g. `nocloud /dev/vdb`.
    pub origin: String,
    #[serde(with = "packed")]
    pub user_data: Option<Vec<u8>>,
    pub metadata: Metadata,
    /// Remarks about the metadata; the places are in the metadata's own file.
    pub findings: Vec<Finding>,
    /// Keys of VMware's guestinfo that are to be deleted once this was applied, see [`crate::forget`].
    #[serde(default)]
    pub forget: Vec<String>,
    /// There is no user-data here, but nobody said that there is none.
    #[serde(default)]
    pub silent: bool,
}

impl Found {
    /// With what only `other` knows.
    #[must_use]
    pub fn completed(mut self, other: Self) -> Self {
        // What was not used is not deleted either.
        if self.user_data.is_none() {
            self.user_data = other.user_data;
            self.silent = other.silent;
            self.forget.extend(other.forget);
        }
        self.metadata.hostname = self.metadata.hostname.or(other.metadata.hostname);
        for key in other.metadata.ssh_keys {
            if !self.metadata.ssh_keys.contains(&key) {
                self.metadata.ssh_keys.push(key);
            }
        }
        self.findings.extend(other.findings);
        self
    }
}

/// Bytes as base64.
mod packed {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        bytes: &Option<Vec<u8>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        bytes
            .as_ref()
            .map(|bytes| STANDARD.encode(bytes))
            .serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| STANDARD.decode(text).map_err(D::Error::custom))
            .transpose()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot read {what} from {}", path.display())]
    Read {
        path: PathBuf,
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{problem}")]
    Unsupported { problem: String },
}

/// How the search went, for the status and the log.
#[derive(Debug)]
pub struct Search {
    pub found: Option<Found>,
    /// Sources that were asked, with what they had to say.
    pub tried: Vec<String>,
}

/// Asks all sources, again for as long as `patience` lasts if hardware that may hold one is still
/// being set up.
pub fn search(probe: &Probe<'_>, patience: Duration) -> Search {
    const INTERVAL: Duration = Duration::from_millis(50);
    let start = Instant::now();
    loop {
        let search = ask(probe);
        if search.found.is_some() {
            return search;
        }
        let Some(hardware) = disk::pending(probe).or_else(|| fw_cfg::pending(probe)) else {
            return search;
        };
        if start.elapsed() >= patience {
            let mut search = search;
            let waited = patience.as_secs_f32();
            search
                .tried
                .push(format!("waited {waited} s for {hardware}"));
            return search;
        }
        std::thread::sleep(INTERVAL);
    }
}

fn ask(probe: &Probe<'_>) -> Search {
    let mut tried = Vec::new();
    for source in SOURCES {
        match source.fetch(probe) {
            Ok(Some(found)) => {
                tried.push(format!("{}: found", found.origin));
                let found = Some(found);
                return Search { found, tried };
            }
            Ok(None) => tried.push(format!("{}: not here", source.name())),
            // A source that is there but broken must not hide the next one.
            Err(error) => {
                let error = anyhow::Error::new(error);
                tracing::warn!("{}: {error:#}", source.name());
                tried.push(format!("{}: {error:#}", source.name()));
            }
        }
    }
    Search { found: None, tried }
}
