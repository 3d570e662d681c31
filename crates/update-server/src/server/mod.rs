//! The service: options, start, stop.

mod artifacts;
mod asks;
mod auth;
mod catalog;
mod checkin;
mod dashboard;
mod database;
mod error;
mod files;
mod groups;
mod linger;
mod metrics;
mod oidc;
mod openapi;
mod ops;
mod plan;
mod policy;
mod records;
mod rest;
mod routes;
pub(crate) mod sql;
mod startup;
mod ticker;
mod tokens;
mod tuf;
mod turn;
mod upload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use self::database::Database;
pub(crate) use self::database::prepare as prepare_database;
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
    /// PostgreSQL instead of a file in the data directory: postgres://USER@HOST/DATABASE (the
    /// password better in PGPASSWORD or ~/.pgpass)
    #[arg(long, env = "ORLOP_SERVE_DATABASE", hide_env_values = true)]
    pub database: Option<String>,
    /// Where the releases are, if several servers share them: a directory, or s3://BUCKET/PREFIX
    /// with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL [default:
    /// DATA/releases]
    #[arg(long, env = "ORLOP_SERVE_RELEASES", value_name = "PLACE")]
    pub releases: Option<String>,
    /// Directory of public keys (*.pub); a release has to be signed by one of them
    #[arg(long, env = "ORLOP_SERVE_KEYS")]
    pub keys: PathBuf,
    /// Base URL that hosts download from, if it is not the one they ask at
    #[arg(long, env = "ORLOP_SERVE_PUBLIC_URL", value_parser = base_url)]
    pub public_url: Option<String>,
    /// Base URL of a mirror: what is below /releases/ here is there, too; may be given several times. Hosts
    /// fetch from the first one that has what was signed, and from here if none has
    #[arg(long, env = "ORLOP_SERVE_MIRRORS", value_name = "URL", value_delimiter = ',', value_parser = base_url)]
    pub mirror: Vec<String>,
    /// Only who signs in sees the fleet; hosts are served as ever
    #[arg(long, env = "ORLOP_SERVE_REQUIRE_SIGN_IN")]
    pub require_sign_in: bool,
    /// Forget hosts that were not seen for so many days; without it only who is told to be
    #[arg(long, env = "ORLOP_SERVE_FORGET_AFTER", value_name = "DAYS",
        value_parser = clap::value_parser!(u16).range(1..=3650))]
    pub forget_after: Option<u16>,
    #[command(flatten)]
    pub oidc: oidc::IssuerOptions,
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
    artifacts: artifacts::Artifacts,
    keys: PathBuf,
    /// Taken to replace a manifest or metadata, and to finish a release.
    publishing: turn::Turns,
    token: auth::Token,
    oidc: Option<oidc::Oidc>,
    /// Reading needs a role as well.
    closed: bool,
    pings: ticker::Pings,
    counters: metrics::Counters,
    /// Days without a word after which a host is forgotten.
    forget_after: Option<u16>,
    public_url: Option<String>,
    mirrors: Vec<String>,
    clock: fn() -> Timestamp,
}

type Shared = Arc<Server>;

/// How long open downloads may go on after a signal to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
pub async fn run(options: Options) -> Result<(), ServeError> {
    // Of the libraries that can be had for it, the one that the database uses as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Before anything is announced: a signal that comes early must not be lost.
    let stop = stop_signal()?;
    let listener = startup::listen(&options.listen).await?;
    let wanted = options.clone();
    let opened = tokio::task::spawn_blocking(move || {
        startup::open(&wanted, &tokio::runtime::Handle::current())
    });
    let (server, _lock) = opened.await.map_err(|e| ServeError::Serve(e.into()))??;
    let address = listener.local_addr().map_err(|source| ServeError::Listen {
        address: options.listen.clone(),
        source,
    })?;
    println!(
        "{}",
        serde_json::json!({ "listening": address.to_string() })
    );
    tracing::info!(%address, data = %options.data.display(), "listening");
    let server = Arc::new(server);
    let (stop_ticker, ticker_stops) = tokio::sync::watch::channel(());
    let ticker = tokio::spawn(ticker::run(Arc::clone(&server), ticker_stops));
    let result = serve(listener, Arc::clone(&server), stop).await;
    // Between two rounds, never within: what is being written down would be lost.
    drop(stop_ticker);
    if let Err(error) = ticker.await {
        tracing::error!("the regular work broke off: {error}");
    }
    if let Err(error) = ticker::flush(&server).await {
        tracing::error!("who was here last is not on record: {error}");
    }
    result
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
