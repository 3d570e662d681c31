//! Vultr: one JSON document; the main link has DHCP, the private ones have not.

use anyhow::Context;
use serde_json::Value;

use super::http::Http;
use super::json;
use crate::datasource::Found;
use crate::metadata::Metadata;
use crate::network::{Cidr, Link, Network};

pub(super) fn fetch(http: &Http) -> anyhow::Result<Found> {
    let base = "http://169.254.169.254";
    let bytes = http
        .get(&format!("{base}/v1.json"), &[])?
        .context("there is no metadata")?;
    let data = json::parse("the metadata", &bytes)?;
    let ssh_keys = match data.pointer("/public-keys") {
        Some(Value::String(text)) => json::lines(text),
        _ => json::strings(&data, "/public-keys"),
    };
    let mut metadata = Metadata {
        instance_id: json::text(&data, "/instance-v2-id").or(json::text(&data, "/instanceid")),
        hostname: json::text(&data, "/hostname"),
        ssh_keys,
        ..Metadata::default()
    };
    let mut network = Network::default();
    for (index, item) in json::items(&data, "/interfaces").iter().enumerate() {
        let address = json::text(item, "/ipv4/address");
        let public = json::text(item, "/network-type").as_deref() == Some("public");
        let variable = if public {
            "public_ipv4"
        } else {
            "private_ipv4"
        };
        if !metadata.addresses.contains_key(variable) {
            metadata.address(variable, address.clone());
        }
        if public {
            metadata.address("public_ipv6", json::text(item, "/ipv6/address"));
        }
        let mac = json::text(item, "/mac").and_then(|text| crate::network::mac(&text));
        let mask = json::text(item, "/ipv4/netmask").unwrap_or_default();
        let address = address.and_then(|text| Cidr::with_mask(text.parse().ok()?, &mask));
        if let Some(mac) = mac {
            network.links.push(Link {
                name: format!("net{index}"),
                mac: Some(mac),
                dhcp4: public,
                addresses: address.filter(|_| !public).into_iter().collect(),
                ..Link::default()
            });
        }
    }
    // The default configuration does for a single link.
    metadata.network = Some(network).filter(|network| network.links.len() > 1);
    Ok(Found {
        origin: format!("vultr {base}"),
        user_data: http.get(&format!("{base}/latest/user-data"), &[])?,
        metadata,
        ..Found::default()
    })
}
