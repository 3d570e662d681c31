//! One scenario on one machine, in the thread of the caller: machines die with the thread that started them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::matcher::mismatch;
use super::{Action, ReleaseSpec, Scenario, Seen, Start, Step, Turn, Workshop};
use crate::accel::Accel;
use crate::cloud_config;
use crate::lab::{Lab, Release};
use crate::machine::{self, Machine, Spec, Tie};
use crate::node::{BootMode, Node};
use crate::process::{self, Output};
use crate::replay;
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
    /// How often the emulator may still lose a timer.
    pub(super) revivals: u32,
    pub(super) random: Random,
    /// The last status that was waited for.
    pub(super) status: Value,
}

/// A machine that has not become healthy by then never will.
const BOOT_LIMIT: Duration = Duration::from_secs(400);

/// More than that is no chance any more.
const REVIVALS: u32 = 2;

/// Why a scenario failed.
#[derive(Debug)]
pub struct Failure {
    /// The error, and below it the machine's last words.
    pub text: String,
    /// The turn of a repeat that it failed in.
    pub turn: Option<Turn>,
}

/// Tells a scenario. When it fails, all that the machine said is in the directory that the error names; `again` keeps what
/// was left there when it failed before.
pub fn run(stage: &Stage<'_>, scenario: &Scenario, again: bool) -> Result<(), Failure> {
    let mut last_words = String::new();
    let result = run_in_lab(stage, scenario, again, &mut last_words);
    result.map_err(|error| Failure {
        text: format!("{error:#}{last_words}"),
        turn: error.downcast_ref().cloned(),
    })
}

fn run_in_lab(
    stage: &Stage<'_>,
    scenario: &Scenario,
    again: bool,
    last_words: &mut String,
) -> Result<()> {
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
        revivals: REVIVALS,
        random: Random::seeded()?,
        status: Value::Null,
    };
    let result = run.tell();
    let result = match result {
        Ok(()) => fs::remove_dir_all(&dir).context("cannot clean up"),
        Err(error) if crate::interrupt::requested() => Err(error),
        Err(error) => {
            let kept = run.keep_evidence(again);
            *last_words = run.last_words();
            Err(error.context(format!(
                "see {} (console, screenshot, journal)",
                kept.display()
            )))
        }
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
            let machine = self.boot_to_save(&dir)?;
            // It is healthy before its boot has ended, and what is half started would be so in each copy.
            let _ = machine.ssh().run(
                "timeout 120 systemctl is-system-running --wait",
                Duration::from_secs(150),
            );
            self.forget_saved(release)?;
            saved::save(machine, &saved)?;
            let _ = fs::remove_dir_all(&dir);
        }
        Ok(saved)
    }

    /// A new machine in `dir`, healthy.
    fn boot_to_save(&self, dir: &Path) -> Result<Machine> {
        let stage = self.stage;
        let mut again = stage.accel == Accel::Tcg;
        loop {
            let node = self.create(dir, BootMode::Uefi, Datasource::default(), &[])?;
            let user_data = cloud_config::default(&cloud_config::Defaults {
                hostname: "test",
                public_key: &stage.key.public,
                channel: "stable",
                server: &cloud_config::omaha_url(1),
            });
            machine::provision(dir, &node, stage.key, &user_data)?;
            let mut machine = Machine::start(
                dir,
                node,
                &self.releases[0],
                stage.accel,
                stage.key,
                Tie::Ours,
            )?;
            match machine.wait_healthy(BOOT_LIMIT, &|_| ()) {
                Ok(_) => return Ok(machine),
                Err(_) if again && machine.lost_timer() => {
                    self.say_lost_timer("it boots anew");
                    again = false;
                }
                Err(error) => {
                    return Err(error.context("the machine that was to be saved did not boot"));
                }
            }
        }
    }

    fn say_lost_timer(&self, what_now: &str) {
        eprintln!(
            "! {:<24} the emulator lost a timer of the guest, whose kernel hangs; {what_now}",
            self.scenario.name
        );
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
        machine.wait_ssh(Duration::from_secs(120), &|_| ())?;
        let mut tries = 3;
        loop {
            tries -= 1;
            // A connection that broke tells nothing about the machine.
            match self.prepare(&machine) {
                Ok(output) if output.exit == 0 => break,
                Err(_) | Ok(Output { exit: 255, .. }) if tries > 0 => machine.ssh().close(),
                Ok(output) => bail!(
                    "cannot prepare the restored machine: {}",
                    output.stderr.trim()
                ),
                Err(error) => return Err(error.context("cannot prepare the restored machine")),
            }
        }
        self.power = Some(Power::On(Box::new(machine)));
        Ok(())
    }

    /// Tells a restored machine what it cannot know.
    fn prepare(&self, machine: &Machine) -> Result<Output> {
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
        machine.ssh().run(&script, Duration::from_secs(60))
    }

    /// Power-on, until healthy or `limit`.
    pub(super) fn boot(&mut self, limit: Duration) -> Result<()> {
        self.power_on()?;
        loop {
            match self.on()?.wait_healthy(limit, &|_| ()) {
                Err(_) if self.revive()? => {}
                result => return result.map(drop),
            }
        }
    }

    /// Switches a guest off and on whose kernel hangs because the emulator lost a timer of it, and says so. For the
    /// guest it is a power cut more. A recording would begin anew with the power, so its guest stays as it is.
    pub(super) fn revive(&mut self) -> Result<bool> {
        let emulated = self.stage.accel == Accel::Tcg;
        let recorded = self.dir.join(replay::WRITES).exists();
        if !emulated || recorded || self.revivals == 0 || !self.on()?.lost_timer() {
            return Ok(false);
        }
        self.revivals -= 1;
        self.say_lost_timer("it is switched off and on");
        self.kill()?;
        self.power_on()?;
        Ok(true)
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

    /// Steps, again and again. No accelerator makes its limit longer: it is what people have time for.
    pub(super) fn repeat(&mut self, step: &Step) -> Result<()> {
        let Action::Repeat {
            times,
            seed,
            seen,
            steps,
        } = &step.action
        else {
            bail!("this is no repeat")
        };
        let end = Instant::now() + step.timeout;
        let mut count = 0;
        if let Some(seed) = *seed {
            self.random = Random(seed);
        }
        for turn in 1..=*times {
            if Instant::now() > end {
                bail!(
                    "{} turns of {times} took {} s",
                    turn - 1,
                    step.timeout.as_secs()
                );
            }
            // Each turn has a seed of its own, small enough for TOML.
            let seed = if turn == 1 && seed.is_some() {
                self.random.0
            } else {
                self.random.next() >> 33
            };
            self.random = Random(seed);
            self.steps(steps).with_context(|| Turn {
                line: step.line,
                number: turn,
                times: *times,
                seed,
            })?;
            if let Some(seen) = seen
                && mismatch(&seen.status, &self.status).is_none()
            {
                count += 1;
            }
        }
        if let Some(Seen {
            status,
            times: wanted,
        }) = seen
        {
            (self.stage.say)(&format!(
                "{}: {count} turns of {times} led to {status}",
                self.scenario.name
            ));
            if count < *wanted {
                bail!("{count} turns of {times} led to {status}, expected {wanted}");
            }
        }
        Ok(())
    }

    /// Console, screen and journal, in the directory that it gives back.
    fn keep_evidence(&mut self, again: bool) -> PathBuf {
        if let Some(Power::On(machine)) = &mut self.power {
            if let Ok(mut qmp) = machine.qmp() {
                let _ = qmp.screenshot(&self.dir.join("screenshot.png"));
            }
            // The shared connection may be what failed.
            machine.ssh().close();
            let journal = "orlop status; systemctl --failed --no-pager; systemctl list-jobs --no-pager; \
                           sudo cat /var/lib/update-engine/state.json; \
                           journalctl --no-pager -o short-precise -n 4000";
            if let Ok(output) = machine.ssh().run(journal, Duration::from_secs(120)) {
                let _ = fs::write(self.dir.join("journal.txt"), output.stdout + &output.stderr);
            }
        }
        let failed = self.stage.lab.root().join("failed");
        let first = failed.join(&self.scenario.name);
        let second = failed.join(format!("{}.again", self.scenario.name));
        let _ = fs::remove_dir_all(&second);
        let kept = if again { second } else { first };
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
        kept
    }

    /// Where nothing is kept but what was printed, these lines are all there is: the end of what failed units and those
    /// that scenarios are about said, else of the console.
    fn last_words(&mut self) -> String {
        const LINES: usize = 15;
        let journal = "sudo journalctl -q --no-pager -o short-precise -n 15 -u update-engine -u 'update-writer@*' \
                       -u 'extensions@*' -u 'cloudinit*' -u 'health@*' -u boot-failed \
                       $(systemctl --failed --plain --no-legend --no-pager | awk '{print \"-u\", $1}')";
        let said = match &mut self.power {
            Some(Power::On(machine)) => machine.ssh().run(journal, Duration::from_secs(60)).ok(),
            _ => None,
        };
        let said = said.map(|output| output.stdout).unwrap_or_default();
        let (who, said) = match said.is_empty() {
            false => ("journal", said),
            true => ("console", machine::console_tail(&self.dir, LINES)),
        };
        if said.is_empty() {
            return String::new();
        }
        let mut text = format!("\nthe last of its {who}:");
        for line in process::tail(&said, LINES).lines() {
            text += "\n| ";
            text.extend(line.chars().take(240));
        }
        text
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
