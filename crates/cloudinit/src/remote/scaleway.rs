//! Scaleway: user-data only to whom asks from a port of root's.

use anyhow::Context;

use super::http::Http;
use super::json;
use crate::datasource::Found;
use crate::metadata::Metadata;

pub(super) fn fetch(http: &Http) -> anyhow::Result<Found> {
    let bases = ["http://169.254.42.42", "http://[fd00:42::42]"];
    let base = http.alive(&bases, "/conf?format=json")?;
    let bytes = http
        .get(&format!("{base}/conf?format=json"), &[])?
        .context("there is no metadata")?;
    let data = json::parse("the metadata", &bytes)?;
    let ssh_keys = json::items(&data, "/ssh_public_keys")
        .iter()
        .filter_map(|item| json::text(item, "/key"))
        .collect();
    let mut metadata = Metadata {
        instance_id: json::text(&data, "/id"),
        hostname: json::text(&data, "/hostname"),
        ssh_keys,
        ..Metadata::default()
    };
    for (variable, pointer) in [
        ("public_ipv4", "/public_ip/address"),
        ("private_ipv4", "/private_ip"),
        ("public_ipv6", "/ipv6/address"),
    ] {
        metadata.address(variable, json::text(&data, pointer));
    }
    Ok(Found {
        origin: format!("scaleway {base}"),
        user_data: http.get_as_root(&format!("{base}/user_data/cloud-init"))?,
        metadata,
        ..Found::default()
    })
}
