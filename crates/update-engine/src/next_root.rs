//! The root that a soft-reboot goes into: systemd takes what it finds at `/run/nextroot`.
//!
//! It is put together when everything else has ended, because /etc has one writer at a time. A release
//! that waits in the other slot is taken if its kernel part is what runs; else the same release starts
//! anew. Whatever fails here ends in a whole reboot (`FailureAction=` of the unit), which boots the
//! staged release as ever: its boot entry was written before anybody asked for a soft-reboot.
//!
//! Nothing is taken from the daemon but that a release waits. The slot's root hash is in the partition
//! table, the writer has checked what it stands for, and dm-verity checks every block again.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use disk::dm::{CONTROL, Control, VerityTarget};
use disk::sysfs;
use disk::verity::{BLOCK_SIZE, RootHash, Superblock};
use host::running::{self, SoftReboot};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

use crate::paths::Paths;
use crate::slots::{Access, Source, to_disk};

const NEXT: &str = "/run/nextroot";

pub fn run(source: &Source) -> anyhow::Result<()> {
    anyhow::ensure!(
        source.root == Path::new("/"),
        "a soft-reboot is of the running system"
    );
    let paths = Paths::new(&source.root);
    let before = mapped_name("/usr");
    bind("/", NEXT)?;
    // Else what is mounted in it would be mounted over what runs as well.
    mount_change(NEXT, MountPropagationFlags::PRIVATE)
        .with_context(|| format!("cannot make {NEXT} private"))?;
    let changed = match staged(source, &paths) {
        Ok(Some(slot)) => slot.mount()?,
        Ok(None) => None,
        // The same release starts anew; the staged one waits for a whole reboot.
        Err(e) => {
            tracing::warn!("the staged release is not taken: {e:#}");
            None
        }
    };
    if changed.is_none() {
        bind("/usr", &format!("{NEXT}/usr"))?;
    }
    etc()?;
    tmp()?;
    begin(&paths, changed)?;
    if let (Some(_), Some(name)) = (changed, before) {
        // The old /usr goes with the old root; its slot is the next one to be written.
        Control::open(Path::new(CONTROL))?.remove_when_unused(&name)?;
    }
    Ok(())
}

/// The other slot, if what is in it may be started.
struct Staged {
    name: String,
    root_hash: RootHash,
    data: PathBuf,
    hashes: PathBuf,
}

fn staged(source: &Source, paths: &Paths) -> anyhow::Result<Option<Staged>> {
    if !paths.reboot_needed().exists() {
        return Ok(None);
    }
    let disk = source.open(Access::Read)?;
    let slot = disk.passive();
    let entry = disk.entry(slot)?.filter(|entry| entry.is_bootable());
    let entry = entry.with_context(|| format!("the boot loader would not start slot {slot}"))?;
    if entry.tries_done > 0 {
        bail!("slot {slot} was tried before");
    }
    let root_hash = disk.table.root_hash_of(to_disk(slot))?;
    let root_hash = root_hash.with_context(|| format!("slot {slot} is empty"))?;
    let disks = sysfs::disks(&source.root)?;
    let found = disks.iter().find(|found| found.node == disk.path);
    let found = found.with_context(|| format!("{} is gone", disk.path.display()))?;
    Ok(Some(Staged {
        name: format!("usr-{slot}"),
        root_hash,
        data: found.partition(to_disk(slot).data_label())?.1,
        hashes: found.partition(to_disk(slot).verity_label())?.1,
    }))
}

impl Staged {
    /// Mounts its /usr, unless another kernel belongs to it.
    fn mount(&self) -> anyhow::Result<Option<RootHash>> {
        let control = Control::open(Path::new(CONTROL))?;
        let mut block = [0; BLOCK_SIZE];
        File::open(&self.hashes)
            .and_then(|mut file| file.read_exact(&mut block))
            .with_context(|| format!("cannot read {}", self.hashes.display()))?;
        let target = VerityTarget::new(
            self.data.display().to_string(),
            self.hashes.display().to_string(),
            Superblock::parse(&block)?.data_blocks,
            self.root_hash,
        );
        let number = control.open_verity(&self.name, &target)?;
        let usr = format!("{NEXT}/usr");
        let flags = MountFlags::RDONLY | MountFlags::NODEV;
        file_system(
            &format!("/dev/dm-{}", number.minor),
            "erofs",
            &usr,
            flags,
            "",
        )?;
        if same_kernel(Path::new("/"), Path::new(NEXT)) {
            return Ok(Some(self.root_hash));
        }
        tracing::warn!("the staged release has another kernel: it waits for a whole reboot");
        unmount(&usr, UnmountFlags::empty()).with_context(|| format!("cannot unmount {usr}"))?;
        control.remove_when_unused(&self.name)?;
        Ok(None)
    }
}

/// Releases that do not say what their kernel part is are all different.
fn same_kernel(this: &Path, next: &Path) -> bool {
    running::kernel(this).is_some_and(|kernel| running::kernel(next) == Some(kernel))
}

/// The release's defaults below, what this host changed above: as the initrd has it.
fn etc() -> anyhow::Result<()> {
    let layers = format!("{NEXT}/var/lib/orlop/etc");
    let options = format!(
        "lowerdir={NEXT}/usr/share/orlop/etc,upperdir={layers}/upper,workdir={layers}/work"
    );
    // It was unmounted with everything else, unless something still held it.
    let _ = unmount("/etc", UnmountFlags::DETACH);
    let target = format!("{NEXT}/etc");
    file_system("etc", "overlay", &target, MountFlags::empty(), &options)
}

fn tmp() -> anyhow::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let options = "mode=1777,size=50%,nr_inodes=1m";
    file_system("tmpfs", "tmpfs", &format!("{NEXT}/tmp"), flags, options)
}

/// What is true of this boot and not of the next.
fn begin(paths: &Paths, changed: Option<RootHash>) -> anyhow::Result<()> {
    // Until update-engine runs again, nothing is known of updates.
    for path in [
        paths.good(),
        paths.slots(),
        paths.reboot_needed(),
        paths.status(),
        paths.metrics(),
    ] {
        host::atomic::remove(&path)?;
    }
    // By what it did in this boot cloudinit knows what it need not start again: all of it was stopped.
    for path in ["/run/cloudinit/status.json", "/run/cloudinit/pending"] {
        host::atomic::remove(&host::under(paths.root(), path))?;
    }
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec;
    let before = running::soft_reboot(paths.root()).unwrap_or_default();
    let soft = SoftReboot {
        releases: before.releases + u32::from(changed.is_some()),
        changed: changed.is_some(),
        at: u64::try_from(uptime).unwrap_or(0),
    };
    let path = host::under(paths.root(), running::SOFT_REBOOT);
    host::atomic::write(&path, &serde_json::to_vec(&soft)?, 0o644, None)?;
    if let Some(root_hash) = changed
        && let Err(e) = record(paths, root_hash)
    {
        tracing::warn!("this boot is not recorded: {e:#}");
    }
    Ok(())
}

/// As the initrd does at every boot: should the release never get further, the other one can tell that
/// its userspace began.
fn record(paths: &Paths, root_hash: RootHash) -> anyhow::Result<()> {
    let release = fs::read_to_string(format!("{NEXT}/usr/lib/os-release")).unwrap_or_default();
    let version = release
        .lines()
        .find_map(|line| line.strip_prefix("IMAGE_VERSION="))
        .unwrap_or("");
    let boot = running::boot(paths.root())?;
    let line = serde_json::json!({
        "version": version, "usrhash": root_hash.to_string(), "boot_id": boot,
    });
    let path = paths.attempts();
    let mut file = File::options().create(true).append(true).open(&path)?;
    file.write_all(format!("{line}\n").as_bytes())?;
    Ok(file.sync_all()?)
}

/// What device-mapper calls the device that is mounted there.
fn mapped_name(place: &str) -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let device = fs::metadata(place).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let name = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/name")).ok()?;
    Some(name.trim().to_owned())
}

fn bind(source: &str, target: &str) -> anyhow::Result<()> {
    fs::create_dir_all(target).with_context(|| format!("cannot make {target}"))?;
    mount_bind(source, target).with_context(|| format!("cannot bind {source} to {target}"))
}

fn file_system(
    source: &str,
    kind: &str,
    target: &str,
    flags: MountFlags,
    options: &str,
) -> anyhow::Result<()> {
    let data = std::ffi::CString::new(options)?;
    mount(source, target, kind, flags, data.as_c_str())
        .with_context(|| format!("cannot mount {kind} {source} on {target}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_was_true_of_this_boot_is_told_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        let told = [
            paths.good(),
            paths.slots(),
            paths.reboot_needed(),
            paths.status(),
            paths.metrics(),
        ];
        for path in &told {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        fs::create_dir_all(dir.path().join("run/cloudinit")).unwrap();
        begin(&paths, None).unwrap();
        for path in &told {
            assert!(!path.exists(), "{}", path.display());
        }
    }

    #[test]
    fn only_a_kernel_that_is_known_can_be_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let [this, next] = ["this", "next"].map(|name| dir.path().join(name));
        let kernel = |root: &Path, text: &str| {
            let path = host::under(root, release::KERNEL_FILE);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert!(!same_kernel(&this, &next));
        kernel(&this, "");
        kernel(&next, "\n");
        assert!(!same_kernel(&this, &next));
        kernel(&this, "ab\n");
        assert!(!same_kernel(&this, &next));
        kernel(&next, "ab\n");
        assert!(same_kernel(&this, &next));
        kernel(&next, "ac\n");
        assert!(!same_kernel(&this, &next));
    }
}
