//! The TUF repository of a publisher, on disk: the keys of its roles, apart, and the metadata that
//! hosts are to see.
//!
//! ```text
//! lock         held by who signs
//! offline/     root-1.pem root-2.pem root-3.pem targets.pem channel-NAME.pem
//! online/      online.pem: what a machine needs that renews snapshot and timestamp every day
//! repository/  metadata, and the signed manifests as targets: CHANNEL/VERSION.manifest.dsse.json
//! ```
//!
//! New files get new names (consistent snapshots); `timestamp.json` is replaced last, so a reader
//! sees the old state or the new one.

mod publish;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use jiff::{Span, Timestamp as Time, ToSpan as _};
use release::keys::{SigningKey, from_pem, generate, to_pem};
use release::tuf::sign::{Holders, seal};
use release::tuf::{FileMeta, Root, Signed, Snapshot, Targets, Timestamp, target_name};
use release::{Channel, MANIFEST_FILE, Version};

const ROOT_KEYS: usize = 3;
const ROOT_THRESHOLD: u32 = 2;

/// How long each kind of file is valid. What is online is short-lived: it is how a host notices
/// that newer metadata is kept from it.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    pub root: Span,
    pub targets: Span,
    pub snapshot: Span,
    pub timestamp: Span,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            root: (365 * 24).hours(),
            targets: (180 * 24).hours(),
            snapshot: (14 * 24).hours(),
            timestamp: (3 * 24).hours(),
        }
    }
}

/// Whose key is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    Root(usize),
    Targets,
    Channel(Channel),
    Online,
}

/// A role as it is in force.
#[derive(Clone, Debug)]
pub struct RoleState {
    pub name: String,
    pub version: u64,
    pub expires: Time,
    pub keys: Vec<String>,
    pub threshold: u32,
    pub targets: Vec<String>,
}

pub struct Repository {
    dir: PathBuf,
    /// Where the keys are, if not beside the metadata: a medium that is put in for this.
    keys: PathBuf,
    lifetimes: Lifetimes,
    /// Held while this lives: two that sign at once would lose each other's releases.
    _lock: fs::File,
}

/// How long somebody else may hold a repository.
const PATIENCE: Duration = Duration::from_secs(30);

impl Holder {
    fn file(&self) -> String {
        match self {
            Self::Root(n) => format!("offline/root-{n}.pem"),
            Self::Targets => "offline/targets.pem".into(),
            Self::Channel(channel) => format!("offline/channel-{channel}.pem"),
            Self::Online => "online/online.pem".into(),
        }
    }
}

impl std::str::FromStr for Holder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "targets" => Ok(Self::Targets),
            "online" => Ok(Self::Online),
            "root-1" => Ok(Self::Root(1)),
            "root-2" => Ok(Self::Root(2)),
            "root-3" => Ok(Self::Root(3)),
            other => match other.strip_prefix("channel-").map(str::parse) {
                Some(Ok(channel)) => Ok(Self::Channel(channel)),
                _ => Err(format!(
                    "{other:?} holds no key: root-1, root-2, root-3, targets, channel-NAME or online"
                )),
            },
        }
    }
}

impl Repository {
    pub fn open(dir: &Path, keys: Option<&Path>, lifetimes: Lifetimes) -> Result<Self> {
        ensure!(
            Self::exists(dir),
            "{} is no repository; `orlop keys init` makes one",
            dir.display()
        );
        Ok(Self {
            dir: dir.into(),
            keys: keys.unwrap_or(dir).into(),
            lifetimes,
            _lock: lock(dir)?,
        })
    }

    pub fn exists(dir: &Path) -> bool {
        dir.join("repository/timestamp.json").exists()
    }

    /// The lab's own, made at first need as its signing key is.
    pub fn open_or_init(
        dir: &Path,
        keys: Option<&Path>,
        lifetimes: Lifetimes,
        now: Time,
    ) -> Result<Self> {
        if !Self::exists(dir) && keys.is_none() {
            // Somebody else may just be making it.
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
            let held = lock(dir)?;
            if !Self::exists(dir) {
                let channels: Vec<Channel> = ["alpha", "beta", "stable"]
                    .iter()
                    .map(|name| name.parse())
                    .collect::<Result<_, _>>()?;
                return Self::init_locked(dir, &channels, lifetimes, now, held);
            }
        }
        Self::open(dir, keys, lifetimes)
    }

    /// New keys, and metadata without releases.
    pub fn init(dir: &Path, channels: &[Channel], lifetimes: Lifetimes, now: Time) -> Result<Self> {
        Self::untouched(dir)?;
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let held = lock(dir)?;
        Self::init_locked(dir, channels, lifetimes, now, held)
    }

    fn untouched(dir: &Path) -> Result<()> {
        for sub in ["offline", "online", "repository"] {
            ensure!(
                !dir.join(sub).exists(),
                "{} is there already; keys are never overwritten",
                dir.join(sub).display()
            );
        }
        Ok(())
    }

    fn init_locked(
        dir: &Path,
        channels: &[Channel],
        lifetimes: Lifetimes,
        now: Time,
        held: fs::File,
    ) -> Result<Self> {
        Self::untouched(dir)?;
        channels.iter().try_for_each(publish::not_reserved)?;
        let it = Self {
            dir: dir.into(),
            keys: dir.into(),
            lifetimes,
            _lock: held,
        };
        let roots = (1..=ROOT_KEYS).map(Holder::Root);
        let others = [Holder::Targets, Holder::Online];
        let channel_keys = channels.iter().cloned().map(Holder::Channel);
        for holder in roots.chain(others).chain(channel_keys) {
            it.create_key(&holder)?;
        }
        it.write_root(1, &[], now)?;
        let mut files = BTreeMap::new();
        for channel in channels {
            let targets = Targets::of(1, it.until(now, it.lifetimes.targets)?, BTreeMap::new());
            let key = it.key(&Holder::Channel(channel.clone()))?;
            files.insert(channel.to_string(), (1, seal(&targets, &[&key])?));
        }
        files.insert("targets".into(), (1, it.top(1, channels, now)?));
        it.commit(files, now)?;
        Ok(it)
    }

    /// Makes the release in `release_dir` the channel's newest target.
    pub fn add(&self, channel: &Channel, release_dir: &Path, now: Time) -> Result<String> {
        self.put(channel, &manifest_of(release_dir)?, false, now)
    }

    /// Takes a release out of a channel.
    pub fn withdraw(&self, channel: &Channel, version: &Version, now: Time) -> Result<()> {
        let mut targets = self.targets(&channel.to_string())?;
        if targets
            .targets
            .remove(&target_name(channel.as_str(), version))
            .is_none()
        {
            bail!("channel {channel} has no version {version}");
        }
        targets.version += 1;
        targets.expires = self.until(now, self.lifetimes.targets)?;
        let key = self.key(&Holder::Channel(channel.clone()))?;
        let files = [(
            channel.to_string(),
            (targets.version, seal(&targets, &[&key])?),
        )];
        self.commit(files.into(), now)
    }

    /// Renews snapshot and timestamp. Needs the online key alone.
    pub fn refresh(&self, now: Time) -> Result<()> {
        self.commit(BTreeMap::new(), now)
    }

    /// Replaces a key. The old one is kept beside the new one as `….pem.old`; only one that is `lost` may be missing.
    pub fn rotate(&self, holder: &Holder, lost: bool, now: Time) -> Result<()> {
        // Everything that will sign has to be here before anything changes.
        let channels = self.channels()?;
        if let Holder::Channel(channel) = holder {
            let known = channels.contains(channel);
            ensure!(known, "the repository has no channel {channel}");
        }
        let old_roots = self.root_keys()?;
        let needs_root = !matches!(holder, Holder::Channel(_));
        ensure!(
            !needs_root || old_roots.len() >= ROOT_THRESHOLD as usize,
            "a new root has to be signed by {ROOT_THRESHOLD} root keys, {} are in {}",
            old_roots.len(),
            self.keys.join("offline").display()
        );
        if *holder != Holder::Online {
            self.key(&Holder::Online)?;
        }
        if matches!(holder, Holder::Channel(_)) {
            self.key(&Holder::Targets)?;
        }
        let path = self.key_path(holder);
        ensure!(
            lost || path.exists(),
            "{} is not there; if it is lost and not only elsewhere, say --lost",
            path.display()
        );
        if path.exists() {
            let aside = path.with_extension("pem.old");
            fs::rename(&path, &aside)
                .with_context(|| format!("cannot rename {}", path.display()))?;
        }
        self.create_key(holder)?;

        let mut files = BTreeMap::new();
        if needs_root {
            let version = self.root()?.version + 1;
            let old: Vec<&SigningKey> = old_roots.iter().collect();
            self.write_root(version, &old, now)?;
        }
        match holder {
            Holder::Root(_) | Holder::Online => {}
            Holder::Targets => {
                let version = self.targets("targets")?.version + 1;
                files.insert(
                    "targets".into(),
                    (version, self.top(version, &channels, now)?),
                );
            }
            Holder::Channel(channel) => {
                let version = self.targets("targets")?.version + 1;
                files.insert(
                    "targets".into(),
                    (version, self.top(version, &channels, now)?),
                );
                let mut targets = self.targets(&channel.to_string())?;
                targets.version += 1;
                let signed = seal(&targets, &[&self.key(holder)?])?;
                files.insert(channel.to_string(), (targets.version, signed));
            }
        }
        self.commit(files, now)
    }

    /// Another one with the same keys and the same past.
    pub fn copy_to(&self, dir: &Path) -> Result<()> {
        let copy = |sub: &str| copy_tree(&self.dir.join(sub), &dir.join(sub));
        // What makes it a repository comes last.
        for sub in ["offline", "online", "repository"] {
            copy(sub).with_context(|| {
                format!("cannot copy {} to {}", self.dir.display(), dir.display())
            })?;
        }
        Ok(())
    }

    /// The newest root, as it is put into `/usr`.
    pub fn root_file(&self) -> Result<PathBuf> {
        let newest = (1u64..)
            .map(|n| self.path(&format!("{n}.root.json")))
            .take_while(|path| path.exists())
            .last();
        newest.with_context(|| format!("{} holds no root", self.dir.display()))
    }

    /// The channels that a role speaks for.
    pub fn channels(&self) -> Result<Vec<Channel>> {
        let top = self.targets("targets")?;
        let roles = top.delegations.map_or(Vec::new(), |it| it.roles);
        let names = roles.iter().map(|role| role.name.parse());
        Ok(names.collect::<Result<_, _>>()?)
    }

    /// All that is in force, for people.
    pub fn roles(&self) -> Result<Vec<RoleState>> {
        let root = self.root()?;
        let snapshot = self.snapshot()?;
        let timestamp: Timestamp = read_signed(&self.path("timestamp.json"))?;
        let state = |name: &str, version, expires| {
            let role = root.roles.get(name);
            RoleState {
                name: name.to_owned(),
                version,
                expires,
                keys: role.map_or(Vec::new(), |role| role.keyids.clone()),
                threshold: role.map_or(0, |role| role.threshold),
                targets: Vec::new(),
            }
        };
        let top = self.targets("targets")?;
        let mut roles = vec![
            state("root", root.version, root.expires),
            state("timestamp", timestamp.version, timestamp.expires),
            state("snapshot", snapshot.version, snapshot.expires),
            state("targets", top.version, top.expires),
        ];
        for delegation in top.delegations.map_or(Vec::new(), |it| it.roles) {
            let targets = self.targets(&delegation.name)?;
            roles.push(RoleState {
                name: delegation.name,
                version: targets.version,
                expires: targets.expires,
                keys: delegation.keyids,
                threshold: delegation.threshold,
                targets: targets.targets.into_keys().collect(),
            });
        }
        Ok(roles)
    }

    fn root(&self) -> Result<Root> {
        read_signed(&self.root_file()?)
    }

    fn write_root(&self, version: u64, old: &[&SigningKey], now: Time) -> Result<()> {
        let keys = (1..=ROOT_KEYS).map(|n| self.public(&Holder::Root(n)));
        let holders = Holders {
            root: keys.collect::<Result<_>>()?,
            root_threshold: ROOT_THRESHOLD,
            targets: vec![self.public(&Holder::Targets)?],
            online: vec![self.public(&Holder::Online)?],
        };
        let root = Root::of(version, self.until(now, self.lifetimes.root)?, &holders);
        let mut signed = seal(&root, old)?;
        for n in 1..=ROOT_KEYS {
            // Two of three are enough; the third may be in a safe far away.
            if let Ok(key) = self.key(&Holder::Root(n)) {
                release::tuf::sign::add(&mut signed, &key)?;
            }
        }
        self.write(&format!("{version}.root.json"), &signed.to_bytes()?)
    }

    /// A holder's public key: from its key, or (where that is elsewhere) from `….pub` beside it.
    fn public(&self, holder: &Holder) -> Result<release::keys::VerifyingKey> {
        if let Ok(key) = self.key(holder) {
            return Ok(key.verifying_key());
        }
        let path = self.dir.join(holder.file()).with_extension("pub");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        release::keys::public_from_text(&text)
            .with_context(|| format!("{} is no public key", path.display()))
    }

    fn top(&self, version: u64, channels: &[Channel], now: Time) -> Result<Signed> {
        let named: Vec<(String, _)> = channels
            .iter()
            .map(|channel| {
                let key = self.public(&Holder::Channel(channel.clone()))?;
                Ok((channel.to_string(), vec![key]))
            })
            .collect::<Result<_>>()?;
        let named: Vec<(&str, _)> = named.iter().map(|(n, k)| (n.as_str(), k.clone())).collect();
        let top = Targets::top(version, self.until(now, self.lifetimes.targets)?, &named);
        Ok(seal(&top, &[&self.key(&Holder::Targets)?])?)
    }

    fn targets(&self, role: &str) -> Result<Targets> {
        let snapshot = self.snapshot()?;
        let name = format!("{role}.json");
        let meta = snapshot.meta.get(&name);
        let meta = meta.with_context(|| format!("the repository has no channel {role}"))?;
        read_signed(&self.path(&format!("{}.{name}", meta.version)))
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let timestamp: Timestamp = read_signed(&self.path("timestamp.json"))?;
        let meta = timestamp.meta.get("snapshot.json");
        let version = meta.context("timestamp.json names no snapshot")?.version;
        read_signed(&self.path(&format!("{version}.snapshot.json")))
    }

    /// Writes the changed targets, then a snapshot of all of them, then the timestamp.
    fn commit(&self, files: BTreeMap<String, (u64, Signed)>, now: Time) -> Result<()> {
        let key = self.key(&Holder::Online)?;
        let before = match self.path("timestamp.json").exists() {
            true => Some((
                read_signed::<Timestamp>(&self.path("timestamp.json"))?,
                self.snapshot()?,
            )),
            false => None,
        };
        let (timestamp_version, snapshot_version, mut meta) = match before {
            Some((timestamp, snapshot)) => {
                (timestamp.version + 1, snapshot.version + 1, snapshot.meta)
            }
            None => (1, 1, BTreeMap::new()),
        };
        for (role, (version, signed)) in files {
            let bytes = signed.to_bytes()?;
            self.write(&format!("{version}.{role}.json"), &bytes)?;
            meta.insert(format!("{role}.json"), FileMeta::of(version, &bytes));
        }
        let until = self.until(now, self.lifetimes.snapshot)?;
        let snapshot = Snapshot::of(snapshot_version, until, meta);
        let bytes = seal(&snapshot, &[&key])?.to_bytes()?;
        self.write(&format!("{snapshot_version}.snapshot.json"), &bytes)?;
        let until = self.until(now, self.lifetimes.timestamp)?;
        let named = FileMeta::of(snapshot_version, &bytes);
        let timestamp = Timestamp::of(timestamp_version, until, named);
        self.write("timestamp.json", &seal(&timestamp, &[&key])?.to_bytes()?)
    }

    /// In whole seconds: the specification's form of a time has no fractions.
    fn until(&self, now: Time, span: Span) -> Result<Time> {
        let until = now
            .checked_add(span)
            .context("that is too far in the future")?;
        Ok(Time::from_second(until.as_second())?)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join("repository").join(name)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path(name);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path(name);
        let mut part = path.clone().into_os_string();
        part.push(".part");
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(&path))?;
            fs::write(&part, bytes)?;
            fs::File::open(&part)?.sync_all()?;
            fs::rename(&part, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Those of the root keys that are here and that the root in force names: no other signature counts.
    fn root_keys(&self) -> Result<Vec<SigningKey>> {
        let root = self.root()?;
        let named = root.roles.get("root").map_or(&[][..], |role| &role.keyids);
        let here = (1..=ROOT_KEYS).filter_map(|n| self.key(&Holder::Root(n)).ok());
        Ok(here
            .filter(|key| named.contains(&release::tuf::sign::key(&key.verifying_key()).0))
            .collect())
    }

    /// Where a private key is or, if it is nowhere, belongs. The online one is beside the metadata unless the medium has it.
    fn key_path(&self, holder: &Holder) -> PathBuf {
        let (medium, beside) = (self.keys.join(holder.file()), self.dir.join(holder.file()));
        let beside = beside.exists() || *holder == Holder::Online;
        if beside && !medium.exists() {
            self.dir.join(holder.file())
        } else {
            medium
        }
    }

    fn key(&self, holder: &Holder) -> Result<SigningKey> {
        let path = self.key_path(holder);
        let pem = fs::read_to_string(&path)
            .with_context(|| format!("this needs the key {}", path.display()))?;
        from_pem(&pem).with_context(|| format!("{} is no key", path.display()))
    }

    fn create_key(&self, holder: &Holder) -> Result<()> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.key_path(holder);
        let key = generate()?;
        let create = || -> Result<()> {
            fs::create_dir_all(path.parent().unwrap_or(&path))?;
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(to_pem(&key)?.as_bytes())?;
            file.sync_all()?;
            let public = self.dir.join(holder.file()).with_extension("pub");
            fs::create_dir_all(public.parent().unwrap_or(&public))?;
            let name = holder.file();
            fs::write(
                public,
                release::keys::public_to_text(&key.verifying_key(), &name),
            )?;
            Ok(())
        };
        create().with_context(|| format!("cannot create {}", path.display()))
    }
}

fn lock(dir: &Path) -> Result<fs::File> {
    use rustix::fs::{FlockOperation, flock};
    let path = dir.join("lock");
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let end = Instant::now() + PATIENCE;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        ensure!(
            Instant::now() < end,
            "another orlop is at work on {}; wait for it or stop it",
            dir.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(file)
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_tree(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

fn manifest_of(release_dir: &Path) -> Result<Vec<u8>> {
    let path = release_dir.join(MANIFEST_FILE);
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn read_signed<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let read = || -> serde_json::Result<T> {
        let signed: Signed = serde_json::from_slice(&bytes)?;
        serde_json::from_value(signed.signed)
    };
    read().with_context(|| format!("{} is damaged", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
