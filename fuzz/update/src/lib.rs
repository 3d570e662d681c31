//! What arrives from outside, taken in as the host takes it in. None of these may panic, and what
//! was accepted must hold what its type promises.

use std::io::{Cursor, Read};

use delta::Patch;
use disk::Guid;
use disk::gpt::{Layout, MIB, Table};
use release::dsse::Envelope;
use release::keys::SigningKey;
use release::omaha::Response;
use release::tuf::Trusted;

/// The signed manifest: its envelope, and the manifest before anybody believes it.
pub fn manifest(data: &[u8]) {
    let key = SigningKey::from_bytes(&[7; 32]).verifying_key();
    let _ = Envelope::verify(data, &[key]);
    if let Ok(envelope) = Envelope::parse(data) {
        let _ = envelope.digest();
        let _ = envelope.unverified_manifest();
    }
}

/// A root, and then the other roles after a zero byte each, as they are fetched.
pub fn tuf(data: &[u8]) {
    let mut files = data.split(|byte| *byte == 0);
    let root = files.next().unwrap_or_default();
    let now = jiff::Timestamp::UNIX_EPOCH;
    let Ok(mut trusted) = Trusted::new(root, now, true) else {
        return;
    };
    let mut next = || files.next().unwrap_or_default();
    let _ = trusted.update_root(next());
    let _ = trusted.finish_root();
    let _ = trusted.update_timestamp(next(), None);
    let _ = trusted.snapshot_file();
    let _ = trusted.update_snapshot(next(), None);
    let _ = trusted.update_targets(next());
    let _ = trusted.channel("stable", next());
}

/// A delta onto an old image of as many zeros as it asks for, within reason.
pub fn delta(data: &[u8]) {
    const MOST: u64 = 1 << 20;
    let Ok(mut patch) = Patch::open(Cursor::new(data)) else {
        return;
    };
    let _ = patch.intact();
    let (old, new) = (patch.header().old_size, patch.header().new_size);
    if old > MOST || new > MOST {
        return;
    }
    let old = vec![0; usize::try_from(old).unwrap_or(0)];
    let Ok(applied) = patch.apply(Cursor::new(old)) else {
        return;
    };
    let mut image = Vec::new();
    if applied.take(2 * MOST).read_to_end(&mut image).is_ok() {
        assert_eq!(image.len() as u64, new, "an image of another size");
    }
}

/// Both tables of a disk, the first one at its start, the second at its end.
pub const TABLE: usize = 34 * 512;

/// A disk as small as it can be, with both slots.
#[must_use]
pub fn disk() -> Vec<u8> {
    let layout = Layout {
        bios: MIB,
        esp: MIB,
        usr: MIB,
        verity: MIB,
    };
    let size = layout.image_size();
    let mut disk = Cursor::new(vec![0; usize::try_from(size).unwrap_or(0)]);
    let created = layout.create(&mut disk, size, Guid([7; 16]));
    assert!(created.is_ok(), "{created:?}");
    disk.into_inner()
}

/// A disk with these tables, as they are and with sums that fit; changed and written again. What
/// was read must survive that.
pub fn gpt(data: &[u8]) {
    const SIZE: usize = 8 << 20;
    let mut bytes = vec![0; SIZE];
    let (first, second) = data.split_at(data.len().min(TABLE));
    bytes[..first.len()].copy_from_slice(first);
    let second = &second[..second.len().min(TABLE)];
    bytes[SIZE - second.len()..].copy_from_slice(second);
    one_gpt(bytes.clone());
    // Nothing random has the right sums.
    mend(&mut bytes, 512);
    mend(&mut bytes, SIZE - 512);
    one_gpt(bytes);
}

fn one_gpt(bytes: Vec<u8>) {
    let size = bytes.len() as u64;
    let mut disk = Cursor::new(bytes);
    let Ok(mut table) = Table::load(&mut disk) else {
        return;
    };
    let before = table.partitions();
    for slot in disk::Slot::BOTH {
        let _ = table.root_hash_of(slot);
    }
    let mut changed = table.clone();
    let _ = changed.grow_to(size * 2);
    let _ = changed.add_state();
    let _ = changed.grow_state();
    if table.disk_size() == size && table.write(&mut disk).is_ok() {
        let again = Table::load(&mut disk).map(|table| table.partitions());
        assert_eq!(
            again.ok(),
            Some(before),
            "a table that its writer cannot read"
        );
    }
}

/// Puts the right sums into the header at `at`, and of the entries that it names (UEFI, 5.3.2).
fn mend(disk: &mut [u8], at: usize) {
    let number = |at: usize, len: usize| {
        let bytes = disk[at..at + len].iter().rev();
        let number = bytes.fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
        usize::try_from(number).unwrap_or(usize::MAX)
    };
    let start = number(at + 72, 8).checked_mul(512);
    let len = number(at + 80, 4).checked_mul(number(at + 84, 4));
    let end = start
        .zip(len)
        .and_then(|(start, len)| start.checked_add(len));
    if let Some(end) = end.filter(|end| *end <= disk.len() && len <= Some(1 << 20)) {
        let sum = crc32(&disk[start.unwrap_or(0)..end]);
        disk[at + 88..at + 92].copy_from_slice(&sum.to_le_bytes());
    }
    let header = usize::from(disk[at + 12]).clamp(92, 512);
    disk[at + 16..at + 20].fill(0);
    let sum = crc32(&disk[at..at + header]);
    disk[at + 16..at + 20].copy_from_slice(&sum.to_le_bytes());
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    !sum
}

/// The server's answer; what was understood can be said again.
pub fn omaha(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(response) = Response::from_xml(text) {
        let again = Response::from_xml(&response.to_xml());
        assert!(again.is_ok(), "{again:?}");
    }
}
