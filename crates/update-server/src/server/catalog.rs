//! Finished releases and the channels that point at them, in the database.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use axum::http::StatusCode;
use jiff::Timestamp;
use release::{Channel, File, FileName, FlatcarRelease, MANIFEST_FILE, Manifest, Sha256, Version};
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::plan::Group;
use super::sql::{Db, Row, SqlError, params};
use crate::api::{ChannelState, Release};

/// What a release is made of: ours, of which a signed manifest was checked, or Flatcar's.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Content {
    Flatcar { flatcar: Box<FlatcarRelease> },
    Orlop(Box<Manifest>),
}

impl Content {
    pub(super) fn version(&self) -> &Version {
        match self {
            Self::Flatcar { flatcar } => &flatcar.version,
            Self::Orlop(manifest) => &manifest.version,
        }
    }

    pub(super) fn architecture(&self) -> &str {
        match self {
            Self::Flatcar { flatcar } => &flatcar.architecture,
            Self::Orlop(manifest) => &manifest.architecture,
        }
    }

    pub(super) fn minimum_source_version(&self) -> Option<&Version> {
        match self {
            Self::Flatcar { flatcar } => flatcar.minimum_source_version.as_ref(),
            Self::Orlop(manifest) => manifest.minimum_source_version.as_ref(),
        }
    }

    /// All but the description itself.
    pub(super) fn files(&self) -> Vec<&File> {
        match self {
            Self::Flatcar { flatcar } => flatcar.files().collect(),
            Self::Orlop(manifest) => manifest.files().collect(),
        }
    }

    pub(super) fn is_flatcar(&self) -> bool {
        matches!(self, Self::Flatcar { .. })
    }
}

/// A finished release.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub(super) manifest: Content,
    pub(super) id: Sha256,
    pub(super) envelope_size: u64,
    pub(super) envelope_sha256: Sha256,
    pub(super) published: Timestamp,
    /// When and why an operator took it back: it is offered to nobody.
    pub(super) withdrawn: Option<(Timestamp, String)>,
}

const COLUMNS: &str = "r.manifest, r.id, r.envelope_size, r.envelope_sha256, r.published_at, \
                       r.withdrawn_at, r.withdrawn_reason";

fn published(row: &Row) -> Result<Published, SqlError> {
    let manifest: String = row.get(0)?;
    Ok(Published {
        manifest: serde_json::from_str(&manifest).map_err(|e| bad_column(0, e))?,
        id: parsed(row, 1)?,
        envelope_size: row.get(2)?,
        envelope_sha256: parsed(row, 3)?,
        published: time(row, 4)?,
        withdrawn: match row.get::<Option<i64>>(5)? {
            Some(_) => Some((
                time(row, 5)?,
                row.get::<Option<String>>(6)?.unwrap_or_default(),
            )),
            None => None,
        },
    })
}

pub(super) fn bad_column(column: usize, error: impl std::fmt::Display) -> SqlError {
    SqlError::Column {
        column,
        what: error.to_string(),
    }
}

/// A column that holds a type's text.
pub(super) fn parsed<T>(row: &Row, column: usize) -> Result<T, SqlError>
where
    T: FromStr<Err: std::fmt::Display>,
{
    row.get::<String>(column)?
        .parse()
        .map_err(|e| bad_column(column, e))
}

pub(super) fn time(row: &Row, column: usize) -> Result<Timestamp, SqlError> {
    Timestamp::from_second(row.get(column)?).map_err(|e| bad_column(column, e))
}

/// The signed manifest's name as a package.
pub(super) fn manifest_name() -> FileName {
    MANIFEST_FILE
        .parse()
        .unwrap_or_else(|_| unreachable!("the constant is a file name"))
}

pub(super) fn release(db: &Db, version: &Version) -> Result<Option<Published>, ApiError> {
    let sql = format!("SELECT {COLUMNS} FROM releases r WHERE r.version = $1");
    Ok(db.row(&sql, params![version.to_string()], published)?)
}

pub(super) fn published_all(db: &Db) -> Result<Vec<Published>, ApiError> {
    let sql = format!("SELECT {COLUMNS} FROM releases r");
    Ok(db.rows(&sql, &[], published)?)
}

/// Channels and what they point at.
pub(super) fn pointers(db: &Db) -> Result<BTreeMap<String, Option<Version>>, ApiError> {
    let rows = db.rows("SELECT name, version FROM channels", &[], |row| {
        let version = row.get::<Option<String>>(1)?;
        let version = version.map(|_| parsed(row, 1)).transpose()?;
        Ok((row.get(0)?, version))
    })?;
    Ok(rows.into_iter().collect())
}

/// What the channels' TUF metadata names: channels, and digests of signed manifests. A channel that is
/// empty is left out.
pub(super) type Signed = BTreeMap<String, BTreeSet<Sha256>>;

/// The row that says that there is metadata, which may name nothing. No channel has this name, no manifest
/// this digest, and older servers can read it.
const METADATA: (&str, Sha256) = ("", Sha256([0; 32]));

/// None: there is no metadata.
pub(super) fn signed(db: &Db) -> Result<Option<Signed>, ApiError> {
    let rows = db.rows("SELECT channel, envelope FROM signed", &[], |row| {
        Ok((row.get::<String>(0)?, parsed::<Sha256>(row, 1)?))
    })?;
    if rows.is_empty() {
        return Ok(None);
    }
    let mut signed = Signed::new();
    for (channel, envelope) in rows {
        if channel != METADATA.0 {
            signed.entry(channel).or_default().insert(envelope);
        }
    }
    Ok(Some(signed))
}

pub(super) fn set_signed(db: &Db, signed: &Signed) -> Result<(), ApiError> {
    db.execute("DELETE FROM signed", &[])?;
    let add = |channel: &str, envelope: &Sha256| {
        db.execute(
            "INSERT INTO signed (channel, envelope) VALUES ($1, $2)",
            params![channel, envelope.to_string()],
        )
    };
    add(METADATA.0, &METADATA.1)?;
    for (channel, envelopes) in signed {
        for envelope in envelopes {
            add(channel, envelope)?;
        }
    }
    Ok(())
}

/// Groups that somebody made.
pub(super) fn groups(db: &Db) -> Result<Vec<Group>, ApiError> {
    let sql = "SELECT name, channel, description, policy FROM groups";
    Ok(db.rows(sql, &[], |row| {
        let policy: String = row.get(3)?;
        Ok(Group {
            name: row.get(0)?,
            channel: row.get(1)?,
            description: row.get(2)?,
            policy: serde_json::from_str(&policy).map_err(|e| bad_column(3, e))?,
            own: true,
        })
    })?)
}

/// Newest version first.
pub(super) fn releases(db: &Db) -> Result<Vec<Release>, ApiError> {
    let channels = channels(db)?;
    let mut releases: Vec<Release> = published_all(db)?
        .into_iter()
        .map(|release| describe(release, &channels))
        .collect();
    releases.sort_by(|a, b| b.version.cmp(&a.version));
    Ok(releases)
}

pub(super) fn describe(release: Published, channels: &[ChannelState]) -> Release {
    let manifest = release.manifest;
    let points_here =
        |channel: &&ChannelState| channel.version.as_ref() == Some(manifest.version());
    let (created, usr_size, download_size, uki_size) = match &manifest {
        Content::Orlop(manifest) => {
            let created = i64::try_from(manifest.created).ok();
            let created = created.and_then(|s| Timestamp::from_second(s).ok());
            let created = created.unwrap_or(Timestamp::UNIX_EPOCH);
            let (usr, uki) = (manifest.usr.size, manifest.uki.size);
            (created, usr, manifest.download_size(), uki)
        }
        // Its payload does not say.
        Content::Flatcar { flatcar } => (release.published, 0, flatcar.payload.size, 0),
    };
    Release {
        id: release.id,
        architecture: manifest.architecture().to_owned(),
        created,
        published: release.published,
        usr_size,
        download_size,
        uki_size,
        flatcar: manifest.is_flatcar(),
        files: manifest.files().into_iter().cloned().collect(),
        channels: channels
            .iter()
            .filter(points_here)
            .map(|c| c.name.clone())
            .collect(),
        minimum_source_version: manifest.minimum_source_version().cloned(),
        withdrawn: release.withdrawn.as_ref().map(|(at, _)| *at),
        withdrawn_reason: release.withdrawn.map(|(_, reason)| reason),
        version: manifest.version().clone(),
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
    db: &Db,
    release: &Content,
    id: Sha256,
    envelope: (u64, Sha256),
    now: Timestamp,
) -> Result<(), ApiError> {
    let version = release.version();
    if self::release(db, version)?.is_some() {
        return Err(finished(version));
    }
    let manifest = serde_json::to_string(release)
        .map_err(|e| ApiError::internal("the manifest cannot be stored", e))?;
    let (size, sha256) = envelope;
    let sql = "INSERT INTO releases (version, id, manifest, envelope_size, envelope_sha256, published_at) \
               VALUES ($1, $2, $3, $4, $5, $6)";
    let values = params![
        version.to_string(),
        id.to_string(),
        manifest,
        size,
        sha256.to_string(),
        now,
    ];
    db.execute(sql, values)?;
    Ok(())
}

pub(super) fn channels(db: &Db) -> Result<Vec<ChannelState>, ApiError> {
    let sql = "SELECT c.name, c.version, c.changed_at, \
                      (SELECT CAST(coalesce(sum(hosts), 0) AS BIGINT) FROM census WHERE channel = c.name) \
               FROM channels c ORDER BY c.name";
    Ok(db.rows(sql, &[], |row| {
        Ok(ChannelState {
            name: parsed(row, 0)?,
            version: row
                .get::<Option<String>>(1)?
                .map(|_| parsed(row, 1))
                .transpose()?,
            changed: row
                .get::<Option<i64>>(2)?
                .map(|_| time(row, 2))
                .transpose()?,
            hosts: row.get(3)?,
        })
    })?)
}

/// Points a channel, new or known, at a finished release.
pub(super) fn set_channel(
    db: &Db,
    name: &Channel,
    version: &Version,
    now: Timestamp,
) -> Result<ChannelState, ApiError> {
    let Some(release) = release(db, version)? else {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("there is no finished release {version}, so channel {name} stays as it is"),
        )
        .hint(format!("publish it first: orlop release publish {version}")));
    };
    if let Some((_, reason)) = release.withdrawn {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("release {version} was withdrawn ({reason}), so channel {name} stays as it is"),
        )
        .hint(format!(
            "take that back first: orlop release restore {version}"
        )));
    }
    db.execute(
        "INSERT INTO channels (name, version, changed_at) VALUES ($1, $2, $3) \
         ON CONFLICT (name) DO UPDATE SET version = excluded.version, changed_at = excluded.changed_at",
        params![name.as_str(), version.to_string(), now],
    )?;
    let state = channels(db)?
        .into_iter()
        .find(|channel| channel.name == *name);
    state.ok_or_else(|| ApiError::internal("the channel is gone", name))
}

/// Offers a release to nobody any more (`reason`), or again.
pub(super) fn withdraw(
    db: &Db,
    version: &Version,
    reason: Option<&str>,
    now: Timestamp,
) -> Result<(), ApiError> {
    let changed = db.execute(
        "UPDATE releases SET withdrawn_at = $2, withdrawn_reason = $3 WHERE version = $1",
        params![version.to_string(), reason.map(|_| now.as_second()), reason],
    )?;
    if changed == 0 {
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            format!("there is no finished release {version}"),
        )
        .hint("GET /api/v1/releases lists them"));
    }
    Ok(())
}

pub(super) fn set_group(db: &Db, group: &Group, now: Timestamp) -> Result<(), ApiError> {
    let policy = serde_json::to_string(&group.policy)
        .map_err(|e| ApiError::internal("the policy cannot be stored", e))?;
    let sql = "INSERT INTO groups (name, channel, description, policy, changed_at) \
               VALUES ($1, $2, $3, $4, $5) \
               ON CONFLICT (name) DO UPDATE SET channel = excluded.channel, \
                   description = excluded.description, policy = excluded.policy, \
                   changed_at = excluded.changed_at";
    let values = params![&group.name, &group.channel, &group.description, policy, now];
    db.execute(sql, values)?;
    Ok(())
}

pub(super) fn remove_group(db: &Db, name: &str) -> Result<bool, ApiError> {
    let sql = "DELETE FROM groups WHERE name = $1";
    Ok(db.execute(sql, params![name])? > 0)
}
