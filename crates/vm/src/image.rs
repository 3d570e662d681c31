//! Disk images of a node, by QEMU's own tools.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process;

const LIMIT: Duration = Duration::from_secs(60);

/// Makes `overlay`: empty, on top of `base`, which stays as it is. `size_gib` enlarges it.
pub fn overlay(base: &Path, overlay: &Path, size_gib: Option<u32>) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(base)
        .arg(overlay);
    if let Some(size) = size_gib {
        command.arg(format!("{size}G"));
    }
    process::check(&mut command, LIMIT)
        .with_context(|| format!("cannot make {}", overlay.display()))?;
    Ok(())
}

/// Where OVMF is: its code, and the variables a new machine starts with.
pub struct Firmware {
    /// Executable and shared.
    pub code: PathBuf,
    /// Copied for each machine.
    pub vars: PathBuf,
}

impl Firmware {
    /// Debian's OVMF, without Secure Boot.
    pub fn find() -> Result<Self> {
        let found = Self {
            code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
            vars: "/usr/share/OVMF/OVMF_VARS_4M.fd".into(),
        };
        for path in [&found.code, &found.vars] {
            if !path.exists() {
                bail!("{} is missing: install the package ovmf", path.display());
            }
        }
        Ok(found)
    }
}

/// Flips one bit of a disk that no machine uses at the moment.
pub fn flip_bit(disk: &Path, offset: u64) -> Result<()> {
    let sector = offset / 512 * 512;
    let dump = qemu_io(disk, &format!("read -v {sector} 512"))?;
    let bytes = parse_dump(&dump);
    let index = usize::try_from(offset - sector)?;
    let Some(old) = bytes.get(index) else {
        bail!("cannot read byte {offset} of {}: {dump}", disk.display());
    };
    // qemu-io writes one repeated byte, which for a length of one is what we need; the block layer does the rest.
    qemu_io(disk, &format!("write -P {} {offset} 1", old ^ 1))?;
    Ok(())
}

/// Copies the start of a qcow2's content.
pub fn read_start(disk: &Path, sectors: u32) -> Result<Vec<u8>> {
    let out = disk.with_extension("head");
    let mut command = Command::new("qemu-img");
    command
        .args(["dd", "-f", "qcow2", "-O", "raw", "bs=512"])
        .arg(format!("count={sectors}"));
    command
        .arg(format!("if={}", disk.display()))
        .arg(format!("of={}", out.display()));
    process::check(&mut command, LIMIT)?;
    let bytes = fs::read(&out)?;
    fs::remove_file(&out)?;
    Ok(bytes)
}

fn qemu_io(disk: &Path, what: &str) -> Result<String> {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "qcow2", "-c", what]).arg(disk);
    let said = process::check(&mut command, LIMIT)?;
    if said.contains("failed") {
        bail!("qemu-io {what} on {}: {}", disk.display(), said.trim());
    }
    Ok(said)
}

/// The bytes of `read -v`: lines of `offset:  16 hex bytes  text`.
fn parse_dump(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.lines() {
        let Some((offset, rest)) = line.split_once(":  ") else {
            continue;
        };
        if offset.is_empty() || !offset.chars().all(|c| c.is_ascii_hexdigit()) {
            continue;
        }
        bytes.extend(
            rest.split(' ')
                .take(16)
                .filter_map(|byte| u8::from_str_radix(byte, 16).ok()),
        );
    }
    bytes
}

/// The first byte of a partition, by its label, from the primary GPT (UEFI 2.10, section 5.3).
pub fn partition_start(head: &[u8], label: &str) -> Result<u64> {
    const SECTOR: usize = 512;
    const HEADER: usize = SECTOR;
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let mut value = [0u8; 8];
        value[..bytes].copy_from_slice(head.get(at..at + bytes)?);
        Some(u64::from_le_bytes(value))
    };
    if head.get(HEADER..HEADER + 8) != Some(b"EFI PART") {
        bail!("the disk has no GPT");
    }
    let wanted: Vec<u8> = label
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .chain([0, 0])
        .collect();
    let table = number(HEADER + 72, 8).unwrap_or(2);
    let count = number(HEADER + 80, 4).unwrap_or(0);
    let size = number(HEADER + 84, 4).unwrap_or(128);
    for index in 0..count {
        let at = usize::try_from(table * SECTOR as u64 + index * size)?;
        if head.get(at + 56..at + 56 + wanted.len()) == Some(wanted.as_slice()) {
            let start = number(at + 32, 8).context("the GPT is cut off")?;
            return Ok(start * SECTOR as u64);
        }
    }
    bail!("the disk has no partition {label:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_of_a_disk_flips_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.qcow2");
        let disk = dir.path().join("disk.qcow2");
        let create = |args: &[&str], path: &Path| {
            process::check(
                Command::new("qemu-img")
                    .args(["create", "-q", "-f", "qcow2"])
                    .args(args)
                    .arg(path)
                    .arg("1M"),
                LIMIT,
            )
            .unwrap();
        };
        create(&[], &base);
        qemu_io(&base, "write -P 0xa5 0 1M").unwrap();
        overlay(&base, &disk, Some(1)).unwrap();
        flip_bit(&disk, 700).unwrap();
        let mut expected = vec![0xa5u8; 1024];
        expected[700] = 0xa4;
        assert_eq!(read_start(&disk, 2).unwrap(), expected);
        assert_eq!(read_start(&base, 2).unwrap(), vec![0xa5u8; 1024]);
    }

    #[test]
    fn a_partition_is_found_by_its_label() {
        let mut head = vec![0u8; 34 * 512];
        head[512..520].copy_from_slice(b"EFI PART");
        head[512 + 72] = 2;
        head[512 + 80] = 128;
        head[512 + 84] = 128;
        for (index, (label, lba)) in [("usr-a", 10u8), ("usr-a-verity", 20)]
            .into_iter()
            .enumerate()
        {
            let at = 1024 + index * 128;
            head[at + 32] = lba;
            for (i, unit) in label.encode_utf16().enumerate() {
                head[at + 56 + 2 * i..at + 58 + 2 * i].copy_from_slice(&unit.to_le_bytes());
            }
        }
        assert_eq!(partition_start(&head, "usr-a").unwrap(), 5120);
        assert_eq!(partition_start(&head, "usr-a-verity").unwrap(), 10240);
        assert_eq!(
            partition_start(&head, "usr-b").unwrap_err().to_string(),
            "the disk has no partition \"usr-b\""
        );
    }
}
