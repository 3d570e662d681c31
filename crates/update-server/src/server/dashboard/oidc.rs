//! The way to the issuer and back.

use askama::Template;
use axum::extract::{Query, State};
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use release::Sha256;
use serde::Deserialize;

use super::super::auth::{self, Who};
use super::super::error::ApiError;
use super::super::oidc::{Oidc, OidcError, Trip};
use super::super::{Shared, checkin, records};
use super::{Frame, html, problem};

pub(in crate::server) const BACK: &str = "/sign-in/oidc/back";
const COOKIE: &str = "orlop_oidc";
/// As long as somebody may take to type a password.
const SECONDS: u32 = 600;

impl From<OidcError> for ApiError {
    fn from(error: OidcError) -> Self {
        let status = match error {
            OidcError::NoRole(_) => StatusCode::FORBIDDEN,
            _ => StatusCode::BAD_GATEWAY,
        };
        Self::new(status, error.to_string()).hint("sign in again, or with a token")
    }
}

fn nobody() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "this server knows no issuer")
        .hint("--oidc-issuer names one")
}

fn redirect(server: &Shared, headers: &HeaderMap) -> Result<String, ApiError> {
    let base = checkin::base_url(server.public_url.as_deref(), headers)?;
    Ok(format!("{base}{BACK}"))
}

fn cookie(value: &str, age: u32, secure: bool) -> String {
    let secure = if secure { "; Secure" } else { "" };
    // Lax: it has to come along when the issuer sends the browser back.
    format!("{COOKIE}={value}; Path=/sign-in; Max-Age={age}; HttpOnly; SameSite=Lax{secure}")
}

pub(in crate::server) async fn leave(State(server): State<Shared>, headers: HeaderMap) -> Response {
    let work = async {
        let oidc = server.oidc.as_ref().ok_or_else(nobody)?;
        let nothing = || ApiError::internal("nobody can sign in", "no random bytes");
        let secret = auth::secret().ok_or_else(nothing)?;
        let redirect = redirect(&server, &headers)?;
        let way = oidc.way(&Trip(&secret), &redirect).await?;
        let secure = redirect.starts_with("https://");
        Ok((
            [(SET_COOKIE, cookie(&secret, SECONDS, secure))],
            Redirect::to(&way),
        )
            .into_response())
    };
    match work.await {
        Ok(response) => response,
        Err(error) => problem(None, error, (server.clock)()),
    }
}

#[derive(Deserialize)]
pub(in crate::server) struct Answer {
    #[serde(default)]
    code: String,
    #[serde(default)]
    state: String,
    error: Option<String>,
    error_description: Option<String>,
}

#[derive(Template)]
#[template(path = "signed-in.html")]
struct SignedIn {
    frame: Frame,
}

pub(in crate::server) async fn back(
    State(server): State<Shared>,
    Query(answer): Query<Answer>,
    headers: HeaderMap,
) -> Response {
    let now = (server.clock)();
    let secure = server
        .public_url
        .as_ref()
        .is_some_and(|url| url.starts_with("https://"));
    let work = async {
        let oidc = server.oidc.as_ref().ok_or_else(nobody)?;
        let person = person(&server, oidc, &answer, &headers).await?;
        let who = Who {
            actor: person.name,
            role: person.role,
            csrf: None,
        };
        let actor = who.actor.clone();
        server
            .database
            .write(move |db| records::activity(db, &actor, "signed in", "dashboard", "", now))
            .await?;
        auth::sign_in(&server, who, oidc.issuer(), secure).await
    };
    let mut response = match work.await {
        Ok(session) => {
            // A redirect would still be the issuer's: the browser keeps the strict cookie to itself.
            let frame = Frame::new("Signed in", "", None, now);
            ([(SET_COOKIE, session)], html(&SignedIn { frame })).into_response()
        }
        Err(error) => {
            tracing::info!("nobody signed in: {error}");
            problem(None, error, now)
        }
    };
    // One answer is taken once.
    if let Ok(none) = cookie("", 0, secure).parse() {
        response.headers_mut().append(SET_COOKIE, none);
    }
    response
}

async fn person(
    server: &Shared,
    oidc: &Oidc,
    answer: &Answer,
    headers: &HeaderMap,
) -> Result<super::super::oidc::Person, ApiError> {
    let foreign = || {
        ApiError::new(
            StatusCode::FORBIDDEN,
            "this sign-in was not begun in this browser",
        )
        .hint("begin at /sign-in; it has to be finished within ten minutes")
    };
    let secret = auth::cookie(headers, COOKIE).ok_or_else(foreign)?;
    let trip = Trip(secret);
    if Sha256::of(trip.state()) != Sha256::of(&answer.state) {
        return Err(foreign());
    }
    if let Some(error) = &answer.error {
        let more = answer
            .error_description
            .as_deref()
            .map(|more| format!(": {more}"));
        let why: String = format!("{error}{}", more.unwrap_or_default());
        return Err(OidcError::Refused(why.chars().take(300).collect()).into());
    }
    let redirect = redirect(server, headers)?;
    Ok(oidc.person(&trip, &answer.code, &redirect).await?)
}
