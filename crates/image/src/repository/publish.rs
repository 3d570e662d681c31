//! What publishing, promoting and withdrawing mean for the metadata, and what of it hosts are to see.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Span, Timestamp as Time};
use release::dsse::Envelope;
use release::tuf::sign::seal;
use release::tuf::{TargetMeta, Targets, Timestamp, target_name};
use release::{Channel, MANIFEST_FILE, Version};

use super::{Holder, ROOT_THRESHOLD, Repository, manifest_of, read_signed};

impl Repository {
    /// As [`Self::add`], for who has a server that says which build of a version counts.
    pub fn publish(&self, channel: &Channel, release_dir: &Path, now: Time) -> Result<String> {
        let bytes = manifest_of(release_dir)?;
        self.ensure_channel(channel, now)?;
        self.put(channel, &bytes, true, now)
    }

    /// Gives a channel the release that another one has.
    pub fn promote(
        &self,
        from: &Channel,
        to: &Channel,
        version: &Version,
        now: Time,
    ) -> Result<String> {
        let name = target_name(from.as_str(), version);
        let there = self.targets(&from.to_string())?.targets.contains_key(&name);
        ensure!(
            there,
            "channel {from} has no signed version {version}; `orlop keys sign {version} --channel {to}` signs it"
        );
        let bytes = self.read(&name)?;
        self.ensure_channel(to, now)?;
        self.put(to, &bytes, true, now)
    }

    /// Takes a release out of all channels, and says out of which.
    pub fn withdraw_all(&self, version: &Version, now: Time) -> Result<Vec<Channel>> {
        let mut from = Vec::new();
        for channel in self.channels()? {
            let name = target_name(channel.as_str(), version);
            if self.targets(channel.as_str())?.targets.contains_key(&name) {
                self.withdraw(&channel, version, now)?;
                from.push(channel);
            }
        }
        Ok(from)
    }

    /// Puts a release back on the channels that it was taken out of.
    pub fn restore(&self, version: &Version, now: Time) -> Result<Vec<Channel>> {
        let mut to = Vec::new();
        for channel in self.channels()? {
            let name = target_name(channel.as_str(), version);
            let targets = self.targets(channel.as_str())?.targets;
            if self.path(&name).exists() && !targets.contains_key(&name) {
                self.put(&channel, &self.read(&name)?, true, now)?;
                to.push(channel);
            }
        }
        Ok(to)
    }

    pub(super) fn put(
        &self,
        channel: &Channel,
        bytes: &[u8],
        replace: bool,
        now: Time,
    ) -> Result<String> {
        not_reserved(channel)?;
        let manifest = Envelope::parse(bytes)
            .and_then(|it| it.unverified_manifest())
            .context("that is no signed manifest")?;
        let name = target_name(channel.as_str(), &manifest.version);
        let extensions: BTreeMap<_, _> = manifest
            .extensions
            .iter()
            .map(|it| (it.name.as_str(), it.root_hash))
            .collect();
        let custom = serde_json::json!({
            "version": manifest.version,
            "epoch": manifest.epoch,
            "minimum_source_version": manifest.minimum_source_version,
            "architecture": manifest.architecture,
            "root_hash": manifest.usr.root_hash,
            "uki_sha256": manifest.uki.sha256,
            "index_sha256": manifest.usr.index.as_ref().map(|index| index.sha256),
            "extensions": extensions,
        });
        let mut targets = self.targets(&channel.to_string())?;
        let meta = TargetMeta::of(bytes, Some(custom));
        if let Some(old) = targets.targets.get(&name) {
            ensure!(
                replace || old.hashes == meta.hashes,
                "channel {channel} has another build of version {}: a signed release never changes",
                manifest.version
            );
        }
        targets.targets.insert(name.clone(), meta);
        targets.version += 1;
        targets.expires = self.until(now, self.lifetimes.targets)?;
        let key = self.key(&Holder::Channel(channel.clone()))?;
        self.write(&name, bytes)?;
        let files = [(
            channel.to_string(),
            (targets.version, seal(&targets, &[&key])?),
        )];
        self.commit(files.into(), now)?;
        Ok(name)
    }

    /// A new channel gets a key of its own; the key of targets says so.
    pub fn ensure_channel(&self, channel: &Channel, now: Time) -> Result<()> {
        not_reserved(channel)?;
        let mut channels = self.channels()?;
        if channels.contains(channel) {
            return Ok(());
        }
        // Everything that will sign has to be here before anything changes.
        self.key(&Holder::Targets)?;
        self.key(&Holder::Online)?;
        let holder = Holder::Channel(channel.clone());
        if !self.key_path(&holder).exists() {
            self.create_key(&holder)?;
        }
        channels.push(channel.clone());
        let version = self.targets("targets")?.version + 1;
        let targets = Targets::of(1, self.until(now, self.lifetimes.targets)?, BTreeMap::new());
        let files = BTreeMap::from([
            (
                "targets".into(),
                (version, self.top(version, &channels, now)?),
            ),
            (
                channel.to_string(),
                (1, seal(&targets, &[&self.key(&holder)?])?),
            ),
        ]);
        self.commit(files, now)
    }

    /// Signs again what is half over, as far as the keys are here.
    pub fn renew(&self, now: Time) -> Result<()> {
        let old = |expires: Time, lifetime: Span| -> Result<bool> {
            let half = SignedDuration::try_from(lifetime)? / 2;
            Ok(expires < now.checked_add(half)?)
        };
        let root = self.root()?;
        let roots = self.root_keys()?;
        let new_root =
            old(root.expires, self.lifetimes.root)? && roots.len() >= ROOT_THRESHOLD as usize;
        if new_root {
            self.write_root(root.version + 1, &roots.iter().collect::<Vec<_>>(), now)?;
        }
        let mut files = BTreeMap::new();
        let top = self.targets("targets")?;
        let channels = self.channels()?;
        if old(top.expires, self.lifetimes.targets)? && self.key(&Holder::Targets).is_ok() {
            let version = top.version + 1;
            files.insert(
                "targets".into(),
                (version, self.top(version, &channels, now)?),
            );
        }
        for channel in channels {
            let mut targets = self.targets(channel.as_str())?;
            if let Ok(key) = self.key(&Holder::Channel(channel.clone()))
                && old(targets.expires, self.lifetimes.targets)?
            {
                targets.version += 1;
                targets.expires = self.until(now, self.lifetimes.targets)?;
                files.insert(
                    channel.to_string(),
                    (targets.version, seal(&targets, &[&key])?),
                );
            }
        }
        let timestamp: Timestamp = read_signed(&self.path("timestamp.json"))?;
        let online = old(timestamp.expires, self.lifetimes.timestamp)?
            || old(self.snapshot()?.expires, self.lifetimes.snapshot)?;
        if files.is_empty() && !new_root && !online {
            return Ok(());
        }
        self.commit(files, now)
    }

    /// All that a host is to see, in the order in which it may appear: what names others comes last.
    pub fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut names: Vec<String> = (1u64..)
            .map(|n| format!("{n}.root.json"))
            .take_while(|name| self.path(name).exists())
            .collect();
        let snapshot = self.snapshot()?;
        for channel in self.channels()? {
            names.extend(self.targets(channel.as_str())?.targets.into_keys());
        }
        for (role, meta) in &snapshot.meta {
            names.push(format!("{}.{role}", meta.version));
        }
        names.push(format!("{}.snapshot.json", snapshot.version));
        names.push("timestamp.json".into());
        names
            .into_iter()
            .map(|name| Ok((name.clone(), self.read(&name)?)))
            .collect()
    }

    /// Writes what a host needs to update without a network: the metadata, and the release in a
    /// directory named after its version. Returns the channels that it is on, and its bytes.
    pub fn export(&self, release_dir: &Path, to: &Path) -> Result<(Vec<String>, u64)> {
        let manifest_bytes = manifest_of(release_dir)?;
        let manifest = Envelope::parse(&manifest_bytes)
            .and_then(|it| it.unverified_manifest())
            .with_context(|| format!("{} holds no signed manifest", release_dir.display()))?;
        let mut channels = Vec::new();
        for channel in self.channels()? {
            let name = target_name(channel.as_str(), &manifest.version);
            let target = self.targets(channel.as_str())?.targets.remove(&name);
            if target.is_some_and(|it| it.check(&name, &manifest_bytes).is_ok()) {
                channels.push(channel.to_string());
            }
        }
        ensure!(
            !channels.is_empty(),
            "no channel has this build of version {}; --channel NAME signs it into one",
            manifest.version
        );
        let dir = to.join(manifest.version.to_string());
        let mut bytes = 0;
        for file in manifest.files() {
            let (from, to) = (release_dir.join(&file.name), dir.join(&file.name));
            copy_whole(&from, &to)?;
            bytes += file.size;
        }
        write_whole(&dir.join(MANIFEST_FILE), &manifest_bytes)?;
        // The metadata last, and of it the timestamp: until then a host sees the tree of before.
        for (name, bytes) in self.files()? {
            write_whole(&to.join("tuf").join(name), &bytes)?;
        }
        Ok((channels, bytes))
    }
}

/// A channel is a role, and its metadata a file of its name beside those of TUF's own roles.
pub(super) fn not_reserved(channel: &Channel) -> Result<()> {
    ensure!(
        !["root", "targets", "snapshot", "timestamp"].contains(&channel.as_str()),
        "{channel} cannot be a channel here: TUF's own metadata has that name"
    );
    Ok(())
}

fn copy_whole(from: &Path, to: &Path) -> Result<()> {
    let part = part_of(to)?;
    fs::copy(from, &part)
        .with_context(|| format!("cannot copy {} to {}", from.display(), part.display()))?;
    finish(&part, to)
}

fn write_whole(to: &Path, bytes: &[u8]) -> Result<()> {
    let part = part_of(to)?;
    fs::write(&part, bytes).with_context(|| format!("cannot write {}", part.display()))?;
    finish(&part, to)
}

fn part_of(to: &Path) -> Result<PathBuf> {
    let dir = to.parent().unwrap_or(to);
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut part = to.as_os_str().to_owned();
    part.push(".part");
    Ok(part.into())
}

/// A stick may be pulled as soon as we say that it is done.
fn finish(part: &Path, to: &Path) -> Result<()> {
    fs::File::open(part)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(part, to))
        .with_context(|| format!("cannot write {}", to.display()))
}
