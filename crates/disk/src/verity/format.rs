//! The superblock and the arithmetic of levels.

use crate::Guid;

/// Data and hash blocks are both this long.
pub const BLOCK_SIZE: usize = 4096;
const BLOCK: u64 = BLOCK_SIZE as u64;
const HASHES_PER_BLOCK: u64 = BLOCK / 32;

/// SHA-256("orlop-verity-salt"). A constant, so that the same tree of files always gives the
/// same root hash; the salt's only purpose is against precomputed collisions.
pub const SALT: [u8; 32] = [
    0x9a, 0x7e, 0xbc, 0xca, 0xe9, 0x08, 0x0d, 0xce, 0xe6, 0x7b, 0x43, 0x5f, 0x9d, 0x5f, 0x87, 0x54,
    0x49, 0x4f, 0x7f, 0xfc, 0x96, 0x08, 0xef, 0x0d, 0xc6, 0x52, 0x77, 0x35, 0x77, 0xe6, 0x80, 0x75,
];

#[derive(Debug, thiserror::Error)]
pub enum VerityError {
    #[error("{size} bytes cannot be hashed: want a multiple of {BLOCK_SIZE}, and not nothing")]
    Size { size: u64 },
    #[error("cannot read the data to hash at byte {offset}")]
    Read {
        offset: u64,
        #[source]
        source: std::io::Error,
    },
    #[error("not a verity superblock we can use: {why}")]
    Superblock { why: &'static str },
}

/// How many blocks each level of a tree has, top level first. A single data block has no levels:
/// its hash is the root hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels(pub Vec<u64>);

impl Levels {
    pub fn of(data_blocks: u64) -> Levels {
        let mut levels = Vec::new();
        let mut blocks = data_blocks;
        while blocks > 1 {
            blocks = blocks.div_ceil(HASHES_PER_BLOCK);
            levels.insert(0, blocks);
        }
        Levels(levels)
    }

    /// Where the lowest level, the hashes of the data, begins on the verity partition, in bytes.
    /// A single data block has none.
    pub fn leaves_at(&self) -> Option<u64> {
        let (_, above) = self.0.split_last()?;
        Some((1 + above.iter().sum::<u64>()) * BLOCK)
    }

    /// Bytes on the verity partition: the superblock's block and all levels.
    pub fn image_size(&self) -> u64 {
        (1 + self.0.iter().sum::<u64>()) * BLOCK
    }
}

/// What `veritysetup` finds out from block 0 of a verity partition (`struct verity_sb` of
/// cryptsetup, 512 bytes). The kernel never reads it; we do not trust it either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub uuid: Guid,
    pub data_blocks: u64,
    pub salt: Vec<u8>,
}

impl Superblock {
    pub const SIZE: usize = 512;

    /// The first block of the verity partition. A salt beyond 256 bytes is cut.
    pub fn to_block(&self) -> [u8; BLOCK_SIZE] {
        let salt = &self.salt[..self.salt.len().min(256)];
        let mut block = [0; BLOCK_SIZE];
        block[0..8].copy_from_slice(b"verity\0\0");
        block[8..12].copy_from_slice(&1u32.to_le_bytes());
        block[12..16].copy_from_slice(&1u32.to_le_bytes());
        block[16..32].copy_from_slice(&self.uuid.0);
        block[32..38].copy_from_slice(b"sha256");
        block[64..68].copy_from_slice(&4096u32.to_le_bytes());
        block[68..72].copy_from_slice(&4096u32.to_le_bytes());
        block[72..80].copy_from_slice(&self.data_blocks.to_le_bytes());
        block[80..82].copy_from_slice(&u16::try_from(salt.len()).unwrap_or(256).to_le_bytes());
        block[88..88 + salt.len()].copy_from_slice(salt);
        block
    }

    pub fn parse(bytes: &[u8]) -> Result<Superblock, VerityError> {
        let bad = |why| VerityError::Superblock { why };
        let Some(block) = bytes.first_chunk::<{ Superblock::SIZE }>() else {
            return Err(bad("shorter than 512 bytes"));
        };
        let le = |at: usize, len: usize| {
            block[at..at + len]
                .iter()
                .rev()
                .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        if &block[0..8] != b"verity\0\0" {
            return Err(bad("no signature"));
        }
        if le(8, 4) != 1 || le(12, 4) != 1 {
            return Err(bad("version is not 1 or type is not 1"));
        }
        if &block[32..64] != b"sha256\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" {
            return Err(bad("algorithm is not sha256"));
        }
        if le(64, 4) != BLOCK || le(68, 4) != BLOCK {
            return Err(bad("blocks are not 4096 bytes"));
        }
        let salt_len = usize::try_from(le(80, 2)).unwrap_or(usize::MAX);
        let salt = block[88..344]
            .get(..salt_len)
            .ok_or_else(|| bad("salt is longer than 256 bytes"))?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&block[16..32]);
        Ok(Superblock {
            uuid: Guid(uuid),
            data_blocks: le(72, 8),
            salt: salt.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        let check = |blocks, want: &[u64]| assert_eq!(Levels::of(blocks).0, want, "{blocks}");
        check(1, &[]);
        check(2, &[1]);
        check(128, &[1]);
        check(129, &[1, 2]);
        check(16384, &[1, 128]);
        check(16385, &[1, 2, 129]);
        check(20000, &[1, 2, 157]);
        assert_eq!(Levels::of(16385).image_size(), 133 * 4096);
        assert_eq!(Levels::of(16385).leaves_at(), Some(4 * 4096));
        assert_eq!(Levels::of(1).leaves_at(), None);
        // A full slot of the standard layout.
        assert!(Levels::of(524_288).image_size() < 17 << 20);
    }

    #[test]
    fn superblock_round_trip() {
        let superblock = Superblock {
            uuid: Guid([7; 16]),
            data_blocks: 0x0102_0304_0506,
            salt: SALT.to_vec(),
        };
        let block = superblock.to_block();
        assert_eq!(Superblock::parse(&block).unwrap(), superblock);
        for (at, what) in [
            (0, "signature"),
            (8, "version"),
            (12, "type"),
            (35, "algorithm"),
            (65, "block"),
            (81, "salt"),
        ] {
            let mut bad = block;
            bad[at] ^= 0xff;
            assert!(Superblock::parse(&bad).is_err(), "{what}");
        }
        assert!(Superblock::parse(&block[..511]).is_err());
    }
}
