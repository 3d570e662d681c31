//! The metadata tree that Amazon invented, and those who took it over.

use std::path::Path;

use anyhow::{Context, bail};

use super::http::{Headers, Http, HttpError};
use super::json;
use crate::datasource::Found;
use crate::metadata::Metadata;

const TOKEN: &str = "X-aws-ec2-metadata-token";

/// IMDSv2; where a service does not know it, version 1.
pub(super) fn fetch(http: &Http) -> anyhow::Result<Found> {
    let bases = ["http://169.254.169.254", "http://[fd00:ec2::254]"];
    let base = http.alive(&bases, "/")?;
    let lifetime = [("X-aws-ec2-metadata-token-ttl-seconds", "21600")];
    match http.put(&format!("{base}/latest/api/token"), &lifetime) {
        Ok(token) => {
            let token = String::from_utf8(token).context("the token is not text")?;
            tree(
                http,
                "ec2",
                &format!("{base}/latest"),
                &[(TOKEN, token.trim())],
            )
        }
        Err(HttpError::Status {
            status: 400 | 403 | 404 | 405 | 501,
            ..
        }) => tree(http, "ec2", &format!("{base}/latest"), &[]),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn at(http: &Http, url: &str) -> anyhow::Result<Found> {
    tree(
        http,
        "ec2",
        &format!("{}/latest", url.trim_end_matches('/')),
        &[],
    )
}

pub(super) fn alibaba(http: &Http) -> anyhow::Result<Found> {
    tree(http, "alibaba", "http://100.100.100.200/latest", &[])
}

pub(super) fn exoscale(http: &Http) -> anyhow::Result<Found> {
    tree(http, "exoscale", "http://169.254.169.254/1.0", &[])
}

/// The virtual router has it, which is where DHCP came from.
pub(super) fn cloudstack(http: &Http, root: &Path) -> anyhow::Result<Found> {
    let mut problem = None;
    for server in dhcp_servers(root) {
        match tree(http, "cloudstack", &format!("http://{server}/latest"), &[]) {
            Ok(found) => return Ok(found),
            Err(error) => problem = Some(error),
        }
    }
    if let Some(error) = problem {
        return Err(error);
    }
    tree(http, "cloudstack", "http://data-server./latest", &[])
}

fn dhcp_servers(root: &Path) -> Vec<String> {
    let dir = host::under(root, "/run/systemd/netif/leases");
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut servers: Vec<String> = entries
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok())
        .flat_map(|lease| {
            let server = lease
                .lines()
                .find_map(|l| l.strip_prefix("SERVER_ADDRESS="));
            server.map(str::to_owned)
        })
        .filter(|text| text.parse::<std::net::IpAddr>().is_ok())
        .collect();
    servers.sort();
    servers.dedup();
    servers
}

pub(super) fn tree(
    http: &Http,
    name: &str,
    base: &str,
    headers: Headers<'_>,
) -> anyhow::Result<Found> {
    let get = |key: &str| http.text(&format!("{base}/meta-data/{key}"), headers);
    let Some(instance_id) = get("instance-id")? else {
        bail!("{base}/meta-data/instance-id: not found");
    };
    let mut metadata = Metadata {
        instance_id: Some(instance_id),
        hostname: get("hostname")?.or(get("local-hostname")?),
        ssh_keys: keys(http, base, headers)?,
        ..Metadata::default()
    };
    for (variable, key) in [
        ("public_ipv4", "public-ipv4"),
        ("private_ipv4", "local-ipv4"),
        ("public_ipv6", "ipv6"),
    ] {
        metadata.address(variable, get(key)?);
    }
    Ok(Found {
        origin: format!("{name} {base}"),
        user_data: http.get(&format!("{base}/user-data"), headers)?,
        metadata,
        ..Found::default()
    })
}

/// A list of `0=name` lines, each with its key below; some services give the keys right away.
fn keys(http: &Http, base: &str, headers: Headers<'_>) -> anyhow::Result<Vec<String>> {
    let Some(list) = http.text(&format!("{base}/meta-data/public-keys"), headers)? else {
        return Ok(Vec::new());
    };
    let mut keys = Vec::new();
    for line in json::lines(&list) {
        let number = line
            .split_once('=')
            .map_or(line.as_str(), |(number, _)| number);
        if number.parse::<u32>().is_err() {
            keys.push(line);
            continue;
        }
        let url = format!("{base}/meta-data/public-keys/{number}/openssh-key");
        if let Some(key) = http.text(&url, headers)? {
            keys.extend(json::lines(&key));
        }
    }
    Ok(keys)
}
