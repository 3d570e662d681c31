//! FAT12/16/32, by way of `fatfs`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use fatfs::{FileSystem, FsOptions};

use super::disk::{MAX_FILE, Volume};

pub(super) struct Fat {
    fs: FileSystem<ReadOnly>,
    label: String,
}

/// `fatfs` wants something it could write to; it does not get to.
struct ReadOnly(File);

impl Read for ReadOnly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Seek for ReadOnly {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl Write for ReadOnly {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn open(file: File) -> Option<Fat> {
    let fs = FileSystem::new(ReadOnly(file), FsOptions::new()).ok()?;
    // mkfs writes the label to both places, other tools to one.
    let label = match fs.read_volume_label_from_root_dir() {
        Ok(Some(label)) => label,
        _ => fs.volume_label(),
    };
    let label = label.trim_end().to_owned();
    Some(Fat { fs, label })
}

impl Volume for Fat {
    fn label(&self) -> &str {
        &self.label
    }

    fn read(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match self.fs.root_dir().open_file(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > MAX_FILE {
            true => Err(io::Error::other("the file is too large")),
            false => Ok(Some(bytes)),
        }
    }
}
