//! Making a new EFI system partition, when an image is built.

use super::{Esp, EspError, LINUX_DIR, dir};
use crate::io::{BlockIo, SECTOR_U64};
use fatfs::{
    Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider,
};
use std::io::{Read, Seek, SeekFrom, Write};

/// What makes a volume bootable.
#[derive(Clone, Copy, Debug)]
pub struct Bootloader<'a> {
    /// `systemd-bootx64.efi`.
    pub systemd_boot: &'a [u8],
    /// `loader/loader.conf`.
    pub loader_conf: &'a str,
}

/// FAT's first day, in every time stamp: the same input gives the same image.
#[derive(Debug)]
pub(crate) struct FirstDay;

impl TimeProvider for FirstDay {
    fn get_current_date(&self) -> Date {
        self.get_current_date_time().date
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime {
            date: Date {
                year: 1980,
                month: 1,
                day: 1,
            },
            time: Time {
                hour: 0,
                min: 0,
                sec: 0,
                millis: 0,
            },
        }
    }
}

/// Formats the first `size` bytes, which must be zero, as FAT32. Labels are at most 11
/// characters, upper case.
pub fn create(
    io: &mut impl BlockIo,
    size: u64,
    label: &str,
    volume_id: u32,
) -> Result<(), EspError> {
    let failed = EspError::io("format");
    let sectors = u32::try_from(size / SECTOR_U64).map_err(|_| EspError::NotFat32 {
        why: "it cannot be larger than 2 TiB",
    })?;
    let options = FormatVolumeOptions::new()
        .total_sectors(sectors)
        .fat_type(FatType::Fat32)
        .volume_id(volume_id)
        .volume_label(volume_label(label));
    io.seek(SeekFrom::Start(0)).map_err(&failed)?;
    fatfs::format_volume(&mut *io, options).map_err(&failed)?;
    io.sync().map_err(&failed)
}

/// Creates or replaces a file, and the directories it is in. Not for a running host: its writes
/// have no order.
pub fn write_file(io: &mut impl BlockIo, path: &str, bytes: &[u8]) -> Result<(), EspError> {
    let failed = EspError::io("write a file");
    put_file(io, path, Some(bytes)).map_err(&failed)?;
    plain_dots(io)?;
    io.sync().map_err(&failed)
}

/// `systemd-boot` under the name that every firmware tries and under its own, its configuration,
/// and the directory for UKIs.
pub fn install_bootloader(io: &mut impl BlockIo, loader: &Bootloader<'_>) -> Result<(), EspError> {
    for path in ["EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"] {
        write_file(io, path, loader.systemd_boot)?;
    }
    write_file(io, "loader/loader.conf", loader.loader_conf.as_bytes())?;
    let failed = EspError::io("create EFI/Linux");
    put_file(io, &format!("{LINUX_DIR}/"), None).map_err(&failed)?;
    plain_dots(io)?;
    io.sync().map_err(&failed)
}

/// `fatfs` gives "." and ".." long names, and a ".." to the root directory its cluster. The
/// specification wants the two in the first two places and 0 for the root; fsck.fat insists, and
/// so may a firmware.
fn plain_dots(io: &mut impl BlockIo) -> Result<(), EspError> {
    let mut esp = Esp::open(io)?;
    let root = esp.fat.root();
    for directory in esp.directories()? {
        let offset = esp.fat.offset(directory);
        dir::edit(&mut esp.io, offset, |sector| {
            let short_dot = sector[32..].starts_with(b".          ");
            let short_dots = sector[96..].starts_with(b"..         ");
            if short_dot && short_dots {
                sector.copy_within(32..64, 0);
                sector.copy_within(96..128, 32);
                sector[64] = dir::DELETED;
                sector[96] = dir::DELETED;
            }
            if sector[32..].starts_with(b"..         ") && dir::cluster(&sector[32..]) == root {
                dir::set_cluster(&mut sector[32..64], 0);
            }
        })?;
    }
    Ok(())
}

/// Creates the directories in front of the last `/`, and a file unless `bytes` is `None`.
pub(crate) fn put_file(
    io: &mut (impl Read + Write + Seek),
    path: &str,
    bytes: Option<&[u8]>,
) -> std::io::Result<()> {
    io.seek(SeekFrom::Start(0))?;
    let options = FsOptions::new().time_provider(&FirstDay);
    let volume = FileSystem::new(io, options)?;
    {
        let mut directory = volume.root_dir();
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_some() {
                directory = directory.create_dir(part)?;
            } else if let Some(bytes) = bytes {
                let mut file = directory.create_file(part)?;
                file.truncate()?;
                file.write_all(bytes)?;
                file.flush()?;
            }
        }
    }
    volume.unmount()
}

/// Padded with spaces, as FAT wants it.
pub(crate) fn volume_label(label: &str) -> [u8; 11] {
    let mut padded = [b' '; 11];
    for (to, from) in padded.iter_mut().zip(label.bytes()) {
        *to = from.to_ascii_uppercase();
    }
    padded
}
