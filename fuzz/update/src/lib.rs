//! What arrives from outside, taken in as the host takes it in. None of these may panic, and what
//! was accepted must hold what its type promises.

use std::io::{Cursor, Read};
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use delta::Patch;
use disk::Guid;
use disk::gpt::{Layout, MIB, Table};
use release::dsse::Envelope;
use release::keys::SigningKey;
use release::omaha::Response;
use release::tuf::sign::add;
use release::tuf::{Signed, Trusted};
use release::{Manifest, Sha256};

/// How many inputs there were, and how many of them got to the end: past every sum and signature, to something that is
/// believed. A target of which only its seeds get there tries nothing.
pub struct Count {
    inputs: AtomicU64,
    ends: AtomicU64,
}

pub static COUNT: Count = Count {
    inputs: AtomicU64::new(0),
    ends: AtomicU64::new(0),
};

impl Count {
    /// Says so each time the inputs have doubled.
    pub fn add(&self, end: bool) {
        let ends = self.ends.fetch_add(u64::from(end), Relaxed) + u64::from(end);
        let inputs = self.inputs.fetch_add(1, Relaxed) + 1;
        if inputs.is_power_of_two() && inputs >= 1 << 10 {
            eprintln!("{inputs} inputs, {ends} of them to the end");
        }
    }

    pub fn ends(&self) -> u64 {
        self.ends.load(Relaxed)
    }
}

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

/// The signed manifest: its envelope, and the manifest before anybody believes it. A manifest without an envelope is put
/// into one.
pub fn manifest(data: &[u8]) -> bool {
    let key = key(7);
    let keys = [key.verifying_key()];
    if let Ok(envelope) = Envelope::parse(data) {
        let _ = envelope.digest();
        let _ = envelope.unverified_manifest();
        return Envelope::verify(data, &keys).is_ok();
    }
    let Ok(manifest) = serde_json::from_slice::<Manifest>(data) else {
        return false;
    };
    let Ok(envelope) = Envelope::sign(&manifest, &key) else {
        return false;
    };
    let believed = Envelope::verify(&envelope.to_json().unwrap_or_default(), &keys);
    let believed = believed.map(|it| it.into_inner());
    assert_eq!(believed.ok(), Some(manifest), "signed, but not believed");
    true
}

/// A root, the next one, a timestamp of the last time and one of now, likewise two snapshots, the targets and the
/// channel's: with a zero byte between them. As they are, and with digests and signatures that fit.
pub fn tuf(data: &[u8]) -> bool {
    let mut files: Vec<Vec<u8>> = data
        .split(|byte| *byte == 0)
        .map(<[u8]>::to_vec)
        .take(8)
        .collect();
    files.resize(8, Vec::new());
    let as_it_is = one_tuf(&files);
    sign_tuf(&mut files);
    one_tuf(&files) || as_it_is
}

/// The two that sign everything.
static TUF_KEYS: LazyLock<[SigningKey; 2]> = LazyLock::new(|| [key(1), key(2)]);

/// What is named with a digest gets the right one, so the last file comes first.
fn sign_tuf(files: &mut [Vec<u8>]) {
    let sign = |file: &mut Vec<u8>, named: &[(&str, &[u8])]| {
        let Ok(mut signed) = serde_json::from_slice::<Signed>(file) else {
            return;
        };
        for (name, bytes) in named {
            let Some(meta) = signed.signed.pointer_mut(&format!("/meta/{name}")) else {
                continue;
            };
            if let Some(hash) = meta.pointer_mut("/hashes/sha256") {
                *hash = Sha256::of(bytes).to_string().into();
            }
            if let Some(length) = meta.get_mut("length") {
                *length = bytes.len().into();
            }
        }
        let done = TUF_KEYS.iter().try_for_each(|key| add(&mut signed, key));
        if let (Ok(()), Ok(bytes)) = (done, signed.to_bytes()) {
            *file = bytes;
        }
    };
    let [
        root,
        next_root,
        old_timestamp,
        timestamp,
        old_snapshot,
        snapshot,
        targets,
        channel,
    ] = files
    else {
        return;
    };
    for file in [
        root,
        next_root,
        old_timestamp,
        old_snapshot,
        &mut *targets,
        &mut *channel,
    ] {
        sign(file, &[]);
    }
    sign(
        snapshot,
        &[("targets.json", targets), ("stable.json", channel)],
    );
    sign(timestamp, &[("snapshot.json", snapshot)]);
}

fn one_tuf(files: &[Vec<u8>]) -> bool {
    let Ok(now) = "2026-01-01T00:00:00Z".parse() else {
        return false;
    };
    let mut files = files.iter().map(Vec::as_slice);
    let mut next = || files.next().unwrap_or_default();
    let Ok(mut trusted) = Trusted::new(next(), now, false) else {
        return false;
    };
    let before = trusted.root().version;
    if trusted.update_root(next()).is_ok() {
        assert_eq!(trusted.root().version, before + 1, "a root was left out");
    }
    let _ = trusted.finish_root();
    let seen = next();
    if trusted.update_timestamp(next(), Some(seen)).is_ok() {
        assert!(trusted.snapshot_file().is_some(), "no snapshot to fetch");
    }
    let seen = next();
    let _ = trusted.update_snapshot(next(), Some(seen));
    let _ = trusted.targets_file("targets");
    let _ = trusted.update_targets(next());
    let Ok(channel) = trusted.channel("stable", next()) else {
        return false;
    };
    assert!(trusted.has_channel("stable"), "a channel of nobody");
    for (path, meta) in channel.iter() {
        assert_eq!(channel.get(path), Ok(meta), "{path} is listed only");
        let _ = meta.check(path, b"");
    }
    true
}

/// What deltas are applied to: nothing in it is twice, and its last block is short.
pub static OLD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 1_u64;
    let bytes = std::iter::repeat_with(|| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        state.to_be_bytes()[0]
    });
    bytes.take((128 << 10) + 100).collect()
});

/// Of the old image, for one segment.
pub const WINDOW: usize = 64 << 10;

/// A delta onto [`OLD`], as it is and with digests that fit.
pub fn delta(data: &[u8]) -> bool {
    let as_it_is = one_delta(data);
    let mut mended = data.to_vec();
    delta::fuzz::mend(&mut mended, &OLD);
    one_delta(&mended) || as_it_is
}

fn one_delta(data: &[u8]) -> bool {
    let Ok(mut patch) = Patch::open(Cursor::new(data)) else {
        return false;
    };
    let _ = patch.intact();
    let new = patch.header().new_size;
    if new > OLD.len() as u64 {
        return false;
    }
    let Ok(applied) = patch.apply(Cursor::new(OLD.as_slice())) else {
        return false;
    };
    let mut image = Vec::new();
    let done = applied.take(2 * new).read_to_end(&mut image).is_ok();
    if done {
        assert_eq!(image.len() as u64, new, "an image of another size");
    }
    done
}

/// The payload of a segment, behind two bytes for the segment's length.
pub fn segment(data: &[u8]) -> bool {
    let Some((len, payload)) = data.split_first_chunk() else {
        return false;
    };
    let len = usize::from(u16::from_le_bytes(*len)) + 1;
    delta::fuzz::segment(payload, len, WINDOW, &OLD).is_ok()
}

/// The payload of a segment before anything in it is packed, so that a changed byte is not lost to zstd: the method, how
/// many blocks are copied, the lengths of the plan, of bsdiff's instructions and of its extra bytes, then these, and last
/// what is neither.
pub fn parts(data: &[u8]) -> bool {
    let Some(([method, blocks, plan_len, control_len, extra_len], data)) = data.split_first_chunk()
    else {
        return false;
    };
    let mut rest = data;
    let mut take = |len: &u8| {
        let (head, tail) = rest.split_at(rest.len().min(usize::from(*len)));
        rest = tail;
        head
    };
    let (plan, control, extra) = (take(plan_len), take(control_len), take(extra_len));
    let mut payload = Vec::new();
    let packed = frame(plan);
    number(&mut payload, plan.len());
    number(&mut payload, packed.len());
    payload.extend(packed);
    payload.push(*method);
    let mut left = rest.len();
    if *method == 2 {
        left += extra.len();
        let packed = [control, rest, extra].map(frame);
        number(&mut payload, control.len());
        number(&mut payload, packed[0].len());
        number(&mut payload, packed[1].len());
        number(&mut payload, extra.len());
        number(&mut payload, packed[2].len());
        payload.extend(packed.concat());
    } else if *method == 1 {
        payload.extend(frame(rest));
    }
    let len = usize::from(*blocks) * delta::BLOCK + left;
    delta::fuzz::segment(&payload, len.min(OLD.len()), WINDOW, &OLD).is_ok()
}

/// LEB128.
fn number(out: &mut Vec<u8>, mut value: usize) {
    while value > 0x7f {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// A frame of zstd in which nothing is compressed (RFC 8878, 3.1.1): it says its size, and has one block after the other.
fn frame(bytes: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 64 << 10;
    let size = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    out.extend(size(bytes.len()).to_le_bytes());
    let count = bytes.len().div_ceil(BLOCK).max(1);
    for i in 0..count {
        let rest = &bytes[i * BLOCK..];
        let block = &rest[..rest.len().min(BLOCK)];
        let head = (size(block.len()) << 3) | u32::from(i + 1 == count);
        out.extend_from_slice(&head.to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
    out
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
pub fn gpt(data: &[u8]) -> bool {
    const SIZE: usize = 8 << 20;
    let mut bytes = vec![0; SIZE];
    let (first, second) = data.split_at(data.len().min(TABLE));
    bytes[..first.len()].copy_from_slice(first);
    let second = &second[..second.len().min(TABLE)];
    bytes[SIZE - second.len()..].copy_from_slice(second);
    let as_it_is = one_gpt(bytes.clone());
    // Nothing random has the right sums.
    mend(&mut bytes, 512);
    mend(&mut bytes, SIZE - 512);
    one_gpt(bytes) || as_it_is
}

fn one_gpt(bytes: Vec<u8>) -> bool {
    let size = bytes.len() as u64;
    let mut disk = Cursor::new(bytes);
    let Ok(mut table) = Table::load(&mut disk) else {
        return false;
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
    true
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
pub fn omaha(data: &[u8]) -> bool {
    let Some(response) = std::str::from_utf8(data)
        .ok()
        .and_then(|text| Response::from_xml(text).ok())
    else {
        return false;
    };
    let again = Response::from_xml(&response.to_xml());
    assert!(again.is_ok(), "{again:?}");
    true
}
