//! A host asks. Most have nothing new to say, and nothing becomes of it: they are answered from
//! what can be read, and that they were here is written down later, many at once. Everything else
//! is recorded and answered in one transaction, so that a failure that a host reports already counts
//! for the answer to the same message.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use release::omaha::{self, AppRequest, AppResponse, EventMeaning, Offer, Package, UpdateCheck};
use release::status::Health;

use super::catalog::{self, Content, Published};
use super::error::ApiError;
use super::plan::{Chosen, Current, Group, Plan, Wait};
use super::policy::Asking;
use super::sql::Db;
use super::{Shared, records};
use crate::rollout::{Action, Event, Grant, GrantState, HostEvent, Turn};

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
        apps.push(one(&server, Arc::new(app), &base, now).await?);
    }
    server.counters.answered();
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

/// One application's part of the message.
async fn one(
    server: &Shared,
    app: Arc<AppRequest>,
    base: &str,
    now: Timestamp,
) -> Result<AppResponse, ApiError> {
    let answer = |update_check| AppResponse {
        app_id: app.app_id.clone(),
        status: "ok".into(),
        update_check,
        ping: app.ping,
        events: app.events.len(),
    };
    let id = app.app_id.trim_matches(['{', '}']);
    if !id.eq_ignore_ascii_case(omaha::APP_ID) {
        let refused = || UpdateCheck::Refused("error-internal".into());
        return Ok(AppResponse {
            status: "error-unknownApplication".into(),
            ..answer(app.update_check.then(refused))
        });
    }
    // A host without a usable id is served, but cannot be told from others like it.
    let Some(id) = records::machine_id(&app.machine_id).map(str::to_owned) else {
        let plan = server.database.plan();
        let chosen = plan.choose(
            plan.group(&app.track, None).map(|group| &**group),
            asking(&app, "", &[]),
            None,
            now,
        );
        return Ok(answer(app.update_check.then(|| check(&app, &chosen, base))));
    };
    if app.events.is_empty() {
        let plan = server.database.plan();
        let known = server.database.known(id.clone()).await?;
        if let Some(chosen) = known.and_then(|known| quick(&known, &plan, &app, &id, now)) {
            server.pings.note(id, now);
            return Ok(answer(app.update_check.then(|| check(&app, &chosen, base))));
        }
    }
    let asks = Arc::clone(&app);
    let chosen = server
        .database
        .write_plan(move |db, plan| record(db, plan, &asks, &id, now))
        .await?;
    Ok(answer(chosen.map(|chosen| check(&app, &chosen, base))))
}

fn asking<'a>(app: &'a AppRequest, host: &'a str, failed: &'a [records::FailedKey]) -> Asking<'a> {
    Asking {
        host,
        version: &app.version,
        board: app.board.as_deref(),
        failed,
        force: app.force,
        orlop: app.slot.is_some() || app.health.is_some(),
    }
}

type Choice = Result<Chosen, Wait>;

/// The answer, if it can be given without writing anything down.
fn quick(
    known: &records::Known,
    plan: &Plan,
    app: &AppRequest,
    id: &str,
    now: Timestamp,
) -> Option<Choice> {
    if !known.says_the_same(app) {
        return None;
    }
    let group = plan.group(&app.track, known.assigned.as_deref());
    let group = group.map(|group| &**group);
    let current = group.and_then(|group| plan.rollouts.get(&group.name));
    let granted = known.grants.iter();
    let grant = current.and_then(|current| {
        let mut own = granted.filter(|(rollout, _)| *rollout == current.id);
        own.next().map(|(_, grant)| grant)
    });
    if arrived(plan, group, app, grant) {
        return None;
    }
    let asking = asking(app, id, &known.failed);
    let chosen = plan.choose(group, asking, grant, now);
    let takes_turn = |chosen: &Chosen| matches!(chosen.turn, Turn::New { .. }) && !chosen.is_hop;
    (!chosen.as_ref().is_ok_and(takes_turn)).then_some(chosen)
}

fn granted(
    db: &Db,
    plan: &Plan,
    group: Option<&Group>,
    id: &str,
) -> Result<Option<Grant>, ApiError> {
    match group.and_then(|group| plan.rollouts.get(&group.name)) {
        Some(current) => records::grant(db, current.id, id),
        None => Ok(None),
    }
}

/// It runs what it was granted and nothing is wrong with it, whether it said so or not.
fn arrived(plan: &Plan, group: Option<&Group>, app: &AppRequest, grant: Option<&Grant>) -> bool {
    let well = matches!(app.health, None | Some(Health::Healthy));
    let current = group.and_then(|group| plan.rollouts.get(&group.name));
    well && grant.is_some_and(|grant| grant.expires.is_some())
        && current.is_some_and(|current| current.version.to_string() == app.version)
}

/// Writes down what the host says, and what it gets.
fn record(
    db: &Db,
    plan: &mut Plan,
    app: &AppRequest,
    id: &str,
    now: Timestamp,
) -> Result<Option<Choice>, ApiError> {
    let group = records::seen(db, plan, id, app, now)?;
    let group = group.as_deref();
    let current = group
        .and_then(|group| plan.rollouts.get(&group.name))
        .cloned();
    let grant = granted(db, plan, group, id)?;
    for event in &app.events {
        let (event, meaning) = understand(event, app, plan, current.as_deref(), grant.as_ref());
        let event = &event;
        records::event(db, id, event, meaning, now)?;
        match meaning {
            EventMeaning::Failed => failed(db, id, event, now)?,
            EventMeaning::Good => {
                if let Some(version) = &event.version {
                    records::forget_failure(db, id, version)?;
                }
            }
            EventMeaning::FailuresCleared => records::forget_failures(db, id)?,
            _ => {}
        }
        advance(db, plan, group, id, (event, meaning), now)?;
    }
    let grant = granted(db, plan, group, id)?;
    if arrived(plan, group, app, grant.as_ref()) {
        let what = HostEvent::Good;
        let name = group.map(|group| group.name.clone()).unwrap_or_default();
        plan.step(db, &name, Event::Host { id, grant, what }, now)?;
    }
    if !app.update_check {
        return Ok(None);
    }
    let failed = records::failed_releases(db, id)?;
    let grant = granted(db, plan, group, id)?;
    let chosen = plan.choose(group, asking(app, id, &failed), grant.as_ref(), now);
    if let (
        Ok(Chosen {
            turn: Turn::New { .. },
            is_hop: false,
            ..
        }),
        Some(group),
    ) = (&chosen, group)
    {
        let what = HostEvent::Asks;
        let actions = plan.step(db, &group.name, Event::Host { id, grant, what }, now)?;
        if let Some(Action::Hold(hold)) = actions.first() {
            return Ok(Some(Err(Wait::Hold(hold.clone()))));
        }
    }
    Ok(Some(chosen))
}

/// What an event means, and what it is about. Ours say which version that is. update_engine's say
/// nothing of the kind, so what runs has to tell: it reports success (3/2) with every check, says
/// "failed" (3/0) of whatever went wrong, and means a fallback only together with a check. Its older
/// versions say no more of a fallback than that they ran before what they run now.
fn understand(
    event: &omaha::Event,
    app: &AppRequest,
    plan: &Plan,
    current: Option<&Current>,
    grant: Option<&Grant>,
) -> (omaha::Event, EventMeaning) {
    let mut event = event.clone();
    let meaning = event.meaning();
    if event.version.is_some() || !matches!(meaning, EventMeaning::Good | EventMeaning::Failed) {
        return (event, meaning);
    }
    let arrived = current.is_some_and(|current| current.version.to_string() == app.version);
    let began =
        grant.is_some_and(|grant| matches!(grant.state, GrantState::Started | GrantState::Lost));
    let left = began && !arrived;
    let meaning = match meaning {
        EventMeaning::Good if arrived => EventMeaning::Good,
        EventMeaning::Good if left && event.previous_version.as_ref() == Some(&app.version) => {
            EventMeaning::Failed
        }
        EventMeaning::Failed if left && app.update_check => EventMeaning::Failed,
        EventMeaning::Failed => EventMeaning::DownloadFailed,
        _ => EventMeaning::Other,
    };
    if let Some(current) = current
        && matches!(meaning, EventMeaning::Good | EventMeaning::Failed)
    {
        event.version = Some(current.version.clone());
        let release = plan.releases.get(&current.version);
        event.release = release.map(|release| release.id);
        if meaning == EventMeaning::Failed {
            let code = event.error_code.map(|code| format!(" (error code {code})"));
            let reason = format!("it runs {} again{}", app.version, code.unwrap_or_default());
            event.reason.get_or_insert(reason);
        }
    }
    (event, meaning)
}

/// Tells the rollout what became of its release on this host.
fn advance(
    db: &Db,
    plan: &mut Plan,
    group: Option<&Group>,
    id: &str,
    (event, meaning): (&omaha::Event, EventMeaning),
    now: Timestamp,
) -> Result<(), ApiError> {
    let Some(group) = group else { return Ok(()) };
    let Some(current) = plan.rollouts.get(&group.name) else {
        return Ok(());
    };
    // Other clients do not say which version: then it is the one that they were granted last.
    let other = event
        .version
        .as_ref()
        .is_some_and(|version| *version != current.version);
    let release = plan
        .releases
        .get(&current.version)
        .map(|release| release.id);
    if other || event.release.is_some_and(|id| Some(id) != release) {
        return Ok(());
    }
    let code = format!("error code {}", event.error_code.unwrap_or(0));
    let reason = event.reason.as_deref().unwrap_or(&code);
    let what = match meaning {
        EventMeaning::DownloadStarted | EventMeaning::Downloaded | EventMeaning::Staged => {
            HostEvent::Started
        }
        EventMeaning::Good => HostEvent::Good,
        EventMeaning::Failed => HostEvent::Failed { reason },
        _ => return Ok(()),
    };
    let grant = records::grant(db, current.id, id)?;
    plan.step(db, &group.name, Event::Host { id, grant, what }, now)?;
    Ok(())
}

fn check(app: &AppRequest, chosen: &Choice, base: &str) -> UpdateCheck {
    match chosen {
        Ok(chosen) => UpdateCheck::Offer(offer(&chosen.release, base)),
        Err(wait) => {
            tracing::debug!(
                host = app.machine_id,
                version = app.version,
                "no update: {wait}"
            );
            UpdateCheck::NoUpdate {
                running: app.version.clone(),
            }
        }
    }
}

/// Remembers a release that the host left again. Without the release's id the version stands for
/// whatever is published under it now.
fn failed(db: &Db, machine_id: &str, event: &omaha::Event, now: Timestamp) -> Result<(), ApiError> {
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
    let package = |file: &release::File, required| Package {
        name: file.name.clone(),
        size: file.size,
        sha256: Some(file.sha256),
        sha1: None,
        required,
    };
    let packages = match &release.manifest {
        Content::Orlop(manifest) => {
            let envelope = Package {
                name: catalog::manifest_name(),
                size: release.envelope_size,
                sha256: Some(release.envelope_sha256),
                sha1: None,
                required: true,
            };
            let optional = manifest.sbom.as_ref().map(|sbom| &sbom.name);
            let files = manifest
                .files()
                .map(|file| package(file, Some(&file.name) != optional));
            std::iter::once(envelope).chain(files).collect()
        }
        // update_engine takes the first package for its payload.
        Content::Flatcar { flatcar } => {
            let payload = Package {
                sha1: Some(flatcar.payload_sha1),
                ..package(&flatcar.payload, true)
            };
            let extensions = flatcar.extensions.iter().map(|file| package(file, false));
            std::iter::once(payload).chain(extensions).collect()
        }
    };
    let version = release.manifest.version();
    Offer {
        codebases: vec![format!("{base}/releases/{version}/")],
        version: version.clone(),
        packages,
    }
}
