//! Finding devices by what their disks' partition tables say, without udev.
//!
//! The kernel's view is below `sys/class/block` of a root directory: a directory (or a link to
//! one) per disk, in it one per partition with its number in `partition`; the nodes are in
//! `dev`. `/dev/disk/by-partuuid` is udev's and not there in the initrd; it would also not tell
//! two disks with the same release apart.

use crate::gpt::{GptError, Partition, Table};
use crate::verity::RootHash;
use crate::{Guid, Slot};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A disk with a partition table.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The kernel's name, such as `vda`.
    pub name: String,
    pub node: PathBuf,
    pub table: Table,
    sysfs: PathBuf,
    dev: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum SysfsError {
    #[error("cannot read {path} (is sysfs mounted?)")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the kernel has no partition {number} on {disk} (it has not seen this partition table yet)"
    )]
    NoNode { disk: String, number: u32 },
    #[error("no partition {label} on {disk}")]
    NoPartition {
        disk: String,
        label: String,
        #[source]
        source: GptError,
    },
}

/// These never hold a system: memory, floppies, optical drives, and what is itself mapped.
const SKIP: [&str; 6] = ["ram", "zram", "fd", "sr", "dm-", "md"];

/// All disks with a readable partition table, by name. Disks without one, or without a medium,
/// are not errors.
pub fn disks(root: &Path) -> Result<Vec<Disk>, SysfsError> {
    let class = root.join("sys/class/block");
    let mut names = names_in(&class)?;
    names.retain(|name| !SKIP.iter().any(|prefix| name.starts_with(prefix)));
    let mut disks = Vec::new();
    for name in names {
        let sysfs = class.join(&name);
        let is_partition = sysfs.join("partition").exists();
        let has_medium = number_in(&sysfs.join("size")).is_some_and(|sectors| sectors > 0);
        if is_partition || !has_medium {
            continue;
        }
        let dev = root.join("dev");
        let node = dev.join(&name);
        let table = File::open(&node).map(|mut io| Table::load(&mut io));
        if let Ok(Ok(table)) = table {
            disks.push(Disk {
                name,
                node,
                table,
                sysfs,
                dev,
            });
        }
    }
    Ok(disks)
}

/// The disks that have a slot with this root hash. More than one if a disk was copied.
pub fn disks_with_release(
    root: &Path,
    root_hash: &RootHash,
) -> Result<Vec<(Disk, Slot)>, SysfsError> {
    let found = disks(root)?.into_iter().filter_map(|disk| {
        let slot = disk.table.slot_of(root_hash)?;
        Some((disk, slot))
    });
    Ok(found.collect())
}

/// The first partition with this UUID.
pub fn partition_by_uuid(root: &Path, uuid: Guid) -> Result<Option<(Disk, Partition)>, SysfsError> {
    let found = disks(root)?.into_iter().find_map(|disk| {
        let partitions = disk.table.partitions();
        let partition = partitions.into_iter().find(|p| p.uuid == uuid)?;
        Some((disk, partition))
    });
    Ok(found)
}

impl Disk {
    /// A partition by its label, with its device node.
    pub fn partition(&self, label: &str) -> Result<(Partition, PathBuf), SysfsError> {
        let partition = self
            .table
            .partition(label)
            .map_err(|source| SysfsError::NoPartition {
                disk: self.name.clone(),
                label: label.to_owned(),
                source,
            })?;
        let node = self.node_of(partition.number)?;
        Ok((partition, node))
    }

    /// The node of a partition: `vda3`, `nvme0n1p3`.
    pub fn node_of(&self, number: u32) -> Result<PathBuf, SysfsError> {
        names_in(&self.sysfs)?
            .into_iter()
            .find(|name| {
                number_in(&self.sysfs.join(name).join("partition")) == Some(u64::from(number))
            })
            .map(|name| self.dev.join(name))
            .ok_or_else(|| SysfsError::NoNode {
                disk: self.name.clone(),
                number,
            })
    }
}

fn names_in(directory: &Path) -> Result<Vec<String>, SysfsError> {
    let failed = |source| SysfsError::Read {
        path: directory.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn number_in(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpt::Layout;

    const ROOT: RootHash = {
        let mut hash = [0xc4; 32];
        hash[31] = 0xc5;
        RootHash(hash)
    };

    /// A machine with a disk as the kernel would show it.
    fn add_disk(root: &Path, name: &str, partition: &str, with: Option<&RootHash>) {
        let (sys, dev) = (root.join("sys/class/block"), root.join("dev"));
        fs::create_dir_all(&dev).unwrap();
        for number in 1..=6 {
            let child = format!("{name}{partition}{number}");
            let directory = sys.join(name).join(&child);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("partition"), format!("{number}\n")).unwrap();
            std::os::unix::fs::symlink(&directory, sys.join(child)).unwrap();
        }
        let size = Layout::small().image_size();
        fs::write(sys.join(name).join("size"), format!("{}\n", size / 512)).unwrap();
        let mut file = File::create_new(dev.join(name)).unwrap();
        file.set_len(size).unwrap();
        let mut table = Layout::small().table(size, Guid([1; 16])).unwrap();
        if let Some(root_hash) = with {
            table.set_root_hash(Slot::B, root_hash).unwrap();
        }
        table.write(&mut file).unwrap();
    }

    #[test]
    fn a_release_is_found_on_the_disk_that_has_it() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        add_disk(root, "vda", "", None);
        add_disk(root, "nvme0n1", "p", Some(&ROOT));
        add_disk(root, "zram0", "", Some(&ROOT));
        // A card reader without a card, and a disk without a table.
        let sys = root.join("sys/class/block");
        fs::create_dir_all(sys.join("sda")).unwrap();
        fs::write(sys.join("sda/size"), "0\n").unwrap();
        fs::create_dir_all(sys.join("sdb")).unwrap();
        fs::write(sys.join("sdb/size"), "2048\n").unwrap();
        fs::write(root.join("dev/sdb"), vec![0; 1 << 20]).unwrap();

        let names: Vec<_> = disks(root).unwrap().into_iter().map(|d| d.name).collect();
        assert_eq!(names, ["nvme0n1", "vda"]);

        let found = disks_with_release(root, &ROOT).unwrap();
        let [(disk, Slot::B)] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(disk.node, root.join("dev/nvme0n1"));
        let (partition, node) = disk.partition("usr-b-verity").unwrap();
        assert_eq!((partition.number, node), (6, root.join("dev/nvme0n1p6")));

        let (disk, partition) = partition_by_uuid(root, Guid([0xc4; 16])).unwrap().unwrap();
        assert_eq!((disk.name.as_str(), partition.number), ("nvme0n1", 5));
        assert!(partition_by_uuid(root, Guid([9; 16])).unwrap().is_none());
    }

    #[test]
    fn errors_say_what_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert!(matches!(disks(root), Err(SysfsError::Read { .. })));
        add_disk(root, "vda", "", None);
        let disk = disks(root).unwrap().remove(0);
        assert!(matches!(
            disk.partition("state"),
            Err(SysfsError::NoPartition { .. })
        ));
        fs::remove_dir_all(root.join("sys/class/block/vda/vda3")).unwrap();
        let error = disk.partition("usr-a").unwrap_err();
        assert!(matches!(error, SysfsError::NoNode { number: 3, .. }));
    }
}
