//! Block devices as this crate sees them: byte streams that can seek and can be made durable.

use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

/// Every transfer to a table or a directory is a multiple of this, because it is the largest
/// piece that a disk promises not to tear.
pub const SECTOR: usize = 512;
pub(crate) const SECTOR_U64: u64 = SECTOR as u64;

/// What has been written is on stable storage once `sync` returns.
///
/// Not `Write::flush`: for a `File` that does nothing.
pub trait SyncIo {
    fn sync(&mut self) -> io::Result<()>;
}

impl SyncIo for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Memory is as durable as it gets.
impl<T> SyncIo for Cursor<T> {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<T: SyncIo + ?Sized> SyncIo for &mut T {
    fn sync(&mut self) -> io::Result<()> {
        (**self).sync()
    }
}

impl<T: SyncIo + ?Sized> SyncIo for Box<T> {
    fn sync(&mut self) -> io::Result<()> {
        (**self).sync()
    }
}

/// Something a table or a file system can be written to.
pub trait BlockIo: Read + Write + Seek + SyncIo {}

impl<T: Read + Write + Seek + SyncIo + ?Sized> BlockIo for T {}

/// Zeros at an address that direct transfers take.
#[derive(Debug)]
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Of memory and place in the file; no disk asks for more.
    pub const ALIGNMENT: usize = 4096;

    pub fn new(len: usize) -> Self {
        let bytes = vec![0; len + Self::ALIGNMENT];
        let start = bytes.as_ptr().align_offset(Self::ALIGNMENT);
        Self { bytes, start, len }
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// A file with a place of its own in it, which duplicates of its descriptor and other threads do not move.
#[derive(Debug)]
pub struct Placed {
    file: File,
    pos: u64,
    direct: bool,
}

impl Placed {
    pub fn new(file: File) -> Self {
        Self {
            file,
            pos: 0,
            direct: false,
        }
    }

    /// The same file without the page cache in between (`O_DIRECT`): an image that is written once and read back once
    /// takes no memory from what this machine is for, and what is read back is what the disk has. That is for
    /// transfers of [`Aligned`] memory; the first that is not possible, and all after it, go by the cache.
    pub fn direct(file: &File) -> io::Result<Self> {
        let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let again = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        match again {
            Ok(file) => Ok(Self {
                file,
                pos: 0,
                direct: true,
            }),
            // Not every file system can.
            Err(_) => Ok(Self::new(file.try_clone()?)),
        }
    }

    fn transfer(
        &mut self,
        mut once: impl FnMut(&File, u64) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut done = once(&self.file, self.pos);
        if self.direct && matches!(&done, Err(e) if e.kind() == io::ErrorKind::InvalidInput) {
            use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
            let flags = fcntl_getfl(&self.file)?;
            fcntl_setfl(&self.file, flags.difference(OFlags::DIRECT))?;
            self.direct = false;
            done = once(&self.file, self.pos);
        }
        let done = done?;
        self.pos += done as u64;
        Ok(done)
    }
}

impl Read for Placed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.transfer(|file, pos| file.read_at(buf, pos))
    }
}

impl Write for Placed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.transfer(|file, pos| file.write_at(buf, pos))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Placed {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let pos = match to {
            SeekFrom::Start(pos) => Some(pos),
            SeekFrom::Current(by) => self.pos.checked_add_signed(by),
            // A device has a size only where one can seek to.
            SeekFrom::End(_) => Some(self.file.seek(to)?),
        };
        self.pos = pos
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the start"))?;
        Ok(self.pos)
    }
}

impl SyncIo for Placed {
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
}

/// A part of a device, as if it were a device of its own: partitions of an image without loop
/// devices. Reads end at its end; a write across the end fails before it changes anything.
#[derive(Debug)]
pub struct Window<T> {
    io: T,
    start: u64,
    len: u64,
    pos: u64,
}

impl<T> Window<T> {
    pub fn new(io: T, start: u64, len: u64) -> Window<T> {
        Window {
            io,
            start,
            len,
            pos: 0,
        }
    }

    pub fn into_inner(self) -> T {
        self.io
    }

    fn rest(&self) -> u64 {
        self.len.saturating_sub(self.pos)
    }
}

impl<T: Read + Seek> Read for Window<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.rest()).map_or(buf.len(), |rest| rest.min(buf.len()));
        if want == 0 {
            return Ok(0);
        }
        self.io.seek(SeekFrom::Start(self.start + self.pos))?;
        let done = self.io.read(&mut buf[..want])?;
        self.pos += done as u64;
        Ok(done)
    }
}

impl<T: Write + Seek> Write for Window<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.len() as u64 > self.rest() {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "write of {} bytes at {} is outside of a window of {} bytes",
                    buf.len(),
                    self.pos,
                    self.len
                ),
            ));
        }
        self.io.seek(SeekFrom::Start(self.start + self.pos))?;
        let done = self.io.write(buf)?;
        self.pos += done as u64;
        Ok(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.io.flush()
    }
}

impl<T> Seek for Window<T> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let pos = match to {
            SeekFrom::Start(pos) => Some(pos),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.pos.checked_add_signed(by),
        };
        self.pos = pos.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "seek before the start of a window",
            )
        })?;
        Ok(self.pos)
    }
}

impl<T: SyncIo> SyncIo for Window<T> {
    fn sync(&mut self) -> io::Result<()> {
        self.io.sync()
    }
}

/// Forgets the clean pages that the kernel caches for a device, so that the next read comes
/// from the medium. Call it after a sync; unlike `BLKFLSBUF` it needs no capability.
pub fn drop_cache(file: &File) -> io::Result<()> {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// Reads until the buffer is full or the input ends.
pub fn fill(input: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match input.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

pub(crate) fn size_of(io: &mut (impl Seek + ?Sized)) -> io::Result<u64> {
    io.seek(SeekFrom::End(0))
}

pub(crate) fn read_at(
    io: &mut (impl Read + Seek + ?Sized),
    offset: u64,
    buf: &mut [u8],
) -> io::Result<()> {
    io.seek(SeekFrom::Start(offset))?;
    io.read_exact(buf)
}

pub(crate) fn write_at(
    io: &mut (impl Write + Seek + ?Sized),
    offset: u64,
    buf: &[u8],
) -> io::Result<()> {
    io.seek(SeekFrom::Start(offset))?;
    io.write_all(buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_do_not_move_each_other() {
        let file = tempfile::tempfile().unwrap();
        let mut one = Placed::new(file.try_clone().unwrap());
        let mut two = Placed::new(file);
        one.write_all(b"0123456789").unwrap();
        two.write_all(b"ab").unwrap();
        let mut rest = String::new();
        two.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "23456789");
        assert_eq!(one.seek(SeekFrom::End(-1)).unwrap(), 9);
        assert_eq!(two.seek(SeekFrom::Start(1)).unwrap(), 1);
        one.write_all(b"!?").unwrap();
        rest.clear();
        two.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "b2345678!?");
        assert!(two.seek(SeekFrom::Current(-100)).is_err());
    }

    #[test]
    fn directly_or_not_it_is_the_same_file() {
        // Where the build is: a file system in memory may not know it.
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let mut direct = Placed::direct(&file).unwrap();
        let mut buffer = Aligned::new(3 * Aligned::ALIGNMENT);
        assert!(buffer.as_ptr().cast::<[u8; 4096]>().addr() % 4096 == 0);
        buffer.fill(7);
        direct.write_all(&buffer).unwrap();
        // An end that no disk takes alone, from memory that is not aligned.
        direct.write_all(&buffer[1..100]).unwrap();
        direct.sync().unwrap();
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        assert_eq!(all, vec![7; 3 * Aligned::ALIGNMENT + 99]);

        let mut direct = Placed::direct(&file).unwrap();
        buffer.fill(0);
        direct.read_exact(&mut buffer).unwrap();
        let mut rest = Vec::new();
        direct.read_to_end(&mut rest).unwrap();
        assert!(buffer.iter().all(|byte| *byte == 7) && rest.len() == 99);
    }

    #[test]
    fn a_window_stays_inside() {
        let mut disk = Cursor::new((0..16).collect::<Vec<u8>>());
        let mut window = Window::new(&mut disk, 4, 8);
        assert_eq!(size_of(&mut window).unwrap(), 8);

        let mut all = Vec::new();
        window.seek(SeekFrom::Start(0)).unwrap();
        window.read_to_end(&mut all).unwrap();
        assert_eq!(all, (4..12).collect::<Vec<u8>>());

        write_at(&mut window, 6, &[0xaa, 0xbb]).unwrap();
        let error = write_at(&mut window, 7, &[1, 2]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(window.seek(SeekFrom::Current(-100)).is_err());
        assert_eq!(disk.into_inner()[9..13], [9, 0xaa, 0xbb, 12]);
    }
}
