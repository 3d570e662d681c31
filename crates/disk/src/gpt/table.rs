//! A loaded partition table.

use super::layout::fixed_uuid;
use super::sectors::Sectors;
use super::{GptError, MIB, MIN_STATE, Partition, STATE, empty_uuids, types, uuids_from_root_hash};
use crate::io::{SECTOR_U64, SyncIo, size_of, write_at};
use crate::verity::RootHash;
use crate::{Guid, Slot};
use gptman::{GPT, GPTHeader, GPTPartitionEntry};
use std::io::{Read, Seek, SeekFrom, Write};

/// The table in memory. Changes stay here until [`Table::write`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Always seen from the primary header, also when the backup was loaded.
    gpt: GPT,
    primary_damaged: bool,
}

impl Table {
    pub(super) fn empty(disk_size: u64, disk_guid: Guid) -> Result<Table, GptError> {
        let gpt = GPT::new_from(&mut Sectors::new(disk_size), SECTOR_U64, disk_guid.to_gpt())
            .map_err(GptError::Read)?;
        Ok(Table {
            gpt,
            primary_damaged: false,
        })
    }

    /// Reads the primary table, or the backup at the end of the device if the primary is damaged.
    pub fn load(io: &mut (impl Read + Seek)) -> Result<Table, GptError> {
        check_dimensions(io, SECTOR_U64)?;
        if let Ok(size @ SECTOR_U64..) = size_of(io) {
            check_dimensions(io, (size / SECTOR_U64 - 1) * SECTOR_U64)?;
        }
        let mut gpt = GPT::read_from(io, SECTOR_U64).map_err(GptError::Read)?;
        // Keeps all arithmetic on sectors and bytes below from overflowing.
        const MOST: u64 = 1 << 54;
        let header = &gpt.header;
        let absurd =
            |entry: &GPTPartitionEntry| entry.starting_lba >= MOST || entry.ending_lba >= MOST;
        if gpt
            .iter()
            .any(|(_, entry)| entry.is_used() && absurd(entry))
            || [header.first_usable_lba, header.last_usable_lba]
                .iter()
                .chain([&header.primary_lba, &header.backup_lba])
                .chain([&header.partition_entry_lba])
                .any(|lba| *lba >= MOST)
        {
            return Err(GptError::Read(gptman::Error::InvalidPartitionBoundaries));
        }
        let primary_damaged = gpt.is_backup();
        if primary_damaged {
            gpt.header.backup_lba = gpt.header.primary_lba;
            gpt.header.primary_lba = 1;
            gpt.header.partition_entry_lba = 2;
        }
        Ok(Table {
            gpt,
            primary_damaged,
        })
    }

    /// The backup was loaded: the next [`Table::write`] repairs the primary.
    pub fn primary_damaged(&self) -> bool {
        self.primary_damaged
    }

    pub fn disk_guid(&self) -> Guid {
        Guid::from_gpt(self.gpt.header.disk_guid)
    }

    /// The size of the disk that this table describes; the device may have grown since.
    pub fn disk_size(&self) -> u64 {
        (self.gpt.header.backup_lba + 1) * SECTOR_U64
    }

    /// All partitions, by number.
    pub fn partitions(&self) -> Vec<Partition> {
        self.gpt
            .iter()
            .filter(|(_, entry)| entry.is_used())
            .map(|(number, entry)| Partition {
                number,
                label: entry.partition_name.as_str().to_owned(),
                kind: Guid::from_gpt(entry.partition_type_guid),
                uuid: Guid::from_gpt(entry.unique_partition_guid),
                start_bytes: entry.starting_lba * SECTOR_U64,
                size_bytes: (entry.ending_lba + 1).saturating_sub(entry.starting_lba) * SECTOR_U64,
            })
            .collect()
    }

    pub fn partition(&self, label: &str) -> Result<Partition, GptError> {
        self.partitions()
            .into_iter()
            .find(|p| p.label == label)
            .ok_or_else(|| GptError::NoPartition {
                label: label.to_owned(),
            })
    }

    /// The slot whose two partitions announce this root hash.
    pub fn slot_of(&self, root: &RootHash) -> Option<Slot> {
        let wanted = uuids_from_root_hash(root);
        Slot::BOTH
            .into_iter()
            .find(|slot| self.slot_uuids(*slot).is_ok_and(|uuids| uuids == wanted))
    }

    /// The root hash that a slot announces; `None` for an empty slot.
    pub fn root_hash_of(&self, slot: Slot) -> Result<Option<RootHash>, GptError> {
        let uuids = self.slot_uuids(slot)?;
        if uuids == empty_uuids(slot) {
            return Ok(None);
        }
        let mut hash = [0; 32];
        hash[..16].copy_from_slice(&uuids.0.0);
        hash[16..].copy_from_slice(&uuids.1.0);
        Ok(Some(RootHash(hash)))
    }

    fn slot_uuids(&self, slot: Slot) -> Result<(Guid, Guid), GptError> {
        let data = self.partition(slot.data_label())?;
        let verity = self.partition(slot.verity_label())?;
        Ok((data.uuid, verity.uuid))
    }

    /// Announces that a slot holds the release with this root hash.
    pub fn set_root_hash(&mut self, slot: Slot, root: &RootHash) -> Result<(), GptError> {
        let (data, verity) = uuids_from_root_hash(root);
        self.set_uuid(slot.data_label(), data)?;
        self.set_uuid(slot.verity_label(), verity)
    }

    pub fn set_uuid(&mut self, label: &str, uuid: Guid) -> Result<(), GptError> {
        let number = self.partition(label)?.number;
        self.gpt[number].unique_partition_guid = uuid.to_gpt();
        Ok(())
    }

    /// Follows a disk that was enlarged: the backup table moves to its end and the space behind
    /// the last partition becomes usable. Returns whether that changes anything.
    pub fn grow_to(&mut self, disk_size: u64) -> Result<bool, GptError> {
        let need = (self.end_of_last_partition() + 1 + self.array_sectors() + 1) * SECTOR_U64;
        if disk_size < need {
            return Err(GptError::Shrunk {
                have: disk_size,
                need,
            });
        }
        let before = self.gpt.header.clone();
        self.gpt.header.backup_lba = disk_size / SECTOR_U64 - 1;
        self.gpt.header.last_usable_lba = self.gpt.header.backup_lba - self.array_sectors() - 1;
        Ok(self.gpt.header != before)
    }

    /// Adds the state partition behind all others, up to the end of the disk. `None` if there is
    /// one already or less than [`MIN_STATE`] is left.
    pub fn add_state(&mut self) -> Option<Partition> {
        if self.partition(STATE).is_ok() {
            return None;
        }
        let start = ((self.end_of_last_partition() + 1) * SECTOR_U64).next_multiple_of(MIB);
        let size = self.usable_end().checked_sub(start)?;
        let number = (7..=self.gpt.header.number_of_partition_entries)
            .find(|number| self.gpt[*number].is_unused())?;
        if size < MIN_STATE {
            return None;
        }
        let state = Partition {
            number,
            label: STATE.to_owned(),
            kind: types::ROOT,
            // Images are copied to many disks, so a fixed UUID would not tell them apart.
            uuid: fixed_uuid(STATE).xor(self.disk_guid()),
            start_bytes: start,
            size_bytes: size,
        };
        self.put(&state);
        Some(state)
    }

    /// Grows the state partition to the end of the disk, if it is the last one and there is at
    /// least 1 MiB to gain. The file system in it is the caller's business.
    pub fn grow_state(&mut self) -> Option<Partition> {
        let mut state = self.partition(STATE).ok()?;
        let end = state.start_bytes + state.size_bytes;
        if end != (self.end_of_last_partition() + 1) * SECTOR_U64 || self.usable_end() < end + MIB {
            return None;
        }
        state.size_bytes = self.usable_end() - state.start_bytes;
        self.put(&state);
        Some(state)
    }

    /// Writes one copy of the table, makes it durable, then the other copy. The copy that was
    /// good when the table was loaded goes last, so that there is always one that is: normally
    /// the backup is written first; after loading the backup it is the other way round.
    pub fn write(&mut self, io: &mut (impl Write + Seek + SyncIo)) -> Result<(), GptError> {
        let mut sectors = Sectors::new(self.disk_size());
        let backup = self
            .gpt
            .write_into(&mut sectors)
            .map_err(GptError::Invalid)?;
        let mut copies = [("backup", backup), ("primary", self.gpt.header.clone())];
        if self.primary_damaged {
            copies.reverse();
        }
        for (what, header) in copies {
            let failed = |source| GptError::Write { what, source };
            let entries = sectors.range(header.partition_entry_lba, self.array_sectors());
            write_at(io, header.partition_entry_lba * SECTOR_U64, &entries).map_err(failed)?;
            let first = sectors.range(header.primary_lba, 1);
            write_at(io, header.primary_lba * SECTOR_U64, &first).map_err(failed)?;
            io.flush().map_err(failed)?;
            io.sync().map_err(failed)?;
        }
        self.primary_damaged = false;
        Ok(())
    }

    pub(super) fn put(&mut self, partition: &Partition) {
        self.gpt[partition.number] = GPTPartitionEntry {
            partition_type_guid: partition.kind.to_gpt(),
            unique_partition_guid: partition.uuid.to_gpt(),
            starting_lba: partition.start_bytes / SECTOR_U64,
            ending_lba: (partition.start_bytes + partition.size_bytes) / SECTOR_U64 - 1,
            attribute_bits: 0,
            partition_name: partition.label.as_str().into(),
        };
    }

    fn array_sectors(&self) -> u64 {
        let header = &self.gpt.header;
        (u64::from(header.number_of_partition_entries) * u64::from(header.size_of_partition_entry))
            .div_ceil(SECTOR_U64)
    }

    fn end_of_last_partition(&self) -> u64 {
        self.gpt
            .iter()
            .filter(|(_, entry)| entry.is_used())
            .map(|(_, entry)| entry.ending_lba)
            .max()
            .unwrap_or(self.gpt.header.first_usable_lba - 1)
    }

    /// In bytes, aligned down.
    fn usable_end(&self) -> u64 {
        (self.gpt.header.last_usable_lba + 1) * SECTOR_U64 / MIB * MIB
    }
}

/// `gptman` asserts 128-byte entries and allocates as many as the header says. Any disk that is
/// plugged in may say something else, and the initrd aborts on a panic.
fn check_dimensions(io: &mut (impl Read + Seek), offset: u64) -> Result<(), GptError> {
    if io.seek(SeekFrom::Start(offset)).is_err() {
        return Ok(());
    }
    // An unreadable or invalid header is not ours to report: the other copy may be good.
    let Ok(header) = GPTHeader::read_from(io) else {
        return Ok(());
    };
    let (count, size) = (
        header.number_of_partition_entries,
        header.size_of_partition_entry,
    );
    if size != 128 || !(1..=1024).contains(&count) || header.first_usable_lba == 0 {
        return Err(GptError::Unsupported { count, size });
    }
    check_starts(io, header.partition_entry_lba, count)
}

/// `gptman` looks for what all starts are multiples of, and panics when each of them is 0: that is
/// where the boot sector is, and no partition.
fn check_starts(io: &mut (impl Read + Seek), lba: u64, count: u32) -> Result<(), GptError> {
    // In between there is room for all entries.
    let Some(offset) = lba.checked_mul(SECTOR_U64).filter(|at| *at < 1 << 63) else {
        return Err(GptError::Read(gptman::Error::InvalidPartitionBoundaries));
    };
    let mut starts = Vec::new();
    for number in 0..u64::from(count) {
        // Reading one does not always end where the next begins.
        let sought = io.seek(SeekFrom::Start(offset + number * 128));
        // As above: what cannot be read is said by whoever reads all of it.
        let (Ok(_), Ok(entry)) = (sought, GPTPartitionEntry::read_from(io)) else {
            return Ok(());
        };
        starts.extend(entry.is_used().then_some(entry.starting_lba));
    }
    match !starts.is_empty() && starts.iter().all(|start| *start == 0) {
        true => Err(GptError::Read(gptman::Error::InvalidPartitionBoundaries)),
        false => Ok(()),
    }
}
