//! Which release runs. Everybody asks here: the command line names the release that the boot loader
//! started, and a soft-reboot leaves that one for another under the same kernel.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cmdline::Cmdline;
use crate::file::{self, ReadError};
use crate::under;

/// Left by the last soft-reboot; `/run` outlives one, and no other reboot.
pub const SOFT_REBOOT: &str = "/run/orlop/soft-reboot.json";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoftReboot {
    /// Soft-reboots into another release since the kernel started.
    pub releases: u32,
    /// Whether the last one was one of them: then the boot loader knows nothing of this boot.
    pub changed: bool,
    /// Seconds of uptime.
    pub at: u64,
}

/// The root hash of the `/usr` that is mounted: as dm-verity was told it, else as the command line has
/// it. None on a system without verity. What is wrong with a damaged one is the caller's to say.
pub fn root_hash(root: &Path) -> Result<Option<String>, ReadError> {
    match mounted(root) {
        Some(hash) => Ok(Some(hash)),
        None => Ok(Cmdline::read(root)?.get("usrhash").map(str::to_owned)),
    }
}

/// The mapped device's UUID is readable for everybody, its table only for root.
fn mounted(root: &Path) -> Option<String> {
    let device = fs::metadata(under(root, "/usr")).ok()?.dev();
    let of = |device: &str| {
        let uuid = file::read(root, &format!("/sys/dev/block/{device}/dm/uuid")).ok()?;
        from_uuid(uuid.trim())
    };
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    // Where extensions are laid over it, that is the device of an overlay; what is below is in the table.
    of(&format!("{major}:{minor}")).or_else(|| {
        let table = file::read(root, "/proc/self/mountinfo").ok()?;
        on_usr(&table).rev().find_map(of)
    })
}

/// The devices (`MAJOR:MINOR`) of what is mounted on `/usr`, oldest first; see proc_pid_mountinfo(5).
fn on_usr(table: &str) -> impl DoubleEndedIterator<Item = &str> {
    table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let (device, _, point) = (fields.next()?, fields.next()?, fields.next()?);
        (point == "/usr").then_some(device)
    })
}

/// `CRYPT-VERITY-`, both halves of the root hash, and a name; see `disk::dm`.
fn from_uuid(uuid: &str) -> Option<String> {
    let mut parts = uuid.strip_prefix("CRYPT-VERITY-")?.splitn(3, '-');
    let halves = [parts.next()?, parts.next()?];
    parts.next()?;
    let hash = halves.concat();
    let is_half = |half: &str| half.len() == 32 && half.bytes().all(|b| b.is_ascii_hexdigit());
    halves.into_iter().all(is_half).then_some(hash)
}

/// What the last soft-reboot left, if there was one.
pub fn soft_reboot(root: &Path) -> Option<SoftReboot> {
    let text = fs::read(under(root, SOFT_REBOOT)).ok()?;
    // Written by us, whole: what else it may be says nothing.
    serde_json::from_slice(&text).ok()
}

/// The boot, for those to whom another release is another boot: the kernel's id, and the number of
/// releases that it has seen.
pub fn boot(root: &Path) -> Result<String, ReadError> {
    let id = crate::machine::boot_id(root)?;
    Ok(match soft_reboot(root) {
        Some(SoftReboot { releases, .. }) if releases > 0 => format!("{id}+{releases}"),
        _ => id,
    })
}

/// What names the running kernel part. None: a release from before there was such a file.
pub fn kernel(root: &Path) -> Option<String> {
    let text = file::read(root, release::KERNEL_FILE).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_wins_over_the_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let write = |path: &str, text: &str| {
            let path = under(root, path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let (booted, mounted) = ("ab".repeat(32), "0123456789abcdef".repeat(4));
        write("/usr/lib/os-release", "");
        assert!(root_hash(root).is_err());
        write("/proc/cmdline", "quiet\n");
        assert_eq!(root_hash(root).unwrap(), None);
        write("/proc/cmdline", &format!("usrhash={booted} quiet\n"));
        assert_eq!(root_hash(root).unwrap(), Some(booted.clone()));

        let device = fs::metadata(root.join("usr")).unwrap().dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let uuid = format!("/sys/dev/block/{major}:{minor}/dm/uuid");
        let (first, second) = mounted.split_at(32);
        write(&uuid, &format!("CRYPT-VERITY-{first}-{second}-usr-b\n"));
        assert_eq!(root_hash(root).unwrap(), Some(mounted.clone()));
        // As older releases named it, and somebody else's device.
        for other in [format!("CRYPT-VERITY-{first}-usr"), "LVM-x".to_owned()] {
            write(&uuid, &other);
            assert_eq!(root_hash(root).unwrap(), Some(booted.clone()), "{other}");
        }
    }

    #[test]
    fn what_is_below_an_overlay_runs() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let write = |path: &str, text: &str| {
            let path = under(root, path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("/usr/lib/os-release", "");
        write(
            "/proc/cmdline",
            &format!("usrhash={} quiet\n", "ab".repeat(32)),
        );
        write(
            "/proc/self/mountinfo",
            "22 1 0:20 / / rw - btrfs /dev/vda7 rw\n\
             31 22 253:0 / /usr ro,relatime - erofs /dev/mapper/usr-a ro\n\
             40 22 253:9 / /usr/share ro - erofs /dev/mapper/x ro\n\
             90 31 0:48 / /usr ro,relatime - overlay sysext ro\n",
        );
        let running = "0123456789abcdef".repeat(4);
        let (first, second) = running.split_at(32);
        write(
            "/sys/dev/block/253:0/dm/uuid",
            &format!("CRYPT-VERITY-{first}-{second}-usr-a\n"),
        );
        assert_eq!(root_hash(root).unwrap(), Some(running));
    }

    #[test]
    fn another_release_is_another_boot() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let write = |path: &str, text: &str| {
            let path = under(root, path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("/proc/sys/kernel/random/boot_id", "aa-bb\n");
        assert_eq!(boot(root).unwrap(), "aabb");
        write(SOFT_REBOOT, r#"{"releases":0,"changed":false,"at":9}"#);
        assert_eq!(boot(root).unwrap(), "aabb");
        write(SOFT_REBOOT, r#"{"releases":2,"changed":true,"at":9}"#);
        assert_eq!(boot(root).unwrap(), "aabb+2");
        write(SOFT_REBOOT, "{");
        assert_eq!(boot(root).unwrap(), "aabb");
    }
}
