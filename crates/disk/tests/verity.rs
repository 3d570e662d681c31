//! The tree and the superblock against cryptsetup's own `veritysetup` (Debian: cryptsetup-bin).

#![allow(clippy::unwrap_used)]

use disk::gpt::uuids_from_root_hash;
use disk::verity::{BLOCK_SIZE, Hasher, SALT, Superblock, VerityError, build, root_hash_of};
use std::fs;
use std::process::Command;

/// Bytes without a pattern that repeats per block.
fn data(blocks: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64 ^ blocks as u64;
    (0..blocks * BLOCK_SIZE / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect()
}

fn veritysetup(args: &[&str]) -> String {
    let output = Command::new("veritysetup")
        .args(args)
        .output()
        .expect("veritysetup is needed: apt install cryptsetup-bin");
    assert!(
        output.status.success(),
        "veritysetup {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn check(blocks: usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name).to_str().unwrap().to_owned();
    let (usr, theirs, ours) = (path("usr"), path("theirs"), path("ours"));
    let data = data(blocks);
    fs::write(&usr, &data).unwrap();

    let tree = build(&mut data.as_slice()).unwrap();
    fs::write(&ours, tree.image()).unwrap();
    let uuid = uuids_from_root_hash(&tree.root).0.to_string();
    let said = veritysetup(&[
        "format",
        "--salt",
        &hex::encode(SALT),
        "--uuid",
        &uuid,
        &usr,
        &theirs,
    ]);
    let root = said
        .lines()
        .find_map(|line| line.strip_prefix("Root hash:"))
        .unwrap()
        .trim();
    assert_eq!(tree.root.to_string(), root, "{blocks} blocks");
    assert!(
        fs::read(&theirs).unwrap() == fs::read(&ours).unwrap(),
        "the images differ for {blocks} blocks"
    );
    veritysetup(&["verify", &usr, &ours, root]);

    let superblock = Superblock::parse(&fs::read(&theirs).unwrap()).unwrap();
    assert_eq!(superblock.data_blocks, blocks as u64);
    assert_eq!(superblock.salt, SALT);
}

#[test]
fn no_level() {
    check(1);
}

#[test]
fn one_level() {
    for blocks in [2, 127, 128] {
        check(blocks);
    }
}

#[test]
fn two_levels() {
    for blocks in [129, 256, 300, 16384] {
        check(blocks);
    }
}

#[test]
fn three_levels() {
    for blocks in [16385, 20000] {
        check(blocks);
    }
}

#[test]
fn pieces_of_any_size_give_the_same_tree() {
    let data = data(300);
    let whole = build(&mut data.as_slice()).unwrap();
    for piece in [1, 511, 4095, 4096, 4097, 1 << 17] {
        let mut hasher = Hasher::new();
        for part in data.chunks(piece) {
            hasher.update(part);
        }
        assert_eq!(hasher.finish().unwrap(), whole, "pieces of {piece}");
    }
}

#[test]
fn one_changed_bit_changes_the_root() {
    let mut data = data(130);
    let before = root_hash_of(&mut data.as_slice(), data.len() as u64).unwrap();
    let last = data.len() - 1;
    data[last] ^= 1;
    let after = root_hash_of(&mut data.as_slice(), data.len() as u64).unwrap();
    assert_ne!(before, after);
}

#[test]
fn only_whole_blocks_and_all_of_them() {
    let data = data(3);
    assert!(matches!(
        build(&mut &data[..5000]),
        Err(VerityError::Size { size: 5000 })
    ));
    assert!(matches!(
        build(&mut &data[..0]),
        Err(VerityError::Size { size: 0 })
    ));
    assert!(matches!(
        root_hash_of(&mut data.as_slice(), 4 * 4096),
        Err(VerityError::Read { offset: 12288, .. })
    ));
    // What lies behind `size` on the partition does not count.
    assert_eq!(
        root_hash_of(&mut data.as_slice(), 2 * 4096).unwrap(),
        build(&mut &data[..2 * 4096]).unwrap().root
    );
}
