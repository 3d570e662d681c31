//! The v2 API's view of the server: its requests go through the same log.

use std::sync::Arc;

use super::{Cluster, Context};
use crate::pb::etcdserverpb as rpc;
use crate::pb::etcdserverpb::cluster_server::Cluster as _;
use crate::pb::orlop::store::command::Op;
use crate::propose::Reply;
use crate::v2::{self, Failure, LeaderStats, Member, MemberError, Outcome, RaftState, SelfStats};

pub struct V2(pub Arc<Context>);

fn member(member: rpc::Member) -> Member {
    Member {
        id: member.id,
        name: member.name,
        peer_urls: member.peer_ur_ls,
        client_urls: member.client_ur_ls,
    }
}

fn refused(status: &tonic::Status) -> MemberError {
    let text = status.message();
    [
        (crate::error::MEMBER_EXISTS, MemberError::IdExists),
        (crate::error::PEER_URL_EXISTS, MemberError::PeerUrlExists),
        (crate::error::MEMBER_NOT_FOUND, MemberError::IdNotFound),
    ]
    .into_iter()
    .find(|(error, _)| error.text == text)
    .map_or_else(|| MemberError::Other(text.to_owned()), |(_, error)| error)
}

impl V2 {
    fn cluster(&self) -> Cluster {
        Cluster(self.0.clone())
    }

    fn known(&self, id: u64) -> Result<(), MemberError> {
        let machine = self.0.node.machine.read();
        if machine.members.removed.contains(&id) {
            return Err(MemberError::IdRemoved);
        }
        if machine.members.all.contains_key(&id) {
            Ok(())
        } else {
            Err(MemberError::IdNotFound)
        }
    }
}

impl v2::Proposer for V2 {
    fn store(&self) -> &v2::Shared {
        &self.0.v2
    }

    async fn propose(&self, request: v2::Request) -> Result<Outcome, Failure> {
        let bytes = prost::Message::encode_to_vec(&request);
        match self
            .0
            .node
            .propose_as(Op::V2(bytes), String::new(), 0)
            .await
        {
            Ok(Reply::V2(outcome)) => Ok(outcome),
            Ok(other) => Err(Failure(format!("etcdserver: unexpected answer {other:?}"))),
            Err(error) => Err(Failure(error.to_string())),
        }
    }

    async fn linearize(&self) -> Result<(), Failure> {
        self.0
            .node
            .read()
            .await
            .map_err(|error| Failure(error.to_string()))
    }

    fn raft(&self) -> RaftState {
        let standing = self.0.node.standing();
        RaftState {
            index: standing.applied,
            term: standing.term,
        }
    }

    fn cluster_id(&self) -> u64 {
        self.0.cluster_id
    }

    fn members(&self) -> Vec<Member> {
        self.0
            .node
            .machine
            .read()
            .members
            .list()
            .into_iter()
            .map(member)
            .collect()
    }

    fn leader(&self) -> Option<u64> {
        Some(self.0.node.standing().leader).filter(|id| *id != 0)
    }

    async fn add_member(&self, peer_urls: Vec<String>) -> Result<Member, MemberError> {
        let request = rpc::MemberAddRequest {
            peer_ur_ls: peer_urls,
            is_learner: false,
        };
        let answer = self
            .cluster()
            .member_add(tonic::Request::new(request))
            .await;
        let added = answer
            .map_err(|status| refused(&status))?
            .into_inner()
            .member;
        Ok(added.map(member).unwrap_or_default())
    }

    async fn remove_member(&self, id: u64) -> Result<(), MemberError> {
        self.known(id)?;
        let request = tonic::Request::new(rpc::MemberRemoveRequest { id });
        let answer = self.cluster().member_remove(request).await;
        answer.map(|_| ()).map_err(|status| refused(&status))
    }

    async fn update_member(&self, id: u64, peer_urls: Vec<String>) -> Result<(), MemberError> {
        self.known(id)?;
        let request = rpc::MemberUpdateRequest {
            id,
            peer_ur_ls: peer_urls,
        };
        let answer = self
            .cluster()
            .member_update(tonic::Request::new(request))
            .await;
        answer.map(|_| ()).map_err(|status| refused(&status))
    }

    fn self_stats(&self) -> SelfStats {
        let leader = self.0.node.standing().leader;
        let state = if leader == self.0.node.member {
            "StateLeader"
        } else {
            "StateFollower"
        };
        let mut stats = SelfStats {
            name: self.0.name.clone(),
            id: format!("{:x}", self.0.node.member),
            state: state.to_owned(),
            start_time: self.0.started,
            ..SelfStats::default()
        };
        stats.leader_info.leader = format!("{leader:x}");
        stats.leader_info.start_time = self.0.started;
        stats.leader_info.uptime = format!("{}s", self.0.node.now().as_secs_f64());
        stats
    }

    fn leader_stats(&self) -> Option<LeaderStats> {
        let own = self.0.node.member;
        self.0.node.is_leader().then(|| {
            let machine = self.0.node.machine.read();
            let others = machine.members.all.keys().filter(|id| **id != own);
            LeaderStats {
                leader: format!("{own:x}"),
                followers: others
                    .map(|id| (format!("{id:x}"), self.0.peers.follower(*id)))
                    .collect(),
            }
        })
    }

    fn now(&self) -> i64 {
        i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
    }
}
