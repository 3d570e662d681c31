//! `/api/v1/tokens`: for people and programs beside the admin.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};

use super::error::ApiError;
use super::rest::body;
use super::sql::{Db, params};
use super::{Shared, auth, catalog, ops, records};
use crate::api::{MakeToken, NewToken, Role, TokenState};

#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", responses((status = 200, body = [TokenState])), security(("token" = [])))]
pub(super) async fn list(
    State(server): State<Shared>,
    headers: HeaderMap,
) -> Result<Json<Vec<TokenState>>, ApiError> {
    auth::operator(&server, &headers).await?;
    let query = |db: &Db| {
        let sql = "SELECT name, role, made_at FROM tokens ORDER BY name";
        Ok(db.rows(sql, &[], |row| {
            let role: String = row.get(1)?;
            Ok(TokenState {
                name: row.get(0)?,
                role: Role::from_name(&role).unwrap_or(Role::Viewer),
                made: catalog::time(row, 2)?,
            })
        })?)
    };
    server.database.read(query).await.map(Json)
}

/// Makes a token; the answer is the only time that it is shown
#[utoipa::path(post, path = "/api/v1/tokens", tag = "tokens", request_body = MakeToken,
    responses((status = 201, body = NewToken)), security(("token" = [])))]
pub(super) async fn make(
    State(server): State<Shared>,
    headers: HeaderMap,
    wanted: Result<Json<MakeToken>, JsonRejection>,
) -> Result<(StatusCode, Json<NewToken>), ApiError> {
    let who = auth::operator(&server, &headers).await?;
    let MakeToken { name, role } = body(wanted, r#"{"name": "ann", "role": "viewer"}"#)?;
    let good = (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b))
        && name != "admin";
    if !good {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            format!(
                "{name:?} cannot name a token: up to 64 letters, digits and -_.@, and not admin"
            ),
        ));
    }
    let nothing = || ApiError::internal("no token can be made", "no random bytes");
    let token = auth::secret().ok_or_else(nothing)?;
    let now = (server.clock)();
    let (stored, named) = (token.clone(), name.clone());
    server
        .database
        .write(move |db| {
            if !auth::add_token(db, &named, role, &stored, now)? {
                let what = format!("there is a token {named} already");
                return Err(ApiError::new(StatusCode::CONFLICT, what)
                    .hint("remove it first: DELETE /api/v1/tokens/NAME"));
            }
            records::activity(
                db,
                &who.actor,
                "token made",
                &format!("token {named}"),
                role.as_str(),
                now,
            )
        })
        .await?;
    Ok((StatusCode::CREATED, Json(NewToken { name, role, token })))
}

/// Removes a token and ends its sessions
#[utoipa::path(delete, path = "/api/v1/tokens/{name}", tag = "tokens",
    params(("name" = String, Path)), responses((status = 204)), security(("token" = [])))]
pub(super) async fn remove(
    State(server): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let who = auth::operator(&server, &headers).await?;
    let now = (server.clock)();
    server
        .database
        .write(move |db| {
            if db.execute("DELETE FROM tokens WHERE name = $1", params![&name])? == 0 {
                return Err(ops::not_found(
                    format!("there is no token {name}"),
                    "GET /api/v1/tokens lists them",
                ));
            }
            let sessions = "DELETE FROM sessions WHERE actor = $1 AND provider = ''";
            db.execute(sessions, params![&name])?;
            records::activity(
                db,
                &who.actor,
                "token removed",
                &format!("token {name}"),
                "",
                now,
            )
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
