//! Applying a delta: a reader of the new image.

use std::io::{self, Read, Seek, SeekFrom};

use sha2::{Digest as _, Sha256};

use crate::bytes::read_at;
use crate::format::{ENTRY_LEN, Entry, HEADER_LEN, Header, parse_index};
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
            patch: self,
            old,
            next: 0,
            ready: Vec::new(),
            given: 0,
            payload: Vec::new(),
            scratch: Scratch::default(),
        })
    }
}

fn unexpected_end(source: io::Error) -> DeltaError {
    match source.kind() {
        io::ErrorKind::UnexpectedEof => DeltaError::NoDelta,
        _ => error::io("read the delta")(source),
    }
}

/// See [`Patch::apply`].
pub struct Applied<D, O> {
    patch: Patch<D>,
    old: O,
    next: usize,
    ready: Vec<u8>,
    given: usize,
    payload: Vec<u8>,
    scratch: Scratch,
}

impl<D: Read + Seek, O: Read + Seek> Applied<D, O> {
    fn make(&mut self, segment: usize) -> Result<(), DeltaError> {
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
        self.ready.resize(limits.segment_len, 0);
        decode(
            &self.payload,
            &limits,
            &mut self.old,
            &mut self.scratch,
            &mut self.ready,
        )
        .map_err(|e| match e {
            DeltaError::Damaged(what) | DeltaError::Zstd(what) => {
                DeltaError::Segment { segment, what }
            }
            e => e,
        })?;
        if Sha256::digest(&self.ready)[..] != entry.result {
            return Err(DeltaError::WrongResult(segment));
        }
        Ok(())
    }
}

impl<D: Read + Seek, O: Read + Seek> Read for Applied<D, O> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.ready.len() {
            if self.next == self.patch.entries.len() {
                // Whoever reads may keep us while it does something else that needs memory.
                self.ready = Vec::new();
                self.given = 0;
                self.payload = Vec::new();
                self.scratch = Scratch::default();
                return Ok(0);
            }
            self.given = 0;
            self.ready.clear();
            self.make(self.next)?;
            self.next += 1;
        }
        let rest = &self.ready[self.given..];
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        self.given += len;
        Ok(len)
    }
}
