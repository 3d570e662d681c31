//! The image by whichever way it came: as a whole, as a delta, or as the blocks that are not here.
//! The other two read the running slot as it lies on the disk. That nothing else comes out is
//! seen when the root hash is taken over what was written.

use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};

use anyhow::{Context as _, ensure};
use delta::Patch;
use delta::reuse::{BlockIndex, Have};
use disk::esp::EspFile;
use disk::io::{Placed, Window};
use disk::verity::{self, BLOCK_SIZE, Levels, RootHash, Superblock};
use release::Sha256;

use super::WriterError;
use super::preflight::{LARGEST_UKI, digest};
use crate::slots::{Disk, to_disk};

/// 32 MiB of window: what decompressing may cost in memory, whatever the payload asks for.
const WINDOW_LOG_MAX: u32 = 25;

pub(super) enum Image {
    Whole(File),
    Delta(Patch<File>),
    Blocks { index: BlockIndex, fetched: File },
}

/// A UKI, or how to make it of the running one.
pub(super) enum Uki {
    Whole(Vec<u8>),
    Delta { patch: Patch<File>, from: Sha256 },
}

impl Image {
    /// Whether there is another way if this one leads to something else.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self, Self::Whole(_))
    }

    pub(super) fn reader(self, disk: &Disk) -> Result<Box<dyn Read>, WriterError> {
        Ok(match self {
            Self::Whole(file) => Box::new(decompress(file)?),
            Self::Delta(patch) => {
                let applied = patch.apply(running(disk)?).map_err(way_closed)?;
                Box::new(applied.ahead().context("cannot start a thread")?)
            }
            Self::Blocks { index, fetched } => {
                Box::new(index.rebuild(have(disk)?, running(disk)?, fetched))
            }
        })
    }
}

impl Uki {
    pub(super) fn bytes(self, disk: &Disk, want: Sha256) -> Result<Vec<u8>, WriterError> {
        let (patch, from) = match self {
            Self::Whole(bytes) => return Ok(bytes),
            Self::Delta { patch, from } => (patch, from),
        };
        let mut old = running_uki(disk).map_err(way_closed)?;
        if digest(&mut old).map_err(way_closed)? != from {
            return Err(way_closed(
                "the running slot's UKI is not the one that the delta starts from",
            ));
        }
        // Growing would cost another copy of it in memory.
        let size = patch.header().new_size.min(LARGEST_UKI);
        let mut uki = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        patch
            .apply(old)
            .map_err(way_closed)?
            .take(LARGEST_UKI)
            .read_to_end(&mut uki)
            .map_err(way_closed)?;
        match Sha256::of(&uki) == want {
            true => Ok(uki),
            false => Err(way_closed(
                "the delta makes another UKI than the signed one",
            )),
        }
    }
}

pub(super) fn way_closed(why: impl std::fmt::Display) -> WriterError {
    WriterError::WayClosed(why.to_string())
}

fn decompress(file: File) -> anyhow::Result<impl Read> {
    let mut decoder = zstd::stream::read::Decoder::new(file).context("cannot decompress")?;
    decoder
        .window_log_max(WINDOW_LOG_MAX)
        .context("cannot bound the memory of decompression")?;
    Ok(decoder)
}

fn running(disk: &Disk) -> anyhow::Result<Window<Placed>> {
    disk.window(to_disk(disk.booted).data_label())
}

/// The hashes of the running image's blocks. They are believed because they lead to the root hash
/// that this system was started with.
pub(super) fn have(disk: &Disk) -> anyhow::Result<Have> {
    let label = to_disk(disk.booted).verity_label();
    let mut tree = disk.window(label)?;
    let mut block = [0; BLOCK_SIZE];
    tree.read_exact(&mut block)
        .with_context(|| format!("cannot read {label}"))?;
    let blocks = Superblock::parse(&block)?.data_blocks;
    let most = disk.table.partition(to_disk(disk.booted).data_label())?;
    ensure!(
        blocks > 0 && blocks <= most.size_bytes / BLOCK_SIZE as u64,
        "the superblock of {label} speaks of {blocks} blocks"
    );
    let at = Levels::of(blocks).leaves_at();
    let at = at.with_context(|| format!("{label} holds no tree"))?;
    tree.seek(SeekFrom::Start(at))
        .with_context(|| format!("cannot read {label}"))?;
    let mut hashes = vec![0; usize::try_from(blocks)? * RootHash::SIZE];
    tree.read_exact(&mut hashes)
        .with_context(|| format!("cannot read {label}"))?;
    ensure!(
        verity::root_of_leaves(&hashes) == Some(disk.root_hash),
        "the hashes in {label} do not lead to the running root hash"
    );
    Ok(Have::new(&hashes))
}

fn running_uki(disk: &Disk) -> anyhow::Result<EspFile<Window<Placed>>> {
    let slot = to_disk(disk.booted);
    let entry = disk.entry(disk.booted)?;
    let entry = entry.with_context(|| format!("slot {slot} has no boot entry"))?;
    ensure!(
        entry.size <= LARGEST_UKI,
        "the running UKI has {} bytes, at most {LARGEST_UKI} are read",
        entry.size
    );
    Ok(disk.esp()?.into_reader(&entry.path())?)
}
