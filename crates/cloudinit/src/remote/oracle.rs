//! Oracle Cloud, version 2 of its service and, where that is not there, version 1.

use anyhow::{Context, bail};

use super::http::Http;
use super::json;
use crate::datasource::Found;
use crate::metadata::Metadata;

pub(super) fn fetch(http: &Http) -> anyhow::Result<Found> {
    let mut answer = None;
    for version in ["v2", "v1"] {
        let base = format!("http://169.254.169.254/opc/{version}");
        if let Some(bytes) = http.get(&format!("{base}/instance/"), &HEADERS)? {
            answer = Some((base, bytes));
            break;
        }
    }
    let Some((base, bytes)) = answer else {
        bail!("there is no instance");
    };
    let data = json::parse("the metadata", &bytes)?;
    let keys = json::text(&data, "/metadata/ssh_authorized_keys");
    let mut metadata = Metadata {
        instance_id: json::text(&data, "/id"),
        hostname: json::text(&data, "/hostname").or(json::text(&data, "/displayName")),
        ssh_keys: json::lines(&keys.unwrap_or_default()),
        ..Metadata::default()
    };
    let vnics = http.get(&format!("{base}/vnics/"), &HEADERS)?;
    if let Some(bytes) = vnics {
        let vnics = json::parse("vnics", &bytes).context("the networks")?;
        metadata.address("private_ipv4", json::text(&vnics, "/0/privateIp"));
    }
    let packed = json::text(&data, "/metadata/user_data");
    Ok(Found {
        origin: format!("oracle {base}"),
        user_data: packed
            .map(|text| json::base64("user_data", &text))
            .transpose()?,
        metadata,
        ..Found::default()
    })
}

const HEADERS: [(&str, &str); 1] = [("Authorization", "Bearer Oracle")];
