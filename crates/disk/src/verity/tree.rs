//! Building trees and root hashes.

use super::RootHash;
use super::format::{BLOCK_SIZE, Levels, SALT, Superblock, VerityError};
use crate::Guid;
use sha2::{Digest, Sha256};
use std::io::Read;

const HASH: usize = 32;
/// Read this much at a time: large enough to keep a disk busy.
const CHUNK: usize = 256 * BLOCK_SIZE;

/// A hash tree and its root. 1/128 of the data in size: 16 MiB for 2 GiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    pub root: RootHash,
    pub data_blocks: u64,
    /// All levels, top level first, as they lie on disk.
    pub blocks: Vec<u8>,
}

impl Tree {
    /// The hashes of the data blocks, in order.
    pub fn leaves(&self) -> &[u8] {
        match Levels::of(self.data_blocks).0.last() {
            None => &self.root.0,
            Some(blocks) => {
                let level = usize::try_from(*blocks).unwrap_or(0) * BLOCK_SIZE;
                let hashes = usize::try_from(self.data_blocks).unwrap_or(0) * HASH;
                &self.blocks[self.blocks.len() - level..][..hashes]
            }
        }
    }

    /// What the verity partition holds: superblock and tree. The superblock's UUID is the first
    /// half of the root hash, as is the data partition's: nothing about it is random.
    pub fn image(&self) -> Vec<u8> {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.root.0[..16]);
        let superblock = Superblock {
            uuid: Guid(uuid),
            data_blocks: self.data_blocks,
            salt: SALT.to_vec(),
        };
        let mut image = superblock.to_block().to_vec();
        image.extend_from_slice(&self.blocks);
        image
    }
}

/// Takes data in pieces of any size, as it streams by, and keeps only the lowest level.
#[derive(Clone, Debug, Default)]
pub struct Hasher {
    partial: Vec<u8>,
    leaves: Vec<u8>,
    size: u64,
}

impl Hasher {
    pub fn new() -> Hasher {
        Hasher::default()
    }

    pub fn update(&mut self, mut data: &[u8]) {
        self.size += data.len() as u64;
        if !self.partial.is_empty() {
            let (fill, rest) = data.split_at(data.len().min(BLOCK_SIZE - self.partial.len()));
            self.partial.extend_from_slice(fill);
            data = rest;
            if self.partial.len() < BLOCK_SIZE {
                return;
            }
            self.leaves.extend_from_slice(&hash_block(&self.partial));
            self.partial.clear();
        }
        let blocks = data.chunks_exact(BLOCK_SIZE);
        self.partial.extend_from_slice(blocks.remainder());
        for block in blocks {
            self.leaves.extend_from_slice(&hash_block(block));
        }
    }

    /// The upper levels. The data must have been whole blocks, at least one.
    pub fn finish(self) -> Result<Tree, VerityError> {
        if self.size == 0 || !self.partial.is_empty() {
            return Err(VerityError::Size { size: self.size });
        }
        Ok(of_leaves(self.leaves))
    }

    /// The hashes of all blocks so far, in order: the lowest level.
    pub fn leaves(&self) -> &[u8] {
        &self.leaves
    }
}

/// The upper levels above the hashes of at least one block.
fn of_leaves(leaves: Vec<u8>) -> Tree {
    let data_blocks = (leaves.len() / HASH) as u64;
    let mut levels = Vec::new();
    let mut hashes = leaves;
    while hashes.len() > HASH {
        hashes.resize(hashes.len().next_multiple_of(BLOCK_SIZE), 0);
        let above = hashes
            .chunks_exact(BLOCK_SIZE)
            .flat_map(hash_block)
            .collect();
        levels.push(std::mem::replace(&mut hashes, above));
    }
    debug_assert_eq!(levels.len(), Levels::of(data_blocks).0.len());
    let mut root = [0; HASH];
    root.copy_from_slice(&hashes);
    Tree {
        root: RootHash(root),
        data_blocks,
        blocks: levels.into_iter().rev().flatten().collect(),
    }
}

/// Where hashes of blocks lead to; none if they are not whole hashes, at least one.
pub fn root_of_leaves(leaves: &[u8]) -> Option<RootHash> {
    let whole = !leaves.is_empty() && leaves.len().is_multiple_of(HASH);
    whole.then(|| of_leaves(leaves.to_vec()).root)
}

/// Format 1: the salt comes before the block.
pub fn hash_block(block: &[u8]) -> [u8; HASH] {
    Sha256::new()
        .chain_update(SALT)
        .chain_update(block)
        .finalize()
        .into()
}

/// Builds the tree of everything that `data` yields.
pub fn build(data: &mut impl Read) -> Result<Tree, VerityError> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match data.read(&mut buffer) {
            Ok(0) => return hasher.finish(),
            Ok(len) => hasher.update(&buffer[..len]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(VerityError::Read {
                    offset: hasher.size,
                    source,
                });
            }
        }
    }
}

/// The root hash of the first `size` bytes of `data`; it is an error if there are fewer.
pub fn root_hash_of(data: &mut impl Read, size: u64) -> Result<RootHash, VerityError> {
    let tree = build(&mut data.take(size))?;
    let got = tree.data_blocks * BLOCK_SIZE as u64;
    if got != size {
        return Err(VerityError::Read {
            offset: got,
            source: std::io::ErrorKind::UnexpectedEof.into(),
        });
    }
    Ok(tree.root)
}
