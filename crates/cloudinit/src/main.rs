//! `cloudinit`: one cloud-config makes a machine.

mod commands;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Configures this host from the user-data that its platform, a disk or a file gives.
///
/// Exit codes: 0 fine, warnings included; 1 the user-data has errors and nothing of it was applied;
/// 2 wrong usage; 3 something else failed (files, systemd).
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find this machine's data and apply it; the service's first phase
    Run {
        /// Seconds to wait for hardware that is still coming up
        #[arg(long, default_value_t = 5.0)]
        patience: f32,
    },
    /// Make the calls that `run` left to systemd's late boot; the service's second phase
    Units,
    /// Check a file; every finding has its line and column
    Validate {
        #[command(flatten)]
        input: Input,
        /// Take warnings for errors
        #[arg(long)]
        strict: bool,
    },
    /// Show what a file would do, and what it would change under --root
    Plan {
        #[command(flatten)]
        input: Input,
        /// The system to plan for
        #[arg(long, default_value = "/")]
        root: PathBuf,
    },
    /// Apply a file
    Apply {
        /// The file
        #[arg(long)]
        from: PathBuf,
        /// The system to change; systemd is only called for /
        #[arg(long, default_value = "/")]
        root: PathBuf,
    },
    /// What was done in this boot
    Status {
        #[arg(short, long, value_enum, default_value_t = Format::Text)]
        output: Format,
    },
}

#[derive(Args)]
struct Input {
    /// The user-data; - for standard input
    file: PathBuf,
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Value of $public_ipv4
    #[arg(long, env = "COREOS_PUBLIC_IPV4", value_name = "ADDRESS")]
    public_ipv4: Option<String>,
    /// Value of $private_ipv4
    #[arg(long, env = "COREOS_PRIVATE_IPV4", value_name = "ADDRESS")]
    private_ipv4: Option<String>,
    /// Value of $public_ipv6
    #[arg(long, env = "COREOS_PUBLIC_IPV6", value_name = "ADDRESS")]
    public_ipv6: Option<String>,
    /// Value of $private_ipv6
    #[arg(long, env = "COREOS_PRIVATE_IPV6", value_name = "ADDRESS")]
    private_ipv6: Option<String>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run { patience } => commands::run(patience),
        Command::Units => commands::units(),
        Command::Validate { input, strict } => commands::validate(&input, strict),
        Command::Plan { input, root } => commands::plan(&input, &root),
        Command::Apply { from, root } => commands::apply(&from, &root),
        Command::Status { output } => commands::status(output),
    };
    let exit = result.unwrap_or_else(|error| {
        eprintln!("cloudinit: {error:#}");
        commands::Exit::Failed
    });
    ExitCode::from(exit as u8)
}
