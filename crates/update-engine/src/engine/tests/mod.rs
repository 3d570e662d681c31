//! The state machine as transcripts: each line is an event, answered (indented) by the new phase
//! and the actions. A test replays the events and compares.
//!
//! `found a=1*+3-0 b=2+0-3` is a disk whose slot a runs version 1 with three tries left, and whose
//! slot b holds an exhausted version 2. `reboot 2` starts the engine again, in version 2, with
//! what it remembered and what failed boots left; `restart 2` in the same boot, already good.
//! `reboot 1 volatile` forgets everything, as with `state=volatile`; `reboot 1 epoch=1` is of that epoch.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use release::dsse::Envelope;
use release::keys::{SigningKey, VerifyingKey};
use release::status::{FailedRelease, SlotStatus};
use release::{Compression, File, Manifest, Payload, Sha256, Usr, Version};

macro_rules! check {
    ($prelude:expr, @$transcript:literal) => {
        insta::assert_snapshot!(replay($prelude, $transcript), @$transcript)
    };
}

mod crashes;
mod failures;
mod later;
mod limits;
mod refusals;
mod stories;
mod ways;
mod wishes;
mod writes;

use super::*;
use crate::memory::{Code, Memory, Report};

fn root_hash(version: &str) -> Sha256 {
    Sha256::of(format!("usr {version}"))
}

fn way(name: &str) -> Way {
    match name {
        "blocks" => Way::Blocks(File {
            name: "usr.index".parse().unwrap(),
            size: 5,
            sha256: Sha256::of("index"),
        }),
        "whole" => Way::Whole,
        other => panic!("{other}"),
    }
}

/// `3`, or `3 arch=arm64 min=2 epoch=1 build=other ways=blocks,whole`.
fn offer(words: &[&str]) -> Box<Offer> {
    let option = |key: &str| {
        words
            .iter()
            .find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
    };
    let file = |name: &str, size| File {
        name: name.parse().unwrap(),
        size,
        sha256: Sha256::of(name),
    };
    let manifest = Manifest {
        format: Manifest::FORMAT,
        version: words[0].parse().unwrap(),
        epoch: option("epoch").map_or(0, |e| e.parse().unwrap()),
        minimum_source_version: option("min").map(|v| v.parse().unwrap()),
        architecture: option("arch").unwrap_or("x86-64").into(),
        created: option("build").map_or(0, |b| b.len() as u64),
        usr: Usr {
            root_hash: root_hash(words[0]),
            size: 200 * 4096,
            payload: Payload {
                file: file("usr.erofs.zst", 90),
                compression: Compression::Zstd,
            },
            index: None,
        },
        uki: file("uki.efi", 10),
        kernel: None,
        deltas: Vec::new(),
        extensions: Vec::new(),
        sbom: None,
    };
    let key = SigningKey::from_bytes(&[7; 32]);
    let envelope = Envelope::sign(&manifest, &key).unwrap().to_json().unwrap();
    let keys: [VerifyingKey; 1] = [key.verifying_key()];
    let manifest = Envelope::verify(&envelope, &keys).unwrap();
    Box::new(Offer {
        manifest,
        envelope: String::from_utf8(envelope).unwrap(),
        bases: vec!["http://server/".into()],
        allow_expired: false,
        ways: option("ways").map_or(vec![Way::Whole], |ways| ways.split(',').map(way).collect()),
    })
}

/// `a=1*+3-0`, `b=-`, `b=2` (no boot entry).
fn slot(text: &str) -> SlotStatus {
    let (slot, rest) = text.split_once('=').unwrap();
    let (release, counters) = rest.split_once('+').unwrap_or((rest, ""));
    let booted = release.ends_with('*');
    let version = release.trim_end_matches('*');
    let (left, done) = counters.split_once('-').unzip();
    SlotStatus {
        slot: slot.parse().unwrap(),
        booted,
        // The writer does not know it.
        version: None,
        root_hash: (version != "-").then(|| root_hash(version)),
        tries_left: left.map(|n| n.parse().unwrap()),
        tries_done: done.map(|n| n.parse().unwrap()),
    }
}

/// `attempts=2:3` (three lines of version 2), `failure=2:no_sshd`.
fn evidence(words: &[&str]) -> Evidence {
    let mut evidence = Evidence::default();
    for word in words {
        if let Some((version, n)) = word
            .strip_prefix("attempts=")
            .and_then(|w| w.split_once(':'))
        {
            let attempt = Attempt {
                usrhash: root_hash(version),
            };
            evidence
                .attempts
                .extend(std::iter::repeat_n(attempt, n.parse().unwrap()));
        }
        if let Some((version, reason)) = word
            .strip_prefix("failure=")
            .and_then(|w| w.split_once(':'))
        {
            let reason = reason.replace('_', " ");
            evidence.failure = Some(Failure {
                usrhash: root_hash(version),
                reason,
            });
        }
    }
    evidence
}

fn event(line: &str, last: &[&str]) -> Event {
    let words: Vec<&str> = line.split(' ').collect();
    let number = || words[1].parse::<usize>().unwrap();
    match words[0] {
        "found" if words[1] == "error" => Event::Found(Err(words[2..].join(" "))),
        "found" => {
            let slots = words[1..]
                .iter()
                .filter(|w| w.starts_with("a=") || w.starts_with("b="));
            Event::Found(Ok(slots.map(|w| slot(w)).collect()))
        }
        "good" => Event::Good,
        "timer" => Event::Timer,
        "ask" => Event::Asked(Ask {
            install: words.contains(&"install"),
            force: words.contains(&"force"),
            download_only: words.contains(&"download-only"),
            apply: words.contains(&"apply"),
            from: words
                .iter()
                .find_map(|w| w.strip_prefix("from=").map(str::to_owned)),
            allow_expired: false,
        }),
        "rollback" => Event::AskedRollback,
        "clear" => Event::ClearFailed,
        "reset" => Event::Reset,
        "nothing" => Event::NothingNew,
        "offer" => Event::Offered(offer(&words[1..])),
        "progress" => Event::Progress(number() as u64),
        "downloaded" => Event::Downloaded,
        "staged" => Event::Staged(words[1].parse().unwrap()),
        "rolled-back" => Event::RolledBack {
            slot: words[1].parse().unwrap(),
            version: None,
        },
        "told" => Event::Told(Ok(number())),
        "looked" => Event::Looked,
        "not-told" => Event::Told(Err("server away".into())),
        "closed" => Event::WayClosed(Trouble {
            code: Code::Write,
            message: words[1..].join(" "),
            version: Some(offer(last).manifest.version.clone()),
            release: Some(offer(last).manifest.id()),
        }),
        "trouble" => {
            let code = match words[1] {
                "server" => Code::Server,
                "download" => Code::Download,
                "write" => Code::Write,
                "epoch" => Code::Epoch,
                other => panic!("{other}"),
            };
            let about = last.first().map(|_| offer(last).manifest);
            Event::Trouble(Trouble {
                code,
                message: words[2..].join(" "),
                version: about.as_ref().map(|m| m.version.clone()),
                release: about.as_ref().map(|m| m.id()),
            })
        }
        other => panic!("what is {other}?"),
    }
}

fn show_phase(engine: &Engine) -> String {
    match &engine.phase {
        Phase::Starting => "starting".into(),
        Phase::Proving => "proving".into(),
        Phase::Idle {
            failures: 0,
            first: true,
        } => "idle (first)".into(),
        Phase::Idle { failures: 0, .. } => "idle".into(),
        Phase::Idle { failures, .. } => format!("idle after {failures} failures"),
        Phase::Checking { ask, .. } => format!("checking {}", show_ask(ask)),
        Phase::Downloading { offer, done, .. } => {
            format!("downloading {} {done}", offer.manifest.version)
        }
        Phase::Writing { offer, done, .. } => format!("writing {} {done}", offer.manifest.version),
        Phase::RollingBack { .. } => "rolling back".into(),
    }
}

fn show_ask(ask: &Ask) -> &'static str {
    match (ask.install, ask.force) {
        (true, true) => "to install, forced",
        (true, false) if ask.download_only => "to download",
        (true, false) => "to install",
        (false, _) => "to look",
    }
}

fn show_action(action: &Action) -> String {
    match action {
        Action::Download(offer) if offer.ways.len() > 1 || offer.way() != &Way::Whole => {
            format!("Download {} by {}", offer.manifest.version, offer.way())
        }
        Action::Download(offer) => format!("Download {}", offer.manifest.version),
        Action::Discard(_, closed) => format!("Discard {closed}"),
        Action::Stage(offer, after) => format!("Stage {} then {after:?}", offer.manifest.version),
        Action::AskReboot { version, reason } => format!("AskReboot {version} {reason:?}"),
        Action::Clean { keep } => {
            format!("Clean keep={}", keep.map_or("-".into(), |id| id.short()))
        }
        Action::Tell(reports) => format!(
            "Tell [{}]",
            reports
                .iter()
                .map(show_report)
                .collect::<Vec<_>>()
                .join(", ")
        ),
        Action::Reopen(..) => "Reopen".into(),
        Action::Check(ask) if ask.force => "Check, forced".into(),
        Action::Check(_) => "Check".into(),
        other => format!("{other:?}"),
    }
}

fn show_report(report: &Report) -> String {
    match report {
        Report::DownloadStarted { version } => format!("download {version}"),
        Report::Downloaded { version } => format!("downloaded {version}"),
        Report::Staged { version } => format!("staged {version}"),
        Report::Running { version, previous } => {
            format!(
                "running {version} before {}",
                previous.as_ref().map_or("-".into(), Version::to_string)
            )
        }
        Report::Failed {
            version,
            code,
            reason,
            ..
        } => format!("failed {version} {code:?}: {reason}"),
        Report::FailuresCleared => "failures cleared".into(),
    }
}

fn show_status(engine: &Engine) -> String {
    let status = engine.status();
    let mut line = format!("{:?}", status.update.state).to_lowercase();
    if let Some(progress) = status.update.progress {
        write!(line, " {progress}").unwrap();
    }
    for (name, release) in [("staged", status.staged), ("rollback", status.rollback)] {
        if let Some(release) = release {
            write!(line, ", {name} {} in {}", release.version, release.slot).unwrap();
        }
    }
    for failed in status.failed {
        write!(line, ", failed {}: {}", failed.version, failed.reason).unwrap();
    }
    if let Some(version) = &engine.available {
        write!(line, ", available {version}").unwrap();
    }
    if let Some(error) = status.update.last_error {
        write!(line, ", error: {error}").unwrap();
    }
    line
}

fn engine(version: &str, boot: u32, memory: Memory) -> Engine {
    let host = Host {
        version: version.parse().unwrap(),
        root_hash: Some(root_hash(version)),
        boot_id: format!("boot{boot}"),
        architecture: "x86-64",
        kernel: None,
        epoch: 0,
        volatile: false,
    };
    let settings = Settings {
        channel: Channel::stable(),
        server: Some("http://server/v1/update/".into()),
        interval: Duration::from_secs(2700),
        follow: crate::trust::Follow {
            channel: None,
            group: release::Channel::stable(),
        },
        rate: None,
        problem: None,
    };
    Engine::new(host, settings, memory)
}

/// A new boot of version 1 that nothing is known of.
const NEW: &[&str] = &[];
/// It is good, and the server knows.
const TO_IDLE: &[&str] = &["found a=1*+3-0 b=-", "good", "told 1"];
/// Version 2 was written to slot b.
const STAGED_2: &[&str] = &[
    "found a=1*+3-0 b=-",
    "good",
    "told 1",
    "timer",
    "offer 2",
    "told 1",
    "downloaded",
    "told 1",
    "staged b",
    "told 1",
    "found a=1*+3-0 b=2+3-0",
];

/// Plays the events of a transcript, after those of a prelude, and writes it anew.
fn replay(prelude: &[&str], transcript: &str) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let lines = || transcript.lines().filter(|line| !line.trim().is_empty());
    let events = lines().map(indent).min().unwrap_or(0);
    let script = lines().filter(|line| indent(line) == events).map(str::trim);

    let mut scene = Scene::new();
    for line in prelude {
        scene.play(line);
    }
    scene.out.clear();
    for line in script {
        scene.play(line);
    }
    scene.out
}

struct Scene<'a> {
    engine: Engine,
    boots: u32,
    last_offer: Vec<&'a str>,
    out: String,
}

impl<'a> Scene<'a> {
    fn new() -> Self {
        let engine = engine("1", 1, Memory::default());
        let engine = step(engine, Event::NotGoodYet, Timestamp::UNIX_EPOCH).0;
        Self {
            engine,
            boots: 1,
            last_offer: Vec::new(),
            out: String::new(),
        }
    }

    fn play(&mut self, line: &'a str) {
        writeln!(self.out, "{line}").unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["reboot" | "restart", version, ..] => return self.start(&words, version),
            ["status"] => return writeln!(self.out, "    {}", show_status(&self.engine)).unwrap(),
            ["offer", ..] => self.last_offer = words[1..].to_vec(),
            _ => {}
        }
        let event = event(line, &self.last_offer);
        if let Err(busy) = self.engine.admits(&event) {
            return writeln!(self.out, "    refused: {busy}").unwrap();
        }
        let (next, actions) = step(self.engine.clone(), event, Timestamp::UNIX_EPOCH);
        let actions: Vec<String> = actions.iter().map(show_action).collect();
        let actions = match actions[..] {
            [] => String::new(),
            _ => format!(": {}", actions.join("; ")),
        };
        writeln!(self.out, "    {}{actions}", show_phase(&next)).unwrap();
        self.engine = next;
    }

    fn start(&mut self, words: &[&str], version: &str) {
        let json = serde_json::to_vec(&self.engine.memory).unwrap();
        let mut memory: Memory = serde_json::from_slice(&json).unwrap();
        if words[0] == "restart" {
            self.engine = engine(version, self.boots, memory);
            return;
        }
        self.boots += 1;
        let volatile = words.contains(&"volatile");
        if volatile {
            memory = Memory::default();
        }
        memory.evidence = evidence(words).of_others(Some(root_hash(version)));
        let mut started = engine(version, self.boots, memory);
        started.host.volatile = volatile;
        let epoch = words.iter().find_map(|word| word.strip_prefix("epoch="));
        started.host.epoch = epoch.map_or(0, |epoch| epoch.parse().unwrap());
        self.engine = step(started, Event::NotGoodYet, Timestamp::UNIX_EPOCH).0;
    }
}

/// A check under way has not been told, so it begins anew; and it installs only if they want that.
#[test]
fn who_allows_expired_metadata_allows_it_for_what_they_ask() {
    let update = || Ask {
        allow_expired: true,
        ..Ask::POLL
    };
    let look = || Ask {
        allow_expired: true,
        ..Ask::LOOK
    };
    let both = |first: Ask, then: Ask| {
        let mut engine = engine("1", 1, Memory::default());
        engine.phase = Phase::Checking {
            ask: first,
            failures: 0,
            again: false,
            roll_back: false,
        };
        let now = Timestamp::UNIX_EPOCH;
        let (engine, _) = step(engine, Event::Asked(then), now);
        let (_, actions) = step(engine, Event::NothingNew, now);
        actions.into_iter().find_map(|action| match action {
            Action::Check(ask) => Some(ask),
            _ => None,
        })
    };
    assert_eq!(both(Ask::POLL, Ask::POLL), None);
    assert_eq!(both(Ask::POLL, update()), Some(update()));
    assert_eq!(both(Ask::POLL, look()), Some(look()));
    assert_eq!(both(Ask::LOOK, update()), Some(update()));
    // Those who come to such a check have its answer.
    assert_eq!(both(update(), Ask::POLL), None);
}
