//! The gRPC services. Each call checks, proposes or reads, and gives the answer its header.

mod auth;
mod cluster;
mod election;
mod health;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod v2;
mod watch;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::Stream;
use tonic::{Code, Request, Status};

pub use auth::Auth;
pub use cluster::{Cluster, promote_here};
pub use election::Election;
pub use health::Health;
pub use kv::Kv;
pub use lease::{Lease, remaining_here, renew_here};
pub use lock::Lock;
pub use maintenance::Maintenance;
pub use v2::V2;
pub use watch::Watch;

use crate::auth::Tokens;
use crate::config::Server;
use crate::error::{self, Error};
use crate::http::Peer;
use crate::machine::Machine;
use crate::node::Node;
use crate::pb::etcdserverpb::{self as rpc, ResponseHeader};
use crate::pb::orlop::store::command::Op;
use crate::peer::Peers;
use crate::propose::Reply;

/// The version of etcd whose API this is.
pub const VERSION: &str = "3.6.0";
pub const CLUSTER_VERSION: &str = "3.6.0";

pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Debug, Clone)]
pub struct Limits {
    pub quota: u64,
    pub txn_ops: usize,
    pub request_bytes: usize,
}

/// What all services share.
pub struct Context {
    pub node: Arc<Node>,
    pub peers: Arc<Peers>,
    pub cluster_id: u64,
    pub limits: Limits,
    pub tokens: Arc<Tokens>,
    pub v2: Arc<crate::v2::Shared>,
    pub bcrypt_cost: u32,
    /// Whether the name in a client's certificate counts.
    pub cert_auth: bool,
    pub name: String,
    pub started: jiff::Timestamp,
    /// The alarm is on its way; one is enough.
    raising: AtomicBool,
}

/// In whose name a request comes, and by which state of the permissions.
pub type Caller = crate::auth::Identity;

impl Context {
    pub fn new(
        node: Arc<Node>,
        peers: Arc<Peers>,
        cluster_id: u64,
        config: &Server,
        tokens: Arc<Tokens>,
    ) -> Arc<Self> {
        let tree = node.machine.read().v2.clone();
        Arc::new(Self {
            node,
            peers,
            cluster_id,
            limits: Limits {
                quota: config.quota(),
                txn_ops: config.max_txn_ops,
                request_bytes: config.max_request_bytes,
            },
            tokens,
            v2: tree,
            bcrypt_cost: config.bcrypt_cost,
            cert_auth: config.client_cert_auth,
            name: config.name.clone(),
            started: jiff::Timestamp::now(),
            raising: AtomicBool::new(false),
        })
    }

    /// The time of day, by which tokens are kept.
    pub fn time_of_day(&self) -> std::time::Duration {
        self.node.machine.read().epoch + self.node.now()
    }

    pub fn header(&self, revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.node.member,
            revision,
            raft_term: self.node.standing().term,
        })
    }

    pub fn current_header(&self) -> Option<ResponseHeader> {
        let revision = self.node.machine.read().kv.revision();
        self.header(revision)
    }

    /// Completes the header of an answer that knows its revision.
    fn complete(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |h| h.revision);
        *header = self.header(revision);
    }

    /// Checks what comes before any request is looked at.
    fn admit<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        self.led(request)?;
        let machine = self.node.machine.read();
        if !machine.auth.enabled() {
            return Ok(Caller::default());
        }
        let (token, name) = self.shown(request);
        Ok(self.caller(&machine, token, name)?)
    }

    /// Whether there is a leader, where the client wants one.
    fn led<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let wanted = request.metadata().get("hasleader");
        if wanted.is_some_and(|v| v == "true") && self.node.standing().leader == 0 {
            return Err(error::NO_LEADER.into());
        }
        Ok(())
    }

    /// The token that comes with a request, and the name in the certificate of its connection, if that counts.
    fn shown<'a, T>(&self, request: &'a Request<T>) -> (Option<&'a str>, Option<&'a str>) {
        let metadata = request.metadata();
        let token = ["token", "authorization"]
            .into_iter()
            .find_map(|name| metadata.get(name)?.to_str().ok());
        let name = request
            .extensions()
            .get::<Peer>()
            .filter(|_| self.cert_auth)
            .and_then(|peer| peer.common_name.as_deref());
        (token, name)
    }

    /// Whose these are now.
    fn caller(
        &self,
        machine: &Machine,
        token: Option<&str>,
        name: Option<&str>,
    ) -> Result<Caller, Error> {
        let now = machine.epoch + self.node.now();
        self.tokens.caller(&machine.auth, token, name, now)
    }

    /// The same, for what only administrators may.
    fn admit_admin<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = self.admit(request)?;
        self.node.machine.read().auth.permits_admin(&caller)?;
        Ok(caller)
    }

    fn voter(&self) -> Result<(), Status> {
        if self.peers.is_learner() {
            Err(error::LEARNER_REFUSES.into())
        } else {
            Ok(())
        }
    }

    async fn propose(&self, op: Op, caller: Caller) -> Result<Reply, Status> {
        Ok(self
            .node
            .propose_as(op, caller.user, caller.revision)
            .await?)
    }

    /// Raises the alarm instead of growing beyond the quota.
    async fn within_quota(&self, more: usize) -> Result<(), Status> {
        if more > self.limits.request_bytes {
            return Err(error::REQUEST_TOO_LARGE.into());
        }
        let bytes = self.node.machine.read().kv.bytes();
        if bytes.saturating_add(more as u64) <= self.limits.quota {
            return Ok(());
        }
        if !self.raising.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                bytes,
                quota = self.limits.quota,
                "no space: writes are refused"
            );
            let raised = self
                .set_alarm(rpc::alarm_request::AlarmAction::Activate)
                .await;
            self.raising.store(false, Ordering::Release);
            raised?;
        }
        Err(error::NO_SPACE.into())
    }

    /// Raises or ends this member's alarm about space.
    pub async fn set_alarm(&self, action: rpc::alarm_request::AlarmAction) -> Result<(), Error> {
        let request = rpc::AlarmRequest {
            action: action as i32,
            member_id: self.node.member,
            alarm: rpc::AlarmType::Nospace as i32,
        };
        self.node
            .propose_as(Op::Alarm(request), String::new(), 0)
            .await
            .map(|_| ())
    }
}

/// An answer of another kind than the question: a defect of ours, said instead of hidden.
fn unexpected(reply: &Reply) -> Status {
    Status::new(
        Code::Internal,
        format!("etcdserver: unexpected answer {reply:?}"),
    )
}
