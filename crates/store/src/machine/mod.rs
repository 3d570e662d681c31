//! The replicated state, and what each command does to it. The same commands in the same order give the same state
//! on every member: nothing here asks the clock, the disk or the network.

pub mod checkpoint;
pub mod lease;
pub mod members;
mod permit;

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::RwLock;
use raft::eraftpb::ConfState;

use crate::auth::{Auth, Identity, Tokens, Void};
use crate::error::{self, Error};
use crate::mvcc::{self, Change, view};
use crate::pb::etcdserverpb as rpc;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::orlop::store::auth_command::Op as AuthOp;
use crate::pb::orlop::store::command::Op;
use crate::pb::orlop::store::{Command, MemberChange};
use crate::propose::Reply;
use crate::v2;
use lease::Leases;
use members::Members;

/// The state as its readers share it.
pub type Shared = Arc<RwLock<Machine>>;

#[derive(Debug, Default)]
pub struct Machine {
    pub kv: mvcc::Store,
    pub leases: Leases,
    pub members: Members,
    pub alarms: BTreeSet<(u64, i32)>,
    pub auth: Auth,
    /// Shared with those who serve it by HTTP; nobody else changes it.
    pub v2: Arc<v2::Shared>,
    /// Who has logged in, as this member knows it.
    pub tokens: Option<Arc<Tokens>>,
    /// The time of day at which `now` was zero.
    pub epoch: Duration,
    pub cluster_id: u64,
    /// The last entry whose effect is in here.
    pub applied: u64,
    pub applied_term: u64,
    pub conf: ConfState,
    /// How often a leader's state has taken the place of this member's own: what is read in pieces is of one of them.
    pub generation: u64,
    /// What checkpoints in the making still read.
    pins: Vec<(i64, Weak<()>)>,
    /// What watchers have not been told yet.
    changes: Vec<Change>,
}

/// As long as it lives, compaction frees nothing that the holder reads.
pub type Pin = Arc<()>;

impl Machine {
    pub fn pin(&mut self) -> Pin {
        let pin = Arc::new(());
        self.pins
            .push((self.kv.compact_revision(), Arc::downgrade(&pin)));
        pin
    }

    pub fn wants_reclaim(&self) -> bool {
        self.kv.wants_reclaim()
    }

    /// Frees some of what compaction gave up; says whether there is more.
    pub fn reclaim(&mut self, steps: usize) -> bool {
        self.pins.retain(|(_, pin)| pin.strong_count() > 0);
        let pinned = self.pins.iter().map(|(revision, _)| *revision).min();
        self.kv.reclaim(steps, pinned)
    }

    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    pub fn alarmed(&self, kind: rpc::AlarmType) -> bool {
        self.alarms.iter().any(|(_, alarm)| *alarm == kind as i32)
    }

    pub fn apply(&mut self, command: &Command, now: Duration) -> Result<Reply, Error> {
        let op = command
            .op
            .as_ref()
            .ok_or_else(|| Error::internal("etcdserver: empty command"))?;
        self.refuse(op)?;
        if self.auth.enabled() && command.id != 0 && !matches!(op, Op::V2(_)) {
            let identity = Identity {
                user: command.user.clone(),
                revision: command.auth_revision,
            };
            self.permit(op, &identity)?;
        }
        match op {
            Op::Put(request) => {
                let leases = &self.leases;
                let mut write = self.kv.write();
                let reply = mvcc::put(&mut write, request, &|id| leases.exists(id))?;
                let changes = write.finish();
                self.record(changes);
                Ok(Reply::Put(reply))
            }
            Op::DeleteRange(request) => {
                let mut write = self.kv.write();
                let reply = mvcc::delete(&mut write, request);
                let changes = write.finish();
                self.record(changes);
                Ok(Reply::DeleteRange(reply))
            }
            Op::Txn(request) => {
                let leases = &self.leases;
                let mut write = self.kv.write();
                let reply = mvcc::execute(&mut write, request, &|id| leases.exists(id))?;
                let changes = write.finish();
                self.record(changes);
                Ok(Reply::Txn(reply))
            }
            Op::Compact(request) => self.kv.compact(request.revision).map(|()| Reply::Compact),
            Op::LeaseGrant(request) => {
                let revision = self.kv.revision();
                let ttl = self.leases.grant(request.id, request.ttl, revision, now)?;
                Ok(Reply::LeaseGrant(rpc::LeaseGrantResponse {
                    id: request.id,
                    ttl,
                    ..Default::default()
                }))
            }
            Op::LeaseRevoke(request) => {
                let lease = self.leases.revoke(request.id)?;
                let mut write = self.kv.write();
                for key in &lease.keys {
                    write.delete(key, &[]);
                }
                let changes = write.finish();
                self.record(changes);
                Ok(Reply::LeaseRevoke)
            }
            Op::Alarm(request) => Ok(Reply::Alarm(self.alarm(request))),
            Op::Attributes(attributes) => {
                if let Some(member) = self.members.all.get_mut(&attributes.id) {
                    member.name.clone_from(&attributes.name);
                    member.client_ur_ls.clone_from(&attributes.client_urls);
                }
                Ok(Reply::Attributes)
            }
            Op::Auth(command) => {
                let op = command.op.as_ref().ok_or(error::NOT_CAPABLE)?;
                let void = self.auth.apply(op)?;
                if let Some(tokens) = &self.tokens {
                    if let AuthOp::Token(login) = op {
                        tokens.learn(&login.token, &login.user, self.epoch + now);
                    }
                    if void != Void::Nobody {
                        tokens.forget(&void);
                    }
                }
                Ok(Reply::Auth)
            }
            Op::V2(bytes) => {
                let request = <v2::Request as prost::Message>::decode(bytes.as_slice())
                    .map_err(|_| Error::internal("etcdserver: a v2 request that makes no sense"))?;
                Ok(Reply::V2(self.v2.write().apply(&request)))
            }
        }
    }

    /// What an alarm forbids.
    fn refuse(&self, op: &Op) -> Result<(), Error> {
        if self.alarms.is_empty() {
            return Ok(());
        }
        if self.alarmed(rpc::AlarmType::Corrupt) && !matches!(op, Op::Alarm(_)) {
            return Err(error::CORRUPT);
        }
        let grows = match op {
            Op::Put(_) | Op::LeaseGrant(_) => true,
            Op::Txn(request) => writes(request),
            _ => false,
        };
        if grows && self.alarmed(rpc::AlarmType::Nospace) {
            return Err(error::NO_SPACE);
        }
        Ok(())
    }

    fn alarm(&mut self, request: &rpc::AlarmRequest) -> rpc::AlarmResponse {
        let of = |(member_id, alarm): (u64, i32)| rpc::AlarmMember { member_id, alarm };
        let chosen = |(member, alarm): &(u64, i32)| {
            (request.member_id == 0 || request.member_id == *member)
                && (request.alarm == 0 || request.alarm == *alarm)
        };
        let alarms = match request.action() {
            AlarmAction::Get => self.alarms.iter().copied().filter(chosen).map(of).collect(),
            AlarmAction::Activate => {
                if request.alarm == 0 {
                    Vec::new()
                } else {
                    self.alarms.insert((request.member_id, request.alarm));
                    vec![of((request.member_id, request.alarm))]
                }
            }
            AlarmAction::Deactivate => {
                let gone: Vec<_> = self.alarms.iter().copied().filter(chosen).collect();
                self.alarms.retain(|alarm| !gone.contains(alarm));
                gone.into_iter().map(of).collect()
            }
        };
        rpc::AlarmResponse {
            header: None,
            alarms,
        }
    }

    /// Keeps the leases' lists of keys, and remembers what watchers have to hear.
    fn record(&mut self, changes: Vec<Change>) {
        // Without leases no key has one.
        let looked_at = if self.leases.is_empty() {
            &[]
        } else {
            changes.as_slice()
        };
        for change in looked_at {
            let before = change
                .previous
                .as_ref()
                .map_or(0, |pair| view(&pair.load()).lease);
            let after = view(&change.version.pair).lease;
            if before != after {
                if before != 0 {
                    self.leases.detach(before, &change.key);
                }
                if after != 0 {
                    self.leases.attach(after, &change.key);
                }
            }
        }
        self.changes.extend(changes);
    }

    /// Whether a change of members still makes sense when it is its turn.
    pub fn check_change(&self, change: &MemberChange) -> Result<(), Error> {
        match &change.member {
            None => self.members.check_remove(change.id),
            Some(_) if change.promote => self.members.check_promote(change.id),
            Some(member) if change.update => {
                self.members.check_update(change.id, &member.peer_ur_ls)
            }
            Some(member) => self.members.check_add(member),
        }
    }

    /// The configuration that Raft derived from it is set by the caller.
    pub fn change_members(&mut self, change: &MemberChange) {
        match &change.member {
            None => {
                self.members.all.remove(&change.id);
                self.members.removed.insert(change.id);
                self.alarms.retain(|(member, _)| *member != change.id);
            }
            Some(member) => {
                let known = self
                    .members
                    .all
                    .entry(change.id)
                    .or_insert_with(|| member.clone());
                if change.promote {
                    known.is_learner = false;
                } else if change.update {
                    known.peer_ur_ls.clone_from(&member.peer_ur_ls);
                }
            }
        }
    }
}

/// Whether a transaction has a put in it anywhere.
pub fn writes(request: &rpc::TxnRequest) -> bool {
    use rpc::request_op::Request;
    request
        .success
        .iter()
        .chain(&request.failure)
        .any(|op| match &op.request {
            Some(Request::RequestPut(_)) => true,
            Some(Request::RequestTxn(request)) => writes(request),
            _ => false,
        })
}
