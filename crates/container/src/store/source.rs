//! Where an archive comes from, and the stack of readers it passes: hash, decompress, watch the end.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::rc::Rc;

use sha2::{Digest, Sha256};

use super::StoreError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    Directory(PathBuf),
    Url(String),
    Stdin,
}

impl Source {
    /// `-`, a URL, or a path.
    pub fn parse(text: &str) -> Self {
        let path = PathBuf::from(text);
        match text {
            "-" => Self::Stdin,
            url if url.starts_with("http://") || url.starts_with("https://") => {
                Self::Url(url.to_owned())
            }
            _ if path.is_dir() => Self::Directory(path),
            _ => Self::File(path),
        }
    }

    pub(super) fn open(&self) -> Result<Box<dyn Read>, StoreError> {
        match self {
            Self::File(path) | Self::Directory(path) => File::open(path)
                .map(|file| Box::new(file) as Box<dyn Read>)
                .map_err(StoreError::at("open", path)),
            Self::Url(url) => match ureq::get(url).call() {
                Ok(response) => Ok(Box::new(response.into_body().into_reader())),
                Err(error) => Err(StoreError::Fetch {
                    url: url.clone(),
                    source: Box::new(error),
                }),
            },
            Self::Stdin => Ok(Box::new(io::stdin())),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) | Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Url(url) => f.write_str(url),
            Self::Stdin => f.write_str("standard input"),
        }
    }
}

/// Hashes what passes. Nothing that passed is trusted before [`Hashing::finish`] was compared.
pub(super) struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Hashing<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
        }
    }

    /// Reads to the end and says the hash of it all.
    pub(super) fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(hex::encode(self.hasher.finalize()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

/// What the archive is packed with, by its first bytes.
pub(super) fn decompress<'a, R: Read + 'a>(reader: R) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::with_capacity(1 << 16, reader);
    let head = reader.fill_buf()?;
    let starts = |magic: &[u8]| head.starts_with(magic);
    Ok(if starts(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(reader))
    } else if starts(b"\xfd7zXZ\0") {
        Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(reader))
    } else if starts(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::Decoder::with_buffer(reader)?)
    } else {
        Box::new(reader)
    })
}

/// Counts the zero bytes at the end so far. A tar archive ends with at least a block of them: one
/// that does not was cut off between two entries, which its reader alone would not notice.
pub(super) struct Ending<R> {
    inner: R,
    zeros: Rc<Cell<u64>>,
}

impl<R: Read> Ending<R> {
    pub(super) fn new(inner: R) -> (Self, Rc<Cell<u64>>) {
        let zeros = Rc::new(Cell::new(0));
        (
            Self {
                inner,
                zeros: Rc::clone(&zeros),
            },
            zeros,
        )
    }
}

impl<R: Read> Read for Ending<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let tail = buffer[..n].iter().rev().take_while(|b| **b == 0).count();
        let before = if tail == n { self.zeros.get() } else { 0 };
        self.zeros.set(before + tail as u64);
        Ok(n)
    }
}
