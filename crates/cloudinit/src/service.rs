//! The service: find the data, plan, apply, tell. Two phases, see [`crate::apply`].

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use crate::apply::{self, AccountsLock, Changes, Services};
use crate::datasource::{self, Found, Probe};
use crate::finding::has_errors;
use crate::pipeline::{self, Input, Kind};
use crate::plan::{Facts, Plan, sha256};
use crate::status::{self, State, Status};

/// Where the data comes from.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// Whatever this machine has; hardware that is still coming up gets so much time.
    Machine(Duration),
    File(&'a Path),
}

/// The first phase. An error is one of ours (I/O, systemd); what is wrong with the user's file is in the
/// status.
pub fn run(
    root: &Path,
    from: Origin<'_>,
    now: SystemTime,
    services: Option<&dyn Services>,
) -> anyhow::Result<Status> {
    let start = Instant::now();
    let (found, tried) = find(root, from)?;
    let before = Status::read(root);
    let mut status = Status {
        state: State::NoData,
        datasource: found.as_ref().map(|found| found.origin.clone()),
        tried,
        instance_id: None,
        kind: Kind::None,
        digest: None,
        findings: Vec::new(),
        changed: Vec::new(),
        calls: Vec::new(),
        error: None,
        boot_id: host::machine::boot_id(root).unwrap_or_default(),
        milliseconds: 0,
    };
    if let Some(found) = found {
        let seen = before.map_or_else(Vec::new, |status| status.calls);
        let result = act(root, now, found, &mut status).map(|(plan, changes)| {
            status.calls = apply::planned(&plan, &seen);
            if let Some(services) = services {
                apply::carry_out_early(&mut status.calls, &changes, services);
            }
            status.changed = changes.done;
        });
        if let Err(error) = result {
            status.state = State::Failed;
            status.error = Some(format!("{error:#}"));
        }
    }
    status.milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    status.write(root)?;
    if !status.changed.is_empty() {
        status.remember(root)?;
    }
    Ok(status)
}

fn find(root: &Path, from: Origin<'_>) -> anyhow::Result<(Option<Found>, Vec<String>)> {
    match from {
        Origin::Machine(patience) => {
            let search = datasource::search(&Probe { root }, patience);
            Ok((search.found, search.tried))
        }
        Origin::File(path) => {
            let bytes =
                std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let found = Found {
                origin: format!("file {}", path.display()),
                user_data: Some(bytes),
                ..Found::default()
            };
            Ok((Some(found), Vec::new()))
        }
    }
}

/// Plans and applies, filling in the status on the way.
fn act(
    root: &Path,
    now: SystemTime,
    found: Found,
    status: &mut Status,
) -> anyhow::Result<(Plan, Changes)> {
    status.instance_id = found.metadata.instance_id.clone();
    status.digest = found.user_data.as_deref().map(sha256);
    let input = Input {
        user_data: found.user_data.as_deref(),
        metadata: found.metadata,
    };
    let _lock = AccountsLock::take(root)?;
    let facts = Facts::read(root, now)?;
    let mut outcome = pipeline::plan(&input, &facts);
    status.kind = outcome.kind;
    let objections = apply::check(&outcome.plan, root);
    outcome.object(objections, &input, &facts);
    status.findings = found.findings;
    status.findings.append(&mut outcome.findings);
    status.state = match has_errors(&status.findings) {
        true => State::Invalid,
        false => State::Applied,
    };
    let changes = apply::apply(&outcome.plan, root)?;
    keep(root, input.user_data)?;
    Ok((outcome.plan, changes))
}

/// A copy of the user-data, which may hold secrets.
fn keep(root: &Path, user_data: Option<&[u8]>) -> Result<(), host::atomic::WriteError> {
    let path = host::under(root, status::USER_DATA);
    match user_data {
        Some(bytes) if std::fs::read(&path).is_ok_and(|old| old == bytes) => Ok(()),
        Some(bytes) => status::put(root, status::USER_DATA, bytes, 0o600),
        None => host::atomic::remove(&path),
    }
}

/// The second phase: the calls that are left. `None`: there are none.
pub fn finish(root: &Path, services: &dyn Services) -> anyhow::Result<Option<Status>> {
    let Some(mut status) = Status::read(root).filter(Status::pending) else {
        return Ok(None);
    };
    let mut calls = std::mem::take(&mut status.calls);
    let mut problem = None;
    apply::carry_out_late(&mut calls, services, |calls| {
        status.calls = calls.to_vec();
        // Telling is not worth stopping for.
        problem = status.write(root).err().or(problem.take());
    });
    status.calls = calls;
    match problem {
        Some(error) => Err(error.into()),
        None => Ok(Some(status)),
    }
}
