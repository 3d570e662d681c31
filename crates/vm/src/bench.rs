//! How long a machine takes to become healthy, and what it needs while idle.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::accel::Accel;
use crate::cloud_config;
use crate::interrupt;
use crate::lab::{Lab, Release};
use crate::machine::{self, Machine, Spec, Tie};
use crate::node::{BootMode, Node};
use crate::saved;
use crate::ssh::Key;

/// The ways to power on that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Firmware, boot loader, UKI; a second boot, the state partition exists.
    Uefi,
    /// Kernel and initrd handed over.
    Direct,
    /// From a saved machine.
    Saved,
}

/// One measured power-on.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// Power-on until the SSH server answers.
    pub ssh_seconds: f64,
    /// Power-on until `orlop status` says healthy.
    pub healthy_seconds: f64,
    /// What kernel and programs hold and cannot give back, ten seconds later.
    pub idle_mib: f64,
}

/// All power-ons of one way.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    /// How.
    pub way: Way,
    /// Each.
    pub samples: Vec<Sample>,
    /// The medians.
    pub median: Sample,
}

/// What is measured.
pub struct Bench<'a> {
    /// The lab.
    pub lab: &'a Lab,
    /// What boots.
    pub release: Release,
    /// How guest code runs.
    pub accel: Accel,
    /// The lab's key.
    pub key: &'a Key,
    /// Power-ons of each way.
    pub runs: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
}

const LIMIT: Duration = Duration::from_secs(240);

impl Bench<'_> {
    /// Measures one way.
    pub fn series(&self, way: Way) -> Result<Series> {
        let dir = self
            .lab
            .root()
            .join("run")
            .join(format!("bench-{}", std::process::id()));
        let result = self.samples(way, &dir);
        let _ = fs::remove_dir_all(&dir);
        let samples = result?;
        let median = Sample {
            ssh_seconds: median(samples.iter().map(|sample| sample.ssh_seconds)),
            healthy_seconds: median(samples.iter().map(|sample| sample.healthy_seconds)),
            idle_mib: median(samples.iter().map(|sample| sample.idle_mib)),
        };
        Ok(Series {
            way,
            samples,
            median,
        })
    }

    fn samples(&self, way: Way, dir: &Path) -> Result<Vec<Sample>> {
        let boot = if way == Way::Direct {
            BootMode::Direct
        } else {
            BootMode::Uefi
        };
        let node = self.new_node(dir, boot)?;
        // The first boot makes the state partition; what people wait for each day is the others.
        let mut machine = self.start(dir, node.clone())?;
        machine.wait_healthy(LIMIT, &|_| ())?;
        let saved = dir.join("saved");
        if way == Way::Saved {
            saved::save(machine, &saved)?;
        } else {
            machine
                .ssh()
                .run("sudo systemctl poweroff", Duration::from_secs(20))
                .ok();
            interrupt::sleep(Duration::from_secs(8))?;
            machine.kill()?;
        }
        let mut samples = Vec::new();
        for _ in 0..self.runs {
            let machine = match way {
                Way::Saved => saved::restore(
                    &saved,
                    &dir.join("copy"),
                    &self.release,
                    self.accel,
                    self.key,
                    &self.user_data(),
                )?,
                Way::Uefi | Way::Direct => self.start(dir, node.clone())?,
            };
            samples.push(measure(machine)?);
        }
        Ok(samples)
    }

    fn new_node(&self, dir: &Path, boot: BootMode) -> Result<Node> {
        let spec = Spec {
            name: "bench".into(),
            release: self.release.clone(),
            boot,
            memory_mib: self.memory_mib,
            disk_gib: 8,
            datasource: crate::seed::Datasource::default(),
            extra: vec![],
        };
        let node = machine::create(dir, &spec)?;
        machine::provision(dir, &node, self.key, &self.user_data())?;
        Ok(node)
    }

    fn user_data(&self) -> String {
        cloud_config::default(&cloud_config::Defaults {
            hostname: "bench",
            public_key: &self.key.public,
            channel: "stable",
            server: &cloud_config::omaha_url(1),
        })
    }

    fn start(&self, dir: &Path, node: Node) -> Result<Machine> {
        Machine::start(dir, node, &self.release, self.accel, self.key, Tie::Ours)
    }
}

fn measure(mut machine: Machine) -> Result<Sample> {
    let since = |machine: &Machine| Instant::now().duration_since(machine.started).as_secs_f64();
    machine.wait_ssh(LIMIT, &|_| ())?;
    let ssh_seconds = since(&machine);
    machine.wait_healthy(LIMIT, &|_| ())?;
    let healthy_seconds = since(&machine);
    interrupt::sleep(Duration::from_secs(10))?;
    let output = machine
        .ssh()
        .run("cat /proc/meminfo", Duration::from_secs(20))?;
    let idle_mib = idle_mib(&output.stdout).context("no /proc/meminfo from the guest")?;
    Ok(Sample {
        ssh_seconds,
        healthy_seconds,
        idle_mib,
    })
}

pub(crate) fn idle_mib(meminfo: &str) -> Option<f64> {
    let field = |name: &str| -> Option<f64> {
        let line = meminfo.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    // Not MemAvailable: that also subtracts reserves which nobody uses. Shmem is counted in Cached and cannot go.
    let reclaimable =
        field("MemFree:")? + field("Buffers:")? + field("Cached:")? + field("SReclaimable:")?;
    Some((field("MemTotal:")? + field("Shmem:")? - reclaimable) / 1024.0)
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
        assert_eq!(
            idle_mib(
                "MemTotal: 4096 kB\nMemFree: 1024 kB\nBuffers: 0 kB\nCached: 2048 kB\nShmem: 1024 kB\nSReclaimable: 1024 kB\n"
            ),
            Some(1.0)
        );
    }
}
