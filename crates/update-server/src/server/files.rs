//! `GET /releases/VERSION/FILE`: files of finished releases, whole or in ranges.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    IF_RANGE, RANGE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use release::{MANIFEST_FILE, Sha256, Version};

use super::artifacts::Artifacts;
use super::error::ApiError;
use super::{Shared, catalog};

/// RFC 9530: the digest of the whole file, whatever range is asked for.
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

pub(super) async fn get(
    State(server): State<Shared>,
    Path((version, name)): Path<(String, String)>,
    method: Method,
    mut asked: HeaderMap,
) -> Result<Response, ApiError> {
    let (version, digest) = find(&server, &version, &name).await?;
    let etag = HeaderValue::from_str(&format!("\"{digest}\""))
        .map_err(|e| ApiError::internal("the file cannot be named", e))?;
    if asked.get(IF_NONE_MATCH) == Some(&etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    // The rest of another file is of no use to anyone.
    if asked.get(IF_RANGE).is_some_and(|known| *known != etag) {
        asked.remove(RANGE);
    }
    asked.remove(IF_RANGE);
    let place = format!("{version}/{name}");
    let mut response = send(&server.artifacts, &place, &method, &asked).await?;
    let headers = response.headers_mut();
    headers.insert(ETAG, etag);
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=31536000, immutable"),
    );
    if let Ok(value) = HeaderValue::from_str(&format!("sha-256=:{}:", digest.to_base64())) {
        headers.insert(REPR_DIGEST, value);
    }
    Ok(response)
}

async fn send(
    artifacts: &Artifacts,
    place: &str,
    method: &Method,
    asked: &HeaderMap,
) -> Result<Response, ApiError> {
    let (version, name) = place.split_once('/').unwrap_or_default();
    let gone = || {
        let what = format!("{name} of release {version} cannot be read from the server's store");
        ApiError::internal(what, format!("{} is missing", artifacts.describe(place)))
    };
    let size = artifacts.size(place).await?.ok_or_else(gone)?;
    let head = *method == Method::HEAD;
    let range = match range(asked, size) {
        Wanted::All => None,
        Wanted::Part(range) => Some(range),
        Wanted::Nothing => {
            let all = [(CONTENT_RANGE, format!("bytes */{size}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, all).into_response());
        }
    };
    let (status, range) = match range {
        None => (StatusCode::OK, 0..size),
        Some(range) => (StatusCode::PARTIAL_CONTENT, range),
    };
    let whole = status == StatusCode::OK;
    let body = if head || size == 0 {
        Body::empty()
    } else {
        let part = artifacts.part(place, (!whole).then(|| range.clone()));
        let part = part.await?.ok_or_else(gone)?;
        // Somebody exchanged it between the two looks.
        if part.range != range {
            return Err(gone());
        }
        part.body
    };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_LENGTH, (range.end - range.start).into());
    if !whole {
        let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        let value = HeaderValue::from_str(&text);
        headers.insert(
            CONTENT_RANGE,
            value.map_err(|e| ApiError::internal("the range cannot be named", e))?,
        );
    }
    Ok(response)
}

enum Wanted {
    All,
    Part(std::ops::Range<u64>),
    Nothing,
}

/// Several ranges at once are more than anybody asks for: whoever does gets the whole.
fn range(asked: &HeaderMap, size: u64) -> Wanted {
    let Some(text) = asked.get(RANGE).and_then(|text| text.to_str().ok()) else {
        return Wanted::All;
    };
    let Ok(parsed) = http_range_header::parse_range_header(text) else {
        return Wanted::All;
    };
    match parsed.validate(size).as_deref() {
        Ok([one]) => Wanted::Part(*one.start()..*one.end() + 1),
        Ok(_) => Wanted::All,
        Err(_) => Wanted::Nothing,
    }
}

/// Only names that a finished release's manifest has exist at all.
async fn find(server: &Shared, version: &str, name: &str) -> Result<(Version, Sha256), ApiError> {
    let nothing = || {
        ApiError::new(
            StatusCode::NOT_FOUND,
            "there is no such file in a finished release",
        )
        .hint("GET /api/v1/releases lists them")
    };
    let version: Version = version.parse().map_err(|_| nothing())?;
    let wanted = version.clone();
    let release = server
        .database
        .read(move |db| catalog::release(db, &wanted))
        .await?;
    let release = release.ok_or_else(nothing)?;
    if name == MANIFEST_FILE && !release.manifest.is_flatcar() {
        return Ok((version, release.envelope_sha256));
    }
    let file = release
        .manifest
        .files()
        .into_iter()
        .find(|file| file.name.as_str() == name);
    Ok((version, file.ok_or_else(nothing)?.sha256))
}
