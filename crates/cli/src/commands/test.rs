//! `orlop test`: all that CI runs, in the order of cost.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use vm::lab::Lab;
use vm::{interrupt, process};

use super::lab;
use crate::exit::Exit;

/// Run all that CI runs: format, lints, tests, images, scenarios
#[derive(clap::Args)]
pub struct Args {
    /// Only this step
    #[arg(long, value_enum)]
    only: Option<Name>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    Format,
    Lint,
    Scripts,
    Tests,
    Images,
    Reproducible,
    Scenarios,
}

struct Check {
    name: Name,
    command: &'static str,
}

const CHECKS: [Check; 7] = [
    Check {
        name: Name::Format,
        command: "cargo fmt --all --check",
    },
    Check {
        name: Name::Scripts,
        command: "shellcheck orlop .ci/run tests/bench/debian-usr",
    },
    Check {
        name: Name::Lint,
        command: "cargo clippy --workspace --all-targets --locked -- -D warnings",
    },
    Check {
        name: Name::Tests,
        command: "cargo nextest run --workspace --locked --no-fail-fast",
    },
    Check {
        name: Name::Images,
        command: "target/release/orlop scenario run --build-only",
    },
    Check {
        name: Name::Reproducible,
        command: "target/release/orlop build --lab .orlop/test --version 1 --level 3 --check-reproducible",
    },
    Check {
        name: Name::Scenarios,
        command: "target/release/orlop scenario run --again",
    },
];

/// CI ends a run after 90 minutes, with nothing to read then.
const MINUTES: u64 = 85;

pub fn run(args: &Args) -> Result<Exit> {
    interrupt::catch()?;
    let lab = lab()?;
    let mut times = Vec::new();
    let begin = Instant::now();
    for check in CHECKS
        .iter()
        .filter(|check| args.only.is_none_or(|only| only == check.name))
    {
        let name = format!("{:?}", check.name).to_lowercase();
        let mut command = check.command.to_owned();
        if check.name == Name::Scenarios {
            let left = MINUTES.saturating_sub(begin.elapsed().as_secs() / 60);
            command += &format!(" --within {left}");
        }
        eprintln!("── {name}: {command}");
        let begin = Instant::now();
        let exit = execute(&lab, &command)?;
        let seconds = begin.elapsed().as_secs_f64();
        interrupt::check()?;
        if exit != 0 {
            bail!(
                "{name} failed after {seconds:.0} s (exit code {exit}); repeat it with ./orlop test --only {name}"
            );
        }
        times.push(format!("{name} {seconds:.0} s"));
    }
    eprintln!(
        "── all passed in {:.0} s: {}",
        begin.elapsed().as_secs_f64(),
        times.join(", ")
    );
    Ok(Exit::Ok)
}

fn execute(lab: &Lab, command: &str) -> Result<i32> {
    let mut words = command.split(' ');
    let program = words.next().context("a check without a command")?;
    // Children get Ctrl-C from the terminal like we do; they clean up, and we wait for them.
    let status =
        process::spawn(Command::new(program).args(words).current_dir(lab.repo()))?.wait()?;
    Ok(process::code(status))
}
