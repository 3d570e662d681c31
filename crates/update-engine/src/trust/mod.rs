//! Which releases this host believes: TUF's client workflow with its IO.
//!
//! The root is part of the verified `/usr`. Daemon and writer go through the same workflow, each with
//! a [`Store`] of its own for the highest versions it has seen: the daemon from the network, the
//! writer from what the daemon stored. Whoever takes over the daemon can therefore hand the writer
//! neither a release that is on no channel of this host's nor metadata older than the writer saw.
//! Nor can whoever turns the clock back: see [`clock`].

mod clock;
mod overrides;
mod source;
mod store;

use std::path::Path;

use release::tuf::{ChannelTargets, Limits, Trusted, TufError, target_name};
use release::{Channel, Version};

pub(crate) use clock::Clock;
pub(crate) use overrides::Overrides;
pub(crate) use source::{FromDirectory, FromNetwork, NoFile, Source};
pub(crate) use store::Store;

use crate::memory::Code;

/// The channel that a group is on which is no channel itself.
const DEFAULT_CHANNEL: &str = "stable";

#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    #[error("{0}")]
    Tuf(#[from] TufError),
    /// The metadata did not come.
    #[error("{0}")]
    Away(String),
    #[error("{path}: cannot {what}: {source}")]
    File {
        path: std::path::PathBuf,
        what: &'static str,
        source: std::io::Error,
    },
}

impl TrustError {
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Tuf(error) => error.code().into(),
            Self::Away(_) => Code::Server,
            Self::File { .. } => Code::Download,
        }
    }
}

/// Whose releases this host takes: `CHANNEL=`, else `GROUP=` if that is a channel, else stable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follow {
    pub channel: Option<Channel>,
    pub group: Channel,
}

/// The root that came with the running release. None: this release believes signatures of
/// manifests alone.
pub(crate) fn baked_root(path: &Path) -> Result<Option<Vec<u8>>, TrustError> {
    match std::fs::read(path) {
        Ok(root) => Ok(Some(root)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TrustError::File {
            path: path.into(),
            what: "read",
            source,
        }),
    }
}

/// Section 5 of the specification, from root to the channel's targets. Each file is stored as soon
/// as it is believed, so that an attack in the middle cannot undo what was learned before it.
pub(crate) fn refresh(
    root: &[u8],
    store: &Store,
    source: &dyn Source,
    follow: &Follow,
    clock: &Clock,
    overrides: Overrides,
) -> Result<ChannelTargets, TrustError> {
    let now = clock.judged(store);
    if clock.now < now {
        let says = clock.now;
        tracing::warn!(
            "the clock says {says}, but it is {now} at least: metadata is judged by that"
        );
    }
    let trusted = Trusted::new(root, now, overrides.allow_expired)?;
    let targets = follow_chain(trusted, store, source, follow, overrides);
    // What was let through although it had expired says nothing about the time.
    let unexpired = targets.is_ok() && !overrides.allow_expired;
    clock.note(store, unexpired.then_some(now));
    targets
}

fn follow_chain(
    mut trusted: Trusted,
    store: &Store,
    source: &dyn Source,
    follow: &Follow,
    overrides: Overrides,
) -> Result<ChannelTargets, TrustError> {
    // From `/usr` on through everything that was gone through before: a stored root is believed
    // only as a link of this chain.
    while let Some(bytes) = store.read(&trusted.next_root()) {
        if trusted.update_root(&bytes).is_err() {
            break;
        }
    }
    for _ in 0..Limits::DEFAULT.roots {
        let file = trusted.next_root();
        match source.get(&file, &file, Limits::DEFAULT.root) {
            Ok(bytes) => {
                trusted.update_root(&bytes)?;
                store.write(&file, &bytes)?;
            }
            Err(NoFile::Missing(_)) => break,
            Err(e) => return Err(e.into()),
        }
    }
    trusted.finish_root()?;

    // What was seen, unless the operator says that the publisher was set back.
    let seen = |file: &str| store.read(file).filter(|_| !overrides.allow_rollback);
    let file = "timestamp.json";
    let bytes = source.get(file, file, Limits::DEFAULT.timestamp)?;
    trusted.update_timestamp(&bytes, seen(file).as_deref())?;
    store.write(file, &bytes)?;

    let at = trusted.snapshot_file();
    let seen = seen("snapshot.json");
    take(store, source, "snapshot", at, |bytes| {
        trusted.update_snapshot(bytes, seen.as_deref())
    })?;
    let at = trusted.targets_file("targets");
    take(store, source, "targets", at, |bytes| {
        trusted.update_targets(bytes)
    })?;

    let group = Some(follow.group.as_str()).filter(|group| trusted.has_channel(group));
    let named = follow.channel.as_ref().map(Channel::as_str).or(group);
    let channel = named.unwrap_or(DEFAULT_CHANNEL);
    if !trusted.has_channel(channel) {
        return Err(TufError::NoTarget(format!(
            "nobody speaks for channel {channel}: set GROUP= or CHANNEL= in /etc/coreos/update.conf to one that is signed"
        ))
        .into());
    }
    let at = trusted.targets_file(channel);
    take(store, source, channel, at, |bytes| {
        trusted.channel(channel, bytes)
    })
}

/// The stored file, if it is what is asked for; else from the source.
fn take<T>(
    store: &Store,
    source: &dyn Source,
    role: &str,
    at: Option<(String, u64)>,
    mut read: impl FnMut(&[u8]) -> Result<T, TufError>,
) -> Result<T, TrustError> {
    let stored = format!("{role}.json");
    let (file, limit) = at.ok_or_else(|| TufError::MixAndMatch {
        file: stored.clone(),
        why: "the snapshot does not name it".into(),
    })?;
    if let Some(bytes) = store.read(&stored)
        && let Ok(it) = read(&bytes)
    {
        return Ok(it);
    }
    let bytes = source.get(&stored, &file, limit)?;
    let it = read(&bytes)?;
    store.write(&stored, &bytes)?;
    Ok(it)
}

/// Whether these bytes are the manifest that the channel has for the version.
pub(crate) fn check_manifest(
    targets: &ChannelTargets,
    version: &Version,
    bytes: &[u8],
) -> Result<(), TufError> {
    let path = target_name(&targets.channel, version);
    targets.get(&path)?.check(&path, bytes)
}

#[cfg(test)]
mod tests;
