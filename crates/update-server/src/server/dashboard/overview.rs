//! `/`: the fleet at a glance.

use askama::Template;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use release::omaha;

use super::super::{Shared, catalog, checkin, ops, records, rest, tuf};
use super::{ActivityRow, EventRow, Frame, Moment, count, shown, visitor};
use crate::api::{
    Activity, ChannelState, Event, HistoryPoint, Overview, RolloutState, VersionCount,
};

const FEED: u32 = 12;
const HISTORY_DAYS: u32 = 7;
/// Seconds: it is renewed more often than every day, or nobody does it.
const RENEW_WITHIN: i64 = 24 * 3600;
/// More versions than colours are put together.
const COLOURS: usize = 6;

/// What the database says.
pub(super) struct Fleet {
    pub(super) overview: Overview,
    pub(super) left: u64,
    pub(super) channels: Vec<ChannelState>,
    pub(super) rollouts: Vec<RolloutState>,
    pub(super) no_release: bool,
    pub(super) events: Vec<Event>,
    pub(super) activity: Vec<Activity>,
    /// Until when hosts believe the TUF metadata, if there is any.
    pub(super) expires: Option<Timestamp>,
}

#[derive(Template)]
#[template(path = "overview.html")]
pub(super) struct Page {
    frame: Frame,
    hosts: u64,
    healthy: u64,
    behind: u64,
    left: u64,
    channels: Vec<ChannelCard>,
    versions: Vec<VersionRow>,
    chart: Option<Chart>,
    pub(super) rollouts: Vec<RolloutCard>,
    failures: Vec<FailureRow>,
    events: Vec<EventRow>,
    activity: Vec<ActivityRow>,
    no_release: bool,
    omaha_url: String,
    expiry: Option<Expiry>,
}

/// Metadata that is to be renewed, or was to be.
struct Expiry {
    over: bool,
    at: Moment,
}

impl Expiry {
    fn new(at: Timestamp, now: Timestamp) -> Option<Self> {
        (at.as_second() - now.as_second() < RENEW_WITHIN).then(|| Self {
            over: at <= now,
            at: Moment::new(at, now),
        })
    }
}

struct ChannelCard {
    name: String,
    version: Option<String>,
    hosts: String,
    changed: Option<Moment>,
}

struct VersionRow {
    version: String,
    hosts: String,
    percent: u64,
    colour: usize,
}

struct FailureRow {
    version: String,
    reason: String,
    hosts: String,
}

/// A rollout as a bar of waves.
pub(super) struct RolloutCard {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) stop: bool,
    pub(super) status: &'static str,
    pub(super) tone: &'static str,
    pub(super) reason: Option<String>,
    pub(super) started: Moment,
    pub(super) next_wave: Option<Moment>,
    pub(super) waves: Vec<WaveCell>,
    pub(super) granted: u64,
    pub(super) good: u64,
    pub(super) bad: u64,
    pub(super) waiting: u64,
    pub(super) can_pause: bool,
    pub(super) can_resume: bool,
}

pub(super) struct WaveCell {
    pub(super) share: u8,
    pub(super) open: bool,
    pub(super) text: String,
    /// In percent of the wave's grants.
    pub(super) good: u64,
    pub(super) bad: u64,
    pub(super) bad_from: u64,
}

impl RolloutCard {
    pub(super) fn new(rollout: RolloutState, now: Timestamp) -> Self {
        let (status, tone) = match rollout.status.as_str() {
            "awaiting_canary" => ("waits for its canary", "warn"),
            "active" => ("under way", "good"),
            "paused" => ("paused", "warn"),
            "halted" => ("halted", "bad"),
            "complete" => ("complete", "good"),
            _ => ("over", ""),
        };
        let sum = |of: fn(&crate::rollout::Tally) -> u64| {
            rollout.waves.iter().map(|w| of(&w.tally)).sum()
        };
        Self {
            status,
            tone,
            granted: sum(|tally| tally.granted),
            good: sum(|tally| tally.good),
            bad: sum(crate::rollout::Tally::bad),
            waiting: sum(crate::rollout::Tally::waiting),
            can_pause: matches!(
                rollout.status.as_str(),
                "active" | "awaiting_canary" | "complete"
            ),
            can_resume: matches!(rollout.status.as_str(), "paused" | "halted"),
            started: Moment::new(rollout.started, now),
            next_wave: rollout.next_wave.map(|at| Moment::new(at.max(now), now)),
            waves: rollout
                .waves
                .iter()
                .map(|wave| {
                    let tally = &wave.tally;
                    let part = |number: u64| number * 100 / tally.granted.max(1);
                    let good = part(tally.good);
                    WaveCell {
                        share: wave.share,
                        open: wave.open,
                        good,
                        bad_from: good,
                        bad: part(tally.bad()),
                        text: match (wave.open, tally.granted) {
                            (false, _) => "not yet open".into(),
                            (true, 0) => "open, no host yet".into(),
                            (true, _) => format!(
                                "{} good, {} bad, {} waiting",
                                tally.good,
                                tally.bad(),
                                tally.waiting()
                            ),
                        },
                    }
                })
                .collect(),
            group: rollout.group,
            version: rollout.version.to_string(),
            stop: rollout.stop,
            reason: rollout.reason,
        }
    }
}

/// Versions over time, as stacked areas.
struct Chart {
    areas: Vec<Area>,
    from: String,
    to: String,
    most: u64,
    text: String,
}

struct Area {
    version: String,
    colour: usize,
    path: String,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 160.0;

impl Chart {
    /// None: there is no time to look back on yet.
    fn new(history: &[HistoryPoint], versions: &[VersionCount]) -> Option<Self> {
        let (first, last) = (history.first()?, history.last()?);
        let length = (last.at.as_second() - first.at.as_second()) as f64;
        if length <= 0.0 {
            return None;
        }
        let total = |point: &HistoryPoint| point.versions.iter().map(|v| v.hosts).sum::<u64>();
        let most = history.iter().map(total).max().unwrap_or(0).max(1);
        let mut names: Vec<&str> = versions.iter().map(|v| v.version.as_str()).collect();
        for point in history {
            for version in &point.versions {
                if !names.contains(&version.version.as_str()) {
                    names.push(&version.version);
                }
            }
        }
        // The largest have colours of their own, the others share the last.
        let shown = names.len().min(COLOURS);
        let series = |point: &HistoryPoint, colour: usize| -> u64 {
            let is_it = |version: &&VersionCount| {
                let index = names.iter().position(|name| *name == version.version);
                index.unwrap_or(COLOURS).min(shown - 1) == colour
            };
            point.versions.iter().filter(is_it).map(|v| v.hosts).sum()
        };
        let mut below = vec![0; history.len()];
        let areas = (0..shown)
            .map(|colour| {
                let x = |point: &HistoryPoint| {
                    (point.at.as_second() - first.at.as_second()) as f64 / length * WIDTH
                };
                let y = |hosts: u64| HEIGHT - hosts as f64 / most as f64 * HEIGHT;
                let lower: Vec<String> = history
                    .iter()
                    .zip(&below)
                    .map(|(point, hosts)| format!("{:.1} {:.1}", x(point), y(*hosts)))
                    .collect();
                for (point, hosts) in history.iter().zip(&mut below) {
                    *hosts += series(point, colour);
                }
                let upper: Vec<String> = history
                    .iter()
                    .zip(&below)
                    .rev()
                    .map(|(point, hosts)| format!("{:.1} {:.1}", x(point), y(*hosts)))
                    .collect();
                let others = colour + 1 == shown && names.len() > shown;
                Area {
                    version: if others {
                        "others".into()
                    } else {
                        names[colour].to_owned()
                    },
                    colour,
                    path: format!("M{}L{}Z", lower.join("L"), upper.join("L")),
                }
            })
            .collect();
        let day = |at: Timestamp| at.strftime("%Y-%m-%d %H:%M").to_string();
        let now = last
            .versions
            .iter()
            .map(|v| format!("{} run {}", v.hosts, v.version))
            .collect::<Vec<_>>();
        Some(Self {
            areas,
            from: day(first.at),
            to: day(last.at),
            most,
            text: format!(
                "Hosts by version from {} to {}; at the end {}",
                day(first.at),
                day(last.at),
                now.join(", ")
            ),
        })
    }
}

impl Page {
    pub(super) fn new(fleet: Fleet, frame: Frame, now: Timestamp, base: &str) -> Self {
        let overview = &fleet.overview;
        let row = |(number, version): (usize, &VersionCount)| VersionRow {
            version: version.version.clone(),
            hosts: count(version.hosts, "host"),
            percent: version.hosts * 100 / overview.hosts.max(1),
            colour: number.min(COLOURS - 1),
        };
        let behind = |rollout: &RolloutState| {
            rollout
                .waves
                .iter()
                .map(|wave| wave.tally.waiting())
                .sum::<u64>()
        };
        Self {
            hosts: overview.hosts,
            healthy: overview.healthy,
            behind: fleet.rollouts.iter().map(behind).sum(),
            left: fleet.left,
            versions: overview
                .versions
                .iter()
                .enumerate()
                .take(12)
                .map(row)
                .collect(),
            chart: Chart::new(&overview.history, &overview.versions),
            failures: overview
                .failures
                .iter()
                .take(10)
                .map(|failure| FailureRow {
                    version: failure.version.to_string(),
                    reason: failure.reason.clone(),
                    hosts: count(failure.hosts, "host"),
                })
                .collect(),
            channels: fleet
                .channels
                .into_iter()
                .map(|channel| ChannelCard {
                    name: channel.name.to_string(),
                    version: channel.version.map(|version| version.to_string()),
                    hosts: count(channel.hosts, "host"),
                    changed: channel.changed.map(|at| Moment::new(at, now)),
                })
                .collect(),
            rollouts: fleet
                .rollouts
                .into_iter()
                .map(|rollout| RolloutCard::new(rollout, now))
                .collect(),
            events: fleet
                .events
                .into_iter()
                .map(|event| EventRow::new(event, now))
                .collect(),
            activity: fleet
                .activity
                .into_iter()
                .map(|a| ActivityRow::new(a, now))
                .collect(),
            no_release: fleet.no_release,
            omaha_url: format!("{base}{}", omaha::PATH),
            expiry: fleet.expires.and_then(|at| Expiry::new(at, now)),
            frame,
        }
    }
}

pub(in crate::server) async fn page(State(server): State<Shared>, headers: HeaderMap) -> Response {
    let who = match visitor(&server, &headers).await {
        Ok(who) => who,
        Err(response) => return response,
    };
    let now = (server.clock)();
    let base = match checkin::base_url(server.public_url.as_deref(), &headers) {
        Ok(base) => base,
        Err(error) => return error.into_response(),
    };
    let plan = server.database.plan();
    let expires = match tuf::timestamp_expires(&server.artifacts).await {
        Ok(expires) => expires,
        Err(error) => return error.into_response(),
    };
    let read = server.database.read(move |db| {
        Ok(Fleet {
            expires,
            overview: records::overview(db, rest::days_ago(now, HISTORY_DAYS))?,
            left: db.value("SELECT count(DISTINCT machine_id) FROM failures", &[])?,
            channels: catalog::channels(db)?,
            rollouts: ops::rollouts(&plan),
            no_release: plan.releases.is_empty(),
            events: records::events(db, None, FEED)?,
            activity: records::activities(db, false, FEED)?,
        })
    });
    let page = read.await.map(|fleet| {
        let title = format!("Orlop fleet: {}", count(fleet.overview.hosts, "host"));
        Page::new(
            fleet,
            Frame::new(title, "overview", who.as_ref(), now),
            now,
            &base,
        )
    });
    shown(page, who.as_ref(), now)
}
