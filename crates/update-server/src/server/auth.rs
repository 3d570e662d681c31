//! Who asks: the admin token of the data directory, tokens that were made for people and programs,
//! and sessions of browsers that signed in with one of them.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use axum::http::header::{AUTHORIZATION, COOKIE};
use axum::http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use release::Sha256;

use super::Shared;
use super::error::ApiError;
use super::sql::{Db, params};
use super::startup::ServeError;
use crate::api::Role;

/// The admin token's digest: comparing digests takes the same time wherever two tokens differ.
pub(super) struct Token(Sha256);

impl Token {
    /// Reads the token's file, or makes it with mode 0600 at the first start.
    pub(super) fn read_or_make(path: &Path) -> Result<Self, ServeError> {
        let io = |source| ServeError::Io {
            path: path.into(),
            source,
        };
        match std::fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() => Ok(Self(Sha256::of(text.trim()))),
            Ok(_) => Err(io(std::io::Error::other(
                "the file is empty: remove it to get a new token",
            ))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let token = secret().ok_or(ServeError::NoRandomness)?;
                // A crash in between must not leave an empty token behind.
                let part = path.with_extension("part");
                let _ = std::fs::remove_file(&part);
                let mut file = std::fs::File::options()
                    .create_new(true)
                    .write(true)
                    .mode(0o600)
                    .open(&part)
                    .map_err(io)?;
                writeln!(file, "{token}").map_err(io)?;
                file.sync_all().map_err(io)?;
                std::fs::rename(&part, path).map_err(io)?;
                tracing::info!(path = %path.display(), "made an admin token");
                Ok(Self(Sha256::of(token)))
            }
            Err(error) => Err(io(error)),
        }
    }
}

/// 64 digits that nobody can guess.
pub(super) fn secret() -> Option<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).ok()?;
    Some(hex::encode(bytes))
}

/// Somebody whom the server knows.
#[derive(Clone, Debug)]
pub(super) struct Who {
    pub(super) actor: String,
    pub(super) role: Role,
    /// What forms of this session have to repeat; none for tokens.
    pub(super) csrf: Option<String>,
}

const COOKIE_NAME: &str = "orlop_session";
pub(super) const SESSION_HOURS: i64 = 12;

/// Whose token this is.
pub(super) async fn token(server: &Shared, token: &str) -> Result<Option<Who>, ApiError> {
    let digest = Sha256::of(token.trim());
    if digest == server.token.0 {
        return Ok(Some(Who {
            actor: "admin".into(),
            role: Role::Operator,
            csrf: None,
        }));
    }
    let find = move |db: &Db| {
        let sql = "SELECT name, role FROM tokens WHERE digest = $1";
        Ok(db.row(sql, params![digest.to_string()], |row| {
            Ok((row.get::<String>(0)?, row.get::<String>(1)?))
        })?)
    };
    let found = server.database.read(find).await?;
    Ok(found.and_then(|(actor, role)| {
        Some(Who {
            actor,
            role: Role::from_name(&role)?,
            csrf: None,
        })
    }))
}

/// The header's token.
async fn bearer(server: &Shared, headers: &HeaderMap) -> Result<Option<Who>, ApiError> {
    let given = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let Some(text) = given.and_then(|value| value.strip_prefix("Bearer ")) else {
        return Ok(None);
    };
    let wrong = || {
        ApiError::new(StatusCode::UNAUTHORIZED, "the admin token is wrong")
            .hint("it is in the file `token` of this server's data directory")
    };
    token(server, text).await?.ok_or_else(wrong).map(Some)
}

/// The browser's session.
pub(super) async fn session(server: &Shared, headers: &HeaderMap) -> Result<Option<Who>, ApiError> {
    let Some(secret) = cookie(headers, COOKIE_NAME) else {
        return Ok(None);
    };
    let (digest, now) = (Sha256::of(secret).to_string(), (server.clock)().as_second());
    let find = move |db: &Db| {
        let sql = "SELECT actor, role, csrf FROM sessions WHERE digest = $1 AND expires_at > $2 \
                   AND (provider <> '' OR actor = 'admin' OR actor IN (SELECT name FROM tokens))";
        Ok(db.row(sql, params![digest, now], |row| {
            Ok((
                row.get::<String>(0)?,
                row.get::<String>(1)?,
                row.get::<String>(2)?,
            ))
        })?)
    };
    let found = server.database.read(find).await?;
    Ok(found.and_then(|(actor, role, csrf)| {
        Some(Who {
            actor,
            role: Role::from_name(&role)?,
            csrf: Some(csrf),
        })
    }))
}

pub(super) fn cookie<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    headers.get_all(COOKIE).iter().find_map(|value| {
        let pairs = value.to_str().ok()?.split(';');
        pairs
            .filter_map(|pair| pair.trim().split_once('='))
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| value)
    })
}

/// Begins a session; gives the cookie.
/// `provider` vouches for who it is; empty for a token.
pub(super) async fn sign_in(
    server: &Shared,
    who: Who,
    provider: &str,
    secure: bool,
) -> Result<String, ApiError> {
    let nothing = || ApiError::internal("no session can be made", "no random bytes");
    let (secret, csrf) = (
        self::secret().ok_or_else(nothing)?,
        self::secret().ok_or_else(nothing)?,
    );
    let digest = Sha256::of(&secret).to_string();
    let expires = (server.clock)().as_second() + SESSION_HOURS * 3600;
    let provider = provider.to_owned();
    server
        .database
        .write(move |db| {
            let sql = "INSERT INTO sessions (digest, actor, role, csrf, expires_at, provider) \
                       VALUES ($1, $2, $3, $4, $5, $6)";
            let role = who.role.as_str();
            let values = params![digest, who.actor, role, csrf, expires, provider];
            db.execute(sql, values)?;
            Ok(())
        })
        .await?;
    let secure = if secure { "; Secure" } else { "" };
    let age = SESSION_HOURS * 3600;
    Ok(format!(
        "{COOKIE_NAME}={secret}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"
    ))
}

/// Ends the session; gives the cookie that takes its place.
pub(super) async fn sign_out(server: &Shared, headers: &HeaderMap) -> Result<String, ApiError> {
    if let Some(secret) = cookie(headers, COOKIE_NAME) {
        let digest = Sha256::of(secret).to_string();
        server
            .database
            .write(move |db| {
                let sql = "DELETE FROM sessions WHERE digest = $1";
                Ok(db.execute(sql, params![digest])?)
            })
            .await?;
    }
    Ok(format!(
        "{COOKIE_NAME}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict"
    ))
}

/// Lets through who may see things: everybody, unless the server is closed.
pub(super) async fn viewer(server: &Shared, headers: &HeaderMap) -> Result<Option<Who>, ApiError> {
    let who = match bearer(server, headers).await {
        Ok(Some(who)) => Some(who),
        Ok(None) => session(server, headers).await?,
        // What anybody may see is seen with a wrong token as well.
        Err(error) if server.closed => return Err(error),
        Err(_) => None,
    };
    if who.is_none() && server.closed {
        return Err(unauthorized(
            "this server shows its fleet only to those it knows",
        ));
    }
    Ok(who)
}

/// Lets through who may change things by the API. Browsers' cookies do not count here.
pub(super) async fn operator(server: &Shared, headers: &HeaderMap) -> Result<Who, ApiError> {
    match bearer(server, headers).await? {
        Some(who) => may_change(who),
        None => Err(unauthorized("this needs the admin token")),
    }
}

pub(super) fn may_change(who: Who) -> Result<Who, ApiError> {
    match who.role {
        Role::Operator => Ok(who),
        Role::Viewer => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("{} may look, but change nothing", who.actor),
        )
        .hint("it takes a token with the role operator")),
    }
}

fn unauthorized(what: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, what).hint(
        "send the header `Authorization: Bearer TOKEN`; the token is in the file `token` of this server's data directory",
    )
}

/// Tokens beside the admin's.
pub(super) fn add_token(
    db: &Db,
    name: &str,
    role: Role,
    token: &str,
    now: Timestamp,
) -> Result<bool, ApiError> {
    let sql = "INSERT INTO tokens (name, role, digest, made_at) VALUES ($1, $2, $3, $4) \
               ON CONFLICT DO NOTHING";
    let digest = Sha256::of(token).to_string();
    Ok(db.execute(sql, params![name, role.as_str(), digest, now])? > 0)
}
