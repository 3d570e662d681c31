//! OpenStack's config drive: a disk labelled `config-2`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::disk::Disk;
use super::{Datasource, Found, Probe, SourceError};
use crate::finding::{Finding, Pos};
use crate::metadata::Metadata;
use crate::network::Format;

pub(super) struct ConfigDrive;

/// The part of `meta_data.json` that is used.
#[derive(Debug, Default, Deserialize)]
struct MetaData {
    uuid: Option<String>,
    hostname: Option<String>,
    #[serde(default)]
    public_keys: BTreeMap<String, String>,
    network_config: Option<ContentPath>,
}

#[derive(Debug, Default, Deserialize)]
struct ContentPath {
    content_path: String,
}

impl Datasource for ConfigDrive {
    fn name(&self) -> &'static str {
        "config drive"
    }

    fn fetch(&self, probe: &Probe<'_>) -> Result<Option<Found>, SourceError> {
        let Some(mut disk) = Disk::find(probe, &["config-2"]) else {
            return Ok(None);
        };
        let origin = format!("config drive {}", disk.path.display());
        read_all(origin, |name| disk.read(name)).map(Some)
    }
}

/// A config drive that is mounted, or a copy of one.
pub fn from_directory(dir: &Path) -> Result<Found, SourceError> {
    let origin = format!("config drive {}", dir.display());
    read_all(origin, |name| super::file(&dir.join(name), name))
}

fn read_all(
    origin: String,
    mut read: impl FnMut(&str) -> Result<Option<Vec<u8>>, SourceError>,
) -> Result<Found, SourceError> {
    let mut found = Found {
        origin,
        user_data: read("openstack/latest/user_data")?,
        ..Found::default()
    };
    let mut interfaces = None;
    if let Some(bytes) = read("openstack/latest/meta_data.json")? {
        match parse(&bytes) {
            Ok(data) => {
                interfaces = data.network_config.as_ref().map(|c| c.content_path.clone());
                found.metadata = data.into();
            }
            Err(finding) => found.findings.push(finding),
        }
    }
    // Old OpenStack and Rackspace hand over Debian's file, newer ones a description.
    if let Some(bytes) = read("openstack/latest/network_data.json")?
        && bytes.windows(7).any(|part| part == b"\"links\"")
    {
        found.network("network_data.json", Format::OpenStack, &bytes);
    } else if let Some(path) = interfaces {
        let path = format!("openstack{path}");
        if let Some(bytes) = read(&path)? {
            found.network(&path, Format::Debian, &bytes);
        }
    }
    Ok(found)
}

fn parse(bytes: &[u8]) -> Result<MetaData, Finding> {
    serde_json::from_slice(bytes).map_err(|error| {
        let pos = Pos {
            line: error.line(),
            column: error.column(),
        };
        Finding::warning(pos, "meta_data.json", error.to_string())
    })
}

/// The same document, from wherever.
pub(crate) fn openstack_metadata(bytes: &[u8]) -> Result<Metadata, Finding> {
    parse(bytes).map(Metadata::from)
}

impl From<MetaData> for Metadata {
    fn from(data: MetaData) -> Self {
        Self {
            instance_id: data.uuid,
            hostname: data.hostname,
            ssh_keys: data
                .public_keys
                .into_values()
                .map(|key| key.trim().to_owned())
                .filter(|key| !key.is_empty())
                .collect(),
            ..Self::default()
        }
    }
}
