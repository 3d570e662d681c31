//! Colin Percival's bsdiff: the new bytes as *add these differences to a stretch of the old*, *take
//! these bytes as they are*, *go on elsewhere in the old*. A program whose addresses moved
//! differs everywhere but by few distinct values, so the differences compress well.

use crate::bytes::Input;
#[cfg(feature = "make")]
use crate::bytes::{put_number, put_signed};

/// Writes the new bytes into `out`. None if the streams do not fit together, or reach outside.
pub(crate) fn patch(
    old: &[u8],
    control: &[u8],
    diff: &[u8],
    extra: &[u8],
    out: &mut [u8],
) -> Option<()> {
    let (mut control, mut diff, mut extra) = (Input(control), Input(diff), Input(extra));
    let mut done = 0usize;
    let mut at = 0usize;
    while done < out.len() {
        let (add, copy, seek) = (control.length()?, control.length()?, control.signed()?);
        let from = old.get(at..at.checked_add(add)?)?;
        let to = out.get_mut(done..done.checked_add(add)?)?;
        for ((to, from), by) in to.iter_mut().zip(from).zip(diff.take(add)?) {
            *to = from.wrapping_add(*by);
        }
        done += add;
        out.get_mut(done..done.checked_add(copy)?)?
            .copy_from_slice(extra.take(copy)?);
        done += copy;
        at = (at + add).checked_add_signed(isize::try_from(seek).ok()?)?;
    }
    Some(())
}

/// Not yet compressed.
#[cfg(feature = "make")]
#[derive(Default)]
pub(crate) struct Streams {
    /// (add, copy, seek), in terms of the whole window.
    pub(crate) control: Vec<(usize, usize, i64)>,
    pub(crate) diff: Vec<u8>,
    pub(crate) extra: Vec<u8>,
}

#[cfg(feature = "make")]
impl Streams {
    pub(crate) fn control_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for &(add, copy, seek) in &self.control {
            put_number(&mut out, add as u64);
            put_number(&mut out, copy as u64);
            put_signed(&mut out, seek);
        }
        out
    }

    /// Which granules of the old are read at all.
    pub(crate) fn touched(&self, old_len: usize, granule: usize) -> Vec<bool> {
        let mut touched = vec![false; old_len.div_ceil(granule)];
        let mut at = 0usize;
        for &(add, _, seek) in &self.control {
            if add > 0 {
                touched[at / granule..=(at + add - 1) / granule].fill(true);
            }
            at = (at + add).saturating_add_signed(isize::try_from(seek).unwrap_or(0));
        }
        touched
    }

    /// The same, for an old of which only the touched granules are left.
    pub(crate) fn without_untouched(mut self, touched: &[bool], granule: usize) -> Self {
        let mut before = Vec::with_capacity(touched.len() + 1);
        let mut count = 0;
        for &t in touched {
            before.push(count);
            count += usize::from(t);
        }
        before.push(count);
        let moved = |at: usize| match touched.get(at / granule) {
            Some(true) => before[at / granule] * granule + at % granule,
            // Nothing is read here: any place will do, so the nearest one.
            _ => before[(at / granule).min(touched.len())] * granule,
        };
        let (mut at, mut new_at) = (0usize, 0usize);
        for i in 0..self.control.len() {
            let (add, _, seek) = self.control[i];
            at = (at + add).saturating_add_signed(isize::try_from(seek).unwrap_or(0));
            let next_reads = self.control.get(i + 1).is_some_and(|next| next.0 > 0);
            new_at += add;
            let target = if next_reads { moved(at) } else { new_at };
            self.control[i].2 = target as i64 - new_at as i64;
            new_at = target;
        }
        self
    }
}

#[cfg(feature = "make")]
fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The longest stretch of the old that begins like `new`: its length and place.
#[cfg(feature = "make")]
fn search(suffixes: &[i32], old: &[u8], new: &[u8]) -> (usize, usize) {
    let suffix = |i: usize| usize::try_from(suffixes[i]).unwrap_or(0);
    let (mut low, mut high) = (0, suffixes.len());
    // What all suffixes between the two bounds have in common with `new` need not be compared.
    let (mut low_common, mut high_common) = (0, 0);
    let mut best = (0, 0);
    while low < high {
        let middle = low + (high - low) / 2;
        let known = low_common.min(high_common);
        let at = suffix(middle);
        let len = known + common(&old[at + known..], &new[known..]);
        if len > best.0 {
            best = (len, at);
        }
        if len == new.len() {
            break;
        }
        let less = match old.get(at + len) {
            None => true,
            Some(byte) => *byte < new[len],
        };
        if less {
            (low, low_common) = (middle + 1, len);
        } else {
            (high, high_common) = (middle, len);
        }
    }
    best
}

#[cfg(feature = "make")]
pub(crate) fn diff(old: &[u8], suffixes: &[i32], new: &[u8]) -> Streams {
    let mut out = Streams::default();
    let same = |o: usize, n: usize| old.get(o).is_some_and(|byte| *byte == new[n]);
    // Where the last stretch began, in the new and in the old.
    let (mut last_new, mut last_old) = (0usize, 0usize);
    let (mut scan, mut len, mut pos) = (0usize, 0usize, 0usize);
    while scan < new.len() {
        scan += len;
        // How much of the coming match the last stretch would have explained just as well.
        let mut score = 0usize;
        let mut counted = scan;
        let along = |n: usize| same((n + last_old).wrapping_sub(last_new), n);
        while scan < new.len() {
            (len, pos) = search(suffixes, old, &new[scan..]);
            while counted < scan + len {
                score += usize::from(along(counted));
                counted += 1;
            }
            if (len == score && len != 0) || len > score + 8 {
                break;
            }
            score -= usize::from(score > 0 && along(scan));
            scan += 1;
        }
        if len == score && scan < new.len() {
            continue;
        }
        // The last stretch goes on for as long as more than half of it is right …
        let (mut right, mut best, mut forth) = (0i64, 0i64, 0usize);
        let mut i = 0;
        while last_new + i < scan && last_old + i < old.len() {
            right += i64::from(same(last_old + i, last_new + i));
            i += 1;
            if right * 2 - i as i64 > best {
                (best, forth) = (right * 2 - i as i64, i);
            }
        }
        // … and so does the new one, backwards.
        let mut back = 0usize;
        if scan < new.len() {
            let (mut right, mut best) = (0i64, 0i64);
            for i in 1..=(scan - last_new).min(pos) {
                right += i64::from(same(pos - i, scan - i));
                if right * 2 - i as i64 > best {
                    (best, back) = (right * 2 - i as i64, i);
                }
            }
        }
        // Where both claim the same bytes, each gets those that it explains better.
        if last_new + forth > scan - back {
            let overlap = last_new + forth - (scan - back);
            let (mut lead, mut best, mut keep) = (0i64, 0i64, 0usize);
            for i in 0..overlap {
                let n = last_new + forth - overlap + i;
                lead += i64::from(same(last_old + forth - overlap + i, n));
                lead -= i64::from(same(pos - back + i, n));
                if lead > best {
                    (best, keep) = (lead, i + 1);
                }
            }
            forth = forth + keep - overlap;
            back -= keep;
        }
        let added = new[last_new..last_new + forth].iter();
        out.diff.extend(
            added
                .zip(&old[last_old..])
                .map(|(new, old)| new.wrapping_sub(*old)),
        );
        let extra = &new[last_new + forth..scan - back];
        out.extra.extend_from_slice(extra);
        let seek = (pos as i64 - back as i64) - (last_old + forth) as i64;
        out.control.push((forth, extra.len(), seek));
        last_new = scan - back;
        last_old = pos - back;
    }
    out
}
