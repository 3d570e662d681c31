//! Pairs that were not written lately, out of memory: in files that the kernel caches as long as there is room.
//!
//! The files have no name, and are gone with the process. They hold nothing that log and checkpoint do not hold too, so
//! nothing here is ever synced, and a restart fills them again.
//!
//! ```text
//! length u32 | CRC u32 | pair | zeros up to 8 bytes
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::wire::Encoded;

const HEAD: usize = 8;
/// Records start at multiples of this.
const UNIT: u64 = 8;
/// A file that has so many bytes is followed by another.
const FILE: u64 = 64 << 20;
/// What is written at once.
const CHUNK: usize = 256 << 10;
/// As far as a place can point within a file. A file gets longer than [`FILE`] only while it cannot be written.
const REACH: u64 = UNIT << 25;
/// Shorter pairs are not worth a place, longer ones have none.
const SHORTEST: usize = 64;
const LONGEST: usize = (1 << 24) - 1;
const FILES: usize = 1 << 15;

/// Where a pair lies: file (15 bits), offset in units (25), length (24).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u64);

impl Place {
    fn new(file: usize, offset: u64, length: usize) -> Self {
        Self((file as u64) << 49 | (offset / UNIT) << 24 | length as u64)
    }

    fn file(self) -> usize {
        usize::try_from(self.0 >> 49).unwrap_or(usize::MAX)
    }

    fn offset(self) -> u64 {
        (self.0 >> 24 & ((1 << 25) - 1)) * UNIT
    }

    pub(super) fn length(self) -> usize {
        usize::try_from(self.0 & LONGEST as u64).unwrap_or(LONGEST)
    }
}

/// How much of a file a pair takes.
fn room(length: usize) -> u64 {
    (HEAD + length).next_multiple_of(8) as u64
}

pub(super) fn fits(length: usize) -> bool {
    (SHORTEST..=LONGEST).contains(&length)
}

/// A pair that may have to be read first. That needs no lock.
#[derive(Debug, Clone)]
pub enum Lazy {
    Here(Encoded),
    Filed(Arc<File>, Place),
}

impl Lazy {
    pub fn load(&self) -> Encoded {
        match self {
            Self::Here(pair) => pair.clone(),
            Self::Filed(file, place) => read(file, *place).unwrap_or_else(|e| lost(&e)),
        }
    }
}

fn read(file: &File, place: Place) -> io::Result<Encoded> {
    let mut bytes = vec![0; HEAD + place.length()];
    file.read_exact_at(&mut bytes, place.offset())?;
    let (head, pair) = bytes.split_at(HEAD);
    if head != header(pair) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a checksum is wrong",
        ));
    }
    Ok(Encoded(Arc::from(pair)))
}

fn header(pair: &[u8]) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    let length = u32::try_from(pair.len()).unwrap_or(u32::MAX);
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..].copy_from_slice(&crc32fast::hash(pair).to_le_bytes());
    head
}

/// Going on would give wrong answers. What is on disk is whole, so a restart helps.
fn lost(error: &io::Error) -> ! {
    tracing::error!(
        "cannot read a value back, so this member stops; started again, it reads checkpoint and log: {error}"
    );
    std::process::exit(1)
}

#[derive(Debug)]
struct Book {
    file: Arc<File>,
    /// Bytes in the file, and how many of them are still wanted (with those that wait in the tail).
    written: u64,
    live: u64,
}

#[derive(Debug)]
pub struct Shelf {
    dir: PathBuf,
    /// Bytes of pairs that stay in memory.
    pub(super) room: u64,
    books: Vec<Option<Book>>,
    head: Option<usize>,
    /// What follows in the head's file and is not written yet.
    tail: Vec<u8>,
    /// How long the tail is when it is written next.
    due: usize,
    /// The file that is cleared because most of it is dead, and how far that is.
    clearing: Option<(usize, u64)>,
    failed: bool,
}

/// A name that no other has, for a moment.
fn unnamed(dir: &Path) -> io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!("values-{}-{number}.part", std::process::id()));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

impl Shelf {
    /// `room` is how many bytes of pairs stay in memory.
    pub fn new(dir: &Path, room: u64) -> Self {
        Self {
            dir: dir.to_path_buf(),
            room,
            books: Vec::new(),
            head: None,
            tail: Vec::new(),
            due: CHUNK,
            clearing: None,
            failed: false,
        }
    }

    fn complain(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failed, true) {
            tracing::warn!(
                "{}: values stay in memory, as they cannot be written: {error}",
                self.dir.display()
            );
        }
    }

    /// Puts a pair away; `None` if that is not possible now.
    pub(super) fn put(&mut self, pair: &[u8]) -> Option<Place> {
        let full = |shelf: &Self| {
            shelf.head.is_none_or(|head| {
                let written = shelf.books[head].as_ref().map_or(u64::MAX, |b| b.written);
                written >= FILE && shelf.tail.is_empty()
            })
        };
        if full(self) && !self.turn_over() {
            return None;
        }
        let head = self.head?;
        let book = self.books.get_mut(head)?.as_mut()?;
        let offset = book.written + self.tail.len() as u64;
        let need = room(pair.len());
        if offset + need > REACH {
            return None;
        }
        book.live += need;
        let end = self.tail.len() + usize::try_from(need).unwrap_or(0);
        self.tail.extend_from_slice(&header(pair));
        self.tail.extend_from_slice(pair);
        self.tail.resize(end, 0);
        if self.tail.len() >= self.due {
            self.flush(head);
        }
        Some(Place::new(head, offset, pair.len()))
    }

    fn flush(&mut self, head: usize) {
        let Some(book) = self.books.get_mut(head).and_then(Option::as_mut) else {
            return;
        };
        match book.file.write_all_at(&self.tail, book.written) {
            Ok(()) => {
                book.written += self.tail.len() as u64;
                self.tail.clear();
                if self.tail.capacity() > 4 * CHUNK {
                    self.tail = Vec::new();
                }
                self.due = CHUNK;
                self.failed = false;
            }
            Err(error) => {
                // It can be read from here as well.
                self.due = self.tail.len() + CHUNK;
                self.complain(&error);
            }
        }
    }

    /// Goes on in another file.
    fn turn_over(&mut self) -> bool {
        let free = self.books.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.books.len());
        if slot >= FILES {
            return false;
        }
        let file = match unnamed(&self.dir) {
            Ok(file) => Arc::new(file),
            Err(error) => {
                self.complain(&error);
                return false;
            }
        };
        let book = Book {
            file,
            written: 0,
            live: 0,
        };
        if slot == self.books.len() {
            self.books.push(Some(book));
        } else {
            self.books[slot] = Some(book);
        }
        let before = self.head.replace(slot);
        if let Some(before) = before {
            self.review(before);
        }
        true
    }

    pub(super) fn find(&self, place: Place) -> Lazy {
        let Some(book) = self.books.get(place.file()).and_then(Option::as_ref) else {
            lost(&io::Error::other("it is in no file"))
        };
        if place.offset() < book.written {
            return Lazy::Filed(book.file.clone(), place);
        }
        let start = usize::try_from(place.offset() - book.written).unwrap_or(usize::MAX);
        let from = start.saturating_add(HEAD);
        match self.tail.get(from..from.saturating_add(place.length())) {
            Some(pair) => Lazy::Here(Encoded(Arc::from(pair))),
            None => lost(&io::Error::other("it is behind the end of its file")),
        }
    }

    /// Nobody wants that pair any more.
    pub(super) fn forget(&mut self, place: Place) {
        if let Some(book) = self.books.get_mut(place.file()).and_then(Option::as_mut) {
            book.live = book.live.saturating_sub(room(place.length()));
            self.review(place.file());
        }
    }

    fn review(&mut self, file: usize) {
        if self.head == Some(file) {
            return;
        }
        let Some(book) = self.books.get(file).and_then(Option::as_ref) else {
            return;
        };
        if book.live == 0 {
            self.books[file] = None;
            self.clearing.take_if(|(clearing, _)| *clearing == file);
        } else if book.live < book.written / 2 && self.clearing.is_none() {
            self.clearing = Some((file, 0));
        }
    }

    pub(super) fn wants_clearing(&self) -> bool {
        self.clearing.is_some()
    }

    /// Gives up clearing for now: there is no place for what is left.
    pub(super) fn postpone(&mut self) {
        self.clearing = None;
    }

    /// The next pairs of the file that is being cleared, wanted or not.
    pub(super) fn next_to_clear(&mut self) -> Vec<(Place, Encoded)> {
        let Some((file, offset)) = self.clearing else {
            return Vec::new();
        };
        let mut found = Vec::new();
        let mut at = offset;
        if let Some(book) = self.books.get(file).and_then(Option::as_ref) {
            let left = book.written.saturating_sub(offset);
            let size = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
            let mut bytes = vec![0; size];
            if let Err(error) = book.file.read_exact_at(&mut bytes, offset) {
                lost(&error);
            }
            let mut rest = bytes.as_slice();
            while let Some(length) = rest.first_chunk().copied().map(u32::from_le_bytes) {
                let length = usize::try_from(length).unwrap_or(LONGEST);
                let place = Place::new(file, at, length);
                let need = room(length);
                let whole = usize::try_from(need).unwrap_or(usize::MAX);
                if let Some(tail) = rest.get(whole..) {
                    let (head, pair) = rest[..HEAD + length].split_at(HEAD);
                    if head != header(pair) {
                        lost(&io::Error::other("a checksum is wrong"));
                    }
                    found.push((place, Encoded(Arc::from(pair))));
                    rest = tail;
                } else if found.is_empty() {
                    found.push((place, Lazy::Filed(book.file.clone(), place).load()));
                    rest = &[];
                } else {
                    break;
                }
                at += need;
            }
        }
        if found.is_empty() {
            self.clearing = None;
            let next = (0..self.books.len()).find(|i| {
                let book = self.books[*i].as_ref();
                *i != file && book.is_some_and(|b| b.live < b.written / 2)
            });
            if let Some(next) = next {
                self.review(next);
            }
        } else {
            self.clearing = Some((file, at));
        }
        found
    }

    /// Bytes that the files have, and those of them that are wanted.
    #[cfg(test)]
    pub(super) fn extent(&self) -> (u64, u64) {
        self.books
            .iter()
            .flatten()
            .fold((self.tail.len() as u64, 0), |(written, live), book| {
                (written + book.written, live + book.live)
            })
    }
}
