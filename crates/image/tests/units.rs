//! Our own units, judged by systemd: what each may do at most.

use std::path::{Path, PathBuf};
use std::process::Command;

/// `systemd-analyze security` says 0 for locked up and 10 for free; times ten, as it counts thresholds.
const THRESHOLD: u32 = 20;

/// Log-ins run below sshd, so it can lock nothing away from them. next-root mounts for the whole system,
/// in the last moment of its life, which a unit with a file system view of its own cannot.
const NOT_SANDBOXED: &[&str] = &["sshd.service", "next-root.service"];

fn units() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../os/rootfs/usr/lib/systemd/system");
    let mut units: Vec<PathBuf> = std::fs::read_dir(dir)
        .expect("os/rootfs is part of the repository")
        .map(|e| e.expect("a readable directory").path())
        .filter(|p| !p.is_symlink() && p.extension().is_some_and(|e| e == "service"))
        .filter(|p| !NOT_SANDBOXED.iter().any(|n| p.ends_with(n)))
        .collect();
    units.sort();
    units
}

#[test]
fn every_service_of_ours_is_sandboxed() {
    let units = units();
    assert!(units.len() >= 8, "found only {units:?}");
    let mut open = Vec::new();
    for unit in units {
        let out = Command::new("systemd-analyze")
            .args(["security", "--offline=yes", "--no-pager"])
            .arg(format!("--threshold={THRESHOLD}"))
            .arg(&unit)
            .output()
            .expect("systemd-analyze, of the Debian package systemd");
        if !out.status.success() {
            let text = String::from_utf8_lossy(&out.stdout).into_owned()
                + &String::from_utf8_lossy(&out.stderr);
            open.push(format!(
                "{}: {}",
                unit.display(),
                text.lines().last().unwrap_or_default()
            ));
        }
    }
    assert!(
        open.is_empty(),
        "these may do too much:\n{}",
        open.join("\n")
    );
}

/// What starts by a change may start often: past the limit the path unit fails too, and watches no longer.
#[test]
fn what_a_path_starts_has_no_start_limit() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../os/rootfs/usr/lib/systemd/system");
    let paths: Vec<PathBuf> = std::fs::read_dir(&dir)
        .expect("os/rootfs is part of the repository")
        .map(|e| e.expect("a readable directory").path())
        .filter(|p| p.extension().is_some_and(|e| e == "path"))
        .collect();
    assert!(paths.len() >= 3, "found only {paths:?}");
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("a readable unit");
        let unit = match text.lines().find_map(|line| line.strip_prefix("Unit=")) {
            Some(unit) => unit.to_owned(),
            None => format!("{}.service", path.file_stem().unwrap_or_default().display()),
        };
        let file = match unit.split_once('@') {
            Some((template, _)) => format!("{template}@.service"),
            None => unit,
        };
        let text = std::fs::read_to_string(dir.join(&file)).expect("the unit that it starts");
        assert!(
            text.lines().any(|line| line == "StartLimitIntervalSec=0"),
            "{file} of {}",
            path.display()
        );
    }
}
