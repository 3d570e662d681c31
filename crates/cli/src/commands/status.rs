//! `orlop status`: what the host's parts say about it, in one answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use host::conf::UpdateConf;
use host::os_release::OsRelease;
use host::running;
use release::Slot;
use release::status::{EngineStatus, Health, HostStatus, UpdateStatus};
use serde::Deserialize;

use crate::exit::Exit;
use crate::output::{self, Output};

/// Show this host's version, slot, channel, health and updates
#[derive(clap::Args)]
pub struct Args {
    /// While the host still starts, wait up to this many seconds; then exit code 3 means not healthy
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// Look at the host whose root directory this is
    #[arg(long, default_value = "/", hide = true)]
    root: PathBuf,
    #[command(flatten)]
    output: Output,
}

pub fn run(args: &Args) -> Result<Exit> {
    let end = Instant::now() + Duration::from_secs(args.wait.unwrap_or(0));
    let status = loop {
        let facts = Facts::read(&args.root)?;
        let waits = facts.health() == Health::Starting || facts.engine.is_none();
        if !waits || Instant::now() >= end {
            break facts.status();
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    output::print(args.output.output, &status, text)?;
    let well = args.wait.is_none() || status.health == Health::Healthy;
    Ok(if well { Exit::Ok } else { Exit::NotHealthy })
}

/// What was found on the host, before it is put together.
struct Facts {
    os: OsRelease,
    conf: UpdateConf,
    engine: Option<EngineStatus>,
    good: bool,
    failure: Option<Failure>,
    slot: Option<Slot>,
    machine_id: String,
    boot_id: String,
    /// Another one after a soft-reboot into another release, too.
    boot: String,
    hostname: String,
    kernel: String,
}

/// `/var/lib/orlop/boot/failure.json`, as far as it matters here.
#[derive(Deserialize)]
struct Failure {
    boot_id: String,
}

impl Facts {
    fn read(root: &Path) -> Result<Self> {
        let os = OsRelease::read(root)?;
        if !os.is_orlop() {
            bail!(
                "this is no Orlop host but {}; ./orlop ssh -- orlop status asks a node",
                os.pretty_name()
            );
        }
        Ok(Self {
            conf: UpdateConf::read(root)?,
            // Absent until update-engine has started; torn never, because it is replaced whole.
            engine: json(root, "run/update-engine/status.json")?,
            good: root.join("run/orlop/good").exists(),
            failure: json(root, "var/lib/orlop/boot/failure.json").unwrap_or_default(),
            slot: booted_slot(root),
            machine_id: host::machine::machine_id(root)?,
            boot_id: host::machine::boot_id(root)?,
            boot: running::boot(root)?,
            hostname: host::machine::hostname(),
            kernel: host::machine::kernel(),
            os,
        })
    }

    fn health(&self) -> Health {
        if self
            .failure
            .as_ref()
            .is_some_and(|failure| failure.boot_id == self.boot)
        {
            Health::Unhealthy
        } else if self.good {
            Health::Healthy
        } else {
            Health::Starting
        }
    }

    fn status(self) -> HostStatus {
        let health = self.health();
        let from_engine = self
            .engine
            .as_ref()
            .and_then(|engine| engine.slots.iter().find(|slot| slot.booted));
        let slot = from_engine.map(|slot| slot.slot).or(self.slot);
        let conf = self.conf;
        let mut status = HostStatus {
            // A host without a version is one of an unfinished build; 0 is older than all others.
            version: self
                .os
                .version()
                .and_then(|text| text.parse().ok())
                .unwrap_or_else(zero),
            slot,
            channel: conf
                .group
                .parse()
                .unwrap_or_else(|_| release::Channel::stable()),
            health,
            staged: None,
            rollback: None,
            failed: Vec::new(),
            update: UpdateStatus::default(),
            server: conf.server,
            machine_id: self.machine_id,
            hostname: self.hostname,
            boot_id: self.boot_id,
            kernel: self.kernel,
            epoch: self.os.epoch().unwrap_or(0),
        };
        if let Some(engine) = self.engine {
            status.channel = engine.channel;
            status.staged = engine.staged;
            status.rollback = engine.rollback;
            status.failed = engine.failed;
            status.update = engine.update;
            status.server = engine.server;
            status.epoch = engine.epoch;
        }
        status
    }
}

fn zero() -> release::Version {
    #[allow(clippy::expect_used)]
    "0".parse().expect("0 is a version")
}

fn json<T: serde::de::DeserializeOwned>(root: &Path, path: &str) -> Result<Option<T>> {
    let path = root.join(path);
    match fs::read(&path) {
        Ok(bytes) => {
            Ok(Some(serde_json::from_slice(&bytes).with_context(|| {
                format!("{} is damaged", path.display())
            })?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The slot whose partition carries the first half of the root hash as its UUID.
fn booted_slot(root: &Path) -> Option<Slot> {
    let hash = running::root_hash(root).ok()??.get(..32)?.to_owned();
    let uuid = [
        &hash[..8],
        &hash[8..12],
        &hash[12..16],
        &hash[16..20],
        &hash[20..],
    ]
    .join("-");
    let device = fs::canonicalize(root.join("dev/disk/by-partuuid").join(uuid)).ok()?;
    let is = |label: &str| {
        fs::canonicalize(root.join("dev/disk/by-partlabel").join(label))
            .is_ok_and(|it| it == device)
    };
    match (is("usr-a"), is("usr-b")) {
        (true, _) => Some(Slot::A),
        (_, true) => Some(Slot::B),
        _ => None,
    }
}

fn text(status: &HostStatus) -> String {
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let slot_release = |it: &release::status::SlotRelease| {
        let soft = if it.soft_reboot {
            ", a soft-reboot is enough"
        } else {
            ""
        };
        format!("{} in slot {}{soft}", it.version, it.slot)
    };
    let mut lines = vec![
        (
            "host",
            format!("{} ({})", status.hostname, status.machine_id),
        ),
        ("version", status.version.to_string()),
        ("slot", or_none(status.slot.map(|slot| slot.to_string()))),
        ("channel", status.channel.to_string()),
        ("health", status.health.to_string()),
        ("staged", or_none(status.staged.as_ref().map(slot_release))),
        (
            "rollback",
            or_none(status.rollback.as_ref().map(slot_release)),
        ),
        ("update", update_text(&status.update)),
        ("server", or_none(status.server.clone())),
        ("kernel", status.kernel.clone()),
        ("epoch", status.epoch.to_string()),
    ];
    for failed in &status.failed {
        lines.push((
            "failed",
            format!("{}: {} ({})", failed.version, failed.reason, failed.at),
        ));
    }
    lines
        .into_iter()
        .map(|(key, value)| format!("{key:<9} {value}\n"))
        .collect()
}

fn update_text(update: &UpdateStatus) -> String {
    let mut text = format!("{:?}", update.state).to_lowercase();
    if let Some(progress) = update.progress {
        text += &format!(" {:.0} %", progress * 100.0);
    }
    if let Some(at) = update.last_check {
        text += &format!(", checked at {at}");
    }
    if let Some(error) = &update.last_error {
        text += &format!(", last error: {error}");
        if let Some(code) = update.last_error_code {
            text += &format!(" (code {code})");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host's root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let base = [
            (
                "usr/lib/os-release",
                "ID=orlop\nIMAGE_ID=orlop\nIMAGE_VERSION=2\nVERSION_ID=2\nPRETTY_NAME=\"Orlop 2\"\n",
            ),
            ("usr/share/orlop/update.conf", "GROUP=stable\n"),
            ("proc/cmdline", "quiet\n"),
            (
                "proc/sys/kernel/random/boot_id",
                "11111111-2222-3333-4444-555555555555\n",
            ),
            ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
        ];
        for (path, text) in base.iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn health(files: &[(&str, &str)]) -> Health {
        Facts::read(root(files).path()).unwrap().health()
    }

    #[test]
    fn health_follows_from_marks_of_this_boot() {
        let failed_now = (
            "var/lib/orlop/boot/failure.json",
            r#"{"boot_id":"11111111222233334444555555555555"}"#,
        );
        let failed_before = ("var/lib/orlop/boot/failure.json", r#"{"boot_id":"other"}"#);
        assert_eq!(health(&[]), Health::Starting);
        assert_eq!(health(&[("run/orlop/good", "")]), Health::Healthy);
        assert_eq!(health(&[failed_now]), Health::Unhealthy);
        assert_eq!(
            health(&[("run/orlop/good", ""), failed_before]),
            Health::Healthy
        );
    }

    #[test]
    fn an_error_is_shown_with_its_code() {
        let mut update = UpdateStatus {
            last_error: Some("timestamp.json expired".into()),
            last_error_code: Some(64),
            ..UpdateStatus::default()
        };
        let text = update_text(&update);
        assert_eq!(text, "idle, last error: timestamp.json expired (code 64)");
        update.last_error_code = None;
        let text = update_text(&update);
        assert_eq!(text, "idle, last error: timestamp.json expired");
    }

    #[test]
    fn another_system_is_not_mistaken_for_a_host() {
        let root = root(&[("usr/lib/os-release", "ID=debian\nPRETTY_NAME=\"Debian\"\n")]);
        let error = Facts::read(root.path()).err().unwrap().to_string();
        assert!(
            error.starts_with("this is no Orlop host but Debian"),
            "{error}"
        );
    }

    #[test]
    fn the_slot_is_the_one_with_the_root_hash_in_its_uuid() {
        let hash = "00112233445566778899aabbccddeeff".repeat(2);
        let root = root(&[
            ("proc/cmdline", &format!("usrhash={hash} quiet")),
            ("dev/vda5", ""),
        ]);
        let disk = root.path().join("dev/disk");
        for (dir, name) in [
            ("by-partuuid", "00112233-4455-6677-8899-aabbccddeeff"),
            ("by-partlabel", "usr-b"),
        ] {
            fs::create_dir_all(disk.join(dir)).unwrap();
            std::os::unix::fs::symlink("../../vda5", disk.join(dir).join(name)).unwrap();
        }
        assert_eq!(booted_slot(root.path()), Some(Slot::B));
    }
}
