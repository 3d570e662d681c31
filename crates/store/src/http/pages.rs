//! `/version`, `/health`, `/livez`, `/readyz`, `/metrics`.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::json;

use crate::api::{CLUSTER_VERSION, Context, VERSION};
use crate::metrics::Gauges;
use crate::pb::etcdserverpb::AlarmType;

type Parameters = Query<Vec<(String, String)>>;

pub(super) fn router(context: &Arc<Context>) -> axum::Router {
    axum::Router::new()
        .route("/version", get(version))
        .route("/health", get(health))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(context.clone())
}

pub(super) fn for_peers(context: &Arc<Context>) -> axum::Router {
    axum::Router::new()
        .route("/version", get(version))
        .route("/health", get(health))
        .route("/members", get(members))
        .with_state(context.clone())
}

async fn members(State(context): State<Arc<Context>>) -> Response {
    let members = context.node.machine.read().members.list();
    let list: Vec<_> = members
        .into_iter()
        .map(|m| json!({"id": m.id, "name": m.name, "peerURLs": m.peer_ur_ls, "clientURLs": m.client_ur_ls, "isLearner": m.is_learner}))
        .collect();
    let cluster = format!("{:x}", context.cluster_id);
    let body = serde_json::Value::from(list).to_string();
    (
        [
            (header::CONTENT_TYPE, "application/json".to_owned()),
            (
                header::HeaderName::from_static("x-etcd-cluster-id"),
                cluster,
            ),
        ],
        body,
    )
        .into_response()
}

async fn version() -> Response {
    let text = format!("{{\"etcdserver\":\"{VERSION}\",\"etcdcluster\":\"{CLUSTER_VERSION}\"}}");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn set(parameters: &[(String, String)], name: &str) -> bool {
    parameters.iter().any(|(n, v)| n == name && v != "false")
}

/// Whether a linearizable read works (a local one, if asked), and no alarm is raised.
async fn health(State(context): State<Arc<Context>>, Query(parameters): Parameters) -> Response {
    let excluded: Vec<_> = parameters
        .iter()
        .filter(|(n, _)| n == "exclude")
        .map(|(_, v)| v.as_str())
        .collect();
    let alarm = {
        let machine = context.node.machine.read();
        [AlarmType::Nospace, AlarmType::Corrupt]
            .into_iter()
            .find(|alarm| machine.alarmed(*alarm) && !excluded.contains(&alarm.as_str_name()))
    };
    let reason = if let Some(alarm) = alarm {
        Some(format!("ALARM {}", alarm.as_str_name()))
    } else if context.node.standing().leader == 0 {
        Some("RAFT NO LEADER".to_owned())
    } else if set(&parameters, "serializable") {
        None
    } else {
        context
            .node
            .read()
            .await
            .err()
            .map(|error| format!("QGET ERROR:{error}"))
    };
    let (status, body) = match reason {
        None => (StatusCode::OK, json!({"health": "true", "reason": ""})),
        Some(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            json!({"health": "false", "reason": reason}),
        ),
    };
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
        .into_response()
}

/// Prints the checks as Kubernetes' own health pages do.
fn checks(
    title: &str,
    results: &[(&str, Result<(), String>)],
    parameters: &[(String, String)],
) -> Response {
    let excluded: Vec<_> = parameters
        .iter()
        .filter(|(n, _)| n == "exclude")
        .map(|(_, v)| v.as_str())
        .collect();
    let mut text = String::new();
    let mut sound = true;
    for (name, result) in results {
        let _ = match result {
            _ if excluded.contains(name) => writeln!(text, "[+]{name} excluded: ok"),
            Ok(()) => writeln!(text, "[+]{name} ok"),
            Err(reason) => {
                sound = false;
                writeln!(text, "[-]{name} failed: {reason}")
            }
        };
    }
    if !sound {
        let _ = writeln!(text, "{title} check failed");
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    if set(parameters, "verbose") {
        let _ = writeln!(text, "{title} check passed");
        return text.into_response();
    }
    "ok\n".into_response()
}

async fn linearizable(context: &Context) -> Result<(), String> {
    context
        .node
        .read()
        .await
        .map_err(|error| format!("range error: {error}"))
}

async fn live(State(_): State<Arc<Context>>, Query(parameters): Parameters) -> Response {
    // It answers; a local read has nothing that could fail.
    checks("livez", &[("serializable_read", Ok(()))], &parameters)
}

async fn ready(State(context): State<Arc<Context>>, Query(parameters): Parameters) -> Response {
    let corrupt = context.node.machine.read().alarmed(AlarmType::Corrupt);
    let results = [
        (
            "data_corruption",
            if corrupt {
                Err("alarm activated: CORRUPT".to_owned())
            } else {
                Ok(())
            },
        ),
        ("serializable_read", Ok(())),
        ("linearizable_read", linearizable(&context).await),
        (
            "non_learner",
            if context.peers.is_learner() {
                Err("not supported for learner".to_owned())
            } else {
                Ok(())
            },
        ),
    ];
    checks("readyz", &results, &parameters)
}

async fn metrics(State(context): State<Arc<Context>>) -> Response {
    let node = &context.node;
    let standing = node.standing();
    let (watchers, slow) = node.hub.counts();
    let gauges = {
        let machine = node.machine.read();
        Gauges {
            has_leader: standing.leader != 0,
            is_leader: node.is_leader(),
            is_learner: context.peers.is_learner(),
            member: node.member,
            version: VERSION,
            commit: standing.commit,
            applied: standing.applied,
            db_size: machine.kv.bytes(),
            quota: context.limits.quota,
            keys: machine.kv.live_keys(),
            revision: machine.kv.revision(),
            compact_revision: machine.kv.compact_revision(),
            watchers: watchers as u64,
            slow_watchers: slow as u64,
            watch_streams: node.hub.open_streams.load(Ordering::Relaxed),
            leases: machine.leases.len() as u64,
            events: node.hub.events.load(Ordering::Relaxed),
        }
    };
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], node.metrics.text(&gauges)).into_response()
}
