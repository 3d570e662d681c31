//! Everything that can be refused is refused before the first write.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use anyhow::{Context as _, ensure};
use delta::Patch;
use delta::reuse::BlockIndex;
use disk::verity::{BLOCK_SIZE, Levels, RootHash};
use host::UpdateConf;
use host::os_release::OsRelease;
use release::dsse::Envelope;
use release::{Compression, Manifest, Sha256, Verified, Version};
use rustix::fs::{Mode, OFlags};
use sha2::Digest as _;

use super::WriterError;
use super::image::{Image, Uki, way_closed};
use crate::engine::{self, Facts, Refusal};
use crate::memory::Code;
use crate::paths::Paths;
use crate::slots::{Disk, Source, to_disk};
use crate::trust::{self, Clock, Follow, FromDirectory, Overrides, Store};
use crate::way::WayName;
use crate::{epoch, keys, wire};

/// A UKI is held in memory while it is written; no honest one is near this.
pub(super) const LARGEST_UKI: u64 = 128 << 20;

/// 32 bytes for each block of an image of 4 GiB.
const LARGEST_INDEX: u64 = 32 << 20;

/// A release that was checked against a trusted signature. The image is checked again while it is
/// written, because its file stays where the daemon can change it.
pub(super) struct Payload {
    pub(super) manifest: Verified<Manifest>,
    usr: Image,
    uki: Uki,
}

/// The same, with the UKI as it will be on the disk.
pub(super) struct Ready {
    pub(super) manifest: Verified<Manifest>,
    pub(super) usr: Image,
    pub(super) uki: Vec<u8>,
}

impl Payload {
    pub(super) fn with_uki(self, disk: &Disk) -> Result<Ready, WriterError> {
        Ok(Ready {
            uki: self.uki.bytes(disk, self.manifest.uki.sha256)?,
            manifest: self.manifest,
            usr: self.usr,
        })
    }
}

pub(super) fn verify(
    source: &Source,
    paths: &Paths,
    call: &wire::Stage,
) -> Result<Payload, WriterError> {
    let manifest = signed(paths, &call.envelope)?;
    is_on_the_channel(paths, &manifest.version, call)?;
    boot_is_good(paths)?;
    suits_host(paths, &manifest)?;
    let (usr_path, uki_path) = (Path::new(&call.usr), Path::new(&call.uki));
    let (usr, uki) = match call.way {
        WayName::Whole => {
            let file = &manifest.usr.payload.file;
            let usr = match manifest.usr.payload.compression {
                Compression::Zstd => Image::Whole(checked(paths, usr_path, file)?),
            };
            (usr, whole_uki(paths, uki_path, &manifest)?)
        }
        WayName::Delta => {
            let running = source.running()?;
            let delta = running.and_then(|hash| manifest.delta_from(Sha256(hash.0)));
            let delta = delta.ok_or_else(|| way_closed("there is no delta from what runs"))?;
            let patch = Patch::open(checked(paths, usr_path, &delta.usr)?).map_err(way_closed)?;
            if patch.header().new_size != manifest.usr.size {
                return Err(way_closed("the delta makes an image of another size"));
            }
            let uki = match &delta.uki {
                None => whole_uki(paths, uki_path, &manifest)?,
                Some(uki) => Uki::Delta {
                    patch: Patch::open(checked(paths, uki_path, &uki.file)?).map_err(way_closed)?,
                    from: uki.from_sha256,
                },
            };
            (Image::Delta(patch), uki)
        }
        WayName::Blocks => {
            let path = call
                .index
                .as_ref()
                .context("the path of the index is missing")?;
            let index = read_index(paths, Path::new(path), &manifest)?;
            let fetched = open(paths, usr_path, None)?;
            let usr = Image::Blocks { index, fetched };
            (usr, whole_uki(paths, uki_path, &manifest)?)
        }
    };
    Ok(Payload { manifest, usr, uki })
}

/// The block index of a signed release.
pub(super) fn index(paths: &Paths, call: &wire::Missing) -> Result<BlockIndex, WriterError> {
    let manifest = signed(paths, &call.envelope)?;
    read_index(paths, Path::new(&call.index), &manifest)
}

fn read_index(paths: &Paths, path: &Path, manifest: &Manifest) -> Result<BlockIndex, WriterError> {
    let file = manifest.usr.index.as_ref();
    let file = file.ok_or_else(|| way_closed("the release has no block index"))?;
    let bytes = read(paths, path, file, LARGEST_INDEX, "block index")?;
    BlockIndex::parse(&bytes, &RootHash(manifest.usr.root_hash.0)).map_err(way_closed)
}

fn signed(paths: &Paths, envelope: &str) -> Result<Verified<Manifest>, WriterError> {
    let verify = || -> anyhow::Result<_> {
        let keys = keys::trusted(&paths.keys())?;
        Envelope::verify(envelope.as_bytes(), &keys).context("the manifest is refused")
    };
    verify().map_err(|e| WriterError::RefusedFor(Code::Signature, format!("{e:#}")))
}

/// The same workflow as the daemon's, on what it stored, measured by what the writer has seen itself.
fn is_on_the_channel(
    paths: &Paths,
    version: &Version,
    call: &wire::Stage,
) -> Result<(), WriterError> {
    let Some(root) = trust::baked_root(&paths.tuf_root())? else {
        return Ok(());
    };
    let conf = UpdateConf::read(paths.root()).map_err(anyhow::Error::from)?;
    let follow = Follow {
        group: conf.group.parse().context("GROUP")?,
        channel: conf.channel,
    };
    let store = Store::new(paths.writer_metadata());
    let clock = Clock::read(paths);
    let overrides = Overrides::read(paths, clock.judged(&store), call.allow_expired);
    let source = FromDirectory {
        dir: Store::new(paths.metadata()).dir().into(),
    };
    let targets = trust::refresh(&root, &store, &source, &follow, &clock, overrides)?;
    trust::check_manifest(&targets, version, call.envelope.as_bytes())?;
    Ok(())
}

/// By the verified `/usr`, by what root noted and by what root allows.
fn suits_host(paths: &Paths, manifest: &Manifest) -> Result<(), WriterError> {
    // mark-good may have had no room for it.
    epoch::note(paths)?;
    let os = OsRelease::of_usr(paths.root()).map_err(anyhow::Error::from)?;
    let version = os.version().context("os-release has no IMAGE_VERSION")?;
    let version: Version = version.parse().context("os-release: IMAGE_VERSION")?;
    let facts = Facts {
        version: &version,
        architecture: match std::env::consts::ARCH {
            "x86_64" => "x86-64",
            "aarch64" => "arm64",
            other => other,
        },
        epoch: epoch::highest(paths)?,
    };
    let allowed = Overrides::read(paths, jiff::Timestamp::now(), false);
    engine::suits(manifest, &facts, allowed.allow_older).map_err(|refusal| {
        let how = match refusal {
            Refusal::Older { .. } => " (orlop update --force, as root)",
            _ => "",
        };
        let code = refusal.code().unwrap_or(Code::Refused);
        WriterError::RefusedFor(code, format!("{refusal}{how}"))
    })
}

fn whole_uki(paths: &Paths, path: &Path, manifest: &Manifest) -> anyhow::Result<Uki> {
    read(paths, path, &manifest.uki, LARGEST_UKI, "UKI").map(Uki::Whole)
}

/// A file that is small enough to be in memory, and what the manifest says.
fn read(
    paths: &Paths,
    path: &Path,
    want: &release::File,
    largest: u64,
    what: &str,
) -> anyhow::Result<Vec<u8>> {
    ensure!(
        want.size <= largest,
        "a {what} of {} bytes is refused: at most {largest}",
        want.size
    );
    let mut bytes = Vec::new();
    open(paths, path, Some(want.size))?
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", path.display()))?;
    check_digest(path, Sha256::of(&bytes), want.sha256)?;
    Ok(bytes)
}

/// A file that is what the manifest says.
fn checked(paths: &Paths, path: &Path, want: &release::File) -> anyhow::Result<File> {
    let mut file = open(paths, path, Some(want.size))?;
    let digest = digest(&mut file).with_context(|| format!("cannot read {}", path.display()))?;
    check_digest(path, digest, want.sha256)?;
    Ok(file)
}

/// A boot that may still fail must keep the other slot to fall back to.
pub(super) fn boot_is_good(paths: &Paths) -> anyhow::Result<()> {
    let good = paths.good();
    ensure!(
        good.exists(),
        "this boot has not been marked good ({} is missing), so the other slot is not touched",
        good.display()
    );
    Ok(())
}

/// Sizes and identities, against the disk as it is now.
pub(super) fn suits(root: &Path, disk: &Disk, payload: &Payload) -> anyhow::Result<()> {
    let manifest = &payload.manifest;
    let slot = disk.passive();
    ensure!(
        manifest.usr.root_hash.0 != disk.root_hash.0,
        "version {} is what runs in slot {}",
        manifest.version,
        disk.booted
    );
    let running = disk.entry(disk.booted)?;
    ensure!(
        running.is_none_or(|entry| entry.tries_left > 0),
        "the boot entry of slot {} has no tries left (a rollback waits for its reboot), so slot {slot} is the only one that \
         can still be tried",
        disk.booted
    );
    let fits = |label: &str, need: u64| -> anyhow::Result<()> {
        let part = disk.table.partition(label)?;
        ensure!(
            need <= part.size_bytes,
            "{label} has {} bytes, version {} needs {need}",
            part.size_bytes,
            manifest.version
        );
        ensure!(
            !disk.is_in_use(root, label),
            "{label} is in use by the running system"
        );
        Ok(())
    };
    fits(to_disk(slot).data_label(), manifest.usr.size)?;
    fits(
        to_disk(slot).verity_label(),
        Levels::of(manifest.usr.size / BLOCK_SIZE as u64).image_size(),
    )?;
    let room = disk.esp()?.room_for(to_disk(slot))?;
    ensure!(
        manifest.uki.size <= room,
        "the EFI system partition has {room} bytes for the UKI of slot {slot}, version {} needs {}",
        manifest.version,
        manifest.uki.size
    );
    Ok(())
}

/// Only plain files, of the expected size if there is one, only from the download directory.
fn open(paths: &Paths, path: &Path, size: Option<u64>) -> anyhow::Result<File> {
    let inside =
        path.starts_with(paths.downloads()) && path.components().all(|c| c.as_os_str() != "..");
    ensure!(
        inside,
        "{} is not in {}",
        path.display(),
        paths.downloads().display()
    );
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty());
    let file = File::from(file.with_context(|| format!("cannot open {}", path.display()))?);
    let meta = file
        .metadata()
        .with_context(|| format!("cannot look at {}", path.display()))?;
    ensure!(meta.is_file(), "{} is not a file", path.display());
    if let Some(size) = size {
        ensure!(
            meta.len() == size,
            "{} has {} bytes, the manifest says {size}",
            path.display(),
            meta.len()
        );
    }
    Ok(file)
}

fn check_digest(path: &Path, got: Sha256, want: Sha256) -> anyhow::Result<()> {
    ensure!(
        got == want,
        "{} has the SHA-256 {got}, the manifest says {want}",
        path.display()
    );
    Ok(())
}

pub(super) fn digest(file: &mut (impl io::Read + io::Seek)) -> io::Result<Sha256> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    file.rewind()?;
    Ok(Sha256(hasher.finalize().into()))
}
