//! The disk of a fresh machine: slot A with the release, slot B empty, no state partition yet (the
//! first boot makes it as large as the disk allows). Sparse, written without loop devices.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use disk::esp::{self, Bootloader, Esp, FirstSector};
use disk::gpt::{Layout, Table};
use disk::io::Window;
use disk::verity::RootHash;
use disk::{Guid, Slot};

const LOADER_CONF: &str = "timeout 0\nconsole-mode keep\neditor no\nauto-entries no\n";

pub(crate) fn write(dir: &Path, boot_loader: &[u8], uki: &[u8], root: RootHash) -> Result<()> {
    let path = dir.join("disk.raw");
    let layout = Layout::standard();
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    let size = layout.image_size();
    file.set_len(size)?;
    // Fixed: a GUID that differs per build would make images differ; hosts never rely on it.
    let guid: Guid = "6f726c6f-7000-4000-8000-000000000001".parse()?;
    let mut table: Table = layout.create(&mut file, size, guid)?;
    table.set_root_hash(Slot::A, &root)?;
    table.write(&mut file)?;

    for (label, name) in [("usr-a", "usr.erofs"), ("usr-a-verity", "usr.verity")] {
        let part = table.partition(label)?;
        let from = dir.join(name);
        let length = fs::metadata(&from)?.len();
        ensure!(
            length <= part.size_bytes,
            "{name} has {} MiB, the partition {label} only {}; remove packages or enlarge the slot",
            length >> 20,
            part.size_bytes >> 20
        );
        copy_sparse(&from, &mut file, part.start_bytes)?;
    }
    let part = table.partition("esp")?;
    let mut window = Window::new(&mut file, part.start_bytes, part.size_bytes);
    esp::create(&mut window, part.size_bytes, "ORLOP", 0x6f72_6c70)?;
    esp::install_bootloader(
        &mut window,
        &Bootloader {
            systemd_boot: boot_loader,
            loader_conf: LOADER_CONF,
        },
    )?;
    let mut esp = Esp::open(window)?;
    esp.write_uki(Slot::A, uki)?;
    esp.commit_uki(Slot::A, &FirstSector::of(uki)?)?;
    file.sync_all()?;
    Ok(())
}

/// Copies a file to an offset, leaving holes where it is zero.
pub(crate) fn copy_sparse(from: &Path, to: &mut File, mut offset: u64) -> Result<()> {
    let mut from = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
    let mut block = vec![0; 1 << 16];
    loop {
        let length = from.read(&mut block)?;
        if length == 0 {
            return Ok(());
        }
        if block[..length].iter().any(|b| *b != 0) {
            to.seek(SeekFrom::Start(offset))?;
            to.write_all(&block[..length])?;
        }
        offset += length as u64;
    }
}

pub(crate) fn to_qcow2(raw: &Path, qcow2: &Path) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .arg(raw)
        .arg(qcow2);
    crate::tools::run(&mut command, "qemu-img convert")
}
