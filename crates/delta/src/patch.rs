//! Applying a delta: a reader of the new image.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::mpsc;
use std::thread;

use sha2::{Digest as _, Sha256};

use crate::bytes::read_at;
use crate::format::{
    ENTRY_LEN, Entry, HEADER_LEN, Header, ResultDigest, parse_index, result_digest,
};
use crate::segment::{Limits, Scratch, decode};
use crate::{DeltaError, error};

/// A delta whose header and index are in order.
#[derive(Debug)]
pub struct Patch<D> {
    delta: D,
    header: Header,
    entries: Vec<Entry>,
}

impl<D: Read + Seek> Patch<D> {
    pub fn open(mut delta: D) -> Result<Self, DeltaError> {
        let mut bytes = [0; HEADER_LEN];
        read_at(&mut delta, 0, &mut bytes).map_err(unexpected_end)?;
        let (header, digest) = Header::parse(&bytes)?;
        let mut index = vec![0; header.segments() * ENTRY_LEN];
        read_at(&mut delta, HEADER_LEN as u64, &mut index).map_err(unexpected_end)?;
        let entries = parse_index(&header, &digest, &index)?;
        Ok(Self {
            delta,
            header,
            entries,
        })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How many bytes of the file, from its start, are whole segments with the right digest: what
    /// an interrupted or damaged download need not fetch again.
    pub fn intact(&mut self) -> Result<u64, DeltaError> {
        let mut intact = (HEADER_LEN + self.entries.len() * ENTRY_LEN) as u64;
        let mut payload = Vec::new();
        for entry in &self.entries {
            payload.resize(entry.len, 0);
            match read_at(&mut self.delta, entry.offset, &mut payload) {
                Ok(()) if Sha256::digest(&payload)[..] == entry.payload => {}
                Ok(()) => break,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(e) => return Err(error::io("read the delta")(e)),
            }
            intact = entry.offset + entry.len as u64;
        }
        Ok(intact)
    }

    /// The new image, made of `old` as it is read. Each segment is checked before a byte of it is
    /// handed out.
    pub fn apply<O: Read + Seek>(self, mut old: O) -> Result<Applied<D, O>, DeltaError> {
        let got = old
            .seek(SeekFrom::End(0))
            .map_err(error::io("measure the old image"))?;
        // A slot is larger than the image in it.
        if got < self.header.old_size {
            let want = self.header.old_size;
            return Err(DeltaError::WrongSource { got, want });
        }
        Ok(Applied {
            maker: Maker {
                patch: self,
                old,
                payload: Vec::new(),
                scratch: Scratch::default(),
            },
            next: 0,
            ready: Ready::default(),
        })
    }
}

fn unexpected_end(source: io::Error) -> DeltaError {
    match source.kind() {
        io::ErrorKind::UnexpectedEof => DeltaError::NoDelta,
        _ => error::io("read the delta")(source),
    }
}

/// Makes segments. What it made is not checked yet.
struct Maker<D, O> {
    patch: Patch<D>,
    old: O,
    payload: Vec<u8>,
    scratch: Scratch,
}

impl<D: Read + Seek, O: Read + Seek> Maker<D, O> {
    fn make(&mut self, segment: usize, out: &mut Vec<u8>) -> Result<(), DeltaError> {
        let header = &self.patch.header;
        let entry = &self.patch.entries[segment];
        self.payload.resize(entry.len, 0);
        read_at(&mut self.patch.delta, entry.offset, &mut self.payload)
            .map_err(error::io("read the delta"))?;
        if Sha256::digest(&self.payload)[..] != entry.payload {
            let what = "its bytes have another digest";
            return Err(DeltaError::Segment { segment, what });
        }
        let limits = Limits {
            segment_len: header.segment_len(segment),
            window_size: header.window_size,
            old_size: header.old_size,
        };
        out.resize(limits.segment_len, 0);
        let old = &mut self.old;
        decode(&self.payload, &limits, old, &mut self.scratch, out).map_err(|e| match e {
            DeltaError::Damaged(what) | DeltaError::Zstd(what) => {
                DeltaError::Segment { segment, what }
            }
            e => e,
        })
    }
}

fn check(segment: usize, made: &[u8], result: &ResultDigest) -> Result<(), DeltaError> {
    match result_digest(made) == *result {
        true => Ok(()),
        false => Err(DeltaError::WrongResult(segment)),
    }
}

/// A segment, and how much of it was handed out.
#[derive(Default)]
struct Ready {
    bytes: Vec<u8>,
    given: usize,
}

impl Ready {
    fn is_empty(&self) -> bool {
        self.given == self.bytes.len()
    }

    fn give(&mut self, buffer: &mut [u8]) -> usize {
        let rest = &self.bytes[self.given..];
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        self.given += len;
        len
    }
}

/// See [`Patch::apply`].
pub struct Applied<D, O> {
    maker: Maker<D, O>,
    next: usize,
    ready: Ready,
}

impl<D, O> Applied<D, O>
where
    D: Read + Seek + Send + 'static,
    O: Read + Seek + Send + 'static,
{
    /// Makes the segments on a thread of their own, while the one before is being written. That costs one more of
    /// them in memory.
    pub fn ahead(mut self) -> io::Result<Ahead> {
        let entries = &self.maker.patch.entries;
        let results: Vec<ResultDigest> = entries.iter().map(|entry| entry.result).collect();
        let segments = self.next..results.len();
        let (send, made) = mpsc::sync_channel(0);
        let (back, used) = mpsc::channel::<Vec<u8>>();
        let make = move || {
            for segment in segments {
                let mut out = used.try_recv().unwrap_or_default();
                let made = self.maker.make(segment, &mut out).map(|()| out);
                let failed = made.is_err();
                if send.send(made).is_err() || failed {
                    return;
                }
            }
        };
        let next = self.next;
        let ready = std::mem::take(&mut self.ready);
        thread::Builder::new().name("segments".into()).spawn(make)?;
        Ok(Ahead {
            made,
            back,
            results,
            next,
            ready,
        })
    }
}

impl<D: Read + Seek, O: Read + Seek> Read for Applied<D, O> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ready.is_empty() {
            let Some(entry) = self.maker.patch.entries.get(self.next) else {
                // Whoever reads may keep us while it does something else that needs memory.
                self.ready = Ready::default();
                self.maker.payload = Vec::new();
                self.maker.scratch = Scratch::default();
                return Ok(0);
            };
            let result = entry.result;
            let mut bytes = std::mem::take(&mut self.ready).bytes;
            self.maker.make(self.next, &mut bytes)?;
            check(self.next, &bytes, &result)?;
            self.ready.bytes = bytes;
            self.next += 1;
        }
        Ok(self.ready.give(buffer))
    }
}

/// See [`Applied::ahead`].
pub struct Ahead {
    made: mpsc::Receiver<Result<Vec<u8>, DeltaError>>,
    /// Segments that were handed out, to be filled again.
    back: mpsc::Sender<Vec<u8>>,
    results: Vec<ResultDigest>,
    next: usize,
    ready: Ready,
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ready.is_empty() {
            let used = std::mem::take(&mut self.ready).bytes;
            let Some(result) = self.results.get(self.next) else {
                return Ok(0);
            };
            if !used.is_empty() {
                let _ = self.back.send(used);
            }
            let gone = |_| io::Error::other("the thread that makes the segments is gone");
            let bytes = self.made.recv().map_err(gone)??;
            check(self.next, &bytes, result)?;
            self.ready.bytes = bytes;
            self.next += 1;
        }
        Ok(self.ready.give(buffer))
    }
}
