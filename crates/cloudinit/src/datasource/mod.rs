//! Where user-data and metadata come from.
//!
//! Each source is a small file behind one trait; [`SOURCES`] is the precedence, top to bottom. Disks
//! are read in userspace, without mounting: no privileges, no kernel modules, nothing to clean up.

mod config_drive;
mod disk;
mod fat;
mod fw_cfg;
mod iso9660;
mod kernel_cmdline;
mod nocloud;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::finding::Finding;
use crate::metadata::Metadata;

pub trait Datasource: Sync {
    fn name(&self) -> &'static str;
    /// `None`: this machine does not have it.
    fn fetch(&self, probe: &Probe<'_>) -> Result<Option<Found>, SourceError>;
}

/// What a person said on this machine's command line comes first, then what the hypervisor hands
/// over, then disks by their label.
pub const SOURCES: [&dyn Datasource; 4] = [
    &kernel_cmdline::KernelCmdline,
    &fw_cfg::FwCfg,
    &nocloud::NoCloud,
    &config_drive::ConfigDrive,
];

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

#[derive(Debug, Default)]
pub struct Found {
    /// The source and the exact place, e.g. `nocloud /dev/vdb`.
    pub origin: String,
    pub user_data: Option<Vec<u8>>,
    pub metadata: Metadata,
    /// Remarks about the metadata; the places are in the metadata's own file.
    pub findings: Vec<Finding>,
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
