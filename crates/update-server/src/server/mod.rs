//! The service: options, start, stop.

mod auth;
mod catalog;
mod checkin;
mod dashboard;
mod database;
mod error;
mod files;
mod policy;
mod records;
mod rest;
mod routes;
mod startup;
mod upload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use self::database::Database;
pub use self::startup::ServeError;

/// How the server is run.
#[derive(Clone, Debug, clap::Parser)]
#[command(
    name = "update-server",
    version,
    about = "Serves releases to hosts and shows the fleet"
)]
pub struct Options {
    /// Address to listen on; port 0 takes a free one, which is printed
    #[arg(long, env = "ORLOP_SERVE_LISTEN", default_value = "127.0.0.1:8090")]
    pub listen: String,
    /// Directory for the database, the releases and the admin token
    #[arg(long, env = "ORLOP_SERVE_DATA")]
    pub data: PathBuf,
    /// Directory of public keys (*.pub); a release has to be signed by one of them
    #[arg(long, env = "ORLOP_SERVE_KEYS")]
    pub keys: PathBuf,
    /// Base URL that hosts download from, if it is not the one they ask at
    #[arg(long, env = "ORLOP_SERVE_PUBLIC_URL", value_parser = base_url)]
    pub public_url: Option<String>,
}

fn base_url(text: &str) -> Result<String, &'static str> {
    let url = text.trim_end_matches('/');
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    match rest {
        Some(rest) if !rest.is_empty() => Ok(url.to_owned()),
        _ => Err("write it as http://HOST:PORT"),
    }
}

/// What every handler needs.
struct Server {
    database: Database,
    /// `DATA/releases`.
    releases: PathBuf,
    keys: PathBuf,
    /// Held while a manifest is replaced and while a release is finished.
    publishing: tokio::sync::Mutex<()>,
    token: auth::Token,
    public_url: Option<String>,
    clock: fn() -> Timestamp,
}

type Shared = Arc<Server>;

/// How long open downloads may go on after a signal to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
pub async fn run(options: Options) -> Result<(), ServeError> {
    // Before anything is announced: a signal that comes early must not be lost.
    let stop = stop_signal()?;
    let listener = startup::listen(&options.listen).await?;
    let (server, _lock) = startup::open(&options)?;
    let address = listener.local_addr().map_err(|source| ServeError::Listen {
        address: options.listen.clone(),
        source,
    })?;
    println!(
        "{}",
        serde_json::json!({ "listening": address.to_string() })
    );
    tracing::info!(%address, data = %options.data.display(), "listening");
    serve(listener, Arc::new(server), stop).await
}

async fn serve(
    listener: TcpListener,
    server: Shared,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let (stopping, mut stopped) = tokio::sync::watch::channel(false);
    let graceful = async move {
        stop.await;
        tracing::info!("stopping");
        let _ = stopping.send(true);
    };
    let serving = axum::serve(listener, routes::router(server)).with_graceful_shutdown(graceful);
    tokio::select! {
        result = async { serving.await } => result.map_err(ServeError::Serve),
        () = async {
            let _ = stopped.wait_for(|stopping| *stopping).await;
            tokio::time::sleep(GRACE).await;
        } => {
            tracing::warn!("connections still open are cut");
            Ok(())
        }
    }
}

fn stop_signal() -> Result<impl Future<Output = ()>, ServeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
    })
}
