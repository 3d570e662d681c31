//! Elections: the queue of a lock, whose first has something to say.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use futures_util::stream;
use tonic::{Request, Response, Status};

use super::lock::{
    Place, after_prefix, compare_created, enqueue, lease_or_new, op, txn, wait_for_turn,
};
use super::{Answers, Caller, Context};
use crate::auth::Access;
use crate::mvcc::view;
use crate::pb::etcdserverpb as rpc;
use crate::pb::etcdserverpb::request_op::Request as Request_;
use crate::pb::mvccpb::KeyValue;
use crate::pb::v3electionpb as pb;
use crate::watch::{Outbox, Request as Wanted};

#[derive(Clone)]
pub struct Election(pub Arc<Context>);

fn no_leader() -> Status {
    Status::unknown("election: no leader")
}

fn not_leader() -> Status {
    Status::unknown("election: not leader")
}

impl Election {
    /// What is said in an election is in keys, and whoever may not read them may not hear it.
    fn may_look(&self, name: &[u8], caller: &Caller) -> Result<(), Status> {
        let prefix = [name, b"/"].concat();
        let end = after_prefix(&prefix);
        let machine = self.0.node.machine.read();
        Ok(machine.auth.permits(caller, &prefix, &end, Access::Read)?)
    }

    fn first(&self, name: &[u8]) -> Option<KeyValue> {
        let prefix = [name, b"/"].concat();
        let end = after_prefix(&prefix);
        let machine = self.0.node.machine.read();
        machine
            .kv
            .alive(&prefix, &end, i64::MAX)
            .min_by_key(|(_, version)| view(&version.pair).create_revision)
            .map(|(_, version)| version.pair.key_value())
    }
}

#[tonic::async_trait]
impl pb::election_server::Election for Election {
    async fn campaign(
        &self,
        request: Request<pb::CampaignRequest>,
    ) -> Result<Response<pb::CampaignResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.0.voter()?;
        let request = request.into_inner();
        let lease = lease_or_new(&self.0, request.lease, &caller).await?;
        let prefix = [&request.name, &b"/"[..]].concat();
        let (key, revision) =
            enqueue(&self.0, &prefix, lease, &request.value, caller.clone()).await?;
        let mut place = Place {
            context: self.0.clone(),
            key: key.clone(),
            caller,
            kept: false,
        };
        wait_for_turn(&self.0, &prefix, &key, revision).await?;
        place.kept = true;
        Ok(Response::new(pb::CampaignResponse {
            header: self.0.current_header(),
            leader: Some(pb::LeaderKey {
                name: request.name,
                key,
                rev: revision,
                lease,
            }),
        }))
    }

    async fn proclaim(
        &self,
        request: Request<pb::ProclaimRequest>,
    ) -> Result<Response<pb::ProclaimResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.0.voter()?;
        let request = request.into_inner();
        let leader = request
            .leader
            .ok_or_else(|| Status::invalid_argument("\"leader\" field must be provided"))?;
        let request = rpc::TxnRequest {
            compare: vec![compare_created(leader.key.clone(), leader.rev)],
            success: vec![op(Request_::RequestPut(rpc::PutRequest {
                key: leader.key,
                value: request.value,
                lease: leader.lease,
                ..rpc::PutRequest::default()
            }))],
            failure: Vec::new(),
        };
        if !txn(&self.0, request, caller).await?.succeeded {
            return Err(not_leader());
        }
        Ok(Response::new(pb::ProclaimResponse {
            header: self.0.current_header(),
        }))
    }

    async fn leader(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<pb::LeaderResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.may_look(&request.get_ref().name, &caller)?;
        self.0.voter()?;
        self.0.node.read().await?;
        let kv = self.first(&request.get_ref().name).ok_or_else(no_leader)?;
        Ok(Response::new(pb::LeaderResponse {
            header: self.0.current_header(),
            kv: Some(kv),
        }))
    }

    type ObserveStream = Answers<pb::LeaderResponse>;

    /// Says who leads, and says it again whenever that or what it proclaims changes.
    async fn observe(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let caller = self.0.admit(&request)?;
        self.may_look(&request.get_ref().name, &caller)?;
        self.0.voter()?;
        self.0.node.read().await?;
        let name = request.into_inner().name;
        let prefix = [&name, &b"/"[..]].concat();
        let (notices, receiver) = tokio::sync::mpsc::unbounded_channel();
        let backlog = Arc::new(AtomicUsize::new(0));
        let out = Outbox {
            notices,
            backlog: backlog.clone(),
        };
        let hub = self.0.node.hub.clone();
        let wanted = Wanted {
            range_end: after_prefix(&prefix),
            key: prefix,
            ..Wanted::default()
        };
        let stream = hub.new_stream();
        let watch = Ended(hub.clone(), hub.create(stream, 0, wanted, out));
        let election = self.clone();
        let state = (receiver, watch, None::<KeyValue>);
        let leaders = stream::unfold(state, move |(mut receiver, watch, mut last)| {
            let (election, name, backlog) = (election.clone(), name.clone(), backlog.clone());
            async move {
                loop {
                    // The notice says that something changed; what holds now is in the store.
                    receiver.recv().await?;
                    backlog.store(0, std::sync::atomic::Ordering::Relaxed);
                    let now = election.first(&name);
                    if now.is_some() && now != last {
                        last.clone_from(&now);
                        let response = pb::LeaderResponse {
                            header: election.0.current_header(),
                            kv: now,
                        };
                        return Some((Ok(response), (receiver, watch, last)));
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(leaders)))
    }

    async fn resign(
        &self,
        request: Request<pb::ResignRequest>,
    ) -> Result<Response<pb::ResignResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.0.voter()?;
        let leader = request
            .into_inner()
            .leader
            .ok_or_else(|| Status::invalid_argument("\"leader\" field must be provided"))?;
        let request = rpc::TxnRequest {
            compare: vec![compare_created(leader.key.clone(), leader.rev)],
            success: vec![op(Request_::RequestDeleteRange(rpc::DeleteRangeRequest {
                key: leader.key,
                ..rpc::DeleteRangeRequest::default()
            }))],
            failure: Vec::new(),
        };
        txn(&self.0, request, caller).await?;
        Ok(Response::new(pb::ResignResponse {
            header: self.0.current_header(),
        }))
    }
}

struct Ended(Arc<crate::watch::Hub>, u64);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.cancel(self.1);
    }
}
