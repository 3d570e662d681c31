//! `/releases/tuf/…`: the publisher's TUF metadata, as it was sent. Hosts believe its signatures, not
//! us; what is checked here keeps an operator from harm only.

use std::collections::BTreeSet;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use release::{FileName, Sha256, tuf};
use serde::de::DeserializeOwned;

use super::artifacts::Artifacts;
use super::catalog::{self, Signed};
use super::error::ApiError;
use super::{Shared, auth};

/// No host reads more of one file.
pub(super) const LIMIT: usize = 4 << 20;

const FIRST_ROOT: &str = "1.root.json";
const TIMESTAMP: &str = "timestamp.json";

pub(super) async fn get(
    State(server): State<Shared>,
    Path(name): Path<String>,
    asked: HeaderMap,
) -> Result<Response, ApiError> {
    let nothing = || {
        ApiError::new(StatusCode::NOT_FOUND, "there is no such metadata")
            .hint("./orlop release publish puts it here")
    };
    let place = place(&name).ok_or_else(nothing)?;
    let bytes = server.artifacts.read(&place).await?.ok_or_else(nothing)?;
    let etag = format!("\"{}\"", Sha256::of(&bytes));
    let known = asked.get(IF_NONE_MATCH);
    let mut response = if known.is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        bytes.into_response()
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Another file may get the name: the next timestamp, or a root that was not there yet.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(ETAG, etag);
    }
    Ok(response)
}

/// Sends a file of the TUF repository; `timestamp.json` comes last
#[utoipa::path(put, path = "/api/v1/tuf/{file}", tag = "releases",
    params(("file" = String, Path)), responses((status = 204)), security(("token" = [])))]
pub(super) async fn put(
    State(server): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    auth::operator(&server, &headers).await?;
    let place = place(&name).ok_or_else(|| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            format!("{name:?} is no name in a TUF repository"),
        )
        .hint("send FILE.json, or CHANNEL/FILE.json")
    })?;
    let sent = version(&body).map_err(|error| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            format!("{name} is not JSON: {error}"),
        )
        .hint("send what orlop keys made")
    })?;
    let _turn = server.publishing.take().await?;
    let there = server.artifacts.read(&place).await?.unwrap_or_default();
    // A timestamp counts when the database knows what it names; a server may have died between the two.
    if there == body && name != TIMESTAMP {
        return Ok(StatusCode::NO_CONTENT);
    }
    let conflict =
        |error: &str, hint: &str| Err(ApiError::new(StatusCode::CONFLICT, error).hint(hint));
    if name == FIRST_ROOT && !there.is_empty() {
        return conflict(
            "the server has the metadata of another TUF repository",
            "publish with the repository that its hosts know (--tuf DIR); for new hosts only, remove tuf/ from the server's releases",
        );
    }
    if name == TIMESTAMP && version(&there).is_ok_and(|there| there > sent) {
        return conflict(
            "the server has newer metadata of this TUF repository",
            "publish from where it was signed last; hosts refuse what is older",
        );
    }
    let signed = match name == TIMESTAMP {
        true => Some(named(&server.artifacts, &body).await?),
        false => None,
    };
    server.artifacts.put(&place, body).await?;
    if let Some(signed) = signed {
        let now = (server.clock)();
        server
            .database
            .write_plan(move |db, plan| {
                if catalog::signed(db)?.as_ref() == Some(&signed) {
                    return Ok(());
                }
                catalog::set_signed(db, &signed)?;
                plan.reload(db, now)
            })
            .await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// What the channels name, as of this timestamp. Files that are missing or that say nothing readable name
/// nothing; whether hosts will believe them is not asked here.
async fn named(artifacts: &Artifacts, timestamp: &[u8]) -> Result<Signed, ApiError> {
    let mut signed = Signed::new();
    let Some(timestamp) = signed_part::<tuf::Timestamp>(timestamp) else {
        return Ok(signed);
    };
    let Some(snapshot) = timestamp.meta.get("snapshot.json") else {
        return Ok(signed);
    };
    let file = format!("tuf/{}.snapshot.json", snapshot.version);
    let snapshot = artifacts.read(&file).await?;
    let snapshot = snapshot.and_then(|bytes| signed_part::<tuf::Snapshot>(&bytes));
    for (name, meta) in snapshot.map(|snapshot| snapshot.meta).unwrap_or_default() {
        let Some(channel) = name.strip_suffix(".json").filter(|role| *role != "targets") else {
            continue;
        };
        let file = format!("tuf/{}.{name}", meta.version);
        let targets = artifacts.read(&file).await?;
        let targets = targets.and_then(|bytes| signed_part::<tuf::Targets>(&bytes));
        let targets = targets.map(|targets| targets.targets).unwrap_or_default();
        let digests = targets.into_values().map(|target| target.hashes.sha256);
        let digests: BTreeSet<_> = digests.collect();
        if !digests.is_empty() {
            signed.insert(channel.to_owned(), digests);
        }
    }
    Ok(signed)
}

/// Until when the metadata of a role is believed.
pub(super) struct Expiry {
    pub(super) role: String,
    pub(super) at: jiff::Timestamp,
}

/// Of the timestamp alone, which is renewed most often. None: there is no metadata.
pub(super) async fn timestamp_expires(
    artifacts: &Artifacts,
) -> Result<Option<jiff::Timestamp>, ApiError> {
    let bytes = artifacts.read(&format!("tuf/{TIMESTAMP}")).await?;
    let timestamp = bytes.and_then(|bytes| signed_part::<tuf::Timestamp>(&bytes));
    Ok(timestamp.map(|timestamp| timestamp.expires))
}

/// Of every role that hosts need, as far as its file is here.
pub(super) async fn expiries(artifacts: &Artifacts) -> Result<Vec<Expiry>, ApiError> {
    let mut found = Vec::new();
    let mut add = |role: &str, at: jiff::Timestamp| {
        let role = role.to_owned();
        found.push(Expiry { role, at });
    };
    let Some(bytes) = artifacts.read(&format!("tuf/{TIMESTAMP}")).await? else {
        return Ok(found);
    };
    let mut root = None;
    for number in 1.. {
        let file = format!("tuf/{number}.root.json");
        let Some(bytes) = artifacts.read(&file).await? else {
            break;
        };
        root = signed_part::<tuf::Root>(&bytes);
    }
    if let Some(root) = root {
        add("root", root.expires);
    }
    let Some(timestamp) = signed_part::<tuf::Timestamp>(&bytes) else {
        return Ok(found);
    };
    add("timestamp", timestamp.expires);
    let Some(meta) = timestamp.meta.get("snapshot.json") else {
        return Ok(found);
    };
    let file = format!("tuf/{}.snapshot.json", meta.version);
    let snapshot = artifacts.read(&file).await?;
    let Some(snapshot) = snapshot.and_then(|bytes| signed_part::<tuf::Snapshot>(&bytes)) else {
        return Ok(found);
    };
    add("snapshot", snapshot.expires);
    for (name, meta) in snapshot.meta {
        let file = format!("tuf/{}.{name}", meta.version);
        let targets = artifacts.read(&file).await?;
        if let Some(targets) = targets.and_then(|bytes| signed_part::<tuf::Targets>(&bytes)) {
            add(name.trim_end_matches(".json"), targets.expires);
        }
    }
    Ok(found)
}

fn signed_part<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let file: tuf::Signed = serde_json::from_slice(bytes).ok()?;
    serde_json::from_value(file.signed).ok()
}

/// The version in it; of what has none (a manifest), nothing.
fn version(bytes: &[u8]) -> serde_json::Result<Option<u64>> {
    let json: serde_json::Value = serde_json::from_slice(bytes)?;
    Ok(json["signed"]["version"].as_u64())
}

/// Where a file is: metadata beside each other, targets in the directory of their channel.
fn place(name: &str) -> Option<String> {
    let good = name.split('/').count() <= 2
        && name.ends_with(".json")
        && name.split('/').all(|part| part.parse::<FileName>().is_ok());
    good.then(|| format!("tuf/{name}"))
}
