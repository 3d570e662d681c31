//! The client of the discovery protocol. A URL names a directory on some other cluster; each member writes itself into
//! it, and all wait until as many are there as the directory's `_config/size` says. The server side is just keys.
//!
//! [`join`] and [`cluster`] block until the cluster is complete, however long that takes: call them from a thread that
//! may wait.

use std::time::Duration;

use super::event::{Event, NodeView};

/// The longest pause between two tries is 2⁸ seconds.
const MOST_DOUBLINGS: u32 = 8;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// The texts are etcd's, what follows them is ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("discovery: invalid URL: {0}")]
    InvalidUrl(String),
    #[error("discovery: size key is bad: {0:?}")]
    BadSize(String),
    #[error("discovery: size key not found: the token is unknown at {0}")]
    SizeNotFound(String),
    #[error(
        "discovery: found duplicate id: another member has registered as {0}; remove it, or use another token"
    )]
    DuplicateId(String),
    #[error("discovery: found duplicate name in {0}")]
    DuplicateName(String),
    #[error("discovery: cluster is full: it has {0} members already")]
    Full(usize),
    #[error("discovery: bad discovery endpoint: {0} does not answer as etcd does")]
    BadEndpoint(String),
    #[error("discovery: {0}")]
    Refused(String),
    #[error("discovery: proxy {0} cannot be used")]
    Proxy(String),
}

/// What the directory says.
#[derive(Debug, PartialEq, Eq)]
struct Registry {
    size: usize,
    /// Values of the members that count, first come first.
    members: Vec<String>,
    /// From where to watch for more.
    index: u64,
}

/// Where one is registered.
pub struct Discovery {
    url: String,
    agent: ureq::Agent,
    pause: fn(Duration),
}

/// Registers a member and returns `--initial-cluster` when it is complete. `config` is the member's part of it.
pub fn join(url: &str, proxy: Option<&str>, id: u64, config: &str) -> Result<String, Error> {
    Discovery::new(url, proxy)?.join(&format!("{id:x}"), config)
}

/// What `--initial-cluster` is, for one who is no member of it, such as a proxy.
pub fn cluster(url: &str, proxy: Option<&str>) -> Result<String, Error> {
    let discovery = Discovery::new(url, proxy)?;
    initial_cluster(discovery.complete(None)?)
}

impl Discovery {
    pub fn new(url: &str, proxy: Option<&str>) -> Result<Discovery, Error> {
        let url = url.trim_end_matches('/');
        let rest = url
            .strip_prefix("http://")
            .or_else(|| url.strip_prefix("https://"))
            .filter(|rest| rest.contains('/') && !rest.contains(['?', '#', ' ']));
        if rest.is_none() {
            return Err(Error::InvalidUrl(format!(
                "{url:?} is not of the form https://HOST/TOKEN"
            )));
        }
        let proxy = proxy.filter(|proxy| !proxy.is_empty());
        let proxy = proxy
            .map(|proxy| ureq::Proxy::new(proxy).map_err(|_| Error::Proxy(proxy.into())))
            .transpose()?;
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT));
        if proxy.is_some() {
            config = config.proxy(proxy);
        }
        Ok(Discovery {
            url: url.to_owned(),
            agent: config.build().into(),
            pause: std::thread::sleep,
        })
    }

    fn join(&self, id: &str, config: &str) -> Result<String, Error> {
        // Whoever comes too late must not leave a trace.
        self.patiently(|| self.look(Some(id)))?;
        self.register(id, config)?;
        initial_cluster(self.complete(Some(id))?)
    }

    fn register(&self, id: &str, config: &str) -> Result<(), Error> {
        let url = format!("{}/{id}?prevExist=false", self.url);
        let answer = self.patiently(|| {
            let request = self.agent.put(&url).config();
            let request = request.timeout_global(Some(REQUEST_TIMEOUT)).build();
            answered(request.send_form([("value", config)]))
        })?;
        match answer.status {
            200 | 201 => Ok(()),
            412 => Err(Error::DuplicateId(id.to_owned())),
            _ => Err(Error::Refused(answer.body)),
        }
    }

    /// Waits for all.
    fn complete(&self, id: Option<&str>) -> Result<Registry, Error> {
        loop {
            let registry = self.patiently(|| self.look(id))?;
            let (found, size) = (registry.members.len(), registry.size);
            if found >= size {
                return Ok(registry);
            }
            tracing::info!(url = self.url, found, size, "waiting for more members");
            let url = format!(
                "{}?wait=true&recursive=true&waitIndex={}",
                self.url,
                registry.index + 1
            );
            // Whatever happened, and be it that the event is out of the history by now: look again.
            self.patiently(|| answered(self.agent.get(&url).call()))?;
        }
    }

    fn look(&self, id: Option<&str>) -> Result<Registry, Trouble> {
        let size = self.get(&format!("{}/_config/size", self.url))?;
        if size.status == 404 {
            return Err(Error::SizeNotFound(self.url.clone()).into());
        }
        let size = self.node(&size)?.value.unwrap_or_default();
        let size: usize = size
            .parse()
            .ok()
            .filter(|size| *size > 0)
            .ok_or(Error::BadSize(size))?;
        let answer = self.get(&self.url)?;
        let index = answer.index;
        members(self.node(&answer)?, size, index, id).map_err(Trouble::from)
    }

    fn get(&self, url: &str) -> Result<Answer, Trouble> {
        let request = self.agent.get(url).config();
        answered(request.timeout_global(Some(REQUEST_TIMEOUT)).build().call())
    }

    fn node(&self, answer: &Answer) -> Result<NodeView, Error> {
        if answer.status != 200 {
            return Err(Error::Refused(answer.body.clone()));
        }
        serde_json::from_str::<Event>(&answer.body)
            .ok()
            .and_then(|event| event.node)
            .ok_or_else(|| Error::BadEndpoint(self.url.clone()))
    }

    /// Tries until there is an answer. A discovery service may be away for a while, and machines start in any order.
    fn patiently<T>(&self, mut attempt: impl FnMut() -> Result<T, Trouble>) -> Result<T, Error> {
        let mut doublings = 0;
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing(reason)) => {
                    doublings = MOST_DOUBLINGS.min(doublings + 1);
                    let pause = Duration::from_secs(1 << doublings);
                    tracing::warn!(url = self.url, reason, ?pause, "discovery service");
                    (self.pause)(pause);
                }
            }
        }
    }
}

/// Whether to try again.
#[derive(Debug)]
enum Trouble {
    Passing(String),
    Final(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Final(error)
    }
}

struct Answer {
    status: u16,
    index: u64,
    body: String,
}

fn answered(
    result: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<Answer, Trouble> {
    let passing = |error: ureq::Error| Trouble::Passing(error.to_string());
    let mut response = result.map_err(passing)?;
    let status = response.status().as_u16();
    let index = response
        .headers()
        .get("x-etcd-index")
        .and_then(|index| index.to_str().ok()?.parse().ok())
        .unwrap_or(0);
    let body = response.body_mut().read_to_string().map_err(passing)?;
    if status >= 500 {
        return Err(Trouble::Passing(format!("{status}: {}", body.trim_end())));
    }
    Ok(Answer {
        status,
        index,
        body,
    })
}

/// Who counts: the first to come, as many as the size says. Whoever asks must be one of them, or there must be room.
fn members(
    directory: NodeView,
    size: usize,
    index: u64,
    id: Option<&str>,
) -> Result<Registry, Error> {
    let name = |node: &NodeView| node.key.rsplit('/').next().unwrap_or_default().to_owned();
    let mut nodes: Vec<NodeView> = directory
        .nodes
        .into_iter()
        .filter(|node| !node.dir && name(node) != "_config")
        .collect();
    nodes.sort_by_key(|node| node.created_index);
    nodes.truncate(size);
    if let Some(id) = id
        && nodes.len() == size
        && !nodes.iter().any(|node| name(node) == id)
    {
        return Err(Error::Full(size));
    }
    Ok(Registry {
        size,
        members: nodes.into_iter().filter_map(|node| node.value).collect(),
        index,
    })
}

/// The members in one line, each with a name of its own.
fn initial_cluster(registry: Registry) -> Result<String, Error> {
    let line = registry.members.join(",");
    let mut names = std::collections::BTreeSet::new();
    for part in line.split(',') {
        let (name, url) = part
            .split_once('=')
            .ok_or_else(|| Error::InvalidUrl(format!("{part:?} is not of the form NAME=URL")))?;
        if !url.contains("://") {
            return Err(Error::InvalidUrl(url.to_owned()));
        }
        names.insert(name);
    }
    // A member with two URLs says its name twice; two members with one name are one too few.
    if names.len() != registry.size {
        return Err(Error::DuplicateName(line));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(members: &[(&str, &str, u64)]) -> NodeView {
        let node = |&(id, value, created_index): &(&str, &str, u64)| NodeView {
            key: format!("/token/{id}"),
            value: Some(value.into()),
            created_index,
            ..NodeView::default()
        };
        NodeView {
            dir: true,
            nodes: members.iter().map(node).collect(),
            ..NodeView::default()
        }
    }

    #[test]
    fn first_come_first_served() {
        let late = || {
            directory(&[
                ("c", "c=http://c", 9),
                ("a", "a=http://a", 5),
                ("b", "b=http://b", 7),
            ])
        };
        let registry = members(late(), 2, 9, Some("a")).unwrap();
        assert_eq!(registry.members, ["a=http://a", "b=http://b"]);
        assert_eq!(members(late(), 2, 9, Some("c")), Err(Error::Full(2)));
        assert_eq!(members(late(), 3, 9, Some("d")), Err(Error::Full(3)));
        assert_eq!(members(late(), 4, 9, Some("d")).unwrap().members.len(), 3);
        assert!(members(late(), 2, 9, None).is_ok());
    }

    #[test]
    fn two_members_with_one_name_are_no_cluster() {
        let cluster = |values: &[&str]| {
            initial_cluster(Registry {
                size: 2,
                members: values.iter().map(|&v| v.to_owned()).collect(),
                index: 0,
            })
        };
        assert_eq!(
            cluster(&["a=http://1,a=http://2", "b=http://3"]).unwrap(),
            "a=http://1,a=http://2,b=http://3"
        );
        assert!(matches!(
            cluster(&["a=http://1", "a=http://2"]),
            Err(Error::DuplicateName(_))
        ));
        assert!(matches!(cluster(&["a", "b"]), Err(Error::InvalidUrl(_))));
    }

    #[test]
    fn a_url_has_a_host_and_a_token() {
        for bad in [
            "",
            "token",
            "http://host",
            "ftp://host/token",
            "http://h/t?x=1",
        ] {
            assert!(Discovery::new(bad, None).is_err(), "{bad}");
        }
        assert!(Discovery::new("https://discovery.example/abc/", Some("")).is_ok());
        assert!(matches!(
            Discovery::new("https://discovery.example/abc", Some("::")),
            Err(Error::Proxy(_))
        ));
    }
}
