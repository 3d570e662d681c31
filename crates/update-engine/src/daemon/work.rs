//! The worker: runs the actions that take time, one after the other, and answers with events.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use host::varlink::{Client, VarlinkError};
use release::dsse::{Envelope, MAX_ENVELOPE};
use release::omaha::{self, AppRequest, Os, Request, Response, UpdateCheck};
use release::status::Health;
use release::tuf::ChannelTargets;
use release::{MANIFEST_FILE, Manifest, Sha256, Slot, Version};
use serde::{Deserialize, Serialize};

use super::Input;
use crate::engine::{AfterStaging, Ask, Event, Host, Offer, Settings, Trouble};
use crate::fetch::{FetchError, Fetcher, Want};
use crate::memory::{Code, Report};
use crate::paths::Paths;
use crate::trust::{self, Clock, FromNetwork, Overrides, Store, TrustError};
use crate::way::{Way, WayName};
use crate::{extensions, health, keys, wire};

/// Beside the files of a download that is complete.
const DOWNLOADED: &str = "downloaded.json";

/// Flushing a slow disk may take long, but not without a word for ever.
const WRITER_SILENCE: Duration = Duration::from_secs(300);

pub(super) enum Task {
    ReadSlots,
    Check(Settings, Option<Slot>, Ask),
    Reopen(Sha256, bool),
    Download(Box<Offer>, Option<u64>),
    Discard(Box<Offer>, Way),
    Stage(Box<Offer>, AfterStaging),
    RollBack,
    Tell(Settings, Option<Slot>, Vec<Report>),
    LookForExtensions(Settings),
    Clean(Option<Sha256>),
}

/// What is needed of an offer to write it later.
#[derive(Serialize, Deserialize)]
struct Downloaded {
    envelope: String,
    bases: Vec<String>,
    way: WayName,
}

impl Downloaded {
    fn of(offer: &Offer) -> Self {
        Self {
            envelope: offer.envelope.clone(),
            bases: offer.bases.clone(),
            way: offer.way().name(),
        }
    }

    fn save(&self, path: &Path) -> anyhow::Result<()> {
        host::atomic::write(path, &serde_json::to_vec(self)?, 0o644, None)?;
        Ok(())
    }

    fn load(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    fn offer(self, worker: &Worker, id: Sha256) -> anyhow::Result<Offer> {
        let keys = keys::trusted(&worker.paths.keys())?;
        let manifest = Envelope::verify(self.envelope.as_bytes(), &keys)?;
        ensure!(manifest.id() == id, "{DOWNLOADED} is about another release");
        let mut ways = Way::all(&manifest, worker.host.root_hash);
        // Those before it lead nowhere, and the running release may be another one by now.
        if let Some(first) = ways.iter().position(|way| way.name() == self.way) {
            ways.drain(..first);
        }
        Ok(Offer {
            manifest,
            envelope: self.envelope,
            bases: self.bases,
            ways,
            allow_expired: false,
        })
    }
}

pub(super) struct Worker {
    pub(super) paths: Paths,
    pub(super) host: Host,
    pub(super) machine_id: String,
    pub(super) fetcher: Fetcher,
    pub(super) events: Sender<Input>,
}

impl Worker {
    /// Until the driver is gone.
    pub(super) fn run(self, tasks: &Receiver<Task>) {
        while let Ok(task) = tasks.recv() {
            let event = self.perform(task);
            if event.is_some_and(|event| self.events.send(Input::Event(event)).is_err()) {
                return;
            }
        }
    }

    fn perform(&self, task: Task) -> Option<Event> {
        let settle = |result: Result<Event, Trouble>| Some(result.unwrap_or_else(Event::Trouble));
        match task {
            Task::ReadSlots => Some(Event::Found(self.slots().map_err(|e| e.to_string()))),
            Task::Check(settings, slot, ask) => settle(self.check(&settings, slot, &ask)),
            Task::Reopen(id, allow_expired) => settle(self.reopen(id, allow_expired)),
            Task::Download(offer, rate) => settle(self.download(&offer, rate)),
            Task::Discard(offer, closed) => {
                self.discard(&offer, &closed);
                None
            }
            Task::Stage(offer, after) => settle(self.stage(&offer, after)),
            Task::RollBack => settle(self.roll_back().map_err(|e| writer_trouble(e, None))),
            Task::Tell(settings, slot, reports) => {
                Some(Event::Told(self.tell(&settings, slot, &reports)))
            }
            Task::LookForExtensions(settings) => {
                self.look_for_extensions(&settings);
                Some(Event::Looked)
            }
            Task::Clean(keep) => {
                clean(&self.paths.downloads(), keep);
                None
            }
        }
    }

    fn progress(&self, done: u64) {
        let _ = self.events.send(Input::Event(Event::Progress(done)));
    }

    fn slots(&self) -> Result<Vec<release::status::SlotStatus>, VarlinkError> {
        let slots: wire::Slots = self.writer()?.call_as(wire::GET_SLOTS, ())?;
        Ok(slots.slots)
    }

    fn writer(&self) -> Result<Client, VarlinkError> {
        Client::connect(self.paths.writer_socket())?.with_timeout(WRITER_SILENCE)
    }

    fn omaha(&self, settings: &Settings, app: AppRequest) -> Result<Response, String> {
        let Some(server) = &settings.server else {
            return Err("no SERVER= in update.conf".into());
        };
        let request = Request {
            updater_version: Some(concat!("update-engine-", env!("CARGO_PKG_VERSION")).into()),
            install_source: Some(if app.force { "ondemand" } else { "scheduler" }.into()),
            // Flatcar's servers look for this platform.
            os: Os {
                platform: "CoreOS".into(),
                version: "Orlop".into(),
                arch: Some("x86_64".into()),
            },
            apps: vec![app],
        };
        let answer = self
            .fetcher
            .post(
                server,
                "text/xml",
                &request.to_xml(),
                omaha::MAX_MESSAGE as u64,
            )
            .map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&answer);
        Response::from_xml(&text).map_err(|e| format!("{server}: the answer is not Omaha: {e}"))
    }

    fn app(&self, settings: &Settings, slot: Option<Slot>) -> AppRequest {
        AppRequest {
            boot_id: Some(self.host.boot_id.clone()),
            hostname: Some(host::machine::hostname()),
            slot,
            health: Some(match self.paths.good().exists() {
                true => Health::Healthy,
                false => Health::Starting,
            }),
            ..AppRequest::orlop(&self.host.version, &settings.channel, &self.machine_id)
        }
    }

    fn check(&self, settings: &Settings, slot: Option<Slot>, ask: &Ask) -> Result<Event, Trouble> {
        self.look_for_extensions(settings);
        if let Some(tree) = &ask.from {
            return self.check_tree(settings, tree, ask);
        }
        let app = AppRequest {
            update_check: true,
            force: ask.force,
            ping: true,
            ..self.app(settings, slot)
        };
        let response = self.omaha(settings, app).map_err(server_trouble)?;
        let app = response.apps.into_iter().next();
        let app =
            app.ok_or_else(|| server_trouble("the server's answer is about no app".into()))?;
        let offer = match app.update_check {
            Some(UpdateCheck::Offer(offer)) => offer,
            Some(UpdateCheck::NoUpdate { .. }) => return Ok(Event::NothingNew),
            Some(UpdateCheck::Refused(status)) if omaha::holds_back(&status) => {
                tracing::info!("the server holds the update back for now: {status}");
                return Ok(Event::NothingNew);
            }
            Some(UpdateCheck::Refused(status)) => {
                return Err(server_trouble(format!(
                    "the server answers {status:?}; asking again later"
                )));
            }
            None => {
                return Err(server_trouble(format!(
                    "the server does not serve this app: {:?}",
                    app.status
                )));
            }
        };
        if offer.codebases.is_empty() {
            return Err(server_trouble(format!(
                "the server offers version {} without a URL",
                offer.version
            )));
        }
        // Several URLs are alternatives: the first that has a manifest we believe.
        let bases: Vec<String> = offer
            .codebases
            .iter()
            .map(|base| format!("{}/", base.trim_end_matches('/')))
            .collect();
        let mut trouble = None;
        for base in &bases {
            match self.offer(settings, base, &bases, ask.allow_expired) {
                Ok(offer) => return Ok(Event::Offered(Box::new(offer))),
                Err(t) => {
                    trouble = trouble.or(Some(Trouble {
                        version: Some(offer.version.clone()),
                        ..t
                    }))
                }
            }
        }
        Err(trouble.unwrap_or_else(|| server_trouble("no URL".into())))
    }

    /// From a published tree, without a server: the newest that the channel has for this host.
    fn check_tree(&self, settings: &Settings, tree: &str, ask: &Ask) -> Result<Event, Trouble> {
        let Some(targets) = self.targets(settings, &format!("{tree}tuf/"), ask.allow_expired)?
        else {
            return Err(server_trouble(
                "this release has no TUF root, so it cannot tell which version of a tree is the newest".into(),
            ));
        };
        let suits = |custom: &serde_json::Value| {
            let minimum = custom.get("minimum_source_version");
            let minimum = minimum.and_then(|v| v.as_str()?.parse::<Version>().ok());
            let architecture = custom.get("architecture").and_then(|v| v.as_str());
            minimum.is_none_or(|minimum| minimum <= self.host.version)
                && architecture.is_none_or(|it| it == self.host.architecture)
        };
        let newest = targets
            .iter()
            .filter(|(_, meta)| ask.force || meta.custom.as_ref().is_none_or(suits))
            .filter_map(|(path, _)| {
                let name = path.rsplit_once('/')?.1;
                let version = name.strip_suffix(MANIFEST_FILE)?.strip_suffix('.')?;
                version.parse::<Version>().ok()
            })
            .max();
        let Some(version) = newest else {
            return Ok(Event::NothingNew);
        };
        let base = format!("{tree}{version}/");
        let bases = std::slice::from_ref(&base);
        match self.offer(settings, &base, bases, ask.allow_expired) {
            Ok(offer) => Ok(Event::Offered(Box::new(offer))),
            Err(trouble) => Err(Trouble {
                version: Some(version),
                ..trouble
            }),
        }
    }

    /// What the channel's metadata says now. None: this release believes manifests' signatures alone.
    fn targets(
        &self,
        settings: &Settings,
        base: &str,
        allow_expired: bool,
    ) -> Result<Option<ChannelTargets>, Trouble> {
        let trouble = |error: TrustError| Trouble {
            code: error.code(),
            message: match &error {
                TrustError::Tuf(_) => format!("{base}: {error}"),
                _ => error.to_string(),
            },
            version: None,
            release: None,
        };
        let Some(root) = trust::baked_root(&self.paths.tuf_root()).map_err(trouble)? else {
            return Ok(None);
        };
        let store = Store::new(self.paths.metadata());
        let clock = Clock::read(&self.paths);
        let overrides = Overrides::read(&self.paths, clock.judged(&store), allow_expired);
        let source = FromNetwork {
            fetcher: &self.fetcher,
            base,
        };
        trust::refresh(&root, &store, &source, &settings.follow, &clock, overrides)
            .map(Some)
            .map_err(trouble)
    }

    /// Metadata and signature come first: nothing else is looked at before they are good.
    fn offer(
        &self,
        settings: &Settings,
        base: &str,
        bases: &[String],
        allow_expired: bool,
    ) -> Result<Offer, Trouble> {
        let tree = base.trim_end_matches('/').rsplit_once('/');
        let tree = tree.map_or(base, |(tree, _)| tree);
        let targets = self.targets(settings, &format!("{tree}/tuf/"), allow_expired)?;
        let url = format!("{base}{MANIFEST_FILE}");
        let bytes = self
            .fetcher
            .get(&url, MAX_ENVELOPE as u64)
            .map_err(|e| server_trouble(e.to_string()))?;
        let refused = |code: Code, message: String| Trouble {
            code,
            message: format!("{url}: {message}"),
            version: None,
            release: None,
        };
        let signature = |message: String| refused(Code::Signature, message);
        let keys = keys::trusted(&self.paths.keys()).map_err(|e| signature(format!("{e:#}")))?;
        let manifest = Envelope::verify(&bytes, &keys).map_err(|e| signature(with_source(&e)))?;
        if let Some(targets) = &targets {
            trust::check_manifest(targets, &manifest.version, &bytes)
                .map_err(|e| refused(e.code().into(), e.to_string()))?;
        }
        let envelope = String::from_utf8(bytes).map_err(|e| signature(e.to_string()))?;
        let others = bases.iter().filter(|other| *other != base).cloned();
        Ok(Offer {
            ways: Way::all(&manifest, self.host.root_hash),
            manifest,
            envelope,
            bases: std::iter::once(base.to_owned()).chain(others).collect(),
            allow_expired,
        })
    }

    fn download(&self, offer: &Offer, rate: Option<u64>) -> Result<Event, Trouble> {
        self.fetcher.limit(rate);
        let trouble = |message: String| Trouble {
            code: Code::Download,
            message,
            version: Some(offer.manifest.version.clone()),
            release: Some(offer.manifest.id()),
        };
        let dir = self.paths.download(offer.manifest.id());
        fs::create_dir_all(&dir)
            .map_err(|e| trouble(format!("cannot make {}: {e}", dir.display())))?;
        let closed = |error: FetchError| {
            let trouble = trouble(error.to_string());
            match error.blames_file() && offer.way() != &Way::Whole {
                true => Ok(Event::WayClosed(trouble)),
                false => Err(trouble),
            }
        };
        // The small one first: a release without a kernel is noticed early.
        let mut before = 0;
        for file in offer.way().files(&offer.manifest) {
            let want = Want {
                size: file.size,
                sha256: file.sha256,
            };
            let mut progress = self.percents(before, offer.download_size());
            let target = dir.join(&file.name);
            let fetched = from_any(&offer.bases, file.name.as_str(), |url| {
                self.fetcher.download(url, &target, want, &mut progress)
            });
            if let Err(error) = fetched {
                return closed(error);
            }
            before += file.size;
        }
        if let Way::Blocks(index) = offer.way() {
            let payload = &offer.manifest.usr.payload.file;
            let ranges = match self.missing(offer, &dir.join(&index.name)) {
                Ok(ranges) => ranges,
                Err(e) => return Ok(Event::WayClosed(writer_trouble(e, Some(offer)))),
            };
            let total: u64 = ranges.iter().map(|r| r.end.saturating_sub(r.start)).sum();
            let possible = ranges
                .iter()
                .all(|r| r.start < r.end && r.end <= payload.size);
            if !possible || total > payload.size / 10 * 9 {
                let why = format!("{total} of {} bytes are not here", payload.size);
                return Ok(Event::WayClosed(trouble(why)));
            }
            tracing::info!("{} parts are not here, {total} bytes", ranges.len());
            let target = dir.join(self.blocks_name(offer));
            let mut progress = self.percents(before, before + total);
            let fetched = from_any(&offer.bases, payload.name.as_str(), |url| {
                self.fetcher
                    .download_ranges(url, &target, payload.size, &ranges, &mut progress)
            });
            if let Err(error) = fetched {
                return closed(error);
            }
        }
        self.extensions(&offer.manifest, &offer.envelope, &offer.bases)
            .map_err(trouble)?;
        // Only to write it later without asking anybody: not worth failing for.
        if let Err(e) = Downloaded::of(offer).save(&dir.join(DOWNLOADED)) {
            tracing::warn!("{e:#}");
        }
        Ok(Event::Downloaded)
    }

    /// What was downloaded, as if it were offered now. The writer asks the metadata whether it is still to be had.
    fn reopen(&self, id: Sha256, allow_expired: bool) -> Result<Event, Trouble> {
        let path = self.paths.download(id).join(DOWNLOADED);
        let offer = Downloaded::load(&path).and_then(|it| it.offer(self, id));
        match offer {
            Ok(mut offer) => {
                offer.allow_expired = allow_expired;
                Ok(Event::Offered(Box::new(offer)))
            }
            Err(e) => Err(Trouble {
                code: Code::Download,
                message: format!("{e:#}; orlop update --download-only fetches it again"),
                version: None,
                release: None,
            }),
        }
    }

    fn look_for_extensions(&self, settings: &Settings) {
        // The next release may have what this one has not.
        if let Err(e) = self.extensions_of_running(settings) {
            tracing::warn!("{e}");
        }
    }

    /// What this host wants of the running release and does not have. The server's address leads to it.
    fn extensions_of_running(&self, settings: &Settings) -> Result<(), String> {
        let (Some(running), Some(server)) = (self.host.root_hash, &settings.server) else {
            return Ok(());
        };
        extensions::tidy(&self.paths);
        let open = extensions::open(&self.paths, running).map_err(|e| with_source(&e))?;
        if open.missing.is_empty() {
            return match open.unlinked {
                true => self.announce_extensions(running),
                false => Ok(()),
            };
        }
        self.fetcher.limit(settings.rate);
        let server = server.split("/v1/update").next().unwrap_or(server);
        let version = &self.host.version;
        let base = format!("{}/releases/{version}/", server.trim_end_matches('/'));
        let url = format!("{base}{MANIFEST_FILE}");
        let bytes = self.fetcher.get(&url, MAX_ENVELOPE as u64);
        let bytes = bytes.map_err(|e| e.to_string())?;
        let keys = keys::trusted(&self.paths.keys()).map_err(|e| format!("{e:#}"))?;
        let manifest =
            Envelope::verify(&bytes, &keys).map_err(|e| format!("{url}: {}", with_source(&e)))?;
        if manifest.usr.root_hash != running {
            return Err(format!(
                "{url} is another build of version {version} than the one that runs: no extensions are taken from it"
            ));
        }
        let envelope = String::from_utf8(bytes).map_err(|e| e.to_string())?;
        self.extensions(&manifest, &envelope, &[base])
    }

    /// What this host wants of a release, as far as it is not here.
    fn extensions(
        &self,
        manifest: &Manifest,
        envelope: &str,
        bases: &[String],
    ) -> Result<(), String> {
        let release = manifest.usr.root_hash;
        let open = extensions::open(&self.paths, release).map_err(|e| with_source(&e))?;
        if open.missing.is_empty() {
            return Ok(());
        }
        // What is fetched for the running release says nothing of the one that is staged.
        if let Some(running) = self.host.root_hash.filter(|running| *running != release) {
            extensions::clean_fetched(&self.paths, &[running, release]);
        }
        extensions::expect(&self.paths, release, envelope).map_err(|e| format!("{e:#}"))?;
        let dir = self.paths.fetched_extensions().join(release.to_string());
        for name in open.missing {
            let Some(extension) = manifest.extension(&name) else {
                return Err(format!(
                    "version {} has no extension {name}, which {} asks for",
                    manifest.version,
                    host::extensions::LIST
                ));
            };
            let file = &extension.payload.file;
            tracing::info!("fetching the extension {name} ({} bytes)", file.size);
            let want = Want {
                size: file.size,
                sha256: file.sha256,
            };
            let packed = dir.join(&file.name);
            from_any(bases, file.name.as_str(), |url| {
                self.fetcher.download(url, &packed, want, &mut |_| ())
            })
            .map_err(|e| e.to_string())?;
            extensions::arrived(&self.paths, manifest, extension, &packed)
                .map_err(|e| format!("{e:#}"))?;
        }
        self.announce_extensions(release)
    }

    fn announce_extensions(&self, release: Sha256) -> Result<(), String> {
        extensions::announce(&self.paths, release).map_err(|e| format!("{e:#}"))
    }

    /// Progress in steps of a percent of `total`, and at the end: not every 64 KiB.
    fn percents(&self, before: u64, total: u64) -> impl FnMut(u64) {
        let mut shown = 0;
        move |done: u64| {
            if done == 0 || before + done == total || done - shown.min(done) > total / 100 {
                shown = done;
                self.progress(before + done);
            }
        }
    }

    /// Which blocks are missing depends on what runs.
    fn blocks_name(&self, offer: &Offer) -> String {
        let running = self.host.root_hash.map_or("-".into(), |hash| hash.short());
        format!("{}.blocks-{running}", offer.manifest.usr.payload.file.name)
    }

    /// What the closed way needed and the next one does not.
    fn discard(&self, offer: &Offer, closed: &Way) {
        let name = |file: &release::File| file.name.to_string();
        let keep = offer.way().files(&offer.manifest).map(name);
        let mut names = Vec::from(closed.files(&offer.manifest).map(name));
        names.push(DOWNLOADED.to_owned());
        if matches!(closed, Way::Blocks(_)) {
            names.push(self.blocks_name(offer));
        }
        let dir = self.paths.download(offer.manifest.id());
        for name in names.iter().filter(|name| !keep.contains(name)) {
            for suffix in ["", ".part", ".etag"] {
                let path = dir.join(format!("{name}{suffix}"));
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        tracing::warn!("cannot remove {}: {e}", path.display());
                    }
                    _ => {}
                }
            }
        }
    }

    fn missing(
        &self,
        offer: &Offer,
        index: &Path,
    ) -> Result<Vec<std::ops::Range<u64>>, VarlinkError> {
        let call = wire::Missing {
            envelope: offer.envelope.clone(),
            index: index.to_string_lossy().into_owned(),
        };
        let answer: wire::Ranges = self.writer()?.call_as(wire::MISSING, call)?;
        Ok(answer.ranges)
    }

    fn stage(&self, offer: &Offer, after: AfterStaging) -> Result<Event, Trouble> {
        // Without a note, less is asked of the release; that is no reason to stay without it.
        if let Err(e) = health::note(&self.paths, offer.manifest.usr.root_hash) {
            tracing::warn!("what works now is not noted: {e:#}");
        }
        let slot = match self.write(offer) {
            Ok(slot) => slot,
            Err(e) => {
                let closed =
                    matches!(&e, VarlinkError::Reply { name, .. } if name == wire::WAY_CLOSED);
                let trouble = writer_trouble(e, Some(offer));
                return match closed {
                    true => Ok(Event::WayClosed(trouble)),
                    false => Err(trouble),
                };
            }
        };
        if after == AfterStaging::ExhaustRunning {
            self.roll_back()
                .map_err(|e| writer_trouble(e, Some(offer)))?;
        }
        Ok(Event::Staged(slot))
    }

    fn write(&self, offer: &Offer) -> Result<Slot, VarlinkError> {
        let dir = self.paths.download(offer.manifest.id());
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let [uki, usr] = offer.way().files(&offer.manifest);
        let (usr, index) = match offer.way() {
            Way::Blocks(index) => (self.blocks_name(offer), Some(path(index.name.as_str()))),
            Way::Delta(_) | Way::Whole => (usr.name.to_string(), None),
        };
        let call = wire::Stage {
            envelope: offer.envelope.clone(),
            usr: path(&usr),
            uki: path(uki.name.as_str()),
            way: offer.way().name(),
            index,
            allow_expired: offer.allow_expired,
        };
        for reply in self.writer()?.call_more(wire::STAGE, call)? {
            let reply: wire::Staged =
                serde_json::from_value(reply?).map_err(|e| VarlinkError::Malformed {
                    problem: e.to_string(),
                })?;
            match reply {
                wire::Staged {
                    slot: Some(slot), ..
                } => return Ok(slot),
                wire::Staged {
                    done: Some(done), ..
                } => self.progress(done),
                _ => {}
            }
        }
        Err(VarlinkError::Closed)
    }

    fn roll_back(&self) -> Result<Event, VarlinkError> {
        let done: wire::RolledBack = self.writer()?.call_as(wire::ROLLBACK, ())?;
        Ok(Event::RolledBack {
            slot: done.slot,
            version: done.version,
        })
    }

    fn tell(
        &self,
        settings: &Settings,
        slot: Option<Slot>,
        reports: &[Report],
    ) -> Result<usize, String> {
        let app = AppRequest {
            events: reports.iter().map(omaha_event).collect(),
            ..self.app(settings, slot)
        };
        self.omaha(settings, app).map(|_| reports.len())
    }
}

/// From the first address that has it. One that fails half-way leaves the partial file to the next,
/// which goes on there.
fn from_any(
    bases: &[String],
    name: &str,
    mut fetch: impl FnMut(&str) -> Result<(), FetchError>,
) -> Result<(), FetchError> {
    let mut first = None;
    let mut damaged = Vec::new();
    for base in bases {
        let url = format!("{base}{name}");
        match fetch(&url) {
            Ok(()) => return Ok(()),
            Err(error @ (FetchError::Space { .. } | FetchError::File { .. })) => return Err(error),
            Err(error) => {
                if bases.len() > 1 {
                    tracing::warn!("{error}; trying the next address");
                }
                if matches!(error, FetchError::Digest { .. }) {
                    damaged.push(url);
                }
                first = first.or(Some(error));
            }
        }
    }
    match (&damaged[..], first) {
        // A bit may have been lost on the way, or two contents mixed. What is wrong twice is wrong.
        ([url], Some(error)) => {
            tracing::warn!("{error}; fetching the rest once again");
            fetch(url)
        }
        (_, first) => first.map_or(Ok(()), Err),
    }
}

fn omaha_event(report: &Report) -> omaha::Event {
    use omaha::Event;
    match report {
        Report::DownloadStarted { version } => Event::download_started(version),
        Report::Downloaded { version } => Event::downloaded(version),
        Report::Staged { version } => Event::staged(version),
        Report::Running { version, previous } => {
            Event::good(version, previous.as_ref().unwrap_or(version))
        }
        Report::Failed {
            version,
            release,
            code,
            reason,
        } if code.is_verdict() => Event::failed(version, *release, *code as i64, reason),
        Report::Failed {
            version,
            code,
            reason,
            ..
        } => Event::download_failed(version, *code as i64, reason),
        Report::FailuresCleared => Event::failures_cleared(),
    }
}

fn server_trouble(message: String) -> Trouble {
    Trouble {
        code: Code::Server,
        message,
        version: None,
        release: None,
    }
}

fn writer_trouble(error: VarlinkError, offer: Option<&Offer>) -> Trouble {
    let message = match &error {
        VarlinkError::Reply { parameters, .. } => {
            let text = parameters.get("message").and_then(|m| m.as_str());
            text.map_or_else(|| error.to_string(), str::to_owned)
        }
        error => format!("the writer: {}", with_source(error)),
    };
    let code = match &error {
        VarlinkError::Reply { parameters, .. } => parameters.get("code").and_then(|c| c.as_u64()),
        _ => None,
    };
    Trouble {
        code: code.and_then(Code::from_number).unwrap_or(Code::Write),
        message,
        version: offer.map(|o| o.manifest.version.clone()),
        release: offer.map(|o| o.manifest.id()),
    }
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", with_source(source)),
        None => error.to_string(),
    }
}

/// Deletes what was downloaded for other releases.
fn clean(downloads: &Path, keep: Option<Sha256>) {
    let Ok(entries) = fs::read_dir(downloads) else {
        return;
    };
    let keep = keep.map(|id| id.to_string());
    for entry in entries.flatten() {
        if entry.file_name().to_str() == keep.as_deref() && keep.is_some() {
            continue;
        }
        if let Err(e) = fs::remove_dir_all(entry.path()) {
            tracing::warn!("cannot remove {}: {e}", entry.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use release::omaha::EventMeaning;

    #[test]
    fn only_what_ran_and_was_left_is_held_against_a_release() {
        use Code::{Download, FellBack, Older, Refused, RolledBack, Server, Signature, Write};
        let meaning = |code| {
            let report = Report::Failed {
                version: "2".parse().unwrap(),
                release: Some(Sha256::of("2")),
                code,
                reason: "x".into(),
            };
            let event = omaha_event(&report);
            assert_eq!(event.error_code, Some(code as i64));
            event.meaning()
        };
        for code in [Server, Signature, Older, Download, Write, Refused] {
            assert_eq!(meaning(code), EventMeaning::DownloadFailed, "{code:?}");
        }
        for code in [FellBack, RolledBack] {
            assert_eq!(meaning(code), EventMeaning::Failed, "{code:?}");
        }
        let cleared = omaha_event(&Report::FailuresCleared);
        assert_eq!(cleared.meaning(), EventMeaning::FailuresCleared);
    }
}
