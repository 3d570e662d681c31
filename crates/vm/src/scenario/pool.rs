//! Many scenarios, a few at a time.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::run::{self, Stage};
use super::{Scenario, Turn, file};
use crate::interrupt;

/// How a scenario went.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Its name.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// Whether it went as written.
    pub passed: bool,
    /// How long it took.
    pub seconds: f64,
    /// Why it failed, with the step's place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The turn of a repeat that it failed in or, when it was told again, that it was begun with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn: Option<Turn>,
    /// Why it failed before it passed, when it was told again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_before: Option<String>,
}

/// The scenarios of files and directories, in the order of their names; with `filter` only those whose name contains it.
pub fn collect(paths: &[PathBuf], filter: Option<&str>) -> Result<Vec<Scenario>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let entries = std::fs::read_dir(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            for entry in entries {
                let path = entry?.path();
                if path
                    .extension()
                    .is_some_and(|extension| extension == "toml")
                {
                    files.push(path);
                }
            }
        } else {
            files.push(path.clone());
        }
    }
    files.sort();
    let wanted = |path: &Path| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        filter.is_none_or(|filter| name.contains(filter))
    };
    let scenarios = files
        .iter()
        .filter(|path| wanted(path))
        .map(|path| file::load(path))
        .collect::<Result<Vec<_>>>()?;
    if scenarios.is_empty() {
        bail!(
            "no scenario {}",
            filter.map_or("was named".into(), |filter| format!(
                "has {filter:?} in its name"
            ))
        );
    }
    Ok(scenarios)
}

/// Tells them all, `jobs` at a time, the longest first: at the end none goes on alone. `done` hears of each as it ends.
pub fn run_all(
    stage: &Stage<'_>,
    scenarios: &[Scenario],
    jobs: usize,
    done: &(dyn Fn(&Report) + Sync),
) -> Vec<Report> {
    let mut longest_first: Vec<&Scenario> = scenarios.iter().collect();
    longest_first.sort_by_key(|scenario| Reverse(scenario.length()));
    let queue = Mutex::new(VecDeque::from(longest_first));
    let reports = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut queue| queue.pop_front());
                    let Some(scenario) = next else { break };
                    if interrupt::requested() {
                        break;
                    }
                    let report = tell(stage, scenario, false);
                    done(&report);
                    if let Ok(mut reports) = reports.lock() {
                        reports.push(report);
                    }
                }
            });
        }
    });
    let mut reports = reports.into_inner().unwrap_or_default();
    reports.sort_by(|a, b| a.name.cmp(&b.name));
    reports
}

fn tell(stage: &Stage<'_>, scenario: &Scenario, again: bool) -> Report {
    let begin = Instant::now();
    let failure = run::run(stage, scenario, again).err();
    Report {
        name: scenario.name.clone(),
        about: scenario.about.clone(),
        passed: failure.is_none(),
        seconds: begin.elapsed().as_secs_f64(),
        turn: failure.as_ref().and_then(|failure| failure.turn.clone()),
        error: failure.map(|failure| failure.text),
        failed_before: None,
    }
}

/// More failures than this are no accident of a machine that others use, too.
const ACCIDENTS: usize = 6;

/// Tells the few that failed once more, one at a time, with the machine to themselves, the quick ones first. Their reports
/// say so. One that is not likely to end by `end` is left as it is.
pub fn run_again(
    stage: &Stage<'_>,
    scenarios: &[Scenario],
    reports: &mut [Report],
    end: Option<Instant>,
    done: &(dyn Fn(&Report) + Sync),
) {
    let mut failed: Vec<&mut Report> = reports.iter_mut().filter(|r| !r.passed).collect();
    if failed.len() > ACCIDENTS {
        eprintln!(
            "! {} failed; more than {ACCIDENTS} are not run again",
            failed.len()
        );
        return;
    }
    failed.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    for report in failed {
        if interrupt::requested() {
            break;
        }
        // Of a repeat, the turns that were never begun are still to come.
        let takes = match &report.turn {
            Some(turn) => {
                report.seconds * f64::from(turn.times + 1 - turn.number) / f64::from(turn.number)
            }
            None => report.seconds,
        };
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.as_secs_f64() < takes) {
            eprintln!(
                "! {:<24} is not run again: it takes some {takes:.0} s, and {:.0} s are left",
                report.name,
                left.unwrap_or_default().as_secs_f64()
            );
            continue;
        }
        let Some(scenario) = scenarios.iter().find(|s| s.name == report.name) else {
            continue;
        };
        let mut scenario = scenario.clone();
        // With other random times it would only be lucky.
        if let Some(turn) = &report.turn {
            scenario.replay(turn);
        }
        let second = tell(stage, &scenario, true);
        *report = Report {
            turn: second.turn.or(report.turn.take()),
            failed_before: report.error.take(),
            ..second
        };
        done(report);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_scenarios_of_the_checkout_can_be_read() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vm");
        let scenarios = collect(&[dir], None).unwrap();
        let longest = scenarios.iter().max_by_key(|scenario| scenario.length());
        assert_eq!(longest.unwrap().name, "power-cut");
    }
}
