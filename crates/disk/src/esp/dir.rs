//! FAT directories, with the place of every entry on the device.

use super::EspError;
use super::fat::Fat;
use super::name::{ATTR_LONG, LONG_CHARS, checksum};
use crate::io::{BlockIo, SECTOR, SECTOR_U64, read_at, write_at};
use std::io::{Read, Seek};

const ENTRY: usize = 32;
const ENTRY_U64: u64 = 32;
pub(super) const DELETED: u8 = 0xe5;
const ATTR_VOLUME: u8 = 0x08;
const ATTR_DIR: u8 = 0x10;
/// 1980-01-01, the first day FAT knows: an update changes nothing that is not its content.
const DATE: [u8; 2] = [0x21, 0];

/// A file or directory.
#[derive(Clone, Debug)]
pub(super) struct Dirent {
    pub(super) name: String,
    pub(super) short: [u8; 11],
    pub(super) is_dir: bool,
    pub(super) first_cluster: u32,
    pub(super) size: u32,
    /// Device offsets of its 32-byte entries: those of the long name, then the short one.
    pub(super) places: Vec<u64>,
}

impl Dirent {
    /// The offset of the sector that all of this entry lies in, if that is one sector and the
    /// long name is one entry: then a new name and size are one write.
    pub(super) fn in_one_sector(&self) -> Option<u64> {
        match self.places[..] {
            [long, short] if long / SECTOR_U64 == short / SECTOR_U64 => {
                Some(long / SECTOR_U64 * SECTOR_U64)
            }
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) entries: Vec<Dirent>,
    /// Unused places in front of the end mark.
    free: Vec<u64>,
    /// Places from the end mark on.
    tail: Vec<u64>,
}

impl Listing {
    pub(super) fn read(
        io: &mut (impl Read + Seek),
        fat: &Fat,
        first_cluster: u32,
    ) -> Result<Listing, EspError> {
        let mut listing = Listing::default();
        let mut long = LongName::default();
        let mut cluster = vec![0; usize::try_from(fat.cluster_bytes()).unwrap_or(SECTOR)];
        for number in fat.chain(first_cluster)? {
            let start = fat.offset(number);
            read_at(io, start, &mut cluster).map_err(EspError::io("read a directory"))?;
            for (bytes, index) in cluster.chunks_exact(ENTRY).zip(0u64..) {
                listing.take(bytes, start + index * ENTRY_U64, &mut long);
            }
        }
        Ok(listing)
    }

    fn take(&mut self, bytes: &[u8], place: u64, long: &mut LongName) {
        if !self.tail.is_empty() || bytes[0] == 0 {
            self.tail.push(place);
        } else if bytes[0] == DELETED {
            long.clear();
            self.free.push(place);
        } else if bytes[11] & 0x3f == ATTR_LONG {
            long.push(bytes, place);
        } else if bytes[11] & ATTR_VOLUME != 0 {
            long.clear();
        } else {
            let mut short = [0; 11];
            short.copy_from_slice(&bytes[..11]);
            let (name, mut places) = match long.take(checksum(&short)) {
                Some(found) => found,
                None => (short_name(&short, bytes[12]), Vec::new()),
            };
            places.push(place);
            self.entries.push(Dirent {
                name,
                short,
                is_dir: bytes[11] & ATTR_DIR != 0,
                first_cluster: cluster(bytes),
                size: u32::from_le_bytes([bytes[28], bytes[29], bytes[30], bytes[31]]),
                places,
            });
        }
    }

    /// Two neighbouring unused places in one sector, for a long-name entry and a short one.
    /// `None`: the directory needs another cluster.
    pub(super) fn pair(&self) -> Option<Pair> {
        let both = |w: &[u64]| w[1] == w[0] + ENTRY_U64 && w[0] / SECTOR_U64 == w[1] / SECTOR_U64;
        if let Some(at) = self.free.windows(2).position(both) {
            return Some(Pair {
                place: self.free[at],
                skipped: None,
                at_end: false,
            });
        }
        let at = self.tail.windows(2).position(both)?;
        Some(Pair {
            place: self.tail[at],
            // An end mark in front would hide what comes behind it.
            skipped: (at > 0).then(|| self.tail[0]),
            at_end: true,
        })
    }

    pub(super) fn find(&self, name: &str) -> Option<&Dirent> {
        self.entries
            .iter()
            .find(|entry| entry.name.eq_ignore_ascii_case(name))
    }
}

/// Where a new entry can go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub(super) place: u64,
    skipped: Option<u64>,
    at_end: bool,
}

/// Writes a new entry in one sector and makes it durable.
pub(super) fn insert(
    io: &mut impl BlockIo,
    pair: Pair,
    long: &[u8; 32],
    short: &[u8; 32],
) -> Result<(), EspError> {
    if let Some(place) = pair.skipped {
        edit(io, place / SECTOR_U64 * SECTOR_U64, |sector| {
            sector[within(place)] = DELETED;
        })?;
    }
    edit(io, pair.place / SECTOR_U64 * SECTOR_U64, |sector| {
        let at = within(pair.place);
        sector[at..at + ENTRY].copy_from_slice(long);
        sector[at + ENTRY..at + 2 * ENTRY].copy_from_slice(short);
        if pair.at_end {
            sector[at + 2 * ENTRY..].fill(0);
        }
    })
}

/// Marks an entry as deleted, the short one first: a long name without it is nothing.
pub(super) fn delete(io: &mut impl BlockIo, entry: &Dirent) -> Result<(), EspError> {
    let mut sectors: Vec<u64> = entry.places.iter().map(|p| p / SECTOR_U64).collect();
    sectors.reverse();
    sectors.dedup();
    for sector in sectors {
        edit(io, sector * SECTOR_U64, |bytes| {
            for place in entry.places.iter().filter(|p| **p / SECTOR_U64 == sector) {
                bytes[within(*place)] = DELETED;
            }
        })?;
    }
    Ok(())
}

/// Reads, changes and writes one sector, and makes it durable.
pub(super) fn edit(
    io: &mut impl BlockIo,
    offset: u64,
    change: impl FnOnce(&mut [u8; SECTOR]),
) -> Result<(), EspError> {
    let failed = EspError::io("edit a directory");
    let mut sector = [0; SECTOR];
    read_at(io, offset, &mut sector).map_err(&failed)?;
    change(&mut sector);
    write_at(io, offset, &sector).map_err(&failed)?;
    io.sync().map_err(&failed)
}

/// A new short entry of a plain file.
pub(super) fn short_entry(short: &[u8; 11], first_cluster: u32, size: u32) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[..11].copy_from_slice(short);
    entry[11] = 0x20;
    for at in [16, 18, 24] {
        entry[at..at + 2].copy_from_slice(&DATE);
    }
    set_extent(&mut entry, first_cluster, size);
    entry
}

/// Where a file's data is and how much of it, in its short entry.
pub(super) fn set_extent(entry: &mut [u8], first_cluster: u32, size: u32) {
    set_cluster(entry, first_cluster);
    entry[28..32].copy_from_slice(&size.to_le_bytes());
}

pub(super) fn set_cluster(entry: &mut [u8], first_cluster: u32) {
    let cluster = first_cluster.to_le_bytes();
    entry[20..22].copy_from_slice(&cluster[2..]);
    entry[26..28].copy_from_slice(&cluster[..2]);
}

pub(super) fn cluster(entry: &[u8]) -> u32 {
    u32::from_le_bytes([entry[26], entry[27], entry[20], entry[21]]) & 0x0fff_ffff
}

/// The index of a device offset in its sector.
pub(super) fn within(place: u64) -> usize {
    // The remainder is below 512.
    #[allow(clippy::cast_possible_truncation)]
    let at = (place % SECTOR_U64) as usize;
    at
}

fn short_name(short: &[u8; 11], case: u8) -> String {
    let part = |bytes: &[u8], lower: bool| {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_end_matches(' ');
        if lower {
            text.to_ascii_lowercase()
        } else {
            text.to_owned()
        }
    };
    // Bits 3 and 4, as Windows NT and Linux use them.
    let base = part(&short[..8], case & 0x08 != 0);
    let extension = part(&short[8..], case & 0x10 != 0);
    if extension.is_empty() {
        base
    } else {
        format!("{base}.{extension}")
    }
}

/// The long-name entries in front of a short one, last part first.
#[derive(Default)]
struct LongName {
    parts: Vec<[u16; 13]>,
    places: Vec<u64>,
    expect: u8,
    sum: u8,
}

impl LongName {
    fn clear(&mut self) {
        *self = LongName::default();
    }

    fn push(&mut self, bytes: &[u8], place: u64) {
        let number = bytes[0] & 0x3f;
        if bytes[0] & 0x40 != 0 {
            self.clear();
            self.sum = bytes[13];
        } else if number + 1 != self.expect || bytes[13] != self.sum {
            self.clear();
            return;
        }
        self.expect = number;
        self.parts
            .push(LONG_CHARS.map(|at| u16::from_le_bytes([bytes[at], bytes[at + 1]])));
        self.places.push(place);
    }

    /// The name and its places, if all parts were there and belong to this short name.
    fn take(&mut self, sum: u8) -> Option<(String, Vec<u64>)> {
        let long = std::mem::take(self);
        if long.parts.is_empty() || long.expect != 1 || long.sum != sum {
            return None;
        }
        let units: Vec<u16> = long
            .parts
            .iter()
            .rev()
            .flatten()
            .copied()
            .take_while(|unit| *unit != 0)
            .collect();
        Some((String::from_utf16_lossy(&units), long.places))
    }
}
