//! What a process costs, by the kernel's account.

use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub(super) struct Process(pub u32);

impl Process {
    /// CPU time so far, of user and kernel.
    pub(super) fn cpu(self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<u64> = after_name
            .split_whitespace()
            .map(|f| f.parse().unwrap_or(0))
            .collect();
        let ticks = fields.get(11).copied().unwrap_or(0) + fields.get(12).copied().unwrap_or(0);
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second().max(1))
    }

    /// Bytes of memory.
    pub(super) fn resident(self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.0)).unwrap_or_default();
        let pages: u64 = text
            .split(' ')
            .nth(1)
            .and_then(|p| p.parse().ok())
            .unwrap_or(0);
        pages * rustix::param::page_size() as u64
    }
}
