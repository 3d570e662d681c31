//! OpenStack's config drive: a disk labelled `config-2`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::disk::Disk;
use super::{Datasource, Found, Probe, SourceError};
use crate::finding::{Finding, Pos};
use crate::metadata::Metadata;

pub(super) struct ConfigDrive;

/// The part of `meta_data.json` that is used.
#[derive(Debug, Default, Deserialize)]
struct MetaData {
    uuid: Option<String>,
    hostname: Option<String>,
    #[serde(default)]
    public_keys: BTreeMap<String, String>,
}

impl Datasource for ConfigDrive {
    fn name(&self) -> &'static str {
        "config drive"
    }

    fn fetch(&self, probe: &Probe<'_>) -> Result<Option<Found>, SourceError> {
        let Some(mut disk) = Disk::find(probe, &["config-2"]) else {
            return Ok(None);
        };
        let mut found = Found {
            origin: format!("config drive {}", disk.path.display()),
            user_data: disk.read("openstack/latest/user_data")?,
            ..Found::default()
        };
        if let Some(bytes) = disk.read("openstack/latest/meta_data.json")? {
            match serde_json::from_slice::<MetaData>(&bytes) {
                Ok(data) => found.metadata = data.into(),
                Err(error) => {
                    let pos = Pos {
                        line: error.line(),
                        column: error.column(),
                    };
                    let finding = Finding::warning(pos, "meta_data.json", error.to_string());
                    found.findings.push(finding);
                }
            }
        }
        Ok(Some(found))
    }
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
