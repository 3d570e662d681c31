//! The payload of one segment.
//!
//! ```text
//! plan length, packed plan length, plan (zstd)
//! method: 0 nothing is left | 1 zstd | 2 bsdiff, then what the method needs
//!
//! plan    copies:  count; for each: blocks skipped in the new, blocks, distance in the old
//!         windows: count; for each: distance in the old, blocks
//! zstd    one frame, to the end, that may refer to the windows
//! bsdiff  control length, packed; diff packed; extra length, packed; then the three
//! ```
//!
//! *Copies* are 4 KiB blocks that lie somewhere in the old image as they are. What is left is put
//! together and described against the *windows*: stretches of the old image, put together too.

use std::io::{Read, Seek};

use crate::bytes::{Input, read_at};
use crate::{BLOCK, DeltaError, bsdiff, error, zstd};

/// Distances are small numbers of either sign: a copy usually goes on where the last one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    /// The first block in the segment.
    pub(crate) to: usize,
    /// The first block in the old image.
    pub(crate) from: u64,
    pub(crate) blocks: usize,
}

/// Blocks of the old image; the last one of an image may be short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) from: u64,
    pub(crate) blocks: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) copies: Vec<Copy>,
    pub(crate) windows: Vec<Stretch>,
}

pub(crate) const NOTHING: u8 = 0;
pub(crate) const ZSTD: u8 = 1;
pub(crate) const BSDIFF: u8 = 2;

/// What a segment may ask for.
pub(crate) struct Limits {
    pub(crate) segment_len: usize,
    pub(crate) window_size: usize,
    pub(crate) old_size: u64,
}

/// Kept between segments, so that memory is asked for once.
#[derive(Default)]
pub(crate) struct Scratch {
    window: Vec<u8>,
    rest: Vec<u8>,
    control: Vec<u8>,
    diff: Vec<u8>,
    extra: Vec<u8>,
}

impl Plan {
    #[cfg(feature = "make")]
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        use crate::bytes::{put_number, put_signed};
        let mut out = Vec::new();
        put_number(&mut out, self.copies.len() as u64);
        let (mut to, mut from) = (0, 0);
        for copy in &self.copies {
            put_number(&mut out, (copy.to - to) as u64);
            put_number(&mut out, copy.blocks as u64);
            put_signed(&mut out, copy.from.cast_signed() - from);
            to = copy.to + copy.blocks;
            from = copy.from.cast_signed() + copy.blocks as i64;
        }
        put_number(&mut out, self.windows.len() as u64);
        let mut from = 0;
        for window in &self.windows {
            put_signed(&mut out, window.from.cast_signed() - from);
            put_number(&mut out, window.blocks as u64);
            from = window.from.cast_signed() + window.blocks as i64;
        }
        out
    }

    fn parse(bytes: &[u8], limits: &Limits) -> Option<Self> {
        let old_blocks = i64::try_from(limits.old_size.div_ceil(BLOCK as u64)).ok()?;
        let whole = limits.segment_len / BLOCK;
        // From the old image's end of the last stretch; never outside of the image.
        let stretch = |last: i64, by: i64, blocks: usize| -> Option<(u64, i64)> {
            let start = last.checked_add(by)?;
            let end = start.checked_add(i64::try_from(blocks).ok()?)?;
            (start >= 0 && end <= old_blocks && blocks > 0).then_some((start.cast_unsigned(), end))
        };
        let mut input = Input(bytes);
        let mut plan = Self::default();
        let (mut to, mut last) = (0usize, 0);
        for _ in 0..input.length()? {
            to = to.checked_add(input.length()?)?;
            let blocks = input.length()?;
            let (from, end) = stretch(last, input.signed()?, blocks)?;
            plan.copies.push(Copy { to, from, blocks });
            to = to.checked_add(blocks)?;
            if to > whole {
                return None;
            }
            last = end;
        }
        let (mut sum, mut last) = (0usize, 0);
        for _ in 0..input.length()? {
            let by = input.signed()?;
            let blocks = input.length()?;
            let (from, end) = stretch(last, by, blocks)?;
            plan.windows.push(Stretch { from, blocks });
            sum = sum.checked_add(blocks)?;
            if sum > limits.window_size / BLOCK {
                return None;
            }
            last = end;
        }
        input.0.is_empty().then_some(plan)
    }

    pub(crate) fn copied(&self) -> usize {
        self.copies.iter().map(|copy| copy.blocks * BLOCK).sum()
    }

    /// The parts of the segment that no copy covers.
    pub(crate) fn gaps(&self, segment_len: usize) -> Vec<std::ops::Range<usize>> {
        let mut gaps = Vec::new();
        let mut at = 0;
        for copy in &self.copies {
            gaps.push(at..copy.to * BLOCK);
            at = (copy.to + copy.blocks) * BLOCK;
        }
        gaps.push(at..segment_len);
        gaps.retain(|gap| !gap.is_empty());
        gaps
    }
}

/// The windows' bytes, one after the other.
pub(crate) fn read_windows(
    windows: &[Stretch],
    old_size: u64,
    old: &mut (impl Read + Seek + ?Sized),
    out: &mut Vec<u8>,
) -> Result<(), DeltaError> {
    let range = |window: &Stretch| {
        let start = window.from * BLOCK as u64;
        let end = (start + (window.blocks * BLOCK) as u64).min(old_size);
        (
            start,
            usize::try_from(end.saturating_sub(start)).unwrap_or(0),
        )
    };
    let size: usize = windows.iter().map(|window| range(window).1).sum();
    // Growing step by step would end at up to twice of it. What is there is overwritten anyway.
    out.truncate(size);
    out.reserve_exact(size - out.len());
    out.resize(size, 0);
    let mut rest = out.as_mut_slice();
    for window in windows {
        let (start, len) = range(window);
        let (head, tail) = rest.split_at_mut(len);
        read_at(old, start, head).map_err(error::io("read the old image"))?;
        rest = tail;
    }
    Ok(())
}

/// Makes a segment of its payload. `out` has the segment's length.
pub(crate) fn decode(
    payload: &[u8],
    limits: &Limits,
    old: &mut (impl Read + Seek + ?Sized),
    scratch: &mut Scratch,
    out: &mut [u8],
) -> Result<(), DeltaError> {
    let damaged = |what| move || DeltaError::Damaged(what);
    let mut input = Input(payload);
    let short = damaged("a segment's plan is cut off");
    let plan_len = input.length().ok_or_else(&short)?;
    let packed = input
        .length()
        .and_then(|len| input.take(len))
        .ok_or_else(&short)?;
    // Each block of a segment can be a copy of its own, of some 12 bytes.
    if plan_len > (limits.segment_len + limits.window_size) / BLOCK * 32 + 64 {
        return Err(DeltaError::Damaged("a segment's plan is too long"));
    }
    let mut plan = vec![0; plan_len];
    zstd::decompress(packed, &[], &mut plan)?;
    let plan = Plan::parse(&plan, limits).ok_or_else(damaged("a segment's plan makes no sense"))?;

    for copy in &plan.copies {
        let to = copy.to * BLOCK..(copy.to + copy.blocks) * BLOCK;
        let from = copy.from * BLOCK as u64;
        read_at(old, from, &mut out[to]).map_err(error::io("read the old image"))?;
    }
    let rest_len = limits.segment_len - plan.copied();
    let [method] = input
        .array()
        .ok_or_else(damaged("a segment has no method"))?;
    if method == NOTHING && rest_len == 0 {
        return Ok(());
    }
    read_windows(&plan.windows, limits.old_size, old, &mut scratch.window)?;
    scratch.rest.resize(rest_len, 0);
    match method {
        ZSTD => zstd::decompress(input.0, &scratch.window, &mut scratch.rest)?,
        BSDIFF => unpack_bsdiff(&mut input, scratch)?,
        _ => return Err(DeltaError::Damaged("a segment's method is unknown")),
    }
    let mut rest = &scratch.rest[..];
    for gap in plan.gaps(limits.segment_len) {
        let (head, tail) = rest.split_at(gap.len());
        out[gap].copy_from_slice(head);
        rest = tail;
    }
    Ok(())
}

fn unpack_bsdiff(input: &mut Input<'_>, scratch: &mut Scratch) -> Result<(), DeltaError> {
    let damaged = || DeltaError::Damaged("the bsdiff of a segment is cut off");
    let mut length = || input.length().ok_or_else(damaged);
    let (control_len, control, diff, extra_len, extra) =
        (length()?, length()?, length()?, length()?, length()?);
    let rest = scratch.rest.len();
    // An instruction has a few bytes, and nearly all of them make some.
    if extra_len > rest || control_len > rest.saturating_mul(8) + 64 {
        return Err(DeltaError::Damaged("the bsdiff of a segment is too long"));
    }
    let mut unpack = |packed: usize, len: usize, out: &mut Vec<u8>| {
        out.resize(len, 0);
        zstd::decompress(input.take(packed).ok_or_else(damaged)?, &[], out)
    };
    unpack(control, control_len, &mut scratch.control)?;
    unpack(diff, rest - extra_len, &mut scratch.diff)?;
    unpack(extra, extra_len, &mut scratch.extra)?;
    bsdiff::patch(
        &scratch.window,
        &scratch.control,
        &scratch.diff,
        &scratch.extra,
        &mut scratch.rest,
    )
    .ok_or(DeltaError::Damaged(
        "the bsdiff of a segment reaches outside",
    ))
}
