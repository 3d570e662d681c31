//! Answers to Range.

use std::cmp::Ordering;

use super::{Store, Unread, Version, View, view};
use crate::error::{self, Error};
use crate::pb::etcdserverpb::RangeRequest;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::wire::{Encoded, RangeResponse};

/// Refuses what no state could answer.
pub fn check(request: &RangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(error::EMPTY_KEY);
    }
    if SortOrder::try_from(request.sort_order).is_err()
        || SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(error::INVALID_SORT);
    }
    Ok(())
}

/// An answer whose pairs may have to be read first, which can be done without a lock on the store.
#[derive(Debug)]
pub struct Found<'a> {
    request: &'a RangeRequest,
    /// The newest revision when it was looked for.
    current: i64,
    count: usize,
    /// More than these, which are already as many as are wanted.
    more: bool,
    pairs: Vec<Unread>,
}

/// The limit, if there is one.
fn limit(request: &RangeRequest) -> Option<usize> {
    usize::try_from(request.limit).ok().filter(|n| *n > 0)
}

/// The order that is asked for, if it is not that of the index.
fn order(request: &RangeRequest) -> Option<(SortOrder, SortTarget)> {
    match (request.sort_order(), request.sort_target()) {
        (SortOrder::None | SortOrder::Ascend, SortTarget::Key) => None,
        (SortOrder::None, target) => Some((SortOrder::Ascend, target)),
        (order, target) => Some((order, target)),
    }
}

fn is_filtered(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// `current` is the revision that the reader sees as the newest.
pub fn find<'a>(
    store: &Store,
    request: &'a RangeRequest,
    current: i64,
) -> Result<Found<'a>, Error> {
    let revision = if request.revision <= 0 {
        current
    } else if request.revision > current {
        return Err(error::FUTURE_REVISION);
    } else if request.revision < store.compact_revision() {
        return Err(error::COMPACTED);
    } else {
        request.revision
    };
    let mut alive = store.slots(&request.key, &request.range_end, revision);
    let wanted = if request.count_only {
        0
    } else if order(request).is_none() && !is_filtered(request) {
        limit(request).unwrap_or(usize::MAX)
    } else {
        usize::MAX
    };
    let pairs: Vec<_> = alive
        .by_ref()
        .take(wanted)
        .map(|(_, slot)| store.unread(slot))
        .collect();
    let rest = alive.count();
    Ok(Found {
        request,
        current,
        count: pairs.len() + rest,
        more: rest > 0 && !request.count_only,
        pairs,
    })
}

pub fn range(store: &Store, request: &RangeRequest, current: i64) -> Result<RangeResponse, Error> {
    Ok(find(store, request, current)?.read())
}

impl Found<'_> {
    pub fn read(self) -> RangeResponse {
        let request = self.request;
        let mut pairs: Vec<Version> = Vec::new();
        for version in self.pairs.into_iter().map(Unread::read) {
            if !is_filtered(request) || passes(request, &version) {
                pairs.push(version);
            }
        }
        if let Some((order, target)) = order(request) {
            pairs.sort_by(|a, b| {
                let ordering = compare(target, &view(&a.pair), &view(&b.pair));
                if order == SortOrder::Descend {
                    ordering.reverse()
                } else {
                    ordering
                }
            });
        }
        let mut more = self.more;
        if let Some(limit) = limit(request).filter(|n| *n < pairs.len()) {
            pairs.truncate(limit);
            more = true;
        }
        let kvs = pairs
            .into_iter()
            .map(|version| {
                if request.keys_only {
                    without_value(&version.pair)
                } else {
                    version.pair
                }
            })
            .collect();
        RangeResponse {
            header: Some(crate::pb::etcdserverpb::ResponseHeader {
                revision: self.current,
                ..Default::default()
            }),
            kvs,
            more,
            count: signed(self.count),
        }
    }
}

fn without_value(pair: &Encoded) -> Encoded {
    View {
        value: &[],
        ..view(pair)
    }
    .encode()
}

fn passes(request: &RangeRequest, version: &Version) -> bool {
    let pair = view(&version.pair);
    let within = |number: i64, min: i64, max: i64| {
        (min == 0 || number >= min) && (max == 0 || number <= max)
    };
    within(
        pair.mod_revision,
        request.min_mod_revision,
        request.max_mod_revision,
    ) && within(
        pair.create_revision,
        request.min_create_revision,
        request.max_create_revision,
    )
}

fn compare(target: SortTarget, a: &View<'_>, b: &View<'_>) -> Ordering {
    match target {
        SortTarget::Key => a.key.cmp(b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(b.value),
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
