//! The pages for people. They are made here; the script only fetches them again.

pub(super) mod forms;
pub(super) mod groups;
pub(super) mod hosts;
pub(super) mod oidc;
pub(super) mod overview;
pub(super) mod releases;
#[cfg(test)]
mod tests;

use askama::Template;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Redirect, Response};
use jiff::Timestamp;

use super::auth::{self, Who};
use super::error::ApiError;
use super::{Shared, records};
use crate::api::{Activity, Event, Role};

pub(super) async fn style() -> impl IntoResponse {
    asset(
        "text/css; charset=utf-8",
        include_str!("../../../templates/dashboard.css"),
    )
}

pub(super) async fn script() -> impl IntoResponse {
    asset(
        "text/javascript; charset=utf-8",
        include_str!("../../../templates/dashboard.js"),
    )
}

fn asset(kind: &'static str, text: &'static str) -> impl IntoResponse {
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "max-age=60")], text)
}

/// What every page has around its content.
struct Frame {
    title: String,
    /// Which entry of the menu is this one.
    here: &'static str,
    who: Option<Shown>,
    csrf: String,
    /// Buttons that change something are there.
    operator: bool,
    now: Moment,
}

/// Who is signed in.
struct Shown {
    actor: String,
    role: &'static str,
}

impl Frame {
    fn new(
        title: impl Into<String>,
        here: &'static str,
        who: Option<&Who>,
        now: Timestamp,
    ) -> Self {
        Self {
            title: title.into(),
            here,
            who: who.map(|who| Shown {
                actor: who.actor.clone(),
                role: who.role.as_str(),
            }),
            csrf: who.and_then(|who| who.csrf.clone()).unwrap_or_default(),
            operator: who.is_some_and(|who| who.role == Role::Operator && who.csrf.is_some()),
            now: Moment::new(now, now),
        }
    }
}

/// Who looks; `Err` is the way to the door of a closed server.
async fn visitor(server: &Shared, headers: &HeaderMap) -> Result<Option<Who>, Response> {
    match auth::viewer(server, headers).await {
        Ok(who) => Ok(who),
        Err(_) if server.closed => Err(Redirect::to("/sign-in").into_response()),
        Err(error) => Err(error.into_response()),
    }
}

fn html(page: &impl Template) -> Response {
    match page.render() {
        Ok(html) => ([(CACHE_CONTROL, "no-store")], Html(html)).into_response(),
        Err(error) => ApiError::internal("the page cannot be made", error).into_response(),
    }
}

/// An error as a page.
#[derive(Template)]
#[template(path = "problem.html")]
struct Problem {
    frame: Frame,
    error: String,
    hint: Option<String>,
}

fn problem(who: Option<&Who>, error: ApiError, now: Timestamp) -> Response {
    let status = error.status();
    let (text, hint) = error.words();
    let page = Problem {
        frame: Frame::new("That did not work", "", who, now),
        error: text.to_owned(),
        hint: hint.map(str::to_owned),
    };
    let mut response = html(&page);
    // A browser would ask for a password of its own kind at 401.
    *response.status_mut() = match status {
        StatusCode::UNAUTHORIZED => StatusCode::FORBIDDEN,
        status => status,
    };
    response
}

/// A page or the problem in its place.
fn shown<T: Template>(page: Result<T, ApiError>, who: Option<&Who>, now: Timestamp) -> Response {
    match page {
        Ok(page) => html(&page),
        Err(error) => problem(who, error, now),
    }
}

/// A time as people say it, and exactly.
#[derive(Clone)]
struct Moment {
    ago: String,
    plain: String,
    exact: String,
}

impl Moment {
    fn new(at: Timestamp, now: Timestamp) -> Self {
        Self {
            ago: ago(now.as_second() - at.as_second()),
            plain: at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
            exact: at.to_string(),
        }
    }
}

fn ago(seconds: i64) -> String {
    match seconds {
        ..-90 => format!("in {}", span(-seconds)),
        -90..5 => "just now".into(),
        _ => format!("{} ago", span(seconds)),
    }
}

fn span(seconds: i64) -> String {
    match seconds {
        ..90 => format!("{seconds} s"),
        90..5400 => format!("{} min", (seconds + 30) / 60),
        5400..172_800 => format!("{} h", (seconds + 1800) / 3600),
        _ => format!("{} days", (seconds + 43_200) / 86_400),
    }
}

fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

struct EventRow {
    at: Moment,
    host: String,
    machine_id: String,
    what: String,
    /// `bad`, `good` or nothing.
    tone: &'static str,
    version: String,
    reason: Option<String>,
}

impl EventRow {
    fn new(event: Event, now: Timestamp) -> Self {
        let (what, tone) = match event.event.as_str() {
            "good" => ("runs well".to_owned(), "good"),
            "failed" => ("rolled back from".to_owned(), "bad"),
            "download failed" => ("download failed".to_owned(), "bad"),
            "other" => (
                format!("event {}/{}", event.event_type, event.event_result),
                "",
            ),
            other => (other.to_owned(), ""),
        };
        let short_id: String = event.machine_id.chars().take(8).collect();
        Self {
            at: Moment::new(event.at, now),
            host: event.hostname.unwrap_or(short_id),
            machine_id: event.machine_id,
            what,
            tone,
            version: event.version.unwrap_or_default(),
            reason: event.reason,
        }
    }
}

struct ActivityRow {
    at: Moment,
    actor: Option<String>,
    action: String,
    subject: String,
    detail: String,
    tone: &'static str,
}

impl ActivityRow {
    fn new(activity: Activity, now: Timestamp) -> Self {
        let tone = match activity.action.as_str() {
            "halted" | "host lost" | "withdrawn" => "bad",
            "completed" | "canary passed" => "good",
            _ => "",
        };
        Self {
            at: Moment::new(activity.at, now),
            actor: activity.actor,
            action: activity.action,
            subject: activity.subject,
            detail: activity.detail,
            tone,
        }
    }
}

#[derive(Template)]
#[template(path = "activity.html")]
struct ActivityPage {
    frame: Frame,
    rows: Vec<ActivityRow>,
    events: Vec<EventRow>,
}

pub(super) async fn activity(State(server): State<Shared>, headers: HeaderMap) -> Response {
    let who = match visitor(&server, &headers).await {
        Ok(who) => who,
        Err(response) => return response,
    };
    let now = (server.clock)();
    let read = server.database.read(|db| {
        Ok((
            records::activities(db, false, 200)?,
            records::events(db, None, 200)?,
        ))
    });
    let page = read.await.map(|(activities, events)| ActivityPage {
        frame: Frame::new("Activity", "activity", who.as_ref(), now),
        rows: activities
            .into_iter()
            .map(|a| ActivityRow::new(a, now))
            .collect(),
        events: events
            .into_iter()
            .map(|event| EventRow::new(event, now))
            .collect(),
    });
    shown(page, who.as_ref(), now)
}
