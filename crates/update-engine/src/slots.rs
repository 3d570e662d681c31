//! The disk this system runs from, and what is in its two slots.
//!
//! The disk is a block device or, in tests, an image file; either way the partitions are windows
//! on the one open file. So nothing depends on partition device nodes, and a lock on the whole
//! disk covers all that is written (udev respects it and does not probe in between).

use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use disk::esp::{Entry, Esp};
use disk::gpt::{ESP, Table};
use disk::io::{Placed, Window};
use disk::sysfs;
use disk::verity::RootHash;
use host::{running, under};
use release::status::SlotStatus;
use release::{Sha256, Slot};
use rustix::fs::FlockOperation;

#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    file: File,
    pub(crate) table: Table,
    /// The slot whose `/usr` is running.
    pub(crate) booted: Slot,
    pub(crate) root_hash: RootHash,
}

/// Why there is no disk to work on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoDisk {
    /// Normal where the kernel was started directly, or from the network.
    #[error("{0}")]
    NotFromSlot(String),
    #[error("{}: {source:#}", path.display())]
    Broken {
        path: PathBuf,
        source: anyhow::Error,
    },
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Source {
    pub root: PathBuf,
    /// Instead of searching.
    pub disk: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// Alone: waits a moment for another writer, then gives up.
    Write,
}

impl Source {
    /// The root hash of the running `/usr`; none on a system without verity.
    pub(crate) fn running(&self) -> anyhow::Result<Option<RootHash>> {
        let hash = running::root_hash(&self.root)?;
        let hash = hash.map(|hash| hash.parse()).transpose();
        hash.context("usrhash= on the kernel command line")
    }

    /// Finds the disk with a slot that announces the running root hash.
    pub(crate) fn open(&self, access: Access) -> Result<Disk, NoDisk> {
        let not = |why: String| {
            NoDisk::NotFromSlot(format!("this system does not run from a slot: {why}"))
        };
        let root_hash = self.running().map_err(|e| not(format!("{e:#}")))?;
        let root_hash =
            root_hash.ok_or_else(|| not("no usrhash= on the kernel command line".into()))?;
        let path = match &self.disk {
            Some(path) => is_ours(path, root_hash).map(|()| path.clone()),
            None => find(&self.root, root_hash),
        };
        let path = path.map_err(|e| not(format!("{e:#}")))?;
        open(&path, access, root_hash).map_err(|source| NoDisk::Broken { path, source })
    }
}

/// The disk that runs. Of several with the same release (one was copied from another) the one
/// whose partition the kernel has in use.
fn find(root: &Path, root_hash: RootHash) -> anyhow::Result<PathBuf> {
    let mut found = sysfs::disks_with_release(root, &root_hash)?;
    if found.len() > 1 {
        found.retain(|(disk, slot)| is_held(root, disk, slot.data_label()));
    }
    let mut nodes = found.into_iter().map(|(disk, _)| disk.node);
    match (nodes.next(), nodes.next()) {
        (Some(node), None) => Ok(node),
        (None, _) => bail!("no disk has a slot with the root hash {root_hash}"),
        (Some(one), Some(two)) => bail!("it could be {} or {}", one.display(), two.display()),
    }
}

/// The kernel's own word on whether something (dm-verity, for one) is built on a partition.
fn is_held(root: &Path, disk: &sysfs::Disk, label: &str) -> bool {
    let Ok((_, node)) = disk.partition(label) else {
        return false;
    };
    let name = node.file_name().unwrap_or_default();
    let holders = under(root, "/sys/class/block").join(name).join("holders");
    fs::read_dir(holders).is_ok_and(|mut holders| holders.next().is_some())
}

fn is_ours(path: &Path, root_hash: RootHash) -> anyhow::Result<()> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    match Table::load(&mut file)?.slot_of(&root_hash) {
        Some(_) => Ok(()),
        None => bail!(
            "no slot of {} has the root hash {root_hash}",
            path.display()
        ),
    }
}

fn open(path: &Path, access: Access, root_hash: RootHash) -> anyhow::Result<Disk> {
    let write = access == Access::Write;
    let mut file = OpenOptions::new()
        .read(true)
        .write(write)
        .open(path)
        .context("cannot open")?;
    if write {
        lock(&file)?;
    }
    // Only now: before the lock was ours, somebody else may have written.
    let table = Table::load(&mut file)?;
    let announces = |slot| table.root_hash_of(to_disk(slot)).ok().flatten() == Some(root_hash);
    let booted = match Slot::ALL.map(announces) {
        [true, false] => Slot::A,
        [false, true] => Slot::B,
        [true, true] => bail!("both slots announce the running root hash"),
        [false, false] => bail!("the slot with the running root hash was overwritten"),
    };
    Ok(Disk {
        path: path.into(),
        file,
        table,
        booted,
        root_hash,
    })
}

fn lock(file: &File) -> anyhow::Result<()> {
    // udev holds it while it probes, for milliseconds.
    for _ in 0..50 {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                std::thread::sleep(std::time::Duration::from_millis(100))
            }
            Err(e) => return Err(e).context("cannot lock"),
        }
    }
    bail!("another process is writing to it")
}

impl Disk {
    pub(crate) fn passive(&self) -> Slot {
        self.booted.other()
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Whether the running system uses a partition, as far as the kernel is asked about this disk.
    pub(crate) fn is_in_use(&self, root: &Path, label: &str) -> bool {
        let disks = sysfs::disks(root).unwrap_or_default();
        let disk = disks.iter().find(|disk| disk.node == self.path);
        disk.is_some_and(|disk| is_held(root, disk, label))
    }

    pub(crate) fn window(&self, label: &str) -> anyhow::Result<Window<Placed>> {
        let file = self
            .file
            .try_clone()
            .context("cannot duplicate the disk's descriptor")?;
        self.window_on(Placed::new(file), label)
    }

    /// For all of a large partition at once.
    pub(crate) fn direct(&self, label: &str) -> anyhow::Result<Window<Placed>> {
        let file = Placed::direct(&self.file).context("cannot open the disk again")?;
        self.window_on(file, label)
    }

    fn window_on(&self, file: Placed, label: &str) -> anyhow::Result<Window<Placed>> {
        let part = self.table.partition(label)?;
        Ok(Window::new(file, part.start_bytes, part.size_bytes))
    }

    pub(crate) fn whole(&self) -> anyhow::Result<Window<Placed>> {
        let mut file = self
            .file
            .try_clone()
            .context("cannot duplicate the disk's descriptor")?;
        let size = file
            .seek(SeekFrom::End(0))
            .context("cannot measure the disk")?;
        Ok(Window::new(Placed::new(file), 0, size))
    }

    pub(crate) fn esp(&self) -> anyhow::Result<Esp<Window<Placed>>> {
        Ok(Esp::open(self.window(ESP)?)?)
    }

    pub(crate) fn entry(&self, slot: Slot) -> anyhow::Result<Option<Entry>> {
        Ok(self.esp()?.entry(to_disk(slot))?)
    }

    /// What is in the slots. Without a readable ESP nothing counts as bootable.
    pub(crate) fn slots(&self) -> anyhow::Result<Vec<SlotStatus>> {
        let status = |slot: Slot| -> anyhow::Result<SlotStatus> {
            let entry = self.entry(slot).unwrap_or_else(|e| {
                tracing::warn!("{}: {e:#}", self.path.display());
                None
            });
            let entry = entry.filter(|entry| entry.valid);
            Ok(SlotStatus {
                slot,
                booted: slot == self.booted,
                version: None,
                root_hash: self
                    .table
                    .root_hash_of(to_disk(slot))?
                    .map(|hash| Sha256(hash.0)),
                tries_left: entry.as_ref().map(|e| e.tries_left),
                tries_done: entry.as_ref().map(|e| e.tries_done),
            })
        };
        Slot::ALL.into_iter().map(status).collect()
    }
}

pub(crate) fn to_disk(slot: Slot) -> disk::Slot {
    match slot {
        Slot::A => disk::Slot::A,
        Slot::B => disk::Slot::B,
    }
}
