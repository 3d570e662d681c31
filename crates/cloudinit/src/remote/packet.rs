//! Packet, later Equinix Metal. By http:// like the original, as the service has always been reached.

use anyhow::Context;
use serde_json::Value;

use super::http::Http;
use super::json;
use crate::datasource::Found;
use crate::metadata::Metadata;
use crate::network::Format;

pub(super) fn fetch(http: &Http) -> anyhow::Result<Found> {
    let base = "http://metadata.packet.net";
    let bytes = http
        .get(&format!("{base}/metadata"), &[])?
        .context("there is no metadata")?;
    let data = json::parse("the metadata", &bytes)?;
    let mut metadata = Metadata {
        instance_id: json::text(&data, "/id"),
        hostname: json::text(&data, "/hostname"),
        ssh_keys: json::strings(&data, "/ssh_keys"),
        ..Metadata::default()
    };
    for item in json::items(&data, "/network/addresses") {
        let public = item.get("public").and_then(Value::as_bool).unwrap_or(true);
        let six = json::text(item, "/address_family").as_deref() == Some("6");
        let variable = match (public, six) {
            (true, false) => "public_ipv4",
            (false, false) => "private_ipv4",
            (true, true) => "public_ipv6",
            (false, true) => "private_ipv6",
        };
        if !metadata.addresses.contains_key(variable) {
            metadata.address(variable, json::text(item, "/address"));
        }
    }
    let mut found = Found {
        origin: format!("packet {base}"),
        user_data: http.get(&format!("{base}/userdata"), &[])?,
        metadata,
        ..Found::default()
    };
    if !json::items(&data, "/network/interfaces").is_empty() {
        found.network("metadata", Format::Packet, &bytes);
    }
    Ok(found)
}
