//! Orlop against its peer: the same QEMU with the same flags, the same wishes in each one's own words, one boot after the
//! other and in turn, so that a busy workstation is as bad for the one as for the other.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::accel::Accel;
use crate::bench::{idle_mib, median};
use crate::cloud_config;
use crate::interrupt;
use crate::lab::{Lab, Release};
use crate::machine::{self, Machine, Spec, Tie};
use crate::node::{BootMode, Node};
use crate::ssh::Key;

/// Who boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// Us.
    Orlop,
    /// The plain Debian cloud image.
    Debian,
}

/// Which boot of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Moment {
    /// From a new disk: it grows, keys are made, the cloud-config is applied.
    First,
    /// After an orderly power-off.
    Later,
}

/// One boot.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// Power-on until a command ran by SSH.
    pub ssh_seconds: f64,
    /// Power-on until the system calls itself ready: `orlop status` healthy; all of systemd's first jobs done.
    pub ready_seconds: f64,
    /// MemTotal − MemAvailable once it has been ready for a while.
    pub idle_mib: f64,
    /// Of the same moment, what kernel and programs cannot give back, as [`crate::bench`] counts it.
    pub held_mib: f64,
    /// systemd's word for how it went: `running`, or `degraded` when units failed.
    pub state: String,
}

/// All boots of one kind.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// With or without firmware.
    pub boot: BootMode,
    /// Which boot.
    pub moment: Moment,
    /// Who.
    pub system: System,
    /// Each.
    pub samples: Vec<Sample>,
}

impl Row {
    /// Median seconds to SSH.
    pub fn ssh_seconds(&self) -> f64 {
        median(self.samples.iter().map(|sample| sample.ssh_seconds))
    }

    /// Median seconds until ready.
    pub fn ready_seconds(&self) -> f64 {
        median(self.samples.iter().map(|sample| sample.ready_seconds))
    }

    /// Median memory in MiB.
    pub fn idle_mib(&self) -> f64 {
        median(self.samples.iter().map(|sample| sample.idle_mib))
    }

    /// Median memory that cannot be given back, in MiB.
    pub fn held_mib(&self) -> f64 {
        median(self.samples.iter().map(|sample| sample.held_mib))
    }
}

/// What is compared.
pub struct Compare<'a> {
    /// The lab.
    pub lab: &'a Lab,
    /// Us.
    pub orlop: Release,
    /// The peer's directory, which holds what a release's holds.
    pub debian: Release,
    /// How guest code runs.
    pub accel: Accel,
    /// The lab's key.
    pub key: &'a Key,
    /// Boots of each kind.
    pub runs: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
}

const LIMIT: Duration = Duration::from_secs(600);
/// How long a ready system may calm down before its memory is read.
const CALM: Duration = Duration::from_secs(20);

impl Compare<'_> {
    /// Measures all. `say` hears of each boot as it ends, so that an interrupted measuring has told something.
    pub fn run(&self, say: &dyn Fn(&str)) -> Result<Vec<Row>> {
        let dir = self
            .lab
            .root()
            .join("run")
            .join(format!("compare-{}", std::process::id()));
        let result = self.rows(&dir, say);
        let _ = fs::remove_dir_all(&dir);
        result
    }

    fn rows(&self, dir: &Path, say: &dyn Fn(&str)) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for boot in [BootMode::Uefi, BootMode::Direct] {
            for moment in [Moment::First, Moment::Later] {
                for system in [System::Orlop, System::Debian] {
                    let samples = vec![];
                    rows.push(Row {
                        boot,
                        moment,
                        system,
                        samples,
                    });
                }
            }
        }
        for run in 1..=self.runs {
            for boot in [BootMode::Uefi, BootMode::Direct] {
                for system in [System::Orlop, System::Debian] {
                    let both = self
                        .boot_twice(dir, boot, system)
                        .with_context(|| format!("{system:?}, {boot}"))?;
                    for (moment, sample) in both {
                        say(&format!(
                            "{run} of {}: {system:?}, {boot}, {moment:?} boot: SSH {:.1} s, ready {:.1} s, {:.0} MiB",
                            self.runs, sample.ssh_seconds, sample.ready_seconds, sample.idle_mib
                        ));
                        let row = rows.iter_mut().find(|row| {
                            (row.boot, row.moment, row.system) == (boot, moment, system)
                        });
                        row.context("no row for a sample")?.samples.push(sample);
                    }
                }
            }
        }
        Ok(rows)
    }

    fn boot_twice(
        &self,
        dir: &Path,
        boot: BootMode,
        system: System,
    ) -> Result<[(Moment, Sample); 2]> {
        let node = self.new_node(dir, boot, system)?;
        let mut machine = self.start(dir, node.clone(), system)?;
        let first = measure(&mut machine, system).with_context(|| last_words(&machine))?;
        power_off(machine)?;
        let mut machine = self.start(dir, node, system)?;
        let later = measure(&mut machine, system).with_context(|| last_words(&machine))?;
        machine.kill()?;
        Ok([(Moment::First, first), (Moment::Later, later)])
    }

    fn release(&self, system: System) -> &Release {
        match system {
            System::Orlop => &self.orlop,
            System::Debian => &self.debian,
        }
    }

    fn new_node(&self, dir: &Path, boot: BootMode, system: System) -> Result<Node> {
        let spec = Spec {
            name: "bench".into(),
            release: self.release(system).clone(),
            boot,
            memory_mib: self.memory_mib,
            disk_gib: 8,
            datasource: crate::seed::Datasource::default(),
            extra: vec![],
        };
        let node = machine::create(dir, &spec)?;
        let user_data = match system {
            System::Orlop => orlop_user_data(&self.key.public),
            System::Debian => debian_user_data(&self.key.public),
        };
        machine::provision(dir, &node, self.key, &user_data)?;
        Ok(node)
    }

    fn start(&self, dir: &Path, node: Node, system: System) -> Result<Machine> {
        Machine::start(
            dir,
            node,
            self.release(system),
            self.accel,
            self.key,
            Tie::Ours,
        )
    }
}

fn measure(machine: &mut Machine, system: System) -> Result<Sample> {
    let started = machine.started;
    let end = started + LIMIT;
    loop {
        machine.wait_ssh(end.saturating_duration_since(Instant::now()), &|_| ())?;
        let answer = machine.ssh().run("true", Duration::from_secs(60));
        if answer.is_ok_and(|output| output.exit == 0) {
            break;
        }
        machine.check_alive()?;
        if Instant::now() > end {
            bail!("no SSH session after {} s", LIMIT.as_secs());
        }
        interrupt::sleep(Duration::from_millis(100))?;
    }
    let ssh_seconds = started.elapsed().as_secs_f64();
    let mut ready_seconds = 0.0;
    if system == System::Orlop {
        machine.wait_healthy(end.saturating_duration_since(Instant::now()), &|_| ())?;
        ready_seconds = started.elapsed().as_secs_f64();
    }
    let state = settled(machine, end)?;
    if system == System::Debian {
        ready_seconds = started.elapsed().as_secs_f64();
    }
    interrupt::sleep(CALM)?;
    let output = machine
        .ssh()
        .run("cat /proc/meminfo", Duration::from_secs(60))?;
    Ok(Sample {
        ssh_seconds,
        ready_seconds,
        idle_mib: unavailable_mib(&output.stdout).context("no /proc/meminfo from the guest")?,
        held_mib: idle_mib(&output.stdout).context("no /proc/meminfo from the guest")?,
        state,
    })
}

fn unavailable_mib(meminfo: &str) -> Option<f64> {
    let field = |name: &str| -> Option<f64> {
        let line = meminfo.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some((field("MemTotal:")? - field("MemAvailable:")?) / 1024.0)
}

/// Waits until no job of the boot is left.
fn settled(machine: &mut Machine, end: Instant) -> Result<String> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("the boot did not end within {} s", LIMIT.as_secs());
        }
        // Its exit code tells `degraded` from `running`, and that is no failure of ours.
        let output = machine
            .ssh()
            .run("systemctl is-system-running --wait", left)?;
        let state = output.stdout.trim();
        if ["running", "degraded"].contains(&state) {
            return Ok(state.to_owned());
        }
        machine.check_alive()?;
        interrupt::sleep(Duration::from_millis(200))?;
    }
}

fn power_off(mut machine: Machine) -> Result<()> {
    // The session ends with the machine, in whatever way.
    let _ = machine
        .ssh()
        .run("sudo systemctl poweroff", Duration::from_secs(60));
    let end = Instant::now() + Duration::from_secs(180);
    while machine.check_alive().is_ok() {
        if Instant::now() > end {
            bail!("it does not power off; {}", last_words(&machine));
        }
        interrupt::sleep(Duration::from_millis(100))?;
    }
    machine.kill()?;
    Ok(())
}

fn last_words(machine: &Machine) -> String {
    format!(
        "its console ends with:\n{}",
        machine::console_tail(&machine.dir, 10)
    )
}

const FILE: &str = "/etc/bench.conf";
const UNIT: &str = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n";

fn indented(text: &str, by: usize) -> String {
    let space = " ".repeat(by);
    text.lines()
        .map(|line| format!("{space}{line}\n"))
        .collect()
}

/// A host name, a key, a file, a unit.
fn orlop_user_data(public_key: &str) -> String {
    let update = cloud_config::default(&cloud_config::Defaults {
        hostname: "bench",
        public_key,
        channel: "stable",
        server: &cloud_config::omaha_url(1),
    });
    // The default ends inside `coreos:`.
    format!(
        "{update}  units:\n    - name: bench.service\n      enable: true\n      command: start\n      content: |\n{}\
         write_files:\n  - path: {FILE}\n    content: |\n      written = true\n",
        indented(UNIT, 8)
    )
}

/// The same in cloud-init's words, which has none for units.
fn debian_user_data(public_key: &str) -> String {
    format!(
        "#cloud-config\nhostname: bench\n\
         users:\n  - name: core\n    shell: /bin/bash\n    sudo: ALL=(ALL) NOPASSWD:ALL\n    \
         ssh_authorized_keys:\n      - {public_key}\n\
         write_files:\n  - path: {FILE}\n    content: |\n      written = true\n  \
         - path: /etc/systemd/system/bench.service\n    content: |\n{}\
         runcmd:\n  - [systemctl, enable, --now, bench.service]\n",
        indented(UNIT, 6)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_is_not_available() {
        let text = "MemTotal: 2048 kB\nMemFree: 1 kB\nMemAvailable: 1024 kB\n";
        assert_eq!(unavailable_mib(text), Some(1.0));
        assert_eq!(unavailable_mib("MemTotal: 2048 kB\n"), None);
    }

    #[test]
    fn both_are_asked_for_the_same() {
        insta::assert_snapshot!(orlop_user_data("ssh-ed25519 AAAA lab"), @r"
        #cloud-config
        hostname: bench
        ssh_authorized_keys:
          - ssh-ed25519 AAAA lab
        coreos:
          update:
            group: stable
            server: http://10.0.2.2:1/v1/update/
            reboot-strategy: reboot
            interval: 30s
          units:
            - name: bench.service
              enable: true
              command: start
              content: |
                [Service]
                Type=oneshot
                RemainAfterExit=yes
                ExecStart=/bin/true
                [Install]
                WantedBy=multi-user.target
        write_files:
          - path: /etc/bench.conf
            content: |
              written = true
        ");
        insta::assert_snapshot!(debian_user_data("ssh-ed25519 AAAA lab"), @r"
        #cloud-config
        hostname: bench
        users:
          - name: core
            shell: /bin/bash
            sudo: ALL=(ALL) NOPASSWD:ALL
            ssh_authorized_keys:
              - ssh-ed25519 AAAA lab
        write_files:
          - path: /etc/bench.conf
            content: |
              written = true
          - path: /etc/systemd/system/bench.service
            content: |
              [Service]
              Type=oneshot
              RemainAfterExit=yes
              ExecStart=/bin/true
              [Install]
              WantedBy=multi-user.target
        runcmd:
          - [systemctl, enable, --now, bench.service]
        ");
    }
}
