//! OpenStack's metadata service; where it only has the EC2 tree, that.

use super::http::Http;
use super::{ec2, json};
use crate::datasource::{Found, openstack_metadata};
use crate::network::Format;

pub(super) fn fetch(http: &Http) -> anyhow::Result<Found> {
    let base = http.alive(&["http://169.254.169.254"], "/")?;
    let latest = format!("{base}/openstack/latest");
    let Some(bytes) = http.get(&format!("{latest}/meta_data.json"), &[])? else {
        return ec2::tree(http, "openstack", &format!("{base}/latest"), &[]);
    };
    let mut found = Found {
        origin: format!("openstack {latest}"),
        user_data: http.get(&format!("{latest}/user_data"), &[])?,
        ..Found::default()
    };
    match openstack_metadata(&bytes) {
        Ok(metadata) => found.metadata = metadata,
        Err(finding) => found.findings.push(finding),
    }
    if let Some(bytes) = http.get(&format!("{latest}/network_data.json"), &[])?
        && !json::items(&json::parse("network_data.json", &bytes)?, "/links").is_empty()
    {
        found.network("network_data.json", Format::OpenStack, &bytes);
    }
    // Only the EC2 tree knows the addresses.
    for (variable, key) in [
        ("public_ipv4", "public-ipv4"),
        ("private_ipv4", "local-ipv4"),
    ] {
        let address = http.text(&format!("{base}/latest/meta-data/{key}"), &[])?;
        found.metadata.address(variable, address);
    }
    Ok(found)
}
