//! What is to be rolled out where: channels, releases, groups and their rollouts, in memory.
//!
//! The thread that writes owns the newest [`Plan`] and saves what of it changed with every commit;
//! check-ins that change nothing look at a copy. A plan is a handful of shared pointers, so a copy
//! costs little.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use release::Version;

use super::catalog::{self, Published, Signed};
use super::error::ApiError;
use super::policy::{self, Asking, Stay};
use super::records;
use super::sql::{Db, SqlError, params};
use crate::rollout::{Action, Event, Grant, Hold, Note, Policy, Rollout, Status, Turn, step};

#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) releases: BTreeMap<Version, Arc<Published>>,
    pub(super) channels: BTreeMap<String, Option<Version>>,
    /// What hosts will believe of which channel; none where there is no TUF metadata.
    signed: Option<Signed>,
    pub(super) groups: BTreeMap<String, Arc<Group>>,
    /// By group and release: of what its channel points at, and of each stop on the way there that
    /// a host of the group came to need.
    rollouts: BTreeMap<String, BTreeMap<Version, Arc<Current>>>,
    /// Rises with every change, whichever server makes it.
    pub(super) number: i64,
    /// Something is not saved yet.
    changed: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) channel: String,
    pub(super) description: String,
    pub(super) policy: Policy,
    /// Somebody made it; others come with their channel.
    pub(super) own: bool,
}

/// A rollout of a group.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) id: i64,
    pub(super) version: Version,
    pub(super) changed: Timestamp,
    pub(super) rollout: Rollout,
}

impl Current {
    /// What of a host's grants is from this one.
    pub(super) fn grant<'a>(&self, grants: &'a [(i64, Grant)]) -> Option<&'a Grant> {
        let mut own = grants.iter().filter(|(rollout, _)| *rollout == self.id);
        own.next().map(|(_, grant)| grant)
    }
}

/// Why a host stays with what it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Stay(Stay),
    Hold(Hold),
}

impl std::fmt::Display for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stay(stay) => stay.fmt(f),
            Self::Hold(hold) => hold.fmt(f),
        }
    }
}

/// What a host may have, if it may.
pub(super) struct Chosen {
    pub(super) release: Arc<Published>,
    pub(super) turn: Turn,
}

impl Plan {
    pub(super) fn load(db: &Db) -> Result<Self, ApiError> {
        let releases = catalog::published_all(db)?;
        let mut plan = Self {
            releases: releases
                .into_iter()
                .map(|release| (release.manifest.version().clone(), Arc::new(release)))
                .collect(),
            channels: catalog::pointers(db)?,
            signed: catalog::signed(db)?,
            groups: BTreeMap::new(),
            rollouts: BTreeMap::new(),
            number: Self::newest(db)?,
            changed: false,
        };
        for name in plan.channels.keys() {
            let group = Group {
                name: name.clone(),
                channel: name.clone(),
                description: String::new(),
                policy: Policy::default(),
                own: false,
            };
            plan.groups.insert(name.clone(), Arc::new(group));
        }
        for group in catalog::groups(db)? {
            plan.groups.insert(group.name.clone(), Arc::new(group));
        }
        let sql = "SELECT grp, id, version, changed_at, state FROM rollouts \
                   WHERE status <> 'superseded' ORDER BY id";
        let rows = db.rows(sql, &[], |row| {
            let state: String = row.get(4)?;
            let current = Current {
                id: row.get(1)?,
                version: catalog::parsed(row, 2)?,
                changed: catalog::time(row, 3)?,
                rollout: serde_json::from_str(&state).map_err(|e| catalog::bad_column(4, e))?,
            };
            Ok((row.get::<String>(0)?, current))
        })?;
        for (group, current) in rows {
            if plan.groups.contains_key(&group) {
                plan.put(&group, current);
            }
        }
        Ok(plan)
    }

    /// The number of the newest plan in the database.
    pub(super) fn newest(db: &Db) -> Result<i64, SqlError> {
        db.value("SELECT number FROM meta WHERE name = 'plan'", &[])
    }

    /// After a change to channels, releases or groups.
    pub(super) fn reload(&mut self, db: &Db, now: Timestamp) -> Result<(), ApiError> {
        self.save(db, None)?;
        *self = Self::load(db)?;
        self.changed = true;
        self.reconcile(db, now)?;
        self.save(db, None)
    }

    /// The group of a host that says `track` and was put into `assigned`.
    pub(super) fn group(&self, track: &str, assigned: Option<&str>) -> Option<&Arc<Group>> {
        assigned
            .and_then(|name| self.groups.get(name))
            .or_else(|| self.groups.get(track))
    }

    /// What a group's channel points at.
    pub(super) fn target(&self, group: &Group) -> Option<&Arc<Published>> {
        let version = self.channels.get(&group.channel)?.as_ref()?;
        self.releases.get(version)
    }

    /// The rollout of a release in a group.
    pub(super) fn rollout(&self, group: &str, version: &Version) -> Option<&Arc<Current>> {
        self.rollouts.get(group)?.get(version)
    }

    /// The rollout of what the group's channel points at.
    pub(super) fn main(&self, group: &str) -> Option<&Arc<Current>> {
        let target = self.target(self.groups.get(group)?)?;
        self.rollout(group, target.manifest.version())
    }

    /// A group's rollouts: first that of what its channel points at, then the stops on the way there,
    /// the last one first.
    pub(super) fn rollouts_of(&self, group: &str) -> impl Iterator<Item = &Arc<Current>> {
        // Every stop is older than where it leads to.
        let own = self.rollouts.get(group).into_iter();
        own.flat_map(|own| own.values().rev())
    }

    /// Every rollout, with its group.
    pub(super) fn all_rollouts(&self) -> impl Iterator<Item = (&str, &Arc<Current>)> {
        let groups = self.rollouts.keys().map(String::as_str);
        groups.flat_map(|group| self.rollouts_of(group).map(move |it| (group, it)))
    }

    fn put(&mut self, group: &str, current: Current) {
        let version = current.version.clone();
        let own = self.rollouts.entry(group.into()).or_default();
        own.insert(version, Arc::new(current));
    }

    /// Would hosts of the channel believe it?
    pub(super) fn is_signed(&self, channel: &str, release: &Published) -> bool {
        // Flatcar's hosts do not know our metadata.
        release.manifest.is_flatcar()
            || self.signed.as_ref().is_none_or(|signed| {
                let named = signed.get(channel);
                named.is_some_and(|named| named.contains(&release.envelope_sha256))
            })
    }

    /// What brings this host nearer to what its channel points at, whether it is its turn or not.
    pub(super) fn next(
        &self,
        group: Option<&Group>,
        asking: Asking<'_>,
    ) -> Result<Arc<Published>, Stay> {
        let group = group.ok_or(Stay::NothingOnChannel)?;
        let target = self.target(group).ok_or(Stay::NothingOnChannel)?;
        let signed = |stop: &Published| self.is_signed(&group.channel, stop);
        policy::choose(asking, target, &self.releases, &signed)
    }

    /// What this host may have now; `grants` are what rollouts gave it. Changes nothing.
    pub(super) fn choose(
        &self,
        group: Option<&Group>,
        asking: Asking<'_>,
        grants: &[(i64, Grant)],
        now: Timestamp,
    ) -> Result<Chosen, Wait> {
        let release = self.next(group, asking).map_err(Wait::Stay)?;
        let Some(group) = group else {
            return Err(Wait::Stay(Stay::NothingOnChannel));
        };
        let (fresh, grant);
        let rollout = match self.rollout(&group.name, release.manifest.version()) {
            Some(current) => {
                grant = current.grant(grants);
                &current.rollout
            }
            // As it will be once somebody needs that stop.
            None => {
                grant = None;
                fresh = self.fresh(group, &release, now);
                &fresh
            }
        };
        let turn = if asking.force {
            rollout.forced(&group.policy, asking.host, grant)
        } else {
            let turn = rollout.turn(&group.policy, asking.host, grant, now);
            turn.map_err(Wait::Hold)?
        };
        Ok(Chosen { release, turn })
    }

    /// A rollout at its beginning. A pause and what the cap counts are the group's.
    fn fresh(&self, group: &Group, release: &Published, now: Timestamp) -> Rollout {
        let mut rollout = Rollout::new(&group.policy, &release.id.to_string(), now);
        let mut others = self.rollouts_of(&group.name);
        rollout.period = others.find_map(|other| other.rollout.period);
        match self.main(&group.name).map(|main| &main.rollout.status) {
            Some(Status::Paused { by, .. }) => {
                step(&group.policy, rollout, Event::Pause { by }, now).rollout
            }
            _ => rollout,
        }
    }

    /// Lets a rollout take a step. Gives the actions, and tells the operator.
    pub(super) fn step(
        &mut self,
        db: &Db,
        group: &str,
        version: &Version,
        event: Event<'_>,
        now: Timestamp,
    ) -> Result<Vec<Action>, ApiError> {
        let (Some(current), Some(about)) = (self.rollout(group, version), self.groups.get(group))
        else {
            return Ok(vec![]);
        };
        let (id, period) = (current.id, current.rollout.period);
        let host = match &event {
            Event::Host { id, .. } => Some((*id).to_owned()),
            _ => None,
        };
        let result = step(&about.policy, current.rollout.clone(), event, now);
        if result.rollout != current.rollout {
            let next = Current {
                id,
                version: version.clone(),
                changed: now,
                rollout: result.rollout,
            };
            let counted = (next.rollout.period != period).then_some(next.rollout.period);
            self.put(group, next);
            self.changed = true;
            // The cap is the group's, whichever release its hosts begin.
            if let (Some(period), Some(own)) = (counted, self.rollouts.get_mut(group)) {
                for other in own.values_mut().filter(|it| it.rollout.period != period) {
                    Arc::make_mut(other).rollout.period = period;
                }
            }
        }
        let mut halted = None;
        for action in &result.actions {
            match action {
                Action::SaveGrant(grant) => {
                    if let Some(host) = &host {
                        records::save_grant(db, id, host, grant, now)?;
                    }
                }
                Action::RegroupGrants => records::regroup_grants(db, id)?,
                Action::Tell(note) => {
                    let (action, detail) = tell(note, host.as_deref());
                    let subject = format!("release {version} in group {group}");
                    records::activity(db, "", action, &subject, &detail, now)?;
                    tracing::info!(group, %version, "{action} {detail}");
                    if let Note::Halted { reason } = note {
                        halted = Some(reason.clone());
                    }
                }
                Action::Offer | Action::Hold(_) => {}
            }
        }
        if let Some(reason) = halted {
            self.halt_elsewhere(db, group, version, &reason, now)?;
        }
        Ok(result.actions)
    }

    /// What is bad in one group is not tried in the next.
    fn halt_elsewhere(
        &mut self,
        db: &Db,
        group: &str,
        version: &Version,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        if reason.starts_with(HALTED_IN) {
            return Ok(());
        }
        let others: Vec<String> = self
            .all_rollouts()
            .filter(|(name, current)| *name != group && current.version == *version)
            .map(|(name, _)| name.to_owned())
            .collect();
        let reason = halted_in(group, reason);
        for other in others {
            self.step(db, &other, version, Event::Halt { reason: &reason }, now)?;
        }
        Ok(())
    }

    /// The releases whose rollouts a group keeps. One that is left out now, because it was withdrawn
    /// or hosts would not believe it, is among them: allowed again, it must not begin anew.
    fn way(&self, group: &Group) -> Vec<Version> {
        let Some(target) = self.target(group) else {
            return vec![];
        };
        let usable =
            |stop: &Published| stop.withdrawn.is_none() && self.is_signed(&group.channel, stop);
        let was = |stop: &Published| {
            usable(stop) || self.rollout(&group.name, stop.manifest.version()).is_some()
        };
        std::iter::once(target)
            .chain(policy::stops(target, &self.releases, &usable))
            .chain(policy::stops(target, &self.releases, &was))
            .map(|release| release.manifest.version().clone())
            .collect()
    }

    /// Ends the rollouts that lead nowhere any more, and begins one of what each channel points at.
    pub(super) fn reconcile(&mut self, db: &Db, now: Timestamp) -> Result<(), ApiError> {
        let groups: Vec<Arc<Group>> = self.groups.values().cloned().collect();
        for group in groups {
            let way = self.way(&group);
            let versions = self.rollouts_of(&group.name).map(|it| it.version.clone());
            let over: Vec<_> = versions.filter(|version| !way.contains(version)).collect();
            for version in over {
                self.step(db, &group.name, &version, Event::Supersede, now)?;
                self.save(db, None)?;
                if let Some(own) = self.rollouts.get_mut(&group.name) {
                    own.remove(&version);
                }
            }
            if let Some(target) = self.target(&group).cloned() {
                self.begin(db, &group, &target, now)?;
            }
        }
        Ok(())
    }

    /// Begins the rollout of a release in a group, if there is none yet.
    pub(super) fn begin(
        &mut self,
        db: &Db,
        group: &Group,
        release: &Published,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        let version = release.manifest.version();
        if self.rollout(&group.name, version).is_some() {
            return Ok(());
        }
        let halted = self.halted_on(&group.channel, version);
        let rollout = self.fresh(group, release, now);
        let id = records::next_id(db, "rollouts")?;
        let sql = "INSERT INTO rollouts (grp, channel, version, release_id, status, started_at, changed_at, state, id) \
                   VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $8)";
        let values = params![
            &group.name,
            &group.channel,
            version.to_string(),
            release.id.to_string(),
            rollout.status.as_str(),
            now,
            json(&rollout)?,
            id,
        ];
        db.execute(sql, values)?;
        self.changed = true;
        let current = Current {
            id,
            version: version.clone(),
            changed: now,
            rollout,
        };
        self.put(&group.name, current);
        if let Some(reason) = halted {
            self.step(
                db,
                &group.name,
                version,
                Event::Halt { reason: &reason },
                now,
            )?;
        }
        Ok(())
    }

    /// Why a release is not given to another group of the channel.
    fn halted_on(&self, channel: &str, version: &Version) -> Option<String> {
        self.rollouts.keys().find_map(|name| {
            let current = self.rollout(name, version)?;
            let same = self.groups.get(name)?.channel == channel;
            match &current.rollout.status {
                Status::Halted { reason, .. } if same => Some(halted_in(name, reason)),
                _ => None,
            }
        })
    }

    /// Writes the rollouts that are not as they were in `before`.
    pub(super) fn save(&mut self, db: &Db, before: Option<&Self>) -> Result<(), ApiError> {
        for (group, current) in self.all_rollouts() {
            let same = before
                .and_then(|before| before.rollout(group, &current.version))
                .is_some_and(|before| Arc::ptr_eq(before, current));
            if same {
                continue;
            }
            let sql = "UPDATE rollouts SET status = $2, changed_at = $3, state = $4 WHERE id = $1";
            let values = params![
                current.id,
                current.rollout.status.as_str(),
                current.changed,
                json(&current.rollout)?,
            ];
            db.execute(sql, values)?;
        }
        if self.changed {
            self.number += 1;
            self.changed = false;
            let sql = "UPDATE meta SET number = $1 WHERE name = 'plan'";
            db.execute(sql, params![self.number])?;
        }
        Ok(())
    }
}

const HALTED_IN: &str = "halted in group ";

/// The reason where it is halted because it was in `group`.
fn halted_in(group: &str, reason: &str) -> String {
    if reason.starts_with(HALTED_IN) {
        reason.to_owned()
    } else {
        format!("{HALTED_IN}{group}: {reason}")
    }
}

fn json(rollout: &Rollout) -> Result<String, ApiError> {
    serde_json::to_string(rollout).map_err(|e| ApiError::internal("a rollout cannot be stored", e))
}

/// The note in an operator's words.
fn tell(note: &Note, host: Option<&str>) -> (&'static str, String) {
    match note {
        Note::CanaryPassed => ("canary passed", String::new()),
        Note::WaveOpened { number, share } => ("wave opened", format!("wave {number}: {share} %")),
        Note::Halted { reason } => ("halted", reason.clone()),
        Note::Completed => ("completed", String::new()),
        Note::Lost => (
            "host lost",
            format!(
                "{} began it and was not heard of again",
                host.unwrap_or_default()
            ),
        ),
    }
}
