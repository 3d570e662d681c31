//! `/groups`: who takes releases how, and how far each rollout is.

use askama::Template;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::super::{Shared, ops};
use super::overview::RolloutCard;
use super::{Frame, count, shown, visitor};
use crate::api::GroupState;

#[derive(Template)]
#[template(path = "groups.html")]
struct Page {
    frame: Frame,
    groups: Vec<GroupRow>,
    channels: Vec<String>,
}

struct GroupRow {
    name: String,
    channel: String,
    description: String,
    hosts: String,
    own: bool,
    /// The policy in words.
    words: Vec<String>,
    policy: String,
    /// First of what the channel points at.
    rollouts: Vec<RolloutCard>,
}

pub(in crate::server) async fn page(State(server): State<Shared>, headers: HeaderMap) -> Response {
    let who = match visitor(&server, &headers).await {
        Ok(who) => who,
        Err(response) => return response,
    };
    let now = (server.clock)();
    let plan = server.database.plan();
    let channels = plan.channels.keys().cloned().collect();
    let read = server.database.read(move |db| ops::groups(db, &plan));
    let row = |group: GroupState| GroupRow {
        words: group.policy.words(),
        policy: serde_json::to_string_pretty(&group.policy).unwrap_or_default(),
        hosts: count(group.hosts, "host"),
        channel: group.channel.to_string(),
        rollouts: (group.rollout.into_iter().chain(group.stops))
            .map(|rollout| RolloutCard::new(rollout, now))
            .collect(),
        name: group.name,
        description: group.description,
        own: group.own,
    };
    let page = read.await.map(|groups| Page {
        frame: Frame::new("Groups", "groups", who.as_ref(), now),
        groups: groups.into_iter().map(row).collect(),
        channels,
    });
    shown(page, who.as_ref(), now)
}
