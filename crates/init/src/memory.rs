//! How much memory the kernel keeps free.

use std::fs;

/// Below this, the reserve is worth more to programs.
const SMALL_KIB: u64 = 4 << 20;

/// For the sake of huge pages the kernel keeps 45 MB or more free, and with the watermarks above it
/// half as much again: a tenth of a machine with 1 GiB. Small machines get back what the kernel
/// reserves by itself (`init_per_zone_wmark_min` in mm/page_alloc.c: 4 MB of 1 GiB). Set before systemd
/// starts, so that a sysctl.d file has the last word.
pub(crate) fn keep_less_free() {
    let path = "/proc/sys/vm/min_free_kbytes";
    let wanted = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total_kib(&text))
        .and_then(reserve_kib);
    // Less memory for programs is no reason not to boot.
    if let Some(wanted) = wanted
        && let Err(e) = fs::write(path, wanted.to_string())
    {
        eprintln!("init: cannot set {path}: {e}");
    }
}

fn total_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn reserve_kib(total_kib: u64) -> Option<u64> {
    (total_kib < SMALL_KIB).then(|| (total_kib * 16).isqrt().max(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_machines_are_touched() {
        let total = total_kib("MemTotal:         984744 kB\nMemFree:          856368 kB\n");
        assert_eq!(total, Some(984_744));
        assert_eq!(total.and_then(reserve_kib), Some(3969));
        assert_eq!(reserve_kib(SMALL_KIB), None);
        assert_eq!(total_kib("MemFree: 1 kB"), None);
    }
}
