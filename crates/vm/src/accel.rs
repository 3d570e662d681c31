//! Which accelerator really works here. `/dev/kvm` may exist and still run nothing (nested, broken or software-only
//! virtualisation), so KVM is tried with a boot sector before a machine is trusted to it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process;

/// How QEMU runs the guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// In hardware.
    Kvm,
    /// Translated: some ten times slower.
    Tcg,
}

impl Accel {
    /// QEMU's `-accel` and `-cpu`.
    pub fn args(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Debian's x86-64 baseline plus what its hot loops look for; `max` costs more to translate than it gives.
            Self::Tcg => [
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16",
            ],
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg (emulation)",
        }
    }

    /// How much more time everything gets. Where all goes well it costs nothing.
    pub fn patience(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Tcg => 2,
        }
    }

    /// Tries KVM; the answer is kept in `cache` until the workstation reboots or QEMU changes.
    pub fn detect(cache: &Path) -> Result<Self> {
        let answer = cache.join("accel");
        let key = cache_key();
        if let Ok(text) = fs::read_to_string(&answer)
            && let Some(accel) = text.strip_prefix(&key)
        {
            return Ok(if accel.trim() == "kvm" {
                Self::Kvm
            } else {
                Self::Tcg
            });
        }
        fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
        let accel = if kvm_works(cache)? {
            Self::Kvm
        } else {
            Self::Tcg
        };
        let word = if accel == Self::Kvm { "kvm" } else { "tcg" };
        fs::write(&answer, format!("{key}{word}\n"))
            .with_context(|| format!("cannot write {}", answer.display()))?;
        Ok(accel)
    }
}

fn cache_key() -> String {
    use std::os::unix::fs::MetadataExt;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let qemu = fs::metadata("/usr/bin/qemu-system-x86_64").map_or(0, |meta| meta.mtime());
    let user = rustix::process::getuid().as_raw();
    format!("{} {qemu} {user} ", boot.trim())
}

/// `fninit`, which broken KVMs cannot run; a loop of 2^25 turns, which takes 20 ms in hardware and minutes where each
/// instruction traps; then "done" to the debug-exit device.
const BOOT_SECTOR: [u8; 19] = [
    0xdb, 0xe3, // fninit
    0x66, 0xb9, 0x00, 0x00, 0x00, 0x02, // mov ecx, 1 << 25
    0x66, 0x49, // dec ecx
    0x75, 0xfc, // jnz -4
    0xb0, 0x10, // mov al, 0x10
    0xe6, 0xf4, // out 0xf4, al
    0xf4, // hlt
    0xeb, 0xfd, // jmp -3
];

/// What `isa-debug-exit` makes of 0x10.
const DONE: i32 = 0x10 << 1 | 1;

fn kvm_works(scratch: &Path) -> Result<bool> {
    if fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return Ok(false);
    }
    let mut sector = [0u8; 512];
    sector[..BOOT_SECTOR.len()].copy_from_slice(&BOOT_SECTOR);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let path = scratch.join(format!("boot-sector.{}", std::process::id()));
    fs::write(&path, sector).with_context(|| format!("cannot write {}", path.display()))?;
    let works = boots(&path, "kvm", Duration::from_secs(2));
    let _ = fs::remove_file(&path);
    works
}

fn boots(sector: &Path, accel: &str, limit: Duration) -> Result<bool> {
    let mut child = process::spawn(
        Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                accel,
                "-m",
                "16",
                "-nodefaults",
                "-no-user-config",
            ])
            .args(["-display", "none", "-no-reboot"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
            .arg("-drive")
            .arg(format!(
                "if=ide,format=raw,snapshot=on,file={}",
                sector.display()
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    )?;
    let status = process::wait(&mut child, limit);
    if !matches!(status, Ok(Some(_))) {
        let _ = child.kill();
        let _ = child.wait();
    }
    Ok(status?.is_some_and(|status| process::code(status) == DONE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_sector_reaches_its_end() {
        // In emulation it always can, so that a failure under KVM is KVM's.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sector");
        let mut sector = [0u8; 512];
        sector[..BOOT_SECTOR.len()].copy_from_slice(&BOOT_SECTOR);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        fs::write(&path, sector).unwrap();
        assert!(boots(&path, "tcg", Duration::from_secs(30)).unwrap());
    }
}
