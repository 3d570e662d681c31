//! Where the old image has what: whole blocks by their digest, and anything by *anchors*.
//!
//! An anchor is a place whose preceding 16 bytes have a hash with certain bits zero: it depends on
//! the content alone, so it is found again wherever the content has moved to.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use sha2::{Digest as _, Sha256};

use crate::segment::Stretch;
use crate::{BLOCK, DeltaError, error};

/// Windows are put together of pieces of this size.
pub(crate) const BUCKET: usize = 64 << 10;
const BUCKET_BLOCKS: usize = BUCKET / BLOCK;
/// One place of this many is an anchor.
const ANCHOR_BITS: u32 = 8;
/// What is in more buckets than this says nothing about where something came from.
const COMMON: usize = 8;

type Digest = [u8; 16];

pub(crate) struct Index {
    size: u64,
    /// The digests of all whole blocks, in order, and where each is first.
    blocks: Vec<Digest>,
    first: HashMap<Digest, u32>,
    /// Hash and bucket, sorted.
    anchors: Vec<(u32, u32)>,
}

pub(crate) fn digest(block: &[u8]) -> Digest {
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(block)[..16]);
    short
}

/// Calls `found` with the hash of each anchor and the position behind it.
fn anchors(data: &[u8], mut found: impl FnMut(u32, usize)) {
    let mut hash = 0u64;
    for (i, byte) in data.iter().enumerate() {
        // Four bits leave at the top with each byte: after 16 bytes nothing is left of one. In a
        // program whose addresses moved, longer stretches that are the same are rare.
        hash = (hash << 4).wrapping_add(mix(*byte));
        if hash >> (64 - ANCHOR_BITS) == 0 && i >= 16 {
            let [a, b, c, d, ..] = (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes();
            found(u32::from_be_bytes([a, b, c, d]), i + 1);
        }
    }
}

/// 256 fixed numbers without visible order (SplitMix64).
const fn mix(byte: u8) -> u64 {
    let mut z = (byte as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Index {
    pub(crate) fn of(old: &File) -> Result<Self, DeltaError> {
        let read = error::io("read the old image");
        let size = old.metadata().map_err(&read)?.len();
        let mut index = Self {
            size,
            blocks: Vec::new(),
            first: HashMap::new(),
            anchors: Vec::new(),
        };
        let mut piece = vec![0; BUCKET];
        for bucket in 0u32.. {
            let at = u64::from(bucket) * BUCKET as u64;
            let Some(rest) = size.checked_sub(at).filter(|rest| *rest > 0) else {
                break;
            };
            let len = usize::try_from(rest).map_or(BUCKET, |rest| rest.min(BUCKET));
            old.read_exact_at(&mut piece[..len], at).map_err(&read)?;
            for block in piece[..len].chunks_exact(BLOCK) {
                let digest = digest(block);
                let number = u32::try_from(index.blocks.len()).unwrap_or(u32::MAX);
                index.first.entry(digest).or_insert(number);
                index.blocks.push(digest);
            }
            anchors(&piece[..len], |hash, _| index.anchors.push((hash, bucket)));
        }
        index.anchors.sort_unstable();
        index.anchors.dedup();
        Ok(index)
    }

    /// A block of the old image with this content; the one behind `last` if it will do.
    pub(crate) fn block(&self, digest: &Digest, last: Option<u64>) -> Option<u64> {
        let behind = last.and_then(|last| usize::try_from(last + 1).ok());
        if let Some(behind) = behind.filter(|b| self.blocks.get(*b) == Some(digest)) {
            return Some(behind as u64);
        }
        self.first.get(digest).map(|block| u64::from(*block))
    }

    /// The pieces of the old image that have most in common with `data`, which lies at `at` in
    /// the new one; together no more than `limit` bytes.
    pub(crate) fn windows(&self, data: &[u8], at: u64, limit: usize) -> Vec<Stretch> {
        let buckets = usize::try_from(self.size.div_ceil(BUCKET as u64)).unwrap_or(0);
        if buckets <= limit / BUCKET {
            return self.stretches((0..buckets).collect());
        }
        let mut votes = vec![0f32; buckets];
        anchors(data, |hash, _| {
            let from = self.anchors.partition_point(|(h, _)| *h < hash);
            let same = self.anchors[from..].iter().take_while(|(h, _)| *h == hash);
            let places: Vec<usize> = same.take(COMMON + 1).map(|(_, b)| *b as usize).collect();
            if places.len() <= COMMON {
                for place in &places {
                    votes[*place] += 1.0 / places.len() as f32;
                }
            }
        });
        // What lies beside a likely place is likely too; so is, faintly, the same place.
        let same_place = usize::try_from(at / BUCKET as u64).unwrap_or(0);
        let score = |bucket: usize| {
            let beside = |by: isize| {
                let beside = bucket.checked_add_signed(by);
                beside.and_then(|b| votes.get(b)).copied().unwrap_or(0.0)
            };
            let near = 1.0 / (16 + bucket.abs_diff(same_place)) as f32;
            votes[bucket] + 0.25 * (beside(-1) + beside(1)) + 0.01 * near
        };
        let mut ranked: Vec<(f32, usize)> = (0..buckets).map(|b| (score(b), b)).collect();
        ranked.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut chosen: Vec<usize> = ranked
            .into_iter()
            .take(limit / BUCKET)
            .map(|(_, bucket)| bucket)
            .collect();
        chosen.sort_unstable();
        self.stretches(chosen)
    }

    fn stretches(&self, buckets: Vec<usize>) -> Vec<Stretch> {
        let blocks = self.size.div_ceil(BLOCK as u64);
        let mut out: Vec<Stretch> = Vec::new();
        for bucket in buckets {
            let from = (bucket * BUCKET_BLOCKS) as u64;
            let len =
                usize::try_from(blocks - from).map_or(BUCKET_BLOCKS, |n| n.min(BUCKET_BLOCKS));
            match out.last_mut() {
                Some(last) if last.from + last.blocks as u64 == from => last.blocks += len,
                _ => out.push(Stretch { from, blocks: len }),
            }
        }
        out
    }
}
