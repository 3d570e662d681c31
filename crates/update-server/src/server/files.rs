//! `GET /releases/VERSION/FILE`: files of finished releases, whole or in ranges.

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use release::{MANIFEST_FILE, Sha256, Version};
use tower_http::services::ServeFile;

use super::error::ApiError;
use super::{Shared, catalog};

/// RFC 9530: the digest of the whole file, whatever range is asked for.
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

pub(super) async fn get(
    State(server): State<Shared>,
    Path((version, name)): Path<(String, String)>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let (version, digest) = find(&server, &version, &name).await?;
    let etag = HeaderValue::from_str(&format!("\"{digest}\""))
        .map_err(|e| ApiError::internal("the file cannot be named", e))?;
    if request.headers().get(IF_NONE_MATCH) == Some(&etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    // The rest of another file is of no use to anyone.
    if request
        .headers()
        .get(IF_RANGE)
        .is_some_and(|known| *known != etag)
    {
        request.headers_mut().remove(RANGE);
    }
    request.headers_mut().remove(IF_RANGE);
    let path = server.releases.join(version.to_string()).join(&name);
    let gone = |cause: String| {
        let what = format!("{name} of release {version} cannot be read from this server's disk");
        ApiError::internal(what, cause)
    };
    let response = ServeFile::new(&path)
        .try_call(request)
        .await
        .map_err(|e| gone(e.to_string()))?;
    if response.status() == StatusCode::NOT_FOUND {
        return Err(gone(format!("{} is missing", path.display())));
    }
    let mut response = response.map(Body::new);
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
    if name == MANIFEST_FILE {
        return Ok((version, release.envelope_sha256));
    }
    let file = release
        .manifest
        .files()
        .find(|file| file.name.as_str() == name);
    Ok((version, file.ok_or_else(nothing)?.sha256))
}
