//! One segment: copies first, then the smaller of zstd and bsdiff for what is left.

use std::fs::File;

use sha2::{Digest as _, Sha256};

use super::index::{Index, digest};
use crate::bytes::put_number;
use crate::format::Header;
use crate::segment::{BSDIFF, Copy, NOTHING, Plan, Stretch, ZSTD, read_windows};
use crate::{BLOCK, DeltaError, bsdiff, zstd};

/// Of the old image, read for a bsdiff or not at all.
const GRANULE_BLOCKS: usize = 4;
const GRANULE: usize = GRANULE_BLOCKS * BLOCK;

/// Unpacking whole buffers needs no memory, whatever the level; packing against a window does.
const LEVEL: i32 = 22;
const WINDOW_LEVEL: i32 = 19;

pub(crate) struct Encoded {
    pub(crate) payload: Vec<u8>,
    pub(crate) payload_digest: [u8; 32],
    pub(crate) result_digest: [u8; 32],
    pub(crate) method: u8,
    pub(crate) copied: usize,
}

/// Keeps its memory between segments.
#[derive(Default)]
pub(crate) struct Worker {
    window: Vec<u8>,
    suffixes: Vec<i32>,
}

impl Worker {
    pub(crate) fn encode(
        &mut self,
        header: &Header,
        index: &Index,
        mut old: &File,
        at: u64,
        data: &[u8],
    ) -> Result<Encoded, DeltaError> {
        let mut plan = Plan {
            copies: copies(index, data),
            windows: Vec::new(),
        };
        let copied = plan.copied();
        let gaps = plan.gaps(data.len());
        let rest: Vec<u8> = gaps
            .iter()
            .flat_map(|gap| &data[gap.clone()])
            .copied()
            .collect();
        if rest.is_empty() {
            return Ok(finish(&plan, NOTHING, &[], data, copied));
        }
        plan.windows = index.windows(&rest, at, header.window_size);
        read_windows(&plan.windows, header.old_size, &mut old, &mut self.window)?;
        let packed = zstd::compress(&rest, &self.window, WINDOW_LEVEL)?;
        let by_zstd = finish(&plan, ZSTD, &packed, data, copied);
        let by_bsdiff = self.bsdiff(plan, &rest, data, copied)?;
        Ok(match by_bsdiff.payload.len() < by_zstd.payload.len() {
            true => by_bsdiff,
            false => by_zstd,
        })
    }

    fn bsdiff(
        &mut self,
        mut plan: Plan,
        rest: &[u8],
        data: &[u8],
        copied: usize,
    ) -> Result<Encoded, DeltaError> {
        self.suffixes.clear();
        self.suffixes.resize(self.window.len(), 0);
        divsufsort::sort_in_place(&self.window, &mut self.suffixes);
        let streams = bsdiff::diff(&self.window, &self.suffixes, rest);
        // Whoever applies it reads only what is looked at.
        let touched = streams.touched(self.window.len(), GRANULE);
        let streams = streams.without_untouched(&touched, GRANULE);
        plan.windows = only_touched(&plan.windows, &touched);
        let control = streams.control_bytes();
        let packed = [&control, &streams.diff, &streams.extra]
            .map(|stream| zstd::compress(stream, &[], LEVEL));
        let [packed_control, packed_diff, packed_extra] = packed;
        let (packed_control, packed_diff, packed_extra) =
            (packed_control?, packed_diff?, packed_extra?);
        let mut body = Vec::new();
        for length in [
            control.len(),
            packed_control.len(),
            packed_diff.len(),
            streams.extra.len(),
            packed_extra.len(),
        ] {
            put_number(&mut body, length as u64);
        }
        body.extend(packed_control);
        body.extend(packed_diff);
        body.extend(packed_extra);
        Ok(finish(&plan, BSDIFF, &body, data, copied))
    }
}

/// Blocks that are anywhere in the old image, in runs as long as possible.
fn copies(index: &Index, data: &[u8]) -> Vec<Copy> {
    let mut copies: Vec<Copy> = Vec::new();
    for (to, block) in data.chunks_exact(BLOCK).enumerate() {
        let last = copies.last().filter(|copy| copy.to + copy.blocks == to);
        let last = last.map(|copy| copy.from + copy.blocks as u64 - 1);
        let Some(from) = index.block(&digest(block), last) else {
            continue;
        };
        match copies.last_mut() {
            Some(copy) if last.is_some_and(|last| last + 1 == from) => copy.blocks += 1,
            _ => copies.push(Copy {
                to,
                from,
                blocks: 1,
            }),
        }
    }
    copies
}

/// The windows without the granules (counted through all of them) that nobody reads.
fn only_touched(windows: &[Stretch], touched: &[bool]) -> Vec<Stretch> {
    let mut out: Vec<Stretch> = Vec::new();
    let mut number = 0;
    for window in windows {
        for block in 0..window.blocks as u64 {
            let wanted = touched.get(number / GRANULE_BLOCKS) == Some(&true);
            number += 1;
            if !wanted {
                continue;
            }
            let from = window.from + block;
            match out.last_mut() {
                Some(last) if last.from + last.blocks as u64 == from => last.blocks += 1,
                _ => out.push(Stretch { from, blocks: 1 }),
            }
        }
    }
    out
}

fn finish(plan: &Plan, method: u8, body: &[u8], data: &[u8], copied: usize) -> Encoded {
    let bytes = plan.to_bytes();
    let packed = zstd::compress(&bytes, &[], LEVEL).unwrap_or_default();
    let mut payload = Vec::with_capacity(body.len() + packed.len() + 16);
    put_number(&mut payload, bytes.len() as u64);
    put_number(&mut payload, packed.len() as u64);
    payload.extend(packed);
    payload.push(method);
    payload.extend_from_slice(body);
    Encoded {
        payload_digest: Sha256::digest(&payload).into(),
        result_digest: Sha256::digest(data).into(),
        payload,
        method,
        copied,
    }
}
