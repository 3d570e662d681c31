//! Google Compute Engine.

use anyhow::Context;

use super::http::Http;
use super::json;
use crate::datasource::Found;
use crate::metadata::Metadata;

pub(super) fn fetch(http: &Http) -> anyhow::Result<Found> {
    // The address and not the name: DNS may not be up, and may lie.
    let base = "http://169.254.169.254/computeMetadata/v1";
    let headers = [("Metadata-Flavor", "Google")];
    let whole = format!("{base}/instance/?recursive=true&alt=json");
    let bytes = http
        .get(&whole, &headers)?
        .context("there is no instance")?;
    let instance = json::parse("the metadata", &bytes)?;
    let text = |pointer: &str| json::text(&instance, pointer);
    let mut ssh_keys = Vec::new();
    for name in ["ssh-keys", "sshKeys"] {
        ssh_keys.extend(keys(text(&format!("/attributes/{name}"))));
    }
    if text("/attributes/block-project-ssh-keys").as_deref() != Some("true") {
        let project = format!("{base}/project/attributes/ssh-keys");
        ssh_keys.extend(keys(http.text(&project, &headers)?));
    }
    let user_data = match (
        text("/attributes/user-data"),
        text("/attributes/user-data-encoding").as_deref(),
    ) {
        (Some(packed), Some("base64")) => Some(json::base64("user-data", &packed)?),
        // As it was written, blanks included.
        (Some(_), _) => instance
            .pointer("/attributes/user-data")
            .and_then(|value| value.as_str())
            .map(|text| text.as_bytes().to_vec()),
        (None, _) => None,
    };
    let mut metadata = Metadata {
        instance_id: text("/id"),
        hostname: text("/hostname"),
        ssh_keys,
        ..Metadata::default()
    };
    metadata.address("private_ipv4", text("/networkInterfaces/0/ip"));
    let external = text("/networkInterfaces/0/accessConfigs/0/externalIp");
    metadata.address("public_ipv4", external);
    metadata.address("public_ipv6", text("/networkInterfaces/0/ipv6s/0"));
    Ok(Found {
        origin: format!("gce {base}"),
        user_data,
        metadata,
        ..Found::default()
    })
}

/// `user:key` lines; Google's own accounts expire, and are left to Google.
fn keys(text: Option<String>) -> Vec<String> {
    json::lines(&text.unwrap_or_default())
        .into_iter()
        .filter_map(|line| Some(line.split_once(':')?.1.trim().to_owned()))
        .filter(|key| !key.contains(" google-ssh "))
        .collect()
}
