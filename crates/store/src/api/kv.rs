//! Range, Put, DeleteRange, Txn, Compact.

use std::sync::Arc;

use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{Answers, Caller, Context, unexpected};
use crate::mvcc;
use crate::pb::etcdserverpb as rpc;
use crate::pb::orlop::store::command::Op;
use crate::propose::Reply;
use crate::wire::RangeResponse;

/// Pairs of one message of a streamed range.
const PAGE: i64 = 1000;

#[derive(Clone)]
pub struct Kv(pub Arc<Context>);

impl Kv {
    async fn read(
        &self,
        request: &rpc::RangeRequest,
        caller: &Caller,
    ) -> Result<RangeResponse, Status> {
        mvcc::check_range(request)?;
        if !request.serializable {
            self.0.voter()?;
            self.0.node.read().await?;
        }
        let found = {
            let machine = self.0.node.machine.read();
            machine.permit_range(request, caller)?;
            mvcc::find(&machine.kv, request, machine.kv.revision())?
        };
        // What has to come from the disk comes without the lock, for which writes wait.
        let mut response = found.read();
        self.0.complete(&mut response.header);
        Ok(response)
    }
}

/// A transaction without puts and deletes needs no log.
fn is_read_only(request: &rpc::TxnRequest) -> bool {
    use rpc::request_op::Request;
    request
        .success
        .iter()
        .chain(&request.failure)
        .all(|op| match &op.request {
            Some(Request::RequestRange(_)) => true,
            Some(Request::RequestTxn(request)) => is_read_only(request),
            _ => false,
        })
}

fn is_serializable(request: &rpc::TxnRequest) -> bool {
    use rpc::request_op::Request;
    request
        .success
        .iter()
        .chain(&request.failure)
        .all(|op| match &op.request {
            Some(Request::RequestRange(request)) => request.serializable,
            Some(Request::RequestTxn(request)) => is_serializable(request),
            _ => false,
        })
}

#[tonic::async_trait]
impl rpc::kv_server::Kv for Kv {
    async fn range(
        &self,
        request: Request<rpc::RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let caller = self.0.admit(&request)?;
        Ok(Response::new(self.read(request.get_ref(), &caller).await?))
    }

    type RangeStreamStream = Answers<rpc::RangeStreamResponse>;

    /// The same answer in pieces, of one revision: merged they are what Range says.
    async fn range_stream(
        &self,
        request: Request<rpc::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let caller = self.0.admit(&request)?;
        let request = request.into_inner();
        // Only in the order of the index can a piece be answered without the others.
        let whole = request.sort_order != 0
            || request.sort_target != 0
            || request.count_only
            || [
                request.min_mod_revision,
                request.max_mod_revision,
                request.min_create_revision,
                request.max_create_revision,
            ]
            .iter()
            .any(|n| *n != 0);
        let first = rpc::RangeRequest {
            limit: if whole || (request.limit > 0 && request.limit < PAGE) {
                request.limit
            } else {
                PAGE
            },
            ..request.clone()
        };
        let response = self.read(&first, &caller).await?;
        let revision = match request.revision {
            0 => response.header.as_ref().map_or(0, |h| h.revision),
            revision => revision,
        };
        let state = (self.clone(), request, Some(response), 0_i64);
        let caller = Arc::new(caller);
        let pieces = futures_util::stream::unfold(state, move |(kv, request, next, sent)| {
            let caller = caller.clone();
            async move {
                let mut response = next?;
                let sent = sent + i64::try_from(response.kvs.len()).unwrap_or(i64::MAX);
                let left = if request.limit > 0 {
                    request.limit - sent
                } else {
                    i64::MAX
                };
                let last = response
                    .kvs
                    .last()
                    .map(|pair| mvcc::view(pair).key.to_vec());
                let following = match last {
                    Some(mut key) if !whole && response.more && left > 0 => {
                        // The next key in order is the last one and a zero byte.
                        key.push(0);
                        response.more = false;
                        let following = rpc::RangeRequest {
                            key,
                            revision,
                            limit: left.min(PAGE),
                            serializable: true,
                            ..request.clone()
                        };
                        match kv.read(&following, &caller).await {
                            Ok(mut following) => {
                                // Counted once, in the first piece.
                                following.count = 0;
                                following.header = None;
                                Some(following)
                            }
                            Err(status) => return Some((Err(status), (kv, request, None, sent))),
                        }
                    }
                    _ => None,
                };
                let piece = rpc::RangeStreamResponse {
                    range_response: Some(response),
                };
                Some((Ok(piece), (kv, request, following, sent)))
            }
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn put(
        &self,
        request: Request<rpc::PutRequest>,
    ) -> Result<Response<rpc::PutResponse>, Status> {
        let caller = self.0.admit(&request)?;
        let request = request.into_inner();
        mvcc::check_put(&request)?;
        self.0.voter()?;
        self.0
            .within_quota(request.key.len() + request.value.len())
            .await?;
        match self.0.propose(Op::Put(request), caller).await? {
            Reply::Put(mut response) => {
                self.0.complete(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<rpc::DeleteRangeRequest>,
    ) -> Result<Response<rpc::DeleteRangeResponse>, Status> {
        let caller = self.0.admit(&request)?;
        let request = request.into_inner();
        mvcc::check_delete(&request)?;
        self.0.voter()?;
        match self.0.propose(Op::DeleteRange(request), caller).await? {
            Reply::DeleteRange(mut response) => {
                self.0.complete(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn txn(
        &self,
        request: Request<rpc::TxnRequest>,
    ) -> Result<Response<rpc::TxnResponse>, Status> {
        let caller = self.0.admit(&request)?;
        let request = request.into_inner();
        mvcc::check_txn(&request, self.0.limits.txn_ops)?;
        self.0.voter()?;
        let mut response = if is_read_only(&request) {
            if !is_serializable(&request) {
                self.0.node.read().await?;
            }
            let seen = {
                let machine = self.0.node.machine.read();
                machine.permit_txn(&request, &caller)?;
                mvcc::look(&machine.kv, &request)?
            };
            seen.read()
        } else {
            if crate::machine::writes(&request) {
                self.0.within_quota(request.encoded_len()).await?;
            }
            match self.0.propose(Op::Txn(request), caller).await? {
                Reply::Txn(response) => response,
                other => return Err(unexpected(&other)),
            }
        };
        self.0.complete(&mut response.header);
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<rpc::CompactionRequest>,
    ) -> Result<Response<rpc::CompactionResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.0.voter()?;
        let request = request.into_inner();
        let physical = request.physical;
        match self.0.propose(Op::Compact(request), caller).await? {
            Reply::Compact => {}
            other => return Err(unexpected(&other)),
        }
        while physical && self.0.node.machine.read().wants_reclaim() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        Ok(Response::new(rpc::CompactionResponse {
            header: self.0.current_header(),
        }))
    }
}
