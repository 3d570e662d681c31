//! Scenarios: stories about a machine, written as data in `tests/vm/*.toml` and told to real machines.
//!
//! [`file`] reads them, [`run`] tells one, [`pool`] tells many at once.

pub mod file;
pub mod matcher;
pub mod pool;
pub mod run;
mod steps;

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::lab::Release;
use crate::seed::Datasource;

/// One story.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// Where it was read from.
    pub file: PathBuf,
    /// The file's name without `.toml`.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// The releases it needs; its machine starts with the first.
    pub releases: Vec<ReleaseSpec>,
    /// How its machine comes to life.
    pub start: Start,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The cloud-config; without one the default with the lab's key.
    pub cloud_config: Option<String>,
    /// Whether it gets an update-server of its own.
    pub server: bool,
    /// How its machine gets its user-data.
    pub datasource: Datasource,
    /// More QEMU arguments.
    pub qemu: Vec<String>,
    /// More of the kernel's command line.
    pub cmdline: Vec<String>,
    /// What happens.
    pub steps: Vec<Step>,
}

impl Scenario {
    /// Repeats what is repeated this often, whatever the file says.
    pub fn repeat(&mut self, often: u32) {
        for step in &mut self.steps {
            if let Action::Repeat { times, seen, .. } = &mut step.action {
                // Fewer turns may leave out what all of them would not.
                seen.take_if(|_| often < *times);
                *times = often;
            }
        }
    }

    /// Begins the repeat that failed with the turn that failed, at the same random times, and goes on from there.
    pub fn replay(&mut self, turn: &Turn) {
        for step in &mut self.steps {
            if let Action::Repeat {
                times, seed, seen, ..
            } = &mut step.action
                && step.line == turn.line
            {
                seen.take_if(|_| turn.number > 1);
                *times = (turn.times + 1).saturating_sub(turn.number).max(1);
                *seed = Some(turn.seed);
            }
        }
    }

    /// What its steps may take, those that are repeated counted each time: about how long it is, compared to others.
    pub fn length(&self) -> Duration {
        length(&self.steps)
    }

    /// Where a release's overlay is.
    pub fn overlay(&self, release: &ReleaseSpec) -> Option<PathBuf> {
        let base = self.file.parent().unwrap_or(Path::new("."));
        release.overlay.as_ref().map(|path| base.join(path))
    }
}

/// A release that a scenario needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseSpec {
    /// Its version.
    pub version: String,
    /// Appended to the kernel's command line: how a release is broken on purpose.
    pub cmdline: Vec<String>,
    /// A directory laid over the image, relative to the scenario's file.
    pub overlay: Option<PathBuf>,
    /// The oldest version that can go to it at once.
    pub minimum_source_version: Option<String>,
    /// Instead of what `os/epoch` says.
    pub epoch: Option<u64>,
}

/// How a scenario's machine comes to life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Power-on, through the firmware.
    Uefi,
    /// Power-on, kernel and initrd handed over.
    Direct,
    /// A copy of a machine that booted through the firmware, was healthy and was saved then.
    Saved,
    /// Not at all, until a step `boot`.
    Off,
}

/// One step, and where it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Line in the file, from 1.
    pub line: usize,
    /// Column in the line, from 1.
    pub column: usize,
    /// What happens.
    pub action: Action,
    /// How long it may take.
    pub timeout: Duration,
}

fn length(steps: &[Step]) -> Duration {
    let each = |step: &Step| match &step.action {
        Action::Repeat { times, steps, .. } => length(steps).saturating_mul(*times),
        _ => step.timeout,
    };
    steps.iter().map(each).sum()
}

/// What can happen.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// A shell command in the guest.
    Ssh {
        /// The command.
        script: String,
        /// What it must give.
        expect: Expect,
        /// Tried again until it gives that, for as long as the step may take.
        retry: bool,
    },
    /// A shell command on the workstation.
    Host {
        /// The command.
        script: String,
        /// What it must give.
        expect: Expect,
        /// Tried again until it gives that, for as long as the step may take.
        retry: bool,
    },
    /// Wait until `orlop status` in the guest matches.
    WaitStatus(Value),
    /// Put a release on the scenario's update-server and point a channel at it.
    Publish {
        /// The release.
        version: String,
        /// The channel.
        channel: String,
    },
    /// A power cut.
    Kill,
    /// Power-on of a machine that is off.
    Boot,
    /// Flip a bit on the disk of a machine that is off.
    FlipBit {
        /// The partition's label.
        partition: String,
        /// Where.
        at: Place,
    },
    /// Freeze the machine under a name and go on with a copy.
    Save(String),
    /// Throw the machine away and go on with a copy of a frozen one.
    Restore(String),
    /// Record everything that a machine that is off writes from its next power-on.
    Record,
    /// Judge the disk of a machine that is off as it was at every flush of what was recorded.
    Replay {
        /// Versions that could be started, each time that this changed.
        bootable: Vec<Vec<String>>,
    },
    /// Let time pass: a random time from a range.
    Pause(RangeInclusive<Duration>),
    /// Steps, again and again.
    Repeat {
        /// How often.
        times: u32,
        /// Where randomness starts, to replay a failure.
        seed: Option<u64>,
        /// What some turns must have led to.
        seen: Option<Seen>,
        /// The steps.
        steps: Vec<Step>,
    },
}

/// What chance must not leave out.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// What the last status of a turn matched.
    pub status: Value,
    /// In at least so many turns.
    pub times: u32,
}

/// A place in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Bytes from its start.
    Offset(u64),
    /// The first occurrence of a text in a release's `/usr`.
    Text {
        /// The text.
        text: String,
        /// The release that is in the partition; without it the first of the scenario.
        release: Option<String>,
    },
}

/// What a command must give.
#[derive(Debug, Clone, PartialEq)]
pub struct Expect {
    /// Its exit code, if it matters.
    pub exit: Option<i32>,
    /// Parts of its stdout.
    pub stdout: Vec<String>,
    /// What must not be in its stdout.
    pub stdout_not: Vec<String>,
    /// Parts of its stderr.
    pub stderr: Vec<String>,
    /// Its stdout as JSON, as far as it interests.
    pub json: Option<Value>,
}

impl Default for Expect {
    /// Success.
    fn default() -> Self {
        Self {
            exit: Some(0),
            stdout: vec![],
            stdout_not: vec![],
            stderr: vec![],
            json: None,
        }
    }
}

/// A turn of a repeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Turn {
    /// The line of the repeat in the scenario's file.
    pub line: usize,
    /// Which one, from 1.
    pub number: u32,
    /// Of how many.
    pub times: u32,
    /// Where its randomness starts.
    pub seed: u64,
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            number,
            times,
            seed,
            ..
        } = self;
        write!(
            f,
            "turn {number} of {times}; replay it with times = 1, seed = {seed}"
        )
    }
}

/// What the runner needs from the program it is part of.
pub trait Workshop: Sync {
    /// Builds a release, or does nothing when it is up to date.
    fn build(&self, release: &ReleaseSpec, overlay: Option<&Path>) -> Result<Release>;
    /// Publishes a release on a server.
    fn publish(&self, release: &Release, channel: &str, server: &str, data: &Path) -> Result<()>;
    /// The program `update-server`.
    fn update_server(&self) -> Result<PathBuf>;
}
