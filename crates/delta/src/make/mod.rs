//! Making deltas, on as many processors as one likes, in bounded memory: some 300 MiB for each
//! worker and an index of the old image of about 1/100 of its size.

mod encode;
mod index;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use disk::io::Placed;

use crate::format::{ENTRY_LEN, Entry, HEADER_LEN, Header, index_to_bytes};
use crate::{DeltaError, SEGMENT_SIZE, WINDOW_SIZE, error};

pub(crate) use encode::Encoded;
pub(crate) use index::Index;

/// What the two images are called in the header.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    pub source: [u8; 32],
    pub target: [u8; 32],
}

/// How it is done. The result does not depend on `workers`.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub workers: usize,
    pub segment_size: usize,
    pub window_size: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            segment_size: SEGMENT_SIZE,
            window_size: WINDOW_SIZE,
        }
    }
}

/// What became of the segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Of the delta, in bytes.
    pub size: u64,
    pub segments: usize,
    /// All of their blocks are somewhere in the old image.
    pub copied: usize,
    /// For the others, which of the two was smaller.
    pub zstd: usize,
    pub bsdiff: usize,
    /// Bytes of the new image that are blocks of the old one.
    pub copied_bytes: u64,
}

/// Writes the delta from `old` to `new`. `progress` is told how many bytes of the new image are
/// described, and of how many.
pub fn make(
    old: &File,
    new: &File,
    names: Names,
    out: &mut (impl Write + Seek + Send),
    options: Options,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Made, DeltaError> {
    let size = |file: &File, what| Ok(file.metadata().map_err(error::io(what))?.len());
    let header = Header {
        segment_size: options.segment_size,
        window_size: options.window_size,
        old_size: size(old, "measure the old image")?,
        new_size: size(new, "measure the new image")?,
        source: names.source,
        target: names.target,
    };
    let write = error::io("write the delta");
    let start = (HEADER_LEN + header.segments() * ENTRY_LEN) as u64;
    out.seek(SeekFrom::Start(start)).map_err(&write)?;

    let index = Index::of(old)?;
    let next = AtomicUsize::new(0);
    let sink = Mutex::new(Sink {
        out,
        waiting: BTreeMap::new(),
        entries: Vec::new(),
        offset: start,
        made: Made::default(),
        described: 0,
    });
    let lock = || sink.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || -> Result<(), DeltaError> {
        let file = old
            .try_clone()
            .map_err(error::io("open the old image again"))?;
        let mut worker = encode::Worker::new(Placed::new(file));
        loop {
            let segment = next.fetch_add(1, Ordering::Relaxed);
            if segment >= header.segments() {
                return Ok(());
            }
            let mut data = vec![0; header.segment_len(segment)];
            let at = segment as u64 * header.segment_size as u64;
            new.read_exact_at(&mut data, at)
                .map_err(error::io("read the new image"))?;
            let encoded = worker.encode(&header, &index, at, &data)?;
            let described = {
                let mut sink = lock();
                sink.described += data.len() as u64;
                sink.put(segment, encoded)?;
                sink.described
            };
            progress(described, header.new_size);
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..options.workers).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for other in others {
            let other = other
                .join()
                .unwrap_or(Err(DeltaError::Damaged("a worker died")));
            result = result.and(other);
        }
        result
    })?;

    let sink = sink.into_inner().unwrap_or_else(PoisonError::into_inner);
    let index = index_to_bytes(&sink.entries);
    sink.out.rewind().map_err(&write)?;
    sink.out
        .write_all(&header.to_bytes(&index))
        .map_err(&write)?;
    sink.out.write_all(&index).map_err(&write)?;
    sink.out.flush().map_err(&write)?;
    Ok(Made {
        size: sink.offset,
        segments: sink.entries.len(),
        ..sink.made
    })
}

/// Segments are written in their order, whoever is ready first.
struct Sink<'a, W> {
    out: &'a mut W,
    waiting: BTreeMap<usize, Encoded>,
    entries: Vec<Entry>,
    offset: u64,
    made: Made,
    described: u64,
}

impl<W: Write> Sink<'_, W> {
    fn put(&mut self, segment: usize, encoded: Encoded) -> Result<(), DeltaError> {
        self.waiting.insert(segment, encoded);
        while let Some(encoded) = self.waiting.remove(&self.entries.len()) {
            self.out
                .write_all(&encoded.payload)
                .map_err(error::io("write the delta"))?;
            let len = encoded.payload.len();
            self.entries.push(Entry {
                offset: self.offset,
                len,
                payload: encoded.payload_digest,
                result: encoded.result_digest,
            });
            self.offset += len as u64;
            self.made.copied_bytes += encoded.copied as u64;
            match encoded.method {
                crate::segment::ZSTD => self.made.zstd += 1,
                crate::segment::BSDIFF => self.made.bsdiff += 1,
                _ => self.made.copied += 1,
            }
        }
        Ok(())
    }
}
