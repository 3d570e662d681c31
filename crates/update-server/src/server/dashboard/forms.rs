//! What the pages' buttons do. Every form repeats the session's secret, so that no other site's
//! page can press them.

use askama::Template;
use axum::Form;
use axum::extract::State;
use axum::extract::rejection::FormRejection;
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use release::{Channel, Sha256, Version};
use serde::Deserialize;

use super::super::error::ApiError;
use super::super::ops::{self, By, Scope};
use super::super::plan::Plan;
use super::super::sql::Db;
use super::super::{Shared, auth, records};
use super::{Frame, html, problem};
use crate::api::{Promote, SetGroup};

#[derive(Template)]
#[template(path = "sign-in.html")]
struct SignIn {
    frame: Frame,
    wrong: bool,
    /// Who else vouches for people.
    issuer: Option<String>,
}

pub(in crate::server) async fn sign_in_page(State(server): State<Shared>) -> Response {
    let frame = Frame::new("Sign in", "", None, (server.clock)());
    html(&SignIn {
        frame,
        wrong: false,
        issuer: issuer(&server),
    })
}

fn issuer(server: &Shared) -> Option<String> {
    server.oidc.as_ref().map(|oidc| oidc.host().to_owned())
}

#[derive(Deserialize)]
pub(in crate::server) struct Credentials {
    token: String,
}

pub(in crate::server) async fn sign_in(
    State(server): State<Shared>,
    headers: HeaderMap,
    form: Result<Form<Credentials>, FormRejection>,
) -> Response {
    let now = (server.clock)();
    let work = async {
        let Form(form) = form.map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, e.body_text()))?;
        let Some(who) = auth::token(&server, &form.token).await? else {
            return Ok(None);
        };
        let actor = who.actor.clone();
        server
            .database
            .write(move |db| records::activity(db, &actor, "signed in", "dashboard", "", now))
            .await?;
        let secure = headers
            .get("x-forwarded-proto")
            .is_some_and(|value| value == "https");
        auth::sign_in(&server, who, "", secure).await.map(Some)
    };
    match work.await {
        Ok(Some(cookie)) => ([(SET_COOKIE, cookie)], Redirect::to("/")).into_response(),
        Ok(None) => {
            let frame = Frame::new("Sign in", "", None, now);
            let mut response = html(&SignIn {
                frame,
                wrong: true,
                issuer: issuer(&server),
            });
            *response.status_mut() = StatusCode::FORBIDDEN;
            response
        }
        Err(error) => problem(None, error, now),
    }
}

#[derive(Deserialize)]
pub(in crate::server) struct Csrf {
    csrf: String,
}

pub(in crate::server) async fn sign_out(
    State(server): State<Shared>,
    headers: HeaderMap,
    Form(form): Form<Csrf>,
) -> Response {
    let work = async {
        let who = auth::session(&server, &headers).await?;
        if who.and_then(|who| who.csrf).as_deref() != Some(form.csrf.as_str()) {
            return Err(foreign());
        }
        auth::sign_out(&server, &headers).await
    };
    match work.await {
        Ok(cookie) => ([(SET_COOKIE, cookie)], Redirect::to("/")).into_response(),
        Err(error) => problem(None, error, (server.clock)()),
    }
}

fn foreign() -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "the form is not of this session")
        .hint("go back, load the page again and repeat it")
}

/// Any button: which one, and its fields.
#[derive(Deserialize)]
pub(in crate::server) struct Wish {
    csrf: String,
    #[serde(rename = "do")]
    action: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    policy: String,
    #[serde(default)]
    description: String,
}

pub(in crate::server) async fn act(
    State(server): State<Shared>,
    headers: HeaderMap,
    form: Result<Form<Wish>, FormRejection>,
) -> Response {
    let now = (server.clock)();
    let who = match auth::session(&server, &headers).await {
        Ok(Some(who)) => who,
        Ok(None) => return Redirect::to("/sign-in").into_response(),
        Err(error) => return problem(None, error, now),
    };
    let work = async {
        let Form(wish) = form.map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, e.body_text()))?;
        let expected = who.csrf.as_deref().map(Sha256::of);
        if expected != Some(Sha256::of(&wish.csrf)) {
            return Err(foreign());
        }
        let by = By {
            actor: auth::may_change(who.clone())?.actor,
            now,
        };
        server
            .database
            .write_plan(move |db, plan| fulfil(db, plan, &by, &wish))
            .await
    };
    match work.await {
        Ok(back) => Redirect::to(back).into_response(),
        Err(error) => problem(Some(&who), error, now),
    }
}

/// Gives the page to go back to.
fn fulfil(db: &Db, plan: &mut Plan, by: &By, wish: &Wish) -> Result<&'static str, ApiError> {
    let bad = |what: String| ApiError::new(StatusCode::BAD_REQUEST, what);
    let channel = |name: &str| name.parse::<Channel>().map_err(|e| bad(e.to_string()));
    let version = |text: &str| text.parse::<Version>().map_err(|e| bad(e.to_string()));
    let scope = || match wish.value.as_str() {
        "" => Ok(Scope::Group(wish.name.clone())),
        one => version(one).map(|it| Scope::Release(wish.name.clone(), it)),
    };
    match wish.action.as_str() {
        "set-channel" => {
            ops::set_channel(db, plan, by, &channel(&wish.name)?, &version(&wish.value)?)?;
            Ok("/releases")
        }
        "promote" => {
            let wanted = Promote {
                from: channel(&wish.value)?,
                version: None,
            };
            ops::promote(db, plan, by, &wanted, &channel(&wish.name)?)?;
            Ok("/releases")
        }
        "pause-channel" | "resume-channel" => {
            let pause = wish.action == "pause-channel";
            ops::pause_or_resume(db, plan, by, &Scope::Channel(wish.name.clone()), pause)?;
            Ok("/releases")
        }
        "pause" => ops::pause_or_resume(db, plan, by, &scope()?, true).map(|_| "/groups"),
        "resume" => ops::pause_or_resume(db, plan, by, &scope()?, false).map(|_| "/groups"),
        "withdraw" => {
            ops::withdraw(db, plan, by, &version(&wish.name)?, Some(&wish.value))?;
            Ok("/releases")
        }
        "restore" => {
            ops::withdraw(db, plan, by, &version(&wish.name)?, None)?;
            Ok("/releases")
        }
        "set-group" => {
            let policy = match wish.policy.trim() {
                "" => Default::default(),
                text => serde_json::from_str(text).map_err(|e| bad(format!("the policy: {e}")))?,
            };
            let wanted = SetGroup {
                channel: channel(&wish.value)?,
                description: wish.description.clone(),
                policy,
            };
            ops::set_group(db, plan, by, &wish.name, wanted)?;
            Ok("/groups")
        }
        "remove-group" => ops::remove_group(db, plan, by, &wish.name).map(|()| "/groups"),
        "assign" => {
            let group = (!wish.value.is_empty()).then_some(wish.value.as_str());
            ops::assign(db, plan, by, &wish.name, group)?;
            Ok("/hosts")
        }
        "forget" => ops::forget_host(db, plan, by, &wish.name, "").map(|()| "/hosts"),
        other => Err(bad(format!("there is no button {other:?}"))),
    }
}
