//! `orlop bench store`: `orlop-store bench` with Debian's etcd to compare with, fetched at first use.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use image::apt::{Apt, Mirror};

use super::compare::{Format, Page};
use super::{lab, serve};
use crate::exit::Exit;
use crate::progress::Step;

/// Suites of Debian, for etcd 3.4 and 3.5.
const SUITES: [&str; 2] = ["bookworm", "forky"];
const PACKAGE: &str = "etcd-server";

/// The lines between which the figures go.
const MARK: &str = "store";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Compare with this program instead of the etcd of Debian bookworm and forky; may be given again
    #[arg(long, value_name = "PROGRAM")]
    against: Vec<PathBuf>,
    /// Some of the work only: single, watch, cluster, keys
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    part: Vec<String>,
    /// The median of so many counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// For each kind of work
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Where the servers keep their data while they are measured; the disk is part of what is measured
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// All servers and clients show certificates
    #[arg(long)]
    tls: bool,
    /// Processors that the servers have for themselves, like 0 or 0,2-3
    #[arg(long, value_name = "LIST")]
    server_cpus: Option<String>,
    /// Processors that their clients have
    #[arg(long, value_name = "LIST")]
    client_cpus: Option<String>,
    /// How the result is printed
    #[arg(short, long = "output", value_enum, default_value_t)]
    output: Format,
    /// Also write the figures into this page, between its two marks
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    into: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<Exit> {
    let page = args
        .into
        .as_deref()
        .map(|path| Page::open(path, MARK))
        .transpose()?;
    let program = serve::beside_us("orlop-store")
        .context("cargo build --release -p store makes orlop-store")?;
    let peers = if args.against.is_empty() {
        peers()?
    } else {
        args.against.clone()
    };
    let mut command = Command::new(&program);
    command.arg("bench");
    for peer in &peers {
        command.arg("--against").arg(peer);
    }
    if !args.part.is_empty() {
        command.arg("--part").arg(args.part.join(","));
    }
    if let Some(data) = &args.data {
        command.arg("--data").arg(data);
    }
    if args.tls {
        command.arg("--tls");
    }
    for (flag, list) in [
        ("--server-cpus", &args.server_cpus),
        ("--client-cpus", &args.client_cpus),
    ] {
        if let Some(list) = list {
            command.args([flag, list]);
        }
    }
    command.args(["--rounds", &args.rounds.to_string()]);
    command.args(["--seconds", &args.seconds.to_string()]);
    let format = match args.output {
        _ if page.is_some() => "markdown",
        Format::Text => "text",
        Format::Json => "json",
        Format::Markdown => "markdown",
    };
    command.args(["-o", format]);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        bail!("{} bench: {}", program.display(), output.status);
    }
    let text = String::from_utf8(output.stdout).context("the figures are no text")?;
    if let Some(page) = page {
        page.write(&text)?;
    }
    print!("{text}");
    Ok(Exit::Ok)
}

/// The `etcd` of each suite.
fn peers() -> Result<Vec<PathBuf>> {
    let cache = lab()?.cache().join("peer");
    let mut found = Vec::new();
    for suite in SUITES {
        let tree = cache.join(format!("etcd-{suite}"));
        let program = tree.join("usr/bin/etcd");
        if !program.exists() {
            let step = Step::begin(&format!("etcd of Debian {suite}"));
            match fetch(suite, &cache, &tree) {
                Ok(version) => step.done(&version),
                // One of them is worth measuring without the other.
                Err(error) => {
                    step.done(&format!("left out: {error:#}"));
                    continue;
                }
            }
        }
        found.push(program);
    }
    if found.is_empty() {
        bail!("there is no etcd to compare with; --against PROGRAM names one");
    }
    Ok(found)
}

fn fetch(suite: &str, cache: &Path, tree: &Path) -> Result<String> {
    let cache = cache.join(suite);
    let apt = Apt::new(&cache, &Mirror::find(Path::new("/"))?, suite)?.with_expired_lists()?;
    apt.update()?;
    let package: BTreeSet<(String, String)> = apt
        .resolve(&[PACKAGE.to_owned()], &[])?
        .into_iter()
        .filter(|(name, _)| name == PACKAGE)
        .collect();
    let locked = apt.download(&package)?;
    let [one] = locked.as_slice() else {
        bail!("Debian {suite} has no package {PACKAGE}");
    };
    let file = apt
        .cached(&one.name, &one.version)
        .with_context(|| format!("{PACKAGE} {} was not downloaded", one.version))?;
    let part = tree.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part).with_context(|| format!("cannot remove {}", part.display()))?;
    }
    let status = Command::new("dpkg")
        .arg("-x")
        .args([&file, &part])
        .status()
        .context("cannot run dpkg")?;
    if !status.success() {
        bail!("dpkg -x {}: {status}", file.display());
    }
    fs::rename(&part, tree).with_context(|| format!("cannot make {}", tree.display()))?;
    Ok(one.version.clone())
}
