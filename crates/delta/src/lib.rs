//! Small downloads in bounded memory. Three ways to the same image, from the smallest up:
//!
//! 1. [`Patch`]: a delta from one known image. The new image is cut into segments of 4 MiB, each
//!    described on its own against at most 16 MiB of the old one, so that a host needs neither the
//!    whole old image nor the whole delta in memory.
//! 2. [`reuse`]: from any image. The new image's block hashes are compared with those of the
//!    running one; only frames with blocks that are not here are fetched.
//! 3. [`frames`]: the whole image, compressed in frames that can be read one by one.
//!
//! Every reader here yields an image whose bytes nobody has to trust: whoever writes them to a
//! slot checks the verity root hash over what is on the disk. The digests inside of the formats
//! only make a damaged download known early and by name.

mod bsdiff;
mod bytes;
mod error;
mod format;
pub mod frames;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
#[cfg(feature = "make")]
pub mod make;
mod patch;
pub mod reuse;
mod segment;
mod zstd;

pub use error::DeltaError;
pub use format::{Header, SEGMENT_SIZE, WINDOW_SIZE};
pub use patch::{Ahead, Applied, Patch};

/// The unit of everything: verity's block.
pub const BLOCK: usize = 4096;
