//! The operator's end of the REST API, blocking.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use release::dsse::{Envelope, VerifyError};
use release::{
    Channel, File as Described, FileName, FlatcarRelease, MANIFEST_FILE, PAYLOAD_MAGIC, Sha1,
    Sha256, Version,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use ureq::http::{Response, Uri};
use ureq::{Agent, Body, RequestBuilder, SendBody};

use crate::api::{
    Activity, AssignHost, ChannelState, ErrorBody, Event, GroupState, Host, MakeToken, NewToken,
    Overview, Promote, Release, Role, RolloutState, ServerHealth, SetChannel, SetGroup, TokenState,
    Withdraw,
};

/// Hosts come in parts of this size.
const HOSTS_AT_ONCE: usize = 5000;

/// A server to talk to.
#[derive(Clone, Debug)]
pub struct Server {
    agent: Agent,
    url: String,
    token: Option<String>,
}

/// A release of Flatcar's, as it lies here.
#[derive(Clone, Debug)]
pub struct FlatcarFiles {
    pub version: Version,
    /// `x86-64` or `arm64`.
    pub architecture: String,
    pub minimum_source_version: Option<Version>,
    pub payload: PathBuf,
    pub extensions: Vec<PathBuf>,
}

/// Whose rollouts are meant.
#[derive(Clone, Copy, Debug)]
pub enum Rollouts<'a> {
    Group(&'a str),
    /// Of one release in a group.
    Release(&'a str, &'a Version),
    /// Every group on it.
    Channel(&'a str),
}

/// A name as a part of a path.
fn segment(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let byte = |b: u8| match plain(b) {
        true => char::from(b).to_string(),
        false => format!("%{b:02X}"),
    };
    name.bytes().map(byte).collect()
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
    #[error("cannot read {}", path.display())]
    Payload { path: PathBuf, source: io::Error },
    #[error("{} is no payload for update_engine", .0.display())]
    NoPayload(PathBuf),
    #[error("{} cannot be the name of a file of a release", .0.display())]
    FileName(PathBuf),
    #[error("the release of Flatcar's is refused: {0}")]
    Flatcar(#[from] release::FlatcarError),
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
            Self::NoPayload(_) | Self::Payload { .. } => {
                Some("take Flatcar's flatcar_production_update.gz, which begins with CrAU")
            }
            Self::FileName(_) => Some(
                "rename it: up to 100 letters, digits, '.', '_' and '-', not starting with '.'",
            ),
            Self::Flatcar(_) => None,
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

    /// All of them, by name.
    pub fn hosts(&self) -> Result<Vec<Host>> {
        let mut all: Vec<Host> = vec![];
        loop {
            let path = format!("/api/v1/hosts?limit={HOSTS_AT_ONCE}&offset={}", all.len());
            let part: Vec<Host> = self.get(&path)?;
            let last = part.len() < HOSTS_AT_ONCE;
            all.extend(part);
            if last {
                return Ok(all);
            }
        }
    }

    /// Hosts whose name or machine id begins with this.
    pub fn find_hosts(&self, search: &str) -> Result<Vec<Host>> {
        let request = self.authorized(self.agent.get(self.address("/api/v1/hosts")));
        self.read(request.query("search", search).query("limit", "100").call())
    }

    pub fn overview(&self) -> Result<Overview> {
        self.get("/api/v1/overview")
    }

    /// The newest of every group.
    pub fn rollouts(&self) -> Result<Vec<RolloutState>> {
        self.get("/api/v1/rollouts")
    }

    pub fn groups(&self) -> Result<Vec<GroupState>> {
        self.get("/api/v1/groups")
    }

    /// Newest first; of people alone, or all.
    pub fn activity(&self, people_only: bool) -> Result<Vec<Activity>> {
        self.get(&format!("/api/v1/activity?people={people_only}"))
    }

    pub fn set_group(&self, name: &str, group: &SetGroup) -> Result<GroupState> {
        self.change(
            "PUT",
            &format!("/api/v1/groups/{}", segment(name)),
            Some(group),
        )
    }

    pub fn remove_group(&self, name: &str) -> Result<()> {
        let path = self.address(&format!("/api/v1/groups/{}", segment(name)));
        self.check(self.authorized(self.agent.delete(path)).call())?;
        Ok(())
    }

    /// Puts a host into a group; none leaves it to the host.
    pub fn assign_host(&self, machine_id: &str, group: Option<&str>) -> Result<Host> {
        let path = format!("/api/v1/hosts/{}", segment(machine_id));
        let group = group.map(str::to_owned);
        self.change("PUT", &path, Some(&AssignHost { group }))
    }

    /// Forgets a host that is no more.
    pub fn forget_host(&self, machine_id: &str) -> Result<()> {
        let path = self.address(&format!("/api/v1/hosts/{}", segment(machine_id)));
        self.check(self.authorized(self.agent.delete(path)).call())?;
        Ok(())
    }

    /// Gives `to` the release that `from` has; if a version is named, only that one.
    pub fn promote(
        &self,
        from: &Channel,
        to: &Channel,
        version: Option<&Version>,
    ) -> Result<ChannelState> {
        let body = Promote {
            from: from.clone(),
            version: version.cloned(),
        };
        let path = format!("/api/v1/channels/{to}/promote");
        self.change("POST", &path, Some(&body))
    }

    /// Whether that would be refused. Changes nothing.
    pub fn check_promotion(
        &self,
        from: &Channel,
        to: &Channel,
        version: Option<&Version>,
    ) -> Result<()> {
        // Its own address: a server that does not know it must not take it for the promotion.
        let body = Promote {
            from: from.clone(),
            version: version.cloned(),
        };
        let path = format!("/api/v1/channels/{to}/promote/check");
        self.check(self.send("POST", &path, Some(&body)))?;
        Ok(())
    }

    /// Stops handing out the release of a group, or of all groups on a channel; or goes on.
    pub fn pause_or_resume(&self, of: Rollouts<'_>, pause: bool) -> Result<Vec<RolloutState>> {
        let (kind, name, one) = match of {
            Rollouts::Group(name) => ("rollouts", name, String::new()),
            Rollouts::Release(name, version) => ("rollouts", name, format!("?version={version}")),
            Rollouts::Channel(name) => ("channels", name, String::new()),
        };
        let verb = if pause { "pause" } else { "resume" };
        let path = format!("/api/v1/{kind}/{}/{verb}{one}", segment(name));
        self.change("POST", &path, None::<&()>)
    }

    /// Has a release offered to nobody any more (with the reason), or allows it again.
    pub fn withdraw(&self, version: &Version, reason: Option<&str>) -> Result<()> {
        let base = format!("/api/v1/releases/{version}");
        let response = match reason {
            Some(reason) => {
                let reason = reason.to_owned();
                self.send(
                    "POST",
                    &format!("{base}/withdraw"),
                    Some(&Withdraw { reason }),
                )
            }
            None => self.send("POST", &format!("{base}/restore"), None::<&()>),
        };
        self.check(response)?;
        Ok(())
    }

    pub fn tokens(&self) -> Result<Vec<TokenState>> {
        self.read(
            self.authorized(self.agent.get(self.address("/api/v1/tokens")))
                .call(),
        )
    }

    pub fn make_token(&self, name: &str, role: Role) -> Result<NewToken> {
        let name = name.to_owned();
        self.change("POST", "/api/v1/tokens", Some(&MakeToken { name, role }))
    }

    pub fn remove_token(&self, name: &str) -> Result<()> {
        let path = self.address(&format!("/api/v1/tokens/{}", segment(name)));
        self.check(self.authorized(self.agent.delete(path)).call())?;
        Ok(())
    }

    fn change<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        self.read(self.send(method, path, body))
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> std::result::Result<Response<Body>, ureq::Error> {
        let request = match method {
            "PUT" => self.agent.put(self.address(path)),
            _ => self.agent.post(self.address(path)),
        };
        let request = self.authorized(request);
        match body {
            Some(body) => request
                .header("content-type", "application/json")
                .send(&serde_json::to_vec(body).unwrap_or_default()[..]),
            None => request.send_empty(),
        }
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
        let mut request = self.authorized(self.agent.get(self.address("/api/v1/events")));
        if let Some(host) = host {
            request = request.query("host", host);
        }
        self.read(request.call())
    }

    /// Points a channel, new or known, at a finished release.
    pub fn set_channel(&self, name: &Channel, version: &Version) -> Result<ChannelState> {
        let version = version.clone();
        self.change(
            "PUT",
            &format!("/api/v1/channels/{name}"),
            Some(&SetChannel { version }),
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
        let publication = self.upload(dir, channel, progress)?;
        self.set_channel(channel, &publication.version)?;
        Ok(publication)
    }

    /// Sends files of a TUF repository, in this order.
    pub fn send_tuf(&self, files: &[(String, Vec<u8>)]) -> Result<()> {
        for (name, bytes) in files {
            let path = self.address(&format!("/api/v1/tuf/{name}"));
            let request = self.authorized(self.agent.put(path));
            self.check(
                request
                    .header("content-type", "application/json")
                    .send(&bytes[..]),
            )?;
        }
        Ok(())
    }

    /// Whether hosts find TUF metadata here.
    pub fn has_tuf(&self) -> Result<bool> {
        let path = self.address("/releases/tuf/timestamp.json");
        match self.check(self.agent.get(path).call()) {
            Ok(_) => Ok(true),
            Err(ClientError::Refused { status: 404, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// As [`Self::publish`], but hosts are not told yet.
    pub fn upload(
        &self,
        dir: &Path,
        channel: &Channel,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Publication> {
        self.upload_all(&Upload::prepare(dir)?, channel, progress)
    }

    /// Sends a release of Flatcar's; no channel points at it yet.
    pub fn upload_flatcar(
        &self,
        files: &FlatcarFiles,
        channel: &Channel,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Publication> {
        self.upload_all(&Upload::flatcar(files)?, channel, progress)
    }

    /// What [`Self::upload`] would do, without doing any of it.
    pub fn plan(&self, dir: &Path, channel: &Channel) -> Result<Publication> {
        self.plan_all(&Upload::prepare(dir)?, channel)
    }

    /// What [`Self::upload_flatcar`] would do, without doing any of it.
    pub fn plan_flatcar(&self, files: &FlatcarFiles, channel: &Channel) -> Result<Publication> {
        self.plan_all(&Upload::flatcar(files)?, channel)
    }

    fn plan_all(&self, upload: &Upload, channel: &Channel) -> Result<Publication> {
        let version = upload.version.clone();
        let there = self
            .releases()?
            .into_iter()
            .find(|release| release.version == version);
        let uploaded = match there {
            Some(release) if release.id == upload.id => false,
            Some(_) => return Err(ClientError::OtherBuild { version }),
            None => true,
        };
        let bytes = if uploaded { upload.total() } else { 0 };
        Ok(Publication {
            version,
            id: upload.id,
            channel: channel.clone(),
            uploaded,
            bytes,
        })
    }

    fn upload_all(
        &self,
        upload: &Upload,
        channel: &Channel,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Publication> {
        let publication = self.plan_all(upload, channel)?;
        if publication.uploaded {
            self.send_files(upload, progress)?;
        }
        Ok(publication)
    }

    fn send_files(&self, upload: &Upload, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let total = upload.total();
        let mut sent = 0;
        let base = format!("/api/v1/releases/{}", upload.version);
        let first = self.address(&format!("{base}/{MANIFEST_FILE}"));
        let first = self.authorized(self.agent.put(first));
        self.check(first.send(&upload.description[..]))?;
        sent += upload.description.len() as u64;
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
        self.read(self.authorized(self.agent.get(self.address(path))).call())
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
    version: Version,
    id: Sha256,
    /// The manifest, which goes first: the server takes only files that it names.
    description: Vec<u8>,
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
        let mut files = vec![];
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
            version: manifest.version,
            id,
            description: bytes,
            files,
        })
    }

    fn flatcar(of: &FlatcarFiles) -> Result<Self> {
        let (payload, payload_sha1, begins) = describe(&of.payload)?;
        if begins != PAYLOAD_MAGIC {
            return Err(ClientError::NoPayload(of.payload.clone()));
        }
        let mut files = vec![(of.payload.clone(), payload.size)];
        let mut extensions = vec![];
        for path in &of.extensions {
            let (file, ..) = describe(path)?;
            files.push((path.clone(), file.size));
            extensions.push(file);
        }
        let release = FlatcarRelease {
            version: of.version.clone(),
            architecture: of.architecture.clone(),
            minimum_source_version: of.minimum_source_version.clone(),
            payload,
            payload_sha1,
            extensions,
        };
        release.check()?;
        let description = serde_json::json!({ "flatcar": release }).to_string();
        Ok(Self {
            version: of.version.clone(),
            id: Sha256::of(&description),
            description: description.into_bytes(),
            files,
        })
    }

    fn total(&self) -> u64 {
        let files: u64 = self.files.iter().map(|(_, size)| size).sum();
        files + self.description.len() as u64
    }
}

/// A file with its digests and its first bytes.
fn describe(path: &Path) -> Result<(Described, Sha1, Vec<u8>)> {
    let failed = |source| ClientError::Payload {
        path: path.into(),
        source,
    };
    let name = path.file_name().and_then(|name| name.to_str());
    let name: Option<FileName> = name.and_then(|name| name.parse().ok());
    let name = name.ok_or_else(|| ClientError::FileName(path.into()))?;
    let mut file = File::open(path).map_err(failed)?;
    let (mut sha256, mut sha1) = (sha2::Sha256::new(), sha1::Sha1::new());
    let (mut size, mut begins) = (0, vec![]);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => &buffer[..read],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        sha256.update(read);
        sha1.update(read);
        let missing = PAYLOAD_MAGIC.len().saturating_sub(begins.len());
        begins.extend(read.iter().take(missing));
        size += read.len() as u64;
    }
    let file = Described {
        name,
        size,
        sha256: Sha256(sha256.finalize().into()),
    };
    Ok((file, Sha1(sha1.finalize().into()), begins))
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
