//! Block devices with a label, read as they are.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::{Probe, SourceError, fat, iso9660, udf};

/// No file that we look for is larger; an image that says otherwise is broken or hostile.
pub(super) const MAX_FILE: u64 = 16 << 20;

/// A read-only file system.
pub(super) trait Volume {
    fn label(&self) -> &str;
    /// `None`: no such file. Names are compared without case.
    fn read(&mut self, path: &str) -> io::Result<Option<Vec<u8>>>;
}

/// The disk whose label is one of `labels`, in any case.
pub(super) struct Disk {
    pub(super) path: PathBuf,
    volume: Box<dyn Volume>,
}

impl Disk {
    /// Looks at every block device that can hold one.
    pub(super) fn find(probe: &Probe<'_>, labels: &[&str]) -> Option<Self> {
        Self::all(probe).find(|disk| {
            let label = disk.volume.label();
            labels.iter().any(|l| l.eq_ignore_ascii_case(label))
        })
    }

    /// Every one that can be read.
    pub(super) fn all(probe: &Probe<'_>) -> impl Iterator<Item = Self> {
        let paths: Vec<PathBuf> = devices(probe)
            .iter()
            .map(|name| probe.path(&format!("/dev/{name}")))
            .collect();
        paths.into_iter().flat_map(|path| {
            let volumes = open(&path).into_iter();
            volumes.map(move |volume| {
                let path = path.clone();
                Self { path, volume }
            })
        })
    }

    pub(super) fn read(&mut self, name: &str) -> Result<Option<Vec<u8>>, SourceError> {
        self.volume.read(name).map_err(|source| SourceError::Read {
            path: self.path.clone(),
            what: name.to_owned(),
            source,
        })
    }
}

/// Devices that are made from others hold what was found on those already.
const DERIVED: [&str; 6] = ["dm-", "loop", "md", "nbd", "ram", "zram"];

fn devices(probe: &Probe<'_>) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(probe.path("/sys/class/block")) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !DERIVED.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    names.sort();
    names
}

/// The file systems on a device: none of these, or no medium in it. A disc may be UDF and ISO 9660 at once, with the same
/// files: UDF has all of their names, the other perhaps shortened ones, and either may have the label.
fn open(path: &Path) -> Vec<Box<dyn Volume>> {
    let Ok(file) = File::open(path) else {
        return Vec::new();
    };
    let mut volumes: Vec<Box<dyn Volume>> = Vec::new();
    if let Ok(Ok(Some(volume))) = file.try_clone().map(udf::open) {
        volumes.push(Box::new(volume));
    }
    if let Ok(Ok(Some(volume))) = file.try_clone().map(iso9660::open) {
        volumes.push(Box::new(volume));
    }
    if volumes.is_empty()
        && let Some(volume) = fat::open(file)
    {
        volumes.push(Box::new(volume));
    }
    volumes
}

/// Hardware that may turn into a disk in a moment. Virtio disks are there from the start; a CD-ROM on
/// a SATA port appears when udev has loaded its drivers.
pub(super) fn pending(probe: &Probe<'_>) -> Option<String> {
    let list = |path: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(probe.path(path));
        entries.map_or_else(
            |_| Vec::new(),
            |e| e.filter_map(|e| Some(e.ok()?.path())).collect(),
        )
    };
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let cdrom = devices(probe).iter().any(|name| name.starts_with("sr"));
    let has_cdrom = list("/sys/class/ata_device")
        .into_iter()
        .any(|device| read(device.join("class")).trim() == "atapi")
        || list("/sys/bus/scsi/devices")
            .into_iter()
            // SCSI peripheral type 5: CD/DVD.
            .any(|device| read(device.join("type")).trim() == "5");
    if has_cdrom && !cdrom {
        return Some("a CD-ROM drive".to_owned());
    }
    // PCI class 01 01 is IDE, 01 06 SATA. Until its driver has it, what hangs on it is unknown.
    let controller = list("/sys/bus/pci/devices").into_iter().any(|device| {
        let class = read(device.join("class"));
        let ata = class.starts_with("0x0101") || class.starts_with("0x0106");
        ata && !device.join("driver").exists()
    });
    controller.then(|| "the driver of an ATA controller".to_owned())
}
