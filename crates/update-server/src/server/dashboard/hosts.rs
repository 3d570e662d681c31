//! `/hosts`: the list, with search; `/hosts/ID`: one and its history.

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use jiff::Timestamp;
use release::status::Health;
use serde::Deserialize;

use super::super::{Shared, groups, records};
use super::{EventRow, Frame, Moment, shown, visitor};
use crate::api::Host;

const PAGE: u32 = 100;
const HISTORY: u32 = 200;
/// A host that was not seen for so long is shown as silent.
const SILENT_AFTER_SECONDS: i64 = 24 * 3600;

#[derive(Deserialize, Default)]
pub(in crate::server) struct Wanted {
    #[serde(default)]
    q: String,
    #[serde(default)]
    group: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    health: String,
    #[serde(default)]
    failed: String,
    #[serde(default)]
    page: u32,
}

#[derive(Template)]
#[template(path = "hosts.html")]
struct List {
    frame: Frame,
    wanted: Wanted,
    groups: Vec<String>,
    hosts: Vec<HostRow>,
    first: u32,
    last: u32,
    before: Option<u32>,
    after: Option<u32>,
    empty_fleet: bool,
}

pub(super) struct HostRow {
    name: String,
    id: String,
    short_id: String,
    version: String,
    available: Option<String>,
    waits: Option<String>,
    slot: String,
    channel: String,
    group: String,
    assigned: Option<String>,
    health: &'static str,
    seen: Moment,
    first_seen: Moment,
    silent: bool,
    event: Option<EventRow>,
    failed: Vec<FailedRow>,
}

struct FailedRow {
    version: String,
    reason: String,
    at: Moment,
}

impl HostRow {
    pub(super) fn new(host: Host, now: Timestamp) -> Self {
        let failed = host.failed.into_iter();
        Self {
            name: host.hostname.unwrap_or_else(|| "(no name)".into()),
            short_id: host.machine_id.chars().take(8).collect(),
            id: host.machine_id,
            version: host.version,
            available: host.available.map(|version| version.to_string()),
            waits: host.waits,
            slot: host.slot.map_or("–", |slot| slot.as_str()).to_owned(),
            group: host.group.unwrap_or_else(|| "–".into()),
            assigned: host.assigned,
            channel: host.channel,
            health: host.health.map_or("unknown", Health::as_str),
            silent: now.as_second() - host.last_seen.as_second() > SILENT_AFTER_SECONDS,
            seen: Moment::new(host.last_seen, now),
            first_seen: Moment::new(host.first_seen, now),
            event: host.last_event.map(|event| EventRow::new(event, now)),
            failed: failed
                .map(|f| FailedRow {
                    version: f.version.to_string(),
                    reason: f.reason,
                    at: Moment::new(f.at, now),
                })
                .collect(),
        }
    }
}

pub(in crate::server) async fn list(
    State(server): State<Shared>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
) -> Response {
    let who = match visitor(&server, &headers).await {
        Ok(who) => who,
        Err(response) => return response,
    };
    let now = (server.clock)();
    let plan = server.database.plan();
    let some = |text: &str| (!text.trim().is_empty()).then(|| text.trim().to_owned());
    let number = wanted.page.min(1_000_000);
    let filter = records::Filter {
        machine_id: None,
        search: some(&wanted.q),
        group: some(&wanted.group),
        version: some(&wanted.version),
        health: some(&wanted.health),
        failed: some(&wanted.failed).is_some(),
        offset: number * PAGE,
        // One more tells whether there is a next page.
        limit: PAGE + 1,
    };
    let names = plan.groups.keys().cloned().collect();
    let read = server.database.read(move |db| {
        let any: bool = db.value("SELECT EXISTS (SELECT 1 FROM hosts)", &[])?;
        Ok((records::hosts(db, &plan, &filter, now)?, any))
    });
    let page = read.await.map(|(mut hosts, any)| {
        let more = hosts.len() > PAGE as usize;
        hosts.truncate(PAGE as usize);
        let shown = u32::try_from(hosts.len()).unwrap_or(PAGE);
        List {
            frame: Frame::new("Hosts", "hosts", who.as_ref(), now),
            groups: names,
            first: number * PAGE + u32::from(shown > 0),
            last: number * PAGE + shown,
            before: number.checked_sub(1),
            after: more.then_some(number + 1),
            hosts: hosts
                .into_iter()
                .map(|host| HostRow::new(host, now))
                .collect(),
            empty_fleet: !any,
            wanted,
        }
    });
    shown(page, who.as_ref(), now)
}

#[derive(Template)]
#[template(path = "host.html")]
struct One {
    frame: Frame,
    host: HostRow,
    groups: Vec<String>,
    events: Vec<EventRow>,
}

pub(in crate::server) async fn one(
    State(server): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let who = match visitor(&server, &headers).await {
        Ok(who) => who,
        Err(response) => return response,
    };
    let now = (server.clock)();
    let names = server.database.plan().groups.keys().cloned().collect();
    let wanted = id.clone();
    let page = async {
        let host = groups::one(&server, id).await?;
        let events = server
            .database
            .read(move |db| records::events(db, Some(&wanted), HISTORY))
            .await?;
        let name = host
            .hostname
            .clone()
            .unwrap_or_else(|| host.machine_id.clone());
        Ok(One {
            frame: Frame::new(name, "hosts", who.as_ref(), now),
            host: HostRow::new(host, now),
            groups: names,
            events: events
                .into_iter()
                .map(|event| EventRow::new(event, now))
                .collect(),
        })
    };
    shown(page.await, who.as_ref(), now)
}
