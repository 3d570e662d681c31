//! Many scenarios, a few at a time.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::run::{self, Stage};
use super::{Scenario, file};
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

/// Tells them all, `jobs` at a time; `done` hears of each as it ends.
pub fn run_all(
    stage: &Stage<'_>,
    scenarios: &[Scenario],
    jobs: usize,
    done: &(dyn Fn(&Report) + Sync),
) -> Vec<Report> {
    let queue = Mutex::new(scenarios.iter().collect::<VecDeque<_>>());
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
                    let begin = Instant::now();
                    let result = run::run(stage, scenario);
                    let report = Report {
                        name: scenario.name.clone(),
                        about: scenario.about.clone(),
                        passed: result.is_ok(),
                        seconds: begin.elapsed().as_secs_f64(),
                        error: result.err().map(|error| format!("{error:#}")),
                        failed_before: None,
                    };
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

/// More failures than this are no accident of a machine that others use, too.
const ACCIDENTS: usize = 3;

/// Tells the few that failed once more, one at a time, with the machine to themselves. Their reports say so.
pub fn run_again(
    stage: &Stage<'_>,
    scenarios: &[Scenario],
    reports: &mut [Report],
    done: &(dyn Fn(&Report) + Sync),
) {
    let mut failed: Vec<&mut Report> = reports.iter_mut().filter(|r| !r.passed).collect();
    if failed.len() > ACCIDENTS {
        return;
    }
    for report in &mut failed {
        let again: Vec<Scenario> = scenarios
            .iter()
            .filter(|scenario| scenario.name == report.name)
            .cloned()
            .collect();
        let before = report.error.clone();
        let told = run_all(stage, &again, 1, &|report| {
            done(&Report {
                failed_before: before.clone(),
                ..report.clone()
            });
        });
        if let Some(second) = told.into_iter().next() {
            **report = Report {
                failed_before: before,
                ..second
            };
        }
    }
}
