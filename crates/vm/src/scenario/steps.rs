//! What each step of a scenario does.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::matcher::mismatch;
use super::run::{Power, Run};
use super::{Action, Expect, Place, Step};
use crate::image;
use crate::interrupt;
use crate::lab::Release;
use crate::machine;
use crate::plan::DISK;
use crate::process::{self, Output};
use crate::replay;
use crate::saved;

/// A step in a few words, for the progress display.
pub(super) fn describe(action: &Action) -> String {
    let first_line = |text: &str| {
        text.lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(60)
            .collect::<String>()
    };
    match action {
        Action::Ssh { script, .. } => format!("guest: {}", first_line(script)),
        Action::Host { script, .. } => format!("host: {}", first_line(script)),
        Action::WaitStatus(status) => format!("waits for {status}"),
        Action::Publish { version, channel } => format!("publishes {version} to {channel}"),
        Action::Kill => "power cut".into(),
        Action::Boot => "power on".into(),
        Action::FlipBit { partition, .. } => format!("flips a bit of {partition}"),
        Action::Save(name) => format!("saves the machine as {name}"),
        Action::Restore(name) => format!("goes back to {name}"),
        Action::Record => "records what is written from now on".into(),
        Action::Replay { .. } => "judges the disk at every flush".into(),
        Action::Pause(range) if range.start() == range.end() => {
            format!("waits {:?}", range.start())
        }
        Action::Pause(range) => format!("waits {:?} to {:?}", range.start(), range.end()),
        Action::Repeat { times, .. } => format!("{times} times:"),
    }
}

/// Between two tries of a command.
const RETRY: Duration = Duration::from_millis(500);

impl Run<'_> {
    pub(super) fn step(&mut self, step: &Step) -> Result<()> {
        let limit = step.timeout.saturating_mul(self.stage.accel.patience());
        match &step.action {
            Action::Ssh {
                script,
                expect,
                retry,
            } => self.ssh(script, expect, *retry, limit),
            Action::Host {
                script,
                expect,
                retry,
            } => self.host(script, expect, *retry, limit),
            Action::WaitStatus(expected) => self.wait_status(expected, limit),
            Action::Publish { version, channel } => self.publish(version, channel),
            Action::Kill => self.kill(),
            // Only power: a machine that must not become healthy by itself is a story as well.
            Action::Boot => self.power_on(),
            Action::FlipBit { partition, at } => self.flip_bit(partition, at),
            Action::Save(name) => self.save(name),
            Action::Restore(name) => {
                let saved = self.dir.join(format!("saved-{name}"));
                self.restore_from(&saved)
            }
            Action::Record => {
                self.must_be_off()?;
                replay::record(&self.dir)
            }
            Action::Replay { bootable } => self.replay(bootable, limit),
            Action::Pause(range) => {
                let time = self.random.within(range);
                interrupt::sleep(time)
            }
            Action::Repeat { .. } => self.repeat(step),
        }
    }

    fn ssh(&mut self, script: &str, expect: &Expect, retry: bool, limit: Duration) -> Result<()> {
        let mut end = Instant::now() + limit;
        let mut last = None;
        loop {
            let machine = self.on()?;
            machine.check_alive()?;
            let left = end.saturating_duration_since(Instant::now());
            // A try that has no time to succeed would only hide what was wrong with those before.
            if let Some(error) = last.take_if(|_| left < Duration::from_secs(2)) {
                return Err(error);
            }
            match machine
                .ssh()
                .run(script, left)
                .and_then(|output| met(expect, &output))
            {
                Err(error) if retry => last = Some(error),
                result => return result,
            }
            machine.ssh().close();
            if self.revive()? {
                end = Instant::now() + limit;
            }
            interrupt::sleep(RETRY)?;
        }
    }

    fn host(&mut self, script: &str, expect: &Expect, retry: bool, limit: Duration) -> Result<()> {
        let mut command = Command::new("sh");
        command
            .args(["-ec", script])
            .current_dir(self.stage.lab.repo());
        // Not its path: a build may have put another program there since.
        command.env("ORLOP", format!("/proc/{}/exe", std::process::id()));
        command.env("NODE_DIR", &self.dir);
        command.env("RELEASES", self.stage.lab.releases());
        if let Some(server) = &self.server {
            command
                .env("SERVER", server.url())
                .env("SERVER_DATA", &server.data);
        }
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match process::run(&mut command, left).and_then(|output| met(expect, &output)) {
                Err(_) if retry && left > RETRY => interrupt::sleep(RETRY)?,
                result => return result,
            }
        }
    }

    fn wait_status(&mut self, expected: &Value, limit: Duration) -> Result<()> {
        let mut end = Instant::now() + limit;
        let mut last = anyhow!("the guest never answered");
        while Instant::now() < end {
            let machine = self.on()?;
            machine.check_alive()?;
            let ssh = machine.ssh();
            match ssh.answers().then(|| machine::status(&ssh, 0)) {
                Some(Ok(status)) => match mismatch(expected, &status) {
                    None => {
                        self.status = status;
                        return Ok(());
                    }
                    Some(difference) => last = anyhow!("{difference}; its whole status: {status}"),
                },
                Some(Err(error)) => {
                    last = error;
                    // The machine may have gone down under the shared connection.
                    ssh.close();
                }
                None => {
                    if self.revive()? {
                        end = Instant::now() + limit;
                    }
                }
            }
            interrupt::sleep(Duration::from_millis(500))?;
        }
        Err(last.context(format!("waited {} s for {expected}", limit.as_secs())))
    }

    fn publish(&mut self, version: &str, channel: &str) -> Result<()> {
        let release = self.release(version)?;
        let server = self
            .server
            .as_ref()
            .context("the scenario has no server; say server = true")?;
        self.stage
            .workshop
            .publish(release, channel, &server.url(), &server.data)
    }

    fn release(&self, version: &str) -> Result<&Release> {
        self.releases
            .iter()
            .find(|release| release.version == version)
            .with_context(|| format!("the scenario has no release {version}"))
    }

    pub(super) fn kill(&mut self) -> Result<()> {
        match self.power.take() {
            Some(Power::On(machine)) => {
                self.power = Some(Power::Off(machine.kill()?));
                Ok(())
            }
            _ => bail!("the machine is already off"),
        }
    }

    fn flip_bit(&mut self, partition: &str, at: &Place) -> Result<()> {
        self.must_be_off()?;
        let disk = self.dir.join(DISK);
        let start = image::partition_start(&image::read_start(&disk, 34)?, partition)?;
        let offset = match at {
            Place::Offset(offset) => *offset,
            Place::Text { text, release } => {
                let usr = match release {
                    Some(version) => self.release(version)?.usr(),
                    None => self.releases[0].usr(),
                };
                let bytes = std::fs::read(&usr)
                    .with_context(|| format!("cannot read {}", usr.display()))?;
                let found = bytes
                    .windows(text.len())
                    .position(|window| window == text.as_bytes());
                found.with_context(|| format!("{text:?} is not in {}", usr.display()))? as u64
            }
        };
        image::flip_bit(&disk, start + offset)
    }

    fn must_be_off(&self) -> Result<()> {
        match self.power {
            Some(Power::Off(_)) => Ok(()),
            _ => bail!("the machine must be off; kill it first"),
        }
    }

    fn replay(&mut self, bootable: &[Vec<String>], limit: Duration) -> Result<()> {
        self.must_be_off()?;
        let replayed = replay::replay(&self.dir, &self.releases, limit)?;
        let looks = replayed.looks;
        (self.stage.say)(&format!(
            "{} entries, {} MB, {} flushes judged; {} times the EFI system partition, {} hash trees",
            replayed.entries,
            replayed.bytes / 1_000_000,
            looks.flushes,
            looks.esp,
            looks.trees
        ));
        if replayed.bootable != bootable {
            bail!(
                "what could be started was {:?}, expected {bootable:?}",
                replayed.bootable
            );
        }
        Ok(())
    }

    fn save(&mut self, name: &str) -> Result<()> {
        let Some(Power::On(machine)) = self.power.take() else {
            bail!("the machine is off")
        };
        let saved = self.dir.join(format!("saved-{name}"));
        saved::save(*machine, &saved)?;
        self.restore_from(&saved)
    }
}

/// Whether a command gave what it must.
fn met(expect: &Expect, output: &Output) -> Result<()> {
    let said = || {
        format!(
            "stdout: {}\nstderr: {}",
            process::tail(&output.stdout, 20),
            process::tail(&output.stderr, 20)
        )
    };
    if let Some(expected) = expect.exit.filter(|expected| *expected != output.exit) {
        bail!("exit code {}, expected {expected}\n{}", output.exit, said());
    }
    for (stream, text, parts) in [
        ("stdout", &output.stdout, &expect.stdout),
        ("stderr", &output.stderr, &expect.stderr),
    ] {
        if let Some(part) = parts.iter().find(|part| !text.contains(part.as_str())) {
            bail!("{stream} lacks {part:?}\n{}", said());
        }
    }
    if let Some(part) = expect
        .stdout_not
        .iter()
        .find(|part| output.stdout.contains(part.as_str()))
    {
        bail!("stdout has {part:?}, which it must not\n{}", said());
    }
    if let Some(expected) = &expect.json {
        let json: Value = serde_json::from_str(&output.stdout)
            .with_context(|| format!("stdout is not JSON\n{}", said()))?;
        if let Some(difference) = mismatch(expected, &json) {
            bail!("{difference}\n{}", said());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_judged_by_all_that_was_expected() {
        let output = Output {
            exit: 0,
            stdout: r#"{"version":"2"}"#.into(),
            stderr: "note".into(),
        };
        let check = |expect: Expect| match met(&expect, &output) {
            Ok(()) => "met".to_owned(),
            Err(error) => error
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned(),
        };
        assert_eq!(check(Expect::default()), "met");
        assert_eq!(
            check(Expect {
                exit: Some(1),
                ..Expect::default()
            }),
            "exit code 0, expected 1"
        );
        assert_eq!(
            check(Expect {
                stderr: vec!["oops".into()],
                ..Expect::default()
            }),
            "stderr lacks \"oops\""
        );
        assert_eq!(
            check(Expect {
                stdout_not: vec!["version".into()],
                ..Expect::default()
            }),
            "stdout has \"version\", which it must not"
        );
        assert_eq!(
            check(Expect {
                json: Some(serde_json::json!({"version": "3"})),
                ..Expect::default()
            }),
            ".version is \"2\", expected \"3\""
        );
    }
}
