//! Put, DeleteRange and Txn: what they refuse, and what they do.

use std::collections::HashSet;

use super::range::{Found, find};
use super::{Store, View, Write, contains, range, view};
use crate::error::{self, Error};
use crate::pb::etcdserverpb as rpc;
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::response_op::Response;

/// Whether a lease exists.
type Leases<'a> = &'a dyn Fn(i64) -> bool;

pub fn check_put(request: &rpc::PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        Err(error::EMPTY_KEY)
    } else if request.ignore_value && !request.value.is_empty() {
        Err(error::VALUE_PROVIDED)
    } else if request.ignore_lease && request.lease != 0 {
        Err(error::LEASE_PROVIDED)
    } else {
        Ok(())
    }
}

pub fn check_delete(request: &rpc::DeleteRangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        Err(error::EMPTY_KEY)
    } else {
        Ok(())
    }
}

/// Refuses a transaction that is too long, malformed, or writes a key twice.
pub fn check(request: &rpc::TxnRequest, max_ops: usize) -> Result<(), Error> {
    check_shape(request, max_ops)?;
    written(&request.success)?;
    written(&request.failure)?;
    Ok(())
}

fn check_shape(request: &rpc::TxnRequest, max_ops: usize) -> Result<(), Error> {
    let ops = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    if ops > max_ops {
        return Err(error::TOO_MANY_OPS);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(error::EMPTY_KEY);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => super::check_range(request)?,
            Some(Request::RequestPut(request)) => check_put(request)?,
            Some(Request::RequestDeleteRange(request)) => check_delete(request)?,
            Some(Request::RequestTxn(request)) => check_shape(request, max_ops - ops)?,
            // What etcd says of an operation without content.
            None => return Err(error::KEY_NOT_FOUND),
        }
    }
    Ok(())
}

#[derive(Default)]
struct Written<'a> {
    puts: HashSet<&'a [u8]>,
    deletes: Vec<(&'a [u8], &'a [u8])>,
}

impl Written<'_> {
    fn deleted(&self, key: &[u8]) -> bool {
        self.deletes
            .iter()
            .any(|(from, end)| contains(from, end, key))
    }
}

/// The keys that a branch writes, if none is written twice. The two branches of a nested transaction exclude each
/// other, so they may write the same key.
fn written(ops: &[rpc::RequestOp]) -> Result<Written<'_>, Error> {
    let mut all = Written::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(request)) = &op.request {
            all.deletes.push((&request.key, &request.range_end));
        }
    }
    for op in ops {
        let Some(Request::RequestTxn(request)) = &op.request else {
            continue;
        };
        let success = written(&request.success)?;
        let failure = written(&request.failure)?;
        for key in success
            .puts
            .iter()
            .chain(failure.puts.difference(&success.puts))
        {
            if all.deleted(key) || !all.puts.insert(key) {
                return Err(error::DUPLICATE_KEY);
            }
        }
        all.deletes.extend(success.deletes);
        all.deletes.extend(failure.deletes);
    }
    for op in ops {
        let Some(Request::RequestPut(request)) = &op.request else {
            continue;
        };
        if all.deleted(&request.key) || !all.puts.insert(&request.key) {
            return Err(error::DUPLICATE_KEY);
        }
    }
    Ok(all)
}

fn header(revision: i64) -> Option<rpc::ResponseHeader> {
    Some(rpc::ResponseHeader {
        revision,
        ..Default::default()
    })
}

/// A transaction in another one: only the outermost says its revision.
fn inner(response: rpc::TxnResponse) -> Response {
    Response::ResponseTxn(rpc::TxnResponse {
        header: Some(rpc::ResponseHeader::default()),
        ..response
    })
}

fn check_put_against(
    store: &Store,
    request: &rpc::PutRequest,
    leases: Leases<'_>,
) -> Result<(), Error> {
    if (request.ignore_value || request.ignore_lease) && !store.has(&request.key) {
        return Err(error::KEY_NOT_FOUND);
    }
    if request.lease != 0 && !leases(request.lease) {
        return Err(error::LEASE_NOT_FOUND);
    }
    Ok(())
}

pub fn put(
    write: &mut Write<'_>,
    request: &rpc::PutRequest,
    leases: Leases<'_>,
) -> Result<rpc::PutResponse, Error> {
    check_put_against(write.store(), request, leases)?;
    let previous = if request.ignore_value || request.ignore_lease {
        write.store().get(&request.key).map(|version| version.pair)
    } else {
        None
    };
    let previous = previous.as_ref().map(|pair| view(pair)).unwrap_or_default();
    let value = if request.ignore_value {
        previous.value
    } else {
        &request.value
    };
    let lease = if request.ignore_lease {
        previous.lease
    } else {
        request.lease
    };
    let replaced = write.put(&request.key, value, lease);
    Ok(rpc::PutResponse {
        header: header(write.revision()),
        prev_kv: replaced
            .filter(|_| request.prev_kv)
            .map(|pair| pair.key_value()),
    })
}

pub fn delete(
    write: &mut Write<'_>,
    request: &rpc::DeleteRangeRequest,
) -> rpc::DeleteRangeResponse {
    let gone = write.delete(&request.key, &request.range_end);
    rpc::DeleteRangeResponse {
        header: header(write.revision()),
        deleted: i64::try_from(gone.len()).unwrap_or(i64::MAX),
        prev_kvs: if request.prev_kv {
            gone.iter().map(|pair| pair.load().key_value()).collect()
        } else {
            Vec::new()
        },
    }
}

/// Which branch each transaction takes, this one and the nested ones: all decided before anything is written.
struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

fn decide(store: &Store, request: &rpc::TxnRequest) -> Path {
    let succeeded = request.compare.iter().all(|compare| holds(store, compare));
    let nested = branch(request, succeeded)
        .iter()
        .filter_map(|op| match &op.request {
            Some(Request::RequestTxn(request)) => Some(decide(store, request)),
            _ => None,
        })
        .collect();
    Path { succeeded, nested }
}

fn branch(request: &rpc::TxnRequest, succeeded: bool) -> &[rpc::RequestOp] {
    if succeeded {
        &request.success
    } else {
        &request.failure
    }
}

fn holds(store: &Store, compare: &rpc::Compare) -> bool {
    let mut found = store
        .alive(&compare.key, &compare.range_end, i64::MAX)
        .peekable();
    if found.peek().is_none() {
        // An absent key has no value to compare with; its numbers are zero.
        return compare.target() != CompareTarget::Value && holds_for(compare, &View::default());
    }
    found.all(|(_, version)| holds_for(compare, &view(&version.pair)))
}

fn holds_for(compare: &rpc::Compare, pair: &View<'_>) -> bool {
    let union = compare.target_union.as_ref();
    let ordering = match compare.target() {
        CompareTarget::Value => {
            let wanted: &[u8] = match union {
                Some(TargetUnion::Value(value)) => value,
                _ => &[],
            };
            pair.value.cmp(wanted)
        }
        target => {
            let (number, wanted) = match (target, union) {
                (CompareTarget::Version, Some(TargetUnion::Version(n))) => (pair.version, *n),
                (CompareTarget::Create, Some(TargetUnion::CreateRevision(n))) => {
                    (pair.create_revision, *n)
                }
                (CompareTarget::Mod, Some(TargetUnion::ModRevision(n))) => (pair.mod_revision, *n),
                (CompareTarget::Lease, Some(TargetUnion::Lease(n))) => (pair.lease, *n),
                (CompareTarget::Version, _) => (pair.version, 0),
                (CompareTarget::Create, _) => (pair.create_revision, 0),
                (CompareTarget::Mod, _) => (pair.mod_revision, 0),
                _ => (pair.lease, 0),
            };
            number.cmp(&wanted)
        }
    };
    match compare.result() {
        CompareResult::Equal => ordering.is_eq(),
        CompareResult::NotEqual => ordering.is_ne(),
        CompareResult::Greater => ordering.is_gt(),
        CompareResult::Less => ordering.is_lt(),
    }
}

fn check_path(
    store: &Store,
    request: &rpc::TxnRequest,
    path: &Path,
    leases: Leases<'_>,
) -> Result<(), Error> {
    let mut nested = path.nested.iter();
    for op in branch(request, path.succeeded) {
        match &op.request {
            Some(Request::RequestRange(request)) if request.revision > 0 => {
                store.check_revision(request.revision)?;
            }
            Some(Request::RequestPut(request)) => check_put_against(store, request, leases)?,
            Some(Request::RequestTxn(request)) => {
                if let Some(path) = nested.next() {
                    check_path(store, request, path, leases)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// All of the transaction, or nothing of it.
pub fn execute(
    write: &mut Write<'_>,
    request: &rpc::TxnRequest,
    leases: Leases<'_>,
) -> Result<rpc::TxnResponse, Error> {
    let path = decide(write.store(), request);
    check_path(write.store(), request, &path, leases)?;
    follow(write, request, &path, leases)
}

fn follow(
    write: &mut Write<'_>,
    request: &rpc::TxnRequest,
    path: &Path,
    leases: Leases<'_>,
) -> Result<rpc::TxnResponse, Error> {
    let mut nested = path.nested.iter();
    let mut responses = Vec::new();
    for op in branch(request, path.succeeded) {
        let response = match &op.request {
            Some(Request::RequestRange(request)) => {
                let current = write.revision();
                Some(Response::ResponseRange(range(
                    write.store(),
                    request,
                    current,
                )?))
            }
            Some(Request::RequestPut(request)) => {
                Some(Response::ResponsePut(put(write, request, leases)?))
            }
            Some(Request::RequestDeleteRange(request)) => {
                Some(Response::ResponseDeleteRange(delete(write, request)))
            }
            Some(Request::RequestTxn(request)) => match nested.next() {
                Some(path) => Some(inner(follow(write, request, path, leases)?)),
                None => None,
            },
            None => None,
        };
        responses.push(rpc::ResponseOp { response });
    }
    Ok(rpc::TxnResponse {
        header: header(write.revision()),
        succeeded: path.succeeded,
        responses,
    })
}

/// What a transaction that only reads came to. Its pairs may have to be read first, without a lock on the store.
#[derive(Debug)]
pub struct Seen<'a> {
    revision: i64,
    succeeded: bool,
    parts: Vec<Part<'a>>,
}

#[derive(Debug)]
enum Part<'a> {
    Range(Found<'a>),
    Txn(Seen<'a>),
    Nothing,
}

/// A transaction that only reads.
pub fn look<'a>(store: &Store, request: &'a rpc::TxnRequest) -> Result<Seen<'a>, Error> {
    let path = decide(store, request);
    check_path(store, request, &path, &|_| true)?;
    see(store, request, &path)
}

fn see<'a>(store: &Store, request: &'a rpc::TxnRequest, path: &Path) -> Result<Seen<'a>, Error> {
    let mut nested = path.nested.iter();
    let mut parts = Vec::new();
    for op in branch(request, path.succeeded) {
        parts.push(match &op.request {
            Some(Request::RequestRange(request)) => {
                Part::Range(find(store, request, store.revision())?)
            }
            Some(Request::RequestTxn(request)) => match nested.next() {
                Some(path) => Part::Txn(see(store, request, path)?),
                None => Part::Nothing,
            },
            _ => Part::Nothing,
        });
    }
    Ok(Seen {
        revision: store.revision(),
        succeeded: path.succeeded,
        parts,
    })
}

impl Seen<'_> {
    pub fn read(self) -> rpc::TxnResponse {
        let response = |part| match part {
            Part::Range(found) => Some(Response::ResponseRange(found.read())),
            Part::Txn(seen) => Some(inner(seen.read())),
            Part::Nothing => None,
        };
        let responses = self.parts.into_iter().map(|part| rpc::ResponseOp {
            response: response(part),
        });
        rpc::TxnResponse {
            header: header(self.revision),
            succeeded: self.succeeded,
            responses: responses.collect(),
        }
    }
}
