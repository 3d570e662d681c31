//! UDF (ECMA-167, OSTA UDF) as far as a disc that was written once goes: Azure's. Partitions by their place, files in
//! extents or in their entry. Trusts no number in the image, as its neighbour for ISO 9660.

use std::fs::File;
use std::io;

use super::disk::{MAX_FILE, Volume};
use super::iso9660::ReadAt;

/// Where the anchor is (ECMA-167, 3/8.4.2.1).
const ANCHOR: u32 = 256;
/// Of CDs and DVDs, then of images that were made for a disk.
const BLOCK_SIZES: [u32; 2] = [2048, 512];
const MAX_DESCRIPTORS: u32 = 64;
const MAX_DIRECTORY: u64 = 1 << 20;
/// Extents of one file; a file that we look for has one.
const MAX_EXTENTS: usize = 4096;
/// How much is read at once: whole blocks.
const STEP: u32 = 64 * 1024;

pub(super) struct Udf<R = File> {
    blocks: Blocks<R>,
    label: String,
    /// First block of each partition, in the order in which extents name them; `None` for kinds that are not read here.
    partitions: Vec<Option<u32>>,
    root: Address,
}

struct Blocks<R> {
    image: R,
    size: u32,
}

/// A block of a partition.
#[derive(Debug, Clone, Copy)]
struct Address {
    block: u32,
    partition: u16,
}

/// `None` when the image is something else.
pub(super) fn open<R: ReadAt>(image: R) -> io::Result<Option<Udf<R>>> {
    let mut blocks = Blocks { image, size: 0 };
    for size in BLOCK_SIZES {
        blocks.size = size;
        if let Ok(Some((2, anchor))) = blocks.tagged(ANCHOR) {
            return Udf::new(blocks, &anchor);
        }
    }
    Ok(None)
}

impl<R: ReadAt> Blocks<R> {
    fn read(&self, block: u32, bytes: &mut [u8]) -> io::Result<()> {
        let offset = u64::from(block) * u64::from(self.size);
        self.image.read_at(bytes, offset)
    }

    /// A block that starts with a tag (3/7.2), if that is one.
    fn tagged(&self, block: u32) -> io::Result<Option<(u16, Vec<u8>)>> {
        let mut bytes = vec![0; self.size as usize];
        self.read(block, &mut bytes)?;
        Ok(tag(&bytes).map(|tag| (tag, bytes)))
    }
}

/// What a descriptor is. Its tag has a sum of its own.
fn tag(bytes: &[u8]) -> Option<u16> {
    let tag = bytes.get(..16)?;
    let others = tag.iter().enumerate().filter(|(at, _)| *at != 4);
    let sum = others.fold(0_u8, |sum, (_, byte)| sum.wrapping_add(*byte));
    (sum == tag[4]).then(|| u16_at(tag, 0))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let two = bytes.get(at..at + 2).and_then(|b| b.try_into().ok());
    u16::from_le_bytes(two.unwrap_or_default())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    u32::from_le_bytes(four.unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let eight = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
    u64::from_le_bytes(eight.unwrap_or_default())
}

/// A `long_ad` (4/14.14.2), without its length.
fn address(bytes: &[u8], at: usize) -> Address {
    Address {
        block: u32_at(bytes, at + 4),
        partition: u16_at(bytes, at + 8),
    }
}

impl<R: ReadAt> Udf<R> {
    fn new(blocks: Blocks<R>, anchor: &[u8]) -> io::Result<Option<Self>> {
        // The main sequence, then its copy (3/10.2).
        for at in [16, 24] {
            let (length, first) = (u32_at(anchor, at), u32_at(anchor, at + 4));
            let count = (length / blocks.size).min(MAX_DESCRIPTORS);
            let Some((volume, numbers)) = sequence(&blocks, first, count)? else {
                continue;
            };
            let label = dstring(volume.get(84..212).unwrap_or_default());
            let partitions = partition_maps(&volume)
                .map(|number| {
                    let start = numbers.iter().find(|(other, _)| Some(*other) == number);
                    start.map(|(_, start)| *start)
                })
                .collect();
            let mut udf = Self {
                blocks,
                label,
                partitions,
                root: address(&volume, 248),
            };
            let set = udf.block(udf.root)?;
            let Some((256, set)) = udf.blocks.tagged(set)? else {
                return Ok(None);
            };
            udf.root = address(&set, 400);
            return Ok(Some(udf));
        }
        Ok(None)
    }

    fn block(&self, at: Address) -> io::Result<u32> {
        let start = self.partitions.get(usize::from(at.partition));
        let start = start.copied().flatten();
        start
            .and_then(|start| start.checked_add(at.block))
            .ok_or_else(|| io::Error::other("a kind of partition that is not read here"))
    }

    fn look_up(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let mut at = self.root;
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            let directory = self.content(at, MAX_DIRECTORY)?;
            let mut names = Names(&directory);
            let found = names
                .find(|(name, directory, _)| *directory != last && name.eq_ignore_ascii_case(part));
            match found {
                Some((_, _, entry)) => at = entry,
                None => return Ok(None),
            }
        }
        self.content(at, MAX_FILE).map(Some)
    }

    /// What is in the file, or the directory, whose entry is at `at` (4/14.9, 4/14.17).
    fn content(&self, at: Address, limit: u64) -> io::Result<Vec<u8>> {
        let Some((tag, entry)) = self.blocks.tagged(self.block(at)?)? else {
            return Err(io::Error::other("a file without an entry"));
        };
        // Where the lengths of both areas are, and where those begin.
        let (lengths, start) = match tag {
            261 => (168, 176),
            266 => (208, 216),
            _ => return Err(io::Error::other("a file without an entry")),
        };
        let size = u64_at(&entry, 56);
        if size > limit {
            return Err(io::Error::other("the file is too large"));
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let start = start + u32_at(&entry, lengths) as usize;
        let end = start.saturating_add(u32_at(&entry, lengths + 4) as usize);
        let area = entry.get(start..end);
        let area =
            area.ok_or_else(|| io::Error::other("an entry that is longer than its block"))?;
        let mut bytes = match u16_at(&entry, 34) & 7 {
            0 => self.extents(area.to_vec(), 8, at.partition, size)?,
            1 => self.extents(area.to_vec(), 16, at.partition, size)?,
            // In the entry itself.
            3 => area.to_vec(),
            _ => return Err(io::Error::other("extents of a kind that is not read here")),
        };
        if bytes.len() < size {
            return Err(io::Error::other("the file is shorter than it says"));
        }
        bytes.truncate(size);
        Ok(bytes)
    }

    /// The bytes of allocation descriptors that are `each` bytes long, up to `size`.
    fn extents(
        &self,
        mut area: Vec<u8>,
        each: usize,
        partition: u16,
        size: usize,
    ) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut next = 0;
        for _ in 0..MAX_EXTENTS {
            let Some(extent) = area.get(next..next + each) else {
                break;
            };
            next += each;
            // The two highest bits say what it is (4/14.14.1.1).
            let (kind, length) = (u32_at(extent, 0) >> 30, u32_at(extent, 0) & 0x3fff_ffff);
            let at = match each {
                8 => Address {
                    block: u32_at(extent, 4),
                    partition,
                },
                _ => address(extent, 0),
            };
            let wanted = (length as usize).min(size - bytes.len());
            match kind {
                _ if wanted == 0 => break,
                0 => {
                    // In steps, so that a made-up length costs nothing before the end of the image is met.
                    let mut block = self.block(at)?;
                    let mut left = wanted;
                    while left > 0 {
                        let start = bytes.len();
                        bytes.resize(start + left.min(STEP as usize), 0);
                        self.blocks.read(block, &mut bytes[start..])?;
                        left -= bytes.len() - start;
                        block = block.saturating_add(STEP / self.blocks.size);
                    }
                }
                // More descriptors (4/14.5).
                3 => {
                    let Some((258, more)) = self.blocks.tagged(self.block(at)?)? else {
                        return Err(io::Error::other("extents that are not there"));
                    };
                    let end = 24_usize.saturating_add(u32_at(&more, 20) as usize);
                    area = more.get(24..end).unwrap_or_default().to_vec();
                    next = 0;
                }
                // Nothing was recorded there.
                _ => bytes.resize(bytes.len() + wanted, 0),
            }
        }
        Ok(bytes)
    }
}

/// The descriptor of the logical volume, and the partitions by their numbers.
type Sequence = (Vec<u8>, Vec<(u16, u32)>);

fn sequence<R: ReadAt>(blocks: &Blocks<R>, first: u32, count: u32) -> io::Result<Option<Sequence>> {
    let mut volume = None;
    let mut partitions = Vec::new();
    for index in 0..count {
        match blocks.tagged(first.saturating_add(index))? {
            Some((5, partition)) => {
                partitions.push((u16_at(&partition, 22), u32_at(&partition, 188)));
            }
            Some((6, logical)) if u32_at(&logical, 212) == blocks.size => volume = Some(logical),
            Some((8, _)) | None => break,
            Some(_) => {}
        }
    }
    Ok(volume.map(|volume| (volume, partitions)))
}

/// The numbers of partitions in the order in which extents name them (3/10.7); `None` for all but the plain kind.
fn partition_maps(volume: &[u8]) -> impl Iterator<Item = Option<u16>> {
    let length = u32_at(volume, 264) as usize;
    let end = length.saturating_add(440).min(volume.len());
    let mut rest = volume.get(440..end).unwrap_or_default();
    std::iter::from_fn(move || {
        let &[kind, length, ..] = rest else {
            return None;
        };
        let map = rest
            .get(..usize::from(length))
            .filter(|map| map.len() >= 6)?;
        rest = &rest[map.len()..];
        Some((kind == 1).then(|| u16_at(map, 4)))
    })
}

/// The names in a directory (4/14.4), each with whether it is one of a directory, and its entry.
struct Names<'a>(&'a [u8]);

impl Iterator for Names<'_> {
    type Item = (String, bool, Address);

    fn next(&mut self) -> Option<Self::Item> {
        const DIRECTORY: u8 = 2;
        const DELETED: u8 = 4;
        const PARENT: u8 = 8;
        loop {
            let record = self.0;
            if tag(record) != Some(257) || record.len() < 38 {
                return None;
            }
            let start = 38 + usize::from(u16_at(record, 36));
            let end = start + usize::from(record[19]);
            let name = record.get(start..end)?;
            self.0 = record.get(end.next_multiple_of(4)..).unwrap_or_default();
            if record[18] & (DELETED | PARENT) == 0 {
                let directory = record[18] & DIRECTORY != 0;
                return Some((characters(name), directory, address(record, 20)));
            }
        }
    }
}

/// Text of a fixed length, whose last byte says how much of it counts.
fn dstring(field: &[u8]) -> String {
    let Some((length, text)) = field.split_last() else {
        return String::new();
    };
    characters(text.get(..usize::from(*length)).unwrap_or_default())
}

/// Of 8 or 16 bits each, as the first byte says (UDF, 2.1.1).
fn characters(text: &[u8]) -> String {
    match text {
        [8, text @ ..] => text.iter().copied().map(char::from).collect(),
        [16, text @ ..] => {
            let units = text.chunks_exact(2);
            let units: Vec<u16> = units
                .map(|two| u16::from_be_bytes([two[0], two[1]]))
                .collect();
            String::from_utf16_lossy(&units)
        }
        _ => String::new(),
    }
}

impl<R: ReadAt> Volume for Udf<R> {
    fn label(&self) -> &str {
        &self.label
    }

    fn read(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        self.look_up(path)
    }
}
