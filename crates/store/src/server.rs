//! Starts a member: finds or makes its data, joins its cluster, opens its ports.

mod bootstrap;
mod chores;
mod srv;

pub use bootstrap::restored;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use parking_lot::RwLock;
use tokio::net::TcpListener;

use crate::api;
use crate::auth::{Options as TokenOptions, Tokens};
use crate::config::{Endpoint, Server, split};
use crate::http::{Front, listen, paths};
use crate::metrics::Metrics;
use crate::node::disk::Disk;
use crate::node::driver::{CheckpointRule, Parts, start};
use crate::node::{Core, Options};
use crate::pb::orlop::store::peer_server::PeerServer;
use crate::peer::{MESSAGE, Peers, service};
use crate::tls::{self, Files};
use crate::watch::Hub;

const PROGRESS: Duration = Duration::from_secs(600);
/// What one restart has to read behind a checkpoint, at most.
const CHECKPOINT_BYTES: u64 = 64 << 20;

struct Ports {
    clients: Vec<(TcpListener, bool)>,
    peers: Vec<(TcpListener, bool)>,
    metrics: Vec<TcpListener>,
}

async fn bind(flag: &'static str, urls: &str) -> Result<Vec<(TcpListener, bool)>> {
    let mut bound = Vec::new();
    for endpoint in Endpoint::list(flag, urls)? {
        let addresses = endpoint
            .addresses()
            .with_context(|| format!("--{flag}: {}", endpoint.url))?;
        let mut errors = Vec::new();
        let before = bound.len();
        for address in addresses {
            match TcpListener::bind(address).await {
                Ok(listener) => bound.push((listener, endpoint.tls)),
                // `localhost` may have an IPv6 address on a machine without IPv6.
                Err(error) => errors.push(format!("{address}: {error}")),
            }
        }
        if bound.len() == before {
            bail!(
                "--{flag}: cannot listen on {}: {}",
                endpoint.url,
                errors.join(", ")
            );
        }
    }
    Ok(bound)
}

fn hosts(urls: &str) -> Vec<String> {
    let listed = Endpoint::list("listen", urls).unwrap_or_default();
    let mut hosts: Vec<String> = listed.into_iter().map(|e| e.host).collect();
    hosts.extend(["localhost".to_owned(), "127.0.0.1".to_owned()]);
    hosts.sort();
    hosts.dedup();
    hosts
}

/// The files of one side, if it has TLS at all.
fn files(
    (cert, key): (&Option<PathBuf>, &Option<PathBuf>),
    ca: Option<&PathBuf>,
    (ask, auto): (bool, bool),
    (config, urls, side): (&Server, &str, &str),
) -> Result<Option<Files>> {
    match (cert, key) {
        (Some(cert), Some(key)) => {
            if ask && ca.is_none() {
                bail!("certificates are asked for, but no authority is given to check them");
            }
            Ok(Some(Files {
                cert: cert.clone(),
                key: key.clone(),
                ca: ca.cloned(),
                // As etcd: an authority alone already means that certificates are checked.
                ask: ask || ca.is_some() && side == "peer",
                unverified: false,
            }))
        }
        (None, None) if auto => {
            let dir = config.data_dir().join("fixtures").join(side);
            Ok(Some(tls::self_signed(&dir, &hosts(urls))?))
        }
        (None, None) => Ok(None),
        _ => bail!("a certificate and its key must be given together"),
    }
}

/// Runs until a signal comes, or the member is removed.
pub async fn run(config: Server) -> Result<()> {
    config.check()?;
    let client_files = files(
        (&config.cert_file, &config.key_file),
        config.trusted_ca_file.as_ref(),
        (config.client_cert_auth, config.auto_tls),
        (&config, &config.listen_client_urls, "client"),
    )?;
    let peer_files = files(
        (&config.peer_cert_file, &config.peer_key_file),
        config.peer_trusted_ca_file.as_ref(),
        (config.peer_client_cert_auth, config.peer_auto_tls),
        (&config, &config.listen_peer_urls, "peer"),
    )?;
    let client_tls = client_files.map(tls::acceptor).transpose()?.map(Arc::new);
    let peer_tls = peer_files
        .clone()
        .map(tls::acceptor)
        .transpose()?
        .map(Arc::new);
    let connector = peer_files.map(tls::connector).transpose()?.map(Arc::new);

    let data = config.data_dir();
    let disk = Arc::new(Disk::open(&data, config.wal_dir.as_deref())?);
    let ports = Ports {
        clients: bind("listen-client-urls", &config.listen_client_urls).await?,
        peers: bind("listen-peer-urls", &config.listen_peer_urls).await?,
        metrics: bind("listen-metrics-urls", &config.listen_metrics_urls)
            .await?
            .into_iter()
            .map(|(listener, _)| listener)
            .collect(),
    };
    let recovered = bootstrap::recover(&config, &disk, connector.clone()).await?;
    let member = recovered.wal.owner().member;
    let cluster = recovered.machine.cluster_id;
    if recovered.torn > 0 {
        tracing::warn!(
            bytes = recovered.torn,
            "cut off the unfinished end of the log"
        );
    }
    tracing::info!(
        member = format!("{member:x}"),
        cluster = format!("{cluster:x}"),
        name = config.name,
        data = %data.display(),
        revision = recovered.machine.kv.revision(),
        entries = recovered.entries.len(),
        "starts"
    );

    let ticks =
        usize::try_from(config.election_timeout / config.heartbeat_interval.max(1)).unwrap_or(10);
    let mut machine = recovered.machine;
    // As etcd: half as long again as an election, in whole seconds.
    machine.leases.minimum =
        i64::try_from((config.election_timeout * 3).div_ceil(2000)).unwrap_or(2);
    let ttl = Duration::from_secs(config.auth_token_ttl);
    let wanted = TokenOptions::parse(&config.auth_token, ttl).map_err(anyhow::Error::msg)?;
    let tokens = Arc::new(Tokens::new(wanted).map_err(anyhow::Error::msg)?);
    machine.tokens = Some(tokens.clone());
    machine.epoch = Duration::from_millis(jiff::Timestamp::now().as_millisecond().unsigned_abs());
    let only = machine.conf.voters == [member];
    let machine = Arc::new(RwLock::new(machine));
    let mut seed = [0; 8];
    getrandom::fill(&mut seed)?;
    let options = Options {
        member,
        election_ticks: ticks,
        heartbeat_ticks: 1,
        pre_vote: config.pre_vote,
        seed: u64::from_le_bytes(seed),
    };
    let core = Core::new(
        &options,
        machine.clone(),
        recovered.hard_state,
        recovered.entries,
    )?;
    let hub = Hub::start(machine.clone(), PROGRESS);
    let peers = Peers::new(member, cluster, connector);
    let (node, ended) = start(Parts {
        core,
        machine: machine.clone(),
        wal: recovered.wal,
        disk: disk.clone(),
        transport: peers.clone(),
        hub,
        metrics: Arc::new(Metrics::new(paths())),
        member,
        tick: Duration::from_millis(config.heartbeat_interval),
        timeout: Duration::from_secs(5) + Duration::from_millis(2 * config.election_timeout),
        rule: CheckpointRule {
            entries: config.snapshot_count.max(1),
            bytes: CHECKPOINT_BYTES,
        },
        campaign: only,
    });
    peers.attach(node.clone());
    peers.update(&machine.read());

    let context = api::Context::new(node.clone(), peers.clone(), cluster, &config, tokens);
    let peer_service = service::Service {
        context: context.clone(),
        disk: disk.clone(),
    };
    let peer_server = PeerServer::new(peer_service).max_decoding_message_size(MESSAGE);
    let peer_router = tonic::service::Routes::new(peer_server)
        .into_axum_router()
        .merge(crate::http::peer_pages(&context));
    for (listener, encrypted) in ports.peers {
        tokio::spawn(listen::serve(
            listener,
            peer_tls.clone().filter(|_| encrypted),
            peer_router.clone(),
        ));
    }
    let front =
        Front::new(&context).with(crate::v2::http::router(Arc::new(api::V2(context.clone()))));
    let mut addresses = Vec::new();
    for (listener, encrypted) in ports.clients {
        addresses.push(listener.local_addr()?.to_string());
        tokio::spawn(listen::serve(
            listener,
            client_tls.clone().filter(|_| encrypted),
            front.clone(),
        ));
    }
    for listener in ports.metrics {
        tokio::spawn(listen::serve(
            listener,
            None,
            crate::http::status_pages(&context),
        ));
    }
    chores::start(&context, config.retention()?);
    let urls = split(&config.advertise_client_urls);
    tokio::spawn(chores::introduce(
        context.clone(),
        config.name.clone(),
        urls,
        addresses,
    ));

    let mut ended = tokio::task::spawn_blocking(move || ended.join());
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        result = &mut ended => {
            if !matches!(result, Ok(Ok(()))) {
                bail!("the thread of the log failed");
            }
            return Ok(());
        }
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("stops");
    chores::hand_over(&context).await;
    node.stop();
    let _ = ended.await;
    Ok(())
}
