//! Where a member's state comes from: its disk, the other members, or nowhere yet.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use super::srv;
use crate::config::{ClusterState, Server};
use crate::machine::Machine;
use crate::machine::members::{Members, cluster_id, member_id};
use crate::node::disk::{Disk, Recovered};
use crate::pb::etcdserverpb::Member;
use crate::pb::orlop::store::peer_client::PeerClient;
use crate::pb::orlop::store::{Batch, JoinRequest, JoinResponse};
use crate::peer::client;
use crate::tls;
use crate::wal::Owner;

pub(super) async fn recover(
    config: &Server,
    disk: &Disk,
    tls: Option<Arc<tls::Connector>>,
) -> Result<Recovered> {
    if !disk.is_empty() {
        let recovered = disk.recover()?;
        return if config.force_new_cluster {
            Ok(alone(config, disk, recovered)?)
        } else {
            Ok(recovered)
        };
    }
    if config.force_new_cluster {
        bail!(
            "--force-new-cluster: there is no data in {}",
            config.data_dir().display()
        );
    }
    let config = &srv::found(config).await?;
    match config.initial_cluster_state {
        ClusterState::New => {
            let config = &discover(config).await?;
            let (machine, own) = first(config, Machine::default())?;
            let owner = Owner {
                cluster: machine.cluster_id,
                member: own,
            };
            Ok(disk.create(machine, owner)?)
        }
        ClusterState::Existing => join(config, disk, tls).await,
    }
}

/// The state of a snapshot as the start of a new cluster.
pub fn restored(config: &Server, machine: Machine, bump: i64) -> Result<(Machine, Owner)> {
    let (mut machine, own) = first(config, machine)?;
    // Alarms and leases were the old cluster's; keys of leases stay until the lease, given all its time, ends.
    machine.alarms.clear();
    if bump > 0 {
        machine.kv.bump(bump);
    }
    let owner = Owner {
        cluster: machine.cluster_id,
        member: own,
    };
    Ok((machine, owner))
}

/// The state of a cluster that is made now. All its first members come to the same.
pub(super) fn first(config: &Server, mut machine: Machine) -> Result<(Machine, u64)> {
    let token = &config.initial_cluster_token;
    let by_dns = !config.discovery_srv.is_empty();
    let mut own = None;
    let members: Vec<Member> = config
        .initial_cluster()?
        .into_iter()
        .map(|(name, peer_ur_ls)| {
            let id = member_id(&peer_ur_ls, token, None);
            if name == config.name {
                own = Some(id);
            }
            Member {
                id,
                // Who is found by DNS has no name yet that all know: each says its own once it serves.
                name: if by_dns { String::new() } else { name },
                peer_ur_ls,
                ..Member::default()
            }
        })
        .collect();
    let Some(own) = own else {
        bail!("--initial-cluster has no member called {:?}", config.name)
    };
    machine.cluster_id = cluster_id(members.iter().map(|m| m.id));
    machine.members = Members::of(members);
    // Index 1 stands for what the members agreed on by their flags, so that whoever comes later is sent a snapshot.
    (machine.applied, machine.applied_term) = (1, 1);
    machine.conf = raft::eraftpb::ConfState::default();
    machine.conf.voters = machine.members.all.keys().copied().collect();
    Ok((machine, own))
}

/// Completes the first members by the discovery service, if one is named.
async fn discover(config: &Server) -> Result<Server> {
    let mut config = config.clone();
    if config.discovery.is_empty() {
        return Ok(config);
    }
    let urls = crate::config::split(&config.initial_advertise_peer_urls);
    // The service hands out a cluster under a token of its own: the URL, as with etcd.
    let token = config.discovery.clone();
    let id = member_id(&urls, &token, None);
    let own: Vec<String> = urls
        .iter()
        .map(|url| format!("{}={url}", config.name))
        .collect();
    let url = config.discovery.clone();
    tracing::info!(url, "waits for the other members");
    let joined = tokio::task::spawn_blocking(move || {
        crate::v2::discovery::join(&url, None, id, &own.join(","))
    });
    config.initial_cluster = Some(joined.await??);
    config.initial_cluster_token = token;
    Ok(config)
}

/// Asks the members that are there for the cluster, and for the number that they gave this one.
async fn join(config: &Server, disk: &Disk, tls: Option<Arc<tls::Connector>>) -> Result<Recovered> {
    let cluster = config.initial_cluster()?;
    let own: Vec<String> = cluster.get(&config.name).cloned().unwrap_or_default();
    let others: Vec<&String> = cluster
        .iter()
        .filter(|(name, _)| **name != config.name)
        .flat_map(|(_, urls)| urls)
        .collect();
    if others.is_empty() {
        bail!(
            "--initial-cluster-state existing needs --initial-cluster with the members that are there"
        );
    }
    let mut errors = Vec::new();
    for url in others {
        match ask(url, tls.clone()).await {
            Ok(answer) => return joined(answer, &own, disk),
            Err(error) => errors.push(format!("{url}: {error:#}")),
        }
    }
    bail!(
        "no member could be asked for the cluster: {}",
        errors.join("; ")
    )
}

async fn ask(url: &str, tls: Option<Arc<tls::Connector>>) -> Result<JoinResponse> {
    let channel = client::connect(url, tls).await?;
    let answer = PeerClient::new(channel).join(JoinRequest {}).await;
    Ok(answer
        .map_err(|status| anyhow::anyhow!("{}", status.message()))?
        .into_inner())
}

fn joined(answer: JoinResponse, own: &[String], disk: &Disk) -> Result<Recovered> {
    let known = answer
        .members
        .iter()
        .find(|m| m.peer_ur_ls.iter().any(|url| own.contains(url)))
        .with_context(|| {
            format!(
                "the cluster has no member with the peer URLs {own:?}. Add it first: etcdctl member add NAME --peer-urls={}",
                own.join(",")
            )
        })?;
    if !known.name.is_empty() {
        bail!(
            "member {:x} has been started before, and its data is not here. If it is lost, remove the member and add it again",
            known.id
        );
    }
    let owner = Owner {
        cluster: answer.cluster_id,
        member: known.id,
    };
    let mut machine = Machine::default();
    machine.cluster_id = answer.cluster_id;
    machine.members = Members::of(answer.members);
    Ok(disk.create(machine, owner)?)
}

/// A cluster of this member only, with all that it has: also entries of which it cannot know whether they were
/// acknowledged.
fn alone(config: &Server, disk: &Disk, recovered: Recovered) -> Result<Recovered> {
    let owner = recovered.wal.owner();
    let mut machine = recovered.machine;
    let term = recovered.hard_state.term.max(machine.applied_term);
    for entry in &recovered.entries {
        use prost::Message as _;
        if entry.get_entry_type() == raft::eraftpb::EntryType::EntryNormal && !entry.data.is_empty()
        {
            let batch = Batch::decode(&*entry.data).context("an entry of the log")?;
            for command in &batch.commands {
                // Some are refused, as they would have been.
                let _ = machine.apply(command, std::time::Duration::ZERO);
            }
        }
        machine.applied = entry.index;
    }
    let _ = machine.take_changes();
    let lost: Vec<u64> = machine
        .members
        .all
        .keys()
        .copied()
        .filter(|id| *id != owner.member)
        .collect();
    for id in &lost {
        machine.members.all.remove(id);
        machine.members.removed.insert(*id);
    }
    let urls = crate::config::split(&config.initial_advertise_peer_urls);
    let own = machine
        .members
        .all
        .entry(owner.member)
        .or_insert_with(|| Member {
            id: owner.member,
            name: config.name.clone(),
            ..Member::default()
        });
    own.peer_ur_ls = urls;
    own.is_learner = false;
    machine.applied_term = term;
    machine.conf = raft::eraftpb::ConfState::default();
    machine.conf.voters = vec![owner.member];
    tracing::warn!(
        members_left_behind = lost.len(),
        revision = machine.kv.revision(),
        "makes a new cluster of this member alone"
    );
    drop(recovered.wal);
    Ok(disk.replace(machine, owner)?)
}
