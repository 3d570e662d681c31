//! What operators ask for: alarms, status, checksums, snapshots.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tonic::{Request, Response, Status};

use super::{Answers, CLUSTER_VERSION, Context, VERSION, unexpected};
use crate::error;
use crate::machine::checkpoint::Source;
use crate::node::Event;
use crate::pb::etcdserverpb as rpc;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::downgrade_request::DowngradeAction;
use crate::pb::orlop::store::command::Op;
use crate::propose::Reply;

#[derive(Clone)]
pub struct Maintenance(pub Arc<Context>);

#[tonic::async_trait]
impl rpc::maintenance_server::Maintenance for Maintenance {
    async fn alarm(
        &self,
        request: Request<rpc::AlarmRequest>,
    ) -> Result<Response<rpc::AlarmResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.0.voter()?;
        let request = request.into_inner();
        let mut response = if request.action() == AlarmAction::Get {
            self.0.node.read().await?;
            let machine = self.0.node.machine.read();
            let alarms = machine
                .alarms
                .iter()
                .filter(|(member, alarm)| {
                    (request.member_id == 0 || request.member_id == *member)
                        && (request.alarm == 0 || request.alarm == *alarm)
                })
                .map(|(member_id, alarm)| rpc::AlarmMember {
                    member_id: *member_id,
                    alarm: *alarm,
                })
                .collect();
            rpc::AlarmResponse {
                header: None,
                alarms,
            }
        } else {
            match self.0.propose(Op::Alarm(request), caller).await? {
                Reply::Alarm(response) => response,
                other => return Err(unexpected(&other)),
            }
        };
        response.header = self.0.current_header();
        Ok(Response::new(response))
    }

    async fn status(
        &self,
        request: Request<rpc::StatusRequest>,
    ) -> Result<Response<rpc::StatusResponse>, Status> {
        self.0.admit(&request)?;
        let standing = self.0.node.standing();
        let machine = self.0.node.machine.read();
        let bytes = i64::try_from(machine.kv.bytes()).unwrap_or(i64::MAX);
        let mut errors = Vec::new();
        if standing.leader == 0 {
            errors.push(error::NO_LEADER.text.into_owned());
        }
        for (member, alarm) in &machine.alarms {
            let name = rpc::AlarmType::try_from(*alarm).map_or("", |a| a.as_str_name());
            errors.push(format!("memberID:{member} alarm:{name} "));
        }
        let revision = machine.kv.revision();
        drop(machine);
        Ok(Response::new(rpc::StatusResponse {
            header: self.0.header(revision),
            version: VERSION.to_owned(),
            db_size: bytes,
            db_size_in_use: bytes,
            leader: standing.leader,
            raft_index: standing.commit,
            raft_term: standing.term,
            raft_applied_index: standing.applied,
            errors,
            is_learner: self.0.peers.is_learner(),
            storage_version: CLUSTER_VERSION.to_owned(),
            db_size_quota: i64::try_from(self.0.limits.quota).unwrap_or(i64::MAX),
            downgrade_info: None,
        }))
    }

    /// Space is used again as soon as compaction has freed it, so there is nothing to do.
    async fn defragment(
        &self,
        request: Request<rpc::DefragmentRequest>,
    ) -> Result<Response<rpc::DefragmentResponse>, Status> {
        self.0.admit_admin(&request)?;
        Ok(Response::new(rpc::DefragmentResponse { header: None }))
    }

    async fn hash(
        &self,
        request: Request<rpc::HashRequest>,
    ) -> Result<Response<rpc::HashResponse>, Status> {
        self.0.admit_admin(&request)?;
        let machine = self.0.node.machine.read();
        let revision = machine.kv.revision();
        let hash = machine.kv.hash(revision);
        drop(machine);
        Ok(Response::new(rpc::HashResponse {
            header: self.0.header(revision),
            hash,
        }))
    }

    async fn hash_kv(
        &self,
        request: Request<rpc::HashKvRequest>,
    ) -> Result<Response<rpc::HashKvResponse>, Status> {
        self.0.admit_admin(&request)?;
        let machine = self.0.node.machine.read();
        let current = machine.kv.revision();
        let asked = request.get_ref().revision;
        let revision = if asked > 0 { asked } else { current };
        machine.kv.check_revision(revision)?;
        let response = rpc::HashKvResponse {
            header: None,
            hash: machine.kv.hash(revision),
            compact_revision: machine.kv.compact_revision(),
            hash_revision: revision,
        };
        drop(machine);
        Ok(Response::new(rpc::HashKvResponse {
            header: self.0.header(current),
            ..response
        }))
    }

    type SnapshotStream = Answers<rpc::SnapshotResponse>;

    /// The checkpoint, and its SHA-256 at the end.
    async fn snapshot(
        &self,
        request: Request<rpc::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.0.admit_admin(&request)?;
        let context = self.0.clone();
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let source = Source::new(&context.node.machine);
            let header = context.header(source.head().revision);
            let mut left = context.node.machine.read().kv.bytes();
            let mut sum = Sha256::new();
            let send = |blob: Vec<u8>, remaining_bytes| {
                let piece = rpc::SnapshotResponse {
                    header,
                    remaining_bytes,
                    blob: blob.into(),
                    version: VERSION.to_owned(),
                };
                sender.blocking_send(Ok(piece)).is_ok()
            };
            for piece in source {
                let piece = match piece {
                    Ok(piece) => piece,
                    Err(why) => {
                        let status = Status::unavailable(format!("etcdserver: {why}, try again"));
                        let _ = sender.blocking_send(Err(status));
                        return;
                    }
                };
                sum.update(&piece);
                left = left.saturating_sub(piece.len() as u64);
                if !send(piece, left) {
                    return;
                }
            }
            send(sum.finalize().to_vec(), 0);
        });
        let pieces = tokio_stream::wrappers::ReceiverStream::new(receiver);
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn move_leader(
        &self,
        request: Request<rpc::MoveLeaderRequest>,
    ) -> Result<Response<rpc::MoveLeaderResponse>, Status> {
        self.0.admit(&request)?;
        let target = request.get_ref().target_id;
        if !self.0.node.is_leader() {
            return Err(error::NOT_LEADER.into());
        }
        let voter = {
            let machine = self.0.node.machine.read();
            machine
                .members
                .all
                .get(&target)
                .is_some_and(|m| !m.is_learner)
        };
        if !voter {
            return Err(error::BAD_LEADER_TRANSFEREE.into());
        }
        let mut leader = self.0.node.leader();
        if target != self.0.node.member {
            self.0.node.event(Event::Transfer(target));
            let moved = leader.wait_for(|l| *l == target);
            if tokio::time::timeout(std::time::Duration::from_secs(5), moved)
                .await
                .is_err()
            {
                return Err(Status::unavailable(
                    "etcdserver: request timed out, leader transfer took too long",
                ));
            }
        }
        Ok(Response::new(rpc::MoveLeaderResponse {
            header: self.0.current_header(),
        }))
    }

    /// The format on disk is our own, so there is no older version to go back to.
    async fn downgrade(
        &self,
        request: Request<rpc::DowngradeRequest>,
    ) -> Result<Response<rpc::DowngradeResponse>, Status> {
        self.0.admit(&request)?;
        let request = request.into_inner();
        match request.action() {
            DowngradeAction::Cancel => Err(error::NO_DOWNGRADE.into()),
            _ if request
                .version
                .split('.')
                .filter(|p| p.parse::<u64>().is_ok())
                .count()
                < 2 =>
            {
                Err(error::WRONG_DOWNGRADE_FORMAT.into())
            }
            _ => Err(error::INVALID_DOWNGRADE_TARGET.into()),
        }
    }
}
