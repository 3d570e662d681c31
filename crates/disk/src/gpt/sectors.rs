//! Sectors that were written to a disk which is not there.

use crate::io::{SECTOR, SECTOR_U64};
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Collects what `gptman` writes. It knows the format and we know the order: it puts the
/// primary table first, and a power cut between its two halves would leave nothing valid.
pub(super) struct Sectors {
    disk_size: u64,
    pos: u64,
    sectors: BTreeMap<u64, [u8; SECTOR]>,
}

impl Sectors {
    pub(super) fn new(disk_size: u64) -> Sectors {
        Sectors {
            disk_size,
            pos: 0,
            sectors: BTreeMap::new(),
        }
    }

    pub(super) fn get(&self, lba: u64) -> [u8; SECTOR] {
        self.sectors.get(&lba).copied().unwrap_or([0; SECTOR])
    }

    /// The bytes of consecutive sectors.
    pub(super) fn range(&self, first: u64, count: u64) -> Vec<u8> {
        (first..first + count)
            .flat_map(|lba| self.get(lba))
            .collect()
    }
}

impl Write for Sectors {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let lba = self.pos / SECTOR_U64;
        // The remainder is below 512.
        #[allow(clippy::cast_possible_truncation)]
        let at = (self.pos % SECTOR_U64) as usize;
        let len = buf.len().min(SECTOR - at);
        self.sectors.entry(lba).or_insert([0; SECTOR])[at..at + len].copy_from_slice(&buf[..len]);
        self.pos += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Sectors {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Seek for Sectors {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let pos = match to {
            SeekFrom::Start(pos) => Some(pos),
            SeekFrom::End(by) => self.disk_size.checked_add_signed(by),
            SeekFrom::Current(by) => self.pos.checked_add_signed(by),
        };
        self.pos = pos.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.pos)
    }
}
