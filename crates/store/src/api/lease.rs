//! Leases. Granting and revoking go through the log; only the leader knows when a lease ends, so others ask it.

use std::sync::Arc;

use futures_util::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, Context, unexpected};
use crate::error;
use crate::pb::etcdserverpb as rpc;
use crate::pb::orlop::store::command::Op;
use crate::propose::Reply;

#[derive(Clone)]
pub struct Lease(pub Arc<Context>);

/// Answers as the leader; [`error::NOT_LEADER`] elsewhere.
pub fn renew_here(context: &Context, id: i64) -> Result<rpc::LeaseKeepAliveResponse, error::Error> {
    let machine = context.node.machine.read();
    let ttl = machine.leases.renew(id, context.node.now())?;
    let revision = machine.kv.revision();
    drop(machine);
    Ok(rpc::LeaseKeepAliveResponse {
        header: context.header(revision),
        id,
        // What etcd's clients take for "it is gone".
        ttl: ttl.unwrap_or(0),
    })
}

pub fn remaining_here(
    context: &Context,
    request: &rpc::LeaseTimeToLiveRequest,
) -> Result<rpc::LeaseTimeToLiveResponse, error::Error> {
    let machine = context.node.machine.read();
    let remaining = machine.leases.remaining(request.id, context.node.now())?;
    let lease = machine.leases.get(request.id);
    let mut response = rpc::LeaseTimeToLiveResponse {
        header: context.header(machine.kv.revision()),
        id: request.id,
        ttl: -1,
        ..Default::default()
    };
    if let (Some(remaining), Some(lease)) = (remaining, lease) {
        response.ttl = remaining;
        response.granted_ttl = lease.ttl;
        if request.keys {
            response.keys = lease.keys.iter().map(|key| key.to_vec()).collect();
        }
    }
    Ok(response)
}

impl Lease {
    /// Here or, if somebody else leads, there; a change of leaders meanwhile is waited out.
    async fn renew(&self, id: i64) -> Result<rpc::LeaseKeepAliveResponse, Status> {
        for _ in 0..20 {
            if self.0.node.is_leader() {
                // A leader that was cut off must not promise what the next one does not know of.
                self.0.node.read().await?;
                match renew_here(&self.0, id) {
                    Err(e) if e == error::NOT_LEADER => {}
                    result => return Ok(result?),
                }
            } else if let Some(mut leader) = self.0.peers.leader(&self.0.node)
                && let Ok(response) = leader.keep_alive(rpc::LeaseKeepAliveRequest { id }).await
            {
                return Ok(self.as_mine(response.into_inner()));
            }
            tokio::time::sleep(std::time::Duration::from_millis(250)).await;
        }
        Err(error::NO_LEADER.into())
    }

    fn as_mine(&self, mut response: rpc::LeaseKeepAliveResponse) -> rpc::LeaseKeepAliveResponse {
        response.header = self.0.current_header();
        response
    }
}

#[tonic::async_trait]
impl rpc::lease_server::Lease for Lease {
    async fn lease_grant(
        &self,
        request: Request<rpc::LeaseGrantRequest>,
    ) -> Result<Response<rpc::LeaseGrantResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.0.voter()?;
        self.0.within_quota(0).await?;
        let mut request = request.into_inner();
        while request.id == 0 {
            request.id = (self.0.node.next_id() & (i64::MAX.cast_unsigned())).cast_signed();
        }
        match self.0.propose(Op::LeaseGrant(request), caller).await? {
            Reply::LeaseGrant(mut response) => {
                response.header = self.0.current_header();
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<rpc::LeaseRevokeRequest>,
    ) -> Result<Response<rpc::LeaseRevokeResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.0.voter()?;
        match self
            .0
            .propose(Op::LeaseRevoke(request.into_inner()), caller)
            .await?
        {
            Reply::LeaseRevoke => Ok(Response::new(rpc::LeaseRevokeResponse {
                header: self.0.current_header(),
            })),
            other => Err(unexpected(&other)),
        }
    }

    type LeaseKeepAliveStream = Answers<rpc::LeaseKeepAliveResponse>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<rpc::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        self.0.admit(&request)?;
        self.0.voter()?;
        let lease = self.clone();
        let answers = request.into_inner().then(move |request| {
            let lease = lease.clone();
            async move { lease.renew(request?.id).await }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<rpc::LeaseTimeToLiveRequest>,
    ) -> Result<Response<rpc::LeaseTimeToLiveResponse>, Status> {
        let caller = self.0.admit(&request)?;
        if request.get_ref().keys {
            let machine = self.0.node.machine.read();
            machine.permit_lease_keys(request.get_ref().id, &caller)?;
        }
        self.0.voter()?;
        let request = request.into_inner();
        for _ in 0..20 {
            if self.0.node.is_leader() {
                self.0.node.read().await?;
                match remaining_here(&self.0, &request) {
                    Err(e) if e == error::NOT_LEADER => {}
                    result => return Ok(Response::new(result?)),
                }
            } else if let Some(mut leader) = self.0.peers.leader(&self.0.node)
                && let Ok(response) = leader.time_to_live(request).await
            {
                let mut response = response.into_inner();
                response.header = self.0.current_header();
                return Ok(Response::new(response));
            }
            tokio::time::sleep(std::time::Duration::from_millis(250)).await;
        }
        Err(error::NO_LEADER.into())
    }

    async fn lease_leases(
        &self,
        request: Request<rpc::LeaseLeasesRequest>,
    ) -> Result<Response<rpc::LeaseLeasesResponse>, Status> {
        self.0.admit(&request)?;
        self.0.voter()?;
        self.0.node.read().await?;
        let machine = self.0.node.machine.read();
        let leases = machine
            .leases
            .iter()
            .map(|(id, _)| rpc::LeaseStatus { id })
            .collect();
        let revision = machine.kv.revision();
        drop(machine);
        Ok(Response::new(rpc::LeaseLeasesResponse {
            header: self.0.header(revision),
            leases,
        }))
    }
}
