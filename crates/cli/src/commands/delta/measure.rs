//! Time and memory of child processes.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measured {
    pub seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
}

impl Measured {
    /// Of the times; of the memory the most. There is at least one.
    pub(super) fn median(mut all: Vec<Self>) -> Self {
        all.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let peak_bytes = all.iter().filter_map(|one| one.peak_bytes).max();
        Self {
            seconds: all.get(all.len() / 2).map_or(f64::NAN, |one| one.seconds),
            peak_bytes,
        }
    }
}

/// The most memory that a process had so far.
fn peak_of(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

pub(super) fn own_peak() -> Option<u64> {
    peak_of("self")
}

/// Runs a program to its end. The kernel keeps the peak, so looking often only matters at the end.
pub(super) fn measured(command: &mut Command) -> Result<Measured> {
    let name = command.get_program().to_string_lossy().into_owned();
    let begin = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    // Some talk a lot. It is of interest where they fail.
    let said = child.stderr.take().map(|mut pipe| {
        std::thread::spawn(move || {
            let mut said = Vec::new();
            let _ = pipe.read_to_end(&mut said);
            said
        })
    });
    let mut peak_bytes = None;
    loop {
        peak_bytes = peak_bytes.max(peak_of(&child.id().to_string()));
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                let said = said.and_then(|thread| thread.join().ok());
                let said = said.unwrap_or_default();
                let said = String::from_utf8_lossy(&said);
                let lines: Vec<&str> = said.trim().lines().collect();
                let tail = &lines[lines.len().saturating_sub(10)..];
                bail!("{name} failed ({status}): {}", tail.join("\n"));
            }
            return Ok(Measured {
                seconds: begin.elapsed().as_secs_f64(),
                peak_bytes,
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
