//! Blocks that are here already: the verity tree of the running image is the index of what it has.
//!
//! The *block index* of a release has the verity hash of each block of its image and the length of
//! each frame of its compressed form:
//!
//! ```text
//! "orlopIDX"  version u16  0 u16  frame size u32  image size u64  frame lengths u32 …  hashes [32] …
//! ```
//!
//! The hashes are the lowest level of the verity tree, so they hang from the root hash like
//! everything else. A frame all of whose blocks are in the running image is put together from
//! there; the others are fetched, and lie one after the other in one file.

use std::io::{self, Read, Seek};
use std::ops::Range;

use disk::verity::{self, RootHash};

use crate::bytes::{Input, read_at};
use crate::{BLOCK, DeltaError, error, zstd};

const MAGIC: &[u8; 8] = b"orlopIDX";
const VERSION: u16 = 1;
const HASH: usize = 32;
const HEADER_LEN: usize = 24;
const LARGEST_FRAME: usize = 4 << 20;

/// What a release's image consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockIndex {
    frame_size: usize,
    image_size: u64,
    frames: Vec<u32>,
    hashes: Vec<u8>,
}

/// What the running image has: hashes (their beginnings), sorted, and where the blocks are.
pub struct Have(Vec<([u8; 8], u32)>);

impl Have {
    /// From the lowest level of the running image's verity tree.
    pub fn new(hashes: &[u8]) -> Self {
        let hashes = hashes.chunks_exact(HASH).zip(0u32..);
        let mut blocks: Vec<_> = hashes
            .filter_map(|(hash, block)| Some((*hash.first_chunk()?, block)))
            .collect();
        blocks.sort_unstable();
        blocks.dedup_by_key(|(hash, _)| *hash);
        Self(blocks)
    }

    fn find(&self, hash: &[u8]) -> Option<u32> {
        let short = hash.first_chunk()?;
        let at = self.0.binary_search_by(|(hash, _)| hash.cmp(short)).ok()?;
        Some(self.0[at].1)
    }
}

impl BlockIndex {
    #[cfg(feature = "make")]
    pub fn new(frame_size: usize, image_size: u64, frames: Vec<u32>, hashes: Vec<u8>) -> Self {
        Self {
            frame_size,
            image_size,
            frames,
            hashes,
        }
    }

    #[cfg(feature = "make")]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend([0; 2]);
        out.extend(
            u32::try_from(self.frame_size)
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        out.extend(self.image_size.to_le_bytes());
        for frame in &self.frames {
            out.extend(frame.to_le_bytes());
        }
        out.extend_from_slice(&self.hashes);
        out
    }

    /// Only an index whose hashes lead to `root` is one.
    pub fn parse(bytes: &[u8], root: &RootHash) -> Result<Self, DeltaError> {
        let mut input = Input(bytes);
        let mut header = || {
            let magic = input.array::<8>()?;
            let version = input.u16()?;
            input.u16()?;
            Some((magic, version, input.u32()?, input.u64()?))
        };
        let (magic, version, frame_size, image_size) =
            header().ok_or(DeltaError::Index("it is cut off"))?;
        if magic != *MAGIC {
            return Err(DeltaError::Index("it is something else"));
        }
        if version != VERSION {
            return Err(DeltaError::Format(version));
        }
        let frame_size = usize::try_from(frame_size).unwrap_or(usize::MAX);
        let block = BLOCK as u64;
        let sizes = (BLOCK..=LARGEST_FRAME).contains(&frame_size)
            && frame_size.is_multiple_of(BLOCK)
            && image_size > 0
            && image_size.is_multiple_of(block)
            && image_size / block <= u64::from(u32::MAX);
        if !sizes {
            return Err(DeltaError::Index("its sizes make no sense"));
        }
        let frames = usize::try_from(image_size.div_ceil(frame_size as u64)).unwrap_or(usize::MAX);
        let blocks = usize::try_from(image_size / block).unwrap_or(usize::MAX);
        if bytes.len() != HEADER_LEN + 4 * frames + HASH * blocks {
            return Err(DeltaError::Index("its length is not that of its sizes"));
        }
        let lengths: Vec<u32> = (0..frames).map_while(|_| input.u32()).collect();
        if lengths.iter().any(|len| *len as usize > 2 * LARGEST_FRAME) {
            return Err(DeltaError::Index("a frame is larger than what it makes"));
        }
        let index = Self {
            frame_size,
            image_size,
            frames: lengths,
            hashes: input.0.to_vec(),
        };
        if verity::root_of_leaves(&index.hashes) != Some(*root) {
            return Err(DeltaError::Index("its hashes do not lead to the root hash"));
        }
        Ok(index)
    }

    fn hash(&self, block: u64) -> &[u8] {
        let at = usize::try_from(block).unwrap_or(0) * HASH;
        &self.hashes[at..at + HASH]
    }

    fn blocks_of(&self, frame: usize) -> Range<u64> {
        let per_frame = (self.frame_size / BLOCK) as u64;
        let end = (frame as u64 + 1) * per_frame;
        frame as u64 * per_frame..end.min(self.image_size / BLOCK as u64)
    }

    fn is_missing(&self, frame: usize, have: &Have) -> bool {
        self.blocks_of(frame)
            .any(|block| have.find(self.hash(block)).is_none())
    }

    /// What has to be fetched of the compressed image: ranges of bytes, in order. Neighbours are one.
    pub fn missing(&self, have: &Have) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut at = 0;
        for (frame, len) in self.frames.iter().enumerate() {
            let range = at..at + u64::from(*len);
            at = range.end;
            if !self.is_missing(frame, have) {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        ranges
    }

    /// The image, of blocks in `old` and of the fetched frames, one after the other in `fetched`.
    /// No block is handed out whose hash is wrong.
    pub fn rebuild<O: Read + Seek, F: Read>(self, have: Have, old: O, fetched: F) -> Rebuilt<O, F> {
        Rebuilt {
            ready: vec![0; self.frame_size],
            given: self.frame_size,
            index: self,
            have,
            old,
            fetched,
            packed: Vec::new(),
            next: 0,
        }
    }
}

/// See [`BlockIndex::rebuild`].
pub struct Rebuilt<O, F> {
    index: BlockIndex,
    have: Have,
    old: O,
    fetched: F,
    packed: Vec<u8>,
    ready: Vec<u8>,
    given: usize,
    next: usize,
}

impl<O: Read + Seek, F: Read> Rebuilt<O, F> {
    fn make(&mut self, frame: usize) -> Result<(), DeltaError> {
        let blocks = self.index.blocks_of(frame);
        let len = usize::try_from(blocks.end - blocks.start).unwrap_or(0) * BLOCK;
        self.ready.resize(len, 0);
        let fetched = self.index.is_missing(frame, &self.have);
        if fetched {
            self.packed.resize(self.index.frames[frame] as usize, 0);
            self.fetched
                .read_exact(&mut self.packed)
                .map_err(error::io("read the fetched frames"))?;
            zstd::decompress(&self.packed, &[], &mut self.ready)?;
        }
        for (block, data) in blocks.zip(self.ready.chunks_exact_mut(BLOCK)) {
            let hash = self.index.hash(block);
            if !fetched {
                let from = self.have.find(hash).ok_or(DeltaError::Missing(block))?;
                read_at(&mut self.old, u64::from(from) * BLOCK as u64, data)
                    .map_err(error::io("read the running image"))?;
            }
            if verity::hash_block(data)[..] != *hash {
                return Err(DeltaError::Missing(block));
            }
        }
        Ok(())
    }
}

impl<O: Read + Seek, F: Read> Read for Rebuilt<O, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.ready.len() {
            if self.next == self.index.frames.len() {
                return Ok(0);
            }
            self.make(self.next)?;
            self.next += 1;
            self.given = 0;
        }
        let rest = &self.ready[self.given..];
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        self.given += len;
        Ok(len)
    }
}
