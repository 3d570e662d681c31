//! What an operator can do, whether by the API or by the dashboard: each is one transaction, and
//! each is written down with who did it.

use axum::http::StatusCode;
use jiff::Timestamp;
use release::{Channel, Version};

use super::catalog;
use super::error::ApiError;
use super::plan::{Current, Group, Plan};
use super::records::{self, activity};
use super::sql::{Db, params};
use crate::api::{ChannelState, GroupState, Promote, RolloutState, SetGroup, WaveState};
use crate::rollout::{Event, Grant, HostEvent, Status};

/// Who does it and when.
#[derive(Clone, Debug)]
pub(super) struct By {
    pub(super) actor: String,
    pub(super) now: Timestamp,
}

impl By {
    fn note(&self, db: &Db, action: &str, subject: &str, detail: &str) -> Result<(), ApiError> {
        activity(db, &self.actor, action, subject, detail, self.now)
    }
}

pub(super) fn not_found(what: String, hint: &str) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, what).hint(hint)
}

fn bad(what: impl std::fmt::Display) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, what.to_string())
}

/// Points a channel, new or known, at a finished release; every group on it begins a rollout.
pub(super) fn set_channel(
    db: &Db,
    plan: &mut Plan,
    by: &By,
    name: &Channel,
    version: &Version,
) -> Result<ChannelState, ApiError> {
    let before = plan.channels.get(name.as_str()).cloned().flatten();
    let release = plan.releases.get(version);
    // We have no key to sign it with, and a rollout of it would only fail on every host.
    if before.as_ref() != Some(version)
        && release.is_some_and(|release| !plan.is_signed(name.as_str(), release))
    {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("the metadata of channel {name} does not name release {version}, so its hosts would refuse it"),
        )
        .hint(format!(
            "where the channel's key is, run: orlop release promote --from CHANNEL --to {name}, or: orlop release publish {version} --channel {name}"
        )));
    }
    let state = catalog::set_channel(db, name, version, by.now)?;
    if before.as_ref() != Some(version) {
        let was = before.map_or_else(|| "nothing".into(), |version| version.to_string());
        by.note(
            db,
            "channel set",
            &format!("channel {name}"),
            &format!("{was} → {version}"),
        )?;
    }
    plan.reload(db, by.now)?;
    Ok(state)
}

/// Gives a channel what another one has.
pub(super) fn promote(
    db: &Db,
    plan: &mut Plan,
    by: &By,
    wanted: &Promote,
    to: &Channel,
) -> Result<ChannelState, ApiError> {
    let version = promotable(plan, wanted, to)?;
    by.note(
        db,
        "promoted",
        &format!("release {version}"),
        &format!("{} → {to}", wanted.from),
    )?;
    set_channel(db, plan, by, to, &version)
}

/// The release that would be promoted, if it may be. The one check: whoever signs asks for it first.
pub(super) fn promotable(plan: &Plan, wanted: &Promote, to: &Channel) -> Result<Version, ApiError> {
    let from = &wanted.from;
    if from == to {
        return Err(bad(format!("{from} is promoted to itself")));
    }
    let version = plan.channels.get(from.as_str()).cloned().flatten();
    let version = version.ok_or_else(|| {
        ApiError::new(
            StatusCode::CONFLICT,
            format!("channel {from} has no release to promote"),
        )
        .hint("orlop fleet status shows the channels")
    })?;
    if let Some(meant) = wanted.version.as_ref().filter(|meant| **meant != version) {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("channel {from} has release {version} by now and not {meant}, so nothing is promoted"),
        )
        .hint("promote again if that one is meant"));
    }
    let release = plan.releases.get(&version);
    if let Some((_, reason)) = release.and_then(|release| release.withdrawn.as_ref()) {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("release {version} was withdrawn ({reason}), so it is not promoted"),
        )
        .hint(format!(
            "take that back first: orlop release restore {version}"
        )));
    }
    let halted = plan.groups.values().find(|group| {
        let current = plan.rollout(&group.name, &version);
        group.channel == from.as_str()
            && current.is_some_and(|it| matches!(it.rollout.status, Status::Halted { .. }))
    });
    if let Some(group) = halted {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("release {version} was halted in group {}, so it is not promoted", group.name),
        )
        .hint("resume that rollout if the release is good after all, or point the channel at it by hand"));
    }
    Ok(version)
}

/// Takes a release back (with the reason), or allows it again.
pub(super) fn withdraw(
    db: &Db,
    plan: &mut Plan,
    by: &By,
    version: &Version,
    reason: Option<&str>,
) -> Result<(), ApiError> {
    let reason = reason.map(str::trim);
    if reason == Some("") {
        return Err(bad("say why the release is withdrawn"));
    }
    let was = catalog::release(db, version)?.is_some_and(|release| release.withdrawn.is_some());
    catalog::withdraw(db, version, reason, by.now)?;
    let action = match reason {
        Some(_) => "withdrawn",
        None if was => "allowed again",
        None => return Ok(()),
    };
    by.note(
        db,
        action,
        &format!("release {version}"),
        reason.unwrap_or_default(),
    )?;
    if let Some(reason) = reason {
        let reason = format!("the release was withdrawn: {reason}");
        let groups: Vec<String> = plan
            .all_rollouts()
            .filter(|(_, current)| current.version == *version)
            .map(|(group, _)| group.to_owned())
            .collect();
        for group in groups {
            let event = Event::Halt { reason: &reason };
            plan.step(db, &group, version, event, by.now)?;
        }
    }
    plan.reload(db, by.now)
}

pub(super) fn set_group(
    db: &Db,
    plan: &mut Plan,
    by: &By,
    name: &str,
    wanted: SetGroup,
) -> Result<(), ApiError> {
    // Hosts name it where they would name a channel.
    let name: Channel = name
        .parse()
        .map_err(|_| bad(format!("{name:?} cannot name a group: use up to 32 lowercase letters, digits and '-', starting with a letter")))?;
    wanted.policy.check(name.as_str()).map_err(bad)?;
    if !plan.channels.contains_key(wanted.channel.as_str()) {
        let what = format!("there is no channel {}", wanted.channel);
        return Err(ApiError::new(StatusCode::CONFLICT, what)
            .hint("publish a release on it first, or name one of: orlop fleet status"));
    }
    if plan.channels.contains_key(name.as_str()) && wanted.channel != name {
        let what = format!("{name} is a channel, so the group of that name follows it");
        return Err(ApiError::new(StatusCode::CONFLICT, what).hint("give the group another name"));
    }
    if let Some(canary) = wanted
        .policy
        .canary
        .as_ref()
        .filter(|canary| !plan.groups.contains_key(*canary))
    {
        return Err(bad(format!("canary: there is no group {canary}")));
    }
    let group = Group {
        name: name.to_string(),
        channel: wanted.channel.to_string(),
        description: wanted.description.chars().take(200).collect(),
        policy: wanted.policy,
        own: true,
    };
    let other = plan
        .groups
        .get(name.as_str())
        .is_some_and(|before| before.policy != group.policy);
    let before: Vec<i64> = plan.rollouts_of(name.as_str()).map(|it| it.id).collect();
    catalog::set_group(db, &group, by.now)?;
    let policy = group.policy.words().join("; ");
    by.note(
        db,
        "group set",
        &format!("group {name}"),
        &format!("channel {}: {policy}", group.channel),
    )?;
    plan.reload(db, by.now)?;
    // A new rollout has its plan.
    if other {
        step_all(db, plan, by, name.as_str(), &Event::Replan, |it| {
            before.contains(&it.id)
        })?;
    }
    let (theirs, values) = (
        "channel = $1 AND assigned IS NULL AND grp <> $1",
        params![name.as_str()],
    );
    records::count_out(db, theirs, values)?;
    records::count_in(db, "channel", theirs, values)?;
    db.execute(
        &format!("UPDATE hosts SET grp = channel WHERE {theirs}"),
        values,
    )?;
    Ok(())
}

pub(super) fn remove_group(db: &Db, plan: &mut Plan, by: &By, name: &str) -> Result<(), ApiError> {
    let waits = plan
        .groups
        .values()
        .find(|group| group.policy.canary.as_deref() == Some(name));
    if let Some(waits) = waits {
        let what = format!("group {} waits for {name} as its canary", waits.name);
        return Err(ApiError::new(StatusCode::CONFLICT, what).hint("give it another policy first"));
    }
    if !catalog::remove_group(db, name)? {
        return Err(not_found(
            format!("nobody made a group {name}"),
            "orlop fleet groups lists them",
        ));
    }
    by.note(db, "group removed", &format!("group {name}"), "")?;
    let (theirs, values) = ("assigned = $1", params![name]);
    records::count_out(db, theirs, values)?;
    records::count_in(db, "channel", theirs, values)?;
    db.execute(
        &format!("UPDATE hosts SET assigned = NULL, grp = channel WHERE {theirs}"),
        values,
    )?;
    if !plan.channels.contains_key(name) {
        step_all(db, plan, by, name, &Event::Supersede, |_| true)?;
    }
    plan.reload(db, by.now)?;
    step_all(db, plan, by, name, &Event::Replan, |_| true)
}

/// Lets those rollouts of a group take a step.
fn step_all(
    db: &Db,
    plan: &mut Plan,
    by: &By,
    group: &str,
    event: &Event<'_>,
    which: impl Fn(&Current) -> bool,
) -> Result<(), ApiError> {
    let own = plan.rollouts_of(group).filter(|current| which(current));
    let versions: Vec<_> = own.map(|current| current.version.clone()).collect();
    for version in versions {
        plan.step(db, group, &version, event.clone(), by.now)?;
    }
    Ok(())
}

/// Whose rollout is meant.
#[derive(Clone, Debug)]
pub(super) enum Scope {
    Group(String),
    /// Of one release in a group.
    Release(String, Version),
    /// Every group on it.
    Channel(String),
}

/// Pauses, or goes on. Gives the groups whose rollouts are concerned.
pub(super) fn pause_or_resume(
    db: &Db,
    plan: &mut Plan,
    by: &By,
    scope: &Scope,
    pause: bool,
) -> Result<Vec<RolloutState>, ApiError> {
    let (groups, what): (Vec<String>, _) = match scope {
        Scope::Group(name) => (vec![name.clone()], format!("group {name}")),
        Scope::Release(name, version) => (
            vec![name.clone()],
            format!("release {version} in group {name}"),
        ),
        Scope::Channel(name) => {
            let on_it = plan.groups.values().filter(|group| group.channel == *name);
            (
                on_it.map(|group| group.name.clone()).collect(),
                format!("channel {name}"),
            )
        }
    };
    let is_meant = |current: &Current| match scope {
        Scope::Release(_, version) => current.version == *version,
        Scope::Group(_) | Scope::Channel(_) => true,
    };
    let own = |group: String| {
        let meant = plan.rollouts_of(&group).filter(|it| is_meant(it));
        let versions: Vec<_> = meant.map(|it| it.version.clone()).collect();
        versions.into_iter().map(move |it| (group.clone(), it))
    };
    let running: Vec<(String, Version)> = groups.into_iter().flat_map(own).collect();
    if running.is_empty() {
        return Err(not_found(
            format!("{what} has no rollout"),
            "orlop fleet rollouts lists them",
        ));
    }
    for (group, version) in &running {
        let release = plan.releases.get(version);
        let withdrawn = release.is_some_and(|release| release.withdrawn.is_some());
        if withdrawn && !pause {
            // The others may go on without a stop.
            if is_stop(plan, group, version) && !matches!(scope, Scope::Release(..)) {
                continue;
            }
            let what = format!("the release that group {group} would get was withdrawn");
            return Err(ApiError::new(StatusCode::CONFLICT, what)
                .hint("allow it again first: orlop release restore VERSION"));
        }
        let event = if pause {
            Event::Pause { by: &by.actor }
        } else {
            Event::Resume
        };
        plan.step(db, group, version, event, by.now)?;
    }
    by.note(db, if pause { "paused" } else { "resumed" }, &what, "")?;
    Ok(running
        .iter()
        .filter_map(|(group, version)| state(plan, group, plan.rollout(group, version)?))
        .collect())
}

/// Is it on the way to what the group's channel points at?
fn is_stop(plan: &Plan, group: &str, version: &Version) -> bool {
    plan.main(group)
        .is_some_and(|main| main.version != *version)
}

/// Puts a host into a group, or leaves it to the host.
pub(super) fn assign(
    db: &Db,
    plan: &Plan,
    by: &By,
    machine_id: &str,
    group: Option<&str>,
) -> Result<(), ApiError> {
    if let Some(group) = group.filter(|group| !plan.groups.contains_key(*group)) {
        return Err(not_found(
            format!("there is no group {group}"),
            "orlop fleet groups lists them",
        ));
    }
    records::count_out(db, "machine_id = $1", params![machine_id])?;
    let values = params![machine_id, group];
    records::count_in(db, "coalesce($2, channel)", "machine_id = $1", values)?;
    let changed = db.execute(
        "UPDATE hosts SET assigned = $2, grp = coalesce($2, channel) WHERE machine_id = $1",
        values,
    )?;
    if changed == 0 {
        return Err(not_found(
            format!("no host {machine_id} is known"),
            "orlop fleet status lists them",
        ));
    }
    let detail = group.unwrap_or("what it says itself");
    by.note(db, "host assigned", &format!("host {machine_id}"), detail)
}

/// Forgets a host that is no more. Should it ask again, it is a new one.
pub(super) fn forget_host(
    db: &Db,
    plan: &mut Plan,
    by: &By,
    machine_id: &str,
    why: &str,
) -> Result<(), ApiError> {
    // What it was granted must not wait for it forever.
    let grants = records::grants(db, machine_id)?;
    let turns: Vec<_> = plan
        .all_rollouts()
        .filter_map(|(group, current)| {
            let grant = *current.grant(&grants)?;
            Some((group.to_owned(), current.version.clone(), grant))
        })
        .collect();
    for (group, version, grant) in turns {
        if grant.expires.is_some() {
            // Its time is over now.
            let expires = Some(by.now);
            let grant = Some(Grant { expires, ..grant });
            let what = HostEvent::Expired { heard: true };
            let id = machine_id;
            let event = Event::Host { id, grant, what };
            plan.step(db, &group, &version, event, by.now)?;
        }
    }
    records::count_out(db, "machine_id = $1", params![machine_id])?;
    let hosts = "DELETE FROM hosts WHERE machine_id = $1";
    if db.execute(hosts, params![machine_id])? == 0 {
        return Err(not_found(
            format!("no host {machine_id} is known"),
            "orlop fleet status lists them",
        ));
    }
    for table in ["events", "failures", "grants"] {
        let sql = format!("DELETE FROM {table} WHERE machine_id = $1");
        db.execute(&sql, params![machine_id])?;
    }
    by.note(db, "host forgotten", &format!("host {machine_id}"), why)
}

/// Every rollout: of each group first that of what its channel points at.
pub(super) fn rollouts(plan: &Plan) -> Vec<RolloutState> {
    plan.all_rollouts()
        .filter_map(|(group, current)| state(plan, group, current))
        .collect()
}

fn state(plan: &Plan, group: &str, current: &Current) -> Option<RolloutState> {
    let policy = &plan.groups.get(group)?.policy;
    let rollout = &current.rollout;
    let wave = |(number, tally): (usize, &crate::rollout::Tally)| WaveState {
        share: policy.waves.get(number).copied().unwrap_or(100),
        open: number <= rollout.wave,
        tally: *tally,
    };
    Some(RolloutState {
        id: current.id,
        group: group.into(),
        version: current.version.clone(),
        stop: is_stop(plan, group, &current.version),
        status: rollout.status.as_str().into(),
        reason: match &rollout.status {
            Status::Paused { by, .. } => Some(format!("by {by}")),
            Status::Halted { reason, .. } => Some(reason.clone()),
            Status::AwaitingCanary => policy
                .canary
                .as_ref()
                .map(|canary| format!("group {canary} goes first")),
            _ => None,
        },
        started: rollout.started,
        changed: current.changed,
        wave: rollout.wave + 1,
        next_wave: rollout.next_wave(policy),
        waves: rollout.tallies.iter().enumerate().map(wave).collect(),
    })
}

pub(super) fn group(db: &Db, plan: &Plan, group: &Group) -> Result<GroupState, ApiError> {
    let hosts = records::census(db, &group.name)?;
    Ok(GroupState {
        name: group.name.clone(),
        channel: group
            .channel
            .parse()
            .map_err(|e| ApiError::internal("a group has no channel", e))?,
        description: group.description.clone(),
        policy: group.policy.clone(),
        own: group.own,
        hosts: hosts.iter().map(|(_, number)| number).sum(),
        rollout: plan
            .main(&group.name)
            .and_then(|main| state(plan, &group.name, main)),
        stops: plan
            .rollouts_of(&group.name)
            .filter(|it| is_stop(plan, &group.name, &it.version))
            .filter_map(|it| state(plan, &group.name, it))
            .collect(),
    })
}

pub(super) fn groups(db: &Db, plan: &Plan) -> Result<Vec<GroupState>, ApiError> {
    plan.groups
        .values()
        .map(|one| group(db, plan, one))
        .collect()
}
