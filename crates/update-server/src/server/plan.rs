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
    /// What hosts will believe of which channel; empty where there is no TUF metadata.
    signed: Signed,
    pub(super) groups: BTreeMap<String, Arc<Group>>,
    /// By group.
    pub(super) rollouts: BTreeMap<String, Arc<Current>>,
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

/// A group's rollout.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) id: i64,
    pub(super) version: Version,
    pub(super) changed: Timestamp,
    pub(super) rollout: Rollout,
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
    /// A stop on the way to what the channel points at.
    pub(super) is_hop: bool,
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
                   WHERE id IN (SELECT max(id) FROM rollouts GROUP BY grp)";
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
            let over = current.rollout.status == Status::Superseded;
            if !over && plan.groups.contains_key(&group) {
                plan.rollouts.insert(group, Arc::new(current));
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

    /// What this host may have now. Changes nothing.
    pub(super) fn choose(
        &self,
        group: Option<&Group>,
        asking: Asking<'_>,
        grant: Option<&Grant>,
        now: Timestamp,
    ) -> Result<Chosen, Wait> {
        let nothing = || Wait::Stay(Stay::NothingOnChannel);
        let group = group.ok_or_else(nothing)?;
        let target = self.target(group).ok_or_else(nothing)?;
        let signed = |stop: &Published| {
            let named = self.signed.get(&group.channel);
            // Flatcar's hosts do not know our metadata.
            stop.manifest.is_flatcar()
                || self.signed.is_empty()
                || named.is_some_and(|named| named.contains(&stop.envelope_sha256))
        };
        let release =
            policy::choose(asking, target, &self.releases, &signed).map_err(Wait::Stay)?;
        let is_hop = !Arc::ptr_eq(&release, target);
        let turn = match self.rollouts.get(&group.name) {
            // Who asks by hand does not wait for a turn, but a halted release stays halted.
            // Whoever forces it does not wait for a turn.
            Some(current) if !asking.force => current
                .rollout
                .turn(&group.policy, asking.host, grant, now)
                .map_err(Wait::Hold)?,
            _ => Turn::Standing,
        };
        Ok(Chosen {
            release,
            turn,
            is_hop,
        })
    }

    /// Lets the rollout of a group take a step. Gives the actions, and tells the operator.
    pub(super) fn step(
        &mut self,
        db: &Db,
        group: &str,
        event: Event<'_>,
        now: Timestamp,
    ) -> Result<Vec<Action>, ApiError> {
        let (Some(current), Some(about)) = (self.rollouts.get(group), self.groups.get(group))
        else {
            return Ok(vec![]);
        };
        let (id, version) = (current.id, current.version.clone());
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
            self.rollouts.insert(group.into(), Arc::new(next));
            self.changed = true;
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
            self.halt_elsewhere(db, group, &version, &reason, now)?;
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
            .rollouts
            .iter()
            .filter(|(name, current)| *name != group && current.version == *version)
            .map(|(name, _)| name.clone())
            .collect();
        let reason = halted_in(group, reason);
        for other in others {
            self.step(db, &other, Event::Halt { reason: &reason }, now)?;
        }
        Ok(())
    }

    /// Every group whose channel points elsewhere than its rollout gets a new one.
    pub(super) fn reconcile(&mut self, db: &Db, now: Timestamp) -> Result<(), ApiError> {
        let groups: Vec<Arc<Group>> = self.groups.values().cloned().collect();
        for group in groups {
            let target = self.target(&group).cloned();
            let version = target.as_ref().map(|release| release.manifest.version());
            if self
                .rollouts
                .get(&group.name)
                .map(|current| &current.version)
                == version
            {
                continue;
            }
            if self.rollouts.contains_key(&group.name) {
                self.step(db, &group.name, Event::Supersede, now)?;
                self.save(db, None)?;
                self.rollouts.remove(&group.name);
            }
            let Some(release) = target else { continue };
            let halted = self.halted_on(&group.channel, release.manifest.version());
            let rollout = Rollout::new(&group.policy, &release.id.to_string(), now);
            let version = release.manifest.version();
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
            self.rollouts.insert(group.name.clone(), Arc::new(current));
            if let Some(reason) = halted {
                self.step(db, &group.name, Event::Halt { reason: &reason }, now)?;
            }
        }
        Ok(())
    }

    /// Why a release is not given to another group of the channel.
    fn halted_on(&self, channel: &str, version: &Version) -> Option<String> {
        self.rollouts.iter().find_map(|(name, current)| {
            let same = current.version == *version && self.groups.get(name)?.channel == channel;
            match &current.rollout.status {
                Status::Halted { reason, .. } if same => Some(halted_in(name, reason)),
                _ => None,
            }
        })
    }

    /// Writes the rollouts that are not as they were in `before`.
    pub(super) fn save(&mut self, db: &Db, before: Option<&Self>) -> Result<(), ApiError> {
        for (group, current) in &self.rollouts {
            let same = before
                .and_then(|before| before.rollouts.get(group))
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
