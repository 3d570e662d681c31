//! Exit codes: 0 done (or nothing to do), 1 an error that is on standard error, 2 wrong usage.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

/// Decides when this host reboots into a staged release
#[derive(Debug, Parser)]
#[command(name = "locksmith", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// Where the host's files are
    #[arg(long, global = true, hide = true, default_value = "/")]
    root: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Wait for the right moment and reboot (what locksmith.service runs)
    Daemon,
    /// Show the strategy, the window and the next reboot
    Status {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.command {
        Command::Daemon => {
            host::log::init();
            locksmith::daemon::run(&args.root)
        }
        Command::Status { output } => print_status(&args.root, output),
    }
}

fn print_status(root: &Path, output: Output) -> Result<()> {
    let status = locksmith::status::read(root, &jiff::Zoned::now());
    match output {
        Output::Text => println!("{status}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
    }
    Ok(())
}
