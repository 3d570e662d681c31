//! What a member has on disk: checkpoints and the log behind the last of them.
//!
//! ```text
//! DATA/member/lock            held while a process serves from here
//! DATA/member/wal/*.wal       the log
//! DATA/member/snap/*.checkpoint   the state up to an index
//! ```
//!
//! The log may be elsewhere, on a disk of its own. Then the data says where, so that neither is used without the other:
//!
//! ```text
//! DIR/wal/*.wal               the log
//! DIR/lock                    held as well
//! DATA/member/wal-dir         DIR, and whose log it is
//! ```

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use raft::eraftpb::{Entry, HardState};

use crate::machine::checkpoint::{self, Replaced, Source};
use crate::machine::{Machine, Shared};
use crate::mvcc::Shelf;
use crate::wal::{self, Owner, Wal};

/// Bytes of keys and values that stay in memory; of a bigger state those that were written last.
const VALUES_IN_MEMORY: u64 = 64 << 20;
/// A checkpoint goes to the disk in pieces, with pauses as long: the log, for which clients wait, uses the same disk.
const SYNC_BYTES: u64 = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Wal(#[from] wal::Error),
    #[error(transparent)]
    Replaced(#[from] Replaced),
    #[error("{0}: another process serves from here")]
    InUse(PathBuf),
    #[error(
        "{0}: this is the data of etcd itself. Save a snapshot with etcdctl while it runs, and load it with the API; the files cannot be read"
    )]
    Etcd(PathBuf),
    #[error("{0}: there is a log, but no checkpoint that can be read")]
    NoCheckpoint(PathBuf),
    #[error(
        "{path}: {what}. If the other members are healthy, remove this member, empty its data directory and add it again; else restore a snapshot"
    )]
    Damaged { path: PathBuf, what: io::Error },
    #[error(
        "{checkpoint}: there is a checkpoint, but no log ({log}). Nothing is changed; if the log is lost, remove this member, empty its data directory and add it again, or restore a snapshot"
    )]
    NoLog { checkpoint: PathBuf, log: PathBuf },
    #[error(
        "the log of this member is in {dir}, as {marker} says: start it with --wal-dir {dir}, or move {log} to {home} while it is stopped"
    )]
    Elsewhere {
        dir: PathBuf,
        marker: PathBuf,
        log: PathBuf,
        home: PathBuf,
    },
    #[error(
        "--wal-dir {dir}: the log of this member is {log}. Move it to {wanted} while the member is stopped, or give the directory it is in"
    )]
    NotMoved {
        dir: PathBuf,
        log: PathBuf,
        wanted: PathBuf,
    },
    #[error(
        "--wal-dir: there is a log in {wanted} and another in {log}. Remove the one that is not this member's newest"
    )]
    Two { wanted: PathBuf, log: PathBuf },
    #[error("{path}: {what}")]
    Marker { path: PathBuf, what: String },
    #[error("{path}: the log starts at {found}, but the checkpoint ends at {checkpoint}")]
    Gap {
        path: PathBuf,
        found: u64,
        checkpoint: u64,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |source| Error::Io {
        path: path.to_path_buf(),
        source,
    }
}

/// A disk that fails or is full is no reason to give up the data on it.
fn unreadable(path: PathBuf, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            Error::Damaged { path, what: error }
        }
        _ => Error::Io {
            path,
            source: error,
        },
    }
}

/// The directory of one member.
#[derive(Debug)]
pub struct Disk {
    member: PathBuf,
    /// Where the directory `wal` is: the member's, or one of its own.
    home: PathBuf,
    /// Whose log it must be, where that is known from elsewhere than the log.
    owner: Option<Owner>,
    _locks: Vec<File>,
}

/// What the data says of a log that is elsewhere.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    dir: PathBuf,
    cluster: u64,
    member: u64,
}

fn lock(dir: &Path, whose: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let lock = File::create(&path).map_err(at(&path))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| Error::InUse(whose.to_path_buf()))?;
    Ok(lock)
}

/// What was there.
#[derive(Debug)]
pub struct Recovered {
    pub machine: Machine,
    pub hard_state: HardState,
    pub entries: Vec<Entry>,
    pub wal: Wal,
    pub torn: u64,
}

impl Disk {
    /// `log`: the directory of the log, if it is not with the rest.
    pub fn open(data: &Path, log: Option<&Path>) -> Result<Self, Error> {
        let member = data.join("member");
        if member.join("snap/db").exists() {
            return Err(Error::Etcd(data.to_path_buf()));
        }
        for dir in [&member, &member.join("snap")] {
            std::fs::create_dir_all(dir).map_err(at(dir))?;
        }
        let mut locks = vec![lock(&member, data)?];
        let home = match log {
            Some(dir) => {
                std::fs::create_dir_all(dir).map_err(at(dir))?;
                // A relative path would mean something else after a start from elsewhere.
                let dir = dir.canonicalize().map_err(at(dir))?;
                for entry in std::fs::read_dir(&dir).map_err(at(&dir))? {
                    let path = entry.map_err(at(&dir))?.path();
                    if path.extension().is_some_and(|e| e == "wal") {
                        return Err(Error::Etcd(dir));
                    }
                }
                locks.push(lock(&dir, &dir)?);
                dir
            }
            None => member.clone(),
        };
        let mut disk = Self {
            member,
            home,
            owner: None,
            _locks: locks,
        };
        disk.tidy()?;
        disk.find()?;
        Ok(disk)
    }

    fn marker(&self) -> PathBuf {
        self.member.join("wal-dir")
    }

    /// Compares where the log is with where it should be.
    fn find(&mut self) -> Result<(), Error> {
        let path = self.marker();
        let bad = |error: serde_json::Error| Error::Marker {
            path: path.clone(),
            what: error.to_string(),
        };
        let marker: Option<Marker> = match std::fs::read(&path) {
            Ok(bytes) => Some(serde_json::from_slice(&bytes).map_err(bad)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(at(&path)(error)),
        };
        self.owner = marker.as_ref().map(|marker| Owner {
            cluster: marker.cluster,
            member: marker.member,
        });
        // Where else it may be.
        let before = marker.as_ref().map(|marker| marker.dir.clone());
        let elsewhere = [before.as_ref(), Some(&self.member)]
            .into_iter()
            .flatten()
            .find(|dir| **dir != self.home && dir.join("wal").exists());
        match (self.is_empty(), elsewhere) {
            (false, Some(dir)) => Err(Error::Two {
                wanted: self.wal(),
                log: dir.join("wal"),
            }),
            (true, Some(dir)) if self.home == self.member => Err(Error::Elsewhere {
                dir: dir.clone(),
                marker: path,
                log: dir.join("wal"),
                home: self.member.clone(),
            }),
            (true, Some(dir)) => Err(Error::NotMoved {
                dir: self.home.clone(),
                log: dir.join("wal"),
                wanted: self.wal(),
            }),
            (true, None) if marker.is_some() => Err(self.lost()),
            // A new member; or it was moved here, and once it has been read, the data will say so.
            (_, None) => Ok(()),
        }
    }

    fn lost(&self) -> Error {
        let checkpoint = self.checkpoints().ok().and_then(|mut all| all.pop());
        Error::NoLog {
            checkpoint: checkpoint.unwrap_or_else(|| self.snap()),
            log: self.wal(),
        }
    }

    /// Says in the data where the log is. Before a member serves, but after its log is whole: without the log, there is no
    /// member yet.
    fn mark(&self, owner: Owner) -> Result<(), Error> {
        let path = self.marker();
        if self.home == self.member {
            return match std::fs::remove_file(&path) {
                Ok(()) => Ok(wal::sync_dir(&self.member)?),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(at(&path)(error)),
            };
        }
        let marker = Marker {
            dir: self.home.clone(),
            cluster: owner.cluster,
            member: owner.member,
        };
        let text = serde_json::to_vec(&marker).map_err(|error| Error::Marker {
            path: path.clone(),
            what: error.to_string(),
        })?;
        if std::fs::read(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        let part = path.with_extension("part");
        let mut file = File::create(&part).map_err(at(&part))?;
        file.write_all(&text).map_err(at(&part))?;
        file.sync_all().map_err(at(&part))?;
        std::fs::rename(&part, &path).map_err(at(&part))?;
        Ok(wal::sync_dir(&self.member)?)
    }

    /// Ends what a crash interrupted.
    fn tidy(&self) -> Result<(), Error> {
        let (dir, old) = (self.wal(), self.home.join("wal.old"));
        if old.exists() && !dir.exists() {
            // The checkpoint that was to replace it is there already; the old log goes with it as well as none.
            std::fs::rename(&old, &dir).map_err(at(&old))?;
            wal::sync_dir(&self.home)?;
        }
        let snap = self.snap();
        for entry in std::fs::read_dir(&snap).map_err(at(&snap))? {
            let entry = entry.map_err(at(&snap))?;
            let path = entry.path();
            // Files of values have a name for a moment only, unless a process ended in just that.
            let values = entry.file_name().as_encoded_bytes().starts_with(b"values-");
            if values || path.extension().is_some_and(|e| e == "part") {
                std::fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        Ok(())
    }

    pub fn wal(&self) -> PathBuf {
        self.home.join("wal")
    }

    fn snap(&self) -> PathBuf {
        self.member.join("snap")
    }

    pub fn is_empty(&self) -> bool {
        !self.wal().exists()
    }

    /// Where a leader's snapshot is received, and where it goes once it is whole.
    pub fn incoming(&self, from: u64) -> PathBuf {
        self.snap().join(format!("from-{from:x}.part"))
    }

    pub fn path_of(&self, index: u64) -> PathBuf {
        self.snap().join(format!("{index:016x}.checkpoint"))
    }

    fn checkpoints(&self) -> Result<Vec<PathBuf>, Error> {
        let dir = self.snap();
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(at(&dir))? {
            let path = entry.map_err(at(&dir))?.path();
            if path.extension().is_some_and(|e| e == "checkpoint") {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Writes the state to a file and returns its index and its size.
    pub fn checkpoint(&self, shared: &Shared) -> Result<(u64, u64), Error> {
        let source = Source::new(shared);
        let index = source.head().index;
        let part = self.snap().join("checkpoint.part");
        let path = self.path_of(index);
        let done = write_source(source, &part).and_then(|size| {
            self.settle(&part, &path)?;
            Ok(size)
        });
        if done.is_err() {
            // On a full disk, half a file is what keeps it full.
            let _ = std::fs::remove_file(&part);
        }
        Ok((index, done?))
    }

    /// Makes a file that is whole the newest checkpoint, and drops older ones.
    pub fn settle(&self, part: &Path, path: &Path) -> Result<(), Error> {
        std::fs::rename(part, path).map_err(at(part))?;
        wal::sync_dir(&self.snap())?;
        for old in self.checkpoints()? {
            if *old < *path {
                std::fs::remove_file(&old).map_err(at(&old))?;
            }
        }
        Ok(())
    }

    /// Starts a member's data: its first checkpoint, then its log. Without the log, the data is not there.
    pub fn create(&self, machine: Machine, owner: Owner) -> Result<Recovered, Error> {
        let index = machine.applied;
        let path = self.path_of(index);
        // What a start leaves that did not come to its end is no newer than what begins now.
        if let Some(checkpoint) = self.checkpoints()?.into_iter().find(|old| *old > path) {
            let log = self.wal();
            return Err(Error::NoLog { checkpoint, log });
        }
        let hard_state = HardState {
            term: machine.applied_term,
            commit: index,
            ..HardState::default()
        };
        let shared = std::sync::Arc::new(parking_lot::RwLock::new(machine));
        self.checkpoint(&shared)?;
        let dir = self.wal();
        let part = self.home.join("wal.part");
        if part.exists() {
            std::fs::remove_dir_all(&part).map_err(at(&part))?;
        }
        let mut wal = Wal::create(&part, owner)?;
        wal.append(&wal::Batch {
            hard_state: Some(hard_state),
            ..wal::Batch::default()
        })?;
        wal.sync()?;
        drop(wal);
        std::fs::rename(&part, &dir).map_err(at(&dir))?;
        wal::sync_dir(&self.home)?;
        self.recover()
    }

    /// Starts again with another state in place of the old one, which is gone once this returns.
    pub fn replace(&self, machine: Machine, owner: Owner) -> Result<Recovered, Error> {
        let (dir, old) = (self.wal(), self.home.join("wal.old"));
        if old.exists() {
            std::fs::remove_dir_all(&old).map_err(at(&old))?;
        }
        let shared = std::sync::Arc::new(parking_lot::RwLock::new(machine));
        self.checkpoint(&shared)?;
        std::fs::rename(&dir, &old).map_err(at(&dir))?;
        let Some(machine) = std::sync::Arc::into_inner(shared) else {
            return Err(Error::InUse(self.member.clone()));
        };
        let recovered = self.create(machine.into_inner(), owner)?;
        std::fs::remove_dir_all(&old).map_err(at(&old))?;
        Ok(recovered)
    }

    /// Reads a checkpoint. The values that need not be in memory lie in files next to it then.
    pub fn read(&self, from: &mut impl io::Read) -> io::Result<Machine> {
        let shelf = Shelf::new(&self.snap(), VALUES_IN_MEMORY);
        checkpoint::read_onto(from, Some(shelf))
    }

    pub fn recover(&self) -> Result<Recovered, Error> {
        let path = self
            .checkpoints()?
            .pop()
            .ok_or_else(|| Error::NoCheckpoint(self.member.clone()))?;
        let file = File::open(&path).map_err(at(&path))?;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        // Both take their time with a big state, and neither needs the other.
        let (machine, log) = std::thread::scope(|scope| {
            let log = scope.spawn(|| Wal::open(&self.wal(), self.owner));
            (self.read(&mut reader), log.join())
        });
        let machine = machine.map_err(|error| unreadable(path, error))?;
        let (mut wal, replay) = log.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let owner = wal.owner();
        if owner.cluster != machine.cluster_id {
            return Err(Error::Wal(wal::Error::Foreign {
                path: self.wal(),
                cluster: owner.cluster,
                member: owner.member,
            }));
        }
        self.mark(owner)?;
        let mut entries = replay.entries;
        let (index, term) = (machine.applied, machine.applied_term);
        // Where the checkpoint came from a leader, what this member had thought before may be of another history. The log
        // has to say so before it goes on: else the next start would take what follows for a part of that history.
        if let Some(same) = entries.iter().find(|e| e.index == index)
            && same.term != term
        {
            entries.clear();
            wal.append(&wal::Batch {
                restart: Some((index, term)),
                ..wal::Batch::default()
            })?;
            wal.sync()?;
        }
        entries.retain(|e| e.index > index);
        if let Some(first) = entries.first()
            && first.index != index + 1
        {
            return Err(Error::Gap {
                path: self.wal(),
                found: first.index,
                checkpoint: index,
            });
        }
        Ok(Recovered {
            machine,
            hard_state: replay.hard_state,
            entries,
            wal,
            torn: replay.torn,
        })
    }
}

/// Writes a checkpoint to a file, down to the disk.
pub fn write_source(source: Source, path: &Path) -> Result<u64, Error> {
    let file = File::create(path).map_err(at(path))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let (mut size, mut synced) = (0, 0);
    for piece in source {
        let piece = piece?;
        out.write_all(&piece).map_err(at(path))?;
        size += piece.len() as u64;
        if size - synced >= SYNC_BYTES {
            synced = size;
            out.flush().map_err(at(path))?;
            let before = Instant::now();
            out.get_ref().sync_data().map_err(at(path))?;
            std::thread::sleep(before.elapsed());
        }
    }
    let file = out.into_inner().map_err(|e| at(path)(e.into_error()))?;
    file.sync_all().map_err(at(path))?;
    Ok(size)
}
