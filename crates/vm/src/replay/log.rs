//! The log that QEMU's driver `blklogwrites` writes, in the format of Linux's dm-log-writes.
//!
//! Format: Documentation/admin-guide/device-mapper/log-writes.rst and drivers/md/dm-log-writes.c of Linux,
//! block/blklogwrites.c of QEMU. Everything is little-endian and begins at a multiple of the log's sector:
//!
//! | superblock | | entry | |
//! |---|---|---|---|
//! | 0 | magic | 0 | sector, in sectors of the log |
//! | 8 | version, 1 | 8 | number of sectors |
//! | 16 | number of entries | 16 | flags |
//! | 24 | bytes of a sector (u32) | 24 | bytes of data of a mark |
//!
//! The data of a write follow its entry; a discard has none. QEMU updates the number of entries now and
//! then, so it is only a minimum; behind the last entry the file is zero, or ends.

use std::io::{self, Read, Seek, SeekFrom};

use anyhow::{Context, Result, bail};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;

const FLUSH: u64 = 1 << 0;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;

/// One thing that the machine did to its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// On the disk, in bytes.
    pub offset: u64,
    /// In bytes.
    pub length: u64,
    /// All writes that were done before are durable.
    pub flush: bool,
    /// This write is durable once it is done.
    pub fua: bool,
    /// What was there may be anything.
    pub discard: bool,
    /// Where in the log the data are.
    pub data_at: u64,
}

/// Reads a log from its beginning.
pub struct Log<R> {
    io: R,
    sector: u64,
    at: u64,
    least: u64,
    read: u64,
}

impl<R: Read + Seek> Log<R> {
    /// Reads the superblock.
    pub fn open(mut io: R) -> Result<Self> {
        let mut head = [0; 28];
        io.seek(SeekFrom::Start(0))?;
        io.read_exact(&mut head)
            .context("the log has no superblock")?;
        if (number(&head, 0), number(&head, 8)) != (MAGIC, VERSION) {
            bail!("this is no log of writes (dm-log-writes, version 1)");
        }
        let sector = number(&head, 24) & 0xffff_ffff;
        if !sector.is_power_of_two() || !(512..=8 << 20).contains(&sector) {
            bail!("the log's sectors have {sector} bytes");
        }
        Ok(Self {
            io,
            sector,
            at: sector,
            least: number(&head, 16),
            read: 0,
        })
    }

    /// The next entry; none at the end.
    pub fn entry(&mut self) -> Result<Option<Entry>> {
        let mut head = [0; 32];
        self.io.seek(SeekFrom::Start(self.at))?;
        let whole = match self.io.read_exact(&mut head) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(e) => return Err(e).context("cannot read the log"),
        };
        if !whole || head == [0; 32] {
            if self.read < self.least {
                bail!("the log ends after {} of {} entries", self.read, self.least);
            }
            return Ok(None);
        }
        self.read += 1;
        let [sector, sectors, flags, extra] = [0, 8, 16, 24].map(|at| number(&head, at));
        if flags & !(FLUSH | FUA | DISCARD | MARK) != 0 {
            bail!(
                "entry {} of the log has unknown flags {flags:#x}",
                self.read
            );
        }
        let bytes = |sectors: u64| {
            sectors
                .checked_mul(self.sector)
                .with_context(|| format!("entry {} of the log is too large", self.read))
        };
        let entry = Entry {
            offset: bytes(sector)?,
            length: bytes(sectors)?,
            flush: flags & FLUSH != 0,
            fua: flags & FUA != 0,
            discard: flags & DISCARD != 0,
            data_at: self.at + self.sector,
        };
        let data = match (flags & MARK != 0, entry.discard) {
            (true, _) => extra.next_multiple_of(self.sector),
            (_, true) => 0,
            _ => entry.length,
        };
        self.at = entry
            .data_at
            .checked_add(data)
            .context("an entry of the log does not end")?;
        Ok(Some(entry))
    }

    /// Copies what an entry wrote.
    pub fn data(&mut self, entry: &Entry, to: &mut impl io::Write) -> io::Result<()> {
        self.io.seek(SeekFrom::Start(entry.data_at))?;
        let copied = io::copy(&mut (&mut self.io).take(entry.length), to)?;
        match copied == entry.length {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    for (to, from) in value.iter_mut().zip(&bytes[at..]) {
        *to = *from;
    }
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn log(entries: u64, body: &[(u64, u64, u64, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for value in [MAGIC, VERSION, entries] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(512_u32.to_le_bytes());
        bytes.resize(512, 0);
        for (sector, sectors, flags, data) in body {
            let start = bytes.len();
            for value in [*sector, *sectors, *flags, 0] {
                bytes.extend(value.to_le_bytes());
            }
            bytes.resize(start + 512, 0);
            bytes.extend_from_slice(data);
        }
        bytes
    }

    #[test]
    fn entries_and_their_data() {
        let data = [7; 1024];
        let mut bytes = log(
            2,
            &[
                (3, 2, 0, &data),
                (0, 0, FLUSH, &[]),
                (9, 4, DISCARD, &[]),
                (1, 1, FUA, &[8; 512]),
            ],
        );
        bytes.resize(bytes.len() + 4096, 0);
        let mut log = Log::open(Cursor::new(&bytes)).unwrap();
        let write = log.entry().unwrap().unwrap();
        assert_eq!((write.offset, write.length), (1536, 1024));
        assert!(!write.flush && !write.fua && !write.discard);
        let mut copy = Vec::new();
        log.data(&write, &mut copy).unwrap();
        assert_eq!(copy, data);
        assert!(log.entry().unwrap().unwrap().flush);
        let discard = log.entry().unwrap().unwrap();
        assert!(discard.discard && discard.length == 2048);
        let last = log.entry().unwrap().unwrap();
        assert!(last.fua && last.offset == 512);
        assert_eq!(log.entry().unwrap(), None);
    }

    #[test]
    fn nonsense_is_named() {
        let open = |bytes: &[u8]| Log::open(Cursor::new(bytes.to_vec())).map(drop);
        assert!(open(&[0; 10]).is_err());
        assert!(open(&[0; 512]).unwrap_err().to_string().contains("no log"));
        let mut bytes = log(0, &[]);
        bytes[24] = 3;
        assert!(open(&bytes).is_err());
        let first = |bytes: Vec<u8>| Log::open(Cursor::new(bytes)).unwrap().entry();
        assert!(first(log(0, &[])).unwrap().is_none());
        let short = first(log(2, &[])).unwrap_err().to_string();
        assert_eq!(short, "the log ends after 0 of 2 entries");
        assert!(first(log(1, &[(1, 1, 1 << 9, &[])])).is_err());
        assert!(first(log(1, &[(u64::MAX, 1, 0, &[])])).is_err());
    }
}
