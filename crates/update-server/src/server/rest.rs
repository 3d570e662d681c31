//! `/api/v1` except uploads: what there is, and which channel points where.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use release::Channel;
use serde::Deserialize;

use super::error::ApiError;
use super::{Shared, catalog, records};
use crate::api::{ChannelState, Event, Host, Release, ServerHealth, SetChannel};

pub(super) async fn hosts(State(server): State<Shared>) -> Result<Json<Vec<Host>>, ApiError> {
    server
        .database
        .read(|db| records::hosts(db, u32::MAX))
        .await
        .map(Json)
}

pub(super) async fn releases(State(server): State<Shared>) -> Result<Json<Vec<Release>>, ApiError> {
    server.database.read(catalog::releases).await.map(Json)
}

pub(super) async fn channels(
    State(server): State<Shared>,
) -> Result<Json<Vec<ChannelState>>, ApiError> {
    server.database.read(catalog::channels).await.map(Json)
}

#[derive(Deserialize)]
pub(super) struct EventQuery {
    host: Option<String>,
    limit: Option<u32>,
}

pub(super) async fn events(
    State(server): State<Shared>,
    Query(query): Query<EventQuery>,
) -> Result<Json<Vec<Event>>, ApiError> {
    let limit = query.limit.unwrap_or(100).min(10_000);
    server
        .database
        .read(move |db| records::events(db, query.host.as_deref(), limit))
        .await
        .map(Json)
}

pub(super) async fn set_channel(
    State(server): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Result<Json<SetChannel>, JsonRejection>,
) -> Result<Json<ChannelState>, ApiError> {
    server.token.check(&headers)?;
    let bad = |what: String| ApiError::new(StatusCode::BAD_REQUEST, what);
    let name: Channel = name
        .parse()
        .map_err(|e: release::ChannelError| bad(e.to_string()))?;
    let Json(SetChannel { version }) = body.map_err(|e| {
        bad(e.body_text()).hint("send Content-Type: application/json and {\"version\": \"2\"}")
    })?;
    let now = (server.clock)();
    let state = server
        .database
        .write(move |db| catalog::set_channel(db, &name, &version, now))
        .await?;
    tracing::info!(channel = %state.name, version = ?state.version.as_ref().map(ToString::to_string), "channel set");
    Ok(Json(state))
}

pub(super) async fn health(State(server): State<Shared>) -> Result<Json<ServerHealth>, ApiError> {
    let count = |db: &rusqlite::Connection| {
        Ok((
            records::count(db, "hosts")?,
            records::count(db, "releases")?,
        ))
    };
    let (hosts, releases) = server.database.read(count).await?;
    Ok(Json(ServerHealth {
        status: "ok".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        hosts,
        releases,
    }))
}

pub(super) async fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this address")
        .hint("the dashboard is at /, the API below /api/v1, Omaha at /v1/update/")
}
