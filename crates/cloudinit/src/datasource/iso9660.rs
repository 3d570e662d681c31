//! ISO 9660 (ECMA-119) with the two extensions that give files their real names: Joliet and Rock
//! Ridge (SUSP's `NM` entries). Reads what a config disk needs, trusts no number in the image.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::disk::{MAX_FILE, Volume};

const SECTOR: usize = 2048;
/// Volume descriptors start here (ECMA-119, 6.2.1), and there are few of them.
const FIRST_DESCRIPTOR: u32 = 16;
const MAX_DESCRIPTORS: usize = 32;
/// A directory of a config disk is one sector.
const MAX_DIRECTORY: u32 = 1 << 20;

pub(super) struct Iso<R = File> {
    image: R,
    label: String,
    primary: Extent,
    joliet: Option<Extent>,
}

#[derive(Debug, Clone, Copy)]
struct Extent {
    sector: u32,
    length: u32,
}

struct Record {
    name: String,
    extent: Extent,
    directory: bool,
}

/// What is read at a place. A trait of our own because tests read from memory.
pub(super) trait ReadAt {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

/// `None` when the image is something else.
pub(super) fn open<R: ReadAt>(image: R) -> io::Result<Option<Iso<R>>> {
    let mut primary = None;
    let mut joliet = None;
    for sector in (FIRST_DESCRIPTOR..).take(MAX_DESCRIPTORS) {
        let mut descriptor = [0; SECTOR];
        image.read_at(&mut descriptor, offset(sector))?;
        if &descriptor[1..6] != b"CD001" {
            break;
        }
        // The record of the root directory is at 156 in both kinds (8.4, 8.5).
        let root = extent(&descriptor[156..190]);
        match descriptor[0] {
            1 if primary.is_none() => {
                let label = String::from_utf8_lossy(&descriptor[40..72]);
                primary = Some((label.trim_end_matches([' ', '\0']).to_owned(), root));
            }
            // UCS-2 escape sequences at 88 mark a supplementary descriptor as Joliet.
            2 if descriptor[88..90] == *b"%/" => joliet = Some(root),
            255 => break,
            _ => {}
        }
    }
    Ok(primary.map(|(label, primary)| Iso {
        image,
        label,
        primary,
        joliet,
    }))
}

/// Location and length of a record; both are stored twice, little-endian first (7.3.3).
fn extent(record: &[u8]) -> Extent {
    Extent {
        sector: u32_at(record, 2),
        length: u32_at(record, 10),
    }
}

fn offset(sector: u32) -> u64 {
    u64::from(sector) * SECTOR as u64
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    u32::from_le_bytes(four.unwrap_or_default())
}

impl<R: ReadAt> Volume for Iso<R> {
    fn label(&self) -> &str {
        &self.label
    }

    /// Rock Ridge names are in the primary tree. Without them the primary tree may have shortened
    /// names, so Joliet's is asked too.
    fn read(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        if let Some(bytes) = self.read_from(self.primary, path, Names::Primary)? {
            return Ok(Some(bytes));
        }
        match self.joliet {
            Some(root) => self.read_from(root, path, Names::Joliet),
            None => Ok(None),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Names {
    Primary,
    Joliet,
}

impl<R: ReadAt> Iso<R> {
    fn read_from(&self, root: Extent, path: &str, names: Names) -> io::Result<Option<Vec<u8>>> {
        let mut at = root;
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            let records = self.directory(at, names)?;
            let record = records
                .into_iter()
                .find(|r| r.directory != last && r.name.eq_ignore_ascii_case(part));
            match record {
                Some(record) => at = record.extent,
                None => return Ok(None),
            }
        }
        if u64::from(at.length) > MAX_FILE {
            return Err(io::Error::other("the file is too large"));
        }
        self.bytes(at).map(Some)
    }

    fn directory(&self, extent: Extent, names: Names) -> io::Result<Vec<Record>> {
        if extent.length > MAX_DIRECTORY {
            return Err(io::Error::other("the directory is too large"));
        }
        let bytes = self.bytes(extent)?;
        let mut records = Vec::new();
        // Records do not cross sectors (6.8.1.1); a length of 0 ends a sector's.
        for sector in bytes.chunks(SECTOR) {
            let mut rest = sector;
            while let Some(&length) = rest.first() {
                let length = usize::from(length);
                if length < 34 || length > rest.len() {
                    break;
                }
                records.extend(record(&rest[..length], names));
                rest = &rest[length..];
            }
        }
        Ok(records)
    }

    fn bytes(&self, extent: Extent) -> io::Result<Vec<u8>> {
        // In steps, so that a made-up length costs nothing before the end of the image is met.
        let mut bytes = Vec::new();
        let mut left = extent.length as usize;
        let mut offset = offset(extent.sector);
        while left > 0 {
            let step = left.min(64 * 1024);
            let start = bytes.len();
            bytes.resize(start + step, 0);
            self.image.read_at(&mut bytes[start..], offset)?;
            left -= step;
            offset += step as u64;
        }
        Ok(bytes)
    }
}

/// One directory record (9.1); `None` for `.` and `..`.
fn record(bytes: &[u8], names: Names) -> Option<Record> {
    let length = usize::from(bytes[32]);
    let raw = bytes.get(33..33 + length)?;
    if matches!(raw, [0] | [1]) {
        return None;
    }
    let name = match names {
        Names::Joliet => strip_version(&ucs2(raw)).to_owned(),
        Names::Primary => {
            // The system use area starts at the next even place behind the name.
            let area = bytes
                .get(33 + length + (length + 1) % 2..)
                .unwrap_or_default();
            rock_ridge_name(area)
                .unwrap_or_else(|| strip_version(&String::from_utf8_lossy(raw)).to_owned())
        }
    };
    Some(Record {
        name,
        extent: extent(bytes),
        directory: bytes[25] & 2 != 0,
    })
}

/// `USER-DATA.;1`: version and an empty extension are not part of the name.
fn strip_version(name: &str) -> &str {
    let name = name.split_once(';').map_or(name, |(name, _)| name);
    name.strip_suffix('.').unwrap_or(name)
}

fn ucs2(raw: &[u8]) -> String {
    let units: Vec<u16> = raw
        .chunks_exact(2)
        .map(|two| u16::from_be_bytes([two[0], two[1]]))
        .collect();
    String::from_utf16_lossy(&units)
}

/// The `NM` entries of a system use area joined together: signature, length, version, flags, text.
fn rock_ridge_name(mut area: &[u8]) -> Option<String> {
    let mut name: Option<Vec<u8>> = None;
    while let [a, b, length, _, rest @ ..] = area {
        let length = usize::from(*length);
        if length < 4 || length > area.len() {
            break;
        }
        if [*a, *b] == *b"NM" && length > 5 {
            name.get_or_insert_default().extend(&rest[1..length - 4]);
        }
        area = &area[length..];
    }
    name.map(|name| String::from_utf8_lossy(&name).into_owned())
}
