//! An image in independent zstd frames: any zstd unpacks the whole, and each frame can be fetched
//! and unpacked alone. The table behind the frames is that of zstd's seekable format, for other
//! tools; a host uses the block index ([`crate::reuse`]), which the manifest's signature covers.

#[cfg(feature = "make")]
use std::io::{Read, Write};

/// Of the image, in a frame. Larger ones compress better, smaller ones bring less that is not
/// wanted; see `docs/benchmarks.md`.
pub const FRAME_SIZE: usize = 128 << 10;

#[cfg(feature = "make")]
const SKIPPABLE: u32 = 0x184d_2a5e;
#[cfg(feature = "make")]
const SEEKABLE: u32 = 0x8f92_eab1;

/// Compresses all of `from`, on two processors; the bytes do not depend on how many there are.
/// Returns the length of each frame.
#[cfg(feature = "make")]
pub fn compress(
    from: &mut impl Read,
    out: &mut impl Write,
    frame_size: usize,
    level: i32,
) -> Result<Vec<u32>, crate::DeltaError> {
    use crate::error;
    let write = error::io("write the compressed image");
    let mut table = Vec::new();
    let mut lengths = Vec::new();
    loop {
        let (first, second) = (read_frame(from, frame_size)?, read_frame(from, frame_size)?);
        let packed = std::thread::scope(|scope| {
            let second = scope.spawn(|| crate::zstd::compress(&second, &[], level));
            let first = crate::zstd::compress(&first, &[], level);
            let died = Err(crate::DeltaError::Zstd("a worker died"));
            (first, second.join().unwrap_or(died))
        });
        for (data, packed) in [(&first, packed.0), (&second, packed.1)] {
            if data.is_empty() {
                continue;
            }
            let packed = packed?;
            out.write_all(&packed).map_err(&write)?;
            let int = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
            lengths.push(int(packed.len()));
            table.extend(int(packed.len()).to_le_bytes());
            table.extend(int(data.len()).to_le_bytes());
        }
        if second.len() < frame_size {
            break;
        }
    }
    let frames = u32::try_from(lengths.len()).unwrap_or(u32::MAX);
    let size = u32::try_from(table.len() + 9).unwrap_or(u32::MAX);
    let mut tail = Vec::new();
    tail.extend(SKIPPABLE.to_le_bytes());
    tail.extend(size.to_le_bytes());
    tail.extend(table);
    tail.extend(frames.to_le_bytes());
    tail.push(0);
    tail.extend(SEEKABLE.to_le_bytes());
    out.write_all(&tail).map_err(&write)?;
    Ok(lengths)
}

#[cfg(feature = "make")]
fn read_frame(from: &mut impl Read, size: usize) -> Result<Vec<u8>, crate::DeltaError> {
    let mut data = Vec::with_capacity(size);
    from.take(size as u64)
        .read_to_end(&mut data)
        .map_err(crate::error::io("read the image"))?;
    Ok(data)
}
