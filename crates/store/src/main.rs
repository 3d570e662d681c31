//! `orlop-store`: parses the command line and runs [`store::server`].
//!
//! Exit codes: 0 stopped by a signal or removed from the cluster, 1 failed, 2 wrong usage.

use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use store::config::{LogFormat, Server, normalise};
use store::{bench, old, snapshot};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// A drop-in etcd: the same ports, flags and APIs
#[derive(Parser)]
// As with Go's flags, the last of several counts.
#[command(
    name = "orlop-store",
    version,
    args_conflicts_with_subcommands = true,
    args_override_self = true
)]
struct Cli {
    #[command(flatten)]
    server: Server,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Saves, restores and inspects snapshots
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Measures servers, this or others
    Bench(Box<bench::Bench>),
}

fn log(config: &Server) {
    let level = match config.log_level.as_str() {
        "panic" | "dpanic" | "fatal" => "error",
        other => other,
    };
    let filter: Targets = std::env::var("RUST_LOG")
        .ok()
        .and_then(|text| text.parse().ok())
        .or_else(|| level.parse().ok())
        .unwrap_or_default();
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr);
    let layer = match config.log_format {
        LogFormat::Text => layer.with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(layer)
        .with(filter)
        .init();
}

/// As with etcd, a variable without a value is as good as none: unit files are full of them.
fn parse(args: Vec<String>) -> (Cli, Vec<String>) {
    let command = Cli::command().mut_args(|arg| {
        let value = arg.get_env().and_then(std::env::var_os);
        if value.is_some_and(|value| value.is_empty()) {
            arg.env(None)
        } else {
            arg
        }
    });
    let matches = command.get_matches_from(args);
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let is_default = |field: &str| matches.value_source(field) == Some(ValueSource::DefaultValue);
    let old = old::take(&mut cli.server, &is_default, &|name| {
        std::env::var(name).ok()
    });
    (cli, old)
}

fn main() -> ExitCode {
    let (args, ignored) = normalise(std::env::args());
    let (cli, old) = parse(args);
    log(&cli.server);
    for line in old {
        tracing::info!("{line}");
    }
    for flag in ignored {
        tracing::warn!("--{flag} has no meaning here and is ignored");
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("orlop-store: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match cli.command {
            None => store::server::run(cli.server).await,
            Some(Command::Snapshot(command)) => snapshot::run(command).await,
            Some(Command::Bench(bench)) => bench::run(*bench).await,
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
