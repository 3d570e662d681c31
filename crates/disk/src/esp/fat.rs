//! FAT32's allocation table: which clusters make up a file, and which are free.
//!
//! `fatfs` hides both, and writes when it likes. Here every sector's write has its place in an
//! order, so that a power cut leaves at worst clusters that nobody uses.

use super::EspError;
use crate::io::{BlockIo, SECTOR, SECTOR_U64, read_at, size_of, write_at};
use std::collections::BTreeSet;
use std::io::{Read, Seek};

/// Marks the last cluster of a chain; everything from `0x0fff_fff8` does.
const END: u32 = 0x0fff_ffff;
const FIRST_END: u32 = 0x0fff_fff8;
const BAD: u32 = 0x0fff_fff7;
/// The upper four bits of an entry are reserved and must be kept.
const MASK: u32 = 0x0fff_ffff;
const ENTRIES_PER_SECTOR: u32 = 128;

#[derive(Clone, Debug)]
pub(super) struct Fat {
    cluster_bytes: u64,
    /// Of the first copy, in bytes.
    table_start: u64,
    table_bytes: u64,
    copies: u64,
    data_start: u64,
    root: u32,
    fsinfo: Option<u64>,
    /// By cluster number; the first two are not clusters.
    entries: Vec<u32>,
    dirty: BTreeSet<u32>,
}

impl Fat {
    pub(super) fn load(io: &mut (impl Read + Seek)) -> Result<Fat, EspError> {
        let mut boot = [0; SECTOR];
        read_at(io, 0, &mut boot).map_err(EspError::io("read the boot sector"))?;
        let le = |at: usize, len: usize| {
            boot[at..at + len]
                .iter()
                .rev()
                .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        let not = |why| EspError::NotFat32 { why };
        let (per_cluster, reserved, copies) = (le(13, 1), le(14, 2), le(16, 1));
        let (total, table_sectors) = (le(32, 4), le(36, 4));
        if boot[510..] != [0x55, 0xaa] {
            return Err(not("no boot signature"));
        }
        if le(11, 2) != SECTOR_U64 {
            return Err(not("sectors are not 512 bytes"));
        }
        // FAT12 and FAT16 have a 16-bit table size and a root directory of fixed size.
        if le(17, 2) != 0 || le(19, 2) != 0 || le(22, 2) != 0 || table_sectors == 0 {
            return Err(not("it is FAT12 or FAT16, or has no table"));
        }
        if !per_cluster.is_power_of_two() || !(1..=2).contains(&copies) || reserved == 0 {
            return Err(not("the boot sector is inconsistent"));
        }
        if le(40, 2) & 0x80 != 0 {
            return Err(not("its tables are not mirrored"));
        }
        let size = size_of(io).map_err(EspError::io("find the size of the volume"))?;
        let data_sector = reserved + copies * table_sectors;
        if total <= data_sector || total * SECTOR_U64 > size {
            return Err(not("it is larger than its partition"));
        }
        let clusters = u32::try_from((total - data_sector) / per_cluster)
            .ok()
            .filter(|n| *n < BAD - 2 && u64::from(n + 2) <= table_sectors * 128)
            .ok_or_else(|| not("its table is smaller than the volume"))?;
        let root = u32::try_from(le(44, 4)).unwrap_or(0);

        let mut table = vec![0; (clusters as usize + 2) * 4];
        read_at(io, reserved * SECTOR_U64, &mut table).map_err(EspError::io("read the FAT"))?;
        let fsinfo = le(48, 2);
        Ok(Fat {
            cluster_bytes: per_cluster * SECTOR_U64,
            table_start: reserved * SECTOR_U64,
            table_bytes: table_sectors * SECTOR_U64,
            copies,
            data_start: data_sector * SECTOR_U64,
            root,
            fsinfo: (fsinfo != 0 && fsinfo < reserved).then_some(fsinfo * SECTOR_U64),
            entries: table
                .chunks_exact(4)
                .map(|e| u32::from_le_bytes([e[0], e[1], e[2], e[3]]))
                .collect(),
            dirty: BTreeSet::new(),
        })
    }

    pub(super) fn root(&self) -> u32 {
        self.root
    }

    pub(super) fn cluster_bytes(&self) -> u64 {
        self.cluster_bytes
    }

    pub(super) fn clusters_for(&self, bytes: u64) -> usize {
        usize::try_from(bytes.div_ceil(self.cluster_bytes)).unwrap_or(usize::MAX)
    }

    pub(super) fn is_cluster(&self, cluster: u32) -> bool {
        cluster >= 2 && (cluster as usize) < self.entries.len()
    }

    /// Where a cluster's data lies on the device.
    pub(super) fn offset(&self, cluster: u32) -> u64 {
        self.data_start + u64::from(cluster - 2) * self.cluster_bytes
    }

    fn next(&self, cluster: u32) -> u32 {
        self.entries[cluster as usize] & MASK
    }

    /// The clusters from `first` on, as far as they make sense, and whether they end properly.
    pub(super) fn walk(&self, first: u32) -> (Vec<u32>, bool) {
        let mut chain = Vec::new();
        let mut cluster = first;
        while self.is_cluster(cluster) && chain.len() < self.entries.len() {
            chain.push(cluster);
            cluster = self.next(cluster);
        }
        let ends = cluster >= FIRST_END && !chain.is_empty();
        (chain, ends)
    }

    pub(super) fn chain(&self, first: u32) -> Result<Vec<u32>, EspError> {
        match self.walk(first) {
            (chain, true) => Ok(chain),
            _ => Err(EspError::Corrupt {
                what: "a chain of clusters does not end",
            }),
        }
    }

    pub(super) fn free_clusters(&self) -> impl Iterator<Item = u32> {
        (2u32..)
            .zip(&self.entries[2..])
            .filter(|(_, entry)| **entry & MASK == 0)
            .map(|(cluster, _)| cluster)
    }

    fn set(&mut self, cluster: u32, value: u32) {
        let entry = &mut self.entries[cluster as usize];
        *entry = *entry & !MASK | value;
        self.dirty.insert(cluster / ENTRIES_PER_SECTOR);
    }

    /// In memory: makes these clusters one chain that ends.
    pub(super) fn link(&mut self, clusters: &[u32]) {
        for pair in clusters.windows(2) {
            self.set(pair[0], pair[1]);
        }
        if let Some(last) = clusters.last() {
            self.set(*last, END);
        }
    }

    /// In memory: lets a chain go on in another one.
    pub(super) fn append(&mut self, last: u32, first: u32) {
        self.set(last, first);
    }

    /// In memory: gives clusters back. Nothing on the device may lead to them any more.
    pub(super) fn release(&mut self, clusters: &[u32]) {
        for cluster in clusters {
            self.set(*cluster, 0);
        }
    }

    /// In memory: releases every used cluster that is not in `used`: what a torn rename or an
    /// interrupted staging left behind. Returns how many there were.
    pub(super) fn release_all_but(&mut self, used: &BTreeSet<u32>) -> usize {
        let lost = self.lost(used);
        self.release(&lost);
        lost.len()
    }

    /// Clusters that are neither free nor in `used`.
    pub(super) fn lost(&self, used: &BTreeSet<u32>) -> Vec<u32> {
        (2u32..)
            .zip(&self.entries[2..])
            .filter(|(cluster, entry)| {
                !matches!(**entry & MASK, 0 | BAD) && !used.contains(cluster)
            })
            .map(|(cluster, _)| cluster)
            .collect()
    }

    /// Writes what changed, the copy that firmware reads last, and makes it durable.
    pub(super) fn store(&mut self, io: &mut impl BlockIo) -> Result<(), EspError> {
        let failed = EspError::io("write the FAT");
        for copy in (0..self.copies).rev() {
            for number in &self.dirty {
                let at =
                    self.table_start + copy * self.table_bytes + u64::from(*number) * SECTOR_U64;
                let mut sector = [0; SECTOR];
                // The last sector may hold entries behind the last cluster.
                read_at(io, at, &mut sector).map_err(&failed)?;
                let first = (number * ENTRIES_PER_SECTOR) as usize;
                for (bytes, entry) in sector.chunks_exact_mut(4).zip(&self.entries[first..]) {
                    bytes.copy_from_slice(&entry.to_le_bytes());
                }
                write_at(io, at, &sector).map_err(&failed)?;
            }
        }
        io.sync().map_err(&failed)?;
        self.dirty.clear();
        Ok(())
    }

    /// Tells FSInfo how much is free. Only a hint to others, so it needs no place in an order.
    pub(super) fn store_free_count(&self, io: &mut impl BlockIo) -> Result<(), EspError> {
        let failed = EspError::io("write FSInfo");
        let Some(at) = self.fsinfo else { return Ok(()) };
        let mut sector = [0; SECTOR];
        read_at(io, at, &mut sector).map_err(&failed)?;
        if &sector[0..4] != b"RRaA" || &sector[484..488] != b"rrAa" {
            return Ok(());
        }
        let free = u32::try_from(self.free_clusters().count()).unwrap_or(u32::MAX);
        sector[488..492].copy_from_slice(&free.to_le_bytes());
        sector[492..496].fill(0xff);
        write_at(io, at, &sector).map_err(&failed)?;
        io.sync().map_err(&failed)
    }
}
