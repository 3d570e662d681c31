//! Everything that can be refused is refused before the first write.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;

use anyhow::{Context as _, ensure};
use disk::verity::{BLOCK_SIZE, Levels};
use release::dsse::Envelope;
use release::{Manifest, Sha256, Verified};
use rustix::fs::{Mode, OFlags};
use sha2::Digest as _;

use crate::paths::Paths;
use crate::slots::{Disk, to_disk};
use crate::{keys, wire};

/// A UKI is held in memory while it is written; no honest one is near this.
const LARGEST_UKI: u64 = 128 << 20;

/// A release whose every byte was checked against a trusted signature. The image is checked
/// again while it is written, because its file stays where the daemon can change it.
pub(super) struct Payload {
    pub(super) manifest: Verified<Manifest>,
    pub(super) usr: File,
    pub(super) uki: Vec<u8>,
}

pub(super) fn verify(paths: &Paths, call: &wire::Stage) -> anyhow::Result<Payload> {
    let keys = keys::trusted(&paths.keys())?;
    let manifest =
        Envelope::verify(call.envelope.as_bytes(), &keys).context("the manifest is refused")?;
    boot_is_good(paths)?;

    let architecture = match std::env::consts::ARCH {
        "x86_64" => "x86-64",
        "aarch64" => "arm64",
        other => other,
    };
    ensure!(
        manifest.architecture == architecture,
        "version {} is for {}, this machine is {architecture}",
        manifest.version,
        manifest.architecture
    );

    let file = &manifest.uki;
    ensure!(
        file.size <= LARGEST_UKI,
        "a UKI of {} bytes is refused: at most {LARGEST_UKI}",
        file.size
    );
    let mut uki = Vec::new();
    let path = Path::new(&call.uki);
    open(paths, path, file.size)?
        .read_to_end(&mut uki)
        .with_context(|| format!("cannot read {}", path.display()))?;
    check_digest(path, Sha256::of(&uki), file.sha256)?;

    let file = &manifest.usr.payload.file;
    let path = Path::new(&call.usr);
    let mut usr = open(paths, path, file.size)?;
    let digest = digest(&mut usr).with_context(|| format!("cannot read {}", path.display()))?;
    check_digest(path, digest, file.sha256)?;
    Ok(Payload { manifest, usr, uki })
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

/// Only plain files of the expected size, only from the download directory.
fn open(paths: &Paths, path: &Path, size: u64) -> anyhow::Result<File> {
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
    ensure!(
        meta.len() == size,
        "{} has {} bytes, the manifest says {size}",
        path.display(),
        meta.len()
    );
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

fn digest(file: &mut File) -> io::Result<Sha256> {
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
