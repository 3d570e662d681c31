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
use release::Version;
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
    // Those that carry the downloads come first; this server has everything.
    let own = base_url(server.public_url.as_deref(), &headers)?;
    let mut bases = server.mirrors.clone();
    bases.retain(|mirror| *mirror != own);
    bases.push(own);
    let mut apps = Vec::new();
    for app in request.apps.into_iter().take(MAX_APPS) {
        apps.push(one(&server, Arc::new(app), &bases, now).await?);
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
    bases: &[String],
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
            &[],
            now,
        );
        return Ok(answer(
            app.update_check.then(|| check(&app, &chosen, bases)),
        ));
    };
    if app.events.is_empty() {
        let plan = server.database.plan();
        let known = server.database.known(id.clone()).await?;
        if let Some(chosen) = known.and_then(|known| quick(&known, &plan, &app, &id, now)) {
            server.pings.note(id, now);
            return Ok(answer(
                app.update_check.then(|| check(&app, &chosen, bases)),
            ));
        }
    }
    let asks = Arc::clone(&app);
    let chosen = server
        .database
        .write_plan(move |db, plan| record(db, plan, &asks, &id, now))
        .await?;
    Ok(answer(chosen.map(|chosen| check(&app, &chosen, bases))))
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
    if arrived(plan, group, app, &known.grants).is_some() {
        return None;
    }
    let asking = asking(app, id, &known.failed);
    // The first host that is sent to a stop begins its rollout.
    if let (Some(group), Ok(release)) = (group, plan.next(group, asking))
        && plan
            .rollout(&group.name, release.manifest.version())
            .is_none()
    {
        return None;
    }
    let chosen = plan.choose(group, asking, &known.grants, now);
    let takes_turn = |chosen: &Chosen| matches!(chosen.turn, Turn::New { .. });
    (!chosen.as_ref().is_ok_and(takes_turn)).then_some(chosen)
}

/// Of the group's rollouts that this host has a turn in, and nothing became of it yet, the newest.
fn under_way<'a>(
    plan: &'a Plan,
    group: &Group,
    grants: &[(i64, Grant)],
    mut which: impl FnMut(&Current) -> bool,
) -> Option<&'a Arc<Current>> {
    let open = |current: &Current| current.grant(grants).is_some_and(|it| it.expires.is_some());
    let mut own = plan.rollouts_of(&group.name);
    own.find(|current| open(current) && which(current))
}

/// It runs what it was granted and nothing is wrong with it, whether it said so or not.
fn arrived<'a>(
    plan: &'a Plan,
    group: Option<&Group>,
    app: &AppRequest,
    grants: &[(i64, Grant)],
) -> Option<&'a Arc<Current>> {
    let well = matches!(app.health, None | Some(Health::Healthy));
    let runs = |current: &Current| current.version.to_string() == app.version;
    let group = group.filter(|_| well)?;
    under_way(plan, group, grants, runs)
}

/// The rollout that a host speaks of which does not say of what: the one that it takes part in, or
/// that it was lost in, or that of its channel.
fn meant<'a>(
    plan: &'a Plan,
    group: Option<&Group>,
    app: &AppRequest,
    grants: &[(i64, Grant)],
) -> Option<&'a Arc<Current>> {
    let group = group?;
    let lost = |current: &Arc<Current>| {
        let grant = current.grant(grants);
        grant.is_some_and(|grant| grant.state == GrantState::Lost)
    };
    arrived(plan, Some(group), app, grants)
        .or_else(|| under_way(plan, group, grants, |_| true))
        .or_else(|| plan.rollouts_of(&group.name).find(|it| lost(it)))
        .or_else(|| plan.main(&group.name))
}

/// Writes down what the host says, and what it gets.
fn record(
    db: &Db,
    plan: &mut Plan,
    app: &AppRequest,
    id: &str,
    now: Timestamp,
) -> Result<Option<Choice>, ApiError> {
    let seen = records::seen(db, plan, id, app, now)?;
    let group = seen.group.as_deref();
    let mut grants = records::grants(db, id)?;
    let current = meant(plan, group, app, &grants).cloned();
    let current = current.as_deref();
    let grant = current.and_then(|current| current.grant(&grants)).copied();
    for event in &app.events {
        let (event, meaning) = understand(event, app, plan, current, grant.as_ref());
        let event = &event;
        if seen.other_version || !records::repeats(db, id, event, meaning)? {
            records::event(db, id, event, meaning, now)?;
        }
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
        // Other clients do not say which version.
        let version = event.version.as_ref();
        let version = version.or(current.map(|current| &current.version));
        if let (Some(group), Some(version)) = (group, version) {
            advance(db, plan, group, version, id, (event, meaning), now)?;
        }
    }
    if !app.events.is_empty() {
        grants = records::grants(db, id)?;
    }
    if let (Some(group), Some(current)) = (group, arrived(plan, group, app, &grants).cloned()) {
        let grant = current.grant(&grants).copied();
        let what = HostEvent::Good;
        let event = Event::Host { id, grant, what };
        plan.step(db, &group.name, &current.version, event, now)?;
        grants = records::grants(db, id)?;
    }
    if !app.update_check {
        return Ok(None);
    }
    let failed = records::failed_releases(db, id)?;
    let asking = asking(app, id, &failed);
    if let (Some(group), Ok(release)) = (group, plan.next(group, asking)) {
        plan.begin(db, group, &release, now)?;
    }
    let chosen = plan.choose(group, asking, &grants, now);
    if let (
        Ok(Chosen {
            turn: Turn::New { .. },
            release,
        }),
        Some(group),
    ) = (&chosen, group)
    {
        let what = if app.force {
            HostEvent::Forces
        } else {
            HostEvent::Asks
        };
        let version = release.manifest.version();
        let current = plan.rollout(&group.name, version);
        let grant = current.and_then(|current| current.grant(&grants)).copied();
        let event = Event::Host { id, grant, what };
        let actions = plan.step(db, &group.name, version, event, now)?;
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
    group: &Group,
    version: &Version,
    id: &str,
    (event, meaning): (&omaha::Event, EventMeaning),
    now: Timestamp,
) -> Result<(), ApiError> {
    let Some(current) = plan.rollout(&group.name, version) else {
        return Ok(());
    };
    let release = plan.releases.get(version).map(|release| release.id);
    if event.release.is_some_and(|id| Some(id) != release) {
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
    let event = Event::Host { id, grant, what };
    plan.step(db, &group.name, version, event, now)?;
    Ok(())
}

fn check(app: &AppRequest, chosen: &Choice, bases: &[String]) -> UpdateCheck {
    match chosen {
        Ok(chosen) => UpdateCheck::Offer(offer(&chosen.release, bases)),
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

fn offer(release: &Published, bases: &[String]) -> Offer {
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
        codebases: bases
            .iter()
            .map(|base| format!("{base}/releases/{version}/"))
            .collect(),
        version: version.clone(),
        packages,
    }
}
