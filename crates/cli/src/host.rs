//! `orlop` on a host.

use clap::{CommandFactory, Parser, Subcommand};
use cli::commands::{self, completions, extension, rollback, schema, status, update};
use cli::exit::{self, Exit};

/// Orlop: an operating system for containers that updates itself and falls back by itself.
#[derive(Parser)]
#[command(name = "orlop", version, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    Status(status::Args),
    Update(update::Args),
    Rollback(rollback::Args),
    #[command(subcommand)]
    Extension(extension::Command),
    Schema(schema::Args),
    /// Run containers on systemd-nspawn
    Container(container::cli::ContainerArgs),
    Completions(completions::Args),
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Commands::Status(args) => status::run(&args),
        Commands::Update(args) => update::run(&args),
        Commands::Rollback(args) => rollback::run(&args),
        Commands::Extension(command) => extension::run(&command),
        Commands::Schema(args) => schema::run(&args),
        Commands::Container(args) => return commands::container(args),
        Commands::Completions(args) => completions::run(&args, &mut Cli::command()),
    };
    Exit::of(result).into()
}
