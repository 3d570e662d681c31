//! Akamai (Linode): a token first; user-data is in base64.

use anyhow::Context;
use serde_json::Value;

use super::http::Http;
use super::json;
use crate::datasource::Found;
use crate::metadata::Metadata;

pub(super) fn fetch(http: &Http) -> anyhow::Result<Found> {
    let bases = ["http://169.254.169.254", "http://[fd00:a9fe:a9fe::1]"];
    let base = http.alive(&bases, "/")?;
    let lifetime = [("Metadata-Token-Expiry-Seconds", "3600")];
    let token = http.put(&format!("{base}/v1/token"), &lifetime)?;
    let token = String::from_utf8(token).context("the token is not text")?;
    let token = token.trim();
    let headers = [("Metadata-Token", token), ("Accept", "application/json")];
    let document = |name: &str| -> anyhow::Result<Value> {
        let bytes = http.get(&format!("{base}/v1/{name}"), &headers)?;
        bytes.map_or(Ok(Value::Null), |bytes| json::parse(name, &bytes))
    };
    let instance = document("instance")?;
    let network = document("network")?;
    let keys = document("ssh-keys")?;
    let mut metadata = Metadata {
        instance_id: json::text(&instance, "/id"),
        hostname: json::text(&instance, "/label"),
        ssh_keys: json::strings(&keys, "/users/root"),
        ..Metadata::default()
    };
    for (variable, pointer) in [
        ("public_ipv4", "/ipv4/public/0"),
        ("private_ipv4", "/ipv4/private/0"),
        ("public_ipv6", "/ipv6/slaac"),
    ] {
        metadata.address(variable, json::text(&network, pointer));
    }
    let token = [("Metadata-Token", token)];
    let packed = http.text(&format!("{base}/v1/user-data"), &token)?;
    Ok(Found {
        origin: format!("akamai {base}"),
        user_data: packed
            .map(|text| json::base64("user-data", &text))
            .transpose()?,
        metadata,
        ..Found::default()
    })
}
