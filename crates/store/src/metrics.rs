//! What `/metrics` shows, under the names that etcd's dashboards ask for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bounds in microseconds; etcd's 0.001 × 2ⁿ s.
const BOUNDS: usize = 14;

#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, taken: Duration) {
        let micros = u64::try_from(taken.as_micros()).unwrap_or(u64::MAX);
        for (i, bucket) in self.buckets.iter().enumerate() {
            if micros <= 1000 << i {
                bucket.fetch_add(1, Ordering::Relaxed);
                break;
            }
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    #[expect(clippy::cast_precision_loss, reason = "shown to people")]
    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut total = 0;
        for (i, bucket) in self.buckets.iter().enumerate() {
            total += bucket.load(Ordering::Relaxed);
            let bound = (1000_u64 << i) as f64 / 1e6;
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let count = self.count.load(Ordering::Relaxed);
        let sum = self.micros.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(
            out,
            "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}"
        );
    }
}

#[derive(Debug, Default)]
pub struct Metrics {
    pub wal_fsync: Histogram,
    pub leader_changes: AtomicU64,
    pub proposals_pending: AtomicU64,
    pub proposals_failed: AtomicU64,
    pub read_index_failed: AtomicU64,
    pub peer_sent: AtomicU64,
    pub peer_received: AtomicU64,
    /// By path.
    rpcs: BTreeMap<String, Arc<Rpc>>,
}

/// The calls of one method, by the code of their answer.
#[derive(Debug)]
pub struct Rpc {
    service: &'static str,
    method: &'static str,
    codes: [AtomicU64; CODES.len()],
}

const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

impl Rpc {
    pub fn count(&self, code: usize) {
        if let Some(counter) = self.codes.get(code) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What the server knows at the moment of asking.
#[derive(Debug, Default, Clone)]
pub struct Gauges {
    pub has_leader: bool,
    pub is_leader: bool,
    pub is_learner: bool,
    pub member: u64,
    pub version: &'static str,
    pub commit: u64,
    pub applied: u64,
    pub db_size: u64,
    pub quota: u64,
    pub keys: u64,
    pub revision: i64,
    pub compact_revision: i64,
    pub watchers: u64,
    pub slow_watchers: u64,
    pub watch_streams: u64,
    pub leases: u64,
    pub events: u64,
}

impl Metrics {
    /// `methods`: service and method of all that clients may call.
    pub fn new(methods: Vec<(&'static str, &'static str)>) -> Self {
        let rpcs = methods.into_iter().map(|(service, method)| {
            let rpc = Rpc {
                service,
                method,
                codes: Default::default(),
            };
            (format!("/{service}/{method}"), Arc::new(rpc))
        });
        Self {
            rpcs: rpcs.collect(),
            ..Self::default()
        }
    }

    /// Where calls of a path are counted.
    pub fn rpc(&self, path: &str) -> Option<Arc<Rpc>> {
        self.rpcs.get(path).cloned()
    }

    pub fn text(&self, gauges: &Gauges) -> String {
        let mut out = String::new();
        let flag = |b: bool| u64::from(b).to_string();
        let signed = |n: i64| n.to_string();
        let rows: [(&str, &str, &str, String); 24] = [
            (
                "etcd_server_has_leader",
                "gauge",
                "Whether or not a leader exists. 1 is existence, 0 is not.",
                flag(gauges.has_leader),
            ),
            (
                "etcd_server_is_leader",
                "gauge",
                "Whether or not this member is a leader. 1 if is, 0 otherwise.",
                flag(gauges.is_leader),
            ),
            (
                "etcd_server_is_learner",
                "gauge",
                "Whether or not this member is a learner. 1 if is, 0 otherwise.",
                flag(gauges.is_learner),
            ),
            (
                "etcd_server_leader_changes_seen_total",
                "counter",
                "The number of leader changes seen.",
                self.leader_changes.load(Ordering::Relaxed).to_string(),
            ),
            (
                "etcd_server_proposals_committed_total",
                "gauge",
                "The total number of consensus proposals committed.",
                gauges.commit.to_string(),
            ),
            (
                "etcd_server_proposals_applied_total",
                "gauge",
                "The total number of consensus proposals applied.",
                gauges.applied.to_string(),
            ),
            (
                "etcd_server_proposals_pending",
                "gauge",
                "The current number of pending proposals to commit.",
                self.proposals_pending.load(Ordering::Relaxed).to_string(),
            ),
            (
                "etcd_server_proposals_failed_total",
                "counter",
                "The total number of failed proposals seen.",
                self.proposals_failed.load(Ordering::Relaxed).to_string(),
            ),
            (
                "etcd_server_read_indexes_failed_total",
                "counter",
                "The total number of failed read indexes seen.",
                self.read_index_failed.load(Ordering::Relaxed).to_string(),
            ),
            (
                "etcd_server_quota_backend_bytes",
                "gauge",
                "Current backend storage quota size in bytes.",
                gauges.quota.to_string(),
            ),
            (
                "etcd_mvcc_db_total_size_in_bytes",
                "gauge",
                "Total size of the keys and their versions in bytes.",
                gauges.db_size.to_string(),
            ),
            (
                "etcd_mvcc_db_total_size_in_use_in_bytes",
                "gauge",
                "The same: freed space is not kept.",
                gauges.db_size.to_string(),
            ),
            (
                "etcd_debugging_mvcc_keys_total",
                "gauge",
                "Total number of keys.",
                gauges.keys.to_string(),
            ),
            (
                "etcd_debugging_mvcc_current_revision",
                "gauge",
                "The current revision of store.",
                signed(gauges.revision),
            ),
            (
                "etcd_debugging_mvcc_compact_revision",
                "gauge",
                "The revision of the last compaction in store.",
                signed(gauges.compact_revision),
            ),
            (
                "etcd_debugging_mvcc_watcher_total",
                "gauge",
                "Total number of watchers.",
                gauges.watchers.to_string(),
            ),
            (
                "etcd_debugging_mvcc_slow_watcher_total",
                "gauge",
                "Total number of unsynced slow watchers.",
                gauges.slow_watchers.to_string(),
            ),
            (
                "etcd_debugging_mvcc_watch_stream_total",
                "gauge",
                "Total number of watch streams.",
                gauges.watch_streams.to_string(),
            ),
            (
                "etcd_debugging_mvcc_events_total",
                "counter",
                "Total number of events sent by this member.",
                gauges.events.to_string(),
            ),
            (
                "etcd_debugging_lease_total",
                "gauge",
                "Total number of leases.",
                gauges.leases.to_string(),
            ),
            (
                "etcd_network_peer_sent_bytes_total",
                "counter",
                "The total number of bytes sent to peers.",
                self.peer_sent.load(Ordering::Relaxed).to_string(),
            ),
            (
                "etcd_network_peer_received_bytes_total",
                "counter",
                "The total number of bytes received from peers.",
                self.peer_received.load(Ordering::Relaxed).to_string(),
            ),
            (
                "process_resident_memory_bytes",
                "gauge",
                "Resident memory size in bytes.",
                resident().to_string(),
            ),
            (
                "process_open_fds",
                "gauge",
                "Number of open file descriptors.",
                std::fs::read_dir("/proc/self/fd")
                    .map_or(0, Iterator::count)
                    .to_string(),
            ),
        ];
        for (name, kind, help, value) in rows {
            let _ = writeln!(
                out,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
            );
        }
        let _ = writeln!(
            out,
            "# HELP etcd_server_id Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.\n# TYPE etcd_server_id gauge\netcd_server_id{{server_id=\"{:x}\"}} 1\n# HELP etcd_server_version Which version is running. 1 for 'server_version' label with current version.\n# TYPE etcd_server_version gauge\netcd_server_version{{server_version=\"{}\"}} 1",
            gauges.member, gauges.version
        );
        self.wal_fsync.write(
            &mut out,
            "etcd_disk_wal_fsync_duration_seconds",
            "The latency distributions of fsync called by WAL.",
        );
        let _ = writeln!(
            out,
            "# HELP grpc_server_handled_total Total number of RPCs completed on the server, regardless of success or failure.\n# TYPE grpc_server_handled_total counter"
        );
        for rpc in self.rpcs.values() {
            let Rpc {
                service,
                method,
                codes,
            } = &**rpc;
            for (code, count) in CODES.iter().zip(codes) {
                let count = count.load(Ordering::Relaxed);
                // As elsewhere, a code that never came is not shown, but for the first.
                if count > 0 || *code == "OK" {
                    let _ = writeln!(
                        out,
                        "grpc_server_handled_total{{grpc_code=\"{code}\",grpc_method=\"{method}\",grpc_service=\"{service}\"}} {count}"
                    );
                }
            }
        }
        out
    }
}

/// Bytes of memory in use, by the kernel's account.
pub fn resident() -> u64 {
    std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok())
        .map_or(0, |pages| pages * rustix::param::page_size() as u64)
}
