//! One segment: copies first, then the smaller of zstd and bsdiff for what is left.

use disk::io::Placed;
use sha2::{Digest as _, Sha256};

use super::index::{Index, digest};
use crate::bytes::put_number;
use crate::format::{Header, ResultDigest, result_digest};
use crate::segment::{
    BSDIFF, Copy, Limits, NOTHING, Plan, Scratch, Stretch, ZSTD, decode, read_windows,
};
use crate::{BLOCK, DeltaError, bsdiff, zstd};

/// Of the windows, read when the delta is applied or not at all.
const GRANULE_BLOCKS: usize = 4;
const GRANULE: usize = GRANULE_BLOCKS * BLOCK;

/// Unpacking whole buffers needs no memory, whatever the level; packing against a window does.
const LEVEL: i32 = 22;
const WINDOW_LEVEL: i32 = 19;

pub(crate) struct Encoded {
    pub(crate) payload: Vec<u8>,
    pub(crate) payload_digest: [u8; 32],
    pub(crate) result_digest: ResultDigest,
    pub(crate) method: u8,
    pub(crate) copied: usize,
}

/// Keeps its memory between segments.
pub(crate) struct Worker {
    /// With a place of its own: the others read the same file.
    old: Placed,
    window: Vec<u8>,
    suffixes: Vec<i32>,
    scratch: Scratch,
}

impl Worker {
    pub(crate) fn new(old: Placed) -> Self {
        Self {
            old,
            window: Vec::new(),
            suffixes: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    /// The smallest there is, of which the segment was made again already.
    pub(crate) fn encode(
        &mut self,
        header: &Header,
        index: &Index,
        at: u64,
        data: &[u8],
    ) -> Result<Encoded, DeltaError> {
        let encoded = self.smallest(header, index, at, data)?;
        let limits = Limits {
            segment_len: data.len(),
            window_size: header.window_size,
            old_size: header.old_size,
        };
        let mut again = vec![0; data.len()];
        let (old, scratch) = (&mut self.old, &mut self.scratch);
        decode(&encoded.payload, &limits, old, scratch, &mut again)?;
        match again == data {
            true => Ok(encoded),
            false => Err(DeltaError::Unsound(at)),
        }
    }

    fn smallest(
        &mut self,
        header: &Header,
        index: &Index,
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
        read_windows(
            &plan.windows,
            header.old_size,
            &mut self.old,
            &mut self.window,
        )?;
        let by_zstd = self.zstd(plan.clone(), &rest, data, copied)?;
        let by_bsdiff = self.bsdiff(plan, &rest, data, copied)?;
        Ok(match by_bsdiff.payload.len() < by_zstd.payload.len() {
            true => by_bsdiff,
            false => by_zstd,
        })
    }

    fn zstd(
        &self,
        mut plan: Plan,
        rest: &[u8],
        data: &[u8],
        copied: usize,
    ) -> Result<Encoded, DeltaError> {
        let packed = zstd::compress(rest, &self.window, WINDOW_LEVEL)?;
        let touched = touched(&packed, self.window.len(), rest.len())?;
        plan.windows = only_touched(&plan.windows, &touched);
        let granules = self.window.chunks(GRANULE).zip(&touched);
        let window: Vec<u8> = granules
            .filter(|(_, touched)| **touched)
            .flat_map(|(granule, _)| granule)
            .copied()
            .collect();
        // What was next to each other still is, so every match is still there, and nearer.
        let packed = zstd::compress(rest, &window, WINDOW_LEVEL)?;
        Ok(finish(&plan, ZSTD, &packed, data, copied))
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

/// Which granules of the window a frame takes something from. What is unpacked says it by itself, if the
/// window holds the numbers of its granules; what is the same in whatever window is not from there.
fn touched(packed: &[u8], window_len: usize, rest_len: usize) -> Result<Vec<bool>, DeltaError> {
    let mut window = vec![0; window_len];
    let mut with = |byte: &dyn Fn(usize) -> u8| -> Result<Vec<u8>, DeltaError> {
        for (number, granule) in window.chunks_mut(GRANULE).enumerate() {
            granule.fill(byte(number));
        }
        let mut out = vec![0; rest_len];
        zstd::decompress(packed, &window, &mut out)?;
        Ok(out)
    };
    let (zeros, ones) = (with(&|_| 0)?, with(&|_| 0xff)?);
    let low = with(&|number| number.to_le_bytes()[0])?;
    let high = with(&|number| number.to_le_bytes()[1])?;
    let mut touched = vec![false; window_len.div_ceil(GRANULE)];
    for i in (0..rest_len).filter(|i| zeros[*i] != ones[*i]) {
        touched[usize::from(u16::from_le_bytes([low[i], high[i]]))] = true;
    }
    Ok(touched)
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
        result_digest: result_digest(data),
        payload,
        method,
        copied,
    }
}
