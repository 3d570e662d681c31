//! All ways lead to the same image, and no damage leads to another one.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write as _};

use delta::make::{Made, Names, Options, make};
use delta::reuse::{BlockIndex, Have};
use delta::{BLOCK, DeltaError, Patch, frames};
use disk::verity::{self, Hasher};

/// Small enough that an image has many segments, and more than fits into a window.
const OPTIONS: Options = Options {
    workers: 2,
    segment_size: 16 * BLOCK,
    window_size: 128 << 10,
};

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// Like a program: one instruction of six has an address, and they are all different.
fn program(seed: u64, len: usize, base: u32) -> Vec<u8> {
    let mut code = noise(seed, len);
    for (place, n) in code.chunks_exact_mut(24).zip(0u32..) {
        let address = base + n * 24 + u32::from(place[0]);
        place[20..].copy_from_slice(&address.to_le_bytes());
    }
    code
}

/// An image, and what became of it: files that moved, by whole blocks and by bytes; a program
/// whose addresses changed; new content; content that is gone.
fn images() -> (Vec<u8>, Vec<u8>) {
    let file = |n: u64, blocks: usize| noise(n, blocks * BLOCK);
    let mut old = [
        file(1, 40),
        program(2, 160 * BLOCK, 0x40_0000),
        file(3, 70),
        vec![0; 20 * BLOCK],
        file(4, 90),
    ]
    .concat();
    let mut new = [
        file(3, 70),
        file(5, 9),
        file(1, 40),
        program(2, 160 * BLOCK, 0x41_2340),
    ]
    .concat();
    new.extend(&file(4, 90)[1000..]);
    old.resize(old.len().next_multiple_of(BLOCK), 0);
    new.resize(new.len().next_multiple_of(BLOCK) + 3 * BLOCK, 7);
    (old, new)
}

fn on_disk(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn delta_with(old: &[u8], new: &[u8], options: Options) -> (Vec<u8>, Made) {
    let names = Names {
        source: [1; 32],
        target: [2; 32],
    };
    let mut out = Cursor::new(Vec::new());
    let made = make(
        &on_disk(old),
        &on_disk(new),
        names,
        &mut out,
        options,
        &|_, _| (),
    )
    .unwrap();
    assert_eq!(made.size, out.get_ref().len() as u64);
    (out.into_inner(), made)
}

fn applied(delta: &[u8], old: &[u8]) -> Result<Vec<u8>, String> {
    let patch = Patch::open(Cursor::new(delta)).map_err(|e| e.to_string())?;
    let mut reader = patch.apply(Cursor::new(old)).map_err(|e| e.to_string())?;
    let mut new = Vec::new();
    let read = reader.read_to_end(&mut new).map_err(|e| e.to_string());

    // With a thread that works ahead it is the same, and fails for the same reason.
    let patch = Patch::open(Cursor::new(delta.to_vec())).map_err(|e| e.to_string())?;
    let applied = patch.apply(Cursor::new(old.to_vec()));
    let mut reader = applied.map_err(|e| e.to_string())?.ahead().unwrap();
    let mut again = Vec::new();
    let read_ahead = reader.read_to_end(&mut again).map_err(|e| e.to_string());
    assert_eq!(read, read_ahead);
    assert!(new == again);
    read.map(|_| new)
}

#[test]
fn a_delta_is_small_and_gives_the_new_image() {
    let (old, new) = images();
    let (delta, made) = delta_with(&old, &new, OPTIONS);
    assert!(applied(&delta, &old).unwrap() == new);
    // The slot is larger than the image in it.
    let slot = [&old[..], &[9; 5 * BLOCK]].concat();
    assert!(applied(&delta, &slot).unwrap() == new);
    // 9 new blocks cannot be made smaller; the rest has moved, or its addresses have.
    assert!(delta.len() < 20 * BLOCK, "{} bytes, {made:?}", delta.len());
    assert!(made.copied > 0 && made.bsdiff > 0, "{made:?}");
    let header = Patch::open(Cursor::new(&delta[..]))
        .unwrap()
        .header()
        .clone();
    assert_eq!((header.source, header.target), ([1; 32], [2; 32]));

    let alone = Options {
        workers: 1,
        ..OPTIONS
    };
    assert!(
        delta_with(&old, &new, alone).0 == delta,
        "more workers, other bytes"
    );
}

/// Counts what is read of it.
struct Counted<T> {
    inner: T,
    read: usize,
}

impl<T: Read> Read for Counted<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.read += len;
        Ok(len)
    }
}

impl<T: Seek> Seek for Counted<T> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

#[test]
fn only_what_is_needed_of_the_old_image_is_read() {
    let old = noise(1, 200 * BLOCK);
    // By bytes: no whole block is where it was, and none of it can be left out.
    let new = old[1000..150 * BLOCK + 1000].to_vec();
    let (delta, made) = delta_with(&old, &new, OPTIONS);
    assert!(made.zstd > 0 && made.copied_bytes == 0, "{made:?}");
    let mut counted = Counted {
        inner: Cursor::new(&old),
        read: 0,
    };
    let patch = Patch::open(Cursor::new(&delta)).unwrap();
    let mut again = Vec::new();
    let mut reader = patch.apply(&mut counted).unwrap();
    reader.read_to_end(&mut again).unwrap();
    assert!(again == new);
    // Whole windows would be twice the image. Each segment ends in the middle of two granules of four blocks.
    let segments = new.len().div_ceil(OPTIONS.segment_size);
    let most = new.len() + segments * 8 * BLOCK;
    assert!(counted.read <= most, "{} of {most}", counted.read);
}

#[test]
fn any_pair_of_images_will_do() {
    let sizes = [0, 1, BLOCK - 1, BLOCK, 17 * BLOCK + 5, 60 * BLOCK];
    for (i, old) in sizes.into_iter().enumerate() {
        for new in sizes.into_iter().filter(|new| *new > 0) {
            let (old, new) = (noise(i as u64, old), noise(i as u64, new));
            let (delta, _) = delta_with(&old, &new, OPTIONS);
            assert!(
                applied(&delta, &old).unwrap() == new,
                "{} to {}",
                old.len(),
                new.len()
            );
        }
    }
}

#[test]
fn another_source_is_noticed() {
    let (mut old, new) = images();
    let (delta, _) = delta_with(&old, &new, OPTIONS);
    let short = applied(&delta, &old[..BLOCK]).unwrap_err();
    assert!(short.starts_with("the old image has 4096 bytes"), "{short}");
    for byte in &mut old {
        *byte ^= 0x55;
    }
    let error = applied(&delta, &old).unwrap_err();
    assert!(error.contains("the old image is not the one"), "{error}");
}

#[test]
fn damage_is_an_error_and_nothing_else() {
    let (old, new) = images();
    let (delta, _) = delta_with(&old, &new, OPTIONS);
    for at in (0..delta.len()).step_by(delta.len() / 150) {
        let mut bad = delta.clone();
        bad[at] ^= 0x20;
        // The names are for whoever chooses; they do not change what comes out.
        if applied(&bad, &old).is_ok_and(|got| got != new) {
            panic!("byte {at} makes another image");
        }
        assert!(
            applied(&bad, &old).is_err() || (40..104).contains(&at) || at == 10 || at == 11,
            "byte {at} is not noticed"
        );
    }
    for len in [0, 7, 100, 136, 200, delta.len() / 2, delta.len() - 1] {
        assert!(
            applied(&delta[..len], &old).is_err(),
            "{len} bytes of it are enough"
        );
    }
    let error = applied(b"PK\x03\x04, which is something else entirely: it has to be longer than a header, so here are more words, and then some", &old);
    assert_eq!(error.unwrap_err(), "this is no delta");
}

/// The digests are there against accidents; whoever signs can still be wrong.
#[test]
fn payloads_with_good_digests_cannot_reach_outside() {
    use sha2::{Digest as _, Sha256};
    let (old, new) = (
        noise(1, 64 * BLOCK),
        [noise(1, 30 * BLOCK), noise(9, 3 * BLOCK)].concat(),
    );
    let (delta, made) = delta_with(&old, &new, OPTIONS);
    const ENTRY: usize = 4 + 32 + 16;
    let index = 136..136 + made.segments * ENTRY;
    let mut seed = 0u64;
    for round in 0..3000 {
        let mut bad = delta.clone();
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(round);
        let at = index.end + usize::try_from(seed >> 33).unwrap() % (bad.len() - index.end);
        bad[at] = seed.to_be_bytes()[0];
        let mut payload = index.end;
        for entry in index.clone().step_by(ENTRY) {
            let len = u32::from_le_bytes(bad[entry..entry + 4].try_into().unwrap());
            let end = payload + usize::try_from(len).unwrap();
            let digest = Sha256::digest(&bad[payload..end]);
            bad[entry + 4..entry + 36].copy_from_slice(&digest);
            payload = end;
        }
        let digest = Sha256::digest(&bad[index.clone()]);
        bad[104..136].copy_from_slice(&digest);
        if let Ok(got) = applied(&bad, &old) {
            assert!(got == new, "round {round} makes another image");
        }
    }
}

#[test]
fn a_broken_download_keeps_its_good_segments() {
    let (old, new) = images();
    let (mut delta, _) = delta_with(&old, &new, OPTIONS);
    let whole = delta.len() as u64;
    let intact = |bytes: &[u8]| Patch::open(Cursor::new(bytes)).unwrap().intact().unwrap();
    assert_eq!(intact(&delta), whole);
    let cut = intact(&delta[..delta.len() - 1]);
    assert!(cut > whole / 2 && cut < whole, "{cut} of {whole}");
    let middle = delta.len() / 2;
    delta[middle] ^= 1;
    assert!(intact(&delta) <= middle as u64);
}

struct Published {
    packed: Vec<u8>,
    index: Vec<u8>,
    root: verity::RootHash,
}

fn publish(image: &[u8]) -> Published {
    let mut packed = Vec::new();
    let size = 16 * BLOCK;
    let lengths = frames::compress(&mut &image[..], &mut packed, size, 3).unwrap();
    let mut hasher = Hasher::new();
    hasher.update(image);
    let hashes = hasher.leaves().to_vec();
    let index = BlockIndex::new(size, image.len() as u64, lengths, hashes).to_bytes();
    let root = hasher.finish().unwrap().root;
    Published {
        packed,
        index,
        root,
    }
}

fn have(image: &[u8]) -> Have {
    let mut hasher = Hasher::new();
    hasher.update(image);
    Have::new(hasher.leaves())
}

#[test]
fn blocks_that_are_here_are_not_fetched() {
    let (old, new) = images();
    let it = publish(&new);
    let index = BlockIndex::parse(&it.index, &it.root).unwrap();
    let ranges = index.missing(&have(&old));
    let mut fetched = Vec::new();
    for range in &ranges {
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        fetched.extend(&it.packed[range]);
    }
    assert!(
        !ranges.is_empty() && fetched.len() < it.packed.len() * 4 / 5,
        "{ranges:?}"
    );
    let rebuild = |old: &[u8], fetched: &[u8]| -> Result<Vec<u8>, String> {
        let index = BlockIndex::parse(&it.index, &it.root).unwrap();
        let mut out = Vec::new();
        index
            .rebuild(have(&images().0), Cursor::new(old), fetched)
            .read_to_end(&mut out)
            .map_err(|e| e.to_string())?;
        Ok(out)
    };
    assert!(rebuild(&old, &fetched).unwrap() == new);

    // The slot is not what its tree says; a frame is not what it should be; one is not there.
    let mut bad = old.clone();
    bad[10 * BLOCK] ^= 1;
    assert!(
        rebuild(&bad, &fetched)
            .unwrap_err()
            .contains("neither in the running image")
    );
    let other = zstd_of(&noise(77, 16 * BLOCK));
    assert!(rebuild(&old, &[other, fetched.clone()].concat()).is_err());
    assert!(rebuild(&old, &fetched[..fetched.len() - 1]).is_err());

    // Nothing new: nothing to fetch.
    let same = publish(&old);
    let index = BlockIndex::parse(&same.index, &same.root).unwrap();
    assert_eq!(index.missing(&have(&old)), []);
}

fn zstd_of(data: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    frames::compress(&mut &data[..], &mut packed, data.len(), 3).unwrap();
    packed
}

#[test]
fn an_index_hangs_from_the_root_hash() {
    let (_, new) = images();
    let it = publish(&new);
    for at in [0, 9, 13, 17, it.index.len() - 1] {
        let mut bad = it.index.clone();
        bad[at] ^= 1;
        assert!(BlockIndex::parse(&bad, &it.root).is_err(), "byte {at}");
    }
    assert!(BlockIndex::parse(&it.index[..it.index.len() - 1], &it.root).is_err());
    let other = verity::RootHash([0; 32]);
    assert!(matches!(
        BlockIndex::parse(&it.index, &other),
        Err(DeltaError::Index("its hashes do not lead to the root hash"))
    ));
}

/// Any zstd makes the image of the frames.
#[test]
fn frames_are_plain_zstd() {
    let (_, new) = images();
    let packed = publish(&new).packed;
    let got = zstd::decode_all(&packed[..]).unwrap();
    assert!(got == new);
    // The seekable format's last four bytes.
    assert_eq!(packed[packed.len() - 4..], 0x8f92_eab1u32.to_le_bytes());
}
