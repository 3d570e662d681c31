//! Running other programs. Every failure names the program and carries the end of what it said.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How much of a child's standard error an error message carries.
const TAIL: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("{program} is not installed; looked in PATH={path}")]
    NotFound { program: String, path: String },
    #[error("cannot run {program}")]
    Spawn {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("lost {program} while it ran")]
    Io {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{program}: {status}{}", said(tail))]
    Failed {
        program: String,
        status: ExitStatus,
        tail: String,
    },
    #[error("{program} did not finish within {} s and was killed{}", limit.as_secs_f32(), said(tail))]
    Timeout {
        program: String,
        limit: Duration,
        tail: String,
    },
}

impl ChildError {
    /// The exit code, where the program ran to its end.
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Failed { status, .. } => status.code(),
            _ => None,
        }
    }
}

fn said(tail: &str) -> String {
    match tail.trim() {
        "" => String::new(),
        tail => format!("; it said:\n{tail}"),
    }
}

#[derive(Debug, Clone)]
pub struct Output {
    pub stdout: Vec<u8>,
    /// The last 4 KiB of standard error: a successful program may still have warned.
    pub stderr_tail: String,
}

impl Output {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs `command` to its end, with nothing on its standard input.
pub fn run(command: &mut Command) -> Result<Output, ChildError> {
    exec(command, None, None)
}

/// As [`run`], but kills the child when it takes longer than `limit`.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<Output, ChildError> {
    exec(command, None, Some(limit))
}

/// As [`run`], with `input` on the child's standard input.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Result<Output, ChildError> {
    exec(command, Some(input.to_vec()), None)
}

fn exec(
    command: &mut Command,
    input: Option<Vec<u8>>,
    limit: Option<Duration>,
) -> Result<Output, ChildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let lost = |source| ChildError::Io {
        program: program.clone(),
        source,
    };
    command
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ChildError::NotFound {
            program: program.clone(),
            path: std::env::var("PATH").unwrap_or_default(),
        },
        _ => ChildError::Spawn {
            program: program.clone(),
            source,
        },
    })?;

    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A child that does not read its input is no failure by itself: its exit status decides.
        std::thread::spawn(move || drop(stdin.write_all(&input)));
    }
    let stdout = child
        .stdout
        .take()
        .map(|pipe| Drain::start(pipe, usize::MAX));
    let stderr = child.stderr.take().map(|pipe| Drain::start(pipe, TAIL));
    let status = match limit {
        None => child.wait().map_err(lost)?,
        Some(limit) => match wait_within(&mut child, limit).map_err(lost)? {
            Some(status) => status,
            None => {
                child.kill().map_err(lost)?;
                child.wait().map_err(lost)?;
                // A grandchild may hold the pipes open: take what is there, do not wait for the end.
                let tail = stderr
                    .map(|drain| lossy(&drain.so_far()))
                    .unwrap_or_default();
                return Err(ChildError::Timeout {
                    program,
                    limit,
                    tail,
                });
            }
        },
    };
    let stdout = stdout.map(Drain::finish).unwrap_or_default();
    let tail = lossy(&stderr.map(Drain::finish).unwrap_or_default());
    match status.success() {
        true => Ok(Output {
            stdout,
            stderr_tail: tail,
        }),
        false => Err(ChildError::Failed {
            program,
            status,
            tail,
        }),
    }
}

fn wait_within(child: &mut std::process::Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// A thread that empties a pipe, so that the child never blocks on it, and keeps its last bytes.
struct Drain {
    kept: Arc<Mutex<VecDeque<u8>>>,
    thread: JoinHandle<()>,
}

impl Drain {
    fn start(mut pipe: impl Read + Send + 'static, keep: usize) -> Self {
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let shared = Arc::clone(&kept);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            loop {
                match pipe.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => {
                        let mut kept = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        kept.extend(&buffer[..n]);
                        let excess = kept.len().saturating_sub(keep);
                        kept.drain(..excess);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        });
        Self { kept, thread }
    }

    fn so_far(&self) -> Vec<u8> {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .copied()
            .collect()
    }

    fn finish(self) -> Vec<u8> {
        // The thread cannot panic; were it to, what it kept is still the best answer.
        let _ = self.thread.join();
        std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
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
    fn collects_both_streams() {
        let output = run(&mut sh("echo out; echo warning >&2")).unwrap();
        assert_eq!(output.text(), "out\n");
        assert_eq!(output.stderr_tail, "warning\n");
    }

    #[test]
    fn a_failure_carries_the_end_of_stderr_only() {
        let error = run(&mut sh(
            "yes 0123456789 | head -n 5000 >&2; echo the reason >&2; exit 7",
        ))
        .unwrap_err();
        assert_eq!(error.code(), Some(7));
        let text = error.to_string();
        assert!(text.starts_with("sh: exit status: 7; it said:\n"), "{text}");
        assert!(text.ends_with("the reason"), "{text}");
        assert!(text.len() < TAIL + 100);
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program-here")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("no-such-program-here is not installed"),
            "{error}"
        );
    }

    #[test]
    fn a_timeout_kills_and_does_not_wait_for_grandchildren() {
        let start = Instant::now();
        let error = run_within(
            &mut sh("echo stuck >&2; sleep 20 & sleep 20"),
            Duration::from_secs(2),
        )
        .unwrap_err();
        assert!(
            matches!(&error, ChildError::Timeout { tail, .. } if tail == "stuck\n"),
            "{error}"
        );
        assert!(start.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn input_arrives_and_may_be_ignored() {
        assert_eq!(
            run_with_input(&mut sh("cat"), b"hello").unwrap().text(),
            "hello"
        );
        run_with_input(&mut sh("exit 0"), &vec![0; 1 << 20]).unwrap();
    }
}
