//! Locks: a key below the lock's name, alive as long as its lease. Who has the oldest holds the lock, and the key's
//! revision fences whatever is done under it.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tonic::{Request, Response, Status};

use super::{Caller, Context, unexpected};
use crate::error;
use crate::mvcc::view;
use crate::pb::etcdserverpb as rpc;
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request as Request_;
use crate::pb::orlop::store::command::Op;
use crate::pb::v3lockpb as pb;
use crate::propose::Reply;
use crate::watch::{Notice, Outbox, Request as Wanted};

#[derive(Clone)]
pub struct Lock(pub Arc<Context>);

/// The first key behind all that start with `prefix`.
pub(super) fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

pub(super) fn compare_created(key: Vec<u8>, revision: i64) -> rpc::Compare {
    rpc::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key,
        range_end: Vec::new(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}

pub(super) fn op(request: Request_) -> rpc::RequestOp {
    rpc::RequestOp {
        request: Some(request),
    }
}

pub(super) async fn txn(
    context: &Context,
    request: rpc::TxnRequest,
    caller: Caller,
) -> Result<rpc::TxnResponse, Status> {
    match context.propose(Op::Txn(request), caller).await? {
        Reply::Txn(response) => Ok(response),
        other => Err(unexpected(&other)),
    }
}

/// Queues up below `prefix`; returns the key and its create revision. Whoever queues twice keeps the place.
pub(super) async fn enqueue(
    context: &Context,
    prefix: &[u8],
    lease: i64,
    value: &[u8],
    caller: Caller,
) -> Result<(Vec<u8>, i64), Status> {
    let key = [prefix, format!("{lease:x}").as_bytes()].concat();
    let request = rpc::TxnRequest {
        compare: vec![compare_created(key.clone(), 0)],
        success: vec![op(Request_::RequestPut(rpc::PutRequest {
            key: key.clone(),
            value: value.to_vec(),
            lease,
            ..rpc::PutRequest::default()
        }))],
        failure: vec![op(Request_::RequestRange(rpc::RangeRequest {
            key: key.clone(),
            ..rpc::RangeRequest::default()
        }))],
    };
    let response = txn(context, request, caller).await?;
    let revision = match response
        .responses
        .first()
        .and_then(|op| op.response.as_ref())
    {
        Some(rpc::response_op::Response::ResponseRange(range)) => range
            .kvs
            .first()
            .map_or(0, |pair| view(pair).create_revision),
        _ => response.header.map_or(0, |h| h.revision),
    };
    Ok((key, revision))
}

/// The youngest key below `prefix` that is older than `revision`.
fn before(context: &Context, prefix: &[u8], revision: i64) -> Option<Vec<u8>> {
    let end = after_prefix(prefix);
    let machine = context.node.machine.read();
    machine
        .kv
        .alive(prefix, &end, i64::MAX)
        .map(|(key, version)| (key, view(&version.pair).create_revision))
        .filter(|(_, created)| *created < revision)
        .max_by_key(|(_, created)| *created)
        .map(|(key, _)| key.to_vec())
}

/// Waits until nobody older is in the queue.
pub(super) async fn wait_for_turn(
    context: &Context,
    prefix: &[u8],
    key: &[u8],
    revision: i64,
) -> Result<(), Status> {
    loop {
        let (sender, mut notices) = tokio::sync::mpsc::unbounded_channel();
        let Some(older) = before(context, prefix, revision) else {
            break;
        };
        let wanted = Wanted {
            key: older.clone(),
            no_put: true,
            ..Wanted::default()
        };
        let out = Outbox {
            notices: sender,
            backlog: Arc::new(AtomicUsize::new(0)),
        };
        let hub = context.node.hub.clone();
        let stream = hub.new_stream();
        let watch = Canceled(hub.clone(), hub.create(stream, 0, wanted, out));
        // It may have gone before the watch was there.
        if before(context, prefix, revision).as_deref() == Some(&older[..]) {
            while let Some(notice) = notices.recv().await {
                if matches!(notice, Notice::Events { .. } | Notice::Compacted { .. }) {
                    break;
                }
            }
        }
        drop(watch);
    }
    // The lease may have ended while waiting, and the place with it.
    context.node.read().await?;
    let machine = context.node.machine.read();
    let own = machine
        .kv
        .get(key)
        .map(|version| view(&version.pair).create_revision);
    drop(machine);
    if own == Some(revision) {
        Ok(())
    } else {
        Err(Status::unavailable("etcdserver: session expired"))
    }
}

/// A watch that ends with whoever waits for it.
struct Canceled(Arc<crate::watch::Hub>, u64);

impl Drop for Canceled {
    fn drop(&mut self) {
        self.0.cancel(self.1);
    }
}

/// What holds a place in a queue until it is given to somebody: a client that went away leaves it.
pub(super) struct Place {
    pub context: Arc<Context>,
    pub key: Vec<u8>,
    pub caller: Caller,
    pub kept: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let (context, caller) = (self.context.clone(), self.caller.clone());
        let request = rpc::DeleteRangeRequest {
            key: std::mem::take(&mut self.key),
            ..rpc::DeleteRangeRequest::default()
        };
        tokio::spawn(async move {
            // If this fails too, the lease ends it.
            let _ = context.propose(Op::DeleteRange(request), caller).await;
        });
    }
}

#[tonic::async_trait]
impl pb::lock_server::Lock for Lock {
    async fn lock(
        &self,
        request: Request<pb::LockRequest>,
    ) -> Result<Response<pb::LockResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.0.voter()?;
        let request = request.into_inner();
        let lease = lease_or_new(&self.0, request.lease, &caller).await?;
        let prefix = [&request.name, &b"/"[..]].concat();
        let (key, revision) = enqueue(&self.0, &prefix, lease, b"", caller.clone()).await?;
        let mut place = Place {
            context: self.0.clone(),
            key: key.clone(),
            caller,
            kept: false,
        };
        wait_for_turn(&self.0, &prefix, &key, revision).await?;
        place.kept = true;
        Ok(Response::new(pb::LockResponse {
            header: self.0.current_header(),
            key,
        }))
    }

    async fn unlock(
        &self,
        request: Request<pb::UnlockRequest>,
    ) -> Result<Response<pb::UnlockResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.0.voter()?;
        let request = rpc::DeleteRangeRequest {
            key: request.into_inner().key,
            ..rpc::DeleteRangeRequest::default()
        };
        self.0.propose(Op::DeleteRange(request), caller).await?;
        Ok(Response::new(pb::UnlockResponse {
            header: self.0.current_header(),
        }))
    }
}

/// Without a lease, a minute is granted.
pub(super) async fn lease_or_new(
    context: &Context,
    lease: i64,
    caller: &Caller,
) -> Result<i64, Status> {
    if lease != 0 {
        return if context.node.machine.read().leases.exists(lease) {
            Ok(lease)
        } else {
            Err(error::LEASE_NOT_FOUND.into())
        };
    }
    let request = rpc::LeaseGrantRequest {
        id: (context.node.next_id() & i64::MAX.cast_unsigned()).cast_signed(),
        ttl: 60,
    };
    match context
        .propose(Op::LeaseGrant(request), caller.clone())
        .await?
    {
        Reply::LeaseGrant(response) => Ok(response.id),
        other => Err(unexpected(&other)),
    }
}
