//! Files that an installer, Vagrant or an image builder left on this machine.

use super::{Datasource, Found, Probe, SourceError, meta_data};
use crate::network::Format;

/// User-data, and the directory's other files where it is a NoCloud seed.
const PLACES: [(&str, Option<&str>); 3] = [
    ("/var/lib/coreos-vagrant/vagrantfile-user-data", None),
    (
        "/var/lib/cloud/seed/nocloud/user-data",
        Some("/var/lib/cloud/seed/nocloud"),
    ),
    ("/var/lib/coreos-install/user_data", None),
];

pub(super) struct Files;

impl Datasource for Files {
    fn name(&self) -> &'static str {
        "file"
    }

    fn fetch(&self, probe: &Probe<'_>) -> Result<Option<Found>, SourceError> {
        for (path, seed) in PLACES {
            let Some(bytes) = super::file(&probe.path(path), path)? else {
                continue;
            };
            let mut found = Found {
                origin: format!("file {path}"),
                user_data: Some(bytes),
                ..Found::default()
            };
            if let Some(dir) = seed {
                let read = |name: &str| super::file(&probe.path(&format!("{dir}/{name}")), name);
                match meta_data(&read("meta-data")?.unwrap_or_default()) {
                    Ok(metadata) => found.metadata = metadata,
                    Err(finding) => found.findings.push(finding),
                }
                if let Some(bytes) = read("network-config")? {
                    found.network("network-config", Format::NoCloud, &bytes);
                }
            }
            return Ok(Some(found));
        }
        Ok(None)
    }
}
