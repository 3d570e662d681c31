use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use update_engine::{Source, boot_failed, daemon, good, writer};

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
    /// This boot did not reach boot-complete.target: note why, and reboot if that leads anywhere
    BootFailed {
        /// Started by the deadline, which orlop.boot-deadline=SECONDS|off on the kernel command line moves
        #[arg(long)]
        deadline: bool,
        /// Only say what would be done
        #[arg(long)]
        no_reboot: bool,
    },
}

fn main() -> ExitCode {
    host::log::init();
    let Arguments {
        root,
        disk,
        command,
    } = Arguments::parse();
    let source = Source { root, disk };
    let result = match command {
        Command::Daemon => daemon::run(&source.root),
        Command::Writer => writer::serve(source),
        Command::MarkGood => good::run(&source),
        Command::BootFailed {
            deadline,
            no_reboot,
        } => boot_failed::run(&source, deadline, !no_reboot),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}
