//! `orlop-store snapshot`: the state of a cluster as a file, and a member that starts from one.

use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use futures_util::StreamExt as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::config::Server;
use crate::machine::checkpoint;
use crate::node::disk::Disk;
use crate::pb::etcdserverpb::SnapshotRequest;
use crate::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::peer::client;
use crate::server::restored;

const SUM: usize = 32;
const SUM_BYTES: u64 = 32;

#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Saves the state of a running member to a file
    Save(Save),
    /// Makes the data directory of a new cluster's member out of a file
    Restore(Restore),
    /// Says what is in a file
    Status(Status),
}

#[derive(Debug, Clone, Args)]
pub struct Save {
    file: PathBuf,
    /// The member to ask
    #[arg(
        long,
        env = "ETCDCTL_ENDPOINTS",
        default_value = "http://127.0.0.1:2379"
    )]
    endpoint: String,
    /// Authority of the member's certificate
    #[arg(long, env = "ETCDCTL_CACERT", requires = "cert")]
    cacert: Option<PathBuf>,
    /// Certificate to show
    #[arg(long, env = "ETCDCTL_CERT", requires = "key")]
    cert: Option<PathBuf>,
    #[arg(long, env = "ETCDCTL_KEY")]
    key: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct Restore {
    file: PathBuf,
    /// Takes the file even if its checksum is missing, as in a checkpoint copied from a data directory
    #[arg(long)]
    skip_hash_check: bool,
    /// Raises the revision by so much, so that watchers that saw more than the file holds notice
    #[arg(long, default_value_t = 0)]
    bump_revision: u32,
    /// Says that everything before is compacted, which ends watches of the old cluster and makes caches read anew
    #[arg(long, requires = "bump_revision")]
    mark_compacted: bool,
    #[command(flatten)]
    server: Box<Server>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Clone, Args)]
pub struct Status {
    file: PathBuf,
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

pub async fn run(command: Command) -> Result<()> {
    match command {
        Command::Save(save) => self::save(&save).await,
        Command::Restore(restore) => self::restore(&restore),
        Command::Status(status) => self::status(&status),
    }
}

async fn save(save: &Save) -> Result<()> {
    let endpoint = if save.endpoint.contains("://") {
        save.endpoint.clone()
    } else {
        format!("http://{}", save.endpoint)
    };
    let tls = match (&save.cert, &save.key) {
        (Some(cert), Some(key)) => Some(std::sync::Arc::new(crate::tls::connector(
            crate::tls::Files {
                cert: cert.clone(),
                key: key.clone(),
                ca: save.cacert.clone(),
                ask: false,
                unverified: false,
            },
        )?)),
        _ => None,
    };
    let channel = client::connect(&endpoint, tls).await?;
    let mut maintenance = MaintenanceClient::new(channel).max_decoding_message_size(usize::MAX);
    let said = |status: tonic::Status| anyhow::anyhow!("{endpoint}: {}", status.message());
    let mut pieces = maintenance
        .snapshot(SnapshotRequest {})
        .await
        .map_err(said)?
        .into_inner();
    let part = save.file.with_extension("part");
    let mut out = File::create(&part).with_context(|| part.display().to_string())?;
    let mut size = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(said)?;
        out.write_all(&piece.blob)
            .with_context(|| part.display().to_string())?;
        size += piece.blob.len();
    }
    out.sync_all().with_context(|| part.display().to_string())?;
    // Nothing has the name before it is known to be whole.
    check(&part)?;
    std::fs::rename(&part, &save.file).with_context(|| save.file.display().to_string())?;
    println!("Snapshot saved at {} ({size} bytes)", save.file.display());
    Ok(())
}

/// Whether a checksum follows, and whether it is right. Returns the length without it.
fn check(path: &Path) -> Result<Option<u64>> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let length = file.metadata()?.len();
    if length % 512 != SUM_BYTES {
        return Ok(None);
    }
    let mut sum = Sha256::new();
    let mut body = (&mut file).take(length - SUM_BYTES);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = body.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        sum.update(&buffer[..read]);
    }
    let mut stated = [0; SUM];
    file.read_exact(&mut stated)?;
    if sum.finalize()[..] != stated {
        bail!(
            "{}: the checksum is wrong, the file is damaged",
            path.display()
        );
    }
    Ok(Some(length - SUM_BYTES))
}

fn reader(path: &Path) -> Result<BufReader<File>> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let mut magic = [0; 24];
    let read = file.read(&mut magic)?;
    // The first page of etcd's database says so at its byte 16.
    if read == 24 && magic[16..20] == 0xED0C_DAED_u32.to_le_bytes() {
        bail!(
            "{}: this is a snapshot of etcd itself, which cannot be read here. Copy the keys with `etcdctl make-mirror` instead",
            path.display()
        );
    }
    drop(file);
    let file = File::open(path).with_context(|| path.display().to_string())?;
    Ok(BufReader::with_capacity(1 << 20, file))
}

fn read(path: &Path) -> Result<crate::machine::Machine> {
    checkpoint::read(&mut reader(path)?)
        .map_err(|error: io::Error| anyhow::anyhow!("{}: {error}", path.display()))
}

fn restore(restore: &Restore) -> Result<()> {
    restore.server.check()?;
    let machine = read(&restore.file)?;
    if check(&restore.file)?.is_none() && !restore.skip_hash_check {
        bail!(
            "{}: there is no checksum at its end. If it was copied from a data directory, say --skip-hash-check",
            restore.file.display()
        );
    }
    let data = restore.server.data_dir();
    if data.join("member").exists() {
        bail!(
            "{}: there is data already, which is not touched",
            data.display()
        );
    }
    let bump = i64::from(restore.bump_revision);
    let (mut machine, owner) = restored(&restore.server, machine, bump)?;
    if restore.mark_compacted {
        let revision = machine.kv.revision();
        machine
            .kv
            .compact(revision)
            .map_err(|error| anyhow::anyhow!("--mark-compacted: {error}"))?;
    }
    let (revision, keys) = (machine.kv.revision(), machine.kv.live_keys());
    Disk::open(&data, restore.server.wal_dir.as_deref())?.create(machine, owner)?;
    println!(
        "Restored {keys} keys at revision {revision} into {} as member {:x} of the new cluster {:x}",
        data.display(),
        owner.member,
        owner.cluster
    );
    Ok(())
}

fn status(status: &Status) -> Result<()> {
    let machine = read(&status.file)?;
    let checked = check(&status.file)?.is_some();
    let size = std::fs::metadata(&status.file)?.len();
    let revision = machine.kv.revision();
    let hash = machine.kv.hash(revision);
    match status.output {
        Output::Json => println!(
            "{}",
            json!({
                "hash": hash,
                "revision": revision,
                "totalKey": machine.kv.live_keys(),
                "totalSize": size,
                "index": machine.applied,
                "checksum": checked,
                "members": machine.members.list().iter().map(|m| &m.name).collect::<Vec<_>>(),
            })
        ),
        Output::Text => println!(
            "hash {hash:x}, revision {revision}, {} keys, {size} bytes{}",
            machine.kv.live_keys(),
            if checked { "" } else { ", without a checksum" }
        ),
    }
    Ok(())
}
