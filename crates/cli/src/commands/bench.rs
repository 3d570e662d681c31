//! `orlop bench`

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::Serialize;
use vm::accel::Accel;
use vm::bench::{Bench, Series, Way};
use vm::interrupt;
use vm::ssh::Key;

use super::bench_config;
use super::bench_store;
use super::compare::{self, Against, Format, Wishes};
use super::{lab, releases};
use crate::exit::Exit;
use crate::output;
use crate::progress::Step;

/// Measure
#[derive(clap::Subcommand)]
pub enum Command {
    /// Power-on until healthy, through the firmware, directly and from a saved machine; and memory while idle
    Boot {
        /// Power-ons of each kind
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
        /// The release; without it the newest
        #[arg(long)]
        version: Option<String>,
        /// Memory in MiB
        #[arg(long, default_value_t = 1024)]
        memory: u32,
        /// Boot this one in turn with Orlop, with the same flags, and compare
        #[arg(long)]
        against: Option<Against>,
        /// How the result is printed
        #[arg(short, long = "output", value_enum, default_value_t)]
        output: Format,
        /// With --against: also write the figures into this page, between its two marks
        #[arg(long, value_name = "FILE", requires = "against")]
        into: Option<PathBuf>,
    },
    /// How long a typical cloud-config takes to check and to apply, in a directory
    CloudConfig {
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
        /// Measure this in the same run
        #[arg(long)]
        against: Option<bench_config::Against>,
        #[command(flatten)]
        output: output::Output,
    },
    /// The store, against Debian's etcd in the same run: puts, ranges, transactions, watchers, many keys, three members
    Store(bench_store::Args),
    /// Update checks that an update-server answers, with hosts that speak the real protocol
    Checks {
        /// How many hosts the server knows
        #[arg(long, default_value_t = 1_000_000)]
        hosts: u64,
        /// Checks per second; 0: as many as it answers
        #[arg(long, default_value_t = 5000)]
        rate: u64,
        #[arg(long, default_value_t = 20)]
        seconds: u64,
        #[arg(long, default_value_t = 64)]
        connections: u64,
        /// Keep the database here and use it again
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        #[command(flatten)]
        output: output::Output,
    },
}

/// The update-server measures itself: it knows its database.
fn checks(options: &[(&str, u64)], data: Option<&PathBuf>, json: bool) -> Result<Exit> {
    let mut command = std::process::Command::new(super::serve::program()?);
    command.arg("bench");
    for (name, value) in options {
        command.arg(name).arg(value.to_string());
    }
    if let Some(data) = data {
        command.arg("--data").arg(data);
    }
    if json {
        command.arg("--json");
    }
    Err(command.exec()).context("cannot start the update-server")
}

#[derive(Serialize)]
struct Figures {
    version: String,
    accel: &'static str,
    series: Vec<Series>,
}

pub fn run(command: &Command) -> Result<Exit> {
    let (runs, version, memory, against, output, into) = match command {
        Command::Boot {
            runs,
            version,
            memory,
            against,
            output,
            into,
        } => (runs, version, memory, against, output, into),
        Command::CloudConfig {
            runs,
            against,
            output,
        } => return bench_config::run(*runs, *against, output.output),
        Command::Store(args) => return bench_store::run(args),
        Command::Checks {
            hosts,
            rate,
            seconds,
            connections,
            data,
            output,
        } => {
            let options = [
                ("--hosts", *hosts),
                ("--rate", *rate),
                ("--seconds", *seconds),
                ("--connections", *connections),
            ];
            let json = output.output == output::Format::Json;
            return checks(&options, data.as_ref(), json);
        }
    };
    let lab = lab()?;
    if against.is_some() {
        return compare::run(Wishes {
            release: releases::find(&lab, version.as_deref())?,
            runs: *runs,
            memory_mib: *memory,
            format: *output,
            into: into.as_deref(),
        });
    }
    interrupt::catch()?;
    let accel = Accel::detect(&lab.cache())?;
    let key = Key::ensure(&lab)?;
    let release = releases::find(&lab, version.as_deref())?;
    let version = release.version.clone();
    let bench = Bench {
        lab: &lab,
        release,
        accel,
        key: &key,
        runs: *runs,
        memory_mib: *memory,
    };
    let mut series = Vec::new();
    for (way, name) in [
        (Way::Uefi, "uefi"),
        (Way::Direct, "direct"),
        (Way::Saved, "saved"),
    ] {
        let step = Step::begin(name);
        let measured = bench.series(way)?;
        step.done(&format!(
            "{:.1} s to healthy",
            measured.median.healthy_seconds
        ));
        series.push(measured);
    }
    let figures = Figures {
        version,
        accel: accel.name(),
        series,
    };
    let format = match output {
        Format::Json => output::Format::Json,
        Format::Text | Format::Markdown => output::Format::Text,
    };
    output::print(format, &figures, |figures| {
        let row = |series: &Series| {
            let median = &series.median;
            vec![
                format!("{:?}", series.way).to_lowercase(),
                series.samples.len().to_string(),
                format!("{:.1} s", median.ssh_seconds),
                format!("{:.1} s", median.healthy_seconds),
                format!("{:.0} MiB", median.idle_mib),
            ]
        };
        let rows: Vec<_> = figures.series.iter().map(row).collect();
        output::table(
            &["POWER-ON", "RUNS", "SSH", "HEALTHY", "IDLE MEMORY"],
            &rows,
        ) + &format!("release {}, {}, medians\n", figures.version, figures.accel)
    })?;
    Ok(Exit::Ok)
}
