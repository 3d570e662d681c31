//! Finished releases and the channels that point at them, in the database.

use std::str::FromStr;

use axum::http::StatusCode;
use jiff::Timestamp;
use release::{Channel, FileName, MANIFEST_FILE, Manifest, Sha256, Verified, Version};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::error::ApiError;
use crate::api::{ChannelState, Release};

/// A finished release.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub(super) manifest: Manifest,
    pub(super) id: Sha256,
    pub(super) envelope_size: u64,
    pub(super) envelope_sha256: Sha256,
    pub(super) published: Timestamp,
}

const COLUMNS: &str = "r.manifest, r.id, r.envelope_size, r.envelope_sha256, r.published_at";

fn published(row: &Row<'_>) -> rusqlite::Result<Published> {
    let manifest: String = row.get(0)?;
    Ok(Published {
        manifest: serde_json::from_str(&manifest).map_err(|e| bad_column(0, e))?,
        id: parsed(row, 1)?,
        envelope_size: row.get(2)?,
        envelope_sha256: parsed(row, 3)?,
        published: time(row, 4)?,
    })
}

pub(super) fn bad_column(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

/// A column that holds a type's text.
pub(super) fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    row.get::<_, String>(column)?
        .parse()
        .map_err(|e| bad_column(column, e))
}

pub(super) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    Timestamp::from_second(row.get(column)?).map_err(|e| bad_column(column, e))
}

/// The signed manifest's name as a package.
pub(super) fn manifest_name() -> FileName {
    MANIFEST_FILE
        .parse()
        .unwrap_or_else(|_| unreachable!("the constant is a file name"))
}

pub(super) fn release(db: &Connection, version: &Version) -> Result<Option<Published>, ApiError> {
    let sql = format!("SELECT {COLUMNS} FROM releases r WHERE r.version = ?1");
    Ok(db
        .prepare_cached(&sql)?
        .query_row([version.to_string()], published)
        .optional()?)
}

/// What a channel points at. Any text may be asked for: hosts name their channel themselves.
pub(super) fn on_channel(db: &Connection, name: &str) -> Result<Option<Published>, ApiError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM channels c JOIN releases r ON r.version = c.version WHERE c.name = ?1"
    );
    Ok(db
        .prepare_cached(&sql)?
        .query_row([name], published)
        .optional()?)
}

/// Newest version first.
pub(super) fn releases(db: &Connection) -> Result<Vec<Release>, ApiError> {
    let channels = channels(db)?;
    let sql = format!("SELECT {COLUMNS} FROM releases r");
    let rows = db
        .prepare_cached(&sql)?
        .query_map([], published)?
        .collect::<Result<Vec<_>, _>>()?;
    let mut releases: Vec<Release> = rows
        .into_iter()
        .map(|release| describe(release, &channels))
        .collect();
    releases.sort_by(|a, b| b.version.cmp(&a.version));
    Ok(releases)
}

pub(super) fn describe(release: Published, channels: &[ChannelState]) -> Release {
    let manifest = release.manifest;
    let points_here = |channel: &&ChannelState| channel.version.as_ref() == Some(&manifest.version);
    let created = i64::try_from(manifest.created)
        .ok()
        .and_then(|s| Timestamp::from_second(s).ok());
    Release {
        id: release.id,
        architecture: manifest.architecture.clone(),
        created: created.unwrap_or(Timestamp::UNIX_EPOCH),
        published: release.published,
        usr_size: manifest.usr.size,
        download_size: manifest.download_size(),
        uki_size: manifest.uki.size,
        files: manifest.files().cloned().collect(),
        channels: channels
            .iter()
            .filter(points_here)
            .map(|c| c.name.clone())
            .collect(),
        version: manifest.version,
    }
}

/// A finished release never changes: hosts may be in the middle of downloading it.
pub(super) fn finished(version: &Version) -> ApiError {
    let what = format!("release {version} is finished and never changes");
    ApiError::new(StatusCode::CONFLICT, what)
        .hint("build it again under a higher version: orlop build --version …")
}

/// Makes a release visible. Everything about it was checked before.
pub(super) fn publish(
    db: &Connection,
    release: &Verified<Manifest>,
    envelope: (u64, Sha256),
    now: Timestamp,
) -> Result<(), ApiError> {
    if self::release(db, &release.version)?.is_some() {
        return Err(finished(&release.version));
    }
    let manifest = serde_json::to_string(&**release)
        .map_err(|e| ApiError::internal("the manifest cannot be stored", e))?;
    let (size, sha256) = envelope;
    db.prepare_cached("INSERT INTO releases VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![
            release.version.to_string(),
            release.id().to_string(),
            manifest,
            size,
            sha256.to_string(),
            now.as_second(),
        ])?;
    Ok(())
}

pub(super) fn channels(db: &Connection) -> Result<Vec<ChannelState>, ApiError> {
    let sql = "SELECT c.name, c.version, c.changed_at, \
                      (SELECT count(*) FROM hosts h WHERE h.channel = c.name) \
               FROM channels c ORDER BY c.name";
    let rows = db
        .prepare_cached(sql)?
        .query_map([], |row| {
            Ok(ChannelState {
                name: parsed(row, 0)?,
                version: row
                    .get::<_, Option<String>>(1)?
                    .map(|_| parsed(row, 1))
                    .transpose()?,
                changed: row
                    .get::<_, Option<i64>>(2)?
                    .map(|_| time(row, 2))
                    .transpose()?,
                hosts: row.get(3)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(rows)
}

/// Points a channel, new or known, at a finished release.
pub(super) fn set_channel(
    db: &Connection,
    name: &Channel,
    version: &Version,
    now: Timestamp,
) -> Result<ChannelState, ApiError> {
    if release(db, version)?.is_none() {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("there is no finished release {version}, so channel {name} stays as it is"),
        )
        .hint(format!("publish it first: orlop release publish {version}")));
    }
    db.execute(
        "INSERT INTO channels VALUES (?1, ?2, ?3) \
         ON CONFLICT (name) DO UPDATE SET version = excluded.version, changed_at = excluded.changed_at",
        params![name.as_str(), version.to_string(), now.as_second()],
    )?;
    let state = channels(db)?
        .into_iter()
        .find(|channel| channel.name == *name);
    state.ok_or_else(|| ApiError::internal("the channel is gone", name))
}
