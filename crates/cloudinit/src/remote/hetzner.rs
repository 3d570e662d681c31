//! Hetzner Cloud: a YAML document beside the user-data.

use anyhow::Context;

use super::http::Http;
use super::json;
use crate::datasource::{Found, meta_data};

pub(super) fn fetch(http: &Http) -> anyhow::Result<Found> {
    let base = "http://169.254.169.254/hetzner/v1";
    let bytes = http
        .get(&format!("{base}/metadata"), &[])?
        .context("there is no metadata")?;
    let mut found = Found {
        origin: format!("hetzner {base}"),
        user_data: http.get(&format!("{base}/userdata"), &[])?,
        ..Found::default()
    };
    match meta_data(&bytes) {
        Ok(metadata) => found.metadata = metadata,
        Err(finding) => found.findings.push(finding),
    }
    let public = http.text(&format!("{base}/metadata/public-ipv4"), &[])?;
    found.metadata.address("public_ipv4", public);
    let private = http.text(&format!("{base}/metadata/private-networks"), &[])?;
    let private = private.unwrap_or_default();
    let address = private
        .lines()
        .find_map(|line| line.trim().trim_start_matches("- ").strip_prefix("ip:"));
    let address = address.map(|text| text.trim().trim_matches('"').to_owned());
    found.metadata.address("private_ipv4", address);
    // Some accounts have the keys in one text.
    found.metadata.ssh_keys = json::lines(&found.metadata.ssh_keys.join("\n"));
    Ok(found)
}
