//! Writing a release into the slot that is not booted.
//!
//! The order, each step durable before the next; a power cut anywhere leaves the other slot
//! bootable and this one either not bootable or complete:
//!
//! 1. disable: the first sector of the slot's old UKI becomes zero
//! 2. the file system and its hash tree; read back, the root hash must be the announced one
//! 3. partition UUIDs that announce the root hash: backup table, then primary
//! 4. the new UKI without its first sector, under a fresh name; read back
//! 5. commit: the first sector of the UKI
//!
//! `tests/crash` replays the writes of all of this with every flush and random subsets of
//! what was not flushed.

use crate::Slot;
use crate::esp::{Esp, EspError, FirstSector};
use crate::gpt::{ESP, GptError, Table};
use crate::io::{Aligned, BlockIo, SyncIo, fill, read_at, size_of, write_at};
use crate::verity::{BLOCK_SIZE, Hasher, Levels, RootHash, Tree, VerityError};
use sha2::{Digest, Sha256};
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};

/// Written and read at a time; a multiple of every block size there is.
const CHUNK: usize = 4 << 20;

/// What goes where. Its facts come from a verified manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagePlan {
    pub slot: Slot,
    /// The slot the machine runs from; `None` when installing from another medium.
    pub booted: Option<Slot>,
    pub root_hash: RootHash,
    /// Of the file system, in bytes.
    pub usr_size: u64,
    pub uki_sha256: [u8; 32],
}

/// The block devices that a release is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The slot's data partition.
    Data,
    /// The slot's verity partition.
    Hash,
    /// The whole disk, for its partition table.
    Disk,
    Esp,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Device::Data => "the data partition",
            Device::Hash => "the verity partition",
            Device::Disk => "the disk",
            Device::Esp => "the EFI system partition",
        })
    }
}

/// Opens devices. Called again for reading back what was written and synced: the new handle must
/// then not be served from a cache in front of the medium. The data partition may be opened for direct
/// transfers: it is written and read back in whole blocks, from [`Aligned`] memory.
pub trait Devices {
    type Io: BlockIo;

    fn open(&mut self, device: Device) -> io::Result<Self::Io>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Disable,
    WriteData,
    VerifyData,
    Table,
    WriteUki,
    VerifyUki,
    Commit,
}

/// How far a step is, in bytes; steps without a size go from 0 of 1 to 1 of 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub step: Step,
    pub done: u64,
    pub total: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error("slot {slot} is the one this machine runs from")]
    Booted { slot: Slot },
    #[error("slot {slot} holds this release already")]
    AlreadyIn { slot: Slot },
    #[error("the release's file system has {size} bytes, which is no multiple of {BLOCK_SIZE}")]
    UsrSize { size: u64 },
    #[error("{device} has {have} bytes, the release needs {need}")]
    TooSmall {
        device: Device,
        have: u64,
        need: u64,
    },
    #[error("{device} was opened with {have} bytes but the partition table says {want}")]
    WrongDevice {
        device: Device,
        have: u64,
        want: u64,
    },
    #[error("the UKI is not the one the release announces")]
    WrongUki,
    #[error("cannot read the file system's image at byte {offset}")]
    Payload {
        offset: u64,
        #[source]
        source: io::Error,
    },
    #[error("the file system's image ends after {got} bytes instead of {want}")]
    PayloadShort { got: u64, want: u64 },
    #[error("the file system's image goes on after {want} bytes")]
    PayloadLong { want: u64 },
    #[error("the file system's image has root hash {got}, the release announces {want}")]
    WrongUsr { got: RootHash, want: RootHash },
    #[error("{device} does not hold what was written to it")]
    ReadBack { device: Device },
    #[error("cannot {what} {device}")]
    Io {
        what: &'static str,
        device: Device,
        #[source]
        source: io::Error,
    },
    #[error("cannot hash the file system")]
    Verity(#[source] VerityError),
    #[error("cannot update the partition table")]
    Gpt(#[source] GptError),
    #[error("cannot update slot {slot}'s boot entry")]
    Esp {
        slot: Slot,
        #[source]
        source: EspError,
    },
}

impl StageError {
    /// The release itself is at fault, or what was downloaded of it; not this machine.
    pub fn blames_release(&self) -> bool {
        matches!(
            self,
            StageError::UsrSize { .. }
                | StageError::WrongUki
                | StageError::PayloadShort { .. }
                | StageError::PayloadLong { .. }
                | StageError::WrongUsr { .. }
                | StageError::Esp {
                    source: EspError::NotPe,
                    ..
                }
        )
    }
}

/// Writes a release into a slot; see the module. Everything that can be known beforehand is
/// checked before the first write. `usr` yields the decompressed file system and need not be
/// trusted: nothing becomes bootable unless its root hash is the plan's.
pub fn stage<D: Devices>(
    plan: &StagePlan,
    devices: &mut D,
    usr: &mut impl Read,
    uki: &[u8],
    progress: &mut dyn FnMut(Progress),
) -> Result<(), StageError> {
    let mut stage = Stage {
        plan,
        devices,
        progress,
    };
    let first = stage.check(uki)?;
    stage.disable()?;
    let written = stage.write_data(usr)?;
    let tree = stage.verify_data(written)?;
    stage.write_tree(&tree)?;
    stage.announce()?;
    stage.write_uki(uki)?;
    stage.verify_uki(&first)?;
    stage.commit(&first)
}

struct Stage<'a, D> {
    plan: &'a StagePlan,
    devices: &'a mut D,
    progress: &'a mut dyn FnMut(Progress),
}

impl<D: Devices> Stage<'_, D> {
    fn check(&mut self, uki: &[u8]) -> Result<FirstSector, StageError> {
        let StagePlan { slot, usr_size, .. } = *self.plan;
        if self.plan.booted == Some(slot) {
            return Err(StageError::Booted { slot });
        }
        if usr_size == 0 || usr_size % BLOCK_SIZE as u64 != 0 {
            return Err(StageError::UsrSize { size: usr_size });
        }
        let first = FirstSector::of(uki).map_err(self.esp_error())?;
        if Sha256::digest(uki)[..] != self.plan.uki_sha256[..] {
            return Err(StageError::WrongUki);
        }

        let mut disk = self.open(Device::Disk)?;
        let table = load_table(&mut disk)?;
        // Two slots with the same partition UUIDs could not be told apart at boot.
        if table.slot_of(&self.plan.root_hash) == Some(slot.other()) {
            return Err(StageError::AlreadyIn { slot: slot.other() });
        }
        let tree_size = Levels::of(usr_size / BLOCK_SIZE as u64).image_size();
        for (device, label, need) in [
            (Device::Data, slot.data_label(), usr_size),
            (Device::Hash, slot.verity_label(), tree_size),
            (Device::Esp, ESP, 0),
        ] {
            let want = table.partition(label).map_err(StageError::Gpt)?.size_bytes;
            let have = size_of(&mut self.open(device)?).map_err(io_error("measure", device))?;
            if have != want {
                return Err(StageError::WrongDevice { device, have, want });
            }
            if have < need {
                return Err(StageError::TooSmall { device, have, need });
            }
        }
        let have = self.esp()?.room_for(slot).map_err(self.esp_error())?;
        let need = uki.len() as u64;
        if have < need {
            let device = Device::Esp;
            return Err(StageError::TooSmall { device, have, need });
        }
        Ok(first)
    }

    fn disable(&mut self) -> Result<(), StageError> {
        self.report(Step::Disable, 0, 1);
        let slot = self.plan.slot;
        self.esp()?.disable(slot).map_err(self.esp_error())?;
        self.report(Step::Disable, 1, 1);
        Ok(())
    }

    fn write_data(&mut self, usr: &mut impl Read) -> Result<Checksum, StageError> {
        let want = self.plan.usr_size;
        let mut data = self.open(Device::Data)?;
        let mut written = Checksum::default();
        let mut buffer = Aligned::new(CHUNK);
        let mut done = 0;
        while done < want {
            let rest = usize::try_from(want - done).unwrap_or(CHUNK).min(CHUNK);
            let len = fill(usr, &mut buffer[..rest]).map_err(|source| StageError::Payload {
                offset: done,
                source,
            })?;
            if len < rest {
                let got = done + len as u64;
                return Err(StageError::PayloadShort { got, want });
            }
            written.update(&buffer[..len]);
            write_at(&mut data, done, &buffer[..len]).map_err(io_error("write", Device::Data))?;
            done += len as u64;
            self.report(Step::WriteData, done, want);
        }
        let behind = fill(usr, &mut buffer[..1]).map_err(|source| StageError::Payload {
            offset: done,
            source,
        })?;
        if behind != 0 {
            return Err(StageError::PayloadLong { want });
        }
        data.sync().map_err(io_error("flush", Device::Data))?;
        Ok(written)
    }

    /// Only what the device gives back is hashed, once: the tree is that of what will be booted.
    fn verify_data(&mut self, written: Checksum) -> Result<Tree, StageError> {
        let total = self.plan.usr_size;
        let mut data = self.open(Device::Data)?;
        let failed = io_error("read", Device::Data);
        data.seek(SeekFrom::Start(0)).map_err(&failed)?;
        let mut hasher = Hasher::new();
        let mut read = Checksum::default();
        let mut buffer = Aligned::new(CHUNK);
        let mut done = 0;
        while done < total {
            let rest = usize::try_from(total - done).unwrap_or(CHUNK).min(CHUNK);
            data.read_exact(&mut buffer[..rest]).map_err(&failed)?;
            hasher.update(&buffer[..rest]);
            read.update(&buffer[..rest]);
            done += rest as u64;
            self.report(Step::VerifyData, done, total);
        }
        if read != written {
            let device = Device::Data;
            return Err(StageError::ReadBack { device });
        }
        let tree = hasher.finish().map_err(StageError::Verity)?;
        let (got, want) = (tree.root, self.plan.root_hash);
        if got != want {
            return Err(StageError::WrongUsr { got, want });
        }
        Ok(tree)
    }

    fn write_tree(&mut self, tree: &Tree) -> Result<(), StageError> {
        let device = Device::Hash;
        let image = tree.image();
        let mut hash = self.open(device)?;
        write_at(&mut hash, 0, &image).map_err(io_error("write", device))?;
        hash.sync().map_err(io_error("flush", device))?;
        drop(hash);
        let mut read = vec![0; image.len()];
        read_at(&mut self.open(device)?, 0, &mut read).map_err(io_error("read", device))?;
        if read != image {
            return Err(StageError::ReadBack { device });
        }
        Ok(())
    }

    fn announce(&mut self) -> Result<(), StageError> {
        self.report(Step::Table, 0, 1);
        let mut disk = self.open(Device::Disk)?;
        let mut table = load_table(&mut disk)?;
        table
            .set_root_hash(self.plan.slot, &self.plan.root_hash)
            .map_err(StageError::Gpt)?;
        table.write(&mut disk).map_err(StageError::Gpt)?;
        self.report(Step::Table, 1, 1);
        Ok(())
    }

    fn write_uki(&mut self, uki: &[u8]) -> Result<(), StageError> {
        let total = uki.len() as u64;
        self.report(Step::WriteUki, 0, total);
        let slot = self.plan.slot;
        self.esp()?.write_uki(slot, uki).map_err(self.esp_error())?;
        self.report(Step::WriteUki, total, total);
        Ok(())
    }

    fn verify_uki(&mut self, first: &FirstSector) -> Result<(), StageError> {
        self.report(Step::VerifyUki, 0, 1);
        let slot = self.plan.slot;
        self.esp()?
            .verify_uki(slot, &self.plan.uki_sha256, first)
            .map_err(self.esp_error())?;
        self.report(Step::VerifyUki, 1, 1);
        Ok(())
    }

    fn commit(&mut self, first: &FirstSector) -> Result<(), StageError> {
        self.report(Step::Commit, 0, 1);
        let slot = self.plan.slot;
        self.esp()?
            .commit_uki(slot, first)
            .map_err(self.esp_error())?;
        self.report(Step::Commit, 1, 1);
        Ok(())
    }

    fn esp(&mut self) -> Result<Esp<D::Io>, StageError> {
        let io = self.open(Device::Esp)?;
        Esp::open(io).map_err(self.esp_error())
    }

    fn open(&mut self, device: Device) -> Result<D::Io, StageError> {
        self.devices.open(device).map_err(io_error("open", device))
    }

    fn esp_error(&self) -> impl Fn(EspError) -> StageError + use<D> {
        let slot = self.plan.slot;
        move |source| StageError::Esp { slot, source }
    }

    fn report(&mut self, step: Step, done: u64, total: u64) {
        (self.progress)(Progress { step, done, total });
    }
}

/// The table as it is to be written. The disk may have been enlarged since the last boot, and whoever needs the
/// backup looks for it at the real end: written where the end was, it would be no help against a torn primary.
fn load_table(disk: &mut (impl Read + Seek)) -> Result<Table, StageError> {
    let mut table = Table::load(disk).map_err(StageError::Gpt)?;
    let size = size_of(disk).map_err(io_error("measure", Device::Disk))?;
    table.grow_to(size).map_err(StageError::Gpt)?;
    Ok(table)
}

fn io_error(what: &'static str, device: Device) -> impl Fn(io::Error) -> StageError {
    move |source| StageError::Io {
        what,
        device,
        source,
    }
}

/// Tells a disk that did not keep what was written from a release that is not what it says.
/// Nothing is trusted because of it, so it only has to be cheap; hashing costs ten times more
/// where the processor has no instruction for it. All pieces but the last are multiples of 8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Checksum(u64);

impl Checksum {
    fn update(&mut self, data: &[u8]) {
        for word in data.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            // Odd multiplier: every step is a bijection of the state.
            self.0 = (self.0.rotate_left(23) ^ u64::from_le_bytes(bytes))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }
}
