//! `/api/v1` about groups, rollouts and single hosts.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use release::Version;
use serde::Deserialize;

use super::error::ApiError;
use super::ops::{self, By, Scope};
use super::rest::body;
use super::{Shared, auth, records};
use crate::api::{AssignHost, GroupState, Host, RolloutState, SetGroup};

#[utoipa::path(get, path = "/api/v1/groups", tag = "groups", responses((status = 200, body = [GroupState])))]
pub(super) async fn list(
    State(server): State<Shared>,
    headers: HeaderMap,
) -> Result<Json<Vec<GroupState>>, ApiError> {
    auth::viewer(&server, &headers).await?;
    let plan = server.database.plan();
    server
        .database
        .read(move |db| ops::groups(db, &plan))
        .await
        .map(Json)
}

#[utoipa::path(put, path = "/api/v1/groups/{name}", tag = "groups", request_body = SetGroup,
    params(("name" = String, Path)), responses((status = 200, body = GroupState)), security(("token" = [])))]
pub(super) async fn set(
    State(server): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    wanted: Result<Json<SetGroup>, JsonRejection>,
) -> Result<Json<GroupState>, ApiError> {
    let by = by(&server, &headers).await?;
    let wanted = body(
        wanted,
        r#"{"channel": "stable", "policy": {"waves": [1, 10, 100], "days": 2}}"#,
    )?;
    let change = move |db: &super::sql::Db, plan: &mut super::plan::Plan| {
        ops::set_group(db, plan, &by, &name, wanted)?;
        let group = plan.groups.get(&name).cloned();
        let group = group.ok_or_else(|| ApiError::internal("the group is gone", &name))?;
        ops::group(db, plan, &group)
    };
    server.database.write_plan(change).await.map(Json)
}

#[utoipa::path(delete, path = "/api/v1/groups/{name}", tag = "groups",
    params(("name" = String, Path)), responses((status = 204)), security(("token" = [])))]
pub(super) async fn remove(
    State(server): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let by = by(&server, &headers).await?;
    server
        .database
        .write_plan(move |db, plan| ops::remove_group(db, plan, &by, &name))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The rollouts of every group: of what its channel points at, and of the stops on the way there
#[utoipa::path(get, path = "/api/v1/rollouts", tag = "rollouts", responses((status = 200, body = [RolloutState])))]
pub(super) async fn rollouts(
    State(server): State<Shared>,
    headers: HeaderMap,
) -> Result<Json<Vec<RolloutState>>, ApiError> {
    auth::viewer(&server, &headers).await?;
    let plan = server.database.plan();
    Ok(Json(ops::rollouts(&plan)))
}

#[utoipa::path(post, path = "/api/v1/rollouts/{group}/pause", tag = "rollouts",
    params(("group" = String, Path), OneRelease), responses((status = 200, body = [RolloutState])), security(("token" = [])))]
pub(super) async fn pause(
    State(server): State<Shared>,
    Path(group): Path<String>,
    one: Result<Query<OneRelease>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Vec<RolloutState>>, ApiError> {
    pause_or_resume(&server, &headers, scope(group, one)?, true).await
}

/// Goes on, also after a halt: the verdicts so far are accepted
#[utoipa::path(post, path = "/api/v1/rollouts/{group}/resume", tag = "rollouts",
    params(("group" = String, Path), OneRelease), responses((status = 200, body = [RolloutState])), security(("token" = [])))]
pub(super) async fn resume(
    State(server): State<Shared>,
    Path(group): Path<String>,
    one: Result<Query<OneRelease>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Vec<RolloutState>>, ApiError> {
    pause_or_resume(&server, &headers, scope(group, one)?, false).await
}

/// Without it all rollouts of the group are meant.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct OneRelease {
    #[param(value_type = Option<String>)]
    version: Option<Version>,
}

fn scope(group: String, one: Result<Query<OneRelease>, QueryRejection>) -> Result<Scope, ApiError> {
    let Query(one) = one.map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, e.body_text()))?;
    Ok(match one.version {
        Some(version) => Scope::Release(group, version),
        None => Scope::Group(group),
    })
}

/// Pauses every group on the channel
#[utoipa::path(post, path = "/api/v1/channels/{name}/pause", tag = "channels",
    params(("name" = String, Path)), responses((status = 200, body = [RolloutState])), security(("token" = [])))]
pub(super) async fn pause_channel(
    State(server): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Vec<RolloutState>>, ApiError> {
    pause_or_resume(&server, &headers, Scope::Channel(name), true).await
}

#[utoipa::path(post, path = "/api/v1/channels/{name}/resume", tag = "channels",
    params(("name" = String, Path)), responses((status = 200, body = [RolloutState])), security(("token" = [])))]
pub(super) async fn resume_channel(
    State(server): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Vec<RolloutState>>, ApiError> {
    pause_or_resume(&server, &headers, Scope::Channel(name), false).await
}

async fn pause_or_resume(
    server: &Shared,
    headers: &HeaderMap,
    scope: Scope,
    pause: bool,
) -> Result<Json<Vec<RolloutState>>, ApiError> {
    let by = by(server, headers).await?;
    server
        .database
        .write_plan(move |db, plan| ops::pause_or_resume(db, plan, &by, &scope, pause))
        .await
        .map(Json)
}

#[utoipa::path(get, path = "/api/v1/hosts/{id}", tag = "hosts",
    params(("id" = String, Path, description = "Machine id")), responses((status = 200, body = Host)))]
pub(super) async fn host(
    State(server): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Host>, ApiError> {
    auth::viewer(&server, &headers).await?;
    one(&server, id).await.map(Json)
}

/// Puts a host into a group, or leaves it to the host
#[utoipa::path(put, path = "/api/v1/hosts/{id}", tag = "hosts", request_body = AssignHost,
    params(("id" = String, Path)), responses((status = 200, body = Host)), security(("token" = [])))]
pub(super) async fn assign(
    State(server): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
    wanted: Result<Json<AssignHost>, JsonRejection>,
) -> Result<Json<Host>, ApiError> {
    let by = by(&server, &headers).await?;
    let wanted = body(
        wanted,
        r#"{"group": "canary"}, or null for what the host says"#,
    )?;
    let host = id.clone();
    server
        .database
        .write_plan(move |db, plan| ops::assign(db, plan, &by, &host, wanted.group.as_deref()))
        .await?;
    one(&server, id).await.map(Json)
}

/// Forgets a host that is no more; should it ask again, it is a new one
#[utoipa::path(delete, path = "/api/v1/hosts/{id}", tag = "hosts",
    params(("id" = String, Path, description = "Machine id")), responses((status = 204)), security(("token" = [])))]
pub(super) async fn forget(
    State(server): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let by = by(&server, &headers).await?;
    // Its last ping may not be written down yet.
    super::ticker::flush(&server).await?;
    server
        .database
        .write_plan(move |db, plan| ops::forget_host(db, plan, &by, &id, ""))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// One host, with what it gets next.
pub(super) async fn one(server: &Shared, id: String) -> Result<Host, ApiError> {
    let (plan, now) = (server.database.plan(), (server.clock)());
    let filter = records::Filter {
        machine_id: Some(id.clone()),
        limit: 1,
        ..Default::default()
    };
    let found = server
        .database
        .read(move |db| records::hosts(db, &plan, &filter, now))
        .await?;
    let none = || {
        ops::not_found(
            format!("no host {id} is known"),
            "orlop fleet status lists them",
        )
    };
    found.into_iter().next().ok_or_else(none)
}

async fn by(server: &Shared, headers: &HeaderMap) -> Result<By, ApiError> {
    Ok(By {
        actor: auth::operator(server, headers).await?.actor,
        now: (server.clock)(),
    })
}
