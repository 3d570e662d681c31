//! Xen's xenstore, as Citrix and old Rackspace hosts fill it (`xen/include/public/io/xs_wire.h`).

use std::fs::File;
use std::io::{self, Read, Write};

use super::{Datasource, Found, Probe, SourceError};

const DEVICES: [&str; 2] = ["/dev/xen/xenbus", "/proc/xen/xenbus"];
const READ: u32 = 2;
const ERROR: u32 = 16;
/// XENSTORE_PAYLOAD_MAX
const MAX: u32 = 4096;

pub(super) struct XenStore;

impl Datasource for XenStore {
    fn name(&self) -> &'static str {
        "xenstore"
    }

    fn fetch(&self, probe: &Probe<'_>) -> Result<Option<Found>, SourceError> {
        for device in DEVICES {
            let path = probe.path(device);
            let opened = File::options().read(true).write(true).open(&path);
            let mut bus = match opened {
                Ok(bus) => bus,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    let what = "the store".to_owned();
                    return Err(SourceError::Read { path, what, source });
                }
            };
            for key in ["vm-data/user-data", "vm-data/userdata"] {
                let read = read(&mut bus, key);
                let value = read.map_err(|source| SourceError::Read {
                    path: path.clone(),
                    what: key.to_owned(),
                    source,
                })?;
                if let Some(bytes) = value {
                    return Ok(Some(Found {
                        origin: format!("xenstore {key}"),
                        user_data: Some(bytes),
                        ..Found::default()
                    }));
                }
            }
        }
        Ok(None)
    }
}

/// One question, one answer: type, request, transaction and length as little-endian words, then text.
fn read(bus: &mut (impl Read + Write), key: &str) -> io::Result<Option<Vec<u8>>> {
    let mut message = Vec::new();
    let length = u32::try_from(key.len() + 1).map_err(io::Error::other)?;
    for word in [READ, 1, 0, length] {
        message.extend(word.to_le_bytes());
    }
    message.extend(key.as_bytes());
    message.push(0);
    bus.write_all(&message)?;
    let mut header = [0; 16];
    bus.read_exact(&mut header)?;
    let word = |index: usize| {
        let bytes = header[index * 4..].first_chunk::<4>().copied();
        u32::from_le_bytes(bytes.unwrap_or_default())
    };
    let (kind, length) = (word(0), word(3));
    if length > MAX {
        return Err(io::Error::other("an answer that is too long"));
    }
    let mut bytes = vec![0; length as usize];
    bus.read_exact(&mut bytes)?;
    match kind {
        READ => Ok(Some(bytes)),
        ERROR if bytes.starts_with(b"ENOENT") || bytes.starts_with(b"EACCES") => Ok(None),
        ERROR => Err(io::Error::other(
            String::from_utf8_lossy(&bytes)
                .trim_end_matches('\0')
                .to_owned(),
        )),
        other => Err(io::Error::other(format!("an answer of type {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers that were made before, and what was asked.
    struct Bus(io::Cursor<Vec<u8>>, Vec<u8>);

    impl Read for Bus {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Bus {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn answer(kind: u32, text: &[u8]) -> Bus {
        let length = u32::try_from(text.len()).unwrap();
        let words = [kind, 1, 0, length].map(u32::to_le_bytes).concat();
        Bus(io::Cursor::new([&words, text].concat()), Vec::new())
    }

    #[test]
    fn asks_and_understands() {
        let mut bus = answer(READ, b"#!/bin/sh\n");
        assert_eq!(read(&mut bus, "a/b").unwrap().unwrap(), b"#!/bin/sh\n");
        assert_eq!(bus.1, b"\x02\0\0\0\x01\0\0\0\0\0\0\0\x04\0\0\0a/b\0");
        assert_eq!(read(&mut answer(ERROR, b"ENOENT\0"), "a").unwrap(), None);
        let error = read(&mut answer(ERROR, b"EIO\0"), "a").unwrap_err();
        assert_eq!(error.to_string(), "EIO");
        assert!(read(&mut answer(READ, &vec![0; 5000]), "a").is_err());
        assert!(read(&mut Bus(io::Cursor::default(), Vec::new()), "a").is_err());
    }
}
