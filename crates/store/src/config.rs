//! The flags and environment variables of etcd, and what they mean.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

/// What etcd understands and this does without: taken, so that unit files and manifests keep working.
const IGNORED: &[&str] = &[
    "max-snapshots",
    "max-wals",
    "logger",
    "log-outputs",
    "log-package-levels",
    "debug",
    "enable-v2",
    "enable-pprof",
    "metrics",
    "proxy",
    "cors",
    "host-whitelist",
    "strict-reconfig-check",
    "backend-batch-interval",
    "backend-batch-limit",
    "backend-bbolt-freelist-type",
    "enable-grpc-gateway",
    "socket-reuse-port",
    "socket-reuse-address",
    "cipher-suites",
    "tls-min-version",
    "tls-max-version",
    "grpc-keepalive-min-time",
    "grpc-keepalive-interval",
    "grpc-keepalive-timeout",
    "max-concurrent-streams",
    "experimental-initial-corrupt-check",
    "experimental-corrupt-check-time",
    "experimental-compaction-batch-limit",
    "experimental-peer-skip-client-san-verification",
    "experimental-enable-v2v3",
    "experimental-enable-lease-checkpoint",
    "experimental-watch-progress-notify-interval",
    "v2-deprecation",
    "initial-election-tick-advance",
    "unsafe-no-fsync",
    "log-rotation-config-json",
    "enable-log-rotation",
    "warning-apply-duration",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClusterState {
    New,
    Existing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CompactionMode {
    Periodic,
    Revision,
}

/// Go's idea of a flag that is true or false: `--flag`, `--flag=true`, `--flag=false`.
macro_rules! switch {
    () => {
        clap::builder::BoolishValueParser::new()
    };
}

#[derive(Debug, Clone, Args)]
pub struct Server {
    /// Human-readable name of this member
    #[arg(long, env = "ETCD_NAME", default_value = "default")]
    pub name: String,
    /// Directory of the data [default: NAME.etcd]
    #[arg(long, env = "ETCD_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Directory of the log, if it is to be on another disk than the data [default: with the data]
    #[arg(long, env = "ETCD_WAL_DIR")]
    pub wal_dir: Option<PathBuf>,
    /// URLs to listen on for clients, separated by commas
    #[arg(
        long,
        env = "ETCD_LISTEN_CLIENT_URLS",
        default_value = "http://localhost:2379"
    )]
    pub listen_client_urls: String,
    /// URLs to listen on for other members
    #[arg(
        long,
        env = "ETCD_LISTEN_PEER_URLS",
        default_value = "http://localhost:2380"
    )]
    pub listen_peer_urls: String,
    /// More URLs for /metrics and /health
    #[arg(
        long,
        env = "ETCD_LISTEN_METRICS_URLS",
        default_value = "",
        hide_default_value = true
    )]
    pub listen_metrics_urls: String,
    /// Client URLs that others are told
    #[arg(
        long,
        env = "ETCD_ADVERTISE_CLIENT_URLS",
        default_value = "http://localhost:2379"
    )]
    pub advertise_client_urls: String,
    /// Peer URLs that other members are told
    #[arg(
        long,
        env = "ETCD_INITIAL_ADVERTISE_PEER_URLS",
        default_value = "http://localhost:2380"
    )]
    pub initial_advertise_peer_urls: String,
    /// First members: NAME=PEER-URL,… [default: NAME and the advertised peer URLs]
    #[arg(long, env = "ETCD_INITIAL_CLUSTER")]
    pub initial_cluster: Option<String>,
    /// Whether the cluster is made now or there already
    #[arg(
        long,
        env = "ETCD_INITIAL_CLUSTER_STATE",
        value_enum,
        default_value = "new"
    )]
    pub initial_cluster_state: ClusterState,
    /// Tells clusters of the same members apart
    #[arg(
        long,
        env = "ETCD_INITIAL_CLUSTER_TOKEN",
        default_value = "etcd-cluster"
    )]
    pub initial_cluster_token: String,
    /// URL of a discovery service, where the first members find each other
    #[arg(
        long,
        env = "ETCD_DISCOVERY",
        default_value = "",
        hide_default_value = true
    )]
    pub discovery: String,
    /// DNS domain whose SRV records name the first members
    #[arg(
        long,
        env = "ETCD_DISCOVERY_SRV",
        default_value = "",
        hide_default_value = true
    )]
    pub discovery_srv: String,
    /// Tells clusters of a domain apart: the records are those of _etcd-server-NAME
    #[arg(
        long,
        env = "ETCD_DISCOVERY_SRV_NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub discovery_srv_name: String,
    /// Makes the only survivor of a cluster a cluster of one; nothing that it has is lost
    #[arg(long, env = "ETCD_FORCE_NEW_CLUSTER", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = switch!(), hide_default_value = true)]
    pub force_new_cluster: bool,
    /// Milliseconds between heartbeats
    #[arg(long, env = "ETCD_HEARTBEAT_INTERVAL", default_value_t = 100)]
    pub heartbeat_interval: u64,
    /// Milliseconds without a leader until an election
    #[arg(long, env = "ETCD_ELECTION_TIMEOUT", default_value_t = 1000)]
    pub election_timeout: u64,
    /// Log entries until a checkpoint of a small state
    #[arg(long, env = "ETCD_SNAPSHOT_COUNT", default_value_t = 100_000)]
    pub snapshot_count: u64,
    /// Bytes of keys and versions before writes are refused (0: 8 GiB)
    #[arg(
        long,
        env = "ETCD_QUOTA_BACKEND_BYTES",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub quota_backend_bytes: i64,
    #[arg(
        long,
        env = "ETCD_AUTO_COMPACTION_MODE",
        value_enum,
        default_value = "periodic"
    )]
    pub auto_compaction_mode: CompactionMode,
    /// What compaction keeps: hours or a duration (periodic), or revisions; 0 turns it off
    #[arg(long, env = "ETCD_AUTO_COMPACTION_RETENTION", default_value = "0")]
    pub auto_compaction_retention: String,
    /// Operations in a transaction
    #[arg(long, env = "ETCD_MAX_TXN_OPS", default_value_t = 128)]
    pub max_txn_ops: usize,
    /// Bytes of a request
    #[arg(long, env = "ETCD_MAX_REQUEST_BYTES", default_value_t = 1_572_864)]
    pub max_request_bytes: usize,
    #[arg(long, env = "ETCD_PRE_VOTE", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", value_parser = switch!(), hide_default_value = true)]
    pub pre_vote: bool,
    /// `simple`, or `jwt,pub-key=FILE,priv-key=FILE,sign-method=METHOD`
    #[arg(long, env = "ETCD_AUTH_TOKEN", default_value = "simple")]
    pub auth_token: String,
    /// Seconds that a simple token lives
    #[arg(long, env = "ETCD_AUTH_TOKEN_TTL", default_value_t = 300)]
    pub auth_token_ttl: u64,
    /// Work factor of password hashes
    #[arg(long, env = "ETCD_BCRYPT_COST", default_value_t = 10)]
    pub bcrypt_cost: u32,

    /// Certificate for clients
    #[arg(long, env = "ETCD_CERT_FILE")]
    pub cert_file: Option<PathBuf>,
    #[arg(long, env = "ETCD_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// Authority of client certificates
    #[arg(long, env = "ETCD_TRUSTED_CA_FILE")]
    pub trusted_ca_file: Option<PathBuf>,
    /// Asks clients for a certificate
    #[arg(long, env = "ETCD_CLIENT_CERT_AUTH", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = switch!(), hide_default_value = true)]
    pub client_cert_auth: bool,
    /// Makes a certificate for clients by itself
    #[arg(long, env = "ETCD_AUTO_TLS", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = switch!(), hide_default_value = true)]
    pub auto_tls: bool,
    /// Certificate for other members
    #[arg(long, env = "ETCD_PEER_CERT_FILE")]
    pub peer_cert_file: Option<PathBuf>,
    #[arg(long, env = "ETCD_PEER_KEY_FILE")]
    pub peer_key_file: Option<PathBuf>,
    #[arg(long, env = "ETCD_PEER_TRUSTED_CA_FILE")]
    pub peer_trusted_ca_file: Option<PathBuf>,
    #[arg(long, env = "ETCD_PEER_CLIENT_CERT_AUTH", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = switch!(), hide_default_value = true)]
    pub peer_client_cert_auth: bool,
    #[arg(long, env = "ETCD_PEER_AUTO_TLS", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = switch!(), hide_default_value = true)]
    pub peer_auto_tls: bool,

    #[arg(long, env = "ETCD_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    #[arg(long, env = "ETCD_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("--{flag}: {value:?} is no URL like http://10.0.0.1:2379")]
    Url { flag: &'static str, value: String },
    #[error("--{flag}: {value} wants TLS, but there is no certificate: give {cert} and {key}")]
    NoCertificate {
        flag: &'static str,
        value: String,
        cert: &'static str,
        key: &'static str,
    },
    #[error(
        "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery\" or \"discovery-srv\""
    )]
    Several,
    #[error("--initial-cluster: {0:?} is not NAME=URL")]
    Cluster(String),
    #[error("--initial-cluster has no member called {0:?}: add it, or change --name")]
    NotInCluster(String),
    #[error(
        "--initial-advertise-peer-urls says {advertised:?}, but --initial-cluster says {cluster:?} for this member"
    )]
    PeerUrls {
        advertised: Vec<String>,
        cluster: Vec<String>,
    },
    #[error("--auto-compaction-retention: {0:?} is no duration like 1h or 30m, and no number")]
    Retention(String),
    #[error("--election-timeout must be at least five times --heartbeat-interval")]
    Election,
}

/// A URL that names a host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub url: String,
    pub tls: bool,
    pub host: String,
    pub port: u16,
}

impl Endpoint {
    pub fn parse(flag: &'static str, url: &str) -> Result<Self, Error> {
        let bad = || Error::Url {
            flag,
            value: url.to_owned(),
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(bad()),
        };
        let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains('/') {
            return Err(bad());
        }
        Ok(Self {
            url: url.to_owned(),
            tls,
            host: host.to_owned(),
            port: port.trim_end_matches('/').parse().map_err(|_| bad())?,
        })
    }

    pub fn list(flag: &'static str, urls: &str) -> Result<Vec<Self>, Error> {
        split(urls)
            .iter()
            .map(|url| Self::parse(flag, url))
            .collect()
    }

    /// Addresses to listen on.
    pub fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        use std::net::ToSocketAddrs as _;
        let found: Vec<_> = (self.host.as_str(), self.port).to_socket_addrs()?.collect();
        // `localhost` may mean two addresses; with a port chosen by the kernel they would differ.
        Ok(found
            .into_iter()
            .take(if self.port == 0 { 1 } else { usize::MAX })
            .collect())
    }
}

pub fn split(list: &str) -> Vec<String> {
    list.split(',')
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .map(str::to_owned)
        .collect()
}

/// `1h30m`, `10s`, `100ms`.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number * seconds).ok()?;
        rest = &rest[unit..];
    }
    Some(total)
}

/// What is kept of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    Everything,
    Time(Duration),
    Revisions(i64),
}

impl Server {
    pub fn data_dir(&self) -> PathBuf {
        self.data_dir
            .clone()
            .unwrap_or_else(|| PathBuf::from(format!("{}.etcd", self.name)))
    }

    /// Name to peer URLs, of the first members.
    pub fn initial_cluster(&self) -> Result<BTreeMap<String, Vec<String>>, Error> {
        let advertised = split(&self.initial_advertise_peer_urls);
        let Some(text) = self.initial_cluster.as_deref().filter(|t| !t.is_empty()) else {
            return Ok(BTreeMap::from([(self.name.clone(), advertised)]));
        };
        let cluster = parse_cluster(text)?;
        let own = cluster
            .get(&self.name)
            .ok_or_else(|| Error::NotInCluster(self.name.clone()))?;
        let sorted = |urls: &[String]| {
            let mut urls = urls.to_vec();
            urls.sort();
            urls
        };
        if sorted(own) != sorted(&advertised) {
            return Err(Error::PeerUrls {
                advertised,
                cluster: own.clone(),
            });
        }
        Ok(cluster)
    }

    pub fn quota(&self) -> u64 {
        match self.quota_backend_bytes {
            0 => 8 << 30,
            bytes if bytes < 0 => u64::MAX,
            bytes => bytes.cast_unsigned(),
        }
    }

    pub fn retention(&self) -> Result<Retention, Error> {
        let text = self.auto_compaction_retention.trim();
        let bad = || Error::Retention(text.to_owned());
        let number: Option<i64> = text.parse().ok();
        match (self.auto_compaction_mode, number) {
            (_, Some(0)) => Ok(Retention::Everything),
            (_, Some(n)) if n < 0 => Err(bad()),
            (CompactionMode::Periodic, Some(hours)) => Ok(Retention::Time(Duration::from_secs(
                hours.cast_unsigned() * 3600,
            ))),
            (CompactionMode::Revision, Some(revisions)) => Ok(Retention::Revisions(revisions)),
            (CompactionMode::Periodic, None) => duration(text).map(Retention::Time).ok_or_else(bad),
            (CompactionMode::Revision, None) => Err(bad()),
        }
    }

    pub fn check(&self) -> Result<(), Error> {
        let ways = [
            self.initial_cluster.as_deref().unwrap_or_default(),
            &self.discovery,
            &self.discovery_srv,
        ];
        if ways.iter().filter(|way| !way.is_empty()).count() > 1 {
            return Err(Error::Several);
        }
        if self.election_timeout < 5 * self.heartbeat_interval {
            return Err(Error::Election);
        }
        self.retention()?;
        self.initial_cluster()?;
        let client = self.cert_file.is_some() || self.auto_tls;
        for url in Endpoint::list("listen-client-urls", &self.listen_client_urls)? {
            if url.tls && !client {
                return Err(Error::NoCertificate {
                    flag: "listen-client-urls",
                    value: url.url,
                    cert: "--cert-file",
                    key: "--key-file, or --auto-tls",
                });
            }
        }
        let peer = self.peer_cert_file.is_some() || self.peer_auto_tls;
        for url in Endpoint::list("listen-peer-urls", &self.listen_peer_urls)? {
            if url.tls && !peer {
                return Err(Error::NoCertificate {
                    flag: "listen-peer-urls",
                    value: url.url,
                    cert: "--peer-cert-file",
                    key: "--peer-key-file, or --peer-auto-tls",
                });
            }
        }
        Endpoint::list("advertise-client-urls", &self.advertise_client_urls)?;
        Endpoint::list(
            "initial-advertise-peer-urls",
            &self.initial_advertise_peer_urls,
        )?;
        Endpoint::list("listen-metrics-urls", &self.listen_metrics_urls)?;
        Ok(())
    }
}

pub fn parse_cluster(text: &str) -> Result<BTreeMap<String, Vec<String>>, Error> {
    let mut cluster: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for part in split(text) {
        let (name, url) = part
            .split_once('=')
            .ok_or_else(|| Error::Cluster(part.clone()))?;
        Endpoint::parse("initial-cluster", url)?;
        cluster
            .entry(name.to_owned())
            .or_default()
            .push(url.to_owned());
    }
    Ok(cluster)
}

/// Makes of Go's flags what the parser understands: `-name x` is `--name x`; what does not matter here goes.
pub fn normalise(args: impl IntoIterator<Item = String>) -> (Vec<String>, Vec<String>) {
    let mut out = Vec::new();
    let mut ignored = Vec::new();
    let mut args = args.into_iter().peekable();
    out.extend(args.next());
    while let Some(arg) = args.next() {
        let single = arg
            .strip_prefix('-')
            .filter(|rest| rest.len() > 1 && !rest.starts_with('-'));
        let arg = match single {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                format!("--{rest}")
            }
            _ => arg,
        };
        let (name, value) = match arg.strip_prefix("--") {
            Some(flag) => flag
                .split_once('=')
                .map_or((flag, false), |(n, _)| (n, true)),
            None => ("", true),
        };
        if IGNORED.contains(&name) {
            if !value && args.peek().is_some_and(|next| !next.starts_with('-')) {
                args.next();
            }
            ignored.push(name.to_owned());
            continue;
        }
        out.push(arg);
    }
    (out, ignored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_go() {
        let args = [
            "x",
            "-name",
            "a",
            "--enable-v2=true",
            "-logger",
            "zap",
            "-client-cert-auth",
            "--debug",
            "-c",
        ];
        let (args, ignored) = normalise(args.map(str::to_owned));
        assert_eq!(args, ["x", "--name", "a", "--client-cert-auth", "-c"]);
        assert_eq!(ignored, ["enable-v2", "logger", "debug"]);
    }

    #[test]
    fn durations() {
        let cases = [
            ("1h30m", Some(5400)),
            ("10s", Some(10)),
            ("0.5h", Some(1800)),
            ("10", None),
            ("", None),
            ("1d", None),
        ];
        for (text, expected) in cases {
            assert_eq!(duration(text).map(|d| d.as_secs()), expected, "{text}");
        }
    }

    #[test]
    fn urls() {
        let url = Endpoint::parse("f", "https://[::1]:2379").expect("fine");
        assert_eq!((url.tls, url.host.as_str(), url.port), (true, "::1", 2379));
        for bad in [
            "localhost:2379",
            "ftp://a:1",
            "http://a",
            "http://:1",
            "http://a:b",
        ] {
            assert!(Endpoint::parse("f", bad).is_err(), "{bad}");
        }
    }
}
