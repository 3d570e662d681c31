//! The disk layout as data.

use super::sectors::Sectors;
use super::table::Table;
use super::{BIOS, ESP, GptError, Partition, types};
use crate::Guid;
use crate::Slot;
use crate::io::{SECTOR, SECTOR_U64, SyncIo, read_at, write_at};
use std::io::{Read, Seek, Write};

pub const MIB: u64 = 1 << 20;
/// The smallest state partition worth making: below it btrfs needs its mixed mode.
pub const MIN_STATE: u64 = 128 * MIB;
/// What stays free at both ends: the first MiB is alignment, the last one the backup table.
const MARGIN: u64 = MIB;

/// Sizes in bytes, multiples of 1 MiB. The state partition is not here: it takes the rest of
/// whatever disk the image lands on, at first boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub bios: u64,
    pub esp: u64,
    /// One slot's file system.
    pub usr: u64,
    /// One slot's hash tree; 1/127 of `usr` is enough.
    pub verity: u64,
}

impl Layout {
    /// What machines get. A slot cannot grow later, so it is generous; images are sparse.
    pub const fn standard() -> Layout {
        Layout {
            bios: MIB,
            esp: 512 * MIB,
            usr: 2048 * MIB,
            verity: 32 * MIB,
        }
    }

    /// The smallest one with a real FAT32 (65,525 clusters), for tests in memory.
    pub const fn small() -> Layout {
        Layout {
            bios: MIB,
            esp: 36 * MIB,
            usr: 4 * MIB,
            verity: MIB,
        }
    }

    /// The size of an image with this layout and no state partition.
    pub const fn image_size(&self) -> u64 {
        self.bios + self.esp + 2 * (self.usr + self.verity) + 2 * MARGIN
    }

    fn partitions(&self) -> [(&'static str, Guid, u64); 6] {
        [
            (BIOS, types::BIOS, self.bios),
            (ESP, types::ESP, self.esp),
            (Slot::A.data_label(), types::USR, self.usr),
            (Slot::A.verity_label(), types::USR_VERITY, self.verity),
            (Slot::B.data_label(), types::USR, self.usr),
            (Slot::B.verity_label(), types::USR_VERITY, self.verity),
        ]
    }

    /// The table for a disk of this size, with both slots empty. Nothing is written.
    pub fn table(&self, disk_size: u64, disk_guid: Guid) -> Result<Table, GptError> {
        if disk_size < self.image_size() {
            return Err(GptError::TooSmall {
                have: disk_size,
                need: self.image_size(),
            });
        }
        let mut table = Table::empty(disk_size, disk_guid)?;
        let mut start = MARGIN;
        for ((label, kind, size), number) in self.partitions().into_iter().zip(1..) {
            table.put(&Partition {
                number,
                label: label.to_owned(),
                kind,
                uuid: fixed_uuid(label),
                start_bytes: start,
                size_bytes: size,
            });
            start += size;
        }
        Ok(table)
    }

    /// Writes a new table with its protective MBR. The boot code in front of the MBR's entries
    /// stays as it is.
    pub fn create(
        &self,
        io: &mut (impl Read + Write + Seek + SyncIo),
        disk_size: u64,
        disk_guid: Guid,
    ) -> Result<Table, GptError> {
        let mut table = self.table(disk_size, disk_guid)?;
        protective_mbr(io, disk_size)?;
        table.write(io)?;
        Ok(table)
    }
}

/// As [`Layout::create`], with these partitions: for disks that are not Orlop's own.
pub fn create(
    io: &mut (impl Read + Write + Seek + SyncIo),
    disk_size: u64,
    disk_guid: Guid,
    partitions: &[Partition],
) -> Result<Table, GptError> {
    let mut table = Table::empty(disk_size, disk_guid)?;
    for partition in partitions {
        table.put(partition);
    }
    protective_mbr(io, disk_size)?;
    table.write(io)?;
    Ok(table)
}

fn protective_mbr(io: &mut (impl Read + Write + Seek), disk_size: u64) -> Result<(), GptError> {
    let what = "protective MBR";
    let failed = |source| GptError::Write { what, source };
    let mut sectors = Sectors::new(disk_size);
    gptman::GPT::write_protective_mbr_into(&mut sectors, SECTOR_U64).map_err(GptError::Invalid)?;
    let mut sector = [0; SECTOR];
    read_at(io, 0, &mut sector).map_err(failed)?;
    sector[446..].copy_from_slice(&sectors.get(0)[446..]);
    write_at(io, 0, &sector).map_err(failed)
}

/// The first 16 bytes of SHA-256("orlop-partition-" + label), marked as version 8 (RFC 9562).
/// Written out, because the initrd's init carries no hash function.
pub(super) fn fixed_uuid(label: &str) -> Guid {
    let value: u128 = match label {
        "bios" => 0x42fa4ef9ea318a82a513dbfc8f9939a6,
        "esp" => 0xf415e64ed0ff81fa9fd0870a9da3636a,
        "usr-a" => 0x0f92e3eb71148bd3bb7d7cfcf386c26e,
        "usr-a-verity" => 0xabbd64206d488ffeb7585f2fed4f172a,
        "usr-b" => 0x17b95e88d4478f048bedd5cfa99fed04,
        "usr-b-verity" => 0x1f2ce95be79f897d8baf573536229105,
        _ => 0x7a63ce9259b485d79983647844e61552,
    };
    Guid(value.to_be_bytes())
}

#[cfg(all(test, feature = "tree"))]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn fixed_uuids_are_what_their_comment_says() {
        for label in [
            "bios",
            "esp",
            "usr-a",
            "usr-a-verity",
            "usr-b",
            "usr-b-verity",
            "state",
        ] {
            let hash = Sha256::digest(format!("orlop-partition-{label}"));
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&hash[..16]);
            bytes[6] = bytes[6] & 0x0f | 0x80;
            bytes[8] = bytes[8] & 0x3f | 0x80;
            assert_eq!(fixed_uuid(label), Guid(bytes), "{label}");
        }
    }
}
