//! What hosts said about themselves, in the database. All of it is claims by strangers: texts are
//! cut to a sane length when they come in and escaped when they go out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use release::omaha::{self, AppRequest, EventMeaning};
use release::status::{FailedRelease, Health};
use release::{Sha256, Version};

use super::catalog::{self, time};
use super::error::ApiError;
use super::plan::{Group, Plan};
use super::policy::Asking;
use super::sql::{Db, Row, SqlError, Value, params};
use crate::api::{Activity, Event, FailureCount, HistoryPoint, Host, Overview, VersionCount};
use crate::rollout::{self, Grant, GrantState};

const KEEP_EVENTS_DAYS: i64 = 90;
const KEEP_ACTIVITY_DAYS: i64 = 400;
const KEEP_HISTORY_DAYS: i64 = 90;

const PINGS_AT_ONCE: usize = 100;

/// No text of that kind is longer, in letters.
const VERSION: usize = 64;
const REASON: usize = 4000;

/// The id, if it can be one: /etc/machine-id has 32 digits, others have UUIDs.
pub(super) fn machine_id(text: &str) -> Option<&str> {
    let text = text.trim_matches(['{', '}']);
    let good = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    good.then_some(text)
}

fn clip(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

fn clip_if(text: Option<&String>, chars: usize) -> Option<String> {
    text.map(|text| clip(text, chars))
}

/// What is known of a host that asks.
#[derive(Clone)]
pub(super) struct Known {
    said: Said,
    pub(super) assigned: Option<String>,
    pub(super) failed: Vec<FailedKey>,
    /// By rollout.
    pub(super) grants: Vec<(i64, Grant)>,
}

pub(super) type KnownHosts = HashMap<String, Known>;

/// What a host says about itself, cut to a sane length.
#[derive(Clone, PartialEq)]
struct Said {
    hostname: Option<String>,
    version: String,
    slot: Option<String>,
    channel: String,
    health: Option<String>,
    board: Option<String>,
    boot_id: Option<String>,
}

impl Said {
    fn new(app: &AppRequest) -> Self {
        Self {
            hostname: clip_if(app.hostname.as_ref(), 253),
            version: clip(&app.version, VERSION),
            slot: app.slot.map(|slot| slot.to_string()),
            channel: clip(&app.track, 64),
            health: app.health.map(|health| health.as_str().to_owned()),
            board: clip_if(app.board.as_ref(), 32),
            boot_id: clip_if(app.boot_id.as_ref(), 64),
        }
    }
}

impl Known {
    /// Nothing is to be recorded but that it was here.
    pub(super) fn says_the_same(&self, app: &AppRequest) -> bool {
        let (old, new) = (&self.said, Said::new(app));
        let same = |new: Option<String>, old: &Option<String>| new.is_none() || new == *old;
        new.version == old.version
            && new.channel == old.channel
            && same(new.hostname, &old.hostname)
            && same(new.slot, &old.slot)
            && same(new.health, &old.health)
            && same(new.board, &old.board)
            && same(new.boot_id, &old.boot_id)
    }
}

/// So many ids are looked for at once, so that there are few statements to prepare.
const LOOKUPS: [usize; 3] = [1, 8, 64];

/// `SELECT … WHERE {column} IN (ids)`.
fn lookup<T>(
    db: &Db,
    select: &str,
    column: &str,
    ids: &[&str],
    mut make: impl FnMut(&Row) -> Result<T, SqlError>,
) -> Result<Vec<T>, SqlError> {
    let mut found = vec![];
    for some in ids.chunks(LOOKUPS[LOOKUPS.len() - 1]) {
        let fits = LOOKUPS.into_iter().find(|size| *size >= some.len());
        let size = fits.unwrap_or(some.len());
        let places: Vec<_> = (1..=size).map(|place| format!("${place}")).collect();
        let sql = format!("{select} WHERE {column} IN ({})", places.join(", "));
        // The last one fills the rest: looking for it again finds nothing new.
        let last = some.last().copied().unwrap_or_default();
        let padded = some.iter().copied().chain(std::iter::repeat(last));
        let values: Vec<Value> = padded.take(size).map(Value::from).collect();
        found.extend(db.rows(&sql, &values, &mut make)?);
    }
    Ok(found)
}

/// Of those hosts that are known.
pub(super) fn known(db: &Db, ids: &[&str]) -> Result<KnownHosts, SqlError> {
    let select = "SELECT machine_id, hostname, version, slot, channel, health, board, boot_id, \
                         assigned FROM hosts";
    let hosts = lookup(db, select, "machine_id", ids, |row| {
        let known = Known {
            said: Said {
                hostname: row.get(1)?,
                version: row.get(2)?,
                slot: row.get(3)?,
                channel: row.get(4)?,
                health: row.get(5)?,
                board: row.get(6)?,
                boot_id: row.get(7)?,
            },
            assigned: row.get(8)?,
            failed: vec![],
            grants: vec![],
        };
        Ok((row.get(0)?, known))
    })?;
    let mut hosts: KnownHosts = hosts.into_iter().collect();
    let select = "SELECT machine_id, release_id, version FROM failures";
    let failures = lookup(db, select, "machine_id", ids, |row| {
        Ok((row.get::<String>(0)?, failed_key(row, 1)?))
    })?;
    for (id, failed) in failures {
        hosts
            .entry(id)
            .and_modify(|known| known.failed.push(failed));
    }
    let select = "SELECT machine_id, rollout, wave, state, expires_at FROM grants";
    let grants = lookup(db, select, "machine_id", ids, |row| {
        Ok((row.get::<String>(0)?, (row.get(1)?, read_grant(row, 2)?)))
    })?;
    for (id, grant) in grants {
        hosts.entry(id).and_modify(|known| known.grants.push(grant));
    }
    Ok(hosts)
}

/// A host that was recorded.
pub(super) struct Seen {
    pub(super) group: Option<Arc<Group>>,
    /// It runs another version than before, or is new here.
    pub(super) other_version: bool,
}

/// Records that a host is there. What it leaves out stays as it was.
pub(super) fn seen(
    db: &Db,
    plan: &Plan,
    machine_id: &str,
    app: &AppRequest,
    now: Timestamp,
) -> Result<Seen, ApiError> {
    let sql = "SELECT assigned, grp, channel, version, coalesce(health, '') \
               FROM hosts WHERE machine_id = $1";
    let before = db.row(sql, params![machine_id], |row| {
        let counted = Counted {
            group: row.get(1)?,
            channel: row.get(2)?,
            version: row.get(3)?,
            health: row.get(4)?,
        };
        Ok((row.get::<Option<String>>(0)?, counted))
    })?;
    let (assigned, before) = match before {
        Some((assigned, counted)) => (assigned, Some(counted)),
        None => (None, None),
    };
    let said = Said::new(app);
    let group = plan.group(&said.channel, assigned.as_deref()).cloned();
    let sql = "INSERT INTO hosts (machine_id, hostname, version, slot, channel, health, board, \
                                  boot_id, first_seen, last_seen, grp) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, $10) \
               ON CONFLICT (machine_id) DO UPDATE SET \
                   hostname = coalesce(excluded.hostname, hosts.hostname), \
                   version = excluded.version, \
                   slot = coalesce(excluded.slot, hosts.slot), \
                   channel = excluded.channel, \
                   health = coalesce(excluded.health, hosts.health), \
                   board = coalesce(excluded.board, hosts.board), \
                   boot_id = coalesce(excluded.boot_id, hosts.boot_id), \
                   last_seen = excluded.last_seen, \
                   grp = excluded.grp";
    let group_name = group
        .as_ref()
        .map_or(said.channel.as_str(), |group| &group.name);
    let values = params![
        machine_id,
        said.hostname,
        said.version.as_str(),
        said.slot,
        said.channel.as_str(),
        said.health.as_deref(),
        said.board,
        said.boot_id,
        now,
        group_name,
    ];
    db.execute(sql, values)?;
    let after = Counted {
        group: group_name.into(),
        channel: said.channel,
        version: said.version,
        health: said
            .health
            .or_else(|| before.as_ref().map(|before| before.health.clone()))
            .unwrap_or_default(),
    };
    if before.as_ref() != Some(&after) {
        if let Some(before) = &before {
            before.count(db, -1)?;
        }
        after.count(db, 1)?;
    }
    let other = |before: &Counted| before.version != after.version;
    Ok(Seen {
        other_version: before.as_ref().is_none_or(other),
        group,
    })
}

/// What hosts are counted by.
#[derive(PartialEq)]
struct Counted {
    group: String,
    channel: String,
    version: String,
    health: String,
}

impl Counted {
    fn count(&self, db: &Db, hosts: i64) -> Result<(), ApiError> {
        let values = params![
            &self.group,
            &self.channel,
            &self.version,
            &self.health,
            hosts
        ];
        db.execute("INSERT INTO census VALUES ($1, $2, $3, $4, $5)", values)?;
        Ok(())
    }
}

/// Before hosts change: takes those that `which` is true of out of the census.
pub(super) fn count_out(db: &Db, which: &str, values: &[Value]) -> Result<(), ApiError> {
    recount(db, "-", "grp", which, values)
}

/// Before hosts change: counts those that `which` is true of as members of `group`, an expression.
pub(super) fn count_in(
    db: &Db,
    group: &str,
    which: &str,
    values: &[Value],
) -> Result<(), ApiError> {
    recount(db, "", group, which, values)
}

fn recount(
    db: &Db,
    sign: &str,
    group: &str,
    which: &str,
    values: &[Value],
) -> Result<(), ApiError> {
    let sql = format!(
        "INSERT INTO census SELECT {group}, channel, version, coalesce(health, ''), {sign}count(*) \
         FROM hosts WHERE {which} GROUP BY 1, 2, 3, 4"
    );
    db.execute(&sql, values)?;
    Ok(())
}

/// Folds what was added to the census and taken away.
pub(super) fn fold_census(db: &Db) -> Result<(), ApiError> {
    let sql = "SELECT count(*), count(DISTINCT grp || ' ' || channel || ' ' || version || ' ' || health) FROM census";
    let rows = db.row(sql, &[], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (rows, distinct): (u64, u64) = rows.unwrap_or_default();
    if rows < 2 * distinct + 100 {
        return Ok(());
    }
    let sql = "SELECT grp, channel, version, health, CAST(sum(hosts) AS BIGINT) FROM census \
               GROUP BY 1, 2, 3, 4 HAVING sum(hosts) > 0";
    let folded = db.rows(sql, &[], |row| {
        let counted = Counted {
            group: row.get(0)?,
            channel: row.get(1)?,
            version: row.get(2)?,
            health: row.get(3)?,
        };
        Ok((counted, row.get(4)?))
    })?;
    db.execute("DELETE FROM census", &[])?;
    folded
        .iter()
        .try_for_each(|(counted, hosts)| counted.count(db, *hosts))
}

/// Hosts that were here with nothing new to say.
pub(super) fn pinged(db: &Db, hosts: &[(String, i64)]) -> Result<(), ApiError> {
    for some in hosts.chunks(PINGS_AT_ONCE) {
        let rows: Vec<_> = (0..some.len())
            .map(|n| format!("(${}, ${})", 2 * n + 1, 2 * n + 2))
            .collect();
        let values: Vec<Value> = some
            .iter()
            .flat_map(|(id, at)| [Value::from(id), Value::from(*at)])
            .collect();
        let sql = format!(
            "WITH pinged (id, at) AS (VALUES {}) UPDATE hosts SET last_seen = pinged.at \
             FROM pinged WHERE machine_id = pinged.id AND last_seen < pinged.at",
            rows.join(", ")
        );
        db.execute(&sql, &values)?;
    }
    Ok(())
}

/// What a rollout gave a host.
pub(super) fn grant(db: &Db, rollout: i64, machine_id: &str) -> Result<Option<Grant>, ApiError> {
    let sql = "SELECT wave, state, expires_at FROM grants WHERE rollout = $1 AND machine_id = $2";
    Ok(db.row(sql, params![rollout, machine_id], |row| read_grant(row, 0))?)
}

/// What rollouts gave a host.
pub(super) fn grants(db: &Db, machine_id: &str) -> Result<Vec<(i64, Grant)>, ApiError> {
    let sql = "SELECT rollout, wave, state, expires_at FROM grants WHERE machine_id = $1";
    Ok(db.rows(sql, params![machine_id], |row| {
        Ok((row.get(0)?, read_grant(row, 1)?))
    })?)
}

fn read_grant(row: &Row, first: usize) -> Result<Grant, SqlError> {
    let state: String = row.get(first + 1)?;
    Ok(Grant {
        wave: row.get(first)?,
        state: GrantState::from_name(&state).unwrap_or(GrantState::Lapsed),
        expires: match row.get::<Option<i64>>(first + 2)? {
            Some(_) => Some(time(row, first + 2)?),
            None => None,
        },
    })
}

pub(super) fn save_grant(
    db: &Db,
    rollout: i64,
    machine_id: &str,
    grant: &Grant,
    now: Timestamp,
) -> Result<(), ApiError> {
    let sql = "INSERT INTO grants (rollout, machine_id, wave, state, granted_at, changed_at, expires_at) \
               VALUES ($1, $2, $3, $4, $5, $5, $6) \
               ON CONFLICT (rollout, machine_id) DO UPDATE SET wave = excluded.wave, \
                   state = excluded.state, changed_at = excluded.changed_at, \
                   expires_at = excluded.expires_at";
    let values = params![
        rollout,
        machine_id,
        grant.wave,
        grant.state.as_str(),
        now,
        grant.expires.map(Timestamp::as_second),
    ];
    db.execute(sql, values)?;
    Ok(())
}

/// Other waves begin with the first of them.
pub(super) fn regroup_grants(db: &Db, rollout: i64) -> Result<(), ApiError> {
    let sql = "UPDATE grants SET wave = 0 WHERE rollout = $1 AND wave <> 0";
    db.execute(sql, params![rollout])?;
    Ok(())
}

/// A grant whose time is over.
pub(super) struct Due {
    pub(super) rollout: i64,
    pub(super) machine_id: String,
    pub(super) grant: Grant,
    /// The host was seen near the end of it.
    pub(super) heard: bool,
}

pub(super) fn due_grants(db: &Db, now: Timestamp, limit: u32) -> Result<Vec<Due>, ApiError> {
    let sql = "SELECT g.rollout, g.machine_id, coalesce(h.last_seen, 0), g.changed_at, \
                      g.wave, g.state, g.expires_at \
               FROM grants g LEFT JOIN hosts h ON h.machine_id = g.machine_id \
               WHERE g.expires_at <= $1 ORDER BY g.expires_at LIMIT $2";
    Ok(db.rows(sql, params![now, limit], |row| {
        let grant = read_grant(row, 4)?;
        let (seen, began) = (time(row, 2)?, time(row, 3)?);
        let expires = grant.expires.unwrap_or(began);
        Ok(Due {
            rollout: row.get(0)?,
            machine_id: row.get(1)?,
            heard: rollout::heard(began, expires, seen),
            grant,
        })
    })?)
}

/// The next number of a table whose rows are numbered. Only one transaction at a time asks.
pub(super) fn next_id(db: &Db, table: &'static str) -> Result<i64, ApiError> {
    let sql = format!("SELECT coalesce(max(id), 0) + 1 FROM {table}");
    Ok(db.value(&sql, &[])?)
}

/// Whether an event says nothing that the host's last one did not say. A host repeats itself without end where
/// update_engine does: it reports its success with every check, and only the first time what it ran before.
pub(super) fn repeats(
    db: &Db,
    machine_id: &str,
    event: &omaha::Event,
    meaning: EventMeaning,
) -> Result<bool, ApiError> {
    type About = (String, Option<String>, Option<i64>, Option<String>);
    let sql = "SELECT event_type, event_result, meaning, version, error_code, reason, previous_version \
               FROM events WHERE machine_id = $1 ORDER BY id DESC LIMIT 1";
    let last = db.row(sql, params![machine_id], |row| {
        let numbers: (u32, u32) = (row.get(0)?, row.get(1)?);
        let about: About = (row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?);
        Ok((numbers, about, row.get::<Option<String>>(6)?))
    })?;
    let about: About = (
        meaning.as_str().to_owned(),
        event.version.as_ref().map(Version::to_string),
        event.error_code,
        clip_if(event.reason.as_ref(), REASON),
    );
    let previous = clip_if(event.previous_version.as_ref(), VERSION);
    Ok(last.is_some_and(|(numbers, last, last_previous)| {
        numbers == (event.event_type, event.event_result)
            && last == about
            && (previous.as_ref().is_none_or(String::is_empty) || previous == last_previous)
    }))
}

pub(super) fn event(
    db: &Db,
    machine_id: &str,
    event: &omaha::Event,
    meaning: EventMeaning,
    now: Timestamp,
) -> Result<(), ApiError> {
    let sql = "INSERT INTO events (machine_id, at, event_type, event_result, meaning, version, \
                                   previous_version, error_code, reason, id) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    let values = params![
        machine_id,
        now,
        event.event_type,
        event.event_result,
        meaning.as_str(),
        event.version.as_ref().map(Version::to_string),
        clip_if(event.previous_version.as_ref(), VERSION),
        event.error_code,
        clip_if(event.reason.as_ref(), REASON),
        next_id(db, "events")?,
    ];
    db.execute(sql, values)?;
    Ok(())
}

/// Forgets what is too old to be of use.
pub(super) fn tidy(db: &Db, now: Timestamp) -> Result<(), ApiError> {
    let before = |days: i64| now.as_second() - days * 86_400;
    let old = [
        ("events WHERE at < $1", before(KEEP_EVENTS_DAYS)),
        ("activity WHERE at < $1", before(KEEP_ACTIVITY_DAYS)),
        ("history WHERE at < $1", before(KEEP_HISTORY_DAYS)),
        ("sessions WHERE expires_at < $1", now.as_second()),
        (
            "grants WHERE rollout IN \
             (SELECT id FROM rollouts WHERE status = 'superseded' AND changed_at < $1)",
            before(KEEP_EVENTS_DAYS),
        ),
    ];
    for (what, before) in old {
        db.execute(&format!("DELETE FROM {what}"), params![before])?;
    }
    Ok(())
}

pub(super) fn is_unseen(db: &Db, machine_id: &str, limit: Timestamp) -> Result<bool, ApiError> {
    let sql = "SELECT count(*) FROM hosts WHERE machine_id = $1 AND last_seen < $2";
    let found: i64 = db.value(sql, params![machine_id, limit.as_second()])?;
    Ok(found > 0)
}

/// Some of the hosts that were last seen before `limit`.
pub(super) fn unseen(db: &Db, limit: Timestamp, most: u32) -> Result<Vec<String>, ApiError> {
    let sql = "SELECT machine_id FROM hosts WHERE last_seen < $1 LIMIT $2";
    Ok(
        db.rows(sql, params![limit.as_second(), i64::from(most)], |row| {
            row.get(0)
        })?,
    )
}

pub(super) fn activity(
    db: &Db,
    actor: &str,
    action: &str,
    subject: &str,
    detail: &str,
    now: Timestamp,
) -> Result<(), ApiError> {
    let sql = "INSERT INTO activity (at, actor, action, subject, detail, id) \
               VALUES ($1, $2, $3, $4, $5, $6)";
    let id = next_id(db, "activity")?;
    let values = params![now, actor, action, subject, clip(detail, 2000), id];
    db.execute(sql, values)?;
    Ok(())
}

/// Newest first; of people alone, or all.
pub(super) fn activities(
    db: &Db,
    people_only: bool,
    limit: u32,
) -> Result<Vec<Activity>, ApiError> {
    let which = if people_only { "WHERE actor <> ''" } else { "" };
    let sql = format!(
        "SELECT id, at, actor, action, subject, detail FROM activity {which} \
         ORDER BY id DESC LIMIT $1"
    );
    Ok(db.rows(&sql, params![limit], |row| {
        let actor: String = row.get(2)?;
        Ok(Activity {
            id: row.get(0)?,
            at: time(row, 1)?,
            actor: (!actor.is_empty()).then_some(actor),
            action: row.get(3)?,
            subject: row.get(4)?,
            detail: row.get(5)?,
        })
    })?)
}

pub(super) fn failure(
    db: &Db,
    machine_id: &str,
    release: Option<Sha256>,
    version: &Version,
    reason: &str,
    now: Timestamp,
) -> Result<(), ApiError> {
    let sql = "INSERT INTO failures (machine_id, release_id, version, reason, headline, at) \
               VALUES ($1, $2, $3, $4, $5, $6) \
               ON CONFLICT (machine_id, release_id, version) DO UPDATE SET \
                   reason = excluded.reason, headline = excluded.headline, at = excluded.at";
    let values = params![
        machine_id,
        release.map(|id| id.to_string()).unwrap_or_default(),
        version.to_string(),
        clip(reason, REASON),
        clip(reason.lines().next().unwrap_or_default(), REASON),
        now,
    ];
    db.execute(sql, values)?;
    Ok(())
}

pub(super) fn forget_failures(db: &Db, machine_id: &str) -> Result<(), ApiError> {
    db.execute(
        "DELETE FROM failures WHERE machine_id = $1",
        params![machine_id],
    )?;
    Ok(())
}

/// It runs this version now and is healthy.
pub(super) fn forget_failure(db: &Db, machine_id: &str, version: &Version) -> Result<(), ApiError> {
    let sql = "DELETE FROM failures WHERE machine_id = $1 AND version = $2";
    db.execute(sql, params![machine_id, version.to_string()])?;
    Ok(())
}

pub(super) type FailedKey = (Option<Sha256>, Version);

/// What this host must not be offered.
pub(super) fn failed_releases(db: &Db, machine_id: &str) -> Result<Vec<FailedKey>, ApiError> {
    let sql = "SELECT release_id, version FROM failures WHERE machine_id = $1";
    Ok(db.rows(sql, params![machine_id], |row| failed_key(row, 0))?)
}

fn failed_key(row: &Row, first: usize) -> Result<FailedKey, SqlError> {
    Ok((release_id(row, first)?, catalog::parsed(row, first + 1)?))
}

/// Empty where nobody knows it.
fn release_id(row: &Row, column: usize) -> Result<Option<Sha256>, SqlError> {
    let id: String = row.get(column)?;
    (!id.is_empty())
        .then(|| catalog::parsed(row, column))
        .transpose()
}

/// What this host left again, newest first.
fn failures_of(db: &Db, machine_id: &str) -> Result<Vec<FailedRelease>, ApiError> {
    let sql = "SELECT release_id, version, reason, at FROM failures \
               WHERE machine_id = $1 ORDER BY at DESC";
    Ok(db.rows(sql, params![machine_id], |row| {
        Ok(FailedRelease {
            version: catalog::parsed(row, 1)?,
            id: release_id(row, 0)?,
            reason: row.get(2)?,
            at: time(row, 3)?,
        })
    })?)
}

const EVENT_COLUMNS: &str = "e.id, e.at, e.machine_id, h.hostname, e.meaning, e.event_type, \
                             e.event_result, e.version, e.previous_version, e.error_code, e.reason";

/// Reads [`EVENT_COLUMNS`] that start at column `first`.
fn read_event(row: &Row, first: usize) -> Result<Event, SqlError> {
    Ok(Event {
        id: row.get(first)?,
        at: time(row, first + 1)?,
        machine_id: row.get(first + 2)?,
        hostname: row.get(first + 3)?,
        event: row.get(first + 4)?,
        event_type: row.get(first + 5)?,
        event_result: row.get(first + 6)?,
        version: row.get(first + 7)?,
        previous_version: row.get(first + 8)?,
        error_code: row.get(first + 9)?,
        reason: row.get(first + 10)?,
    })
}

/// Newest first, of one host or of all.
pub(super) fn events(
    db: &Db,
    machine_id: Option<&str>,
    limit: u32,
) -> Result<Vec<Event>, ApiError> {
    let mut values = vec![Value::from(limit)];
    values.extend(machine_id.map(Value::from));
    let only = match machine_id {
        Some(_) => "WHERE e.machine_id = $2",
        None => "",
    };
    let sql = format!(
        "SELECT {EVENT_COLUMNS} FROM events e LEFT JOIN hosts h ON h.machine_id = e.machine_id \
         {only} ORDER BY e.id DESC LIMIT $1"
    );
    Ok(db.rows(&sql, &values, |row| read_event(row, 0))?)
}

/// Which hosts are wanted, and which part of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub(super) machine_id: Option<String>,
    /// The beginning of a host name or of a machine id.
    pub(super) search: Option<String>,
    pub(super) group: Option<String>,
    pub(super) version: Option<String>,
    pub(super) health: Option<String>,
    /// Only those that left a release.
    pub(super) failed: bool,
    pub(super) offset: u32,
    pub(super) limit: u32,
}

/// The fleet by hostname.
pub(super) fn hosts(
    db: &Db,
    plan: &Plan,
    filter: &Filter,
    now: Timestamp,
) -> Result<Vec<Host>, ApiError> {
    let mut conditions = vec!["1 = 1".to_owned()];
    let mut values: Vec<Value> = vec![];
    let mut value = |text: &str| {
        values.push(Value::from(text));
        format!("${}", values.len())
    };
    // A range and not LIKE, so that the indexes are of use.
    if let Some(search) = &filter.search {
        let (from, to) = (value(search), value(&format!("{search}\u{10ffff}")));
        conditions.push(format!(
            "(machine_id BETWEEN {from} AND {to} \
              OR (hostname IS NULL) = (1 = 0) AND hostname BETWEEN {from} AND {to})"
        ));
    }
    let equal = [
        ("machine_id", &filter.machine_id),
        ("grp", &filter.group),
        ("version", &filter.version),
        ("coalesce(health, 'unknown')", &filter.health),
    ];
    for (what, wanted) in equal {
        if let Some(wanted) = wanted {
            conditions.push(format!("{what} = {}", value(wanted)));
        }
    }
    if filter.failed {
        conditions.push("machine_id IN (SELECT machine_id FROM failures)".into());
    }
    let sql = format!(
        "SELECT h.machine_id, h.hostname, h.version, h.slot, h.channel, h.health, h.boot_id, \
                h.first_seen, h.last_seen, h.board, h.assigned, {EVENT_COLUMNS} \
         FROM (SELECT * FROM hosts WHERE {} \
               ORDER BY (hostname IS NULL), hostname, machine_id LIMIT {} OFFSET {}) h \
         LEFT JOIN events e ON e.id = (SELECT max(id) FROM events WHERE machine_id = h.machine_id) \
         ORDER BY (h.hostname IS NULL), h.hostname, h.machine_id",
        conditions.join(" AND "),
        filter.limit,
        filter.offset,
    );
    let rows = db.rows(&sql, &values, |row| {
        Ok((read_host(row)?, row.get::<Option<String>>(9)?))
    })?;
    let mut hosts = Vec::with_capacity(rows.len());
    for (mut host, board) in rows {
        host.failed = failures_of(db, &host.machine_id)?;
        let failed: Vec<_> = host
            .failed
            .iter()
            .map(|f| (f.id, f.version.clone()))
            .collect();
        let asking = Asking {
            host: &host.machine_id,
            version: &host.version,
            board: board.as_deref(),
            failed: &failed,
            force: false,
            orlop: host.slot.is_some() || host.health.is_some(),
        };
        let group = plan.group(&host.channel, host.assigned.as_deref());
        let grants = grants(db, &host.machine_id)?;
        let choice = plan.choose(group.map(|group| &**group), asking, &grants, now);
        (host.available, host.waits) = match choice {
            Ok(chosen) => (Some(chosen.release.manifest.version().clone()), None),
            Err(wait) => (None, Some(wait.to_string())),
        };
        host.group = group.map(|group| group.name.clone());
        hosts.push(host);
    }
    Ok(hosts)
}

fn read_host(row: &Row) -> Result<Host, SqlError> {
    let health: Option<String> = row.get(5)?;
    let has_event = row.get::<Option<i64>>(11)?.is_some();
    Ok(Host {
        machine_id: row.get(0)?,
        hostname: row.get(1)?,
        version: row.get(2)?,
        slot: row
            .get::<Option<String>>(3)?
            .and_then(|slot| slot.parse().ok()),
        channel: row.get(4)?,
        health: health.as_deref().and_then(Health::from_name),
        boot_id: row.get(6)?,
        first_seen: time(row, 7)?,
        last_seen: time(row, 8)?,
        last_event: has_event.then(|| read_event(row, 11)).transpose()?,
        failed: vec![],
        available: None,
        group: None,
        assigned: row.get(10)?,
        waits: None,
    })
}

/// Hosts of a group by version.
pub(super) fn census(db: &Db, group: &str) -> Result<Vec<(String, u64)>, ApiError> {
    let sql = "SELECT version, CAST(sum(hosts) AS BIGINT) FROM census WHERE grp = $1 \
               GROUP BY version HAVING sum(hosts) > 0";
    Ok(db.rows(sql, params![group], |row| Ok((row.get(0)?, row.get(1)?)))?)
}

/// Notes how many hosts run what in this hour.
pub(super) fn note_history(db: &Db, now: Timestamp) -> Result<(), ApiError> {
    let hour = now.as_second() - now.as_second().rem_euclid(3600);
    db.execute("DELETE FROM history WHERE at = $1", params![hour])?;
    let sql = "INSERT INTO history (at, version, hosts) \
               SELECT $1, version, CAST(sum(hosts) AS BIGINT) FROM census \
               GROUP BY version HAVING sum(hosts) > 0";
    db.execute(sql, params![hour])?;
    Ok(())
}

/// The fleet in numbers. `since`: how far back the history goes.
pub(super) fn overview(db: &Db, since: Timestamp) -> Result<Overview, ApiError> {
    let mut overview = Overview::default();
    let sql = "SELECT version, CAST(sum(hosts) AS BIGINT), \
                      CAST(sum(CASE WHEN health = 'healthy' THEN hosts ELSE 0 END) AS BIGINT) \
               FROM census GROUP BY version HAVING sum(hosts) > 0 ORDER BY 2 DESC, 1";
    let versions = db.rows(sql, &[], |row| {
        let version = VersionCount {
            version: row.get(0)?,
            hosts: row.get(1)?,
        };
        Ok((version, row.get::<u64>(2)?))
    })?;
    for (version, healthy) in versions {
        overview.hosts += version.hosts;
        overview.healthy += healthy;
        overview.versions.push(version);
    }
    let sql = "SELECT at, version, hosts FROM history WHERE at >= $1 ORDER BY at, version";
    let history = db.rows(sql, params![since], |row| {
        let count = VersionCount {
            version: row.get(1)?,
            hosts: row.get(2)?,
        };
        Ok((time(row, 0)?, count))
    })?;
    let mut points: BTreeMap<Timestamp, Vec<VersionCount>> = BTreeMap::new();
    for (at, count) in history {
        points.entry(at).or_default().push(count);
    }
    let point = |(at, versions)| HistoryPoint { at, versions };
    overview.history = points.into_iter().map(point).collect();
    let sql = "SELECT version, headline, count(*) FROM failures \
               GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT 50";
    overview.failures = db.rows(sql, &[], |row| {
        Ok(FailureCount {
            version: catalog::parsed(row, 0)?,
            reason: row.get(1)?,
            hosts: row.get(2)?,
        })
    })?;
    Ok(overview)
}

pub(super) fn count(db: &Db, table: &'static str) -> Result<u64, ApiError> {
    Ok(db.value(&format!("SELECT count(*) FROM {table}"), &[])?)
}
