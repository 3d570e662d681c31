//! Processors of their own for servers and for the load: else the two take them from each other, and the figures say what
//! both can do together.

use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// Some processors, as `0`, `0,2` or `1-3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Processors {
    numbers: Vec<usize>,
}

impl FromStr for Processors {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |part: &str| -> Result<usize> {
            let number = part
                .trim()
                .parse()
                .with_context(|| format!("{part:?} is no number of a processor"))?;
            if number >= CpuSet::MAX_CPU {
                bail!(
                    "{number}: numbers of processors are below {}",
                    CpuSet::MAX_CPU
                );
            }
            Ok(number)
        };
        let mut numbers = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                Some((from, to)) => {
                    let (from, to) = (number(from)?, number(to)?);
                    if from > to {
                        bail!("{part:?} ends before it begins");
                    }
                    numbers.extend(from..=to);
                }
                None => numbers.push(number(part)?),
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(Self { numbers })
    }
}

impl std::fmt::Display for Processors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numbers: Vec<String> = self.numbers.iter().map(usize::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}

impl Processors {
    fn set(&self) -> CpuSet {
        let mut set = CpuSet::new();
        for number in &self.numbers {
            set.set(*number);
        }
        set
    }

    /// Whether this process may use all of them.
    pub(super) fn check(&self) -> Result<()> {
        let here = sched_getaffinity(None).context("cannot ask for the processors")?;
        match self.numbers.iter().find(|n| !here.is_set(**n)) {
            Some(number) => bail!("there is no processor {number} for this process"),
            None => Ok(()),
        }
    }

    /// Moves all threads of this process to them. Threads that start later follow those that start them.
    pub(super) fn take(&self) -> Result<()> {
        let set = self.set();
        for entry in std::fs::read_dir("/proc/self/task").context("/proc/self/task")? {
            let name = entry.context("/proc/self/task")?.file_name();
            let thread = name.to_str().and_then(|name| name.parse().ok());
            if let Some(thread) = thread.and_then(Pid::from_raw) {
                match sched_setaffinity(Some(thread), &set) {
                    // It has ended meanwhile.
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(error) => {
                        return Err(error).with_context(|| format!("processors {self}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Runs `start` on them: a process that is started there stays there with all its threads, and counts no other
    /// processors when it decides how many threads it needs.
    pub(super) fn within<T>(&self, start: impl FnOnce() -> T) -> Result<T> {
        let before = sched_getaffinity(None).context("cannot ask for the processors")?;
        sched_setaffinity(None, &self.set()).with_context(|| format!("processors {self}"))?;
        let started = start();
        sched_setaffinity(None, &before).context("cannot go back to the processors of before")?;
        Ok(started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        for (text, numbers) in [
            ("0", vec![0]),
            ("2,0", vec![0, 2]),
            ("1-3,2", vec![1, 2, 3]),
        ] {
            let read: Processors = text.parse().expect("a list");
            assert_eq!(read.numbers, numbers, "{text}");
        }
        for bad in ["", "a", "3-1", "1-", "99999"] {
            assert!(bad.parse::<Processors>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_process_stays_where_it_was_started() {
        let here = sched_getaffinity(None).expect("readable");
        let Some(last) = (0..CpuSet::MAX_CPU).rfind(|n| here.is_set(*n)) else {
            panic!("no processor at all");
        };
        let one: Processors = last.to_string().parse().expect("a list");
        let output = one
            .within(|| {
                std::process::Command::new("grep")
                    .args(["Cpus_allowed_list", "/proc/self/status"])
                    .output()
            })
            .expect("allowed")
            .expect("grep runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            text.split_whitespace().last(),
            Some(last.to_string().as_str())
        );
        assert_eq!(sched_getaffinity(None).expect("readable"), here);
    }
}
