use std::io::{self, Read};
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::{CWD, RenameFlags};

use super::source::{Ending, Hashing, decompress};
use super::unpack::{Counts, unpack};
use super::{Origin, Source, Store, StoreError, tree};
use crate::name::Name;

#[derive(Debug, Clone)]
pub struct Request {
    pub name: Name,
    pub source: Source,
    /// Lower-case hex of the archive as it is stored or sent.
    pub sha256: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub entries: u64,
    pub skipped: u64,
    pub sha256: Option<String>,
}

impl Store {
    /// Makes an image of an archive or a directory. Either the whole of it is there afterwards, or nothing.
    pub fn import(&self, request: &Request, now: Timestamp) -> Result<Imported, StoreError> {
        let name = &request.name;
        let exists = || StoreError::Exists { name: name.clone() };
        let _lock = self.lock(name)?;
        if self.path(name).exists() {
            return Err(exists());
        }
        let part = self.hidden(name, "part");
        // What an import left behind that was killed.
        tree::remove(&part)?;
        tree::create(&part)?;
        let filled = fill(&part, request).and_then(|imported| {
            let origin = Origin {
                source: request.source.to_string(),
                sha256: imported.sha256.clone(),
                imported: now.to_string(),
            };
            self.commit(name, &part, &origin).map(|()| imported)
        });
        if filled.is_err() {
            // The first error counts; the next import tries again to remove it.
            let _ = tree::remove(&part);
        }
        filled
    }

    /// The content, then the note, then the name: each on disk before the next.
    fn commit(&self, name: &Name, part: &Path, origin: &Origin) -> Result<(), StoreError> {
        let path = self.path(name);
        let dir = std::fs::File::open(part).map_err(StoreError::at("open", part))?;
        let flush = |errno: rustix::io::Errno| StoreError::Io {
            step: "flush",
            path: part.to_owned(),
            source: errno.into(),
        };
        rustix::fs::syncfs(&dir).map_err(flush)?;
        let note = self.hidden(name, "json");
        let json = serde_json::to_vec(origin).unwrap_or_default();
        host::atomic::write(&note, &json, 0o600, None).map_err(|error| StoreError::Io {
            step: "write",
            path: note,
            source: error.source,
        })?;
        rustix::fs::renameat_with(CWD, part, CWD, &path, RenameFlags::NOREPLACE).map_err(
            |errno| match errno {
                rustix::io::Errno::EXIST => StoreError::Exists { name: name.clone() },
                errno => StoreError::Io {
                    step: "make",
                    path: path.clone(),
                    source: errno.into(),
                },
            },
        )?;
        host::atomic::sync_dir(&self.dir()).map_err(StoreError::at("flush", &self.dir()))
    }
}

fn fill(part: &Path, request: &Request) -> Result<Imported, StoreError> {
    let (counts, sha256) = match &request.source {
        Source::Directory(from) => {
            tree::copy(from, part)?;
            (Counts::default(), None)
        }
        source => {
            let (counts, hash) = unpack_verified(source.open()?, part, request.sha256.as_deref())?;
            (counts, Some(hash))
        }
    };
    ensure_root(part)?;
    Ok(Imported {
        entries: counts.entries,
        skipped: counts.skipped,
        sha256,
    })
}

fn unpack_verified(
    reader: impl Read,
    part: &Path,
    expected: Option<&str>,
) -> Result<(Counts, String), StoreError> {
    let mut hashing = Hashing::new(reader);
    let privileged = rustix::process::geteuid().is_root();
    let counts = {
        let (mut stream, zeros) =
            Ending::new(decompress(&mut hashing).map_err(StoreError::Archive)?);
        let counts = unpack(&mut stream, part, privileged);
        // What stands behind the archive's end mark belongs to its hash, and damage there counts too.
        let counts = counts.and_then(|counts| {
            io::copy(&mut stream, &mut io::sink()).map_err(StoreError::Archive)?;
            Ok(counts)
        });
        counts.and_then(|counts| {
            if zeros.get() < 512 {
                Err(StoreError::Truncated)
            } else {
                Ok(counts)
            }
        })
    };
    // A wrong hash explains a damaged archive better than where the damage was noticed.
    match (hashing.finish(), expected, counts) {
        (Ok(found), Some(expected), _) if found != expected => Err(StoreError::WrongHash {
            expected: expected.to_owned(),
            found,
        }),
        (Ok(found), _, Ok(counts)) => Ok((counts, found)),
        (_, _, Err(error)) => Err(error),
        (Err(error), ..) => Err(StoreError::Archive(error)),
    }
}

/// systemd-nspawn takes only what has a `/usr`.
fn ensure_root(part: &Path) -> Result<(), StoreError> {
    let has = |path: &str| std::fs::symlink_metadata(part.join(path)).is_ok();
    match (has("usr"), has("bin") || has("sbin")) {
        (true, _) => Ok(()),
        (false, true) => {
            std::fs::create_dir(part.join("usr")).map_err(StoreError::at("make", &part.join("usr")))
        }
        (false, false) => Err(StoreError::NoRoot),
    }
}
