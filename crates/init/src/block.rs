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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    fn run(program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).output();
        let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
        assert!(output.status.success(), "{program}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A file that is mounted as a file system.
    struct Mounted(PathBuf);

    impl Mounted {
        fn path(&self, name: &str) -> String {
            self.0.join(name).display().to_string()
        }

        fn size(&self) -> u64 {
            let text = run("stat", &["-f", "-c", "%b %S", &self.path("mount")]);
            text.split(' ').map(|n| n.parse::<u64>().unwrap()).product()
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.path("mount")).status();
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Needs root, loop devices and btrfs, which not every machine has that runs tests.
    #[test]
    fn a_file_system_grows_with_its_device() {
        const MIB: u64 = 1 << 20;
        let has = |path: &str, word: &str| {
            std::fs::read_to_string(path).is_ok_and(|text| text.contains(word))
        };
        if !rustix::process::geteuid().is_root()
            || !has("/proc/filesystems", "btrfs")
            || !Path::new("/dev/loop-control").exists()
            || !Path::new("/sbin/mkfs.btrfs").exists()
        {
            return;
        }
        let name = format!("orlop-grows-{}", std::process::id());
        let at = Mounted(std::env::temp_dir().join(name));
        let (image, mount) = (at.path("image"), at.path("mount"));
        std::fs::create_dir_all(&mount).unwrap();
        let file = File::create(&image).unwrap();
        file.set_len(128 * MIB).unwrap();
        run("/sbin/mkfs.btrfs", &["--quiet", &image]);
        run("mount", &["-o", "loop", &image, &mount]);
        assert_eq!(at.size(), 128 * MIB);
        std::fs::write(at.path("mount/kept"), "what was there").unwrap();

        file.set_len(320 * MIB).unwrap();
        let device = run("findmnt", &["-n", "-o", "SOURCE", &mount]);
        run("losetup", &["--set-capacity", &device]);
        assert_eq!(size(&File::open(&device).unwrap()).unwrap(), 320 * MIB);
        assert_eq!(at.size(), 128 * MIB);
        grow_btrfs(Path::new(&mount)).unwrap();
        assert_eq!(at.size(), 320 * MIB);
        // As at every boot, when there is nothing to gain.
        grow_btrfs(Path::new(&mount)).unwrap();
        assert_eq!(
            std::fs::read_to_string(at.path("mount/kept")).unwrap(),
            "what was there"
        );
    }
}
