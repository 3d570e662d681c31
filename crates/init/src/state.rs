//! The state partition: made on the first boot, grown when the disk has grown, mounted as the root.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use disk::gpt::{Partition, STATE, Table};
use rustix::mount::MountFlags;

use crate::Context;
use crate::block;
use crate::fail::Fail;
use crate::mounts::{SYSROOT, USR, file_system};
use crate::root::{Cmdline, FoundSlot, partition_node};

pub(crate) fn mount(cmdline: &Cmdline, found: &FoundSlot) -> Result<(), Fail> {
    if cmdline.get("state") == Some("volatile") {
        return file_system(
            "state",
            "tmpfs",
            SYSROOT,
            MountFlags::NODEV,
            "mode=0755,size=50%",
        );
    }
    let mut device = File::options()
        .read(true)
        .write(true)
        .open(&found.disk)
        .step(format!("opening {}", found.disk.display()))?;
    let plan = plan(&mut device, found)?;
    let node = match &plan {
        Plan::Create(part) => {
            block::add_partition(&device, part).step("adding the state partition")?;
            let node = wait_for(&found.disk, part.number)?;
            make_file_system(&node)?;
            node
        }
        Plan::Grow(part) => {
            block::resize_partition(&device, part).step("growing the state partition")?;
            wait_for(&found.disk, part.number)?
        }
        Plan::Use(part) => wait_for(&found.disk, part.number)?,
    };
    // Left without a file system by a power cut in the first boot: nothing was ever written to it.
    if !matches!(plan, Plan::Create(_)) && is_blank(&node)? {
        make_file_system(&node)?;
    }
    let source = node.display().to_string();
    file_system(
        &source,
        "btrfs",
        SYSROOT,
        MountFlags::NOATIME,
        "compress=zstd:1,discard=async",
    )?;
    // Always: the boot that enlarged the partition may have ended before this. Where there is nothing to gain it does
    // nothing, and a smaller file system than possible is no reason not to boot.
    if let Err(e) = block::grow_btrfs(Path::new(SYSROOT)) {
        eprintln!("init: growing the state file system: {e}");
    }
    Ok(())
}

enum Plan {
    Create(Partition),
    Grow(Partition),
    Use(Partition),
}

/// Decides what the table needs and writes it if anything.
fn plan(device: &mut File, found: &FoundSlot) -> Result<Plan, Fail> {
    let step = || format!("reading the partitions of {}", found.disk.display());
    let mut table = Table::load(device).step(step())?;
    let size = block::size(device).step(step())?;
    let moved = table.grow_to(size).step(step())?;
    let plan = match table.partition(STATE) {
        Err(_) => {
            let part = table.add_state().ok_or_else(|| {
                Fail::new(
                    "making the state partition",
                    format!(
                        "{} has no room left; enlarge the disk",
                        found.disk.display()
                    ),
                )
            })?;
            Plan::Create(part)
        }
        Ok(part) => match table.grow_state() {
            Some(grown) => Plan::Grow(grown),
            None => Plan::Use(part),
        },
    };
    // A power cut can leave only the backup intact; repair the primary while it still is.
    if moved || table.primary_damaged() || !matches!(plan, Plan::Use(_)) {
        table.write(device).step("writing the partition table")?;
    }
    Ok(plan)
}

fn wait_for(disk: &Path, number: u32) -> Result<std::path::PathBuf, Fail> {
    let start = Instant::now();
    loop {
        if let Some(node) = partition_node(disk, number) {
            return Ok(node);
        }
        if start.elapsed() > Duration::from_secs(10) {
            return Err(Fail::new(
                "finding the state partition",
                "the kernel made no device for it",
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Offsets of a btrfs superblock and of its first mirror, and the magic in them.
const SUPERBLOCKS: [u64; 2] = [0x1_0000, 0x400_0000];
const MAGIC_OFFSET: usize = 0x40;
const MAGIC: &[u8; 8] = b"_BHRfS_M";

/// Whether no copy of a superblock was ever written. A file system that is merely damaged is not
/// blank: it is left alone, and mounting it says what is wrong.
fn is_blank(node: &Path) -> Result<bool, Fail> {
    use std::os::unix::fs::FileExt;
    let file = File::open(node).step("opening the state partition")?;
    let mut first = vec![0; 4096];
    for offset in SUPERBLOCKS {
        file.read_exact_at(&mut first, offset)
            .step("reading the state partition")?;
        if first[MAGIC_OFFSET..MAGIC_OFFSET + MAGIC.len()] == MAGIC[..] {
            return Ok(false);
        }
    }
    Ok(true)
}

/// mkfs comes out of the image's /usr, through its own loader: the initrd has no libraries.
fn make_file_system(node: &Path) -> Result<(), Fail> {
    let step = "making the state file system";
    let out = Command::new(format!("{USR}/lib64/ld-linux-x86-64.so.2"))
        .arg("--library-path")
        .arg(format!("{USR}/lib/x86_64-linux-gnu"))
        .arg(format!("{USR}/sbin/mkfs.btrfs"))
        .args(["--quiet", "--force", "--nodiscard", "--label", "state"])
        .arg(node)
        .output()
        .step(step)?;
    if out.status.success() {
        return Ok(());
    }
    Err(Fail::new(step, String::from_utf8_lossy(&out.stderr).trim()))
}

/// What systemd wants to find, and a record of this boot for the update-engine: if the release never
/// gets further, the other slot can tell that its userspace at least began.
pub(crate) fn prepare_host(cmdline: &Cmdline) -> Result<(), Fail> {
    let root = Path::new(SYSROOT);
    let id = root.join("etc/machine-id");
    if fs::metadata(&id).map_or(true, |m| m.len() < 33) {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").step("making machine-id")?;
        fs::write(&id, uuid.replace('-', "")).step("writing /etc/machine-id")?;
    }
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let release = fs::read_to_string(root.join("usr/lib/os-release")).unwrap_or_default();
    let version = release
        .lines()
        .find_map(|l| l.strip_prefix("IMAGE_VERSION="))
        .unwrap_or("");
    let dir = root.join("var/lib/orlop/boot");
    let line = format!(
        "{{\"version\":\"{version}\",\"usrhash\":\"{}\",\"boot_id\":\"{}\"}}\n",
        cmdline.get("usrhash").unwrap_or(""),
        boot_id.trim()
    );
    // A record, not a condition: a full disk must not keep the machine from booting.
    let record = || -> std::io::Result<()> {
        fs::create_dir_all(&dir)?;
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(dir.join("attempts"))?;
        file.write_all(line.as_bytes())?;
        file.sync_all()
    };
    if let Err(e) = record() {
        eprintln!("init: cannot record this boot: {e}");
    }
    Ok(())
}
