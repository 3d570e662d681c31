//! What hosts said about themselves, in the database. All of it is claims by strangers: texts are
//! cut to a sane length when they come in and escaped when they go out.

use std::collections::HashMap;

use jiff::Timestamp;
use release::omaha::{self, AppRequest};
use release::status::{FailedRelease, Health};
use release::{Sha256, Version};
use rusqlite::{Connection, Row, params};

use super::catalog::{self, time};
use super::error::ApiError;
use super::policy::{self, Asking};
use crate::api::{Event, Host};

const KEEP_EVENTS_DAYS: i64 = 90;

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

/// Records that a host is there. What it leaves out stays as it was.
pub(super) fn seen(
    db: &Connection,
    machine_id: &str,
    app: &AppRequest,
    now: Timestamp,
) -> Result<(), ApiError> {
    let sql = "INSERT INTO hosts (machine_id, hostname, version, slot, channel, health, board, \
                                  boot_id, first_seen, last_seen) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9) \
               ON CONFLICT (machine_id) DO UPDATE SET \
                   hostname = coalesce(excluded.hostname, hostname), \
                   version = excluded.version, \
                   slot = coalesce(excluded.slot, slot), \
                   channel = excluded.channel, \
                   health = coalesce(excluded.health, health), \
                   board = coalesce(excluded.board, board), \
                   boot_id = coalesce(excluded.boot_id, boot_id), \
                   last_seen = excluded.last_seen";
    db.prepare_cached(sql)?.execute(params![
        machine_id,
        clip_if(app.hostname.as_ref(), 253),
        clip(&app.version, 64),
        app.slot.map(|slot| slot.to_string()),
        clip(&app.track, 64),
        app.health.map(Health::as_str),
        clip_if(app.board.as_ref(), 32),
        clip_if(app.boot_id.as_ref(), 64),
        now.as_second(),
    ])?;
    Ok(())
}

pub(super) fn event(
    db: &Connection,
    machine_id: &str,
    event: &omaha::Event,
    now: Timestamp,
) -> Result<(), ApiError> {
    let sql = "INSERT INTO events (machine_id, at, event_type, event_result, meaning, version, \
                                   previous_version, error_code, reason) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    db.prepare_cached(sql)?.execute(params![
        machine_id,
        now.as_second(),
        event.event_type,
        event.event_result,
        event.meaning().as_str(),
        event.version.as_ref().map(Version::to_string),
        clip_if(event.previous_version.as_ref(), 64),
        event.error_code,
        clip_if(event.reason.as_ref(), 4000),
    ])?;
    let oldest = now.as_second() - KEEP_EVENTS_DAYS * 86_400;
    db.prepare_cached("DELETE FROM events WHERE at < ?1")?
        .execute([oldest])?;
    Ok(())
}

pub(super) fn failure(
    db: &Connection,
    machine_id: &str,
    release: Option<Sha256>,
    version: &Version,
    reason: &str,
    now: Timestamp,
) -> Result<(), ApiError> {
    db.prepare_cached("INSERT OR REPLACE INTO failures VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            machine_id,
            release.map(|id| id.to_string()).unwrap_or_default(),
            version.to_string(),
            clip(reason, 4000),
            now.as_second(),
        ])?;
    Ok(())
}

pub(super) fn forget_failures(db: &Connection, machine_id: &str) -> Result<(), ApiError> {
    db.prepare_cached("DELETE FROM failures WHERE machine_id = ?1")?
        .execute([machine_id])?;
    Ok(())
}

/// It runs this version now and is healthy.
pub(super) fn forget_failure(
    db: &Connection,
    machine_id: &str,
    version: &Version,
) -> Result<(), ApiError> {
    db.prepare_cached("DELETE FROM failures WHERE machine_id = ?1 AND version = ?2")?
        .execute([machine_id, &version.to_string()])?;
    Ok(())
}

type FailedKey = (Option<Sha256>, Version);

/// What this host must not be offered.
pub(super) fn failed_releases(
    db: &Connection,
    machine_id: &str,
) -> Result<Vec<FailedKey>, ApiError> {
    let sql =
        "SELECT machine_id, release_id, version, reason, at FROM failures WHERE machine_id = ?1";
    let rows = db
        .prepare_cached(sql)?
        .query_map([machine_id], failed_release)?
        .collect::<Result<Vec<_>, _>>()?;
    Ok(rows
        .into_iter()
        .map(|(_, failed)| (failed.id, failed.version))
        .collect())
}

fn failed_release(row: &Row<'_>) -> rusqlite::Result<(String, FailedRelease)> {
    let id: String = row.get(1)?;
    let failed = FailedRelease {
        version: catalog::parsed(row, 2)?,
        id: if id.is_empty() {
            None
        } else {
            Some(catalog::parsed(row, 1)?)
        },
        reason: row.get(3)?,
        at: time(row, 4)?,
    };
    Ok((row.get(0)?, failed))
}

const EVENT_COLUMNS: &str = "e.id, e.at, e.machine_id, h.hostname, e.meaning, e.event_type, \
                             e.event_result, e.version, e.previous_version, e.error_code, e.reason";

/// Reads [`EVENT_COLUMNS`] that start at column `first`.
fn read_event(row: &Row<'_>, first: usize) -> rusqlite::Result<Event> {
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
    db: &Connection,
    machine_id: Option<&str>,
    limit: u32,
) -> Result<Vec<Event>, ApiError> {
    let only = if machine_id.is_some() {
        "WHERE e.machine_id = ?1"
    } else {
        "WHERE ?1 IS NULL"
    };
    let sql = format!(
        "SELECT {EVENT_COLUMNS} FROM events e LEFT JOIN hosts h USING (machine_id) \
         {only} ORDER BY e.id DESC LIMIT ?2"
    );
    let rows = db
        .prepare_cached(&sql)?
        .query_map(params![machine_id, limit], |row| read_event(row, 0))?
        .collect::<Result<_, _>>()?;
    Ok(rows)
}

/// The fleet by hostname, at most `limit` of it.
pub(super) fn hosts(db: &Connection, limit: u32) -> Result<Vec<Host>, ApiError> {
    let sql = format!(
        "SELECT h.machine_id, h.hostname, h.version, h.slot, h.channel, h.health, h.boot_id, \
                h.first_seen, h.last_seen, h.board, {EVENT_COLUMNS} \
         FROM hosts h LEFT JOIN events e \
              ON e.id = (SELECT max(id) FROM events WHERE machine_id = h.machine_id) \
         ORDER BY h.hostname IS NULL, h.hostname, h.machine_id LIMIT ?1"
    );
    let rows = db
        .prepare_cached(&sql)?
        .query_map([limit], |row| {
            Ok((read_host(row)?, row.get::<_, Option<String>>(9)?))
        })?
        .collect::<Result<Vec<_>, _>>()?;
    let mut failures = failures_by_host(db)?;
    let mut channels = HashMap::new();
    let mut hosts = Vec::with_capacity(rows.len());
    for (mut host, board) in rows {
        host.failed = failures.remove(&host.machine_id).unwrap_or_default();
        if !channels.contains_key(&host.channel) {
            channels.insert(
                host.channel.clone(),
                catalog::on_channel(db, &host.channel)?,
            );
        }
        let failed: Vec<_> = host
            .failed
            .iter()
            .map(|f| (f.id, f.version.clone()))
            .collect();
        let asking = Asking {
            version: &host.version,
            board: board.as_deref(),
            failed: &failed,
            force: false,
        };
        let candidate = channels.get(&host.channel).and_then(Option::as_ref);
        host.available = candidate
            .filter(|c| policy::decide(asking, Some((&c.manifest, c.id))).is_ok())
            .map(|c| c.manifest.version.clone());
        hosts.push(host);
    }
    Ok(hosts)
}

fn read_host(row: &Row<'_>) -> rusqlite::Result<Host> {
    let health: Option<String> = row.get(5)?;
    let has_event = row.get::<_, Option<i64>>(10)?.is_some();
    Ok(Host {
        machine_id: row.get(0)?,
        hostname: row.get(1)?,
        version: row.get(2)?,
        slot: row
            .get::<_, Option<String>>(3)?
            .and_then(|slot| slot.parse().ok()),
        channel: row.get(4)?,
        health: health.as_deref().and_then(Health::from_name),
        boot_id: row.get(6)?,
        first_seen: time(row, 7)?,
        last_seen: time(row, 8)?,
        last_event: has_event.then(|| read_event(row, 10)).transpose()?,
        failed: vec![],
        available: None,
    })
}

fn failures_by_host(db: &Connection) -> Result<HashMap<String, Vec<FailedRelease>>, ApiError> {
    let sql = "SELECT machine_id, release_id, version, reason, at FROM failures ORDER BY at DESC";
    let mut by_host: HashMap<String, Vec<FailedRelease>> = HashMap::new();
    for row in db.prepare_cached(sql)?.query_map([], failed_release)? {
        let (machine_id, failed) = row?;
        by_host.entry(machine_id).or_default().push(failed);
    }
    Ok(by_host)
}

pub(super) fn count(db: &Connection, table: &'static str) -> Result<u64, ApiError> {
    Ok(
        db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
            row.get(0)
        })?,
    )
}
