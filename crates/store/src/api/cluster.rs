//! Who belongs to the cluster. Every change goes through the log, one at a time.

use std::sync::Arc;

use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};
use tonic::{Request, Response, Status};

use super::Context;
use crate::error::{self, Error};
use crate::machine::members::member_id;
use crate::pb::etcdserverpb as rpc;
use crate::pb::orlop::store::MemberChange;

#[derive(Clone)]
pub struct Cluster(pub Arc<Context>);

/// A learner is ready when it has nearly all of the leader's log.
const READY_PERCENT: u64 = 90;

fn change(kind: ConfChangeType, id: u64) -> ConfChangeV2 {
    let mut single = ConfChangeSingle::default();
    single.set_change_type(kind);
    single.node_id = id;
    let mut change = ConfChangeV2::default();
    change.mut_changes().push(single);
    change
}

fn check_urls(urls: &[String]) -> Result<(), Error> {
    let sound = !urls.is_empty()
        && urls
            .iter()
            .all(|url| crate::config::Endpoint::parse("peer", url).is_ok());
    if sound {
        Ok(())
    } else {
        Err(error::MEMBER_BAD_URLS)
    }
}

impl Cluster {
    fn members(&self) -> Vec<rpc::Member> {
        self.0.node.machine.read().members.list()
    }

    /// Started voters, and voters.
    fn started(&self, without: Option<u64>) -> (usize, usize) {
        let machine = self.0.node.machine.read();
        let voters = machine
            .members
            .all
            .values()
            .filter(|m| !m.is_learner && Some(m.id) != without);
        voters.fold((0, 0), |(started, all), m| {
            (started + usize::from(!m.name.is_empty()), all + 1)
        })
    }

    async fn propose(&self, context: MemberChange, kind: ConfChangeType) -> Result<(), Status> {
        self.0.node.machine.read().check_change(&context)?;
        let id = context.id;
        self.0.node.change(context, change(kind, id)).await?;
        Ok(())
    }
}

/// Makes a learner a voter; only the leader knows whether it is ready.
pub async fn promote_here(context: &Arc<Context>, id: u64) -> Result<(), Status> {
    let member = {
        let machine = context.node.machine.read();
        machine.members.check_promote(id)?;
        machine
            .members
            .all
            .get(&id)
            .cloned()
            .ok_or(error::MEMBER_NOT_FOUND)?
    };
    let (matched, recent, commit) = context.node.matched(id).await.ok_or(error::NOT_LEADER)?;
    if !recent || matched * 100 < commit * READY_PERCENT {
        return Err(error::LEARNER_NOT_READY.into());
    }
    let promotion = MemberChange {
        id,
        member: Some(member),
        promote: true,
        ..MemberChange::default()
    };
    context
        .node
        .change(promotion, change(ConfChangeType::AddNode, id))
        .await?;
    Ok(())
}

#[tonic::async_trait]
impl rpc::cluster_server::Cluster for Cluster {
    async fn member_add(
        &self,
        request: Request<rpc::MemberAddRequest>,
    ) -> Result<Response<rpc::MemberAddResponse>, Status> {
        self.0.admit_admin(&request)?;
        self.0.voter()?;
        let request = request.into_inner();
        check_urls(&request.peer_ur_ls)?;
        let (started, voters) = self.started(None);
        if !request.is_learner && started <= voters.div_ceil(2) && voters > 1 {
            return Err(error::MEMBER_NOT_ENOUGH_STARTED.into());
        }
        let id = member_id(
            &request.peer_ur_ls,
            "",
            Some(jiff::Timestamp::now().as_second()),
        );
        let member = rpc::Member {
            id,
            peer_ur_ls: request.peer_ur_ls,
            is_learner: request.is_learner,
            ..rpc::Member::default()
        };
        let kind = if request.is_learner {
            ConfChangeType::AddLearnerNode
        } else {
            ConfChangeType::AddNode
        };
        let addition = MemberChange {
            id,
            member: Some(member.clone()),
            ..MemberChange::default()
        };
        self.propose(addition, kind).await?;
        Ok(Response::new(rpc::MemberAddResponse {
            header: self.0.header(0),
            member: Some(member),
            members: self.members(),
        }))
    }

    async fn member_remove(
        &self,
        request: Request<rpc::MemberRemoveRequest>,
    ) -> Result<Response<rpc::MemberRemoveResponse>, Status> {
        self.0.admit_admin(&request)?;
        self.0.voter()?;
        let id = request.into_inner().id;
        self.0.node.machine.read().members.check_remove(id)?;
        let (started, voters) = self.started(Some(id));
        if voters > 0 && started < voters / 2 + 1 {
            return Err(error::MEMBER_NOT_ENOUGH_STARTED.into());
        }
        let removal = MemberChange {
            id,
            ..MemberChange::default()
        };
        self.propose(removal, ConfChangeType::RemoveNode).await?;
        Ok(Response::new(rpc::MemberRemoveResponse {
            header: self.0.header(0),
            members: self.members(),
        }))
    }

    async fn member_update(
        &self,
        request: Request<rpc::MemberUpdateRequest>,
    ) -> Result<Response<rpc::MemberUpdateResponse>, Status> {
        self.0.admit_admin(&request)?;
        self.0.voter()?;
        let request = request.into_inner();
        check_urls(&request.peer_ur_ls)?;
        let known = {
            let machine = self.0.node.machine.read();
            machine
                .members
                .all
                .get(&request.id)
                .cloned()
                .ok_or(error::MEMBER_NOT_FOUND)?
        };
        let kind = if known.is_learner {
            ConfChangeType::AddLearnerNode
        } else {
            ConfChangeType::AddNode
        };
        let update = MemberChange {
            id: request.id,
            member: Some(rpc::Member {
                peer_ur_ls: request.peer_ur_ls,
                ..known
            }),
            update: true,
            ..MemberChange::default()
        };
        self.propose(update, kind).await?;
        Ok(Response::new(rpc::MemberUpdateResponse {
            header: self.0.header(0),
            members: self.members(),
        }))
    }

    async fn member_list(
        &self,
        request: Request<rpc::MemberListRequest>,
    ) -> Result<Response<rpc::MemberListResponse>, Status> {
        self.0.admit(&request)?;
        if request.get_ref().linearizable {
            self.0.node.read().await?;
        }
        Ok(Response::new(rpc::MemberListResponse {
            header: self.0.header(0),
            members: self.members(),
        }))
    }

    async fn member_promote(
        &self,
        request: Request<rpc::MemberPromoteRequest>,
    ) -> Result<Response<rpc::MemberPromoteResponse>, Status> {
        self.0.admit_admin(&request)?;
        self.0.voter()?;
        let request = request.into_inner();
        if self.0.node.is_leader() {
            promote_here(&self.0, request.id).await?;
        } else {
            let mut leader = self.0.peers.leader(&self.0.node).ok_or(error::NO_LEADER)?;
            leader.promote(request).await?;
        }
        Ok(Response::new(rpc::MemberPromoteResponse {
            header: self.0.header(0),
            members: self.members(),
        }))
    }
}
