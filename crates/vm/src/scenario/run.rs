//! One scenario on one machine, in the thread of the caller: machines die with the thread that started them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{ReleaseSpec, Scenario, Start, Step, Workshop};
use crate::accel::Accel;
use crate::cloud_config;
use crate::lab::{Lab, Release};
use crate::machine::{self, Machine, Spec, Tie};
use crate::node::{BootMode, Node};
use crate::saved;
use crate::seed::Datasource;
use crate::server::{Server, ServerSpec};
use crate::ssh::Key;

/// What all scenarios share.
pub struct Stage<'a> {
    /// Where releases, saved machines and what failed are kept.
    pub lab: &'a Lab,
    /// How machines run.
    pub accel: Accel,
    /// The key of all machines.
    pub key: &'a Key,
    /// Builds and publishes.
    pub workshop: &'a dyn Workshop,
    /// Hears each step as it begins.
    pub say: &'a (dyn Fn(&str) + Sync),
}

/// The machine of a scenario, on or off.
pub(super) enum Power {
    On(Box<Machine>),
    Off(Node),
}

/// A scenario while it runs.
pub(super) struct Run<'a> {
    pub(super) stage: &'a Stage<'a>,
    pub(super) scenario: &'a Scenario,
    pub(super) dir: PathBuf,
    pub(super) releases: Vec<Release>,
    pub(super) server: Option<Server>,
    pub(super) power: Option<Power>,
    pub(super) random: Random,
}

/// A machine that has not become healthy by then never will.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// Tells a scenario. When it fails, the machine's last words are in the directory that the error names.
pub fn run(stage: &Stage<'_>, scenario: &Scenario) -> Result<()> {
    let dir = stage.lab.root().join("run").join(&scenario.name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut run = Run {
        stage,
        scenario,
        dir: dir.clone(),
        releases: Vec::new(),
        server: None,
        power: None,
        random: Random::seeded()?,
    };
    let result = run.tell();
    let result = match result {
        Ok(()) => fs::remove_dir_all(&dir).context("cannot clean up"),
        Err(error) if crate::interrupt::requested() => Err(error),
        Err(error) => Err(run.keep_evidence(error)),
    };
    drop(run.power.take());
    if let Some(server) = run.server.take() {
        server.stop();
    }
    result
}

impl Run<'_> {
    fn tell(&mut self) -> Result<()> {
        for spec in &self.scenario.releases {
            let release = self.build(spec)?;
            self.releases.push(release);
        }
        if self.scenario.server {
            self.server = Some(self.start_server()?);
        }
        self.start().context("at the start")?;
        self.steps(&self.scenario.steps)
    }

    fn build(&self, spec: &ReleaseSpec) -> Result<Release> {
        let overlay = self.scenario.overlay(spec);
        self.stage
            .workshop
            .build(spec, overlay.as_deref())
            .with_context(|| format!("cannot build release {}", spec.version))
    }

    fn start_server(&self) -> Result<Server> {
        let port = ports::free()?;
        let spec = ServerSpec {
            program: self.stage.workshop.update_server()?,
            data: self.dir.join("server"),
            keys: self.stage.lab.keys(),
            port,
            public_url: format!("http://{}:{port}", cloud_config::WORKSTATION),
        };
        Server::start(&spec, true)
    }

    /// A text with `${dir}`, where the scenario is, and `${key}` filled in.
    fn filled_in(&self, text: &str) -> Result<String> {
        let dir = self.scenario.file.parent().unwrap_or(Path::new("."));
        let dir = fs::canonicalize(dir).with_context(|| dir.display().to_string())?;
        let text = text.replace("${dir}", &dir.display().to_string());
        Ok(text.replace("${key}", &self.stage.key.public))
    }

    /// The cloud-config with `${server}`, `${key}` and `${name}` filled in.
    fn user_data(&self) -> String {
        // Port 1 refuses at once: without a server of its own a scenario's machine must not reach another's.
        let omaha = cloud_config::omaha_url(self.server.as_ref().map_or(1, |server| server.port));
        match &self.scenario.cloud_config {
            Some(text) => text
                .replace("${server}", &omaha)
                .replace("${key}", &self.stage.key.public)
                .replace("${name}", "test"),
            None => cloud_config::default(&cloud_config::Defaults {
                hostname: "test",
                public_key: &self.stage.key.public,
                channel: "stable",
                server: &omaha,
            }),
        }
    }

    fn start(&mut self) -> Result<()> {
        let user_data = self.user_data();
        match self.scenario.start {
            Start::Saved => {
                let saved = self.saved_machine()?;
                self.restore_from(&saved)
            }
            Start::Uefi | Start::Direct | Start::Off => {
                let mode = if self.scenario.start == Start::Direct {
                    BootMode::Direct
                } else {
                    BootMode::Uefi
                };
                let filled_in = |texts: &[String]| -> Result<Vec<String>> {
                    texts.iter().map(|text| self.filled_in(text)).collect()
                };
                let qemu = filled_in(&self.scenario.qemu)?;
                let mut node = self.create(&self.dir, mode, self.scenario.datasource, &qemu)?;
                node.cmdline = filled_in(&self.scenario.cmdline)?;
                node.save(&self.dir)?;
                machine::provision(&self.dir, &node, self.stage.key, &user_data)?;
                self.power = Some(Power::Off(node));
                if self.scenario.start != Start::Off {
                    self.boot(BOOT_LIMIT)?;
                }
                Ok(())
            }
        }
    }

    fn create(
        &self,
        dir: &Path,
        boot: BootMode,
        datasource: Datasource,
        extra: &[String],
    ) -> Result<Node> {
        machine::create(
            dir,
            &Spec {
                name: "test".into(),
                release: self.releases[0].clone(),
                boot,
                memory_mib: self.scenario.memory_mib,
                disk_gib: 8,
                datasource,
                extra: extra.to_vec(),
            },
        )
    }

    /// The machine that scenarios with `start = "saved"` are copies of, booted by the first that asks.
    fn saved_machine(&self) -> Result<PathBuf> {
        let release = &self.releases[0];
        let name = format!("{}-{}M", release.identity()?, self.scenario.memory_mib);
        let saved = self.stage.lab.cache().join("saved").join(&name);
        let _lock = self
            .stage
            .lab
            .lock_wait(&format!("saved-{}", release.version))?;
        if !saved::exists(&saved) {
            (self.stage.say)(&format!(
                "boots release {} once, to save it",
                release.version
            ));
            let dir = self
                .stage
                .lab
                .root()
                .join("run")
                .join(format!("saved-{name}"));
            let node = self.create(&dir, BootMode::Uefi, Datasource::default(), &[])?;
            let user_data = cloud_config::default(&cloud_config::Defaults {
                hostname: "test",
                public_key: &self.stage.key.public,
                channel: "stable",
                server: &cloud_config::omaha_url(1),
            });
            machine::provision(&dir, &node, self.stage.key, &user_data)?;
            let mut machine = Machine::start(
                &dir,
                node,
                release,
                self.stage.accel,
                self.stage.key,
                Tie::Ours,
            )?;
            machine.wait_healthy(BOOT_LIMIT, &|_| ())?;
            self.forget_saved(release)?;
            saved::save(machine, &saved)?;
            let _ = fs::remove_dir_all(&dir);
        }
        Ok(saved)
    }

    /// Removes what was saved of earlier builds of this version.
    fn forget_saved(&self, release: &Release) -> Result<()> {
        let all = self.stage.lab.cache().join("saved");
        fs::create_dir_all(&all).with_context(|| format!("cannot make {}", all.display()))?;
        let identity = release.identity()?;
        for entry in fs::read_dir(&all)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&format!("{}-", release.version)) && !name.starts_with(&identity) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Goes on with a copy of a saved machine, told the time and this scenario's update-server.
    pub(super) fn restore_from(&mut self, saved: &Path) -> Result<()> {
        drop(self.power.take());
        let stage = self.stage;
        // From its next boot on, it has the scenario's own cloud-config.
        let user_data = self.user_data();
        let mut machine = saved::restore(
            saved,
            &self.dir,
            &self.releases[0],
            stage.accel,
            stage.key,
            &user_data,
        )?;
        machine.wait_ssh(Duration::from_secs(30), &|_| ())?;
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_secs();
        let mut script = format!("sudo date -s @{now} >/dev/null");
        if let Some(server) = &self.server {
            let url = cloud_config::omaha_url(server.port);
            script += &format!(
                " && sudo sed -i 's|^SERVER=.*|SERVER={url}|' /etc/coreos/update.conf && sudo systemctl restart update-engine"
            );
        }
        let output = machine.ssh().run(&script, Duration::from_secs(60))?;
        if output.exit != 0 {
            bail!(
                "cannot prepare the restored machine: {}",
                output.stderr.trim()
            );
        }
        self.power = Some(Power::On(Box::new(machine)));
        Ok(())
    }

    /// Power-on, until healthy or `limit`.
    pub(super) fn boot(&mut self, limit: Duration) -> Result<()> {
        self.power_on()?;
        self.on()?.wait_healthy(limit, &|_| ())?;
        Ok(())
    }

    /// Power-on of a machine that is off.
    pub(super) fn power_on(&mut self) -> Result<()> {
        let Some(Power::Off(node)) = &self.power else {
            bail!("the machine is already on")
        };
        let stage = self.stage;
        let machine = Machine::start(
            &self.dir,
            node.clone(),
            &self.releases[0],
            stage.accel,
            stage.key,
            Tie::Ours,
        )?;
        self.power = Some(Power::On(Box::new(machine)));
        Ok(())
    }

    pub(super) fn on(&mut self) -> Result<&mut Machine> {
        match &mut self.power {
            Some(Power::On(machine)) => Ok(machine),
            _ => bail!("the machine is off"),
        }
    }

    fn steps(&mut self, steps: &[Step]) -> Result<()> {
        for step in steps {
            let begin = Instant::now();
            let place = format!(
                "{}:{}:{}",
                self.scenario.file.display(),
                step.line,
                step.column
            );
            (self.stage.say)(&format!(
                "{}: {}",
                self.scenario.name,
                super::steps::describe(&step.action)
            ));
            self.step(step).with_context(|| {
                format!("{place} (after {:.1} s)", begin.elapsed().as_secs_f64())
            })?;
        }
        Ok(())
    }

    pub(super) fn repeat(&mut self, times: u32, seed: Option<u64>, steps: &[Step]) -> Result<()> {
        if let Some(seed) = seed {
            self.random = Random(seed);
        }
        for turn in 1..=times {
            // Each turn has a seed of its own, small enough for TOML.
            let seed = if turn == 1 && seed.is_some() {
                self.random.0
            } else {
                self.random.next() >> 33
            };
            self.random = Random(seed);
            self.steps(steps).with_context(|| {
                format!("turn {turn} of {times}; replay it with times = 1, seed = {seed}")
            })?;
        }
        Ok(())
    }

    /// Console, screen and journal, where the error says.
    fn keep_evidence(&mut self, error: anyhow::Error) -> anyhow::Error {
        if let Some(Power::On(machine)) = &mut self.power {
            if let Ok(mut qmp) = machine.qmp() {
                let _ = qmp.screenshot(&self.dir.join("screenshot.png"));
            }
            let journal =
                "orlop status; systemctl --failed --no-pager; journalctl -b --no-pager -n 400";
            if let Ok(output) = machine.ssh().run(journal, Duration::from_secs(40)) {
                let _ = fs::write(self.dir.join("journal.txt"), output.stdout + &output.stderr);
            }
        }
        let kept = self
            .stage
            .lab
            .root()
            .join("failed")
            .join(&self.scenario.name);
        let _ = fs::remove_dir_all(&kept);
        let _ = fs::create_dir_all(&kept);
        for file in [
            "console.log",
            "screenshot.png",
            "journal.txt",
            "qemu.log",
            "node.json",
            "server/server.log",
        ] {
            let to = kept.join(Path::new(file).file_name().unwrap_or_default());
            let _ = fs::copy(self.dir.join(file), to);
        }
        error.context(format!(
            "see {} (console, screenshot, journal)",
            kept.display()
        ))
    }
}

/// A sequence of random numbers that its seed repeats (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn seeded() -> Result<Self> {
        let mut seed = [0u8; 4];
        getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
        Ok(Self(u64::from(u32::from_le_bytes(seed))))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A time in a range.
    pub(super) fn within(&mut self, range: &std::ops::RangeInclusive<Duration>) -> Duration {
        let width = range.end().saturating_sub(*range.start());
        let micros = u64::try_from(width.as_micros()).unwrap_or(u64::MAX - 1);
        *range.start() + Duration::from_micros(self.next() % (micros + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_times_and_they_stay_in_the_range() {
        let range = Duration::from_secs(1)..=Duration::from_secs(3);
        let times = |seed| {
            let mut random = Random(seed);
            (0..50).map(|_| random.within(&range)).collect::<Vec<_>>()
        };
        assert_eq!(times(7), times(7));
        assert_ne!(times(7), times(8));
        assert!(times(7).iter().all(|time| range.contains(time)));
    }
}
