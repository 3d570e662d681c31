//! The work itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use bytes::{Buf, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::flood::{Outcome, flood};
use super::report::{Row, name};
use super::rpc::{Call, Connection, frame};
use super::{Kind, Settings, Target};
use crate::pb::etcdserverpb as rpc;
use crate::pb::etcdserverpb::watch_request::RequestUnion;

/// Watchers of one stream.
const WATCHERS: usize = 10;
/// Who puts while others watch.
const PUTTERS: usize = 4;

pub(super) async fn connect(target: &Target, connections: usize) -> Result<Vec<Connection>> {
    let mut all = Vec::new();
    for i in 0..connections.max(1) {
        all.push(Connection::open(&target.urls[i % target.urls.len()], target.tls.as_ref()).await?);
    }
    Ok(all)
}

fn key(n: u64) -> Vec<u8> {
    format!("bench/{n:012}").into_bytes()
}

pub(super) fn put(n: u64, value: &[u8]) -> rpc::PutRequest {
    rpc::PutRequest {
        key: key(n),
        value: value.to_vec(),
        ..Default::default()
    }
}

/// Any order will do, as long as it is the same for all servers.
pub(super) struct Order(pub u64);

impl Order {
    pub(super) fn next(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below.max(1)
    }
}

pub(super) struct Meter {
    started: Instant,
    cpu: Vec<Duration>,
}

impl Meter {
    pub(super) fn start(target: &Target) -> Self {
        Self {
            started: Instant::now(),
            cpu: target.processes.iter().map(|p| p.cpu()).collect(),
        }
    }

    pub(super) fn row(
        self,
        target: &Target,
        work: String,
        clients: usize,
        mut latencies: Vec<u32>,
        failed: u64,
    ) -> Row {
        let took = self.started.elapsed();
        let used = target
            .processes
            .iter()
            .zip(&self.cpu)
            .map(|(p, before)| p.cpu().saturating_sub(*before));
        let cpu = (!target.processes.is_empty()).then(|| used.sum());
        latencies.sort_unstable();
        let at = |part: usize| {
            let micros = latencies
                .get(latencies.len() * part / 100)
                .or(latencies.last())
                .copied();
            Duration::from_micros(u64::from(micros.unwrap_or(0)))
        };
        Row {
            target: target.name.clone(),
            work,
            clients,
            done: latencies.len() as u64,
            failed,
            took,
            p50: at(50),
            p99: at(99),
            cpu,
            resident: (!target.processes.is_empty())
                .then(|| target.processes.iter().map(|p| p.resident()).sum()),
        }
    }
}

pub(super) fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}

/// What a client asks, encoded.
fn question(kind: Kind, n: u64, value: &[u8]) -> (Call, Vec<u8>) {
    match kind {
        Kind::Put | Kind::Watch => (Call::Put, put(n, value).encode_to_vec()),
        Kind::Range | Kind::SerializableRange => {
            let request = rpc::RangeRequest {
                key: key(n),
                serializable: kind == Kind::SerializableRange,
                ..Default::default()
            };
            (Call::Range, request.encode_to_vec())
        }
        Kind::Txn => {
            let op = || rpc::RequestOp {
                request: Some(rpc::request_op::Request::RequestPut(put(n, value))),
            };
            let request = rpc::TxnRequest {
                compare: vec![rpc::Compare {
                    result: rpc::compare::CompareResult::Greater as i32,
                    target: rpc::compare::CompareTarget::Mod as i32,
                    key: key(n),
                    target_union: Some(rpc::compare::TargetUnion::ModRevision(0)),
                    range_end: Vec::new(),
                }],
                success: vec![op()],
                failure: vec![op()],
            };
            (Call::Txn, request.encode_to_vec())
        }
        Kind::Lease => {
            let request = rpc::LeaseGrantRequest { ttl: 60, id: 0 };
            (Call::LeaseGrant, request.encode_to_vec())
        }
    }
}

/// Clients that share connections and ask what `next` says, until it says nothing more.
fn flood_all<F>(
    target: &Target,
    settings: &Settings,
    kind: Kind,
    clients: usize,
    next: impl Fn() -> F,
) -> Vec<tokio::task::JoinHandle<Result<Outcome>>>
where
    F: FnMut(usize) -> Option<u64> + Send + 'static,
{
    let connections = settings.connections.clamp(1, clients.max(1));
    let mut tasks = Vec::new();
    for connection in 0..connections {
        let url = target.urls[connection % target.urls.len()].clone();
        let tls = target.tls.clone();
        let value = vec![b'v'; settings.value_size];
        let here: Vec<usize> = (connection..clients).step_by(connections).collect();
        let mut next = next();
        tasks.push(tokio::spawn(async move {
            let (call, _) = question(kind, 0, &[]);
            flood(&url, tls.as_ref(), call, &here, |client| {
                Some(question(kind, next(client)?, &value).1)
            })
            .await
        }));
    }
    tasks
}

async fn gather(tasks: Vec<tokio::task::JoinHandle<Result<Outcome>>>) -> Result<Outcome> {
    let mut all = Outcome::default();
    for task in tasks {
        let one = task.await??;
        all.latencies.extend(one.latencies);
        all.failed += one.failed;
    }
    Ok(all)
}

pub(super) async fn measure(
    target: &Target,
    settings: &Settings,
    kind: Kind,
    clients: usize,
) -> Result<Row> {
    if kind == Kind::Watch {
        return watch(target, settings, clients).await;
    }
    let end = Arc::new(AtomicBool::new(false));
    let meter = Meter::start(target);
    let tasks = flood_all(target, settings, kind, clients, || {
        let (end, keys) = (end.clone(), settings.keys);
        let mut orders: HashMap<usize, Order> = HashMap::new();
        move |client| {
            let order = orders
                .entry(client)
                .or_insert_with(|| Order(client as u64 + 1));
            (!end.load(Ordering::Relaxed)).then(|| order.next(keys))
        }
    });
    tokio::time::sleep(Duration::from_secs(settings.seconds)).await;
    end.store(true, Ordering::Relaxed);
    let all = gather(tasks).await?;
    let work = name(kind).to_owned();
    Ok(meter.row(target, work, clients, all.latencies, all.failed))
}

/// Events in a `WatchResponse`, and whether it says that a watcher was created. Nothing else of it is looked at.
fn count(mut message: Bytes) -> Result<(u64, bool)> {
    let (mut events, mut created) = (0, false);
    while message.has_remaining() {
        let (tag, kind) = decode_key(&mut message)?;
        match (tag, kind) {
            (3, WireType::Varint) => created = decode_varint(&mut message)? != 0,
            _ => skip_field(kind, tag, &mut message, DecodeContext::default())?,
        }
        events += u64::from(tag == 11);
    }
    Ok((events, created))
}

/// All watch one key, which is put again and again; the putters wait for those who watch.
async fn watch(target: &Target, settings: &Settings, watchers: usize) -> Result<Row> {
    const KEY: &[u8] = b"bench/watched";
    let connections = connect(target, settings.connections.min(watchers)).await?;
    let seen = Arc::new(AtomicU64::new(0));
    let ready = Arc::new(AtomicU64::new(0));
    let mut streams = Vec::new();
    let mut left = watchers;
    let create = frame(&rpc::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(rpc::WatchCreateRequest {
            key: KEY.to_vec(),
            ..Default::default()
        })),
    });
    while left > 0 {
        let here = left.min(WATCHERS);
        left -= here;
        let mut connection = connections[streams.len() % connections.len()].clone();
        let (seen, ready) = (seen.clone(), ready.clone());
        let mut creates = BytesMut::new();
        for _ in 0..here {
            creates.extend_from_slice(&create);
        }
        streams.push(tokio::spawn(async move {
            let Ok((_open, mut answers)) = connection.stream(Call::Watch, creates.freeze()).await
            else {
                return;
            };
            while let Ok(Some(answer)) = answers.next().await {
                let Ok((events, created)) = count(answer) else {
                    return;
                };
                ready.fetch_add(u64::from(created), Ordering::Relaxed);
                seen.fetch_add(events, Ordering::Relaxed);
            }
        }));
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while ready.load(Ordering::Relaxed) < watchers as u64 {
        if Instant::now() > deadline {
            return Err(anyhow!("{}: the watchers were not created", target.name));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let meter = Meter::start(target);
    let end = Instant::now() + Duration::from_secs(settings.seconds);
    let sent = Arc::new(AtomicU64::new(0));
    let request = rpc::PutRequest {
        key: KEY.to_vec(),
        value: vec![b'v'; settings.value_size],
        ..Default::default()
    };
    let putters: Vec<_> = (0..PUTTERS)
        .map(|i| {
            let mut connection = connections[i % connections.len()].clone();
            let (sent, seen, request) = (sent.clone(), seen.clone(), request.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while Instant::now() < end {
                    let asked = Instant::now();
                    connection.call(Call::Put, &request).await?;
                    latencies.push(micros(asked));
                    let sent = sent.fetch_add(1, Ordering::Relaxed) + 1;
                    // Nobody learns anything from a queue that only grows.
                    while sent.saturating_sub(seen.load(Ordering::Relaxed) / watchers as u64) > 20
                        && Instant::now() < end
                    {
                        tokio::time::sleep(Duration::from_micros(200)).await;
                    }
                }
                anyhow::Ok(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for putter in putters {
        latencies.extend(putter.await??);
    }
    let events = seen.load(Ordering::Relaxed);
    let mut row = meter.row(target, name(Kind::Watch).to_owned(), watchers, latencies, 0);
    row.done = events;
    for stream in streams {
        stream.abort();
    }
    Ok(row)
}

/// Puts keys in order, each once.
pub(super) async fn load(
    target: &Target,
    settings: &Settings,
    clients: usize,
    keys: u64,
) -> Result<Row> {
    let next = Arc::new(AtomicU64::new(0));
    let meter = Meter::start(target);
    let tasks = flood_all(target, settings, Kind::Put, clients, || {
        let next = next.clone();
        move |_| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < keys)
    });
    let all = gather(tasks).await?;
    Ok(meter.row(
        target,
        format!("load of {keys}"),
        clients,
        all.latencies,
        all.failed,
    ))
}

/// Puts to keys that are there, `rate` a second, until told to end: latencies in microseconds, sorted. They are due at
/// fixed times and the wait counts from then on, so that a server that stands still is not spared.
pub(super) async fn overwrite(
    target: &Target,
    settings: &Settings,
    rate: u32,
    end: Arc<AtomicBool>,
) -> Result<Vec<u32>> {
    const CLIENTS: u32 = 100;
    let connections = connect(target, settings.connections).await?;
    let every = Duration::from_secs(1) * CLIENTS / rate.max(1);
    let start = Instant::now();
    let tasks: Vec<_> = (0..CLIENTS)
        .zip(connections.iter().cycle())
        .map(|(i, connection)| {
            let (end, keys) = (end.clone(), settings.keys);
            let mut connection = connection.clone();
            let value = vec![b'w'; settings.value_size];
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                let mut order = Order(u64::from(i) + 1000);
                let mut due = start + every * i / CLIENTS;
                while !end.load(Ordering::Relaxed) {
                    tokio::time::sleep_until(due.into()).await;
                    connection
                        .call(Call::Put, &put(order.next(keys), &value))
                        .await?;
                    latencies.push(micros(due));
                    due += every;
                }
                anyhow::Ok(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    latencies.sort_unstable();
    Ok(latencies)
}
