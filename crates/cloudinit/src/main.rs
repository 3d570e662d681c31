//! `cloudinit`: one cloud-config makes a machine.

mod commands;
mod legacy;
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
        /// Use what the network phase brought, see `fetch`
        #[arg(long)]
        fetched: bool,
    },
    /// Ask the sources on the network that `run` noted down; the service's network phase
    Fetch {
        /// Seconds for all of them together
        #[arg(long, default_value_t = 90)]
        budget: u64,
    },
    /// Make the calls that `run` left to systemd's late boot; the service's second phase
    Units,
    /// Delete from VMware's guestinfo what `run` noted down; a service of its own
    Forget {
        /// The system
        #[arg(long, default_value = "/")]
        root: PathBuf,
    },
    /// Check a file; every finding has its line and column
    Validate {
        #[command(flatten)]
        input: Input,
    },
    /// Print a JSON Schema of the cloud-config, for editors
    Schema,
    /// Show the files of networkd that a platform's network configuration stands for
    ConvertNetconf {
        /// openstack, debian, packet, nocloud or vmware
        format: String,
        /// The configuration; - for standard input
        file: PathBuf,
        #[arg(short, long, value_enum, default_value_t = Format::Text)]
        output: Format,
        /// Write them into this directory instead
        #[arg(long, value_name = "DIR")]
        output_dir: Option<PathBuf>,
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
        /// The file. Without it, what was applied last
        #[arg(long)]
        from: Option<PathBuf>,
        /// The system to change; systemd is only called for /
        #[arg(long, default_value = "/")]
        root: PathBuf,
        /// Take warnings for errors
        #[arg(long)]
        strict: bool,
    },
    /// What was done in this boot
    Status {
        #[arg(short, long, value_enum, default_value_t = Format::Text)]
        output: Format,
    },
}

#[derive(Args)]
struct Input {
    /// The user-data; - for standard input. Without it, what was applied last
    file: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Take warnings for errors
    #[arg(long)]
    strict: bool,
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
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    let result = match name.ends_with("coreos-cloudinit") {
        true => legacy::run(std::iter::once(name).chain(arguments)),
        false => run(),
    };
    let exit = result.unwrap_or_else(|error| {
        eprintln!("cloudinit: {error:#}");
        commands::Exit::Failed
    });
    ExitCode::from(exit as u8)
}

fn run() -> anyhow::Result<commands::Exit> {
    match Cli::parse().command {
        Command::Run { patience, fetched } => commands::run(patience, fetched),
        Command::Fetch { budget } => commands::fetch(budget),
        Command::Units => commands::units(),
        Command::Forget { root } => commands::forget(&root),
        Command::Validate { input } => commands::validate(&input),
        Command::Schema => commands::schema(),
        Command::ConvertNetconf {
            format,
            file,
            output,
            output_dir,
        } => commands::convert(&format, &file, output, output_dir.as_deref()),
        Command::Plan { input, root } => commands::plan(&input, &root),
        Command::Apply { from, root, strict } => commands::apply(from.as_deref(), &root, strict),
        Command::Status { output } => commands::status(output),
    }
}
