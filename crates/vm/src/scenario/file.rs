//! Reading a scenario. What is wrong is said as `file:line:column: what`.

use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use serde_json::Value;
use toml::Spanned;

use crate::seed::Datasource;

use super::{Action, Expect, Place, ReleaseSpec, Scenario, Seen, Start, Step};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScenario {
    about: String,
    #[serde(rename = "release")]
    releases: Spanned<Vec<RawRelease>>,
    start: Spanned<String>,
    #[serde(default)]
    datasource: Datasource,
    #[serde(default = "default_memory")]
    memory: u32,
    cloud_config: Option<String>,
    #[serde(default)]
    server: bool,
    #[serde(default)]
    qemu: Vec<String>,
    cmdline: Option<Spanned<Vec<String>>>,
    #[serde(rename = "step", default)]
    steps: Vec<Spanned<RawStep>>,
}

fn default_memory() -> u32 {
    1024
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRelease {
    version: String,
    #[serde(default)]
    cmdline: Vec<String>,
    overlay: Option<PathBuf>,
    minimum_source_version: Option<String>,
    epoch: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    ssh: Option<String>,
    host: Option<String>,
    wait_status: Option<Value>,
    publish: Option<RawPublish>,
    kill: Option<bool>,
    boot: Option<bool>,
    flip_bit: Option<RawFlip>,
    save: Option<String>,
    restore: Option<String>,
    record: Option<bool>,
    replay: Option<RawReplay>,
    pause: Option<String>,
    repeat: Option<RawRepeat>,
    #[serde(default)]
    expect: Option<RawExpect>,
    #[serde(default)]
    retry: bool,
    timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPublish {
    version: String,
    #[serde(default = "default_channel")]
    channel: String,
}

fn default_channel() -> String {
    "stable".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReplay {
    bootable: Vec<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFlip {
    partition: String,
    offset: Option<u64>,
    text: Option<String>,
    release: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRepeat {
    times: u32,
    seed: Option<u64>,
    seen: Option<RawSeen>,
    steps: Vec<Spanned<RawStep>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSeen {
    status: Value,
    times: u32,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawExpect {
    #[serde(default)]
    exit: Exit,
    #[serde(default)]
    stdout: OneOrMore,
    #[serde(default)]
    stdout_not: OneOrMore,
    #[serde(default)]
    stderr: OneOrMore,
    json: Option<Value>,
}

/// A number, or "any" where the connection may break before the command's own code arrives.
#[derive(Deserialize)]
#[serde(untagged)]
enum Exit {
    Code(i32),
    Any(Any),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Any {
    Any,
}

impl Default for Exit {
    fn default() -> Self {
        Self::Code(0)
    }
}

impl From<Exit> for Option<i32> {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Code(code) => Some(code),
            Exit::Any(Any::Any) => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl Default for OneOrMore {
    fn default() -> Self {
        Self::More(Vec::new())
    }
}

impl From<OneOrMore> for Vec<String> {
    fn from(value: OneOrMore) -> Self {
        match value {
            OneOrMore::One(text) => vec![text],
            OneOrMore::More(texts) => texts,
        }
    }
}

/// Reads a scenario's file.
pub fn load(path: &Path) -> Result<Scenario> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(path, &text)
}

/// Reads a scenario's text.
pub fn parse(path: &Path, text: &str) -> Result<Scenario> {
    let place = Placer { path, text };
    let raw: RawScenario = toml::from_str(text)
        .map_err(|error| place.error(error.span().unwrap_or(0..0), error.message()))?;
    let start = match raw.start.get_ref().as_str() {
        "uefi" => Start::Uefi,
        "direct" => Start::Direct,
        "saved" => Start::Saved,
        "off" => Start::Off,
        other => {
            let what =
                format!("{other:?} is no way to start; there are uefi, direct, saved and off");
            return Err(place.error(raw.start.span(), &what));
        }
    };
    if raw.releases.get_ref().is_empty() {
        return Err(place.error(
            raw.releases.span(),
            "a scenario needs a release to start from",
        ));
    }
    if let Some(cmdline) = &raw.cmdline
        && start != Start::Direct
    {
        return Err(place.error(
            cmdline.span(),
            "the firmware takes the release's command line; only direct starts with another",
        ));
    }
    let releases = raw.releases.into_inner().into_iter();
    Ok(Scenario {
        file: path.to_owned(),
        name: path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        about: raw.about,
        releases: releases
            .map(|raw| ReleaseSpec {
                version: raw.version,
                cmdline: raw.cmdline,
                overlay: raw.overlay,
                minimum_source_version: raw.minimum_source_version,
                epoch: raw.epoch,
            })
            .collect(),
        start,
        memory_mib: raw.memory,
        cloud_config: raw.cloud_config,
        server: raw.server,
        datasource: raw.datasource,
        qemu: raw.qemu,
        cmdline: raw.cmdline.map(Spanned::into_inner).unwrap_or_default(),
        steps: raw
            .steps
            .into_iter()
            .map(|step| place.step(step))
            .collect::<Result<_>>()?,
    })
}

struct Placer<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Placer<'_> {
    fn line_column(&self, offset: usize) -> (usize, usize) {
        let before = &self.text[..offset.min(self.text.len())];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    }

    fn error(&self, span: Range<usize>, what: &str) -> anyhow::Error {
        let (line, column) = self.line_column(span.start);
        anyhow!("{}:{line}:{column}: {}", self.path.display(), what.trim())
    }

    fn step(&self, raw: Spanned<RawStep>) -> Result<Step> {
        let span = raw.span();
        let raw = raw.into_inner();
        let (line, column) = self.line_column(span.start);
        let timeout = match &raw.timeout {
            Some(text) => Some(duration(text).map_err(|what| self.error(span.clone(), &what))?),
            None => None,
        };
        let action = self.action(raw, &span)?;
        if timeout.is_some() && !takes_timeout(&action) {
            return Err(self.error(span, "this step ends by itself; it takes no timeout"));
        }
        let timeout = timeout.unwrap_or_else(|| default_timeout(&action));
        Ok(Step {
            line,
            column,
            action,
            timeout,
        })
    }

    fn action(&self, raw: RawStep, span: &Range<usize>) -> Result<Action> {
        let expect = raw.expect.map(|raw| Expect {
            exit: raw.exit.into(),
            stdout: raw.stdout.into(),
            stdout_not: raw.stdout_not.into(),
            stderr: raw.stderr.into(),
            json: raw.json,
        });
        let takes_expect = raw.ssh.is_some() || raw.host.is_some();
        if expect.is_some() && !takes_expect {
            return Err(self.error(
                span.clone(),
                "only ssh and host have something to expect of",
            ));
        }
        if raw.retry && !takes_expect {
            return Err(self.error(span.clone(), "only ssh and host can be tried again"));
        }
        let expect = expect.unwrap_or_default();
        let mut found: Vec<Action> = Vec::new();
        if let Some(script) = raw.ssh {
            found.push(Action::Ssh {
                script,
                expect: expect.clone(),
                retry: raw.retry,
            });
        }
        if let Some(script) = raw.host {
            found.push(Action::Host {
                script,
                expect,
                retry: raw.retry,
            });
        }
        found.extend(raw.wait_status.map(Action::WaitStatus));
        found.extend(raw.publish.map(|raw| Action::Publish {
            version: raw.version,
            channel: raw.channel,
        }));
        found.extend(raw.kill.map(|_| Action::Kill));
        found.extend(raw.boot.map(|_| Action::Boot));
        if let Some(flip) = raw.flip_bit {
            let at = match (flip.offset, flip.text) {
                (Some(offset), None) => Place::Offset(offset),
                (None, Some(text)) => Place::Text {
                    text,
                    release: flip.release,
                },
                _ => return Err(self.error(span.clone(), "flip_bit needs either offset or text")),
            };
            found.push(Action::FlipBit {
                partition: flip.partition,
                at,
            });
        }
        found.extend(raw.save.map(Action::Save));
        found.extend(raw.restore.map(Action::Restore));
        found.extend(raw.record.map(|_| Action::Record));
        found.extend(raw.replay.map(|raw| Action::Replay {
            bootable: raw.bootable,
        }));
        if let Some(text) = raw.pause {
            found.push(Action::Pause(
                range(&text).map_err(|what| self.error(span.clone(), &what))?,
            ));
        }
        if let Some(raw) = raw.repeat {
            let steps = raw
                .steps
                .into_iter()
                .map(|step| self.step(step))
                .collect::<Result<_>>()?;
            found.push(Action::Repeat {
                times: raw.times,
                seed: raw.seed,
                seen: raw.seen.map(|raw| Seen {
                    status: raw.status,
                    times: raw.times,
                }),
                steps,
            });
        }
        match (found.pop(), found.is_empty()) {
            (Some(action), true) => Ok(action),
            (None, _) => Err(self.error(span.clone(), "this step does nothing")),
            (Some(_), false) => {
                Err(self.error(span.clone(), "this step does two things; make it two steps"))
            }
        }
    }
}

fn takes_timeout(action: &Action) -> bool {
    matches!(
        action,
        Action::Ssh { .. }
            | Action::Host { .. }
            | Action::WaitStatus(_)
            | Action::Replay { .. }
            | Action::Repeat { .. }
    )
}

/// Of those that take none, about how long they last.
fn default_timeout(action: &Action) -> Duration {
    match action {
        // A boot in emulation on a busy machine.
        Action::WaitStatus(_) => Duration::from_secs(300),
        Action::Repeat { .. } => Duration::from_secs(3600),
        Action::Replay { .. } => Duration::from_secs(600),
        Action::Pause(range) => *range.end(),
        Action::Kill | Action::Boot | Action::FlipBit { .. } => Duration::from_secs(10),
        _ => Duration::from_secs(60),
    }
}

/// `30s`, `2m`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; write 500ms, 30s or 2m");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        _ => Err(wrong()),
    }
}

/// `5s`, or `0s..8s` for a random time.
fn range(text: &str) -> Result<RangeInclusive<Duration>, String> {
    match text.split_once("..") {
        None => duration(text).map(|time| time..=time),
        Some((from, to)) => Ok(duration(from)?..=duration(to)?),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Turn;
    use super::*;

    fn check(text: &str) -> String {
        match parse(Path::new("tests/vm/x.toml"), text) {
            Ok(scenario) => format!("{:#?}", scenario.steps),
            Err(error) => error.to_string(),
        }
    }

    const HEAD: &str = "about = \"a\"\nstart = \"saved\"\nrelease = [{ version = \"1\" }]\n";

    #[test]
    fn a_whole_scenario() {
        let text = format!(
            "{HEAD}[[step]]\nssh = \"id\"\nexpect = {{ exit = 1, stdout = \"core\", json = {{ a = {{ b = 1 }} }} }}\n\
             [[step]]\nrepeat = {{ times = 2, seen = {{ status = {{ version = \"1\" }}, times = 1 }}, steps = [ {{ pause = \"0s..8s\" }}, {{ kill = true }} ] }}\ntimeout = \"2m\"\n"
        );
        let mut scenario = parse(Path::new("x.toml"), &text).unwrap();
        assert_eq!(scenario.name, "x");
        assert_eq!(scenario.releases[0].version, "1");
        let Action::Ssh { expect, .. } = &scenario.steps[0].action else {
            panic!()
        };
        assert_eq!((expect.exit, expect.stdout[0].as_str()), (Some(1), "core"));
        assert_eq!(expect.json, Some(serde_json::json!({"a": {"b": 1}})));
        assert_eq!(scenario.steps[0].line, 4);
        assert_eq!(scenario.length(), Duration::from_secs(60 + 2 * (8 + 10)));
        let Action::Repeat {
            times: 2, steps, ..
        } = &scenario.steps[1].action
        else {
            panic!()
        };
        assert_eq!(
            steps[0].action,
            Action::Pause(Duration::ZERO..=Duration::from_secs(8))
        );
        assert_eq!(steps[1].action, Action::Kill);
        assert_eq!(scenario.steps[1].timeout, Duration::from_secs(120));
        scenario.replay(&Turn {
            line: scenario.steps[1].line,
            number: 2,
            times: 2,
            seed: 7,
        });
        assert!(matches!(
            scenario.steps[1].action,
            Action::Repeat {
                times: 1,
                seed: Some(7),
                seen: None,
                ..
            }
        ));
        scenario.repeat(200);
        assert!(matches!(
            scenario.steps[1].action,
            Action::Repeat { times: 200, .. }
        ));
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let cases = [
            (
                "about = 1\n".to_owned(),
                "tests/vm/x.toml:1:9: invalid type: integer `1`, expected a string",
            ),
            (
                HEAD.replace("saved", "cold"),
                "tests/vm/x.toml:2:9: \"cold\" is no way to start; there are uefi, direct, saved and off",
            ),
            (
                format!("{HEAD}cmdline = [\"a\"]\n"),
                "tests/vm/x.toml:4:11: the firmware takes the release's command line; only direct starts with another",
            ),
            (
                format!("{HEAD}[[step]]\nretry = false\n"),
                "tests/vm/x.toml:4:1: this step does nothing",
            ),
            (
                format!("{HEAD}[[step]]\nssh = \"a\"\nhost = \"b\"\n"),
                "tests/vm/x.toml:4:1: this step does two things; make it two steps",
            ),
            (
                format!("{HEAD}[[step]]\npause = \"soon\"\n"),
                "tests/vm/x.toml:4:1: \"soon\" is no time; write 500ms, 30s or 2m",
            ),
            (
                format!("{HEAD}[[step]]\nsave = \"a\"\ntimeout = \"2m\"\n"),
                "tests/vm/x.toml:4:1: this step ends by itself; it takes no timeout",
            ),
            (
                format!("{HEAD}[[step]]\nkill = true\nexpect = {{}}\n"),
                "tests/vm/x.toml:4:1: only ssh and host have something to expect of",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(check(&text), expected);
        }
        let error = check(&format!("{HEAD}[[step]]\nshh = \"a\"\n"));
        assert!(
            error.starts_with("tests/vm/x.toml:5:1: unknown field `shh`"),
            "{error}"
        );
    }
}
