//! `orlop scenario`

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use image::repository::{Lifetimes, Repository};
use update_server::client::Server;
use vm::accel::Accel;
use vm::interrupt;
use vm::lab::{Lab, Release};
use vm::scenario::pool::{self, Report};
use vm::scenario::run::Stage;
use vm::scenario::{ReleaseSpec, Workshop};
use vm::ssh::Key;

use super::{lab, serve, up};
use crate::exit::Exit;
use crate::output::{self, Output};

/// Tell stories about machines to real machines
#[derive(clap::Subcommand)]
pub enum Command {
    /// Run scenarios; each that fails leaves console, screenshot and journal in .orlop/test/failed
    Run(RunArgs),
    /// List them
    List {
        /// Files or directories; without any, tests/vm
        paths: Vec<PathBuf>,
    },
}

#[derive(clap::Args)]
pub struct RunArgs {
    /// Files or directories; without any, tests/vm
    paths: Vec<PathBuf>,
    /// Only those with this in their name
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// How many at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// How often their steps of kind `repeat` are repeated, instead of what they say
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    times: Option<u32>,
    /// Run the few that fail once more, one at a time when all others have ended, and say so
    #[arg(long)]
    again: bool,
    /// Run nothing again that is not likely to end within this many minutes from now
    #[arg(long, value_name = "MINUTES", requires = "again")]
    within: Option<u64>,
    /// Build the releases they need, and stop there
    #[arg(long)]
    build_only: bool,
    /// Say each step as it begins
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    output: Output,
}

pub fn run(command: &Command) -> Result<Exit> {
    match command {
        Command::Run(args) => run_scenarios(args),
        Command::List { paths } => {
            for scenario in pool::collect(&or_all(paths, &lab()?), None)? {
                println!("{:<24} {}", scenario.name, scenario.about);
            }
            Ok(Exit::Ok)
        }
    }
}

/// Those that were named, or those of the checkout, by the shortest name from here.
fn or_all(paths: &[PathBuf], lab: &Lab) -> Vec<PathBuf> {
    match paths {
        [] if Path::new("tests/vm").is_dir() => vec!["tests/vm".into()],
        [] => vec![lab.repo().join("tests/vm")],
        named => named.to_vec(),
    }
}

fn run_scenarios(args: &RunArgs) -> Result<Exit> {
    interrupt::catch()?;
    let end = args
        .within
        .and_then(|minutes| Instant::now().checked_add(Duration::from_secs(minutes * 60)));
    let user_lab = lab()?;
    let mut scenarios = pool::collect(&or_all(&args.paths, &user_lab), args.filter.as_deref())?;
    if let Some(times) = args.times {
        for scenario in &mut scenarios {
            scenario.repeat(times);
        }
    }
    let lab = user_lab.for_tests()?;
    let _lock = lab.lock("the scenarios", "scenario run")?;
    let bench = Bench {
        lab: lab.clone(),
        building: Mutex::new(Vec::new()),
    };
    if args.build_only {
        for scenario in &scenarios {
            for release in &scenario.releases {
                bench.build(release, scenario.overlay(release).as_deref())?;
            }
        }
        return Ok(Exit::Ok);
    }
    let key = Key::ensure(&lab)?;
    let say = |text: &str| {
        if args.verbose {
            eprintln!("  {text}");
        }
    };
    let stage = Stage {
        lab: &lab,
        accel: Accel::detect(&lab.cache())?,
        key: &key,
        workshop: &bench,
        say: &say,
    };
    let done = |report: &Report| eprintln!("{}", line(report));
    let mut reports = pool::run_all(&stage, &scenarios, args.jobs, &done);
    if args.again {
        pool::run_again(&stage, &scenarios, &mut reports, end, &done);
    }
    let passed = reports.iter().filter(|report| report.passed).count();
    let all = scenarios.len();
    let unsteady = reports
        .iter()
        .filter(|report| report.passed && report.failed_before.is_some())
        .count();
    output::print(args.output.output, &reports, |_| {
        let mut text = format!("{passed} passed, {} failed", all - passed);
        if unsteady > 0 {
            text += &format!("; {unsteady} of those that passed only when run again");
        }
        text + "\n"
    })?;
    interrupt::check()?;
    Ok(if passed == all {
        Exit::Ok
    } else {
        Exit::NotHealthy
    })
}

fn line(report: &Report) -> String {
    let mark = if report.passed { "✓" } else { "✗" };
    let again = match (&report.failed_before, &report.turn) {
        (None, _) => String::new(),
        (Some(_), None) => " (run again)".into(),
        (Some(_), Some(turn)) => format!(" (run again, from seed {})", turn.seed),
    };
    let error = report
        .error
        .iter()
        .map(|error| format!("\n    {}", error.replace('\n', "\n    ")));
    format!(
        "{mark} {:<24} {:>6.1} s  {}{again}{}",
        report.name,
        report.seconds,
        report.about,
        error.collect::<String>()
    )
}

struct Bench {
    lab: Lab,
    /// What was built in this run, so that it is built once; the lock also keeps builds one after the other.
    building: Mutex<Vec<ReleaseSpec>>,
}

impl Workshop for Bench {
    fn build(&self, spec: &ReleaseSpec, overlay: Option<&Path>) -> Result<Release> {
        let mut built = self
            .building
            .lock()
            .map_err(|_| anyhow::anyhow!("another build has crashed"))?;
        if !built.contains(spec) {
            let say = |text: &str| eprintln!("  release {}: {text}", spec.version);
            // Compressed a little: what is published here travels no further than this machine.
            up::build(
                &self.lab,
                &self.lab,
                &spec.version,
                &up::Changes {
                    cmdline: &spec.cmdline,
                    overlay,
                    minimum_source_version: spec.minimum_source_version.as_deref(),
                    epoch: spec.epoch,
                },
                3,
                &say,
            )?;
            built.push(spec.clone());
        }
        Ok(self.lab.release(&spec.version))
    }

    fn publish(&self, release: &Release, channel: &str, server: &str, data: &Path) -> Result<()> {
        let channel = channel.parse()?;
        // Each scenario has metadata of its own: they publish different builds of one version.
        let dir = data.with_file_name("tuf");
        let life = Lifetimes::default();
        if !Repository::exists(&dir) {
            Repository::open(&self.lab.root().join("tuf"), None, life)?.copy_to(&dir)?;
        }
        let sign = |server: &Server| {
            let repository = Repository::open(&dir, None, life)?;
            super::tuf::publish(&repository, server, &channel, &release.dir)
        };
        super::releases::publish_to(
            release,
            &channel,
            server,
            &data.join("token"),
            &sign,
            &|_, _| (),
        )
        .with_context(|| format!("cannot publish release {}", release.version))?;
        Ok(())
    }

    fn update_server(&self) -> Result<PathBuf> {
        serve::program()
    }
}
