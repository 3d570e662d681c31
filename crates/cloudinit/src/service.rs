//! The service: find the data, plan, apply, tell. Two phases, see [`crate::apply`].

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use host::atomic::WriteError;
use host::cmdline::Cmdline;

use crate::apply::{self, AccountsLock, Changes, Services};
use crate::config::Spanned;
use crate::datasource::{self, Found, Probe};
use crate::finding::{Finding, Pos, has_errors};
use crate::forget;
use crate::imports::{Import, Imported, Purpose};
use crate::metadata::Metadata;
use crate::once;
use crate::pipeline::{self, Input, Kind};
use crate::plan::{Facts, Plan, sha256};
use crate::remote::{self, Fetched, Hint, Remote, Request};
use crate::status::{self, State, Status};

/// Where the data comes from.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// Whatever this machine has; hardware that is still coming up gets so much time.
    Machine(Duration),
    /// What the network phase brought; where it brought nothing, what the machine has.
    Fetched,
    File(&'a Path),
    /// What somebody has got hold of already.
    Given(&'a Found),
}

/// Applies what the network phase brings, which it starts first.
const NETWORK_UNIT: &str = "cloudinit-apply.service";
/// What was fetched for the user-data before: it stays when the network does not.
const IMPORTED: &str = "/var/lib/cloudinit/imported.json";
/// The host name that user-data gave.
const NAME: &str = "/var/lib/cloudinit/hostname";

/// Where there is no DHCP, the way to the metadata service is an address that one gives oneself.
const LINK_LOCAL: (&str, &str) = (
    "/run/systemd/network/06-cloudinit-metadata.network",
    "[Match]\nType=ether\nKind=!*\n\n[Network]\nDHCP=yes\nLinkLocalAddressing=yes\n",
);

/// What there is to apply, and what is still to be fetched.
#[derive(Default)]
struct Material {
    found: Option<Found>,
    tried: Vec<String>,
    request: Request,
    imported: Imported,
}

/// The first phase, or the one after the network's. An error is one of ours (I/O, systemd); what is
/// wrong with the user's file is in the status.
pub fn run(
    root: &Path,
    from: Origin<'_>,
    now: SystemTime,
    services: Option<&dyn Services>,
) -> anyhow::Result<Status> {
    let start = Instant::now();
    let Material {
        found,
        tried,
        mut request,
        imported,
    } = gather(root, from)?;
    let before = Status::read(root);
    let mut status = Status {
        state: match request.sources.is_empty() {
            true => State::NoData,
            false => State::Waiting,
        },
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
    let mut to_forget = Vec::new();
    if let Some(mut found) = found {
        to_forget = std::mem::take(&mut found.forget);
        // What was fetched just now counts more than what is remembered.
        let fresh = std::mem::replace(&mut found.metadata.imported, imported);
        let remember = !fresh.is_empty() || matches!(from, Origin::Fetched);
        found.metadata.imported.extend(fresh);
        let mut known = found.metadata.imported.clone();
        let seen = before.map_or_else(Vec::new, |status| status.calls);
        // Before the network phase it is no wonder that something is not here.
        let complete = !matches!(from, Origin::Machine(_));
        let result = act(root, now, found, complete, &mut status).map(|(plan, changes)| {
            status.calls = apply::planned(&plan, &seen);
            if let Some(services) = services {
                apply::carry_out_early(&mut status.calls, &changes, services);
            }
            status.changed = changes.done;
            for Spanned { value, place } in plan.imports {
                if value.purpose == Purpose::Keys && complete && !known.has(&value) {
                    let message = format!("no keys came from {}", remote::shown(&value.url));
                    let finding = Finding::warning(place.pos, place.key, message);
                    status.findings.push(finding);
                }
                request.imports.push(value);
            }
        });
        if remember && status.state == State::Applied {
            if let Origin::Fetched = from {
                known.retain(&request.imports);
            }
            if let Err(error) = remember_imported(root, &known) {
                let what =
                    format!("what was fetched will not be there at the next boot: {error:#}");
                let finding = Finding::warning(Pos::START, "", what);
                status.findings.push(finding);
            }
        }
        if let Err(error) = result {
            status.state = State::Failed;
            status.error = Some(format!("{error:#}"));
        } else if status.state == State::Applied && !request.sources.is_empty() {
            status.state = State::Waiting;
        }
    }
    if let Origin::Machine(_) = from {
        if request.sources.contains(&Remote::DigitalOcean) {
            status::put(root, LINK_LOCAL.0, LINK_LOCAL.1.as_bytes(), 0o644)?;
        }
        request.write(root)?;
        if let (Some(services), false) = (services, request.is_empty()) {
            // Nothing of it runs on a machine that does not need it.
            if let Err(error) = services.queue(NETWORK_UNIT) {
                status.error = Some(format!("cannot start {NETWORK_UNIT}: {error:#}"));
                status.state = State::Failed;
            }
        }
    }
    // What is to be fetched still is planned from guestinfo once more.
    let complete = matches!(from, Origin::Fetched) || request.is_empty();
    if status.state == State::Applied && complete && !to_forget.is_empty() {
        forget::note(root, &to_forget)?;
        if let Some(Err(error)) = services.map(|services| services.queue(forget::UNIT)) {
            let message = format!("cannot start {}: {error:#}", forget::UNIT);
            status
                .findings
                .push(Finding::warning(Pos::START, "guestinfo", message));
        }
    }
    status.milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    status.write(root)?;
    if !status.changed.is_empty() {
        status.remember(root)?;
    }
    Ok(status)
}

fn gather(root: &Path, from: Origin<'_>) -> anyhow::Result<Material> {
    let mut material = Material {
        imported: imported(root),
        ..Material::default()
    };
    match from {
        Origin::Machine(patience) => machine(root, patience, &mut material),
        Origin::Fetched => {
            let fetched = Fetched::read(root).unwrap_or_default();
            material.tried = fetched.tried;
            material.found = fetched.found;
            // A file at a URL says nothing of keys and host name; a disk may.
            let complete = |found: &Found| !found.origin.starts_with("url ");
            if !material.found.as_ref().is_some_and(complete) {
                let search = datasource::search(&Probe { root }, Duration::ZERO);
                material.tried.extend(search.tried);
                let disk = forget::recall(root, search.found);
                material.found = match (material.found, disk) {
                    (Some(file), Some(disk)) => Some(file.completed(disk)),
                    (file, disk) => file.or(disk),
                };
            }
            add_command_line(root, &mut material.found);
            if let Some(found) = &mut material.found {
                found.metadata.imported = fetched.imported;
            }
        }
        Origin::Given(found) => material.found = Some(found.clone()),
        Origin::File(path) => {
            let bytes =
                std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            material.found = Some(Found {
                origin: format!("file {}", path.display()),
                user_data: Some(bytes),
                ..Found::default()
            });
        }
    }
    Ok(material)
}

/// The kernel command line first, then what the machine has, then the network.
fn machine(root: &Path, patience: Duration, material: &mut Material) {
    let probe = Probe { root };
    let Hint { first, later } = remote::detect(root);
    material.request.sources = first;
    if material.request.sources.is_empty() {
        // Where only a service on the network has the data, there is no disk to wait for.
        let may_have_disk = |source: &Remote| {
            matches!(
                source,
                Remote::OpenStack | Remote::Azure | Remote::NoCloud { .. }
            )
        };
        let patience = match later.is_empty() || later.iter().any(may_have_disk) {
            true => patience,
            false => Duration::ZERO,
        };
        let search = datasource::search(&probe, patience);
        material.tried = search.tried;
        material.found = forget::recall(root, search.found);
    }
    if material.found.is_none() {
        material.request.sources.extend(later);
    }
    for source in &material.request.sources {
        material
            .tried
            .push(format!("{source}: in the network phase"));
    }
    if material.request.sources.contains(&Remote::Azure) {
        material.request.disc = once::disc(root, datasource::azure_disc(&probe));
    }
    add_command_line(root, &mut material.found);
}

/// `sshkey="ssh-ed25519 …"`, which images for PXE take.
fn add_command_line(root: &Path, found: &mut Option<Found>) {
    let cmdline = Cmdline::read(root).unwrap_or_default();
    let keys: Vec<String> = cmdline.all("sshkey").map(str::to_owned).collect();
    if !keys.is_empty() {
        let found = found.get_or_insert_with(|| Found {
            origin: "kernel command line".to_owned(),
            silent: true,
            ..Found::default()
        });
        found.metadata.ssh_keys.extend(keys);
    }
}

fn remember_imported(root: &Path, known: &Imported) -> anyhow::Result<()> {
    let bytes = serde_json::to_vec(known)?;
    Ok(status::put(root, IMPORTED, &bytes, 0o600)?)
}

fn imported(root: &Path) -> Imported {
    let bytes = std::fs::read(host::under(root, IMPORTED)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Plans and applies, filling in the status on the way.
fn act(
    root: &Path,
    now: SystemTime,
    found: Found,
    complete: bool,
    status: &mut Status,
) -> anyhow::Result<(Plan, Changes)> {
    status.instance_id = found.metadata.instance_id.clone();
    status.digest = found.user_data.as_deref().map(sha256);
    let name_before = last_name(root, &found.metadata);
    let input = Input {
        user_data: found.user_data.as_deref(),
        metadata: found.metadata,
        name_before,
    };
    let _lock = AccountsLock::take(root)?;
    let facts = Facts::read(root, now)?;
    let mut outcome = pipeline::plan(&input, &facts);
    status.kind = outcome.kind;
    let mut objections = apply::check(&outcome.plan, root);
    if complete {
        objections.extend(missing(&outcome.plan, &input.metadata.imported));
    }
    outcome.object(objections, &input, &facts);
    outcome.plan.keep_keys |= found.silent;
    status.findings = found.findings;
    status.findings.append(&mut outcome.findings);
    status.state = match has_errors(&status.findings) {
        true => State::Invalid,
        false => State::Applied,
    };
    forget_other_instance(root, &input)?;
    let mut changes = match apply::apply(&outcome.plan, root) {
        Ok(changes) => changes,
        Err(error) => {
            // Whatever it was, somebody has to be able to log in and look at it.
            let plan = pipeline::metadata_alone(&input, &facts);
            if let Err(error) = apply::apply(&plan, root) {
                tracing::error!("nor can the metadata be applied: {error:#}");
            }
            return Err(error.into());
        }
    };
    for (place, message) in std::mem::take(&mut changes.refused) {
        let finding = Finding::warning(place.pos, place.key, message);
        status.findings.push(finding);
    }
    match status.state {
        // Nobody said that there is no user-data any more.
        State::Applied if found.silent && !is_other_instance(root, &input.metadata) => {}
        State::Applied => {
            keep_name(root, &outcome.plan, &input.metadata.imported)?;
            keep(root, &input)?;
        }
        // What was applied last stays what can be applied again.
        _ => status::put(
            root,
            status::REFUSED,
            input.user_data.unwrap_or_default(),
            0o600,
        )?,
    }
    Ok((outcome.plan, changes))
}

/// Contents that did not come. Without them the user-data is half of what it should be.
fn missing(plan: &Plan, imported: &Imported) -> Vec<Finding> {
    let contents = plan
        .imports
        .iter()
        .filter(|import| import.value.purpose != Purpose::Keys && !imported.has(&import.value));
    let error = |import: &Spanned<Import>| {
        let url = remote::shown(&import.value.url);
        import.place.error(format!("{url} could not be fetched"))
    };
    contents.map(error).collect()
}

/// What ran once, ran once on that machine: a copy of its disk is another machine.
fn forget_other_instance(root: &Path, input: &Input<'_>) -> anyhow::Result<()> {
    let marks = host::under(root, crate::config::DONE);
    if is_other_instance(root, &input.metadata) && marks.exists() {
        std::fs::remove_dir_all(&marks)
            .with_context(|| format!("cannot remove {}", marks.display()))?;
    }
    Ok(())
}

/// The platform says that it is not the one that something was applied on before.
fn is_other_instance(root: &Path, metadata: &Metadata) -> bool {
    let before = kept(root).and_then(|found| found.metadata.instance_id);
    before.is_some() && metadata.instance_id.is_some() && before != metadata.instance_id
}

/// The host name that user-data gave, for when it becomes wrong.
fn keep_name(root: &Path, plan: &Plan, imported: &Imported) -> Result<(), WriteError> {
    match &plan.hostname {
        Some(name) if plan.own_hostname => {
            let full = host::under(root, NAME);
            match std::fs::read(&full).is_ok_and(|old| old == name.as_bytes()) {
                true => Ok(()),
                false => status::put(root, NAME, name.as_bytes(), 0o600),
            }
        }
        // What is not here yet may give one.
        _ if !missing(plan, imported).is_empty() => Ok(()),
        _ => host::atomic::remove(&host::under(root, NAME)),
    }
}

/// The host name that user-data gave to this instance when it last had no errors.
pub fn last_name(root: &Path, metadata: &Metadata) -> Option<String> {
    match is_other_instance(root, metadata) {
        true => None,
        false => std::fs::read_to_string(host::under(root, NAME)).ok(),
    }
}

/// A copy of what was applied, which may hold secrets: for `cloudinit plan` and `apply` without a file.
fn keep(root: &Path, input: &Input<'_>) -> Result<(), WriteError> {
    let metadata = serde_json::to_vec(&input.metadata).unwrap_or_default();
    for (path, bytes) in [
        (status::USER_DATA, input.user_data),
        (status::METADATA, Some(metadata.as_slice())),
        (status::REFUSED, None),
    ] {
        let full = host::under(root, path);
        match bytes {
            Some(bytes) if std::fs::read(&full).is_ok_and(|old| old == bytes) => {}
            Some(bytes) => status::put(root, path, bytes, 0o600)?,
            None => host::atomic::remove(&full)?,
        }
    }
    Ok(())
}

/// What was applied last, metadata included.
pub fn kept(root: &Path) -> Option<Found> {
    let user_data = std::fs::read(host::under(root, status::USER_DATA)).ok()?;
    Some(Found {
        origin: "what was applied last".to_owned(),
        user_data: Some(user_data),
        metadata: kept_metadata(root),
        ..Found::default()
    })
}

/// What the platform said when something was applied last: it holds for a file that is applied by hand too.
pub fn kept_metadata(root: &Path) -> Metadata {
    let bytes = std::fs::read(host::under(root, status::METADATA)).unwrap_or_default();
    let mut metadata: Metadata = serde_json::from_slice(&bytes).unwrap_or_default();
    metadata.imported = imported(root);
    metadata
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
