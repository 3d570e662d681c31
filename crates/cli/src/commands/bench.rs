//! `orlop bench`

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;
use vm::accel::Accel;
use vm::bench::{Bench, Series, Way};
use vm::interrupt;
use vm::ssh::Key;

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
}

#[derive(Serialize)]
struct Figures {
    version: String,
    accel: &'static str,
    series: Vec<Series>,
}

pub fn run(command: &Command) -> Result<Exit> {
    let Command::Boot {
        runs,
        version,
        memory,
        against,
        output,
        into,
    } = command;
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
