//! Extensions: parts of `/usr` that a release has for those hosts that want them.
//!
//! `/etc/orlop/extensions` names them. The daemon fetches those of a release before it has the release written, and
//! those of the running release when it asks the server. `update-engine extensions`, which is root and has no network,
//! believes none of it but the signed manifest: it copies an image to where the daemon cannot write, looks whether
//! the copy has the root hash in the manifest, and links it to where systemd-sysext looks.
//!
//! An extension is laid over the release that it was built with, and no other: each release has its own.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use disk::verity::Hasher;
use host::{child, extensions, under};
use release::dsse::{Envelope, MAX_ENVELOPE};
use release::{Extension, ExtensionName, MANIFEST_FILE, Manifest, Sha256, Verified};
use rustix::fs::FlockOperation;

use crate::keys;
use crate::paths::Paths;
use crate::slots::Source;

/// What is copied at a time.
const CHUNK: usize = 1 << 20;
/// 32 MiB: what unpacking may cost in memory.
const WINDOW_LOG_MAX: u32 = 25;
const PATIENCE: Duration = Duration::from_secs(30);

fn fetched(paths: &Paths, release: Sha256, name: &ExtensionName) -> PathBuf {
    let dir = paths.fetched_extensions().join(release.to_string());
    dir.join(format!("{name}.sysext"))
}

fn verified(paths: &Paths, release: Sha256, name: &ExtensionName) -> PathBuf {
    let dir = paths.extensions().join(release.to_string());
    dir.join(format!("{name}.raw"))
}

/// Of those that this host wants, for one release.
#[derive(Debug, Default)]
pub(crate) struct Open {
    /// To be fetched.
    pub missing: Vec<ExtensionName>,
    /// Some are here, and not linked for all that: word of them was lost.
    pub unlinked: bool,
}

pub(crate) fn open(paths: &Paths, release: Sha256) -> Result<Open, extensions::ListError> {
    let wanted = extensions::wanted(paths.root())?;
    let (here, missing): (Vec<_>, _) = wanted.into_iter().partition(|name| {
        verified(paths, release, name).exists() || fetched(paths, release, name).exists()
    });
    let is_linked = |name| {
        let link = fs::read_link(paths.merged_extensions().join(format!("{name}.raw")));
        link.is_ok_and(|to| to == verified(paths, release, name))
    };
    Ok(Open {
        missing,
        unlinked: !here.iter().all(is_linked),
    })
}

/// Unpacks what was downloaded, and has it verified later.
pub(crate) fn arrived(
    paths: &Paths,
    manifest: &Manifest,
    extension: &Extension,
    packed: &Path,
) -> anyhow::Result<()> {
    let to = fetched(paths, manifest.usr.root_hash, &extension.name);
    let file = File::open(packed).with_context(|| format!("cannot read {}", packed.display()))?;
    let mut decoder = zstd::Decoder::new(file)?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    copy(decoder, extension, &to, 0o644)?;
    fs::remove_file(packed).with_context(|| format!("cannot remove {}", packed.display()))
}

/// The manifest that says what these are. It comes before them: what is here without it is of no use, and not missing.
pub(crate) fn expect(paths: &Paths, release: Sha256, envelope: &str) -> anyhow::Result<()> {
    let dir = paths.fetched_extensions().join(release.to_string());
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    host::atomic::sweep(&dir);
    host::atomic::write(&dir.join(MANIFEST_FILE), envelope.as_bytes(), 0o644, None)?;
    Ok(())
}

/// Word to whoever waits.
pub(crate) fn announce(paths: &Paths, release: Sha256) -> anyhow::Result<()> {
    let release = release.to_string();
    host::atomic::write(&paths.extensions_arrived(), release.as_bytes(), 0o644, None)?;
    Ok(())
}

/// A file with exactly the extension's image, or none.
fn copy(from: impl Read, extension: &Extension, to: &Path, mode: u32) -> anyhow::Result<()> {
    let part = to.with_extension("part");
    let made = write(from, extension, &part, mode).and_then(|()| {
        fs::rename(&part, to).with_context(|| format!("cannot make {}", to.display()))
    });
    if made.is_err() {
        let _ = fs::remove_file(&part);
    }
    made
}

fn write(mut from: impl Read, extension: &Extension, to: &Path, mode: u32) -> anyhow::Result<()> {
    let name = &extension.name;
    let _ = fs::remove_file(to);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(to)
        .with_context(|| format!("cannot make {}", to.display()))?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    loop {
        let len = disk::io::fill(&mut from, &mut buffer)
            .with_context(|| format!("the extension {name}"))?;
        done += len as u64;
        // Before it fills the disk.
        ensure!(
            done <= extension.size,
            "the extension {name} has more than {} bytes",
            extension.size
        );
        if len == 0 {
            break;
        }
        hasher.update(&buffer[..len]);
        file.write_all(&buffer[..len])
            .with_context(|| format!("cannot write {}", to.display()))?;
    }
    ensure!(
        done == extension.size,
        "the extension {name} ends after {done} of {} bytes",
        extension.size
    );
    let root = hasher.finish()?.root;
    ensure!(
        root.0 == extension.root_hash.0,
        "the extension {name} has root hash {root}, the manifest says {}",
        extension.root_hash
    );
    file.sync_all()
        .with_context(|| format!("cannot flush {}", to.display()))
}

/// Removes what the daemon fetched for other releases.
pub(crate) fn clean_fetched(paths: &Paths, keep: &[Sha256]) {
    clean(&paths.fetched_extensions(), keep);
}

/// Removes what the daemon fetched and root has its own copy of, which root cannot: the directory is not its own.
pub(crate) fn tidy(paths: &Paths) {
    let releases = fs::read_dir(paths.fetched_extensions());
    for release in releases.into_iter().flatten().flatten() {
        let copies = paths.extensions().join(release.file_name());
        for entry in fs::read_dir(release.path()).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_image = path.extension().is_some_and(|it| it == "sysext");
            let copy = copies.join(entry.file_name()).with_extension("raw");
            if is_image
                && copy.exists()
                && let Err(e) = fs::remove_file(&path)
            {
                tracing::warn!("cannot remove {}: {e}", path.display());
            }
        }
    }
}

/// Removes what was verified for releases that are in no slot.
pub(crate) fn clean_verified(paths: &Paths, keep: &[Sha256]) {
    clean(&paths.extensions(), keep);
}

fn clean(dir: &Path, keep: &[Sha256]) {
    let keep: BTreeSet<String> = keep.iter().map(Sha256::to_string).collect();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_dir = entry.file_type().is_ok_and(|it| it.is_dir());
        let name = entry.file_name();
        if !is_dir || name.to_str().is_some_and(|name| keep.contains(name)) {
            continue;
        }
        if let Err(e) = fs::remove_dir_all(entry.path()) {
            tracing::warn!("cannot remove {}: {e}", entry.path().display());
        }
    }
}

/// Links the wanted extensions of the running release to where systemd-sysext looks. `merge`: systemd-sysext has run
/// already, and is to look again.
pub fn run(source: &Source, merge: bool) -> anyhow::Result<()> {
    let paths = Paths::new(&source.root);
    // What is wanted and what has come are watched by a unit each, and both may find something at once.
    let dir = paths.extensions();
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let lock = File::open(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)
        .with_context(|| format!("cannot lock {}", dir.display()))?;
    // A unit that runs is not started once more by what changes meanwhile.
    loop {
        let before = changes(&paths);
        let outcome = link_wanted(source, &paths, merge);
        if changes(&paths) == before {
            return outcome;
        }
    }
}

/// Both files are replaced, never written to.
fn changes(paths: &Paths) -> [Option<(u64, i64, i64)>; 2] {
    [
        under(paths.root(), extensions::LIST),
        paths.extensions_arrived(),
    ]
    .map(|path| {
        let about = fs::metadata(path).ok()?;
        Some((about.ino(), about.mtime(), about.mtime_nsec()))
    })
}

fn link_wanted(source: &Source, paths: &Paths, merge: bool) -> anyhow::Result<()> {
    let wanted = extensions::wanted(&source.root)?;
    let Some(release) = source.running()? else {
        bail!("this system does not run from a slot, so it has no extensions");
    };
    let release = Sha256(release.0);
    let mut linked = BTreeSet::new();
    let mut trouble = None;
    for name in &wanted {
        match verify(paths, release, name) {
            Ok(true) => {
                link(paths, release, name)?;
                linked.insert(format!("{name}.raw"));
            }
            // It comes with the next check.
            Ok(false) => tracing::warn!("the extension {name} is not here yet"),
            Err(e) => {
                tracing::error!("{e:#}");
                trouble = trouble.or(Some(e));
            }
        }
    }
    unlink_others(paths, &linked)?;
    if merge {
        // Without waiting: systemd-sysext is ordered behind us.
        let mut systemctl = Command::new("systemctl");
        systemctl.args(["--no-block", "reload-or-restart", "systemd-sysext.service"]);
        child::run_within(&mut systemctl, PATIENCE).context("cannot have extensions merged")?;
    }
    trouble.map_or(Ok(()), Err)
}

/// Whether it is where only root writes, after it was brought there if it was to be had.
fn verify(paths: &Paths, release: Sha256, name: &ExtensionName) -> anyhow::Result<bool> {
    let to = verified(paths, release, name);
    if to.exists() {
        return Ok(true);
    }
    let from = fetched(paths, release, name);
    let file = match no_follow(&from) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened.with_context(|| format!("cannot read {}", from.display()))?,
    };
    let manifest = manifest(paths, release)?;
    let extension = manifest.extension(name);
    let extension = extension
        .with_context(|| format!("version {} has no extension {name}", manifest.version))?;
    let dir = paths.extensions().join(release.to_string());
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    copy(file, extension, &to, 0o644)?;
    Ok(true)
}

/// The directory is another user's: nothing but a file is opened there.
fn no_follow(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("that is no file")),
    }
}

fn manifest(paths: &Paths, release: Sha256) -> anyhow::Result<Verified<Manifest>> {
    let dir = paths.fetched_extensions().join(release.to_string());
    let path = dir.join(MANIFEST_FILE);
    let mut bytes = Vec::new();
    no_follow(&path)
        .and_then(|file| file.take(MAX_ENVELOPE as u64 + 1).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    let manifest = Envelope::verify(&bytes, &keys::trusted(&paths.keys())?)
        .with_context(|| path.display().to_string())?;
    ensure!(
        manifest.usr.root_hash == release,
        "{} is about another release than the running one",
        path.display()
    );
    Ok(manifest)
}

fn link(paths: &Paths, release: Sha256, name: &ExtensionName) -> anyhow::Result<()> {
    let dir = paths.merged_extensions();
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let target = verified(paths, release, name);
    let link = dir.join(format!("{name}.raw"));
    if fs::read_link(&link).is_ok_and(|there| there == target) {
        return Ok(());
    }
    let part = dir.join(format!(".{name}.part"));
    let _ = fs::remove_file(&part);
    symlink(&target, &part)
        .and_then(|()| fs::rename(&part, &link))
        .with_context(|| format!("cannot make {}", link.display()))
}

/// Only links of ours: somebody may have put others there.
fn unlink_others(paths: &Paths, keep: &BTreeSet<String>) -> anyhow::Result<()> {
    let ours = paths.extensions();
    let entries = fs::read_dir(paths.merged_extensions());
    for entry in entries.into_iter().flatten().flatten() {
        let is_ours = fs::read_link(entry.path()).is_ok_and(|to| to.starts_with(&ours));
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_ours && !keep.contains(&name) {
            fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}
