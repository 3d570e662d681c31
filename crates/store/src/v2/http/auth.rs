//! `/v2/auth`.

use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::Serialize;

use super::{Api, allowed, cluster_header, json, message, no_auth, not_found};
use crate::v2::auth::{Access, Admin, AuthError, Credentials, Permissions, ROOT, Role, User};
use crate::v2::gojson;
use crate::v2::proposer::Proposer;

pub(super) async fn serve<P: Proposer>(api: &Api<P>, request: Request, rest: &str) -> Response {
    let (area, name) = match rest.split_once('/') {
        Some((area, name)) => (area, name),
        None => (rest, ""),
    };
    let name = name.trim_end_matches('/');
    let methods = match (area, name) {
        ("enable", "") if rest == "enable" => "GET,PUT,DELETE",
        ("users" | "roles", "") => "GET",
        ("users" | "roles", name) if name.contains('/') => {
            return message(StatusCode::BAD_REQUEST, "Invalid path");
        }
        ("users" | "roles", _) => "GET,PUT,DELETE",
        _ => return not_found(),
    };
    if let Err(refusal) = allowed(request.method(), methods) {
        return *refusal;
    }
    let access = || Access {
        store: api.server.store(),
        passwords: &api.passwords,
    };
    let credentials = Credentials::of(request.headers(), request.extensions());
    // Everyone may ask whether authentication is on.
    let open = area == "enable" && request.method() == Method::GET;
    if !open && !access().is_root(&credentials).await {
        return no_auth();
    }
    let admin = Admin {
        server: api.server.as_ref(),
        access: access(),
    };
    let method = request.method().clone();
    let result = match (area, name) {
        ("enable", _) => enable(&admin, &method).await,
        ("users", "") => Ok(users(&admin.access)),
        ("users", name) => user(&admin, &method, name, request).await,
        (_, "") => roles(&admin.access),
        (_, name) => role(&admin, &method, name, request).await,
    };
    let response = result.unwrap_or_else(|error| message(error.status, &error.text));
    cluster_header(api, response)
}

fn shown<T: Serialize>(status: StatusCode, value: &T) -> Response {
    json(status, gojson::line(value))
}

fn bad(text: &str) -> Response {
    message(StatusCode::BAD_REQUEST, text)
}

async fn enable<P: Proposer>(admin: &Admin<'_, P>, method: &Method) -> Result<Response, AuthError> {
    #[derive(Serialize)]
    struct Enabled {
        enabled: bool,
    }
    match *method {
        Method::GET => {
            let enabled = admin.access.enabled();
            return Ok(shown(StatusCode::OK, &Enabled { enabled }));
        }
        Method::PUT => admin.enable().await?,
        _ => admin.disable().await?,
    }
    Ok(json(StatusCode::OK, ""))
}

/// A user with its roles spelt out.
#[derive(Serialize)]
struct UserWithRoles {
    user: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    roles: Vec<Role>,
}

fn users(access: &Access<'_>) -> Response {
    #[derive(Serialize)]
    struct Users {
        // Go writes a list that was never made as null.
        users: Option<Vec<UserWithRoles>>,
    }
    let users: Vec<UserWithRoles> = access
        .names("users")
        .iter()
        .filter_map(|name| access.user(name).ok())
        .map(|user| with_roles(access, user))
        .collect();
    shown(
        StatusCode::OK,
        &Users {
            users: (!users.is_empty()).then_some(users),
        },
    )
}

fn with_roles(access: &Access<'_>, user: User) -> UserWithRoles {
    UserWithRoles {
        user: user.user,
        roles: user
            .roles
            .iter()
            .flatten()
            .filter_map(|role| access.role(role).ok())
            .collect(),
    }
}

async fn user<P: Proposer>(
    admin: &Admin<'_, P>,
    method: &Method,
    name: &str,
    request: Request,
) -> Result<Response, AuthError> {
    match *method {
        Method::GET => {
            let user = admin.access.user(name)?;
            // Unlike in the list, a role that is gone is an error here.
            for role in user.roles.iter().flatten() {
                admin.access.role(role)?;
            }
            Ok(shown(StatusCode::OK, &with_roles(&admin.access, user)))
        }
        Method::PUT => {
            let Some(user) = document::<User>(request).await else {
                return Ok(bad("Invalid JSON in request body."));
            };
            if user.user != name {
                return Ok(bad("User JSON name does not match the name in the URL"));
            }
            let has = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
            let (has_roles, changes) = (has(&user.roles), has(&user.grant) || has(&user.revoke));
            let (status, mut user) = match (has_roles, changes) {
                (true, true) => {
                    return Ok(bad("User JSON contains both roles and grant/revoke"));
                }
                (true, false) => (StatusCode::OK, admin.create_user(user).await?),
                (false, true) => (StatusCode::OK, admin.update_user(user).await?),
                // A name and a password: a new user, or a new password.
                (false, false) if admin.access.user(name).is_ok() => {
                    (StatusCode::OK, admin.update_user(user).await?)
                }
                (false, false) => (StatusCode::CREATED, admin.create_user(user).await?),
            };
            user.password.clear();
            Ok(shown(status, &user))
        }
        _ => {
            admin.delete_user(name).await?;
            Ok(json(StatusCode::OK, ""))
        }
    }
}

fn roles(access: &Access<'_>) -> Result<Response, AuthError> {
    #[derive(Serialize)]
    struct Roles {
        roles: Vec<Role>,
    }
    let mut names = access.names("roles");
    names.push(ROOT.into());
    names.sort();
    let roles: Result<Vec<Role>, AuthError> = names.iter().map(|name| access.role(name)).collect();
    Ok(shown(StatusCode::OK, &Roles { roles: roles? }))
}

async fn role<P: Proposer>(
    admin: &Admin<'_, P>,
    method: &Method,
    name: &str,
    request: Request,
) -> Result<Response, AuthError> {
    match *method {
        Method::GET => Ok(shown(StatusCode::OK, &admin.access.role(name)?)),
        Method::PUT => {
            let Some(role) = document::<Role>(request).await else {
                return Ok(bad("Invalid JSON in request body."));
            };
            if role.role != name {
                return Ok(bad("Role JSON name does not match the name in the URL"));
            }
            let has = |list: &Option<Permissions>| list.as_ref().is_some_and(|p| !p.is_empty());
            if !has(&role.grant) && !has(&role.revoke) {
                admin.create_role(&role).await?;
                return Ok(shown(StatusCode::CREATED, &role));
            }
            if !role.permissions.is_empty() {
                return Ok(bad("Role JSON contains both permissions and grant/revoke"));
            }
            Ok(shown(StatusCode::OK, &admin.update_role(role).await?))
        }
        _ => {
            admin.delete_role(name).await?;
            Ok(json(StatusCode::OK, ""))
        }
    }
}

/// The first JSON document of the body. What follows it is not looked at, as Go's decoder does not.
async fn document<T: for<'de> serde::Deserialize<'de>>(request: Request) -> Option<T> {
    let body = super::body(request.into_body()).await.ok()?;
    serde_json::Deserializer::from_slice(&body)
        .into_iter::<T>()
        .next()?
        .ok()
}
