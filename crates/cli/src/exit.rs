//! Exit codes. Scripts rely on them: they are added to, never changed.

use std::process::ExitCode;

use anyhow::Result;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok,
    /// It failed; stderr says why.
    Failed,
    /// The command was fine, what it looked at is not: an unhealthy host, a failed scenario.
    NotHealthy,
    /// Ctrl-C.
    Interrupted,
}

/// For `--help`. Code 2 is clap's.
pub const HELP: &str = "\
Exit codes:
  0    done
  1    failed; stderr says why
  2    the command line is wrong
  3    what was asked about is not well: an unhealthy host, a failed scenario
  130  interrupted";

impl Exit {
    /// Prints an error, if it is one.
    pub fn of(result: Result<Self>) -> Self {
        match result {
            Ok(exit) => exit,
            Err(_) if vm::interrupt::requested() => {
                eprintln!("orlop: interrupted");
                Self::Interrupted
            }
            Err(error) => {
                eprintln!("orlop: {error:#}");
                Self::Failed
            }
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::NotHealthy => 3,
            Exit::Interrupted => 130,
        })
    }
}
