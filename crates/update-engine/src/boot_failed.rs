//! The end of a boot that did not go well: say why, then reboot, if that leads anywhere.
//!
//! Runs when boot-complete.target fails, and when its deadline passes. Needs `systemctl` and
//! `journalctl`.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use host::child;
use host::cmdline::Cmdline;
use host::os_release::OsRelease;
use host::running;
use release::status::SlotStatus;
use serde::{Deserialize, Serialize};

use crate::good::TRIES;
use crate::paths::Paths;
use crate::slots::{Access, Disk, Source, to_disk};

const PATIENCE: Duration = Duration::from_secs(15);
/// For all logs together: the unit has 90 seconds, and the reboot is what matters.
const LOGS_WITHIN: Duration = Duration::from_secs(10);
/// For the service manager to end us, once it reboots.
const GOING_DOWN: Duration = Duration::from_secs(60);
const MOST_UNITS: usize = 8;
const LOG_LINES: &str = "5";
/// The server shows it in a line.
const LONGEST_TAIL: usize = 600;

const TARGET: &str = "boot-complete.target";

/// On the kernel command line: seconds of uptime (or since a soft-reboot), or `off`. Only later than the timer that
/// starts us is possible; an earlier one is a drop-in of that timer.
const DEADLINE: &str = "orlop.boot-deadline";

/// `/var/lib/orlop/boot/failure.json`.
#[derive(Debug, Serialize)]
struct Failure {
    version: String,
    usrhash: String,
    boot_id: String,
    reason: String,
    units: Vec<Unit>,
}

#[derive(Debug, Serialize)]
struct Unit {
    unit: String,
    log: Vec<String>,
}

/// What a reboot would do.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The boot loader tries this slot again, or the other one.
    Reboot,
    /// The other slot at once: a soft-reboot led here, so no try was counted, and what ran before is
    /// known to be good.
    GoBack,
    Stay(&'static str),
}

pub fn run(source: &Source, deadline: bool, reboot: bool) -> anyhow::Result<()> {
    let paths = Paths::new(&source.root);
    if deadline {
        wait_for_deadline(&paths, source)?;
    }
    if paths.good().exists() {
        tracing::info!("this boot is good by now");
        return Ok(());
    }
    let why = match deadline {
        true => "boot-complete.target was not reached in time",
        false => "boot-complete.target failed",
    };
    let (reason, units) = diagnose(why);
    // That may have taken minutes.
    if paths.good().exists() {
        tracing::info!("this boot became good meanwhile");
        return Ok(());
    }
    tracing::error!("{reason}");
    // Without a record the host still falls back, only with a poorer reason.
    if let Err(e) = record(&paths, source, reason, units) {
        tracing::error!("the reason is not recorded: {e:#}");
    }
    let slots = source
        .open(Access::Read)
        .map_err(Into::into)
        .and_then(|disk| disk.slots())
        .unwrap_or_else(|e| {
            tracing::warn!("{e:#}");
            Vec::new()
        });
    let soft = running::soft_reboot(&source.root);
    let verdict = verdict(&slots, soft.is_some_and(|soft| soft.changed));
    // Its lock is kept until the reboot: mark-good says that a boot is good while it has the lock, so from here on either
    // it has said so or it no longer can.
    let disk = reboot.then(|| source.open(Access::Write).map_err(anyhow::Error::from));
    if paths.good().exists() {
        if let Err(e) = host::atomic::remove(&paths.failure()) {
            tracing::warn!("{e}");
        }
        tracing::info!("this boot became good meanwhile");
        return Ok(());
    }
    let verdict = match (verdict, &disk) {
        (Verdict::GoBack, Some(disk)) => {
            if let Err(e) = give_up(disk) {
                // The boot loader counts the tries, as after any other boot.
                tracing::error!("this slot keeps its tries: {e:#}");
            }
            Verdict::GoBack
        }
        (Verdict::Reboot, Some(disk)) => begin_to_count(disk),
        (verdict, _) => verdict,
    };
    match verdict {
        Verdict::Stay(why) => tracing::error!("not rebooting: {why}"),
        Verdict::Reboot | Verdict::GoBack if !reboot => tracing::error!("would reboot"),
        // Once --force: the service manager unmounts and syncs, but does not wait for units,
        // of which one may be what hangs.
        Verdict::Reboot | Verdict::GoBack => {
            child::run(Command::new("systemctl").args(["reboot", "--force"]))?;
            // With the lock, which ends with us.
            std::thread::sleep(GOING_DOWN);
        }
    }
    drop(disk);
    Ok(())
}

/// Rebooting must lead to something else in the end, or a broken machine would do nothing but
/// reboot, and nobody could look at it.
fn verdict(slots: &[SlotStatus], soft: bool) -> Verdict {
    let armed = |booted| {
        slots
            .iter()
            .any(|s| s.booted == booted && s.tries_left.is_some_and(|n| n > 0))
    };
    match slots.iter().find(|s| s.booted).and_then(|s| s.tries_left) {
        None => Verdict::Stay("this system was not started from a boot entry with tries"),
        Some(_) if soft && armed(false) => Verdict::GoBack,
        Some(_) if armed(true) || armed(false) => Verdict::Reboot,
        Some(_) => Verdict::Stay("neither slot has tries left, so this one would only start again"),
    }
}

/// No tries left, so that the boot loader takes the other slot.
fn give_up(disk: &anyhow::Result<Disk>) -> anyhow::Result<()> {
    let disk = opened(disk)?;
    let slot = to_disk(disk.booted);
    Ok(disk.esp()?.set_tries(slot, 0, TRIES)?)
}

/// A release that is not counted would be started for ever. Power cuts may do that to it, failures not.
fn begin_to_count(disk: &anyhow::Result<Disk>) -> Verdict {
    let count = || -> anyhow::Result<()> {
        let disk = opened(disk)?;
        if disk.entry(disk.booted)?.is_some_and(|entry| !entry.counted) {
            // This start was the first.
            disk.esp()?.set_tries(to_disk(disk.booted), TRIES - 1, 1)?;
        }
        Ok(())
    };
    match count() {
        Ok(()) => Verdict::Reboot,
        Err(e) => {
            tracing::error!("{e:#}");
            Verdict::Stay("the tries of this slot cannot be counted, so it might do so for ever")
        }
    }
}

fn opened(disk: &anyhow::Result<Disk>) -> anyhow::Result<&Disk> {
    disk.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))
}

fn wait_for_deadline(paths: &Paths, source: &Source) -> anyhow::Result<()> {
    let cmdline = Cmdline::read(&source.root)?;
    let Some(text) = cmdline.get(DEADLINE) else {
        return Ok(());
    };
    let seconds = match text {
        "off" => u64::MAX,
        text => text
            .parse()
            .with_context(|| format!("{DEADLINE}={text}: use seconds, or off"))?,
    };
    let began = running::soft_reboot(&source.root).map_or(0, |soft| soft.at);
    while uptime().as_secs().saturating_sub(began) < seconds && !paths.good().exists() {
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

fn uptime() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
}

fn record(paths: &Paths, source: &Source, reason: String, units: Vec<Unit>) -> anyhow::Result<()> {
    let failure = Failure {
        version: OsRelease::read(&source.root)?
            .version()
            .unwrap_or_default()
            .into(),
        usrhash: source
            .running()?
            .context("no usrhash= on the kernel command line")?
            .to_string(),
        boot_id: running::boot(&source.root)?,
        reason,
        units,
    };
    let mut text = serde_json::to_vec_pretty(&failure)?;
    text.push(b'\n');
    let path = paths.failure();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    host::atomic::write(&path, &text, 0o644, None)?;
    Ok(())
}

/// The reason in one line, and the units it is about with the end of their logs.
fn diagnose(why: &str) -> (String, Vec<Unit>) {
    // What a unit said last may still be on its way into the journal.
    let synced = child::run_within(Command::new("journalctl").arg("--sync"), PATIENCE);
    if let Err(e) = synced {
        tracing::warn!("{e}");
    }
    let failed = ask(&["list-units", "--failed", "--output=json", "--no-pager"])
        .map(|text| failed_units(&text));
    let pending = ask(&["list-jobs", "--no-legend", "--plain", "--no-pager"])
        .map(|text| pending_units(&text));
    let (mut failed, mut pending) = (failed.unwrap_or_default(), pending.unwrap_or_default());
    // What decides comes first: other units may fail without harm.
    let required = ask(&[
        "show",
        TARGET,
        "--property=Requires",
        "--value",
        "--no-pager",
    ]);
    let required = required.unwrap_or_default();
    let harmless = |unit: &String| !required.split_ascii_whitespace().any(|r| r == unit);
    failed.sort_by_key(harmless);
    pending.sort_by_key(harmless);
    failed.truncate(MOST_UNITS);
    pending.truncate(MOST_UNITS);
    let names = failed.iter().chain(&pending).take(MOST_UNITS);
    let units = with_logs(names, Instant::now() + LOGS_WITHIN, log);
    (reason(why, &failed, &pending, &units), units)
}

/// A journal that does not answer costs the later ones their logs.
fn with_logs<'a>(
    names: impl Iterator<Item = &'a String>,
    end: Instant,
    log: impl Fn(&str) -> Vec<String>,
) -> Vec<Unit> {
    let unit = |name: &String| Unit {
        unit: name.clone(),
        log: match Instant::now() < end {
            true => log(name),
            false => Vec::new(),
        },
    };
    names.map(unit).collect()
}

/// `boot-complete.target failed; failed: ssh.service; ssh.service said: reading … | bad configuration`
fn reason(why: &str, failed: &[String], pending: &[String], units: &[Unit]) -> String {
    let mut reason = why.to_owned();
    for (what, units) in [("failed", failed), ("still starting", pending)] {
        if !units.is_empty() {
            reason += &format!("; {what}: {}", units.join(", "));
        }
    }
    if let Some(unit) = units.iter().find(|u| !u.log.is_empty()) {
        reason += &format!("; {} said: {}", unit.unit, tail(&unit.log));
    }
    reason
}

/// The last lines, as many as there is room for; the last one in any case.
fn tail(log: &[String]) -> String {
    let mut room = LONGEST_TAIL;
    let fits = |line: &&String| {
        let fits = line.len() <= room || room == LONGEST_TAIL;
        room = room.saturating_sub(line.len() + 3);
        fits
    };
    let mut lines: Vec<&str> = log
        .iter()
        .rev()
        .take_while(fits)
        .map(|l| l.trim())
        .collect();
    lines.reverse();
    lines.join(" | ")
}

fn ask(arguments: &[&str]) -> Option<String> {
    match child::run_within(Command::new("systemctl").args(arguments), PATIENCE) {
        Ok(output) => Some(output.text()),
        Err(e) => {
            tracing::warn!("{e}");
            None
        }
    }
}

/// What it said itself, else what the service manager said about it.
fn log(unit: &str) -> Vec<String> {
    let own = journal(&[&format!("_SYSTEMD_UNIT={unit}")]);
    match own.is_empty() {
        true => journal(&["--unit", unit]),
        false => own,
    }
}

fn journal(matches: &[&str]) -> Vec<String> {
    let arguments = [
        "--boot",
        "--output=cat",
        "--no-pager",
        "--quiet",
        "--lines",
        LOG_LINES,
    ];
    let arguments = arguments.iter().chain(matches);
    match child::run_within(Command::new("journalctl").args(arguments), PATIENCE) {
        Ok(output) => output
            .text()
            .lines()
            .map(|line| line.chars().take(300).collect())
            .collect(),
        Err(e) => vec![e.to_string().lines().next().unwrap_or_default().to_owned()],
    }
}

fn failed_units(json: &str) -> Vec<String> {
    #[derive(Deserialize)]
    struct Listed {
        unit: String,
    }
    let listed: Vec<Listed> = serde_json::from_str(json).unwrap_or_default();
    listed.into_iter().map(|l| l.unit).collect()
}

/// `12 sshd.service start running`, running jobs only: the waiting ones wait for those.
fn pending_units(text: &str) -> Vec<String> {
    let jobs = text
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    jobs.filter_map(|job| match job[..] {
        [_, unit, "start", "running", ..] if !OURSELVES.contains(&unit) => Some(unit.to_owned()),
        _ => None,
    })
    .collect()
}

const OURSELVES: [&str; 2] = ["boot-failed.service", "boot-overdue.service"];

#[cfg(test)]
mod tests {
    use super::*;
    use release::Slot;

    fn check(booted: Option<u8>, other: Option<u8>, expect: &Verdict) {
        let slot = |slot, tries_left| SlotStatus {
            slot,
            booted: slot == Slot::B,
            version: None,
            root_hash: None,
            tries_left,
            tries_done: tries_left.map(|n| 3 - n),
        };
        assert_eq!(
            verdict(&[slot(Slot::A, other), slot(Slot::B, booted)], false),
            *expect
        );
    }

    #[test]
    fn a_reboot_has_to_lead_somewhere() {
        check(Some(2), None, &Verdict::Reboot);
        check(Some(0), Some(3), &Verdict::Reboot);
        check(
            Some(0),
            Some(0),
            &Verdict::Stay("neither slot has tries left, so this one would only start again"),
        );
        check(
            Some(0),
            None,
            &Verdict::Stay("neither slot has tries left, so this one would only start again"),
        );
        check(
            None,
            Some(3),
            &Verdict::Stay("this system was not started from a boot entry with tries"),
        );
        assert_eq!(
            verdict(&[], false),
            Verdict::Stay("this system was not started from a boot entry with tries")
        );
    }

    #[test]
    fn a_soft_reboot_goes_back_at_once() {
        let slot = |slot, tries_left: Option<u8>| SlotStatus {
            slot,
            booted: slot == Slot::B,
            version: None,
            root_hash: None,
            tries_left,
            tries_done: tries_left.map(|_| 0),
        };
        let of = |other, booted| verdict(&[slot(Slot::A, other), slot(Slot::B, booted)], true);
        assert_eq!(of(Some(3), Some(3)), Verdict::GoBack);
        // With nothing to go back to it is a boot like any other.
        assert_eq!(of(Some(0), Some(3)), Verdict::Reboot);
        assert_eq!(of(None, Some(3)), Verdict::Reboot);
        assert!(matches!(of(Some(3), None), Verdict::Stay(_)));
    }

    #[test]
    fn the_reason_is_one_line() {
        let unit = |unit: &str, log: &[&str]| Unit {
            unit: unit.into(),
            log: log.iter().map(|l| (*l).into()).collect(),
        };
        let units = [
            unit("a.service", &[]),
            unit("b.service", &["first", "last"]),
        ];
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            reason(
                "boot-complete.target failed",
                &names(&["a.service", "b.service"]),
                &names(&["c.service"]),
                &units
            ),
            "boot-complete.target failed; failed: a.service, b.service; still starting: c.service; b.service said: first | last"
        );
        assert_eq!(reason("too late", &[], &[], &[]), "too late");
        let long = ["x".repeat(500), "y".repeat(200), "z".repeat(700)];
        assert_eq!(tail(&long), long[2]);
        assert_eq!(tail(&long[..2]), long[1]);
        assert_eq!(tail(&[]), "");
    }

    #[test]
    fn a_journal_that_hangs_does_not_keep_from_rebooting() {
        let names = ["a.service", "b.service", "c.service"].map(str::to_owned);
        let slow = |name: &str| {
            std::thread::sleep(Duration::from_millis(30));
            vec![name.to_owned()]
        };
        let units = with_logs(
            names.iter(),
            Instant::now() + Duration::from_millis(20),
            slow,
        );
        let logs: Vec<_> = units.iter().map(|unit| unit.log.len()).collect();
        assert_eq!(logs, [1, 0, 0]);
    }

    #[test]
    fn what_systemctl_says() {
        let json = r#"[{"unit":"ssh.service","load":"loaded","active":"failed","sub":"failed","description":"x"}]"#;
        assert_eq!(failed_units(json), ["ssh.service"]);
        assert_eq!(failed_units("[]"), [""; 0]);
        assert_eq!(failed_units("no bus"), [""; 0]);
        let jobs = "  1 multi-user.target start waiting\n 81 slow.service start running\n 90 boot-failed.service start running\n";
        assert_eq!(pending_units(jobs), ["slow.service"]);
        assert_eq!(pending_units("No jobs running.\n"), [""; 0]);
    }
}
