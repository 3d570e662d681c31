//! What the targets of `fuzz/update` need of the inside: digests keep away from the decoder whatever was not made by us.

use std::io::Cursor;

use sha2::{Digest as _, Sha256};

use crate::DeltaError;
use crate::format::{ENTRY_LEN, HEADER_LEN, Header, ResultDigest, result_digest};
use crate::segment::{Limits, Scratch, decode};

/// Puts the right digests into a delta, as far as its header and its lengths make sense. Images larger than `old` are left
/// alone: they would only take time.
pub fn mend(file: &mut [u8], old: &[u8]) {
    let Some((head, rest)) = file.split_first_chunk_mut::<HEADER_LEN>() else {
        return;
    };
    let Ok((header, _)) = Header::parse(head) else {
        return;
    };
    if header.old_size.max(header.new_size) > old.len() as u64 {
        return;
    }
    let index_len = header.segments() * ENTRY_LEN;
    let Some((index, payloads)) = rest.split_at_mut_checked(index_len) else {
        return;
    };
    let mut payloads = &*payloads;
    for (number, entry) in index.chunks_exact_mut(ENTRY_LEN).enumerate() {
        let Some((len, digests)) = entry.split_first_chunk_mut::<4>() else {
            break;
        };
        let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        let Some((payload, behind)) = payloads.split_at_checked(len) else {
            break;
        };
        payloads = behind;
        let (of_payload, of_result) = digests.split_at_mut(32);
        of_payload.copy_from_slice(&Sha256::digest(payload));
        let limits = Limits {
            segment_len: header.segment_len(number),
            window_size: header.window_size,
            old_size: header.old_size,
        };
        if let Ok(made) = decoded(payload, &limits, old) {
            let digest: ResultDigest = result_digest(&made);
            of_result.copy_from_slice(&digest);
        }
    }
    let digest = Sha256::digest(&*index);
    head[HEADER_LEN - digest.len()..].copy_from_slice(&digest);
}

/// What a payload makes of `old`. Panics if that depends on what was made before.
pub fn segment(
    payload: &[u8],
    segment_len: usize,
    window_size: usize,
    old: &[u8],
) -> Result<Vec<u8>, DeltaError> {
    let limits = Limits {
        segment_len,
        window_size,
        old_size: old.len() as u64,
    };
    decoded(payload, &limits, old)
}

fn decoded(payload: &[u8], limits: &Limits, old: &[u8]) -> Result<Vec<u8>, DeltaError> {
    let mut old = Cursor::new(old);
    let mut scratch = Scratch::default();
    let mut make = |before: u8| {
        let mut out = vec![before; limits.segment_len];
        decode(payload, limits, &mut old, &mut scratch, &mut out).map(|()| out)
    };
    let (first, second) = (make(0), make(0xff));
    assert_eq!(
        first.as_ref().ok(),
        second.as_ref().ok(),
        "the same payload makes different segments"
    );
    second
}
