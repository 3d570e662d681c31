//! `update-server`: parses the command line and runs [`update_server::server`].
//!
//! Exit codes: 0 stopped by a signal, 1 failed, 2 wrong usage, 3 address in use, 4 data directory
//! in use.

use std::process::ExitCode;

use clap::Parser as _;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use update_server::bench;
use update_server::server::{Options, run};

#[tokio::main]
async fn main() -> ExitCode {
    let wanted = std::env::var("RUST_LOG").ok();
    let targets = wanted
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| Targets::new().with_default(Level::INFO));
    let lines = tracing_subscriber::fmt::layer()
        .without_time()
        .with_writer(std::io::stderr);
    tracing_subscriber::registry()
        .with(lines)
        .with(targets)
        .init();
    // A word of its own, so that the server's options stay what they are.
    if std::env::args().nth(1).as_deref() == Some("bench") {
        let options = bench::Options::parse_from(std::env::args().skip(1));
        return match bench::run(options).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("update-server bench: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            let hint = error.hint();
            eprintln!("update-server: {:#}", anyhow::Error::from(error));
            if let Some(hint) = hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(code)
        }
    }
}
