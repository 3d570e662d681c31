//! The mounts, in the order in which they build on each other.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_move};

use crate::Context;
use crate::fail::Fail;

/// Where the future root is put together.
pub(crate) const SYSROOT: &str = "/sysroot";
/// Where /usr lies until the state file system, which may need its mkfs, is mounted.
pub(crate) const USR: &str = "/usr-image";

const HARDENED: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

pub(crate) fn kernel_file_systems() -> Result<(), Fail> {
    for dir in ["/dev", "/proc", "/sys", SYSROOT, USR] {
        fs::create_dir_all(dir).step(format!("creating {dir}"))?;
    }
    file_system(
        "devtmpfs",
        "devtmpfs",
        "/dev",
        MountFlags::NOSUID,
        "mode=0755",
    )?;
    file_system("proc", "proc", "/proc", HARDENED, "")?;
    file_system("sysfs", "sysfs", "/sys", HARDENED, "")
}

pub(crate) fn usr(device: &Path) -> Result<(), Fail> {
    let device = device.display().to_string();
    file_system(
        &device,
        "erofs",
        USR,
        MountFlags::RDONLY | MountFlags::NODEV,
        "",
    )
}

/// The skeleton of the root and /usr in it.
pub(crate) fn move_usr() -> Result<(), Fail> {
    for (dir, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ] {
        let path = Path::new(SYSROOT).join(dir);
        if path.symlink_metadata().is_err() {
            symlink(target, &path).step(format!("creating /{dir}"))?;
        }
    }
    for dir in [
        "usr", "etc", "dev", "proc", "sys", "run", "tmp", "var", "root", "home",
    ] {
        let path = Path::new(SYSROOT).join(dir);
        if !path.exists() {
            fs::create_dir_all(&path).step(format!("creating /{dir}"))?;
        }
    }
    mount_move(USR, format!("{SYSROOT}/usr")).step("moving /usr")
}

/// /etc: the release's defaults below, what this host changed above. Defaults follow updates as long
/// as the host has not changed the same file.
pub(crate) fn etc() -> Result<(), Fail> {
    let layers = format!("{SYSROOT}/var/lib/orlop/etc");
    let (upper, work) = (format!("{layers}/upper"), format!("{layers}/work"));
    for dir in [&upper, &work] {
        fs::create_dir_all(dir).step(format!("creating {dir}"))?;
    }
    let lower = format!("{SYSROOT}/usr/share/orlop/etc");
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    file_system(
        "etc",
        "overlay",
        &format!("{SYSROOT}/etc"),
        MountFlags::empty(),
        &options,
    )
}

pub(crate) fn file_system(
    source: &str,
    kind: &str,
    target: &str,
    flags: MountFlags,
    options: &str,
) -> Result<(), Fail> {
    let data = std::ffi::CString::new(options).step(format!("mounting {target}"))?;
    mount(source, target, kind, flags, data.as_c_str())
        .step(format!("mounting {kind} {source} on {target}"))
}

/// /tmp, and the device nodes whose first use loads their module. systemd would start a program for
/// each of the two; here they are a few system calls.
pub(crate) fn tmp_and_static_nodes() -> Result<(), Fail> {
    let tmp = format!("{SYSROOT}/tmp");
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    file_system(
        "tmpfs",
        "tmpfs",
        &tmp,
        flags,
        "mode=1777,size=50%,nr_inodes=1m",
    )?;
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").step("reading the kernel's version")?;
    let list = format!(
        "{SYSROOT}/usr/lib/modules/{}/modules.devname",
        release.trim()
    );
    // Without the list everything works but loading on first use.
    let list = fs::read_to_string(list).unwrap_or_default();
    for (name, kind, major, minor) in static_nodes(&list) {
        let path = Path::new("/dev").join(name);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).step(format!("creating {}", dir.display()))?;
        }
        let device = rustix::fs::makedev(major, minor);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        match rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, device) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(Fail::new(format!("creating {}", path.display()), e)),
        }
    }
    Ok(())
}

/// Lines of modules.devname: `tun net/tun c10:200`.
fn static_nodes(list: &str) -> Vec<(&str, rustix::fs::FileType, u32, u32)> {
    list.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (name, device) = (words.next()?, words.next()?);
            let kind = match device.chars().next()? {
                'b' => rustix::fs::FileType::BlockDevice,
                'c' => rustix::fs::FileType::CharacterDevice,
                _ => return None,
            };
            let (major, minor) = device[1..].split_once(':')?;
            Some((name, kind, major.parse().ok()?, minor.parse().ok()?))
        })
        .collect()
}

/// Makes the state file system the root and frees the initrd's memory.
pub(crate) fn switch_root() -> Result<(), Fail> {
    for dir in ["dev", "proc", "sys"] {
        mount_move(format!("/{dir}"), format!("{SYSROOT}/{dir}")).step(format!("moving /{dir}"))?;
    }
    let step = "switching to the root";
    remove_initrd();
    std::env::set_current_dir(SYSROOT).step(step)?;
    mount_move(".", "/").step(step)?;
    rustix::process::chroot(".").step(step)?;
    std::env::set_current_dir("/").step(step)
}

/// Deletes the initrd's files, staying on its own file system; failing to is no reason not to boot.
fn remove_initrd() {
    let Ok(device) = fs::metadata("/").map(|m| m.dev()) else {
        return;
    };
    let Ok(entries) = fs::read_dir("/") else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(meta) = entry.path().symlink_metadata() else {
            continue;
        };
        if meta.dev() != device {
            continue;
        }
        if meta.is_dir() {
            if entry.file_name() == "modules" {
                let _ = fs::remove_dir_all(entry.path());
            }
        } else {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_read_from_depmods_list() {
        let list = "# Device nodes to trigger on-demand module loading.\ntun net/tun c10:200\nloop loop-control c10:237\nodd\n";
        let nodes: Vec<_> = static_nodes(list).iter().map(|n| (n.0, n.2, n.3)).collect();
        assert_eq!(nodes, [("net/tun", 10, 200), ("loop-control", 10, 237)]);
    }
}
