//! Child processes with a deadline, and processes that outlive us: found again by pid, and never mistaken.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::interrupt;

/// What a finished child left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; 128 + N when signal N ended it.
    pub exit: i32,
    /// All it wrote to stdout.
    pub stdout: String,
    /// All it wrote to stderr.
    pub stderr: String,
}

/// Runs a child to its end, or kills it when `limit` is over.
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = spawn(command)?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child, limit);
    if !matches!(status, Ok(Some(_))) {
        let _ = child.kill();
        let _ = child.wait();
    }
    let Some(status) = status? else {
        bail!("{name}: no end after {} s", limit.as_secs());
    };
    Ok(Output {
        exit: code(status),
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

/// As [`run`], for programs that only fail when something is wrong: the error holds the end of what they said.
pub fn check(command: &mut Command, limit: Duration) -> Result<String> {
    let output = run(command, limit)?;
    if output.exit != 0 {
        bail!(
            "{} failed with exit code {}: {}",
            command.get_program().to_string_lossy(),
            output.exit,
            tail(&output.stderr, 5)
        );
    }
    Ok(output.stdout)
}

/// Starts a child; a missing program is named.
pub fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| {
        format!(
            "cannot start {} (./orlop installs what is missing)",
            command.get_program().to_string_lossy()
        )
    })
}

/// Waits for the end; `None` when `limit` was not enough.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        interrupt::check()?;
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// An exit code as a shell reports it.
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// The last `lines` lines.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A process that may outlive us. Pids are reused, so a pid alone is not enough to send a signal to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    pub fn of(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid).context("a pid does not fit")?;
        let started = start_time(pid).with_context(|| format!("process {pid} has ended"))?;
        Ok(Self { pid, started })
    }

    /// Whether it still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Sends a signal, if the process is still the one we mean.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for its end.
    pub fn wait_gone(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// SIGTERM, then SIGKILL when that was not enough.
    pub fn stop(&self, patience: Duration) {
        self.signal(Signal::TERM);
        if !self.wait_gone(patience) {
            self.signal(Signal::KILL);
            self.wait_gone(Duration::from_secs(5));
        }
    }
}

fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // Field 2 is the program's name in parentheses and may hold anything; field 22 is what we want.
    let rest = &stat[stat.rfind(')')? + 2..];
    let mut fields = rest.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_child_that_never_ends_is_killed() {
        let begin = Instant::now();
        let error = run(&mut sh("sleep 60"), Duration::from_millis(200)).unwrap_err();
        assert!(error.to_string().contains("no end after"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_failure_tells_what_the_program_said_last() {
        let error = check(&mut sh("echo why >&2; exit 3"), Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.to_string(), "sh failed with exit code 3: why");
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_ours() {
        let mut child = sh("exec sleep 60").spawn().unwrap();
        let real = ProcessId::of(child.id()).unwrap();
        let reused = ProcessId {
            started: real.started + 1,
            ..real.clone()
        };
        reused.signal(Signal::KILL);
        assert!(!reused.is_alive());
        assert!(real.is_alive());
        real.signal(Signal::KILL);
        child.wait().unwrap();
        assert!(!real.is_alive());
    }
}
