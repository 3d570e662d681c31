//! The EFI system partition: boot entries with their tries, and the UKIs behind them.
//!
//! A running host never mounts it. Counters and the first sector of a UKI (which makes it
//! bootable or not) change by writing one sector in place, because that is the largest change
//! that a power cut cannot tear. Everything larger is ordered so that what is half done is not
//! reachable; see [`Esp::write_uki`].

mod create;
mod dir;
mod fat;
mod file;
mod name;
mod uki;

pub use create::{Bootloader, create, install_bootloader, write_file};
pub(crate) use create::{put_file, volume_label};
pub use uki::FirstSector;

use crate::Slot;
use crate::io::{BlockIo, SECTOR, read_at, write_at};
pub use file::EspFile;

use dir::{Dirent, Listing};
use fat::Fat;
use name::Name;
use std::io::{Read, Seek};

/// Where `systemd-boot` looks for UKIs.
pub const LINUX_DIR: &str = "EFI/Linux";

/// What a boot loader sees of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub slot: Slot,
    /// 9 if it is not counted.
    pub tries_left: u8,
    pub tries_done: u8,
    /// Each start costs it a try. What is not counted can be started for ever.
    pub counted: bool,
    /// Of the UKI, in bytes.
    pub size: u64,
    /// It begins as a PE does ("MZ"); one that was disabled does not, and is not offered.
    pub valid: bool,
    /// Directory entries for this slot. More than one is what a power cut during the firmware's
    /// rename leaves; the next change of this slot removes the others.
    pub copies: usize,
}

impl Entry {
    /// Where the UKI is, as [`Esp::read_file`] takes it.
    pub fn path(&self) -> String {
        let name = Name {
            slot: self.slot,
            left: self.tries_left,
            done: self.tries_done,
            counted: self.counted,
        };
        format!("{LINUX_DIR}/{name}")
    }

    /// The boot loader would start it, without anybody choosing it.
    pub fn is_bootable(&self) -> bool {
        self.valid && self.tries_left > 0
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EspError {
    #[error("cannot {what} of the EFI system partition")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("the EFI system partition is not a FAT32 volume we can use: {why}")]
    NotFat32 { why: &'static str },
    #[error("the EFI system partition is damaged: {what}")]
    Corrupt { what: &'static str },
    #[error("the files of slot a and slot b share clusters; writing one would damage the other")]
    CrossLinked,
    #[error("{path} is not on the EFI system partition")]
    NotFound { path: String },
    #[error("slot {slot} has no boot entry")]
    NoEntry { slot: Slot },
    #[error("slot {slot}'s boot entry must be disabled first")]
    NotDisabled { slot: Slot },
    #[error("{tries} tries cannot be written with one digit")]
    Tries { tries: u8 },
    #[error("the EFI system partition has {have} bytes to give, but {need} are needed")]
    NoSpace { have: u64, need: u64 },
    #[error("a UKI must be a PE of more than 512 bytes and less than 4 GiB")]
    NotPe,
    #[error("what was read back of slot {slot}'s UKI is not what was to be written")]
    ReadBack { slot: Slot },
}

impl EspError {
    fn io(what: &'static str) -> impl Fn(std::io::Error) -> EspError {
        move |source| EspError::Io { what, source }
    }
}

/// An open EFI system partition. It keeps the allocation table in memory, so nobody else may
/// write to the volume meanwhile.
#[derive(Debug)]
pub struct Esp<T> {
    io: T,
    fat: Fat,
}

impl<T: Read + Seek> Esp<T> {
    pub fn open(mut io: T) -> Result<Esp<T>, EspError> {
        let fat = Fat::load(&mut io)?;
        Ok(Esp { io, fat })
    }

    pub fn into_inner(self) -> T {
        self.io
    }

    /// One entry per slot that has any, a before b.
    pub fn entries(&mut self) -> Result<Vec<Entry>, EspError> {
        let mut entries = Vec::new();
        for slot in Slot::BOTH {
            entries.extend(self.entry(slot)?);
        }
        Ok(entries)
    }

    pub fn entry(&mut self, slot: Slot) -> Result<Option<Entry>, EspError> {
        let copies = self.copies(slot)?;
        let Some((name, dirent)) = copies.first() else {
            return Ok(None);
        };
        Ok(Some(Entry {
            slot,
            tries_left: name.left,
            tries_done: name.done,
            counted: name.counted,
            size: u64::from(dirent.size),
            valid: self.starts_as_pe(dirent)?,
            copies: copies.len(),
        }))
    }

    pub fn read_file(&mut self, path: &str) -> Result<Vec<u8>, EspError> {
        let dirent = self.find(path)?;
        self.read_data(&dirent)
    }

    /// The same, without holding the file in memory.
    pub fn into_reader(mut self, path: &str) -> Result<EspFile<T>, EspError> {
        let dirent = self.find(path)?;
        let size = u64::from(dirent.size);
        let mut chain = Vec::new();
        if size > 0 {
            chain = self.fat.chain(dirent.first_cluster)?;
            chain.truncate(self.fat.clusters_for(size));
        }
        let len = self.fat.cluster_bytes();
        if (chain.len() as u64 * len) < size {
            return Err(EspError::Corrupt {
                what: "a file has fewer clusters than its size says",
            });
        }
        let offsets: Vec<u64> = chain
            .iter()
            .map(|cluster| self.fat.offset(*cluster))
            .collect();
        Ok(EspFile::new(self.io, offsets.into_iter(), len, size))
    }

    /// The bytes that a new UKI for this slot can have: what is free and what its old one has.
    pub fn room_for(&mut self, slot: Slot) -> Result<u64, EspError> {
        let chain = self.chain_of(slot)?.len();
        let free = self.fat.free_clusters().count();
        // A volume too damaged to tell what is lost has nothing to reclaim.
        let lost = self
            .used_clusters()
            .map_or(0, |used| self.fat.lost(&used).len());
        let clusters = chain + free + lost;
        // The directory may need one more cluster for a new name.
        Ok((clusters as u64).saturating_sub(1) * self.fat.cluster_bytes())
    }

    /// All directory entries of a slot, the one to believe first: a valid one, and of two that a
    /// torn rename left the one with more tries done.
    fn copies(&mut self, slot: Slot) -> Result<Vec<(Name, Dirent)>, EspError> {
        let mut copies = Vec::new();
        for dirent in self.linux_dir()?.entries {
            match Name::parse(&dirent.name) {
                Some(name) if name.slot == slot && !dirent.is_dir => copies.push((name, dirent)),
                _ => {}
            }
        }
        let mut keyed = Vec::new();
        for (name, dirent) in copies {
            let valid = self.starts_as_pe(&dirent)?;
            keyed.push(((!valid, u8::MAX - name.done, name.left), (name, dirent)));
        }
        keyed.sort_by_key(|(key, _)| *key);
        Ok(keyed.into_iter().map(|(_, copy)| copy).collect())
    }

    fn starts_as_pe(&mut self, dirent: &Dirent) -> Result<bool, EspError> {
        Ok(dirent.size > 512 && self.first_sector(dirent)?.is_some_and(|s| s[..2] == *b"MZ"))
    }

    /// `None` if the entry points to nothing.
    fn first_sector(&mut self, dirent: &Dirent) -> Result<Option<[u8; SECTOR]>, EspError> {
        if !self.fat.is_cluster(dirent.first_cluster) {
            return Ok(None);
        }
        let mut sector = [0; SECTOR];
        let offset = self.fat.offset(dirent.first_cluster);
        read_at(&mut self.io, offset, &mut sector).map_err(EspError::io("read a UKI"))?;
        Ok(Some(sector))
    }

    /// The clusters of all copies of a slot, as far as they make sense.
    fn chain_of(&mut self, slot: Slot) -> Result<Vec<u32>, EspError> {
        let copies = self.copies(slot)?;
        let mut clusters: Vec<u32> = copies
            .iter()
            .flat_map(|(_, dirent)| self.fat.walk(dirent.first_cluster).0)
            .collect();
        clusters.sort_unstable();
        clusters.dedup();
        Ok(clusters)
    }

    /// Nothing is written to a slot's file while it overlaps the other slot's.
    fn check_not_cross_linked(&mut self, slot: Slot) -> Result<(), EspError> {
        let mine = self.chain_of(slot)?;
        let others = self.chain_of(slot.other())?;
        if others.iter().any(|c| mine.binary_search(c).is_ok()) {
            return Err(EspError::CrossLinked);
        }
        Ok(())
    }

    fn linux_dir(&mut self) -> Result<Listing, EspError> {
        let cluster = self.linux_dir_cluster()?;
        Listing::read(&mut self.io, &self.fat, cluster)
    }

    fn linux_dir_cluster(&mut self) -> Result<u32, EspError> {
        let dirent = self.find(LINUX_DIR)?;
        if !dirent.is_dir {
            return Err(EspError::Corrupt {
                what: "EFI/Linux is not a directory",
            });
        }
        Ok(dirent.first_cluster)
    }

    fn find(&mut self, path: &str) -> Result<Dirent, EspError> {
        let missing = || EspError::NotFound {
            path: path.to_owned(),
        };
        let mut directory = self.fat.root();
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            let listing = Listing::read(&mut self.io, &self.fat, directory)?;
            let dirent = listing.find(part).ok_or_else(missing)?;
            if parts.peek().is_none() {
                return Ok(dirent.clone());
            }
            if !dirent.is_dir {
                return Err(missing());
            }
            directory = dirent.first_cluster;
        }
        Err(missing())
    }

    fn read_data(&mut self, dirent: &Dirent) -> Result<Vec<u8>, EspError> {
        let mut data = Vec::new();
        if dirent.size == 0 {
            return Ok(data);
        }
        let chain = self.fat.chain(dirent.first_cluster)?;
        let size = dirent.size as usize;
        for cluster in chain.iter().take(self.fat.clusters_for(size as u64)) {
            let start = data.len();
            let len = usize::try_from(self.fat.cluster_bytes()).unwrap_or(usize::MAX);
            data.resize(start + len.min(size - start), 0);
            let offset = self.fat.offset(*cluster);
            read_at(&mut self.io, offset, &mut data[start..])
                .map_err(EspError::io("read a file"))?;
        }
        if data.len() < size {
            return Err(EspError::Corrupt {
                what: "a file has fewer clusters than its size says",
            });
        }
        Ok(data)
    }
}

impl<T: BlockIo> Esp<T> {
    /// Sets a slot's counters. One sector, unless firmware has put the entry across two.
    pub fn set_tries(&mut self, slot: Slot, left: u8, done: u8) -> Result<(), EspError> {
        if let Some(tries) = [left, done].into_iter().find(|n| *n > 9) {
            return Err(EspError::Tries { tries });
        }
        self.rename(Name {
            slot,
            left,
            done,
            counted: true,
        })
    }

    /// Takes a slot's counters away: however often it is started, it stays ahead of what has no tries
    /// left. One sector, as with the counters.
    pub fn uncount(&mut self, slot: Slot) -> Result<(), EspError> {
        self.rename(Name::uncounted(slot))
    }

    fn rename(&mut self, name: Name) -> Result<(), EspError> {
        let slot = name.slot;
        let dirent = self.single(slot)?.ok_or(EspError::NoEntry { slot })?;
        self.put(name, Some(&dirent), dirent.first_cluster, dirent.size)
    }

    /// Makes a slot unbootable by clearing the first sector of its UKI. No entry is fine: there
    /// is nothing that could be booted.
    pub fn disable(&mut self, slot: Slot) -> Result<(), EspError> {
        self.check_not_cross_linked(slot)?;
        let failed = EspError::io("clear a UKI's first sector");
        for (_, dirent) in self.copies(slot)? {
            if dirent.size > 0 && self.fat.is_cluster(dirent.first_cluster) {
                let offset = self.fat.offset(dirent.first_cluster);
                write_at(&mut self.io, offset, &[0; SECTOR]).map_err(&failed)?;
            }
        }
        self.io.sync().map_err(&failed)
    }

    /// The slot's one directory entry, after removing those that a torn rename left beside it.
    fn single(&mut self, slot: Slot) -> Result<Option<Dirent>, EspError> {
        let mut copies = self.copies(slot)?.into_iter();
        let first = copies.next();
        for (_, surplus) in copies {
            dir::delete(&mut self.io, &surplus)?;
        }
        Ok(first.map(|(_, dirent)| dirent))
    }

    /// Writes a slot's name, extent and size, in place of `old` if that lies in one sector.
    fn put(
        &mut self,
        name: Name,
        old: Option<&Dirent>,
        first_cluster: u32,
        size: u32,
    ) -> Result<(), EspError> {
        let text = name.to_string();
        if let Some((old, sector)) = old.and_then(|old| Some((old, old.in_one_sector()?))) {
            let [long, short] = [old.places[0], old.places[1]].map(dir::within);
            let entry = name::long_entry(&text, name::checksum(&old.short));
            return dir::edit(&mut self.io, sector, |bytes| {
                bytes[long..long + 32].copy_from_slice(&entry);
                dir::set_extent(&mut bytes[short..short + 32], first_cluster, size);
            });
        }
        // First a second entry for the same file, then without the first one: at no time none.
        let pair = self.free_pair()?;
        let taken: Vec<[u8; 11]> = self.linux_dir()?.entries.iter().map(|d| d.short).collect();
        let short = name::alias(name.slot, &taken);
        let long = name::long_entry(&text, name::checksum(&short));
        let entry = dir::short_entry(&short, first_cluster, size);
        dir::insert(&mut self.io, pair, &long, &entry)?;
        match old {
            Some(old) => dir::delete(&mut self.io, old),
            None => Ok(()),
        }
    }

    /// Room for a name in `EFI/Linux`, which gets another cluster if it is full.
    fn free_pair(&mut self) -> Result<dir::Pair, EspError> {
        if let Some(pair) = self.linux_dir()?.pair() {
            return Ok(pair);
        }
        let directory = self.linux_dir_cluster()?;
        let chain = self.fat.chain(directory)?;
        let new = self.allocate(1)?;
        let zeros = vec![0; usize::try_from(self.fat.cluster_bytes()).unwrap_or(SECTOR)];
        let offset = self.fat.offset(new[0]);
        write_at(&mut self.io, offset, &zeros).map_err(EspError::io("extend a directory"))?;
        self.fat.link(&new);
        self.fat.store(&mut self.io)?;
        self.fat.append(chain[chain.len() - 1], new[0]);
        self.fat.store(&mut self.io)?;
        self.linux_dir()?.pair().ok_or(EspError::Corrupt {
            what: "EFI/Linux cannot be extended",
        })
    }
}
