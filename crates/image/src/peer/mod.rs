//! The benchmark's peer: a plain Debian cloud image with cloud-init, made from packages as Orlop is,
//! so that both can be booted by the same QEMU with the same flags. Nothing of Orlop is in it.
//!
//! Its directory looks like a release's to whoever boots it: `disk.qcow2`, and `vmlinuz`, `initrd.img`
//! and `cmdline` for a start without firmware.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use disk::Guid;
use disk::esp::{self, Bootloader};
use disk::gpt::{self, MIB, Partition, types};
use disk::io::Window;
use serde::{Deserialize, Serialize};

use crate::apt::Mirror;
use crate::build::Say;
use crate::{diskimg, lists};

const SUITE: &str = "trixie";
const PACKAGES: &str = include_str!("packages");
/// Changes when this module makes another disk from the same packages.
const RECIPE: u32 = 1;
/// As Debian's own: small, and grown at the first boot.
const ROOT_MIB: u64 = 3072;
const ROOT_UUID: &str = "6f726c6f-7000-4000-8000-0000000000d2";
const LOADER_CONF: &str = "timeout 0\nconsole-mode keep\neditor no\n";

/// What the peer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// For people: `Debian 13.1`.
    pub name: String,
    pub kernel: String,
    pub cloud_init: String,
    pub packages: usize,
    /// Where its disk is.
    #[serde(skip)]
    pub dir: PathBuf,
}

/// The peer in the cache; made where there is none.
pub fn ensure(cache: &Path, say: Say<'_>) -> Result<Peer> {
    let recipe = release::Sha256::of(format!(
        "{RECIPE} {SUITE} {PACKAGES} {} {}",
        hooks().concat(),
        cmdline()
    ));
    let dir = cache
        .join("peer")
        .join(format!("debian-{SUITE}-{}", recipe.short()));
    let about = dir.join("peer.json");
    if !about.exists() {
        let part = dir.with_extension("part");
        let _ = fs::remove_dir_all(&part);
        fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
        if let Err(error) = make(&part, say) {
            let _ = fs::remove_dir_all(&part);
            return Err(error.context("cannot make the Debian image to compare with"));
        }
        let _ = fs::remove_dir_all(&dir);
        fs::rename(&part, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let text = fs::read(&about).with_context(|| format!("cannot read {}", about.display()))?;
    let peer: Peer = serde_json::from_slice(&text)
        .with_context(|| format!("{} is damaged; remove its directory", about.display()))?;
    Ok(Peer { dir, ..peer })
}

fn make(dir: &Path, say: Say<'_>) -> Result<()> {
    for (program, package) in [("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs")] {
        if !on_path(program) {
            bail!("{program} is missing; only this benchmark needs it: apt-get install {package}");
        }
    }
    let tar = dir.join("root.tar");
    say("installing Debian's packages into a tree");
    bootstrap(&Mirror::find(Path::new("/"))?, &tar)?;
    let found = Found::read(&tar)?;
    fs::write(dir.join("vmlinuz"), &found.kernel)?;
    fs::write(dir.join("initrd.img"), &found.initrd)?;
    fs::write(dir.join("cmdline"), cmdline())?;

    say("making its root file system");
    let root = dir.join("root.ext4");
    make_ext4(&tar, &root)?;
    fs::remove_file(&tar)?;
    say("making its disk");
    let raw = dir.join("disk.raw");
    write_disk(&raw, &root, &found)?;
    fs::remove_file(&root)?;
    diskimg::to_qcow2(&raw, &dir.join("disk.qcow2"))?;
    fs::remove_file(&raw)?;
    fs::write(
        dir.join("peer.json"),
        serde_json::to_vec_pretty(&found.peer())?,
    )?;
    Ok(())
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}

/// `quiet` as Orlop's own: a kernel that writes much to an emulated serial line waits for it.
fn cmdline() -> String {
    format!("root=PARTUUID={ROOT_UUID} ro quiet console=tty0 console=ttyS0,115200\n")
}

/// What Debian's cloud images do to the tree beyond installing packages, as shell commands of which `$1` is the tree.
fn hooks() -> [String; 5] {
    [
        format!(
            "echo 'PARTUUID={ROOT_UUID} / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1' >\"$1/etc/fstab\""
        ),
        // cloud-init makes each machine's own.
        "rm -f \"$1\"/etc/ssh/ssh_host_*".to_owned(),
        "ln -sf ../run/systemd/resolve/stub-resolv.conf \"$1/etc/resolv.conf\"".to_owned(),
        // mmdebstrap leaves the workstation's.
        "echo localhost >\"$1/etc/hostname\"; chmod 644 \"$1/etc/hostname\"".to_owned(),
        // It comes with its priority, not by anybody's wish; the network is netplan's and networkd's.
        "chroot \"$1\" dpkg --purge ifupdown".to_owned(),
    ]
}

fn bootstrap(mirror: &Mirror, tar: &Path) -> Result<()> {
    let Mirror { archive, security } = mirror;
    let names: Vec<String> = lists::parse(PACKAGES, "peer/packages")?
        .into_iter()
        .map(|item| item.name)
        .collect();
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--mode=auto", "--variant=important", "--format=tar"])
        .args(["--architectures=amd64", "--components=main"])
        .arg(format!("--include={}", names.join(",")));
    for hook in hooks() {
        command.arg(format!("--customize-hook={hook}"));
    }
    command.arg(SUITE).arg(tar);
    command
        .arg(format!("deb {archive} {SUITE} main"))
        .arg(format!("deb {archive} {SUITE}-updates main"))
        .arg(format!("deb {security} {SUITE}-security main"));
    command.stdin(Stdio::null());
    crate::tools::run(&mut command, "mmdebstrap")
}

/// Unpacked by root, or by what mmdebstrap takes for root where there is none: owners and modes are Debian's. Through
/// pipes, because that user may not reach our directories.
fn make_ext4(tar: &Path, image: &Path) -> Result<()> {
    let script = format!(
        "set -e; dir=$(mktemp -d); trap 'rm -rf \"$dir\"' EXIT; mkdir \"$dir/root\"; \
         tar -C \"$dir/root\" --numeric-owner --xattrs --xattrs-include='*' -xf - ; \
         mke2fs -q -t ext4 -L debian -d \"$dir/root\" \"$dir/image\" {ROOT_MIB}M >&2; cat \"$dir/image\""
    );
    let mut command = if is_root() {
        Command::new("sh")
    } else {
        let mut command = Command::new("mmdebstrap");
        command.args(["--unshare-helper", "sh"]);
        command
    };
    command
        .args(["-c", &script])
        .env(
            "PATH",
            format!(
                "{}:/usr/sbin:/sbin",
                std::env::var("PATH").unwrap_or_default()
            ),
        )
        .stdin(File::open(tar)?)
        .stdout(File::create(image)?);
    crate::tools::run(&mut command, "mke2fs")
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    // /proc/self belongs to the effective user.
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// What we need to know of the tree.
#[derive(Default)]
struct Found {
    kernel: Vec<u8>,
    initrd: Vec<u8>,
    boot_loader: Vec<u8>,
    kernel_version: String,
    debian_version: String,
    cloud_init: String,
    packages: usize,
}

impl Found {
    fn read(tar: &Path) -> Result<Self> {
        let mut found = Self::default();
        let file = File::open(tar).with_context(|| format!("cannot read {}", tar.display()))?;
        let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 20, file));
        for entry in archive.entries()? {
            let mut entry = entry?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = entry.path()?.to_string_lossy().into_owned();
            let path = path.trim_start_matches("./");
            let mut bytes = || -> Result<Vec<u8>> {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                Ok(bytes)
            };
            if let Some(version) = path.strip_prefix("boot/vmlinuz-") {
                found.kernel_version = version.to_owned();
                found.kernel = bytes()?;
            } else if path.starts_with("boot/initrd.img-") {
                found.initrd = bytes()?;
            } else if path == "usr/lib/systemd/boot/efi/systemd-bootx64.efi" {
                found.boot_loader = bytes()?;
            } else if path == "etc/debian_version" {
                found.debian_version = String::from_utf8(bytes()?)?.trim().to_owned();
            } else if path == "var/lib/dpkg/status" {
                let status = String::from_utf8(bytes()?)?;
                found.packages = status.matches("\nStatus: install ok installed\n").count();
                found.cloud_init = version_of(&status, "cloud-init").unwrap_or_default();
            }
        }
        for (what, bytes) in [
            ("kernel", &found.kernel),
            ("initrd", &found.initrd),
            ("boot loader", &found.boot_loader),
        ] {
            if bytes.is_empty() {
                bail!("there is no {what} in the tree that mmdebstrap made");
            }
        }
        Ok(found)
    }

    fn peer(&self) -> Peer {
        Peer {
            name: format!("Debian {}", self.debian_version),
            kernel: self.kernel_version.clone(),
            cloud_init: self.cloud_init.clone(),
            packages: self.packages,
            dir: PathBuf::new(),
        }
    }
}

/// Of a package in dpkg's status file.
fn version_of(status: &str, package: &str) -> Option<String> {
    let head = format!("Package: {package}\n");
    let stanza = status.split("\n\n").find(|s| s.starts_with(&head))?;
    let version = stanza
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))?;
    Some(version.to_owned())
}

fn write_disk(raw: &Path, root: &Path, found: &Found) -> Result<()> {
    let partition = |number, label: &str, kind, uuid: &str, start, size| -> Result<Partition> {
        Ok(Partition {
            number,
            label: label.to_owned(),
            kind,
            uuid: uuid.parse::<Guid>()?,
            start_bytes: start * MIB,
            size_bytes: size * MIB,
        })
    };
    let esp_uuid = "6f726c6f-7000-4000-8000-0000000000d1";
    let esp = partition(1, "esp", types::ESP, esp_uuid, 1, 512)?;
    // The last one, so that it can grow.
    let system = partition(2, "root", types::ROOT, ROOT_UUID, 513, ROOT_MIB)?;
    let size = (513 + ROOT_MIB + 1) * MIB;
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(raw)
        .with_context(|| format!("cannot create {}", raw.display()))?;
    file.set_len(size)?;
    let guid: Guid = "6f726c6f-7000-4000-8000-0000000000d0".parse()?;
    gpt::create(&mut file, size, guid, &[esp.clone(), system.clone()])?;

    let mut window = Window::new(&mut file, esp.start_bytes, esp.size_bytes);
    esp::create(&mut window, esp.size_bytes, "DEBIAN", 0x6465_6269)?;
    esp::install_bootloader(
        &mut window,
        &Bootloader {
            systemd_boot: &found.boot_loader,
            loader_conf: LOADER_CONF,
        },
    )?;
    // A type #1 entry of the boot loader specification, as kernel-install writes it.
    let entry = format!(
        "title {}\nversion {}\nlinux /debian/vmlinuz\ninitrd /debian/initrd.img\noptions {}",
        found.peer().name,
        found.kernel_version,
        cmdline()
    );
    for (path, bytes) in [
        ("loader/entries/debian.conf", entry.as_bytes()),
        ("debian/vmlinuz", &found.kernel),
        ("debian/initrd.img", &found.initrd),
    ] {
        esp::write_file(&mut window, path, bytes)?;
    }
    diskimg::copy_sparse(root, &mut file, system.start_bytes)?;
    file.flush()?;
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_package_has_its_reason_and_none_is_named_twice() {
        let mut names: Vec<String> = lists::parse(PACKAGES, "packages")
            .unwrap()
            .into_iter()
            .map(|item| item.name)
            .collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn a_version_is_that_of_the_package_and_not_of_its_neighbour() {
        let status = "Package: cloud-init-base\nVersion: 1\n\nPackage: cloud-init\nStatus: x\nVersion: 25.1\n\nPackage: z\nVersion: 3\n";
        assert_eq!(version_of(status, "cloud-init").as_deref(), Some("25.1"));
        assert_eq!(version_of(status, "cloud"), None);
    }

    #[test]
    fn the_disk_carries_boot_loader_entry_kernel_and_root() {
        let dir = tempfile::tempdir().unwrap();
        let (raw, root) = (dir.path().join("raw"), dir.path().join("root"));
        fs::write(&root, b"file system").unwrap();
        let found = Found {
            kernel: b"MZ kernel".to_vec(),
            initrd: b"initrd".to_vec(),
            boot_loader: b"MZ loader".to_vec(),
            kernel_version: "6.12".into(),
            debian_version: "13.1".into(),
            ..Found::default()
        };
        write_disk(&raw, &root, &found).unwrap();
        let mut file = File::open(&raw).unwrap();
        let table = disk::gpt::Table::load(&mut file).unwrap();
        let esp = table.partition("esp").unwrap();
        let window = Window::new(&mut file, esp.start_bytes, esp.size_bytes);
        let mut volume = disk::esp::Esp::open(window).unwrap();
        let entry = String::from_utf8(volume.read_file("loader/entries/debian.conf").unwrap());
        assert_eq!(
            entry.unwrap(),
            "title Debian 13.1\nversion 6.12\nlinux /debian/vmlinuz\ninitrd /debian/initrd.img\n\
             options root=PARTUUID=6f726c6f-7000-4000-8000-0000000000d2 ro quiet console=tty0 console=ttyS0,115200\n"
        );
        assert_eq!(volume.read_file("debian/vmlinuz").unwrap(), found.kernel);
        let system = table.partition("root").unwrap();
        assert_eq!(system.uuid.to_string(), ROOT_UUID);
        let mut head = [0; 11];
        let mut window = Window::new(&mut file, system.start_bytes, system.size_bytes);
        window.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"file system");
    }
}
