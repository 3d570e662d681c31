//! dm-verity's on-disk format: root hashes, the superblock and where the levels of a tree lie.
//!
//! A verity partition is the superblock in block 0, then the tree, top level first: for 20,000
//! data blocks 1 block of 2 hashes, 2 blocks of 157 hashes, 157 blocks of 20,000 hashes. All of
//! it as `veritysetup format --format=1 --hash=sha256` writes it.

mod format;
#[cfg(feature = "tree")]
mod tree;

pub use format::{BLOCK_SIZE, Levels, SALT, Superblock, VerityError};
#[cfg(feature = "tree")]
pub use tree::{Hasher, Tree, build, hash_block, root_hash_of, root_of_leaves};

use crate::guid::parse_hex;
use std::fmt;
use std::str::FromStr;

/// The hash that a release's whole file system hangs from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RootHash(pub [u8; 32]);

/// Text that is not a root hash.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a root hash (want 64 hex digits)")]
pub struct RootHashError(String);

impl RootHash {
    /// Of every hash of a tree, in bytes.
    pub const SIZE: usize = 32;

    /// As text, 32 hex digits each.
    pub(crate) fn halves(&self) -> (String, String) {
        let text = self.to_string();
        let (first, second) = text.split_at(32);
        (first.to_owned(), second.to_owned())
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RootHash {
    type Err = RootHashError;

    fn from_str(text: &str) -> Result<RootHash, RootHashError> {
        parse_hex(text)
            .map(RootHash)
            .ok_or_else(|| RootHashError(text.to_owned()))
    }
}
