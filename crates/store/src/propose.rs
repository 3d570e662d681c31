//! How an API changes the state: it proposes an operation and gets what came of it, once a majority has it on disk
//! and this member has applied it.

use std::future::Future;
use std::pin::Pin;

use crate::error::Error;
use crate::pb::etcdserverpb as rpc;
use crate::pb::orlop::store::command::Op;

pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What applying an operation gave. The variant is that of the operation.
#[derive(Debug)]
pub enum Reply {
    Put(rpc::PutResponse),
    DeleteRange(rpc::DeleteRangeResponse),
    Txn(rpc::TxnResponse),
    Compact,
    LeaseGrant(rpc::LeaseGrantResponse),
    LeaseRevoke,
    Alarm(rpc::AlarmResponse),
    Attributes,
    Auth,
    V2(crate::v2::Outcome),
}

/// The log, as the APIs see it.
pub trait Proposer: Send + Sync + 'static {
    /// Returns once the operation has been applied here.
    fn propose(&self, op: Op) -> Boxed<'_, Result<Reply, Error>>;

    /// Returns once whatever was acknowledged before the call has been applied here.
    fn read_barrier(&self) -> Boxed<'_, Result<(), Error>>;
}
