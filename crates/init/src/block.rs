//! Three ioctls that no safe library offers.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::path::Path;

use disk::gpt::Partition;

/// linux/blkpg.h
const BLKPG: u64 = 0x1269;
const BLKPG_ADD_PARTITION: i32 = 1;
const BLKPG_RESIZE_PARTITION: i32 = 3;
/// linux/fs.h: _IOR(0x12, 114, size_t)
const BLKGETSIZE64: u64 = 0x8008_1272;
/// linux/btrfs.h: _IOW(0x94, 3, struct btrfs_ioctl_vol_args)
const BTRFS_IOC_RESIZE: u64 = 0x5000_9403;

#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: i32,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

#[repr(C)]
struct BlkpgArg {
    op: i32,
    flags: i32,
    length: i32,
    data: *mut BlkpgPartition,
}

#[repr(C)]
struct BtrfsVolArgs {
    fd: i64,
    name: [u8; 4088],
}

/// Bytes of a block device.
pub(crate) fn size(device: &File) -> Result<u64> {
    let mut size = 0_u64;
    // SAFETY: the kernel writes eight bytes to the pointer, which lives for the whole call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64 as _, &raw mut size) };
    check(result)?;
    Ok(size)
}

/// Tells the kernel of one new partition; the others may be in use, so the table is not re-read.
pub(crate) fn add_partition(device: &File, part: &Partition) -> Result<()> {
    match blkpg(device, BLKPG_ADD_PARTITION, part) {
        // The kernel read the new table by itself.
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        other => other,
    }
}

pub(crate) fn resize_partition(device: &File, part: &Partition) -> Result<()> {
    blkpg(device, BLKPG_RESIZE_PARTITION, part)
}

fn blkpg(device: &File, op: i32, part: &Partition) -> Result<()> {
    let overflow = |_| Error::from(std::io::ErrorKind::InvalidInput);
    let mut data = BlkpgPartition {
        start: i64::try_from(part.start_bytes).map_err(overflow)?,
        length: i64::try_from(part.size_bytes).map_err(overflow)?,
        number: i32::try_from(part.number).map_err(overflow)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let mut arg = BlkpgArg {
        op,
        flags: 0,
        length: i32::try_from(size_of::<BlkpgPartition>()).map_err(overflow)?,
        data: &raw mut data,
    };
    // SAFETY: both structures have the layout of linux/blkpg.h and outlive the call; the kernel only
    // reads them.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKPG as _, &raw mut arg) })
}

/// Grows the mounted file system to its device.
pub(crate) fn grow_btrfs(mount_point: &Path) -> Result<()> {
    let dir = File::open(mount_point)?;
    let mut arg = BtrfsVolArgs {
        fd: 0,
        name: [0; 4088],
    };
    arg.name[..3].copy_from_slice(b"max");
    // SAFETY: the structure has the layout of btrfs_ioctl_vol_args (4096 bytes), is terminated by
    // zeros and outlives the call.
    check(unsafe { libc::ioctl(dir.as_raw_fd(), BTRFS_IOC_RESIZE as _, &raw mut arg) })
}

fn check(result: i32) -> Result<()> {
    if result < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(())
    }
}
