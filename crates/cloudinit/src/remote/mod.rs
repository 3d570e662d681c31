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
use std::time::{Duration, Instant};

use anyhow::anyhow;
use serde::{Deserialize, Serialize};

use crate::datasource::Found;
use crate::imports::{Import, Imported, Purpose};
use crate::pipeline;
use crate::status::put;
use http::Failure;

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

/// The network phase: what the first phase noted down is asked for and put where [`Fetched::read`] finds it.
/// `None`: nothing was noted down.
///
/// What the sources gave is there before the imports are tried, so that it is not lost with them.
pub fn run(root: &Path, budget: Duration) -> Result<Option<Fetched>, host::atomic::WriteError> {
    let Some(request) = Request::read(root) else {
        return Ok(None);
    };
    let deadline = Instant::now() + budget;
    let mut fetched = ask(&request, root, deadline);
    fetched.write(root)?;
    import(&request, &mut fetched, deadline);
    fetched.write(root)?;
    Ok(Some(fetched))
}

/// Asks, for as long as `budget` lasts and no longer. Always comes back with something: what does not answer is in
/// `tried`, with the reason.
pub fn fetch(request: &Request, root: &Path, budget: Duration) -> Fetched {
    let deadline = Instant::now() + budget;
    let mut fetched = ask(request, root, deadline);
    import(request, &mut fetched, deadline);
    fetched
}

/// However long one source takes, each that comes after it has a tenth of the time, and so have the imports.
const RESERVE: u32 = 10;

fn ask(request: &Request, root: &Path, deadline: Instant) -> Fetched {
    let reserve = deadline.saturating_duration_since(Instant::now()) / RESERVE;
    let mut fetched = Fetched::default();
    for (index, source) in request.sources.iter().enumerate() {
        let later = u32::try_from(request.sources.len() - index).unwrap_or(RESERVE);
        let http = Http::until(deadline - reserve * later.min(RESERVE));
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
    fetched
}

/// All contents together: they are in memory more than once on their way.
const MAX_CONTENTS: usize = 16 << 20;
const MAX_IMPORTS: usize = 256;
/// Below this, an attempt is not worth making while there is time for it.
const SHORTEST: Duration = Duration::from_secs(1);

/// An import that is not here yet.
struct Waiting {
    import: Import,
    attempts: u32,
    problem: String,
}

/// Fetches what user-data has elsewhere, and what that names in turn.
///
/// In rounds: each is tried once before any is tried again, and has its share of the time that is left. What does not
/// answer takes nothing from the others.
fn import(request: &Request, fetched: &mut Fetched, deadline: Instant) {
    let http = Http::until(deadline);
    let metadata = match &fetched.found {
        Some(found) => found.metadata.clone(),
        None => crate::metadata::Metadata::default(),
    };
    let named = |user_data: Option<&[u8]>| {
        pipeline::imports(&pipeline::Input {
            user_data,
            metadata: metadata.clone(),
            ..pipeline::Input::default()
        })
    };
    let user_data = fetched.found.as_ref().and_then(|f| f.user_data.as_deref());
    let mut seen = BTreeSet::new();
    let mut unseen = |imports: Vec<Import>| -> Vec<Waiting> {
        let imports = imports.into_iter();
        let unseen =
            imports.filter(|import| seen.len() < MAX_IMPORTS && seen.insert(import.clone()));
        unseen.map(Waiting::new).collect()
    };
    let mut queue = VecDeque::from(unseen(request.imports.clone()));
    queue.extend(unseen(named(user_data)));
    let mut room = MAX_CONTENTS;
    for round in 1.. {
        let mut again = VecDeque::new();
        while let Some(mut waiting) = queue.pop_front() {
            let Some(left) = http.left() else {
                again.push_back(waiting);
                continue;
            };
            let others = u32::try_from(queue.len()).unwrap_or(u32::MAX - 1);
            let share = (left / (others + 1)).max(SHORTEST).min(left);
            let import = &waiting.import;
            match get(&http, import, room, share) {
                Ok(bytes) if import.purpose == Purpose::Keys => {
                    let keys = ssh_keys(&String::from_utf8_lossy(&bytes));
                    fetched.imported.keys.insert(waiting.import.url, keys);
                }
                Ok(bytes) => {
                    room -= bytes.len();
                    if import.purpose == Purpose::UserData {
                        queue.extend(unseen(named(Some(&bytes))));
                    }
                    let url = waiting.import.url;
                    fetched.imported.contents.insert(url, bytes.into());
                }
                Err(NotHere::ForGood(error)) => fetched.missed(&import.url, &error),
                Err(NotHere::Yet(problem)) => {
                    waiting.attempts += 1;
                    waiting.problem = problem;
                    again.push_back(waiting);
                }
            }
        }
        queue = again;
        if queue.is_empty() || !http.pause(round) {
            break;
        }
    }
    for Waiting {
        import,
        attempts,
        problem,
    } in queue
    {
        let error = HttpError::unreachable(&import.url, problem, attempts);
        fetched.missed(&import.url, &error.into());
    }
}

impl Waiting {
    fn new(import: Import) -> Self {
        Self {
            import,
            attempts: 0,
            problem: http::OVER.to_owned(),
        }
    }
}

impl Fetched {
    fn missed(&mut self, url: &str, error: &anyhow::Error) {
        let url = shown(url);
        tracing::warn!("{url}: {error:#}");
        self.tried.push(format!("{url}: {error:#}"));
    }
}

enum NotHere {
    Yet(String),
    ForGood(anyhow::Error),
}

fn get(http: &Http, import: &Import, room: usize, within: Duration) -> Result<Vec<u8>, NotHere> {
    let headers = import.headers.iter();
    let headers: Vec<(&str, &str)> = headers.map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let problem = match http.get_once(&import.url, &headers, within) {
        Ok(Some(bytes)) if bytes.len() <= room => return Ok(bytes),
        Ok(Some(_)) => anyhow!("more than {} MiB with all others", MAX_CONTENTS >> 20),
        Ok(None) => anyhow!("not found"),
        Err(Failure::Final(error)) => error.into(),
        Err(Failure::Passing(problem)) => return Err(NotHere::Yet(problem)),
    };
    Err(NotHere::ForGood(problem))
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
