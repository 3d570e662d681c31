//! DigitalOcean: one JSON document with everything, the networks included.

use anyhow::Context;
use serde_json::Value;

use super::http::Http;
use super::json;
use crate::datasource::Found;
use crate::metadata::Metadata;
use crate::network::{Cidr, Link, Network, Route};

pub(super) fn fetch(http: &Http) -> anyhow::Result<Found> {
    let url = "http://169.254.169.254/metadata/v1.json";
    let bytes = http.get(url, &[])?.context("there is no metadata")?;
    let data = json::parse("the metadata", &bytes)?;
    let mut metadata = Metadata {
        instance_id: json::text(&data, "/droplet_id"),
        hostname: json::text(&data, "/hostname"),
        ssh_keys: json::strings(&data, "/public_keys"),
        network: network(&data),
        ..Metadata::default()
    };
    for (variable, pointer) in [
        ("public_ipv4", "/interfaces/public/0/ipv4/ip_address"),
        ("private_ipv4", "/interfaces/private/0/ipv4/ip_address"),
        ("public_ipv6", "/interfaces/public/0/ipv6/ip_address"),
        ("private_ipv6", "/interfaces/private/0/ipv6/ip_address"),
    ] {
        metadata.address(variable, json::text(&data, pointer));
    }
    let user_data = data.get("user_data").and_then(Value::as_str);
    Ok(Found {
        origin: format!("digitalocean {url}"),
        user_data: user_data.map(|text| text.as_bytes().to_vec()),
        metadata,
        ..Found::default()
    })
}

/// There is no DHCP there: without this only the link-local address would be left.
fn network(data: &Value) -> Option<Network> {
    let dns: Vec<_> = json::strings(data, "/dns/nameservers")
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    let mut network = Network::default();
    for kind in ["public", "private"] {
        for item in json::items(data, &format!("/interfaces/{kind}")) {
            let mut link = Link {
                name: format!("{kind}{}", network.links.len()),
                mac: crate::network::mac(&json::text(item, "/mac")?),
                dns: dns.clone(),
                ..Link::default()
            };
            link.mac.as_ref()?;
            for (family, mask) in [
                ("ipv4", "/ipv4/netmask"),
                ("ipv6", "/ipv6/cidr"),
                ("anchor_ipv4", "/anchor_ipv4/netmask"),
            ] {
                let Some(address) = json::text(item, &format!("/{family}/ip_address")) else {
                    continue;
                };
                let mask = json::text(item, mask)?;
                link.addresses
                    .push(Cidr::with_mask(address.parse().ok()?, &mask)?);
                let gateway = json::text(item, &format!("/{family}/gateway"));
                if let (Some(gateway), true) =
                    (gateway, kind == "public" && family != "anchor_ipv4")
                {
                    link.routes.push(Route {
                        destination: None,
                        gateway: Some(gateway.parse().ok()?),
                        metric: None,
                    });
                }
            }
            network.links.push(link);
        }
    }
    (!network.links.is_empty()).then_some(network)
}
