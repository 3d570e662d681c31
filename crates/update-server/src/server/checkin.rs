//! A host asks: what it says is recorded and answered in one transaction, so that a failure it
//! reports already counts for the answer to the same message.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use release::omaha::{self, AppRequest, AppResponse, EventMeaning, Offer, Package, UpdateCheck};
use rusqlite::Connection;

use super::catalog::{self, Published};
use super::error::ApiError;
use super::policy::{self, Asking};
use super::{Shared, records};

/// Nobody has more; each one costs a transaction.
const MAX_APPS: usize = 4;

pub(super) async fn checkin(
    State(server): State<Shared>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let request = read(&body)?;
    let now = (server.clock)();
    let base = base_url(server.public_url.as_deref(), &headers)?;
    let mut apps = Vec::new();
    for app in request.apps.into_iter().take(MAX_APPS) {
        let base = base.clone();
        apps.push(
            server
                .database
                .write(move |db| answer(db, &app, &base, now))
                .await?,
        );
    }
    let response = omaha::Response {
        daystart_seconds: seconds_of_day(now),
        apps,
    };
    Ok((
        [(CONTENT_TYPE, "text/xml; charset=utf-8")],
        response.to_xml(),
    )
        .into_response())
}

fn read(body: &[u8]) -> Result<omaha::Request, ApiError> {
    let bad = |what: String| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            format!("this is not an Omaha request: {what}"),
        )
    };
    let text = std::str::from_utf8(body).map_err(|e| bad(e.to_string()))?;
    omaha::Request::from_xml(text).map_err(|e| bad(e.to_string()))
}

/// Where the host that asks reaches this server: as configured, or as it did just now.
pub(super) fn base_url(public: Option<&str>, headers: &HeaderMap) -> Result<String, ApiError> {
    if let Some(url) = public {
        return Ok(url.to_owned());
    }
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let good = !host.is_empty()
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
    if good {
        Ok(format!("http://{host}"))
    } else {
        Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "the request has no usable Host header",
        ))
    }
}

fn seconds_of_day(now: Timestamp) -> u32 {
    u32::try_from(now.as_second().rem_euclid(86_400)).unwrap_or(0)
}

fn answer(
    db: &Connection,
    app: &AppRequest,
    base: &str,
    now: Timestamp,
) -> Result<AppResponse, ApiError> {
    let mut answer = AppResponse {
        app_id: app.app_id.clone(),
        status: "ok".into(),
        update_check: None,
        ping: app.ping,
        events: app.events.len(),
    };
    if !app
        .app_id
        .trim_matches(['{', '}'])
        .eq_ignore_ascii_case(omaha::APP_ID)
    {
        answer.status = "error-unknownApplication".into();
        return Ok(answer);
    }
    // A host without a usable id is served, but cannot be told from others like it.
    let id = records::machine_id(&app.machine_id);
    if let Some(id) = id {
        records::seen(db, id, app, now)?;
        for event in &app.events {
            records::event(db, id, event, now)?;
            match event.meaning() {
                EventMeaning::Failed => failed(db, id, event, now)?,
                EventMeaning::Good => {
                    if let Some(version) = &event.version {
                        records::forget_failure(db, id, version)?;
                    }
                }
                EventMeaning::FailuresCleared => records::forget_failures(db, id)?,
                _ => {}
            }
        }
    }
    if app.update_check {
        let failed = id.map_or_else(|| Ok(vec![]), |id| records::failed_releases(db, id))?;
        let candidate = catalog::on_channel(db, &app.track)?;
        let asking = Asking {
            version: &app.version,
            board: app.board.as_deref(),
            failed: &failed,
            force: app.force,
        };
        let decision = policy::decide(asking, candidate.as_ref().map(|c| (&c.manifest, c.id)));
        answer.update_check = Some(match (decision, candidate) {
            (Ok(()), Some(release)) => UpdateCheck::Offer(offer(&release, base)),
            (decision, _) => {
                if let Err(stay) = decision {
                    tracing::debug!(
                        host = app.machine_id,
                        version = app.version,
                        "no update: {stay}"
                    );
                }
                UpdateCheck::NoUpdate {
                    running: app.version.clone(),
                }
            }
        });
    }
    Ok(answer)
}

/// Remembers a release that the host left again. Without the release's id the version stands for
/// whatever is published under it now.
fn failed(
    db: &Connection,
    machine_id: &str,
    event: &omaha::Event,
    now: Timestamp,
) -> Result<(), ApiError> {
    // A foreign client's failure that names no version cannot be held against a release.
    let Some(version) = &event.version else {
        return Ok(());
    };
    let id = match event.release {
        Some(id) => Some(id),
        None => catalog::release(db, version)?.map(|release| release.id),
    };
    let reason = event.reason.as_deref().unwrap_or("no reason given");
    tracing::info!(host = machine_id, %version, reason, "a host left a release");
    records::failure(db, machine_id, id, version, reason, now)
}

fn offer(release: &Published, base: &str) -> Offer {
    let envelope = Package {
        name: catalog::manifest_name(),
        size: release.envelope_size,
        sha256: Some(release.envelope_sha256),
        required: true,
    };
    let optional = release.manifest.sbom.as_ref().map(|sbom| &sbom.name);
    let files = release.manifest.files().map(|file| Package {
        name: file.name.clone(),
        size: file.size,
        sha256: Some(file.sha256),
        required: Some(&file.name) != optional,
    });
    Offer {
        codebases: vec![format!("{base}/releases/{}/", release.manifest.version)],
        version: release.manifest.version.clone(),
        packages: std::iter::once(envelope).chain(files).collect(),
    }
}
