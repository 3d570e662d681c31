//! `orlop-store bench`: the same work against any server that speaks etcd's API, so that two can be compared in one
//! run, in turn.

mod figures;
mod flood;
mod process;
mod processors;
mod report;
mod rpc;
mod servers;
mod suite;
mod wire;
mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use process::Process;
use processors::Processors;
use report::Row;

use crate::tls;

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Output {
    Text,
    Json,
    /// Tables of a document; with --against only
    Markdown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Put,
    Range,
    SerializableRange,
    Txn,
    Watch,
    Lease,
}

#[derive(Debug, Clone, Args)]
pub struct Bench {
    /// Servers to measure: NAME=URL[,URL…][@PID[,PID…]]; with process ids their CPU and memory are measured too. The
    /// first is what the others are compared with.
    #[arg(required_unless_present = "against")]
    targets: Vec<String>,
    /// Start this server (a program with etcd's flags), once more for each further one, and this program in turn, and
    /// measure all that counts: alone, as three members, with many keys
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["targets", "load", "work", "clients"])]
    against: Vec<PathBuf>,
    /// With --against: these parts only
    #[arg(long, value_enum, value_delimiter = ',', requires = "against",
        default_values = ["single", "watch", "cluster", "keys"])]
    part: Vec<suite::Part>,
    /// With --against: how many keys are many
    #[arg(long, default_value_t = 1_000_000, requires = "against")]
    many: u64,
    /// With --against: where the servers keep their data; a directory below it is made and removed
    #[arg(long, value_name = "DIR", requires = "against")]
    data: Option<PathBuf>,
    /// With --against: all servers and clients show certificates of an authority that is made for it
    #[arg(long, requires = "against")]
    tls: bool,
    /// With --against: the processors that all servers have for themselves, like 0 or 0,2-3
    #[arg(long, value_name = "LIST", requires = "against")]
    server_cpus: Option<Processors>,
    /// Processors that this program uses for its clients; without these two, both share all there are
    #[arg(long, value_name = "LIST")]
    client_cpus: Option<Processors>,
    /// Authority of the servers' certificates, for https://
    #[arg(long, requires = "cert", conflicts_with = "against")]
    cacert: Option<PathBuf>,
    /// Certificate to show to them
    #[arg(long, requires = "key", conflicts_with = "against")]
    cert: Option<PathBuf>,
    #[arg(long, requires = "cert", conflicts_with = "against")]
    key: Option<PathBuf>,
    /// Kinds of work, in this order
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["put", "range", "txn", "watch", "lease"])]
    work: Vec<Kind>,
    /// Clients at a time
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1000])]
    clients: Vec<usize>,
    /// Rounds; of each server the best counts, with --against the median
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Puts so many keys, one by one in order, and measures that and the memory afterwards, instead of the other work
    #[arg(long)]
    load: Option<u64>,
    #[command(flatten)]
    settings: Settings,
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// Connections that the clients share
    #[arg(long, default_value_t = 10)]
    connections: usize,
    /// Seconds for each
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Bytes of a value; a transaction has two of them, and no request may have more than 60000
    #[arg(long, default_value_t = 256)]
    value_size: usize,
    /// Different keys
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
}

#[derive(Debug, Clone)]
struct Target {
    name: String,
    urls: Vec<String>,
    processes: Vec<Process>,
    tls: Option<Arc<tls::Connector>>,
}

fn target(text: &str, tls: Option<&Arc<tls::Connector>>) -> Result<Target> {
    let (name, rest) = text
        .split_once('=')
        .with_context(|| format!("{text:?} is not NAME=URL"))?;
    let (urls, pids) = rest.split_once('@').unwrap_or((rest, ""));
    let urls: Vec<String> = urls
        .split(',')
        .map(|url| {
            if url.contains("://") {
                url.to_owned()
            } else {
                format!("http://{url}")
            }
        })
        .collect();
    let processes: Result<Vec<Process>> = pids
        .split(',')
        .filter(|p| !p.is_empty())
        .map(|p| {
            p.parse()
                .map(Process)
                .with_context(|| format!("{p:?} is no process id"))
        })
        .collect();
    Ok(Target {
        name: name.to_owned(),
        urls,
        processes: processes?,
        tls: tls.cloned(),
    })
}

pub async fn run(bench: Bench) -> Result<()> {
    for (flag, processors) in [
        ("--server-cpus", &bench.server_cpus),
        ("--client-cpus", &bench.client_cpus),
    ] {
        if let Some(processors) = processors {
            processors.check().context(flag)?;
        }
    }
    if !bench.against.is_empty() {
        return suite::run(bench).await;
    }
    if let Some(processors) = &bench.client_cpus {
        processors.take()?;
    }
    let tls = match (&bench.cert, &bench.key) {
        (Some(cert), Some(key)) => Some(Arc::new(tls::connector(tls::Files {
            cert: cert.clone(),
            key: key.clone(),
            ca: bench.cacert.clone(),
            ask: false,
            unverified: false,
        })?)),
        _ => None,
    };
    let targets: Result<Vec<Target>> = bench
        .targets
        .iter()
        .map(|text| target(text, tls.as_ref()))
        .collect();
    let targets = targets?;
    let mut rows: Vec<Row> = Vec::new();
    if let Some(keys) = bench.load {
        for target in &targets {
            let clients = bench.clients.iter().copied().max().unwrap_or(100);
            let measured = work::load(target, &bench.settings, clients, keys).await?;
            rows.push(measured);
        }
    } else {
        for kind in &bench.work {
            for clients in &bench.clients {
                for _ in 0..bench.rounds.max(1) {
                    for target in &targets {
                        let row = work::measure(target, &bench.settings, *kind, *clients).await?;
                        if bench.rounds == 1 || better(&rows, &row) {
                            rows.retain(|r| !r.same(&row));
                            rows.push(row);
                        }
                        // What one leaves behind (compaction, flushes) should not cost the next.
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                }
            }
        }
    }
    if rows.iter().any(|row| row.done == 0) {
        report::print(&rows, bench.output);
        bail!("a server did not answer a single request");
    }
    report::print(&rows, bench.output);
    Ok(())
}

fn better(rows: &[Row], row: &Row) -> bool {
    rows.iter()
        .filter(|r| r.same(row))
        .all(|r| r.per_second() < row.per_second())
}
