//! `/releases`: channels and what they point at, releases and which are withdrawn.

use askama::Template;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use jiff::Timestamp;
use release::Version;

use super::super::{Shared, catalog};
use super::{Frame, Moment, count, shown, visitor};
use crate::api::{ChannelState, Release};

#[derive(Template)]
#[template(path = "releases.html")]
struct Page {
    frame: Frame,
    channels: Vec<ChannelRow>,
    /// That can be offered, for the choice.
    versions: Vec<String>,
    releases: Vec<ReleaseRow>,
}

struct ChannelRow {
    name: String,
    version: Option<String>,
    hosts: String,
    changed: Option<Moment>,
    /// Channels with another release that could be taken over.
    sources: Vec<(String, String)>,
}

struct ReleaseRow {
    version: String,
    id: String,
    download: String,
    published: Moment,
    channels: Vec<String>,
    floor: Option<String>,
    withdrawn: Option<(Moment, String)>,
}

fn channel_rows(channels: &[ChannelState], offered: &[Version], now: Timestamp) -> Vec<ChannelRow> {
    let row = |channel: &ChannelState| ChannelRow {
        name: channel.name.to_string(),
        version: channel.version.as_ref().map(ToString::to_string),
        hosts: count(channel.hosts, "host"),
        changed: channel.changed.map(|at| Moment::new(at, now)),
        sources: channels
            .iter()
            .filter(|other| other.name != channel.name && other.version != channel.version)
            .filter_map(|other| Some((other.name.to_string(), other.version.as_ref()?)))
            .filter(|(_, version)| offered.contains(version))
            .map(|(name, version)| (name, version.to_string()))
            .collect(),
    };
    channels.iter().map(row).collect()
}

fn release_row(release: Release, now: Timestamp) -> ReleaseRow {
    ReleaseRow {
        version: release.version.to_string(),
        id: release.id.short(),
        download: format!("{:.1} MB", release.download_size as f64 / 1e6),
        published: Moment::new(release.published, now),
        channels: release.channels.iter().map(ToString::to_string).collect(),
        floor: release
            .minimum_source_version
            .map(|floor| floor.to_string()),
        withdrawn: release.withdrawn.map(|at| {
            (
                Moment::new(at, now),
                release.withdrawn_reason.unwrap_or_default(),
            )
        }),
    }
}

pub(in crate::server) async fn page(State(server): State<Shared>, headers: HeaderMap) -> Response {
    let who = match visitor(&server, &headers).await {
        Ok(who) => who,
        Err(response) => return response,
    };
    let now = (server.clock)();
    let read = server
        .database
        .read(|db| Ok((catalog::channels(db)?, catalog::releases(db)?)));
    let page = read.await.map(|(channels, releases)| {
        let offered: Vec<Version> = releases
            .iter()
            .filter(|release| release.withdrawn.is_none())
            .map(|release| release.version.clone())
            .collect();
        Page {
            frame: Frame::new("Channels and releases", "releases", who.as_ref(), now),
            channels: channel_rows(&channels, &offered, now),
            versions: offered.iter().map(ToString::to_string).collect(),
            releases: releases
                .into_iter()
                .map(|release| release_row(release, now))
                .collect(),
        }
    });
    shown(page, who.as_ref(), now)
}
