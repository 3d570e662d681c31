//! Replacing a slot's UKI so that it is bootable only once all of it is there.

use super::dir::{Dirent, Listing};
use super::name::Name;
use super::{Esp, EspError};
use crate::Slot;
use crate::io::{BlockIo, SECTOR, write_at};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io::{Read, Seek};

/// The tries of a UKI nobody has booted yet.
const FRESH: (u8, u8) = (3, 0);

/// The first 512 bytes of a UKI: what is withheld until the end, and makes it a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstSector(pub [u8; SECTOR]);

impl FirstSector {
    pub fn of(uki: &[u8]) -> Result<FirstSector, EspError> {
        match uki.first_chunk::<SECTOR>() {
            Some(sector)
                if sector.starts_with(b"MZ")
                    && uki.len() > SECTOR
                    && u32::try_from(uki.len()).is_ok() =>
            {
                Ok(FirstSector(*sector))
            }
            _ => Err(EspError::NotPe),
        }
    }
}

impl<T: Read + Seek> Esp<T> {
    /// Reads a slot's UKI, which must still be disabled, and compares the SHA-256 it will have
    /// together with its first sector. Open the partition anew for this: what was just written
    /// may be read from a cache otherwise.
    pub fn verify_uki(
        &mut self,
        slot: Slot,
        sha256: &[u8; 32],
        first: &FirstSector,
    ) -> Result<(), EspError> {
        let copies = self.copies(slot)?;
        let (_, dirent) = copies.first().ok_or(EspError::NoEntry { slot })?;
        let mut data = self.read_data(dirent)?;
        let head = data
            .first_chunk_mut::<SECTOR>()
            .ok_or(EspError::ReadBack { slot })?;
        if *head != [0; SECTOR] {
            return Err(EspError::NotDisabled { slot });
        }
        *head = first.0;
        if Sha256::digest(&data)[..] != sha256[..] {
            return Err(EspError::ReadBack { slot });
        }
        Ok(())
    }

    /// Every cluster that some directory leads to. An error if the volume is too damaged to say.
    pub(super) fn used_clusters(&mut self) -> Result<BTreeSet<u32>, EspError> {
        let mut used = BTreeSet::new();
        for directory in self.directories()? {
            used.extend(self.fat.chain(directory)?);
            for entry in Listing::read(&mut self.io, &self.fat, directory)?.entries {
                if !entry.is_dir && entry.first_cluster != 0 {
                    used.extend(self.fat.chain(entry.first_cluster)?);
                }
            }
        }
        Ok(used)
    }

    /// The first cluster of every directory, the root first.
    pub(super) fn directories(&mut self) -> Result<Vec<u32>, EspError> {
        let mut directories = vec![self.fat.root()];
        let mut next = 0;
        while let Some(directory) = directories.get(next) {
            for entry in Listing::read(&mut self.io, &self.fat, *directory)?.entries {
                let dots = matches!(entry.name.as_str(), "." | "..");
                if entry.is_dir && !dots && !directories.contains(&entry.first_cluster) {
                    directories.push(entry.first_cluster);
                }
            }
            next += 1;
        }
        Ok(directories)
    }
}

impl<T: BlockIo> Esp<T> {
    /// Writes a slot's new UKI with its first sector zero, under a fresh name. The slot must be
    /// disabled. Each step is durable before the next:
    ///
    /// 1. more clusters, if needed, as a chain of their own, then behind the old chain
    /// 2. the data
    /// 3. name and size, in one sector
    /// 4. surplus clusters are cut off, then freed
    ///
    /// So the directory entry always leads to a chain that is long enough for its size.
    pub fn write_uki(&mut self, slot: Slot, uki: &[u8]) -> Result<(), EspError> {
        FirstSector::of(uki)?;
        let size = u32::try_from(uki.len()).map_err(|_| EspError::NotPe)?;
        self.check_not_cross_linked(slot)?;
        let old = self.single(slot)?;
        let mut chain = Vec::new();
        if let Some(old) = &old {
            if self.first_sector(old)?.is_some_and(|s| s != [0; SECTOR]) && old.size > 0 {
                return Err(EspError::NotDisabled { slot });
            }
            // A chain that does not end is left alone; reclaiming finds its clusters one day.
            chain = self.fat.chain(old.first_cluster).unwrap_or_default();
        }
        if old.as_ref().and_then(Dirent::in_one_sector).is_none() {
            // Before there are clusters that no entry leads to yet: making room for a name may
            // reclaim such.
            self.free_pair()?;
        }
        let need = self.fat.clusters_for(u64::from(size));
        self.lengthen(&mut chain, need)?;
        self.write_data(&chain, uki)?;
        let name = Name {
            slot,
            left: FRESH.0,
            done: FRESH.1,
            counted: true,
        };
        self.put(name, old.as_ref(), chain[0], size)?;
        self.shorten(&chain, need)?;
        self.fat.store_free_count(&mut self.io)
    }

    /// Makes a slot bootable: one sector.
    pub fn commit_uki(&mut self, slot: Slot, first: &FirstSector) -> Result<(), EspError> {
        let copies = self.copies(slot)?;
        let (_, dirent) = copies.first().ok_or(EspError::NoEntry { slot })?;
        if self.first_sector(dirent)? != Some([0; SECTOR]) {
            return Err(EspError::NotDisabled { slot });
        }
        let offset = self.fat.offset(dirent.first_cluster);
        let failed = EspError::io("write a UKI's first sector");
        write_at(&mut self.io, offset, &first.0).map_err(&failed)?;
        self.io.sync().map_err(&failed)
    }

    pub(super) fn allocate(&mut self, count: usize) -> Result<Vec<u32>, EspError> {
        let mut clusters: Vec<u32> = self.fat.free_clusters().take(count).collect();
        if clusters.len() < count {
            let used = self.used_clusters()?;
            if self.fat.release_all_but(&used) > 0 {
                self.fat.store(&mut self.io)?;
            }
            clusters = self.fat.free_clusters().take(count).collect();
        }
        if clusters.len() < count {
            return Err(EspError::NoSpace {
                have: clusters.len() as u64 * self.fat.cluster_bytes(),
                need: count as u64 * self.fat.cluster_bytes(),
            });
        }
        Ok(clusters)
    }

    fn lengthen(&mut self, chain: &mut Vec<u32>, need: usize) -> Result<(), EspError> {
        if need <= chain.len() {
            return Ok(());
        }
        let new = self.allocate(need - chain.len())?;
        self.fat.link(&new);
        self.fat.store(&mut self.io)?;
        if let Some(last) = chain.last() {
            self.fat.append(*last, new[0]);
            self.fat.store(&mut self.io)?;
        }
        chain.extend(new);
        Ok(())
    }

    fn write_data(&mut self, chain: &[u32], uki: &[u8]) -> Result<(), EspError> {
        let failed = EspError::io("write a UKI");
        let cluster = usize::try_from(self.fat.cluster_bytes()).unwrap_or(usize::MAX);
        let mut at = 0;
        while at < uki.len() {
            // Neighbouring clusters in one go: a UKI is mostly one run.
            let first = at / cluster;
            let run = (first + 1..chain.len())
                .take_while(|i| chain[*i] == chain[*i - 1] + 1)
                .count()
                + 1;
            let end = uki.len().min((first + run) * cluster);
            let offset = self.fat.offset(chain[first]);
            if at == 0 {
                let mut head = uki[..end].to_vec();
                head[..SECTOR].fill(0);
                write_padded(&mut self.io, offset, &head).map_err(&failed)?;
            } else {
                write_padded(&mut self.io, offset, &uki[at..end]).map_err(&failed)?;
            }
            at = end;
        }
        self.io.sync().map_err(&failed)
    }

    fn shorten(&mut self, chain: &[u32], need: usize) -> Result<(), EspError> {
        let (keep, surplus) = chain.split_at(need.min(chain.len()));
        if surplus.is_empty() {
            return Ok(());
        }
        self.fat.link(&keep[keep.len() - 1..]);
        self.fat.store(&mut self.io)?;
        self.fat.release(surplus);
        self.fat.store(&mut self.io)
    }
}

/// Whole sectors, the rest of the last one zero.
fn write_padded(io: &mut impl BlockIo, offset: u64, data: &[u8]) -> std::io::Result<()> {
    let (whole, rest) = data.split_at(data.len() / SECTOR * SECTOR);
    write_at(io, offset, whole)?;
    if rest.is_empty() {
        return Ok(());
    }
    let mut last = [0; SECTOR];
    last[..rest.len()].copy_from_slice(rest);
    write_at(io, offset + whole.len() as u64, &last)
}
