//! The log on disk: segments of a fixed size, filled with zeros before they are used and used again afterwards, so
//! that a sync writes data and no metadata.
//!
//! What was synced is there after a crash, or opening fails. What was not may be there in part, and is cut off.

mod open;
mod record;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};

pub use open::Replay;
use record::Kind;

/// Room of one segment. A record that is larger gets a segment of its own size.
const SEGMENT: u64 = 16 << 20;
/// Segments that are kept to be used again.
const SPARE: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path}: damaged at byte {offset}, and what follows had been acknowledged. If the other members are healthy, remove this member, empty its data directory and add it again; else restore a snapshot"
    )]
    Damaged { path: PathBuf, offset: u64 },
    #[error("{path}: a segment is missing: {expected} should follow")]
    Gap { path: PathBuf, expected: u64 },
    #[error("{path}: belongs to cluster {cluster:x}, member {member:x}")]
    Foreign {
        path: PathBuf,
        cluster: u64,
        member: u64,
    },
    #[error("{path}: {what}")]
    Malformed { path: PathBuf, what: String },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |source| Error::Io {
        path: path.to_path_buf(),
        source,
    }
}

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub cluster: u64,
    pub member: u64,
}

/// What Raft wants on disk at once.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    /// Set if the state was replaced by a leader's snapshot up to (index, term).
    pub restart: Option<(u64, u64)>,
    pub entries: Vec<Entry>,
    pub hard_state: Option<HardState>,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    file: File,
    path: PathBuf,
    size: u64,
}

#[derive(Debug)]
pub struct Wal {
    dir: PathBuf,
    owner: Owner,
    segment: Segment,
    /// Where the next record goes.
    offset: u64,
    /// Sum and number of the last record.
    last: (u32, u64),
    synced: bool,
    hard_state: HardState,
    /// Earlier segments, and the highest index that each has.
    closed: Vec<(u64, u64)>,
    highest: u64,
    buffer: Vec<u8>,
    segment_size: u64,
}

fn name(number: u64) -> String {
    format!("{number:016x}.wal")
}

impl Wal {
    /// Starts a log in an empty directory.
    pub fn create(dir: &Path, owner: Owner) -> Result<Self, Error> {
        Self::create_sized(dir, owner, SEGMENT)
    }

    fn create_sized(dir: &Path, owner: Owner, segment_size: u64) -> Result<Self, Error> {
        std::fs::create_dir_all(dir).map_err(io_error(dir))?;
        let segment = fresh(dir, 1, segment_size)?;
        let mut wal = Self {
            dir: dir.to_path_buf(),
            owner,
            segment,
            offset: 0,
            last: (0, 0),
            synced: true,
            hard_state: HardState::default(),
            closed: Vec::new(),
            highest: 0,
            buffer: Vec::new(),
            segment_size,
        };
        wal.open_segment();
        wal.flush()?;
        wal.sync()?;
        Ok(wal)
    }

    fn open_segment(&mut self) {
        let mut owner = [0; 16];
        owner[..8].copy_from_slice(&self.owner.cluster.to_le_bytes());
        owner[8..].copy_from_slice(&self.owner.member.to_le_bytes());
        self.push(Kind::Segment, &owner);
        let state = self.hard_state.write_to_bytes().unwrap_or_default();
        self.push(Kind::HardState, &state);
    }

    fn push(&mut self, kind: Kind, payload: &[u8]) {
        let (previous, number) = self.last;
        let first = std::mem::take(&mut self.synced);
        let sum = record::write(
            &mut self.buffer,
            self.segment.number,
            (previous, number + 1),
            (kind, first),
            payload,
        );
        self.last = (sum, number + 1);
    }

    /// Writes; what was written is safe after the next [`Wal::sync`].
    pub fn append(&mut self, batch: &Batch) -> Result<(), Error> {
        if let Some((index, term)) = batch.restart {
            let mut at = [0; 16];
            at[..8].copy_from_slice(&index.to_le_bytes());
            at[8..].copy_from_slice(&term.to_le_bytes());
            self.push(Kind::Restart, &at);
            self.highest = self.highest.max(index);
        }
        for entry in &batch.entries {
            let bytes = entry.write_to_bytes().unwrap_or_default();
            self.push(Kind::Entry, &bytes);
            self.highest = self.highest.max(entry.index);
        }
        // Behind the entries: a commit index alone would speak of older ones that these replace.
        if let Some(state) = &batch.hard_state {
            let bytes = state.write_to_bytes().unwrap_or_default();
            self.push(Kind::HardState, &bytes);
            self.hard_state = state.clone();
        }
        self.flush()?;
        if self.offset >= self.segment_size {
            self.rotate()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.segment
            .file
            .write_all_at(&self.buffer, self.offset)
            .map_err(io_error(&self.segment.path))?;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        if self.buffer.capacity() > 8 << 20 {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    pub fn sync(&mut self) -> Result<(), Error> {
        self.segment
            .file
            .sync_data()
            .map_err(io_error(&self.segment.path))?;
        self.synced = true;
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), Error> {
        self.sync()?;
        let number = self.segment.number + 1;
        let next = fresh(&self.dir, number, self.segment_size)?;
        let old = std::mem::replace(&mut self.segment, next);
        self.closed.push((old.number, self.highest));
        self.offset = 0;
        self.open_segment();
        self.flush()
    }

    /// Gives up the segments that hold nothing behind `index`, which is in a checkpoint.
    pub fn release(&mut self, index: u64) -> Result<(), Error> {
        let keep = self
            .closed
            .iter()
            .take_while(|(_, highest)| *highest <= index)
            .count();
        for (number, _) in self.closed.drain(..keep) {
            let path = self.dir.join(name(number));
            let spares = spares(&self.dir)?;
            if spares.len() < SPARE {
                let spare = self.dir.join(format!("{number:016x}.spare"));
                std::fs::rename(&path, &spare).map_err(io_error(&path))?;
            } else {
                std::fs::remove_file(&path).map_err(io_error(&path))?;
            }
        }
        Ok(())
    }

    /// Whether there is a segment to go on with; if not, [`Wal::prepare`] makes one where nobody waits for it.
    pub fn wants_spare(&self) -> bool {
        self.offset > self.segment_size / 2 && spares(&self.dir).is_ok_and(|s| s.is_empty())
    }

    /// Fills a segment with zeros for later.
    pub fn prepare(dir: &Path) -> Result<(), Error> {
        let path = dir.join("next.spare");
        let part = dir.join("next.part");
        zeros(&part, SEGMENT)?;
        std::fs::rename(&part, &path).map_err(io_error(&path))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

fn spares(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io_error(dir))? {
        let path = entry.map_err(io_error(dir))?.path();
        if path.extension().is_some_and(|e| e == "spare") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn zeros(path: &Path, size: u64) -> Result<File, Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(io_error(path))?;
    let block = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let length = usize::try_from((size - at).min(block.len() as u64)).unwrap_or(block.len());
        file.write_all_at(&block[..length], at)
            .map_err(io_error(path))?;
        at += length as u64;
    }
    file.sync_all().map_err(io_error(path))?;
    Ok(file)
}

/// The file of a new segment: a spare one, or a new one.
fn fresh(dir: &Path, number: u64, size: u64) -> Result<Segment, Error> {
    let path = dir.join(name(number));
    match spares(dir)?.first() {
        Some(spare) => std::fs::rename(spare, &path).map_err(io_error(&path))?,
        None => {
            let part = dir.join("segment.part");
            zeros(&part, size)?;
            std::fs::rename(&part, &path).map_err(io_error(&path))?;
        }
    }
    sync_dir(dir)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(io_error(&path))?;
    Ok(Segment {
        number,
        file,
        path,
        size,
    })
}

pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error(dir))
}
