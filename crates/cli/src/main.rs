//! `orlop` on a workstation: which words lead to which command. It also has all that a host's `orlop` has.

use clap::{CommandFactory, Parser, Subcommand};

use cli::commands::{
    bench, build, completions, console, down, extension, fleet, keys, man, pki, ps, releases,
    rollback, scenario, schema, serve, ssh, status, test, up, update,
};
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
    // On a workstation
    Up(up::Args),
    Down(down::Args),
    Ps(ps::Args),
    Ssh(ssh::Args),
    Console(console::Args),
    Build(build::Args),
    #[command(subcommand)]
    Release(releases::Command),
    #[command(subcommand)]
    Keys(keys::Command),
    Serve(serve::Args),
    #[command(subcommand)]
    Fleet(fleet::Command),
    #[command(subcommand)]
    Pki(pki::Command),
    #[command(subcommand)]
    Scenario(scenario::Command),
    #[command(subcommand)]
    Bench(bench::Command),
    Test(test::Args),
    Completions(completions::Args),
    Man(man::Args),
    // On a host
    Status(status::Args),
    Update(update::Args),
    Rollback(rollback::Args),
    #[command(subcommand)]
    Extension(extension::Command),
    Schema(schema::Args),
    /// Run containers on systemd-nspawn
    Container(container::cli::ContainerArgs),
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Commands::Up(args) => up::run(&args),
        Commands::Down(args) => down::run(&args),
        Commands::Ps(args) => ps::run(&args),
        Commands::Ssh(args) => ssh::run(&args),
        Commands::Console(args) => console::run(&args),
        Commands::Build(args) => build::run(&args),
        Commands::Release(command) => releases::run(&command),
        Commands::Keys(command) => keys::run(&command),
        Commands::Serve(args) => serve::run(&args),
        Commands::Fleet(command) => fleet::run(&command),
        Commands::Pki(command) => pki::run(&command),
        Commands::Scenario(command) => scenario::run(&command),
        Commands::Bench(command) => bench::run(&command),
        Commands::Test(args) => test::run(&args),
        Commands::Completions(args) => completions::run(&args, &mut Cli::command()),
        Commands::Man(args) => man::run(&args, Cli::command()),
        Commands::Status(args) => status::run(&args),
        Commands::Update(args) => update::run(&args),
        Commands::Rollback(args) => rollback::run(&args),
        Commands::Extension(command) => extension::run(&command),
        Commands::Schema(args) => schema::run(&args),
        Commands::Container(args) => return cli::commands::container(args),
    };
    Exit::of(result).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_mistyped_word_gets_a_suggestion() {
        let error = Cli::try_parse_from(["orlop", "relaese"])
            .err()
            .map(|error| error.to_string());
        assert!(
            error
                .unwrap()
                .contains("a similar subcommand exists: 'release'")
        );
    }
}
