//! `orlop bench cloud-config`: how long a file takes, here and with Debian's cloud-init. Without a machine:
//! both work on a directory, so nothing but the program and the disk is measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use image::apt::Mirror;
use image::binaries::find_repo;
use serde::Serialize;

use super::lab;
use crate::exit::Exit;
use crate::output;
use crate::progress::Step;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Against {
    /// Debian's package, in a tree that is made at first use (needs mmdebstrap, and root)
    CloudInit,
}

/// A user, three files, three units: in CoreOS's words and in cloud-init's.
const OURS: &str = "#cloud-config
hostname: bench
users:
- {name: ann, groups: [users], ssh_authorized_keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA ann]}
write_files:
- {path: /etc/bench/a, content: one}
- {path: /etc/bench/b, content: two, permissions: '0600'}
- {path: /etc/bench/c, content: dGhyZWU=, encoding: b64}
coreos:
  units:
  - {name: a.service, content: \"[Service]\\nExecStart=/bin/true\\n\"}
  - {name: b.service, content: \"[Service]\\nExecStart=/bin/true\\n\"}
  - {name: c.service, content: \"[Service]\\nExecStart=/bin/true\\n\"}
";
const THEIRS: &str = "#cloud-config
hostname: bench
users:
- {name: ann, groups: [users], ssh_authorized_keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA ann]}
write_files:
- {path: /etc/bench/a, content: one}
- {path: /etc/bench/b, content: two, permissions: '0600'}
- {path: /etc/bench/c, content: dGhyZWU=, encoding: b64}
- {path: /etc/systemd/system/a.service, content: \"[Service]\\nExecStart=/bin/true\\n\"}
- {path: /etc/systemd/system/b.service, content: \"[Service]\\nExecStart=/bin/true\\n\"}
- {path: /etc/systemd/system/c.service, content: \"[Service]\\nExecStart=/bin/true\\n\"}
";
const SUITE: &str = "trixie";
/// All that a boot runs of it.
const STAGES: [&str; 4] = [
    "init --local",
    "init",
    "modules --mode=config",
    "modules --mode=final",
];

#[derive(Serialize)]
struct Row {
    what: &'static str,
    runs: usize,
    median_ms: f64,
    lowest_ms: f64,
}

pub(super) fn run(runs: u32, against: Option<Against>, format: output::Format) -> Result<Exit> {
    let repo = find_repo(&std::env::current_dir()?)?;
    let program = repo.join("target/release/cloudinit");
    if !program.exists() {
        bail!(
            "{} is missing: cargo build --release -p cloudinit",
            program.display()
        );
    }
    let mut rows = ours(&program, runs)?;
    if let Some(Against::CloudInit) = against {
        rows.extend(theirs(&lab()?.cache(), runs)?);
    }
    output::print(format, &rows, |rows| {
        let milliseconds = |value: f64| format!("{value:.1} ms");
        let table: Vec<Vec<String>> = rows
            .iter()
            .map(|row| {
                vec![
                    row.what.to_owned(),
                    row.runs.to_string(),
                    milliseconds(row.median_ms),
                    milliseconds(row.lowest_ms),
                ]
            })
            .collect();
        output::table(&["WHAT", "RUNS", "MEDIAN", "LOWEST"], &table)
    })?;
    Ok(Exit::Ok)
}

fn row(what: &'static str, mut times: Vec<f64>) -> Row {
    times.sort_by(f64::total_cmp);
    Row {
        what,
        runs: times.len(),
        median_ms: times.get(times.len() / 2).copied().unwrap_or_default(),
        lowest_ms: times.first().copied().unwrap_or_default(),
    }
}

/// From the start of the process to its end, in milliseconds.
fn time(command: &mut Command) -> Result<f64> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    let elapsed = start.elapsed().as_secs_f64() * 1000.0;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(elapsed)
}

fn ours(program: &Path, runs: u32) -> Result<Vec<Row>> {
    let step = Step::begin("cloudinit");
    let (mut validate, mut first, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let dir = TempDir::new()?;
        let root = dir.0.join("root");
        fs::create_dir_all(root.join("etc"))?;
        // Nobody but root, so that anybody may measure.
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n")?;
        fs::write(root.join("etc/group"), "root:x:0:\nusers:x:100:\n")?;
        fs::write(root.join("etc/shadow"), "root:*:1::::::\n")?;
        let file = dir.0.join("config.yml");
        fs::write(&file, OURS)?;
        validate.push(time(Command::new(program).arg("validate").arg(&file))?);
        let apply = || {
            let mut command = Command::new(program);
            command
                .arg("apply")
                .arg("--from")
                .arg(&file)
                .arg("--root")
                .arg(&root);
            command
        };
        first.push(time(&mut apply())?);
        again.push(time(&mut apply())?);
    }
    let rows = vec![
        row("cloudinit validate", validate),
        row("cloudinit apply", first),
        row("cloudinit apply, nothing left to do", again),
    ];
    step.done(&format!("{:.1} ms to apply", rows[1].median_ms));
    Ok(rows)
}

/// A directory that goes with its owner.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Result<Self> {
        let name = format!("orlop-bench-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn theirs(cache: &Path, runs: u32) -> Result<Vec<Row>> {
    let tree = cache.join("peer").join(format!("cloud-init-{SUITE}"));
    if !tree.exists() {
        let step = Step::begin("Debian's cloud-init");
        make(&tree)?;
        step.done("a tree with it");
    }
    let step = Step::begin("cloud-init");
    let seed = tree.join("var/lib/cloud/seed/nocloud");
    fs::create_dir_all(&seed)?;
    fs::write(seed.join("user-data"), THEIRS)?;
    fs::write(seed.join("meta-data"), "instance-id: bench\n")?;
    let datasource = tree.join("etc/cloud/cloud.cfg.d/99-bench.cfg");
    // Packages are not what is compared.
    fs::write(
        datasource,
        "datasource_list: [NoCloud]\napt: {preserve_sources_list: true}\nnetwork: {config: disabled}\n",
    )?;
    let (mut validate, mut first, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        inside(
            &tree,
            "cloud-init clean --logs; userdel -r ann; rm -rf /etc/bench; true",
        )?;
        let schema = "cloud-init schema --config-file /var/lib/cloud/seed/nocloud/user-data";
        validate.push(inside(&tree, schema)?);
        for times in [&mut first, &mut again] {
            let mut sum = 0.0;
            for stage in STAGES {
                // Some modules have nothing to work on in a directory, and say so by their exit code.
                sum += inside(&tree, &format!("cloud-init {stage} || test $? -lt 3"))?;
            }
            times.push(sum);
        }
        if !tree.join("etc/bench/c").exists() {
            bail!(
                "cloud-init did not write its files; see var/log/cloud-init.log in {}",
                tree.display()
            );
        }
    }
    let rows = vec![
        row("cloud-init schema", validate),
        row("cloud-init, the four stages of a first boot", first),
        row("cloud-init, the four stages of the next", again),
    ];
    step.done(&format!("{:.0} ms to apply", rows[1].median_ms));
    Ok(rows)
}

fn make(tree: &Path) -> Result<()> {
    let mirror = Mirror::find(Path::new("/"))?;
    let part = tree.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    if let Some(dir) = part.parent() {
        fs::create_dir_all(dir)?;
    }
    let output = Command::new("mmdebstrap")
        .args([
            "--variant=minbase",
            "--include=cloud-init,passwd,openssh-server,iproute2",
        ])
        .arg(SUITE)
        .arg(&part)
        .arg(&mirror.archive)
        .stdin(Stdio::null())
        .output()
        .context(
            "mmdebstrap is missing; only this benchmark needs it: apt-get install mmdebstrap",
        )?;
    if !output.status.success() {
        bail!("mmdebstrap: {}", String::from_utf8_lossy(&output.stderr));
    }
    fs::rename(&part, tree)?;
    Ok(())
}

/// In the tree, with a network, a host name and processes of its own: the workstation keeps its own.
fn inside(tree: &Path, script: &str) -> Result<f64> {
    let outer = "mount -t proc proc \"$0/proc\" && exec chroot \"$0\" sh -c \"$1\"";
    time(
        Command::new("unshare")
            .args([
                "--net",
                "--uts",
                "--mount",
                "--ipc",
                "--pid",
                "--fork",
                "--kill-child",
                "--",
            ])
            .args(["sh", "-c", outer])
            .arg(tree)
            .arg(script)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    )
}
