//! From `usrhash=` to an open verity device.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use disk::Slot;
use disk::dm::{CONTROL, Control, VerityTarget};
use disk::gpt::Table;
use disk::verity::{BLOCK_SIZE, RootHash, SALT, Superblock};

use crate::Context;
use crate::fail::Fail;
use crate::modules::Modules;

/// How long a disk may take to appear; SANs and hypervisors under load are slow, not absent.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Cmdline {
    words: Vec<String>,
}

impl Cmdline {
    pub(crate) fn read() -> Result<Self, Fail> {
        let text = fs::read_to_string("/proc/cmdline").step("reading /proc/cmdline")?;
        Ok(Self {
            words: text.split_whitespace().map(str::to_owned).collect(),
        })
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        // As for the kernel itself, the last one wins.
        self.words
            .iter()
            .rev()
            .find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
    }
}

pub(crate) struct FoundSlot {
    pub(crate) disk: PathBuf,
    pub(crate) slot: Slot,
    pub(crate) root: RootHash,
    data: PathBuf,
    hashes: PathBuf,
}

/// Waits for a disk with a slot whose partition UUIDs are the halves of `usrhash=`.
pub(crate) fn find_slot(cmdline: &Cmdline, modules: &Modules) -> Result<FoundSlot, Fail> {
    let step = "finding /usr";
    let root: RootHash = cmdline
        .get("usrhash")
        .ok_or_else(|| Fail::new(step, "the kernel command line has no usrhash="))?
        .parse()
        .step(step)?;
    let start = Instant::now();
    loop {
        for disk in disks() {
            if let Some(found) = slot_on(&disk, &root) {
                return Ok(found);
            }
        }
        if modules.load_next_for_devices()? {
            continue;
        }
        if start.elapsed() > PATIENCE {
            let seen: Vec<String> = disks().iter().map(|d| d.display().to_string()).collect();
            return Err(Fail::new(
                step,
                format!("no disk has the slot {root}; looked at: {}", seen.join(" ")),
            ));
        }
        std::thread::sleep(Duration::from_millis(4));
    }
}

fn disks() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/sys/class/block") else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|e| !e.path().join("partition").exists())
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| {
            !["loop", "ram", "dm-", "sr", "fd"]
                .iter()
                .any(|p| n.starts_with(p))
        })
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|n| Path::new("/dev").join(n))
        .collect()
}

fn slot_on(disk: &Path, root: &RootHash) -> Option<FoundSlot> {
    let table = Table::load(&mut File::open(disk).ok()?).ok()?;
    let slot = table.slot_of(root)?;
    let node = |label: &str| partition_node(disk, table.partition(label).ok()?.number);
    Some(FoundSlot {
        disk: disk.to_path_buf(),
        slot,
        root: *root,
        data: node(slot.data_label())?,
        hashes: node(slot.verity_label())?,
    })
}

/// The device node of a partition, once the kernel has made it.
pub(crate) fn partition_node(disk: &Path, number: u32) -> Option<PathBuf> {
    let name = disk.file_name()?.to_str()?;
    let separator = if name.ends_with(|c: char| c.is_ascii_digit()) {
        "p"
    } else {
        ""
    };
    let node = Path::new("/dev").join(format!("{name}{separator}{number}"));
    node.exists().then_some(node)
}

/// Opens the slot as a device whose every block is checked against the root hash as it is read. A
/// block that fails restarts the machine: no process ever sees it, and an entry that keeps failing
/// runs out of tries.
pub(crate) fn open_verity(found: &FoundSlot) -> Result<PathBuf, Fail> {
    let step = || format!("opening slot {} of {}", found.slot, found.disk.display());
    let mut block = [0; BLOCK_SIZE];
    let mut file = File::open(&found.hashes).step(step())?;
    std::io::Read::read_exact(&mut file, &mut block).step(step())?;
    let superblock = Superblock::parse(&block).step(step())?;
    let target = VerityTarget {
        data_device: found.data.display().to_string(),
        hash_device: found.hashes.display().to_string(),
        data_blocks: superblock.data_blocks,
        root: found.root,
        salt: SALT.to_vec(),
        options: vec!["panic_on_corruption".into()],
    };
    let control = Control::open(Path::new(CONTROL)).step(step())?;
    let number = control.open_verity("usr", &target).step(step())?;
    Ok(Path::new("/dev").join(format!("dm-{}", number.minor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_wins() {
        let c = Cmdline {
            words: vec!["state=a".into(), "quiet".into(), "state=volatile".into()],
        };
        assert_eq!(c.get("state"), Some("volatile"));
        assert_eq!(c.get("quiet"), None);
    }
}
