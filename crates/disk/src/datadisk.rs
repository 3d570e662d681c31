//! Small FAT disks that carry files into a machine, such as NoCloud's `CIDATA`.

use crate::esp::{put_file, volume_label};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};

#[derive(Debug, thiserror::Error)]
pub enum DataDiskError {
    #[error("cannot {what} the data disk")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot {what} {path} on the data disk")]
    File {
        what: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Where a file goes, and what is in it.
pub type DataFile<'a> = (&'a str, &'a [u8]);

/// Formats all of `io` (which must be zero, and 1 MiB at least for comfort) and writes the files.
/// The kind of FAT follows from the size.
pub fn create_data_disk(
    io: &mut (impl Read + Write + Seek),
    label: &str,
    files: &[DataFile<'_>],
) -> Result<(), DataDiskError> {
    let options = FormatVolumeOptions::new()
        .volume_id(0x4f52_4c50)
        .volume_label(volume_label(label));
    io.seek(SeekFrom::Start(0))
        .and_then(|_| fatfs::format_volume(&mut *io, options))
        .map_err(|source| DataDiskError::Io {
            what: "format",
            source,
        })?;
    for (path, bytes) in files {
        put_file(io, path, Some(bytes)).map_err(|source| DataDiskError::File {
            what: "write",
            path: (*path).to_owned(),
            source,
        })?;
    }
    Ok(())
}

/// A FAT volume that is only read: nothing is ever written to the medium.
pub struct DataDisk<T: Read + Seek> {
    volume: FileSystem<ReadOnly<T>>,
}

/// Opens a data disk that [`create_data_disk`] or any other tool made.
pub fn read_files<T: Read + Seek>(mut io: T) -> Result<DataDisk<T>, DataDiskError> {
    let volume = io
        .seek(SeekFrom::Start(0))
        .and_then(|_| FileSystem::new(ReadOnly(io), FsOptions::new()))
        .map_err(|source| DataDiskError::Io {
            what: "open",
            source,
        })?;
    Ok(DataDisk { volume })
}

impl<T: Read + Seek> DataDisk<T> {
    /// As the root directory says, or else the boot sector; compare it without regard to case.
    pub fn label(&self) -> String {
        let from_root = self.volume.read_volume_label_from_root_dir();
        from_root
            .ok()
            .flatten()
            .unwrap_or_else(|| self.volume.volume_label())
            .trim_end()
            .to_owned()
    }

    /// `None` if there is no such file. Directories are separated by `/`.
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>, DataDiskError> {
        let failed = |source| DataDiskError::File {
            what: "read",
            path: path.to_owned(),
            source,
        };
        let root = self.volume.root_dir();
        let mut file = match root.open_file(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        Ok(Some(bytes))
    }
}

/// `fatfs` wants something it could write to, and marks volumes as clean when it closes them. Whoever only
/// looks must change nothing.
#[derive(Debug)]
pub struct ReadOnly<T>(pub T);

impl<T: Read> Read for ReadOnly<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<T: Seek> Seek for ReadOnly<T> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl<T> Write for ReadOnly<T> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    const FILES: [DataFile<'_>; 3] = [
        ("user-data", b"#cloud-config\nhostname: one\n"),
        ("meta-data", b"instance-id: i-1\n"),
        ("openstack/latest/meta_data.json", b"{}"),
    ];

    fn disk(mib: usize) -> Vec<u8> {
        let mut disk = Cursor::new(vec![0; mib << 20]);
        create_data_disk(&mut disk, "cidata", &FILES).unwrap();
        disk.into_inner()
    }

    #[test]
    fn every_kind_of_fat() {
        for mib in [1, 8, 40] {
            let bytes = disk(mib);
            let read = read_files(Cursor::new(&bytes)).unwrap();
            assert_eq!(read.label(), "CIDATA", "{mib} MiB");
            for (path, want) in FILES {
                assert_eq!(read.read(path).unwrap().as_deref(), Some(want), "{path}");
            }
            assert_eq!(read.read("vendor-data").unwrap(), None);
            assert_eq!(read.read("openstack/1/x").unwrap(), None);
        }
    }

    #[test]
    fn large_files_and_the_same_bytes_every_time() {
        assert!(disk(1) == disk(1));
        let large: Vec<u8> = (0u32..50_000).flat_map(u32::to_le_bytes).collect();
        let mut disk = Cursor::new(vec![0; 1 << 20]);
        create_data_disk(&mut disk, "CIDATA", &[("large", &large)]).unwrap();
        let read = read_files(disk).unwrap();
        assert!(read.read("large").unwrap().as_ref() == Some(&large));
    }

    #[test]
    fn what_is_not_fat() {
        assert!(read_files(Cursor::new(vec![0; 4096])).is_err());
        let mut disk = Cursor::new(vec![0; 1 << 20]);
        let huge = vec![1; 2 << 20];
        let error = create_data_disk(&mut disk, "X", &[("huge", &huge)]).unwrap_err();
        assert_eq!(error.to_string(), "cannot write huge on the data disk");
    }
}
