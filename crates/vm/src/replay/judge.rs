//! What a disk has to be whenever the power may have failed: a partition table, a FAT that can be read to
//! its end, and behind every boot entry that can be started a whole release.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use disk::Slot;
use disk::datadisk::ReadOnly;
use disk::esp::Esp;
use disk::gpt::{ESP, Table};
use disk::io::Window;
use disk::verity::{BLOCK_SIZE, RootHash, Superblock, build};

/// A release as it was built.
pub(super) struct Known {
    /// For people.
    pub(super) version: String,
    /// All of the UKI.
    pub(super) uki: Vec<u8>,
    /// What its command line names.
    pub(super) root_hash: RootHash,
}

/// Judges one disk again and again, and looks anew only at what was written to.
pub(super) struct Judge<'a> {
    releases: &'a [Known],
    parts: Parts,
    dirty: Vec<Range<u64>>,
    esp: Vec<Found>,
    whole: BTreeMap<char, Result<RootHash, String>>,
    /// How often each was looked at.
    pub(super) looks: Looks,
}

/// How often each was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Looks {
    /// Flushes.
    pub flushes: u64,
    /// Of the EFI system partition.
    pub esp: u64,
    /// Of a slot's hash tree, over all of its data.
    pub trees: u64,
}

struct Parts {
    esp: Range<u64>,
    slots: [(Range<u64>, Range<u64>); 2],
}

/// A boot entry that can be started.
#[derive(Clone)]
struct Found {
    slot: Slot,
    release: usize,
}

impl<'a> Judge<'a> {
    /// For a disk whose partitions do not move.
    pub(super) fn new(disk: &mut File, releases: &'a [Known]) -> Result<Self> {
        let table = Table::load(disk)?;
        let range = |label: &str| -> Result<Range<u64>> {
            let part = table.partition(label)?;
            Ok(part.start_bytes..part.start_bytes + part.size_bytes)
        };
        let slot = |slot: Slot| -> Result<_> {
            Ok((range(slot.data_label())?, range(slot.verity_label())?))
        };
        let parts = Parts {
            esp: range(ESP)?,
            slots: [slot(Slot::A)?, slot(Slot::B)?],
        };
        Ok(Self {
            releases,
            parts,
            // All of it is new.
            dirty: std::iter::once(0..u64::MAX).collect(),
            esp: Vec::new(),
            whole: BTreeMap::new(),
            looks: Looks::default(),
        })
    }

    /// Something was written there.
    pub(super) fn wrote(&mut self, range: Range<u64>) {
        match self.dirty.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.dirty.push(range),
        }
    }

    /// The versions that can be started, each whole.
    pub(super) fn look(&mut self, disk: &File) -> Result<Vec<String>> {
        self.looks.flushes += 1;
        let touched = |part: &Range<u64>, dirty: &[Range<u64>]| {
            dirty
                .iter()
                .any(|range| range.start < part.end && part.start < range.end)
        };
        let dirty = std::mem::take(&mut self.dirty);
        let table = Table::load(&mut &*disk).context("there is no partition table")?;
        if touched(&self.parts.esp, &dirty) {
            self.looks.esp += 1;
            self.esp = self.read_esp(disk)?;
        }
        for (slot, (data, hashes)) in Slot::BOTH.iter().zip(&self.parts.slots) {
            if touched(data, &dirty) || touched(hashes, &dirty) {
                self.whole.remove(&slot.letter());
            }
        }
        let mut versions = Vec::new();
        for entry in self.esp.clone() {
            let release = &self.releases[entry.release];
            let (slot, version) = (entry.slot, &release.version);
            ensure!(
                table.slot_of(&release.root_hash) == Some(slot),
                "slot {slot} starts release {version}, and its partitions do not say so"
            );
            let (data, hashes) = &self.parts.slots[usize::from(slot == Slot::B)];
            let looks = &mut self.looks.trees;
            let root = self.whole.entry(slot.letter()).or_insert_with(|| {
                *looks += 1;
                root_of(disk, data, hashes).map_err(|e| format!("{e:#}"))
            });
            match root {
                Ok(root) if *root == release.root_hash => versions.push(version.clone()),
                Ok(_) => bail!("slot {slot} starts release {version}, and holds another image"),
                Err(e) => bail!("slot {slot} starts release {version}, and is not whole: {e}"),
            }
        }
        ensure!(!versions.is_empty(), "nothing can be started");
        versions.sort();
        Ok(versions)
    }

    /// Every file of the partition is read to its end, by `fatfs`, which wrote none of it.
    fn read_esp(&self, disk: &File) -> Result<Vec<Found>> {
        let part = &self.parts.esp;
        let window = || Window::new(disk, part.start, part.end - part.start);
        let volume = fatfs::FileSystem::new(ReadOnly(window()), fatfs::FsOptions::new())
            .context("the EFI system partition is no FAT")?;
        let mut found = Vec::new();
        let mut directories = vec![(volume.root_dir(), String::new())];
        while let Some((directory, path)) = directories.pop() {
            for file in directory.iter() {
                let file = file.with_context(|| format!("cannot read /{path}"))?;
                let name = file.file_name();
                if name == "." || name == ".." {
                    continue;
                }
                let path = format!("{path}{name}");
                if file.is_dir() {
                    directories.push((file.to_dir(), format!("{path}/")));
                    continue;
                }
                let mut content = Vec::new();
                let read = file.to_file().read_to_end(&mut content);
                let size = read.with_context(|| format!("cannot read /{path}"))?;
                ensure!(
                    size as u64 == file.len(),
                    "/{path} has {size} of {} bytes",
                    file.len()
                );
                if path.starts_with("EFI/Linux/") && content.starts_with(b"MZ") {
                    let slot = name.get(4..5).unwrap_or_default();
                    let slot = slot.parse().with_context(|| format!("/{path}"))?;
                    let release = self.releases.iter().position(|r| r.uki == content);
                    let release = release
                        .with_context(|| format!("/{path} can be started, and is no release"))?;
                    found.push(Found { slot, release });
                }
            }
        }
        let mut ours = Esp::open(window())?;
        for slot in Slot::BOTH {
            let valid = ours.entry(slot)?.is_some_and(|entry| entry.valid);
            ensure!(
                valid == found.iter().any(|found| found.slot == slot),
                "fatfs and our own reader disagree about slot {slot}"
            );
        }
        Ok(found)
    }
}

/// Of the data, after comparing its whole tree with the one on the disk.
fn root_of(disk: &File, data: &Range<u64>, hashes: &Range<u64>) -> Result<RootHash> {
    let mut hashes = Window::new(disk, hashes.start, hashes.end - hashes.start);
    let mut block = [0; BLOCK_SIZE];
    hashes.read_exact(&mut block)?;
    let blocks = Superblock::parse(&block)?.data_blocks;
    let size = blocks.saturating_mul(BLOCK_SIZE as u64);
    ensure!(size <= data.end - data.start, "it has {blocks} blocks");
    let window = Window::new(disk, data.start, size);
    let tree = build(&mut io::BufReader::with_capacity(1 << 20, window))?;
    let wanted = tree.image();
    let mut there = vec![0; wanted.len()];
    hashes.seek(SeekFrom::Start(0))?;
    hashes.read_exact(&mut there)?;
    ensure!(there == wanted, "its hash tree is another one");
    Ok(tree.root)
}
