use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use update_engine::health::{self, generator};
use update_engine::{Source, boot_failed, daemon, extensions, good, next_root, writer};

/// Brings this host from one release to the next.
///
/// Exit codes: 0 done, 1 failed (the reason is on standard error), 2 wrong usage.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// Instead of /, for tests.
    #[arg(long, global = true, hide = true, default_value = "/")]
    root: PathBuf,

    /// A disk or an image of one, instead of searching for the one this system runs from.
    #[arg(long, global = true, hide = true)]
    disk: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check, download and ask the writer to write (user update-engine, no devices)
    Daemon,
    /// Write to the slot that is not running: one connection on standard input (no network)
    Writer,
    /// This boot reached boot-complete.target
    MarkGood,
    /// Put together the root that a soft-reboot goes into; only while everything else has ended
    NextRoot,
    /// This boot did not reach boot-complete.target: note why, and reboot if that leads anywhere
    BootFailed {
        /// Started by the deadline, which orlop.boot-deadline=SECONDS|off on the kernel command line moves
        #[arg(long)]
        deadline: bool,
        /// Only say what would be done
        #[arg(long)]
        no_reboot: bool,
    },
    /// While this release is on trial: wait until something works as it did before the update
    Check {
        what: health::Check,
        /// Seconds until it has failed
        #[arg(long, default_value_t = 60, value_name = "SECONDS")]
        within: u64,
    },
    /// Link the extensions that /etc/orlop/extensions names to where systemd-sysext looks
    Extensions {
        #[arg(value_enum)]
        when: When,
    },
    /// The systemd generator: /etc/orlop/health.d/*.service become requirements of boot-complete.target
    Generate {
        /// Where the units go
        normal: PathBuf,
        early: PathBuf,
        late: PathBuf,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum When {
    /// Before systemd-sysext runs
    Boot,
    /// Others are wanted: systemd-sysext is to look again
    Changed,
    /// Some were fetched: likewise
    Arrived,
}

/// Under this name systemd calls us before it loads units, with three directories.
const GENERATOR: &str = "health-generator";

fn main() -> ExitCode {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    let name = arguments
        .first()
        .and_then(|name| Path::new(name).file_name());
    if name == Some(GENERATOR.as_ref()) {
        arguments.insert(1, "generate".into());
    }
    host::log::init();
    let Arguments {
        root,
        disk,
        command,
    } = Arguments::parse_from(arguments);
    let source = Source { root, disk };
    let result = match command {
        Command::Daemon => daemon::run(&source.root),
        Command::Writer => writer::serve(source),
        Command::MarkGood => good::run(&source),
        Command::NextRoot => next_root::run(&source),
        Command::BootFailed {
            deadline,
            no_reboot,
        } => boot_failed::run(&source, deadline, !no_reboot),
        Command::Check { what, within } => {
            health::check(&source, what, Duration::from_secs(within))
        }
        Command::Extensions { when } => extensions::run(&source, when != When::Boot),
        Command::Generate { normal, .. } => generate(&source.root, &normal),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

/// A check that cannot be used keeps no host from booting, but it must not be silent either.
fn generate(root: &Path, units: &Path) -> anyhow::Result<()> {
    let problems = generator::generate(root, units)?;
    // The journal may not run yet, and nobody reads our standard error.
    let mut kernel_log = std::fs::OpenOptions::new()
        .write(true)
        .open(host::under(root, "/dev/kmsg"))
        .ok();
    for problem in problems {
        tracing::error!("{problem}");
        if let Some(log) = &mut kernel_log {
            let _ = writeln!(log, "<3>{GENERATOR}: {problem}");
        }
    }
    Ok(())
}
