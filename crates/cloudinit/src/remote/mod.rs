//! Sources on the network: the metadata services of clouds, and URLs.
//!
//! The process that asks them has the network and nothing else; what it brings back is a [`Fetched`],
//! which the process that changes the host reads. Each platform is a small file; which one it is, is
//! known before the first packet is sent: see [`detect`].

mod akamai;
mod azure;
mod detect;
mod digitalocean;
mod ec2;
mod gce;
mod hetzner;
mod http;
mod json;
mod openstack;
mod oracle;
mod packet;
mod scaleway;
#[cfg(test)]
mod tests;
mod url;
mod vultr;

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::datasource::Found;
use crate::imports::{Import, Imported, Purpose};
use crate::pipeline;
use crate::status::put;

pub use detect::{Hint, detect, explicit};
pub use http::{Http, HttpError};

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remote {
    /// A file, and the SHA-256 that it must have.
    Url {
        url: String,
        sha256: Option<String>,
    },
    /// The directory of a NoCloud seed.
    NoCloud {
        seed: String,
    },
    Akamai,
    Alibaba,
    Azure,
    CloudStack,
    DigitalOcean,
    Ec2,
    /// The same tree somewhere else, e.g. `http://172.31.0.1/`.
    Ec2At {
        url: String,
    },
    Exoscale,
    Gce,
    Hetzner,
    OpenStack,
    Oracle,
    Packet,
    Scaleway,
    Vultr,
}

/// A URL without the password that may stand in it: the status and the journal are for more than root.
pub(crate) fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match host.rsplit_once('@') {
        Some((user, _)) => format!("{scheme}://{}", &rest[user.len() + 1..]),
        None => url.to_owned(),
    }
}

impl std::fmt::Display for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Url { url, .. } => return f.write_str(&shown(url)),
            Self::NoCloud { seed } => return f.write_str(&shown(seed)),
            Self::Akamai => "akamai",
            Self::Alibaba => "alibaba",
            Self::Azure => "azure",
            Self::CloudStack => "cloudstack",
            Self::DigitalOcean => "digitalocean",
            Self::Ec2 => "ec2",
            Self::Ec2At { url } => return f.write_str(&shown(url)),
            Self::Exoscale => "exoscale",
            Self::Gce => "gce",
            Self::Hetzner => "hetzner",
            Self::OpenStack => "openstack",
            Self::Oracle => "oracle",
            Self::Packet => "packet",
            Self::Scaleway => "scaleway",
            Self::Vultr => "vultr",
        })
    }
}

impl Remote {
    /// The names that `orlop.platform=` and the older parameters take.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "akamai" | "linode" => Self::Akamai,
            "alibaba" | "aliyun" => Self::Alibaba,
            "azure" | "azurestack" => Self::Azure,
            "cloudstack" => Self::CloudStack,
            "digitalocean" => Self::DigitalOcean,
            "ec2" | "aws" => Self::Ec2,
            "exoscale" => Self::Exoscale,
            "gce" | "gcp" => Self::Gce,
            "hetzner" => Self::Hetzner,
            "openstack-metadata" | "openstack" | "brightbox" => Self::OpenStack,
            "oracle" | "oraclecloud" => Self::Oracle,
            "packet" | "equinix" => Self::Packet,
            "scaleway" => Self::Scaleway,
            "vultr" => Self::Vultr,
            _ => return None,
        })
    }

    fn fetch(&self, http: &Http, root: &Path) -> anyhow::Result<Found> {
        match self {
            Self::Url { url, sha256 } => url::fetch(http, url, sha256.as_deref()),
            Self::NoCloud { seed } => url::seed(http, seed),
            Self::Akamai => akamai::fetch(http),
            Self::Alibaba => ec2::alibaba(http),
            Self::Azure => azure::fetch(http),
            Self::CloudStack => ec2::cloudstack(http, root),
            Self::DigitalOcean => digitalocean::fetch(http),
            Self::Ec2 => ec2::fetch(http),
            Self::Ec2At { url } => ec2::at(http, url),
            Self::Exoscale => ec2::exoscale(http),
            Self::Gce => gce::fetch(http),
            Self::Hetzner => hetzner::fetch(http),
            Self::OpenStack => openstack::fetch(http),
            Self::Oracle => oracle::fetch(http),
            Self::Packet => packet::fetch(http),
            Self::Scaleway => scaleway::fetch(http),
            Self::Vultr => vultr::fetch(http),
        }
    }
}

/// What the first phase leaves to the network.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Request {
    /// In this order, up to the first that answers.
    pub sources: Vec<Remote>,
    /// What the user-data that is here already has elsewhere.
    pub imports: Vec<Import>,
    /// What a disc says that the service does not: Azure's.
    pub disc: Option<Found>,
}

impl Request {
    pub const PATH: &str = "/run/cloudinit/network.json";

    pub fn is_empty(&self) -> bool {
        self.sources.is_empty() && self.imports.is_empty()
    }

    pub fn read(root: &Path) -> Option<Self> {
        let bytes = std::fs::read(host::under(root, Self::PATH)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// URLs may carry passwords, so it is root's.
    pub fn write(&self, root: &Path) -> Result<(), host::atomic::WriteError> {
        match self.is_empty() {
            true => host::atomic::remove(&host::under(root, Self::PATH)),
            false => {
                let bytes = serde_json::to_vec(self).unwrap_or_default();
                put(root, Self::PATH, &bytes, 0o600)
            }
        }
    }
}

/// What came of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Fetched {
    pub found: Option<Found>,
    pub imported: Imported,
    pub tried: Vec<String>,
}

impl Fetched {
    pub const PATH: &str = "/run/cloudinit-network/fetched.json";

    pub fn read(root: &Path) -> Option<Self> {
        let bytes = std::fs::read(host::under(root, Self::PATH)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub fn write(&self, root: &Path) -> Result<(), host::atomic::WriteError> {
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        put(root, Self::PATH, &bytes, 0o600)
    }
}

/// Asks, for as long as `budget` lasts. Always comes back with something: what does not answer is in
/// `tried`, with the reason.
pub fn fetch(request: &Request, root: &Path, budget: Duration) -> Fetched {
    let http = Http::new(budget);
    let mut fetched = Fetched::default();
    for source in &request.sources {
        match source.fetch(&http, root) {
            Ok(found) => {
                fetched.tried.push(format!("{}: found", found.origin));
                fetched.found = Some(match fetched.found.take() {
                    // A file has no metadata: the platform's come with it.
                    Some(mut file) => {
                        file.metadata = found.metadata;
                        file
                    }
                    None => found,
                });
                if !matches!(source, Remote::Url { .. }) {
                    break;
                }
            }
            Err(error) => {
                tracing::warn!("{source}: {error:#}");
                fetched.tried.push(format!("{source}: {error:#}"));
            }
        }
    }
    if let Some(disc) = request.disc.clone() {
        fetched.found = Some(match fetched.found {
            Some(found) => found.completed(disc),
            None => disc,
        });
    }
    import(&http, request, &mut fetched);
    fetched
}

/// All contents together: they are in memory more than once on their way.
const MAX_CONTENTS: usize = 16 << 20;
const MAX_IMPORTS: usize = 256;

/// Fetches what user-data has elsewhere, and what that names in turn.
fn import(http: &Http, request: &Request, fetched: &mut Fetched) {
    let metadata = match &fetched.found {
        Some(found) => found.metadata.clone(),
        None => crate::metadata::Metadata::default(),
    };
    let named = |user_data: Option<&[u8]>| {
        pipeline::imports(&pipeline::Input {
            user_data,
            metadata: metadata.clone(),
        })
    };
    let user_data = fetched.found.as_ref().and_then(|f| f.user_data.as_deref());
    let mut queue: VecDeque<Import> = request.imports.iter().cloned().collect();
    queue.extend(named(user_data));
    let mut seen = BTreeSet::new();
    let mut room = MAX_CONTENTS;
    while let Some(import) = queue.pop_front() {
        if seen.len() == MAX_IMPORTS || !seen.insert(import.clone()) {
            continue;
        }
        match get(http, &import, room) {
            Ok(bytes) if import.purpose == Purpose::Keys => {
                let keys = ssh_keys(&String::from_utf8_lossy(&bytes));
                fetched.imported.keys.insert(import.url, keys);
            }
            Ok(bytes) => {
                room -= bytes.len();
                if import.purpose == Purpose::UserData {
                    queue.extend(named(Some(&bytes)));
                }
                fetched.imported.contents.insert(import.url, bytes.into());
            }
            Err(error) => {
                let url = shown(&import.url);
                tracing::warn!("{url}: {error:#}");
                fetched.tried.push(format!("{url}: {error:#}"));
            }
        }
    }
}

fn get(http: &Http, import: &Import, room: usize) -> anyhow::Result<Vec<u8>> {
    let headers = import.headers.iter();
    let headers: Vec<(&str, &str)> = headers.map(|(n, v)| (n.as_str(), v.as_str())).collect();
    match http.get(&import.url, &headers)? {
        None => anyhow::bail!("not found"),
        Some(bytes) if bytes.len() > room => {
            anyhow::bail!("more than {} MiB with all others", MAX_CONTENTS >> 20)
        }
        Some(bytes) => Ok(bytes),
    }
}

/// A text with a key in each line, or the JSON that GitHub's API has.
fn ssh_keys(text: &str) -> Vec<String> {
    let keys: Vec<String> = match serde_json::from_str::<serde_json::Value>(text) {
        Ok(serde_json::Value::Array(items)) => items
            .iter()
            .filter_map(|item| Some(item.get("key")?.as_str()?.trim().to_owned()))
            .collect(),
        _ => json::lines(text),
    };
    let plain = |key: &String| key.contains(' ') && !key.contains(['\r', '\0', '<']);
    keys.into_iter().filter(plain).collect()
}
