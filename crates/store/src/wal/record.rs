//! How a record lies in a segment.
//!
//! ```text
//! length u32 | sum u32 | previous sum u32 | number u64 | kind u8 | first u8 | payload
//! ```
//!
//! `sum` covers everything behind it and the number of the segment, so a record of a recycled segment is never taken
//! for one of this. `previous sum` chains the records. `first` marks the first record after a sync: if such a record
//! is found behind a damaged one, the damaged one had reached the disk, and this is no torn tail but a loss.

use crc32fast::Hasher;

pub(super) const HEAD: usize = 22;
/// No record is larger: a request is limited to far less, and a batch of them too.
pub(super) const MAX: usize = 512 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Opens a segment: cluster and member.
    Segment = 1,
    Entry = 2,
    HardState = 3,
    /// Everything up to an index is in a checkpoint, and the log goes on behind it.
    Restart = 4,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Segment, Self::Entry, Self::HardState, Self::Restart]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub sum: u32,
    pub previous: u32,
    pub number: u64,
    pub kind: Kind,
    pub first: bool,
    pub payload: &'a [u8],
}

fn sum(segment: u64, covered: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&segment.to_le_bytes());
    hasher.update(covered);
    hasher.finalize()
}

/// Appends a record to `out` and returns its sum.
pub(super) fn write(
    out: &mut Vec<u8>,
    segment: u64,
    (previous, number): (u32, u64),
    (kind, first): (Kind, bool),
    payload: &[u8],
) -> u32 {
    let start = out.len();
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&previous.to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&[kind as u8, u8::from(first)]);
    out.extend_from_slice(payload);
    let sum = sum(segment, &out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
    sum
}

/// The record at the start of `bytes`, if there is a sound one.
pub(super) fn read(bytes: &[u8], segment: u64) -> Option<Frame<'_>> {
    let head = bytes.get(..HEAD)?;
    let word = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let length = usize::try_from(word(0)?).ok()?;
    if length > MAX {
        return None;
    }
    let covered = bytes.get(8..HEAD + length)?;
    let kind = Kind::of(head[20])?;
    let stated = word(4)?;
    (sum(segment, covered) == stated).then_some(())?;
    Some(Frame {
        sum: stated,
        previous: word(8)?,
        number: u64::from_le_bytes(head.get(12..20)?.try_into().ok()?),
        kind,
        first: head[21] == 1,
        payload: &covered[HEAD - 8..],
    })
}
