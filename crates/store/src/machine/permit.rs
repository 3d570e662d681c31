//! May they? Asked for every command when it is applied, because permissions may have changed since it was proposed.

use super::Machine;
use crate::auth::{Access, Identity};
use crate::error::Error;
use crate::pb::etcdserverpb as rpc;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::orlop::store::auth_command::Op as AuthOp;
use crate::pb::orlop::store::command::Op;

impl Machine {
    pub(super) fn permit(&self, op: &Op, identity: &Identity) -> Result<(), Error> {
        if !self.auth.enabled() {
            return Ok(());
        }
        match op {
            Op::Put(request) => self.permit_put(request, identity),
            Op::DeleteRange(request) => self.permit_delete(request, identity),
            Op::Txn(request) => self.permit_txn(request, identity),
            // The leader's own revocations of what has expired do not come here.
            Op::LeaseRevoke(request) => self.permit_lease(request.id, identity),
            Op::Auth(command) => match &command.op {
                // A login is checked before it is proposed; enabling makes the first administrator.
                Some(AuthOp::Token(_) | AuthOp::Enable(_)) => Ok(()),
                _ => self.auth.permits_admin(identity),
            },
            _ => Ok(()),
        }
    }

    fn permit_put(&self, request: &rpc::PutRequest, identity: &Identity) -> Result<(), Error> {
        self.auth
            .permits(identity, &request.key, &[], Access::Write)?;
        if request.lease != 0 {
            self.permit_lease(request.lease, identity)?;
        }
        if request.prev_kv {
            self.auth
                .permits(identity, &request.key, &[], Access::Read)?;
        }
        Ok(())
    }

    /// Whoever ends a lease, or hangs something on it, decides about all that hangs on it.
    fn permit_lease(&self, id: i64, identity: &Identity) -> Result<(), Error> {
        let Some(lease) = self.leases.get(id) else {
            return Ok(());
        };
        lease
            .keys
            .iter()
            .try_for_each(|key| self.auth.permits(identity, key, &[], Access::Write))
    }

    fn permit_delete(
        &self,
        request: &rpc::DeleteRangeRequest,
        identity: &Identity,
    ) -> Result<(), Error> {
        self.auth
            .permits(identity, &request.key, &request.range_end, Access::Write)?;
        if request.prev_kv {
            self.auth
                .permits(identity, &request.key, &request.range_end, Access::Read)?;
        }
        Ok(())
    }

    pub fn permit_range(
        &self,
        request: &rpc::RangeRequest,
        identity: &Identity,
    ) -> Result<(), Error> {
        self.auth
            .permits(identity, &request.key, &request.range_end, Access::Read)
    }

    pub fn permit_txn(&self, request: &rpc::TxnRequest, identity: &Identity) -> Result<(), Error> {
        if !self.auth.enabled() {
            return Ok(());
        }
        for compare in &request.compare {
            self.auth
                .permits(identity, &compare.key, &compare.range_end, Access::Read)?;
        }
        for op in request.success.iter().chain(&request.failure) {
            match &op.request {
                Some(Request::RequestRange(request)) => self.permit_range(request, identity)?,
                Some(Request::RequestPut(request)) => self.permit_put(request, identity)?,
                Some(Request::RequestDeleteRange(request)) => {
                    self.permit_delete(request, identity)?
                }
                Some(Request::RequestTxn(request)) => self.permit_txn(request, identity)?,
                None => {}
            }
        }
        Ok(())
    }

    pub fn permit_lease_keys(&self, id: i64, identity: &Identity) -> Result<(), Error> {
        let Some(lease) = self.leases.get(id) else {
            return Ok(());
        };
        lease
            .keys
            .iter()
            .try_for_each(|key| self.auth.permits(identity, key, &[], Access::Read))
    }
}
