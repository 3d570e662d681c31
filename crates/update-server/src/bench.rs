//! `update-server bench`: hosts that speak the real protocol to a real server, and how long they
//! wait for their answers.
//!
//! The server runs as a process of its own on a database with all hosts in it. Each request is one
//! host with its machine id; requests are due at fixed times, and the wait counts from then, so that
//! a server that stands still is not asked less.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use release::omaha::{self, AppRequest, Os, Request};
use release::status::Health;
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::server::sql::{Db, Duty, Place, params};

#[derive(Clone, Debug, clap::Parser)]
#[command(
    name = "update-server bench",
    about = "Measure how many update checks a server answers"
)]
pub struct Options {
    /// How many hosts the server knows
    #[arg(long, default_value_t = 1_000_000)]
    hosts: u64,
    /// Update checks per second; 0: as many as it answers
    #[arg(long, default_value_t = 5000)]
    rate: u64,
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    #[arg(long, default_value_t = 64)]
    connections: u64,
    /// Keep the database here and use it again; without it, a temporary directory
    #[arg(long)]
    data: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Figures {
    hosts: u64,
    asked_per_second: u64,
    seconds: f64,
    answered: u64,
    failed: u64,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    server_peak_mb: f64,
    server_cpu_seconds: f64,
    database_mb: f64,
}

pub async fn run(options: Options) -> Result<()> {
    let temporary;
    let data = match &options.data {
        Some(data) => data.clone(),
        None => {
            temporary = Temporary::new()?;
            temporary.0.clone()
        }
    };
    let database = data.join("server.db");
    if !database.exists() {
        eprintln!(
            "writing {} hosts into {}",
            options.hosts,
            database.display()
        );
        std::fs::create_dir_all(data.join("keys")).context("cannot make the data directory")?;
        let (path, hosts) = (database.clone(), options.hosts);
        tokio::task::spawn_blocking(move || seed(&path, hosts)).await??;
    }
    let mut server = Running::start(&data)?;
    let figures = drive(&options, &server, &database).await;
    server.stop();
    let figures = figures?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        println!(
            "{} hosts, {:.0} s: {:.0} checks/s ({} answered, {} failed)\n\
             waited: median {:.1} ms, 99 % {:.1} ms, longest {:.1} ms\n\
             server: at most {:.0} MB, {:.1} s of CPU; database {:.0} MB",
            figures.hosts,
            figures.seconds,
            figures.per_second,
            figures.answered,
            figures.failed,
            figures.p50_ms,
            figures.p99_ms,
            figures.max_ms,
            figures.server_peak_mb,
            figures.server_cpu_seconds,
            figures.database_mb,
        );
    }
    Ok(())
}

/// Hosts in one statement.
const SEED_AT_ONCE: usize = 500;

struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("orlop-bench-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn machine_id(number: u64) -> String {
    release::Sha256::of(number.to_be_bytes()).to_string()[..32].to_owned()
}

/// As if every host had asked once.
fn seed(path: &Path, hosts: u64) -> Result<()> {
    let place = Place::File(path.into());
    let db = Db::open(&place, Duty::Write, &tokio::runtime::Handle::current())?;
    crate::server::prepare_database(&db)?;
    db.batch("BEGIN")?;
    for first in (0..hosts).step_by(SEED_AT_ONCE) {
        let numbers = first..hosts.min(first + SEED_AT_ONCE as u64);
        let (mut rows, mut values) = (vec![], vec![]);
        for number in numbers {
            let at = values.len();
            rows.push(format!(
                "(${}, ${}, '1', 'a', 'stable', 'healthy', 'amd64-usr', ${}, 1, 1, 'stable')",
                at + 1,
                at + 2,
                at + 3
            ));
            values.extend_from_slice(params![
                machine_id(number),
                format!("node-{number}"),
                boot_id(number)
            ]);
        }
        let sql = format!(
            "INSERT INTO hosts (machine_id, hostname, version, slot, channel, health, board, boot_id, \
                                first_seen, last_seen, grp) VALUES {}",
            rows.join(", ")
        );
        db.execute(&sql, &values)?;
    }
    db.execute(
        "INSERT INTO census VALUES ('stable', 'stable', '1', 'healthy', $1)",
        params![hosts],
    )?;
    // What they all run is what their channel has, so that each is held against a rollout.
    let digest = release::Sha256::of("bench").to_string();
    let manifest = serde_json::json!({
        "format": release::Manifest::FORMAT,
        "version": "1",
        "architecture": "x86-64",
        "created": 1,
        "usr": {
            "root_hash": &digest,
            "size": 4096,
            "payload": {"file": "usr.erofs.zst", "size": 1, "sha256": &digest, "compression": "zstd"},
        },
        "uki": {"file": "uki.efi", "size": 1, "sha256": &digest},
    });
    db.execute(
        "INSERT INTO releases (version, id, manifest, envelope_size, envelope_sha256, published_at) \
         VALUES ('1', $1, $2, 1, $1, 1)",
        params![digest, manifest.to_string()],
    )?;
    db.batch("UPDATE channels SET version = '1', changed_at = 1 WHERE name = 'stable'; COMMIT")?;
    Ok(())
}

fn boot_id(number: u64) -> String {
    format!("{{{number:08x}-0000-4000-8000-000000000000}}")
}

fn request(number: u64, address: &str) -> Vec<u8> {
    let app = AppRequest {
        app_id: omaha::APP_ID.into(),
        version: "1".into(),
        track: "stable".into(),
        machine_id: machine_id(number),
        boot_id: Some(boot_id(number)),
        board: Some("amd64-usr".into()),
        hostname: Some(format!("node-{number}")),
        slot: Some(release::Slot::A),
        health: Some(Health::Healthy),
        update_check: true,
        ping: true,
        ..AppRequest::default()
    };
    let body = Request {
        install_source: Some("scheduler".into()),
        os: Os {
            platform: "CoreOS".into(),
            version: "Orlop".into(),
            arch: Some("x86_64".into()),
        },
        apps: vec![app],
        ..Request::default()
    }
    .to_xml();
    format!(
        "POST {} HTTP/1.1\r\nHost: {address}\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n{body}",
        omaha::PATH,
        body.len()
    )
    .into_bytes()
}

struct Running {
    child: Child,
    address: String,
}

impl Running {
    fn start(data: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut child = Command::new(program)
            .args(["--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .arg("--keys")
            .arg(data.join("keys"))
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the server")?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let started: serde_json::Value =
            serde_json::from_str(&line).context("the server did not start")?;
        let address = started["listening"].as_str().unwrap_or_default().to_owned();
        Ok(Self { child, address })
    }

    /// Peak memory in MB and CPU time in seconds.
    fn cost(&self) -> (f64, f64) {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = std::fs::read_to_string(proc.join("status")).unwrap_or_default();
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().ok());
        let stat = std::fs::read_to_string(proc.join("stat")).unwrap_or_default();
        let fields: Vec<f64> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0.0))
            .collect();
        // utime and stime are the 14th and 15th field; the first two are cut off.
        let ticks = fields.get(11).unwrap_or(&0.0) + fields.get(12).unwrap_or(&0.0);
        (peak.unwrap_or(0.0) / 1024.0, ticks / 100.0)
    }

    /// In order, so that it writes down who was there.
    fn stop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok();
        match pid.and_then(rustix::process::Pid::from_raw) {
            Some(pid) => drop(rustix::process::kill_process(
                pid,
                rustix::process::Signal::TERM,
            )),
            None => drop(self.child.kill()),
        }
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn drive(options: &Options, server: &Running, database: &Path) -> Result<Figures> {
    let next = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let end = begin + Duration::from_secs(options.seconds);
    let mut tasks = vec![];
    for _ in 0..options.connections.max(1) {
        let next = Arc::clone(&next);
        let (address, hosts, rate) = (server.address.clone(), options.hosts.max(1), options.rate);
        tasks.push(tokio::spawn(async move {
            client(&address, hosts, rate, begin, end, &next).await
        }));
    }
    let (mut waits, mut failed) = (vec![], 0);
    for task in tasks {
        let (own, bad) = task.await?;
        waits.extend(own);
        failed += bad;
    }
    let seconds = begin.elapsed().as_secs_f64();
    if waits.is_empty() {
        bail!("the server answered nothing");
    }
    waits.sort_unstable();
    let at = |percent: usize| waits[(waits.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    let (server_peak_mb, server_cpu_seconds) = server.cost();
    let size = std::fs::metadata(database).map_or(0, |meta| meta.len());
    Ok(Figures {
        hosts: options.hosts,
        asked_per_second: options.rate,
        seconds,
        answered: waits.len() as u64,
        failed,
        per_second: waits.len() as f64 / seconds,
        p50_ms: at(50),
        p99_ms: at(99),
        max_ms: at(100),
        server_peak_mb,
        server_cpu_seconds,
        database_mb: size as f64 / 1e6,
    })
}

/// One connection: takes the next request, waits until it is due, sends it, reads the answer.
async fn client(
    address: &str,
    hosts: u64,
    rate: u64,
    begin: Instant,
    end: Instant,
    next: &AtomicU64,
) -> (Vec<Duration>, u64) {
    let (mut waits, mut failed) = (vec![], 0);
    let mut stream: Option<TcpStream> = None;
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let due = match rate {
            0 => Instant::now(),
            rate => begin + Duration::from_secs_f64(number as f64 / rate as f64),
        };
        if due >= end || Instant::now() >= end + Duration::from_secs(10) {
            return (waits, failed);
        }
        // Spread over the table as hosts are, and each only once in a while.
        let host = number.wrapping_mul(0x9e37_79b1) % hosts;
        let message = request(host, address);
        tokio::time::sleep_until(due.into()).await;
        let answered = async {
            if stream.is_none() {
                let new = TcpStream::connect(address).await?;
                new.set_nodelay(true)?;
                stream = Some(new);
            }
            match stream.as_mut() {
                Some(stream) => exchange(stream, &message, &mut buffer).await,
                None => Ok(false),
            }
        };
        match answered.await {
            Ok(true) => waits.push(due.elapsed()),
            _ => {
                failed += 1;
                stream = None;
            }
        }
    }
}

/// Whether the answer was a whole Omaha response with an update check.
async fn exchange(
    stream: &mut TcpStream,
    message: &[u8],
    buffer: &mut Vec<u8>,
) -> std::io::Result<bool> {
    stream.write_all(message).await?;
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(false);
        }
        let text = String::from_utf8_lossy(buffer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_it = name.eq_ignore_ascii_case("content-length");
            is_it.then(|| value.trim().parse::<usize>().ok())?
        });
        if length.is_some_and(|length| body.len() >= length) {
            return Ok(head.starts_with("HTTP/1.1 200") && body.contains("<updatecheck status=\""));
        }
    }
}
