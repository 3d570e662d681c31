//! `/api/v1` except uploads: what there is, which channel points where, which releases are offered.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use release::{Channel, Version};
use serde::Deserialize;

use super::error::ApiError;
use super::ops::{self, By};
use super::sql::Db;
use super::{Shared, auth, catalog, records};
use crate::api::{
    Activity, ChannelState, Event, Host, Overview, Promote, Release, ServerHealth, SetChannel,
    Withdraw,
};

/// More hosts than anybody wants in one answer; the next ones come with `offset`.
const MAX_HOSTS: u32 = 10_000;

/// The body, or what is wrong with it.
pub(super) fn body<T>(body: Result<Json<T>, JsonRejection>, example: &str) -> Result<T, ApiError> {
    body.map(|Json(body)| body).map_err(|error| {
        bad(error.body_text()).hint(format!("send Content-Type: application/json and {example}"))
    })
}

fn bad(what: impl std::fmt::Display) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, what.to_string())
}

fn channel(name: &str) -> Result<Channel, ApiError> {
    name.parse().map_err(|e: release::ChannelError| bad(e))
}

async fn by(server: &Shared, headers: &HeaderMap) -> Result<By, ApiError> {
    Ok(By {
        actor: auth::operator(server, headers).await?.actor,
        now: (server.clock)(),
    })
}

#[derive(Deserialize, utoipa::IntoParams)]
pub(super) struct HostQuery {
    /// The beginning of a host name or of a machine id
    search: Option<String>,
    group: Option<String>,
    version: Option<String>,
    /// `healthy`, `starting`, `unhealthy` or `unknown`
    health: Option<String>,
    /// Only hosts that left a release
    #[serde(default)]
    failed: bool,
    /// At most 10000, which is the default too
    limit: Option<u32>,
    offset: Option<u32>,
}

/// Hosts by name
#[utoipa::path(get, path = "/api/v1/hosts", tag = "hosts", params(HostQuery), responses((status = 200, body = [Host])))]
pub(super) async fn hosts(
    State(server): State<Shared>,
    Query(query): Query<HostQuery>,
    headers: HeaderMap,
) -> Result<Json<Vec<Host>>, ApiError> {
    auth::viewer(&server, &headers).await?;
    let filter = records::Filter {
        machine_id: None,
        search: query.search.filter(|search| !search.is_empty()),
        group: query.group,
        version: query.version,
        health: query.health,
        failed: query.failed,
        offset: query.offset.unwrap_or(0),
        limit: query.limit.unwrap_or(MAX_HOSTS).min(MAX_HOSTS),
    };
    let (plan, now) = (server.database.plan(), (server.clock)());
    server
        .database
        .read(move |db| records::hosts(db, &plan, &filter, now))
        .await
        .map(Json)
}

/// Finished releases, newest first
#[utoipa::path(get, path = "/api/v1/releases", tag = "releases", responses((status = 200, body = [Release])))]
pub(super) async fn releases(
    State(server): State<Shared>,
    headers: HeaderMap,
) -> Result<Json<Vec<Release>>, ApiError> {
    auth::viewer(&server, &headers).await?;
    server.database.read(catalog::releases).await.map(Json)
}

/// Offers a release to nobody any more, and halts its rollouts
#[utoipa::path(post, path = "/api/v1/releases/{version}/withdraw", tag = "releases", request_body = Withdraw,
    params(("version" = String, Path)), responses((status = 204)), security(("token" = [])))]
pub(super) async fn withdraw(
    State(server): State<Shared>,
    Path(version): Path<String>,
    headers: HeaderMap,
    wanted: Result<Json<Withdraw>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let by = by(&server, &headers).await?;
    let Withdraw { reason } = body(wanted, r#"{"reason": "loses its network"}"#)?;
    set_withdrawn(&server, by, &version, Some(reason)).await
}

/// Allows a withdrawn release again; its rollouts stay halted until they are resumed
#[utoipa::path(post, path = "/api/v1/releases/{version}/restore", tag = "releases",
    params(("version" = String, Path)), responses((status = 204)), security(("token" = [])))]
pub(super) async fn restore(
    State(server): State<Shared>,
    Path(version): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let by = by(&server, &headers).await?;
    set_withdrawn(&server, by, &version, None).await
}

async fn set_withdrawn(
    server: &Shared,
    by: By,
    version: &str,
    reason: Option<String>,
) -> Result<StatusCode, ApiError> {
    let version: Version = version.parse().map_err(|e: release::VersionError| bad(e))?;
    server
        .database
        .write_plan(move |db, plan| ops::withdraw(db, plan, &by, &version, reason.as_deref()))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(get, path = "/api/v1/channels", tag = "channels", responses((status = 200, body = [ChannelState])))]
pub(super) async fn channels(
    State(server): State<Shared>,
    headers: HeaderMap,
) -> Result<Json<Vec<ChannelState>>, ApiError> {
    auth::viewer(&server, &headers).await?;
    server.database.read(catalog::channels).await.map(Json)
}

/// Points a channel, new or known, at a finished release
#[utoipa::path(put, path = "/api/v1/channels/{name}", tag = "channels", request_body = SetChannel,
    params(("name" = String, Path)), responses((status = 200, body = ChannelState)), security(("token" = [])))]
pub(super) async fn set_channel(
    State(server): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    wanted: Result<Json<SetChannel>, JsonRejection>,
) -> Result<Json<ChannelState>, ApiError> {
    let by = by(&server, &headers).await?;
    let name = channel(&name)?;
    let SetChannel { version } = body(wanted, r#"{"version": "2"}"#)?;
    let state = server
        .database
        .write_plan(move |db, plan| ops::set_channel(db, plan, &by, &name, &version))
        .await?;
    tracing::info!(channel = %state.name, version = ?state.version.as_ref().map(ToString::to_string), "channel set");
    Ok(Json(state))
}

const PROMOTE: &str = r#"{"from": "beta"}"#;

/// Gives a channel the release that another one has
#[utoipa::path(post, path = "/api/v1/channels/{name}/promote", tag = "channels", request_body = Promote,
    params(("name" = String, Path, description = "Where to")), responses((status = 200, body = ChannelState)), security(("token" = [])))]
pub(super) async fn promote(
    State(server): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    wanted: Result<Json<Promote>, JsonRejection>,
) -> Result<Json<ChannelState>, ApiError> {
    let by = by(&server, &headers).await?;
    let to = channel(&name)?;
    let wanted = body(wanted, PROMOTE)?;
    server
        .database
        .write_plan(move |db, plan| ops::promote(db, plan, &by, &wanted, &to))
        .await
        .map(Json)
}

/// Says whether a promotion would be refused, and changes nothing
#[utoipa::path(post, path = "/api/v1/channels/{name}/promote/check", tag = "channels", request_body = Promote,
    params(("name" = String, Path, description = "Where to")), responses((status = 204)), security(("token" = [])))]
pub(super) async fn check_promotion(
    State(server): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    wanted: Result<Json<Promote>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    auth::operator(&server, &headers).await?;
    let to = channel(&name)?;
    let wanted = body(wanted, PROMOTE)?;
    // Where it is decided, and as of now.
    server
        .database
        .write_plan(move |_, plan| ops::promotable(plan, &wanted, &to).map(drop))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, utoipa::IntoParams)]
pub(super) struct EventQuery {
    /// Machine id
    host: Option<String>,
    /// 100 unless told, at most 10000
    limit: Option<u32>,
}

/// What hosts told, newest first
#[utoipa::path(get, path = "/api/v1/events", tag = "hosts", params(EventQuery), responses((status = 200, body = [Event])))]
pub(super) async fn events(
    State(server): State<Shared>,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
) -> Result<Json<Vec<Event>>, ApiError> {
    auth::viewer(&server, &headers).await?;
    let limit = query.limit.unwrap_or(100).min(10_000);
    server
        .database
        .read(move |db| records::events(db, query.host.as_deref(), limit))
        .await
        .map(Json)
}

#[derive(Deserialize, utoipa::IntoParams)]
pub(super) struct ActivityQuery {
    /// Only what people did: the audit log
    #[serde(default)]
    people: bool,
    /// 100 unless told, at most 10000
    limit: Option<u32>,
}

/// What operators and the server itself did, newest first
#[utoipa::path(get, path = "/api/v1/activity", tag = "server", params(ActivityQuery), responses((status = 200, body = [Activity])))]
pub(super) async fn activity(
    State(server): State<Shared>,
    Query(query): Query<ActivityQuery>,
    headers: HeaderMap,
) -> Result<Json<Vec<Activity>>, ApiError> {
    auth::viewer(&server, &headers).await?;
    let limit = query.limit.unwrap_or(100).min(10_000);
    server
        .database
        .read(move |db| records::activities(db, query.people, limit))
        .await
        .map(Json)
}

#[derive(Deserialize, utoipa::IntoParams)]
pub(super) struct OverviewQuery {
    /// How far the history goes back; 7 unless told
    days: Option<u32>,
}

/// The fleet in numbers
#[utoipa::path(get, path = "/api/v1/overview", tag = "server", params(OverviewQuery), responses((status = 200, body = Overview)))]
pub(super) async fn overview(
    State(server): State<Shared>,
    Query(query): Query<OverviewQuery>,
    headers: HeaderMap,
) -> Result<Json<Overview>, ApiError> {
    auth::viewer(&server, &headers).await?;
    let since = days_ago((server.clock)(), query.days.unwrap_or(7));
    server
        .database
        .read(move |db| records::overview(db, since))
        .await
        .map(Json)
}

pub(super) fn days_ago(now: Timestamp, days: u32) -> Timestamp {
    now.checked_sub(SignedDuration::from_hours(24 * i64::from(days.min(90))))
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Whether the server works
#[utoipa::path(get, path = "/health", tag = "server", responses((status = 200, body = ServerHealth)))]
pub(super) async fn health(State(server): State<Shared>) -> Result<Json<ServerHealth>, ApiError> {
    let count = |db: &Db| {
        let hosts = "SELECT CAST(coalesce(sum(hosts), 0) AS BIGINT) FROM census";
        Ok((db.value(hosts, &[])?, records::count(db, "releases")?))
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
    ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this address").hint(
        "the dashboard is at /, the API below /api/v1 (described by /api/v1/openapi.json), Omaha at /v1/update/",
    )
}
