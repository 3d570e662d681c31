//! Answers to Range.

use std::cmp::Ordering;

use super::{Store, Version, View, view};
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

/// `current` is the revision that the reader sees as the newest.
pub fn range(store: &Store, request: &RangeRequest, current: i64) -> Result<RangeResponse, Error> {
    let revision = if request.revision <= 0 {
        current
    } else if request.revision > current {
        return Err(error::FUTURE_REVISION);
    } else if request.revision < store.compact_revision() {
        return Err(error::COMPACTED);
    } else {
        request.revision
    };
    let mut response = RangeResponse {
        header: Some(crate::pb::etcdserverpb::ResponseHeader {
            revision: current,
            ..Default::default()
        }),
        ..RangeResponse::default()
    };
    let mut alive = store.slots(&request.key, &request.range_end, revision);
    if request.count_only {
        response.count = signed(alive.count());
        return Ok(response);
    }

    let order = match (request.sort_order(), request.sort_target()) {
        // The order of the index.
        (SortOrder::None | SortOrder::Ascend, SortTarget::Key) => None,
        (SortOrder::None, target) => Some((SortOrder::Ascend, target)),
        (order, target) => Some((order, target)),
    };
    let filtered = request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0;
    let limit = usize::try_from(request.limit).ok().filter(|n| *n > 0);

    let mut pairs: Vec<Version> = Vec::new();
    if order.is_none() && !filtered {
        let wanted = limit.unwrap_or(usize::MAX);
        pairs.extend(
            alive
                .by_ref()
                .take(wanted)
                .map(|(_, slot)| store.read(slot)),
        );
        let rest = alive.count();
        response.count = signed(pairs.len() + rest);
        response.more = rest > 0;
    } else {
        let mut count = 0;
        for (_, slot) in alive {
            count += 1;
            let version = store.read(slot);
            if !filtered || passes(request, &version) {
                pairs.push(version);
            }
        }
        response.count = signed(count);
        if let Some((order, target)) = order {
            pairs.sort_by(|a, b| {
                let ordering = compare(target, &view(&a.pair), &view(&b.pair));
                if order == SortOrder::Descend {
                    ordering.reverse()
                } else {
                    ordering
                }
            });
        }
        if let Some(limit) = limit.filter(|n| *n < pairs.len()) {
            pairs.truncate(limit);
            response.more = true;
        }
    }
    response.kvs = pairs
        .into_iter()
        .map(|version| {
            if request.keys_only {
                without_value(&version.pair)
            } else {
                version.pair
            }
        })
        .collect();
    Ok(response)
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
