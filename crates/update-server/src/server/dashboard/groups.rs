//! `/groups`: who takes releases how, and how far each rollout is.

use askama::Template;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::super::{Shared, ops};
use super::overview::RolloutCard;
use super::{Frame, count, shown, visitor};
use crate::api::GroupState;
use crate::rollout::Policy;

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
    rollout: Option<RolloutCard>,
}

fn words(policy: &Policy) -> Vec<String> {
    let mut words = vec![];
    if policy.waves.len() > 1 {
        let shares: Vec<_> = policy.waves.iter().map(u8::to_string).collect();
        words.push(format!(
            "waves of {} % over {} days",
            shares.join(", "),
            policy.days
        ));
    } else {
        words.push("all hosts at once".into());
    }
    if let Some(cap) = policy.cap {
        words.push(format!(
            "at most {} hosts in {} minutes",
            cap.hosts, cap.minutes
        ));
    }
    if let Some(window) = &policy.window {
        words.push(format!("only {window}"));
    }
    if let Some(canary) = &policy.canary {
        words.push(format!("after group {canary}"));
    }
    words.push(match policy.halt.enabled {
        true => format!(
            "halts when clearly more than {} % fail, from {} hosts on",
            policy.halt.failure_budget * 100.0,
            policy.halt.minimum_sample
        ),
        false => "never halts by itself".into(),
    });
    words
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
        words: words(&group.policy),
        policy: serde_json::to_string_pretty(&group.policy).unwrap_or_default(),
        hosts: count(group.hosts, "host"),
        channel: group.channel.to_string(),
        rollout: group.rollout.map(|rollout| RolloutCard::new(rollout, now)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_in_words() {
        let json = r#"{"waves":[10,100],"days":2,"cap":{"hosts":50,"minutes":60},"canary":"lab",
            "window":{"days":["tue"],"start":"22:00","minutes":90,"zone":"Europe/Berlin"}}"#;
        let policy: Policy = serde_json::from_str(json).unwrap();
        assert_eq!(
            words(&policy),
            [
                "waves of 10, 100 % over 2 days",
                "at most 50 hosts in 60 minutes",
                "only tue from 22:00 for 90 min (Europe/Berlin)",
                "after group lab",
                "halts when clearly more than 2 % fail, from 10 hosts on"
            ]
        );
    }
}
