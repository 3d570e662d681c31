//! `GET /`: the fleet on one page. No script; it reloads itself.

use std::collections::BTreeMap;

use askama::Template;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{Html, IntoResponse};
use jiff::Timestamp;
use release::omaha;
use release::status::Health;

use super::error::ApiError;
use super::{Shared, catalog, checkin, records};
use crate::api::{ChannelState, Event, Host, Release};

const HOSTS_SHOWN: u32 = 500;
const EVENTS_SHOWN: u32 = 20;
/// A host that was not seen for so long is shown as silent.
const SILENT_AFTER_SECONDS: i64 = 24 * 3600;

pub(super) async fn page(
    State(server): State<Shared>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, ApiError> {
    let fleet = server
        .database
        .read(|db| {
            Ok(Fleet {
                total: records::count(db, "hosts")?,
                hosts: records::hosts(db, HOSTS_SHOWN)?,
                channels: catalog::channels(db)?,
                releases: catalog::releases(db)?,
                events: records::events(db, None, EVENTS_SHOWN)?,
            })
        })
        .await?;
    let base = checkin::base_url(server.public_url.as_deref(), &headers)?;
    let page = Page::new(fleet, (server.clock)(), &base);
    let html = page
        .render()
        .map_err(|e| ApiError::internal("the page cannot be made", e))?;
    Ok(([(CACHE_CONTROL, "no-store")], Html(html)))
}

pub(super) async fn style() -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, "text/css; charset=utf-8"),
        (CACHE_CONTROL, "max-age=60"),
    ];
    (headers, include_str!("../../templates/dashboard.css"))
}

/// What the database says.
struct Fleet {
    total: u64,
    hosts: Vec<Host>,
    channels: Vec<ChannelState>,
    releases: Vec<Release>,
    events: Vec<Event>,
}

/// What the page shows.
#[derive(Template)]
#[template(path = "dashboard.html")]
struct Page {
    total: u64,
    shown: usize,
    healthy: usize,
    waiting: usize,
    rolled_back: usize,
    channels: Vec<ChannelRow>,
    versions: Vec<VersionRow>,
    hosts: Vec<HostRow>,
    events: Vec<EventRow>,
    no_release: bool,
    omaha_url: String,
    now: Moment,
}

struct ChannelRow {
    name: String,
    version: Option<String>,
    hosts: String,
    changed: Option<Moment>,
}

struct VersionRow {
    version: String,
    hosts: String,
    percent: usize,
}

struct HostRow {
    name: String,
    id: String,
    short_id: String,
    version: String,
    available: Option<String>,
    slot: String,
    channel: String,
    health: &'static str,
    seen: Moment,
    silent: bool,
    event: Option<EventRow>,
    failed: Vec<FailedRow>,
}

struct FailedRow {
    version: String,
    reason: String,
}

struct EventRow {
    at: Moment,
    host: String,
    what: String,
    /// `bad`, `good` or nothing.
    tone: &'static str,
    version: String,
    reason: Option<String>,
}

/// A time as people say it, and exactly.
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
        ..5 => "just now".into(),
        5..90 => format!("{seconds} s ago"),
        90..5400 => format!("{} min ago", (seconds + 30) / 60),
        5400..172_800 => format!("{} h ago", (seconds + 1800) / 3600),
        _ => format!("{} days ago", (seconds + 43_200) / 86_400),
    }
}

fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

impl Page {
    fn new(fleet: Fleet, now: Timestamp, base: &str) -> Self {
        let hosts = &fleet.hosts;
        Self {
            total: fleet.total,
            shown: hosts.len(),
            healthy: hosts
                .iter()
                .filter(|h| h.health == Some(Health::Healthy))
                .count(),
            waiting: hosts.iter().filter(|h| h.available.is_some()).count(),
            rolled_back: hosts.iter().filter(|h| !h.failed.is_empty()).count(),
            versions: versions(hosts),
            no_release: fleet.releases.is_empty(),
            channels: fleet
                .channels
                .into_iter()
                .map(|c| ChannelRow::new(c, now))
                .collect(),
            events: fleet
                .events
                .into_iter()
                .map(|e| EventRow::new(e, now))
                .collect(),
            hosts: fleet
                .hosts
                .into_iter()
                .map(|h| HostRow::new(h, now))
                .collect(),
            omaha_url: format!("{base}{}", omaha::PATH),
            now: Moment::new(now, now),
        }
    }
}

/// How many hosts run which version, most first.
fn versions(hosts: &[Host]) -> Vec<VersionRow> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for host in hosts {
        *counts.entry(&host.version).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, number)| std::cmp::Reverse(*number));
    let row = |(version, number): (&str, usize)| VersionRow {
        version: version.into(),
        hosts: count(number as u64, "host"),
        percent: number * 100 / hosts.len(),
    };
    counts.into_iter().map(row).collect()
}

impl ChannelRow {
    fn new(channel: ChannelState, now: Timestamp) -> Self {
        Self {
            name: channel.name.to_string(),
            version: channel.version.map(|version| version.to_string()),
            hosts: count(channel.hosts, "host"),
            changed: channel.changed.map(|at| Moment::new(at, now)),
        }
    }
}

impl HostRow {
    fn new(host: Host, now: Timestamp) -> Self {
        let failed = host.failed.into_iter();
        Self {
            name: host.hostname.unwrap_or_else(|| "(no name)".into()),
            short_id: host.machine_id.chars().take(8).collect(),
            id: host.machine_id,
            version: host.version,
            available: host.available.map(|version| version.to_string()),
            slot: host.slot.map_or("–", |slot| slot.as_str()).to_owned(),
            channel: host.channel,
            health: host.health.map_or("unknown", Health::as_str),
            silent: now.as_second() - host.last_seen.as_second() > SILENT_AFTER_SECONDS,
            seen: Moment::new(host.last_seen, now),
            event: host.last_event.map(|event| EventRow::new(event, now)),
            failed: failed
                .map(|f| FailedRow {
                    version: f.version.to_string(),
                    reason: f.reason,
                })
                .collect(),
        }
    }
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
            what,
            tone,
            version: event.version.unwrap_or_default(),
            reason: event.reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_people_say_them() {
        let all = [-3, 4, 5, 89, 90, 5399, 5400, 172_799, 172_800].map(ago);
        assert_eq!(
            all,
            [
                "just now",
                "just now",
                "5 s ago",
                "89 s ago",
                "2 min ago",
                "90 min ago",
                "2 h ago",
                "48 h ago",
                "2 days ago"
            ]
        );
    }

    fn empty() -> Fleet {
        Fleet {
            total: 0,
            hosts: vec![],
            channels: vec![],
            releases: vec![],
            events: vec![],
        }
    }

    #[test]
    fn an_empty_fleet_says_what_to_do() {
        let page = Page::new(empty(), Timestamp::UNIX_EPOCH, "http://10.0.2.2:8090");
        let html = page.render().unwrap();
        for text in [
            "orlop release publish",
            "orlop up",
            "SERVER=http://10.0.2.2:8090/v1/update/",
        ] {
            assert!(html.contains(text), "{text} is not in {html}");
        }
    }

    #[test]
    fn what_hosts_claim_is_escaped() {
        let evil = "<script>alert(1)</script>\"'&";
        let now = Timestamp::UNIX_EPOCH;
        let event = Event {
            id: 1,
            at: now,
            machine_id: evil.into(),
            hostname: Some(evil.into()),
            event: "failed".into(),
            event_type: 3,
            event_result: 0,
            version: Some(evil.into()),
            previous_version: Some(evil.into()),
            error_code: None,
            reason: Some(evil.into()),
        };
        let host = Host {
            machine_id: evil.into(),
            hostname: Some(evil.into()),
            version: evil.into(),
            slot: None,
            channel: evil.into(),
            health: None,
            boot_id: Some(evil.into()),
            first_seen: now,
            last_seen: now,
            last_event: Some(event.clone()),
            failed: vec![release::status::FailedRelease {
                version: "3".parse().unwrap(),
                id: None,
                reason: evil.into(),
                at: now,
            }],
            available: None,
        };
        let fleet = Fleet {
            total: 1,
            hosts: vec![host],
            events: vec![event],
            ..empty()
        };
        let html = Page::new(fleet, now, "http://x").render().unwrap();
        assert!(!html.contains("<script"), "{html}");
        assert!(html.contains("&#60;script&#62;alert(1)"), "{html}");
        assert!(!html.contains(evil) && !html.contains("\"'&"), "{html}");
    }
}
