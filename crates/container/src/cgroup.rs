//! What the kernel really limits and counts, from `/sys/fs/cgroup`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::name::Name;

const SLICE: &str = "/sys/fs/cgroup/machine.slice";

/// `null` stands for no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Applied {
    pub memory_max: Option<u64>,
    /// Hundredths of a processor.
    pub cpu_percent: Option<u64>,
    pub pids_max: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    pub memory_current: Option<u64>,
    pub memory_peak: Option<u64>,
    /// How often the kernel killed a process of the container for want of memory.
    pub oom_kills: Option<u64>,
    pub cpu_usec: Option<u64>,
    pub pids_current: Option<u64>,
}

/// The containers that run, by their cgroups.
pub fn running(root: &Path) -> Vec<Name> {
    let Ok(entries) = std::fs::read_dir(host::under(root, SLICE)) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .flatten()
        .filter_map(|entry| Name::from_unit(entry.file_name().to_str()?))
        .collect();
    names.sort();
    names
}

/// The limits and the usage of a running container.
pub fn read(root: &Path, name: &Name) -> Option<(Applied, Usage)> {
    let dir = Cgroup(host::under(root, SLICE).join(name.unit()));
    if !dir.0.is_dir() {
        return None;
    }
    let applied = Applied {
        memory_max: dir.number("memory.max"),
        cpu_percent: dir.text("cpu.max").as_deref().and_then(cpu_percent),
        pids_max: dir.number("pids.max"),
    };
    let usage = Usage {
        memory_current: dir.number("memory.current"),
        memory_peak: dir.number("memory.peak"),
        oom_kills: dir.keyed("memory.events", "oom_kill"),
        cpu_usec: dir.keyed("cpu.stat", "usage_usec"),
        pids_current: dir.number("pids.current"),
    };
    Some((applied, usage))
}

struct Cgroup(PathBuf);

impl Cgroup {
    fn text(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.0.join(file)).ok()
    }

    /// `max` is no number.
    fn number(&self, file: &str) -> Option<u64> {
        self.text(file)?.trim().parse().ok()
    }

    fn keyed(&self, file: &str, key: &str) -> Option<u64> {
        self.text(file)?
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
    }
}

/// `cpu.max` is `QUOTA PERIOD` in microseconds, e.g. `50000 100000`.
fn cpu_percent(text: &str) -> Option<u64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    quota.checked_mul(100)?.checked_div(period)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_limits_and_usage() {
        let root = tempfile::tempdir().unwrap();
        let name: Name = "web".parse().unwrap();
        assert_eq!(running(root.path()), []);
        assert_eq!(read(root.path(), &name), None);
        let dir = host::under(root.path(), SLICE).join(name.unit());
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::create_dir_all(
            host::under(root.path(), SLICE).join("systemd-nspawn@other.service"),
        )
        .unwrap();
        for (file, text) in [
            ("memory.max", "134217728\n"),
            ("memory.current", "1000\n"),
            ("memory.events", "low 0\noom 3\noom_kill 2\n"),
            ("cpu.max", "50000 100000\n"),
            ("cpu.stat", "usage_usec 4567\nuser_usec 1\n"),
            ("pids.max", "max\n"),
            ("pids.current", "4\n"),
        ] {
            std::fs::write(dir.join(file), text).unwrap();
        }
        assert_eq!(running(root.path()), std::slice::from_ref(&name));
        let (applied, usage) = read(root.path(), &name).unwrap();
        assert_eq!(
            applied,
            Applied {
                memory_max: Some(128 << 20),
                cpu_percent: Some(50),
                pids_max: None
            }
        );
        let expect = Usage {
            memory_current: Some(1000),
            memory_peak: None,
            oom_kills: Some(2),
            cpu_usec: Some(4567),
            pids_current: Some(4),
        };
        assert_eq!(usage, expect);
        assert_eq!(cpu_percent("max 100000\n"), None);
    }
}
