//! What a member does by itself: says who it is, compacts, ends the alarm about space.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::api::Context;
use crate::config::Retention;
use crate::node::Event;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::{AlarmType, CompactionRequest};
use crate::pb::orlop::store::MemberAttributes;
use crate::pb::orlop::store::command::Op;

/// Tells the cluster this member's name and client URLs; then it serves.
pub(super) async fn introduce(
    context: Arc<Context>,
    name: String,
    urls: Vec<String>,
    addresses: Vec<String>,
) {
    let attributes = MemberAttributes {
        id: context.node.member,
        name,
        client_urls: urls,
    };
    loop {
        let known = {
            let machine = context.node.machine.read();
            machine
                .members
                .all
                .get(&attributes.id)
                .is_some_and(|member| {
                    member.name == attributes.name && member.client_ur_ls == attributes.client_urls
                })
        };
        let ready = if known {
            context.node.read().await.is_ok()
        } else {
            let op = Op::Attributes(attributes.clone());
            context.node.propose_as(op, String::new(), 0).await.is_ok()
        };
        if ready {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for address in addresses {
        tracing::info!(address, "ready to serve client requests");
    }
    if let Err(error) = notify("READY=1") {
        tracing::warn!("cannot tell systemd: {error}");
    }
}

/// systemd's protocol for services of the type `notify`.
fn notify(text: &str) -> std::io::Result<()> {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let socket = UnixDatagram::unbound()?;
    let bytes = path.as_encoded_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    socket.send_to_addr(text.as_bytes(), &address).map(|_| ())
}

pub(super) fn start(context: &Arc<Context>, retention: Retention) {
    tokio::spawn(end_alarm(context.clone()));
    tokio::spawn(expire(context.clone()));
    if retention != Retention::Everything {
        tokio::spawn(compact(context.clone(), retention));
    }
}

/// v2 keys end on all members at the same place in the log: where the leader says what time it is.
async fn expire(context: Arc<Context>) {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if !context.node.is_leader() {
            continue;
        }
        let now = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
        if context.v2.read().next_expiry().is_some_and(|at| at <= now) {
            let request = prost::Message::encode_to_vec(&crate::v2::Request::sync(now));
            let _ = context
                .node
                .propose_as(Op::V2(request), String::new(), 0)
                .await;
        }
    }
}

/// Once there is space again, the alarm has nothing to say.
async fn end_alarm(context: Arc<Context>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (raised, bytes) = {
            let machine = context.node.machine.read();
            let own = (context.node.member, AlarmType::Nospace as i32);
            (machine.alarms.contains(&own), machine.kv.bytes())
        };
        if raised && bytes < context.limits.quota / 10 * 9 {
            tracing::info!(bytes, "there is space again");
            let _ = context.set_alarm(AlarmAction::Deactivate).await;
        }
    }
}

async fn compact(context: Arc<Context>, retention: Retention) {
    let mut seen: VecDeque<(Instant, i64)> = VecDeque::new();
    let interval = match retention {
        Retention::Time(time) => {
            (time / 10).clamp(Duration::from_secs(1), Duration::from_secs(360))
        }
        _ => Duration::from_secs(300),
    };
    loop {
        tokio::time::sleep(interval).await;
        let revision = context.node.machine.read().kv.revision();
        let target = match retention {
            Retention::Everything => return,
            Retention::Revisions(keep) => revision - keep,
            Retention::Time(time) => {
                seen.push_back((Instant::now(), revision));
                let mut target = 0;
                while seen.front().is_some_and(|(at, _)| at.elapsed() >= time) {
                    target = seen.pop_front().map_or(0, |(_, revision)| revision);
                }
                target
            }
        };
        let compacted = context.node.machine.read().kv.compact_revision();
        if target > compacted.max(0) && context.node.is_leader() {
            let request = CompactionRequest {
                revision: target,
                physical: false,
            };
            match context
                .node
                .propose_as(Op::Compact(request), String::new(), 0)
                .await
            {
                Ok(_) => tracing::info!(revision = target, "compacted"),
                Err(error) => tracing::warn!(revision = target, "cannot compact: {error}"),
            }
        }
    }
}

/// A leader that stops by plan leaves nobody waiting for an election.
pub(super) async fn hand_over(context: &Arc<Context>) {
    if !context.node.is_leader() {
        return;
    }
    let mut best = None;
    let others: Vec<u64> = {
        let machine = context.node.machine.read();
        let voters = machine.members.all.values().filter(|m| !m.is_learner);
        voters
            .map(|m| m.id)
            .filter(|id| *id != context.node.member)
            .collect()
    };
    for id in others {
        if let Some((index, true, _)) = context.node.matched(id).await {
            best = best.max(Some((index, id)));
        }
    }
    let Some((_, id)) = best else { return };
    let mut leader = context.node.leader();
    context.node.event(Event::Transfer(id));
    let own = context.node.member;
    let moved = leader.wait_for(|l| *l != own && *l != 0);
    let _ = tokio::time::timeout(Duration::from_secs(2), moved).await;
}
