//! The operator's end of the REST API, blocking.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use release::dsse::{Envelope, VerifyError};
use release::{Channel, MANIFEST_FILE, Manifest, Sha256, Version};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ureq::http::{Response, Uri};
use ureq::{Agent, Body, RequestBuilder, SendBody};

use crate::api::{ChannelState, ErrorBody, Event, Host, Release, ServerHealth, SetChannel};

/// A server to talk to.
#[derive(Clone, Debug)]
pub struct Server {
    agent: Agent,
    url: String,
    token: Option<String>,
}

/// What became of a publication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    pub version: Version,
    pub id: Sha256,
    pub channel: Channel,
    /// False if the server had this very release already.
    pub uploaded: bool,
    /// Bytes that were sent.
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{url:?} is not the address of a server")]
    BadUrl { url: String },
    #[error("the update server at {url} does not answer")]
    Unreachable {
        url: String,
        source: Box<ureq::Error>,
    },
    #[error("{error}")]
    Refused {
        status: u16,
        error: String,
        hint: Option<String>,
    },
    #[error("what answers at {url} is not an update server")]
    NotAServer { url: String },
    #[error("cannot read {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is no signed manifest", path.display())]
    Manifest { path: PathBuf, source: VerifyError },
    #[error("{} has {found} bytes, its manifest says {expected}", path.display())]
    Size {
        path: PathBuf,
        found: u64,
        expected: u64,
    },
    #[error("the server has another build of release {version} already")]
    OtherBuild { version: Version },
}

impl ClientError {
    /// What the operator can do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::BadUrl { .. } => {
                Some("write it as http://HOST:PORT, such as http://127.0.0.1:8090")
            }
            Self::Unreachable { .. } => Some("start one with: orlop serve"),
            Self::Refused { hint, .. } => hint.as_deref(),
            Self::NotAServer { .. } => Some("check the address and the port"),
            Self::File { .. } | Self::Manifest { .. } => {
                Some("build the release first: orlop build")
            }
            Self::Size { .. } => {
                Some("the build was interrupted or changed: build the release again")
            }
            Self::OtherBuild { .. } => {
                Some("a published release never changes: build with a higher --version")
            }
        }
    }
}

type Result<T> = std::result::Result<T, ClientError>;

impl Server {
    /// `url` is the server's base, such as `http://127.0.0.1:8090`. Reading needs no token.
    pub fn new(url: &str, token: Option<&str>) -> Result<Self> {
        let bad = || ClientError::BadUrl { url: url.into() };
        let parsed: Uri = url.parse().map_err(|_| bad())?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) {
            return Err(bad());
        }
        let host = parsed.host().ok_or_else(bad)?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            // The server reads a whole release again before it answers the finish.
            .timeout_recv_response(Some(Duration::from_secs(300)));
        // No proxy leads to a server on this machine.
        if matches!(host, "localhost" | "127.0.0.1" | "[::1]") {
            config = config.proxy(None);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            url: url.trim_end_matches('/').into(),
            token: token.map(|token| token.trim().into()),
        })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn health(&self) -> Result<ServerHealth> {
        self.get("/health")
    }

    pub fn hosts(&self) -> Result<Vec<Host>> {
        self.get("/api/v1/hosts")
    }

    /// Newest first.
    pub fn releases(&self) -> Result<Vec<Release>> {
        self.get("/api/v1/releases")
    }

    pub fn channels(&self) -> Result<Vec<ChannelState>> {
        self.get("/api/v1/channels")
    }

    /// Newest first; of one machine id, or of all.
    pub fn events(&self, host: Option<&str>) -> Result<Vec<Event>> {
        let mut request = self.agent.get(self.address("/api/v1/events"));
        if let Some(host) = host {
            request = request.query("host", host);
        }
        self.read(request.call())
    }

    /// Points a channel, new or known, at a finished release.
    pub fn set_channel(&self, name: &Channel, version: &Version) -> Result<ChannelState> {
        let body = serde_json::to_vec(&SetChannel {
            version: version.clone(),
        })
        .unwrap_or_default();
        let request = self.authorized(
            self.agent
                .put(self.address(&format!("/api/v1/channels/{name}"))),
        );
        self.read(
            request
                .header("content-type", "application/json")
                .send(&body[..]),
        )
    }

    /// Sends the release in `dir` and points `channel` at it. Repeating it is harmless.
    /// `progress` hears of bytes sent and bytes in all.
    pub fn publish(
        &self,
        dir: &Path,
        channel: &Channel,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Publication> {
        let upload = Upload::prepare(dir)?;
        let (version, id) = (upload.manifest.version.clone(), upload.id);
        let there = self
            .releases()?
            .into_iter()
            .find(|release| release.version == version);
        let uploaded = match there {
            Some(release) if release.id == id => false,
            Some(_) => return Err(ClientError::OtherBuild { version }),
            None => {
                self.send_files(&upload, progress)?;
                true
            }
        };
        self.set_channel(channel, &version)?;
        let bytes = if uploaded { upload.total() } else { 0 };
        Ok(Publication {
            version,
            id,
            channel: channel.clone(),
            uploaded,
            bytes,
        })
    }

    fn send_files(&self, upload: &Upload, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let total = upload.total();
        let mut sent = 0;
        let base = format!("/api/v1/releases/{}", upload.manifest.version);
        for (path, size) in &upload.files {
            let file = File::open(path).map_err(|source| ClientError::File {
                path: path.clone(),
                source,
            })?;
            let mut body = Counted {
                inner: file.take(*size),
                sent: &mut sent,
                total,
                progress,
            };
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let request = self.authorized(self.agent.put(self.address(&format!("{base}/{name}"))));
            let response = request
                .header("content-length", size.to_string())
                // A refusal then comes before the bytes go.
                .header("expect", "100-continue")
                .send(SendBody::from_reader(&mut body));
            self.check(response)?;
        }
        let finish = self.authorized(self.agent.post(self.address(&base)));
        self.check(finish.send_empty())?;
        Ok(())
    }

    fn address(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn authorized<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.read(self.agent.get(self.address(path)).call())
    }

    fn read<T: DeserializeOwned>(
        &self,
        response: std::result::Result<Response<Body>, ureq::Error>,
    ) -> Result<T> {
        let mut response = self.check(response)?;
        let body = response.body_mut().with_config().limit(64 << 20).reader();
        serde_json::from_reader(io::BufReader::new(body)).map_err(|_| ClientError::NotAServer {
            url: self.url.clone(),
        })
    }

    fn check(
        &self,
        response: std::result::Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>> {
        let mut response = response.map_err(|source| ClientError::Unreachable {
            url: self.url.clone(),
            source: Box::new(source),
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = response
            .body_mut()
            .with_config()
            .limit(64 << 10)
            .read_to_vec();
        match body
            .ok()
            .and_then(|body| serde_json::from_slice(&body).ok())
        {
            Some(ErrorBody { error, hint }) => Err(ClientError::Refused {
                status,
                error,
                hint,
            }),
            None => Err(ClientError::NotAServer {
                url: self.url.clone(),
            }),
        }
    }
}

/// A release directory that is worth sending: its files are there and have the right sizes.
struct Upload {
    manifest: Manifest,
    id: Sha256,
    /// The manifest first: the server takes only files that it names.
    files: Vec<(PathBuf, u64)>,
}

impl Upload {
    fn prepare(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        let bytes = std::fs::read(&path).map_err(|source| ClientError::File {
            path: path.clone(),
            source,
        })?;
        let read = || {
            let envelope = Envelope::parse(&bytes)?;
            Ok((envelope.unverified_manifest()?, envelope.digest()?))
        };
        let (manifest, id) = read().map_err(|source| ClientError::Manifest {
            path: path.clone(),
            source,
        })?;
        let mut files = vec![(path, bytes.len() as u64)];
        for file in manifest.files() {
            let path = dir.join(&file.name);
            let found = match std::fs::metadata(&path) {
                Ok(metadata) => metadata.len(),
                Err(source) => return Err(ClientError::File { path, source }),
            };
            if found != file.size {
                return Err(ClientError::Size {
                    path,
                    found,
                    expected: file.size,
                });
            }
            files.push((path, file.size));
        }
        Ok(Self {
            manifest,
            id,
            files,
        })
    }

    fn total(&self) -> u64 {
        self.files.iter().map(|(_, size)| size).sum()
    }
}

/// Tells how much was read.
struct Counted<'a, R> {
    inner: R,
    sent: &'a mut u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        *self.sent += read as u64;
        (self.progress)(*self.sent, self.total);
        Ok(read)
    }
}
