//! NoCloud: a disk labelled `cidata` with `user-data` and `meta-data`.

use super::disk::Disk;
use super::{Datasource, Found, Probe, SourceError};
use crate::finding::Finding;
use crate::metadata::Metadata;
use crate::network::Format;
use crate::yaml::{self, Node, Value};

pub(super) struct NoCloud;

impl Datasource for NoCloud {
    fn name(&self) -> &'static str {
        "nocloud"
    }

    fn fetch(&self, probe: &Probe<'_>) -> Result<Option<Found>, SourceError> {
        let Some(mut disk) = Disk::find(probe, &["cidata"]) else {
            return Ok(None);
        };
        let mut found = Found {
            origin: format!("nocloud {}", disk.path.display()),
            user_data: disk.read("user-data")?,
            ..Found::default()
        };
        if let Some(bytes) = disk.read("meta-data")? {
            match meta_data(&bytes) {
                Ok(metadata) => found.metadata = metadata,
                Err(finding) => found.findings.push(finding),
            }
        }
        if let Some(bytes) = disk.read("network-config")? {
            found.network("network-config", Format::NoCloud, &bytes);
        }
        Ok(Some(found))
    }
}

/// YAML, of which JSON is a part.
pub(crate) fn meta_data(bytes: &[u8]) -> Result<Metadata, Finding> {
    let text = String::from_utf8_lossy(bytes);
    let tree = yaml::parse(&text)
        .map_err(|error| Finding::warning(error.pos, "meta-data", error.message))?;
    let Some(tree) = tree else {
        return Ok(Metadata::default());
    };
    let text = |key| tree.get(key).and_then(Node::text).map(str::to_owned);
    Ok(Metadata {
        instance_id: text("instance-id"),
        hostname: text("local-hostname").or_else(|| text("hostname")),
        ssh_keys: tree.get("public-keys").map(keys).unwrap_or_default(),
        ..Metadata::default()
    })
}

/// One key, a list of keys, or names with keys, as EC2 has them.
fn keys(node: &Node) -> Vec<String> {
    match &node.value {
        Value::Scalar(_) => {
            let text = node.text().unwrap_or_default();
            text.lines()
                .map(str::trim)
                .filter(|key| !key.is_empty())
                .map(str::to_owned)
                .collect()
        }
        Value::Seq(items) => items.iter().flat_map(keys).collect(),
        Value::Map(entries) => entries.iter().flat_map(|entry| keys(&entry.node)).collect(),
    }
}
