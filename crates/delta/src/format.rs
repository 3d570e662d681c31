//! The file: header, index, then the payload of each segment, in order. All numbers are
//! little-endian.
//!
//! ```text
//! header  "orlopDLT"  version u16  0 u16  segment size u32  window size u32  segments u32
//!         old size u64  new size u64  source [32]  target [32]  SHA-256 of the index [32]
//! index   for each segment: payload length u32, SHA-256 of the payload, XXH3-128 of the result
//! ```
//!
//! A payload comes from the network, so its digest is one that nobody can forge. A result is made of it and of
//! the old image here, and is judged by the root hash of all in the end; its digest only tells early, and
//! by name, that the old image is not what it should be. That has to be quick: on the way to the disk it is
//! most of the work (SHA-256 took more than all of the unpacking).
//!
//! `source` and `target` name the two images (by verity root hash, or by SHA-256 where there is
//! none). They are for whoever chooses a delta; what comes out is judged by its own digest.

use sha2::{Digest as _, Sha256};
use twox_hash::XxHash3_128;

use crate::bytes::Input;
use crate::{BLOCK, DeltaError};

pub(crate) const VERSION: u16 = 2;
const MAGIC: &[u8; 8] = b"orlopDLT";
pub(crate) const HEADER_LEN: usize = 136;
pub(crate) const ENTRY_LEN: usize = 4 + 32 + 16;

/// Of the new image, described at a time.
pub const SEGMENT_SIZE: usize = 4 << 20;
/// Of the old image, at most, for one segment.
pub const WINDOW_SIZE: usize = 16 << 20;
/// A reader takes nothing larger: it is what bounds its memory.
const LARGEST_SEGMENT: usize = 8 << 20;
/// A slot can be enlarged, but not to this.
const LARGEST_IMAGE: u64 = 64 << 30;
/// Beyond the segment itself, for what cannot be compressed.
const SLACK: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub segment_size: usize,
    pub window_size: usize,
    pub old_size: u64,
    pub new_size: u64,
    pub source: [u8; 32],
    pub target: [u8; 32],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) offset: u64,
    pub(crate) len: usize,
    pub(crate) payload: [u8; 32],
    pub(crate) result: ResultDigest,
}

pub(crate) type ResultDigest = [u8; 16];

/// In the canonical order of its bytes.
pub(crate) fn result_digest(made: &[u8]) -> ResultDigest {
    XxHash3_128::oneshot(made).to_be_bytes()
}

impl Header {
    pub(crate) fn segments(&self) -> usize {
        usize::try_from(self.new_size.div_ceil(self.segment_size as u64)).unwrap_or(usize::MAX)
    }

    pub(crate) fn segment_len(&self, segment: usize) -> usize {
        let rest = self.new_size - (segment as u64 * self.segment_size as u64);
        usize::try_from(rest).map_or(self.segment_size, |rest| rest.min(self.segment_size))
    }

    #[cfg(feature = "make")]
    pub(crate) fn to_bytes(&self, index: &[u8]) -> Vec<u8> {
        let int = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend([0; 2]);
        out.extend(int(self.segment_size));
        out.extend(int(self.window_size));
        out.extend(int(self.segments()));
        out.extend(self.old_size.to_le_bytes());
        out.extend(self.new_size.to_le_bytes());
        out.extend(self.source);
        out.extend(self.target);
        out.extend(Sha256::digest(index));
        debug_assert_eq!(out.len(), HEADER_LEN);
        out
    }

    /// The header, and the digest of its index.
    pub(crate) fn parse(bytes: &[u8; HEADER_LEN]) -> Result<(Self, [u8; 32]), DeltaError> {
        let short = || DeltaError::NoDelta;
        let mut input = Input(bytes);
        if input.take(8) != Some(MAGIC) {
            return Err(DeltaError::NoDelta);
        }
        let version = input.u16().ok_or_else(short)?;
        if version != VERSION {
            return Err(DeltaError::Format(version));
        }
        input.take(2);
        let mut int = || -> Result<usize, DeltaError> {
            Ok(input
                .u32()
                .ok_or_else(short)?
                .try_into()
                .unwrap_or(usize::MAX))
        };
        let (segment_size, window_size, segments) = (int()?, int()?, int()?);
        let header = Self {
            segment_size,
            window_size,
            old_size: input.u64().ok_or_else(short)?,
            new_size: input.u64().ok_or_else(short)?,
            source: input.array().ok_or_else(short)?,
            target: input.array().ok_or_else(short)?,
        };
        let index = input.array().ok_or_else(short)?;
        let possible = (BLOCK..=LARGEST_SEGMENT).contains(&segment_size)
            && segment_size.is_multiple_of(BLOCK)
            && window_size <= WINDOW_SIZE
            && (1..=LARGEST_IMAGE).contains(&header.new_size)
            && header.old_size <= LARGEST_IMAGE;
        if !possible || segments != header.segments() {
            return Err(DeltaError::Damaged("its sizes make no sense"));
        }
        Ok((header, index))
    }
}

#[cfg(feature = "make")]
pub(crate) fn index_to_bytes(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * ENTRY_LEN);
    for entry in entries {
        out.extend(u32::try_from(entry.len).unwrap_or(u32::MAX).to_le_bytes());
        out.extend(entry.payload);
        out.extend(entry.result);
    }
    out
}

pub(crate) fn parse_index(
    header: &Header,
    digest: &[u8; 32],
    bytes: &[u8],
) -> Result<Vec<Entry>, DeltaError> {
    if Sha256::digest(bytes)[..] != digest[..] {
        return Err(DeltaError::Damaged("its index is not the one it announces"));
    }
    let mut offset = (HEADER_LEN + bytes.len()) as u64;
    let mut input = Input(bytes);
    let mut entries = Vec::with_capacity(header.segments());
    for _ in 0..header.segments() {
        let mut read = || {
            let len = usize::try_from(input.u32()?).ok()?;
            Some((len, input.array()?, input.array()?))
        };
        let (len, payload, result) = read().ok_or(DeltaError::Damaged("its index is too short"))?;
        if len > header.segment_size + SLACK {
            return Err(DeltaError::Damaged(
                "a segment is larger than what it makes",
            ));
        }
        entries.push(Entry {
            offset,
            len,
            payload,
            result,
        });
        offset += len as u64;
    }
    Ok(entries)
}
