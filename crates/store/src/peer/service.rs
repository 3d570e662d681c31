//! What members ask of each other.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::StreamExt as _;
use protobuf::Message as _;
use raft::eraftpb::Message;
use tonic::{Request, Response, Status, Streaming};

use super::accept_snapshot;
use crate::api::Context;
use crate::machine::Machine;
use crate::node::Event;
use crate::node::disk::Disk;
use crate::pb::etcdserverpb as rpc;
use crate::pb::orlop::store as pb;

#[derive(Clone)]
pub struct Service {
    pub context: Arc<Context>,
    pub disk: Arc<Disk>,
}

impl Service {
    fn check(&self, cluster: u64, from: u64) -> Result<(), Status> {
        if cluster != self.context.cluster_id {
            return Err(Status::failed_precondition(format!(
                "this member belongs to cluster {:x}, not {cluster:x}",
                self.context.cluster_id
            )));
        }
        if self
            .context
            .node
            .machine
            .read()
            .members
            .removed
            .contains(&from)
        {
            return Err(Status::permission_denied(
                "the member has been permanently removed from the cluster",
            ));
        }
        Ok(())
    }
}

impl Service {
    async fn receive(
        &self,
        part: &Path,
        mut chunks: Streaming<pb::SnapshotChunk>,
    ) -> Result<Machine, Status> {
        let failed = |e: std::io::Error| Status::unavailable(format!("{}: {e}", part.display()));
        let mut file = std::fs::File::create(part).map_err(failed)?;
        while let Some(chunk) = chunks.next().await {
            file.write_all(&chunk?.data).map_err(failed)?;
        }
        drop(file);
        let (disk, path) = (self.disk.clone(), part.to_path_buf());
        tokio::task::spawn_blocking(move || accept_snapshot(&disk, &path))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|what| Status::data_loss(format!("the snapshot cannot be used: {what}")))
    }
}

fn decode(bytes: &[u8]) -> Result<Message, Status> {
    Message::parse_from_bytes(bytes).map_err(|e| Status::invalid_argument(e.to_string()))
}

#[tonic::async_trait]
impl pb::peer_server::Peer for Service {
    async fn messages(
        &self,
        request: Request<Streaming<pb::RaftMessages>>,
    ) -> Result<Response<pb::Nothing>, Status> {
        let mut batches = request.into_inner();
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            self.check(batch.cluster_id, batch.from)?;
            let node = &self.context.node;
            for bytes in batch.messages {
                node.metrics
                    .peer_received
                    .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                let message = decode(&bytes)?;
                self.context.peers.heard(&message);
                node.event(Event::Message(message));
            }
        }
        Ok(Response::new(pb::Nothing {}))
    }

    async fn install(
        &self,
        request: Request<Streaming<pb::SnapshotChunk>>,
    ) -> Result<Response<pb::Nothing>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks
            .next()
            .await
            .ok_or_else(|| Status::invalid_argument("an empty snapshot"))??;
        let message = decode(&first.message)?;
        self.check(first.cluster_id, message.from)?;
        let part = self.disk.incoming(message.from);
        let machine = match self.receive(&part, chunks).await {
            Ok(machine) => machine,
            Err(status) => {
                tracing::warn!("cannot take a snapshot: {}", status.message());
                // The next try writes it anew; half a file only takes space.
                let _ = std::fs::remove_file(&part);
                return Err(status);
            }
        };
        tracing::info!(index = machine.applied, "received a snapshot");
        self.context
            .node
            .event(Event::Install(message, Box::new(machine)));
        Ok(Response::new(pb::Nothing {}))
    }

    async fn join(
        &self,
        _: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinResponse>, Status> {
        self.context.node.read().await?;
        Ok(Response::new(pb::JoinResponse {
            cluster_id: self.context.cluster_id,
            members: self.context.node.machine.read().members.list(),
        }))
    }

    async fn keep_alive(
        &self,
        request: Request<rpc::LeaseKeepAliveRequest>,
    ) -> Result<Response<rpc::LeaseKeepAliveResponse>, Status> {
        // A leader that was cut off must not promise what the next one does not know of.
        self.context.node.read().await?;
        Ok(Response::new(crate::api::renew_here(
            &self.context,
            request.get_ref().id,
        )?))
    }

    async fn time_to_live(
        &self,
        request: Request<rpc::LeaseTimeToLiveRequest>,
    ) -> Result<Response<rpc::LeaseTimeToLiveResponse>, Status> {
        self.context.node.read().await?;
        Ok(Response::new(crate::api::remaining_here(
            &self.context,
            request.get_ref(),
        )?))
    }

    async fn promote(
        &self,
        request: Request<rpc::MemberPromoteRequest>,
    ) -> Result<Response<rpc::MemberPromoteResponse>, Status> {
        crate::api::promote_here(&self.context, request.get_ref().id).await?;
        Ok(Response::new(rpc::MemberPromoteResponse::default()))
    }
}
