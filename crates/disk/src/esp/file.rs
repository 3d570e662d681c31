//! A file of the volume as something to read and seek in, for what is too large to hold twice.

use std::io::{self, Read, Seek, SeekFrom};

/// Made by [`super::Esp::into_reader`].
#[derive(Debug)]
pub struct EspFile<T> {
    io: T,
    /// Where its bytes are on the volume: offset and length of each stretch, in order.
    stretches: Vec<(u64, u64)>,
    size: u64,
    pos: u64,
}

impl<T> EspFile<T> {
    /// Of clusters at these offsets; neighbours become one stretch.
    pub(super) fn new(io: T, clusters: impl Iterator<Item = u64>, len: u64, size: u64) -> Self {
        let mut stretches: Vec<(u64, u64)> = Vec::new();
        for offset in clusters {
            match stretches.last_mut() {
                Some((start, have)) if *start + *have == offset => *have += len,
                _ => stretches.push((offset, len)),
            }
        }
        Self {
            io,
            stretches,
            size,
            pos: 0,
        }
    }

    /// Where the byte at `pos` is, and how many follow it there.
    fn place(&self) -> Option<(u64, u64)> {
        let mut before = 0;
        for (offset, len) in &self.stretches {
            if self.pos < before + len {
                let inside = self.pos - before;
                return Some((offset + inside, len - inside));
            }
            before += len;
        }
        None
    }
}

impl<T: Read + Seek> Read for EspFile<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.size.saturating_sub(self.pos);
        let Some((offset, together)) = self.place().filter(|_| left > 0) else {
            return Ok(0);
        };
        let most = usize::try_from(left.min(together)).unwrap_or(usize::MAX);
        let want = most.min(buf.len());
        self.io.seek(SeekFrom::Start(offset))?;
        let got = self.io.read(&mut buf[..want])?;
        self.pos += got as u64;
        Ok(got)
    }
}

impl<T> Seek for EspFile<T> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let pos = match to {
            SeekFrom::Start(pos) => Some(pos),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.pos.checked_add_signed(by),
        };
        let before = || {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "seek before the start of a file",
            )
        };
        self.pos = pos.ok_or_else(before)?;
        Ok(self.pos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn scattered_clusters_read_as_one_file() {
        let volume: Vec<u8> = (0..=255).collect();
        let clusters = [64, 80, 16, 200].into_iter();
        let mut file = EspFile::new(Cursor::new(volume.clone()), clusters, 16, 60);
        assert_eq!(file.stretches, [(64, 32), (16, 16), (200, 16)]);
        let want = [&volume[64..96], &volume[16..32], &volume[200..212]].concat();
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        assert_eq!(all, want);
        assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), 60);
        file.seek(SeekFrom::Start(30)).unwrap();
        let mut some = [0; 25];
        file.read_exact(&mut some).unwrap();
        assert_eq!(some, want[30..55]);
        assert!(file.seek(SeekFrom::Current(-100)).is_err());
    }
}
