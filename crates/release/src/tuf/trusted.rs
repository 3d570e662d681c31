//! The client's workflow. Each step takes the bytes of one file and either moves on or says which
//! attack (or mistake) it looks like.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::{Signature as Bytes, VerifyingKey};
use jiff::Timestamp as Time;
use serde::de::DeserializeOwned;

use super::canonical;
use super::metadata::{
    Common, Delegation, FileMeta, Key, Kind, Role, Root, Signed, Snapshot, TargetMeta, Targets,
    Timestamp,
};
use crate::Sha256;

/// What goes to the server as `errorcode`; one for each class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// It is no metadata of a form that we read.
    Malformed = 60,
    /// Signed by too few of those who may.
    BelowThreshold = 61,
    /// Signed as something else than what it is used for.
    WrongRole = 62,
    /// An older file than one that was seen before.
    Rollback = 63,
    /// Valid once, but no longer: the world may be kept from us.
    Expired = 64,
    /// Files that do not belong together.
    MixAndMatch = 65,
    /// More bytes than such a file can have.
    Endless = 66,
    /// The target is not the one that was signed.
    WrongTarget = 67,
    /// The channel has no such target, or no role speaks for it.
    NoTarget = 68,
    /// A newer file that takes back what was seen before.
    TakenBack = 69,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TufError {
    #[error("{file}: this is no TUF metadata: {why}")]
    Malformed { file: String, why: String },
    #[error(
        "{file} has valid signatures of {got} of the keys that may sign it, and needs {need}: it was changed, or signed by somebody else"
    )]
    BelowThreshold { file: String, got: u32, need: u32 },
    #[error("{file} is signed as {got}, not as what it is called")]
    WrongRole { file: String, got: String },
    #[error(
        "{file} has version {got}, this host has seen {seen}: somebody replays old metadata, or the server was set back"
    )]
    Rollback { file: String, got: u64, seen: u64 },
    #[error(
        "{by} is signed and no older than the one that this host has seen, but names version {got} of {file}, of which the host has seen {seen}: the publisher was set back, or somebody else has the key"
    )]
    TakenBack {
        file: String,
        by: &'static str,
        got: u64,
        seen: u64,
    },
    #[error(
        "{file} expired at {at}: the server does not renew it, somebody withholds newer metadata, or this host's clock is wrong"
    )]
    Expired { file: String, at: Time },
    #[error("{file} does not belong to the others: {why}")]
    MixAndMatch { file: String, why: String },
    #[error("{file} has more than {limit} bytes")]
    Endless { file: String, limit: u64 },
    #[error("{path} is not the signed target: {why}")]
    WrongTarget { path: String, why: String },
    #[error("{0}")]
    NoTarget(String),
}

impl TufError {
    pub fn code(&self) -> Code {
        match self {
            Self::Malformed { .. } => Code::Malformed,
            Self::BelowThreshold { .. } => Code::BelowThreshold,
            Self::WrongRole { .. } => Code::WrongRole,
            Self::Rollback { .. } => Code::Rollback,
            Self::Expired { .. } => Code::Expired,
            Self::MixAndMatch { .. } => Code::MixAndMatch,
            Self::Endless { .. } => Code::Endless,
            Self::WrongTarget { .. } => Code::WrongTarget,
            Self::NoTarget(_) => Code::NoTarget,
            Self::TakenBack { .. } => Code::TakenBack,
        }
    }
}

/// How much of a file is looked at, whoever signed it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub root: u64,
    pub timestamp: u64,
    pub snapshot: u64,
    pub targets: u64,
    /// Versions of root that one update goes through.
    pub roots: u64,
}

impl Limits {
    pub const DEFAULT: Self = Self {
        root: 512 << 10,
        timestamp: 16 << 10,
        snapshot: 2 << 20,
        targets: 5 << 20,
        roots: 256,
    };
}

/// What is believed so far.
#[derive(Clone, Debug)]
pub struct Trusted {
    now: Time,
    /// The operator said so: the network is away, and what is here is old.
    allow_expired: bool,
    root: Root,
    timestamp: Option<Timestamp>,
    snapshot: Option<Snapshot>,
    targets: Option<Targets>,
}

impl Trusted {
    /// From the root that came with the running release, or a later one that was believed before.
    pub fn new(root: &[u8], now: Time, allow_expired: bool) -> Result<Self, TufError> {
        let signed = parse("root.json", root, Limits::DEFAULT.root)?;
        let root: Root = typed("root.json", &signed, Kind::Root)?;
        check_root(&root, &signed)?;
        Ok(Self {
            now,
            allow_expired,
            root,
            timestamp: None,
            snapshot: None,
            targets: None,
        })
    }

    pub fn root(&self) -> &Root {
        &self.root
    }

    /// What the next root is called, if there is one.
    pub fn next_root(&self) -> String {
        format!("{}.root.json", self.root.version + 1)
    }

    /// A newer root: signed by the old one's keys and by its own (5.3).
    pub fn update_root(&mut self, bytes: &[u8]) -> Result<(), TufError> {
        let file = self.next_root();
        let signed = parse(&file, bytes, Limits::DEFAULT.root)?;
        let root: Root = typed(&file, &signed, Kind::Root)?;
        check(
            &file,
            &signed,
            &self.root.keys,
            role(&file, &self.root, "root")?,
        )?;
        check_root(&root, &signed)?;
        let (got, want) = (root.version, self.root.version + 1);
        if got < want {
            let seen = self.root.version;
            return Err(TufError::Rollback { file, got, seen });
        }
        if got > want {
            let why = format!("it has version {got}");
            return Err(TufError::MixAndMatch { file, why });
        }
        // Keys may have changed: whatever they vouched for has to be vouched for again.
        (self.timestamp, self.snapshot, self.targets) = (None, None, None);
        self.root = root;
        Ok(())
    }

    /// There is no newer root: this one must be valid now.
    pub fn finish_root(&self) -> Result<(), TufError> {
        self.not_expired("root.json", self.root.expires)
    }

    /// `seen`: the file that was believed last time.
    pub fn update_timestamp(&mut self, bytes: &[u8], seen: Option<&[u8]>) -> Result<(), TufError> {
        let file = "timestamp.json";
        let read = |bytes: &[u8]| -> Result<Timestamp, TufError> {
            let signed = parse(file, bytes, Limits::DEFAULT.timestamp)?;
            check(
                file,
                &signed,
                &self.root.keys,
                role(file, &self.root, "timestamp")?,
            )?;
            typed(file, &signed, Kind::Timestamp)
        };
        let timestamp = read(bytes)?;
        let snapshot = meta(file, &timestamp.meta, "snapshot.json")?;
        // What was seen with keys that have been replaced since is no measure.
        if let Some(seen) = seen.and_then(|seen| read(seen).ok()) {
            not_older(file, timestamp.version, seen.version)?;
            let before = meta(file, &seen.meta, "snapshot.json")?;
            not_taken_back(file, "snapshot.json", snapshot.version, before.version)?;
        }
        self.not_expired(file, timestamp.expires)?;
        self.timestamp = Some(timestamp);
        Ok(())
    }

    /// What the snapshot is called that the timestamp names, and how long it may be.
    pub fn snapshot_file(&self) -> Option<(String, u64)> {
        let meta = self.timestamp.as_ref()?.meta.get("snapshot.json")?;
        let limit = meta.length.unwrap_or(Limits::DEFAULT.snapshot);
        Some((self.named(meta.version, "snapshot"), limit))
    }

    pub fn update_snapshot(&mut self, bytes: &[u8], seen: Option<&[u8]>) -> Result<(), TufError> {
        let file = "snapshot.json";
        let Some(timestamp) = &self.timestamp else {
            return Err(out_of_order(file, "timestamp.json"));
        };
        let meta = meta(file, &timestamp.meta, file)?;
        belongs(file, bytes, meta)?;
        let read = |bytes: &[u8]| -> Result<Snapshot, TufError> {
            let signed = parse(file, bytes, Limits::DEFAULT.snapshot)?;
            check(
                file,
                &signed,
                &self.root.keys,
                role(file, &self.root, "snapshot")?,
            )?;
            typed(file, &signed, Kind::Snapshot)
        };
        let snapshot = read(bytes)?;
        same_version(file, snapshot.version, meta.version)?;
        if let Some(seen) = seen.and_then(|seen| read(seen).ok()) {
            for (name, before) in &seen.meta {
                let Some(now) = snapshot.meta.get(name) else {
                    let why = format!("{name} is not named any more");
                    return Err(TufError::MixAndMatch {
                        file: file.into(),
                        why,
                    });
                };
                not_taken_back(file, name, now.version, before.version)?;
            }
        }
        self.not_expired(file, snapshot.expires)?;
        self.snapshot = Some(snapshot);
        Ok(())
    }

    /// What a role's targets are called, and how long they may be. `role` is `targets` or a channel.
    pub fn targets_file(&self, role: &str) -> Option<(String, u64)> {
        let name = format!("{role}.json");
        let meta = self.snapshot.as_ref()?.meta.get(&name)?;
        let limit = meta.length.unwrap_or(Limits::DEFAULT.targets);
        Some((self.named(meta.version, role), limit))
    }

    pub fn update_targets(&mut self, bytes: &[u8]) -> Result<(), TufError> {
        let role = role("targets.json", &self.root, "targets")?.clone();
        let keys = self.root.keys.clone();
        self.targets = Some(self.read_targets("targets.json", bytes, &keys, &role)?);
        Ok(())
    }

    /// Whether a role speaks for the channel. Asked once the targets are believed.
    pub fn has_channel(&self, channel: &str) -> bool {
        self.delegation(channel).is_some()
    }

    fn delegation(&self, channel: &str) -> Option<(&Delegation, &BTreeMap<String, Key>)> {
        let delegations = self.targets.as_ref()?.delegations.as_ref()?;
        let role = delegations.roles.iter().find(|role| role.name == channel)?;
        Some((role, &delegations.keys))
    }

    /// What a channel's role says, as far as it is entitled to speak of it.
    pub fn channel(&self, channel: &str, bytes: &[u8]) -> Result<ChannelTargets, TufError> {
        let file = format!("{channel}.json");
        if self.targets.is_none() {
            return Err(out_of_order(&file, "targets.json"));
        }
        let (delegation, keys) = self
            .delegation(channel)
            .ok_or_else(|| TufError::NoTarget(format!("no role speaks for channel {channel}")))?;
        let role = Role {
            keyids: delegation.keyids.clone(),
            threshold: delegation.threshold,
        };
        let targets = self.read_targets(&file, bytes, keys, &role)?;
        Ok(ChannelTargets {
            channel: channel.to_owned(),
            delegation: delegation.clone(),
            targets: targets.targets,
        })
    }

    /// The signed description of `path`, which a channel's role must be entitled to speak of.
    pub fn target(&self, channel: &str, bytes: &[u8], path: &str) -> Result<TargetMeta, TufError> {
        self.channel(channel, bytes)?.get(path).cloned()
    }

    fn read_targets(
        &self,
        file: &str,
        bytes: &[u8],
        keys: &BTreeMap<String, Key>,
        role: &Role,
    ) -> Result<Targets, TufError> {
        let Some(snapshot) = &self.snapshot else {
            return Err(out_of_order(file, "snapshot.json"));
        };
        let meta = meta(file, &snapshot.meta, file)?;
        belongs(file, bytes, meta)?;
        let signed = parse(file, bytes, Limits::DEFAULT.targets)?;
        check(file, &signed, keys, role)?;
        let targets: Targets = typed(file, &signed, Kind::Targets)?;
        same_version(file, targets.version, meta.version)?;
        self.not_expired(file, targets.expires)?;
        Ok(targets)
    }

    fn named(&self, version: u64, role: &str) -> String {
        match self.root.consistent_snapshot {
            true => format!("{version}.{role}.json"),
            false => format!("{role}.json"),
        }
    }

    fn not_expired(&self, file: &str, at: Time) -> Result<(), TufError> {
        match self.now < at || self.allow_expired {
            true => Ok(()),
            false => Err(TufError::Expired {
                file: file.into(),
                at,
            }),
        }
    }
}

/// The targets of a channel, from a role that was believed.
#[derive(Clone, Debug)]
pub struct ChannelTargets {
    pub channel: String,
    delegation: Delegation,
    targets: BTreeMap<String, TargetMeta>,
}

impl ChannelTargets {
    pub fn get(&self, path: &str) -> Result<&TargetMeta, TufError> {
        let channel = &self.channel;
        if !self.delegation.allows(path) {
            return Err(TufError::NoTarget(format!(
                "the role of channel {channel} may not speak of {path}"
            )));
        }
        self.targets
            .get(path)
            .ok_or_else(|| TufError::NoTarget(format!("channel {channel} has no target {path}")))
    }

    /// All that the role may speak of.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TargetMeta)> {
        let all = self.targets.iter();
        all.map(|(path, meta)| (path.as_str(), meta))
            .filter(|(path, _)| self.delegation.allows(path))
    }
}

impl TargetMeta {
    /// Whether these bytes are the target.
    pub fn check(&self, path: &str, bytes: &[u8]) -> Result<(), TufError> {
        let why = if bytes.len() as u64 != self.length {
            format!("it has {} bytes, {} were signed", bytes.len(), self.length)
        } else if Sha256::of(bytes) != self.hashes.sha256 {
            format!("it has the SHA-256 {}", Sha256::of(bytes))
        } else {
            return Ok(());
        };
        Err(TufError::WrongTarget {
            path: path.into(),
            why,
        })
    }
}

fn parse(file: &str, bytes: &[u8], limit: u64) -> Result<Signed, TufError> {
    if bytes.len() as u64 > limit {
        return Err(TufError::Endless {
            file: file.into(),
            limit,
        });
    }
    serde_json::from_slice(bytes).map_err(|e| malformed(file, e))
}

fn malformed(file: &str, why: impl ToString) -> TufError {
    TufError::Malformed {
        file: file.into(),
        why: why.to_string(),
    }
}

/// Reads what was signed as what it has to be.
fn typed<T: DeserializeOwned>(file: &str, signed: &Signed, kind: Kind) -> Result<T, TufError> {
    let common: Common =
        serde_json::from_value(signed.signed.clone()).map_err(|e| malformed(file, e))?;
    if common.kind != kind {
        return Err(TufError::WrongRole {
            file: file.into(),
            got: format!("{:?}", common.kind).to_lowercase(),
        });
    }
    if !common.spec_version.starts_with("1.") {
        let why = format!("it follows specification {}", common.spec_version);
        return Err(malformed(file, why));
    }
    if common.version == 0 {
        return Err(malformed(file, "versions begin with 1"));
    }
    serde_json::from_value(signed.signed.clone()).map_err(|e| malformed(file, e))
}

fn role<'a>(file: &str, root: &'a Root, name: &str) -> Result<&'a Role, TufError> {
    root.roles
        .get(name)
        .ok_or_else(|| malformed(file, format!("the root names no role {name}")))
}

fn check_root(root: &Root, signed: &Signed) -> Result<(), TufError> {
    for name in ["root", "timestamp", "snapshot", "targets"] {
        role("root.json", root, name)?;
    }
    check(
        "root.json",
        signed,
        &root.keys,
        role("root.json", root, "root")?,
    )
}

/// Enough different keys of the role signed exactly this.
fn check(
    file: &str,
    signed: &Signed,
    keys: &BTreeMap<String, Key>,
    role: &Role,
) -> Result<(), TufError> {
    if role.threshold == 0 {
        return Err(malformed(file, "a threshold of 0 trusts everybody"));
    }
    let message = canonical::bytes(&signed.signed)
        .ok_or_else(|| malformed(file, "it has numbers that are no integers"))?;
    // By the key itself: one that is listed under two names counts once.
    let mut signers = BTreeSet::new();
    for id in &role.keyids {
        let key = keys.get(id).and_then(Key::verifying);
        let signature = signed.signatures.iter().find(|s| s.keyid == *id);
        let (Some(key), Some(signature)) = (key, signature) else {
            continue;
        };
        let bytes = hex::decode(&signature.sig).unwrap_or_default();
        let good = Bytes::from_slice(&bytes).is_ok_and(|s| key.verify_strict(&message, &s).is_ok());
        if good {
            signers.insert(key.to_bytes());
        }
    }
    let got = u32::try_from(signers.len()).unwrap_or(u32::MAX);
    if got < role.threshold {
        return Err(TufError::BelowThreshold {
            file: file.into(),
            got,
            need: role.threshold,
        });
    }
    Ok(())
}

impl Key {
    fn verifying(&self) -> Option<VerifyingKey> {
        if self.keytype != "ed25519" || self.scheme != "ed25519" {
            return None;
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(&self.keyval.public, &mut bytes).ok()?;
        VerifyingKey::from_bytes(&bytes).ok()
    }
}

fn meta<'a>(
    file: &str,
    all: &'a BTreeMap<String, FileMeta>,
    name: &str,
) -> Result<&'a FileMeta, TufError> {
    all.get(name).ok_or_else(|| TufError::MixAndMatch {
        file: file.into(),
        why: format!("{name} is not named where it should be"),
    })
}

fn belongs(file: &str, bytes: &[u8], meta: &FileMeta) -> Result<(), TufError> {
    if let Some(limit) = meta.length.filter(|length| bytes.len() as u64 > *length) {
        return Err(TufError::Endless {
            file: file.into(),
            limit,
        });
    }
    let hash = meta.hashes.as_ref().map(|hashes| hashes.sha256);
    if hash.is_some_and(|hash| hash != Sha256::of(bytes)) {
        return Err(TufError::MixAndMatch {
            file: file.into(),
            why: "another digest was announced".into(),
        });
    }
    Ok(())
}

fn same_version(file: &str, got: u64, want: u64) -> Result<(), TufError> {
    match got == want {
        true => Ok(()),
        false => Err(TufError::MixAndMatch {
            file: file.into(),
            why: format!("it has version {got}, {want} was announced"),
        }),
    }
}

fn not_older(file: &str, got: u64, seen: u64) -> Result<(), TufError> {
    match got >= seen {
        true => Ok(()),
        false => Err(TufError::Rollback {
            file: file.into(),
            got,
            seen,
        }),
    }
}

fn not_taken_back(by: &'static str, file: &str, got: u64, seen: u64) -> Result<(), TufError> {
    match got >= seen {
        true => Ok(()),
        false => Err(TufError::TakenBack {
            file: file.into(),
            by,
            got,
            seen,
        }),
    }
}

fn out_of_order(file: &str, before: &str) -> TufError {
    TufError::MixAndMatch {
        file: file.into(),
        why: format!("{before} comes first"),
    }
}
