//! Reading the log back.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};

use super::record::{self, Kind};
use super::{Error, Owner, SEGMENT, Segment, Wal, io_error, sync_dir};

/// The first record of a segment lies in these first bytes.
const BEGIN: u64 = 4096;

/// What the log says.
#[derive(Debug, Default)]
pub struct Replay {
    pub hard_state: HardState,
    /// In order, without those that a later leader replaced.
    pub entries: Vec<Entry>,
    /// The last snapshot of a leader that replaced the state: (index, term).
    pub restart: Option<(u64, u64)>,
    /// Bytes of an unfinished write that were cut off.
    pub torn: u64,
}

impl Replay {
    /// What an entry carries stays where it was read: a segment goes back to the system as a whole once nobody needs
    /// its entries, where a million small copies would stay with the allocator.
    fn take(&mut self, kind: Kind, payload: &Bytes) -> Result<(), String> {
        let number = |at: usize| {
            payload
                .get(at..at + 8)
                .and_then(|b| Some(u64::from_le_bytes(b.try_into().ok()?)))
                .ok_or("a short record")
        };
        match kind {
            Kind::Segment => {}
            Kind::Entry => {
                let entry =
                    Entry::parse_from_carllerche_bytes(payload).map_err(|e| e.to_string())?;
                while self
                    .entries
                    .last()
                    .is_some_and(|last| last.index >= entry.index)
                {
                    self.entries.pop();
                }
                self.entries.push(entry);
            }
            Kind::HardState => {
                self.hard_state =
                    HardState::parse_from_bytes(payload).map_err(|e| e.to_string())?;
            }
            Kind::Restart => {
                let (index, term) = (number(0)?, number(8)?);
                // As Raft does: entries that agree with the snapshot stay.
                if !self
                    .entries
                    .iter()
                    .any(|e| e.index == index && e.term == term)
                {
                    self.entries.clear();
                }
                self.restart = Some((index, term));
            }
        }
        Ok(())
    }
}

fn segments(dir: &Path) -> Result<Vec<(u64, PathBuf)>, Error> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io_error(dir))? {
        let path = entry.map_err(io_error(dir))?.path();
        let number = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.strip_suffix(".wal"))
            .and_then(|n| u64::from_str_radix(n, 16).ok());
        if let Some(number) = number {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

impl Wal {
    /// Reads a log and makes it ready for more. `owner` refuses another member's log.
    pub fn open(dir: &Path, owner: Option<Owner>) -> Result<(Self, Replay), Error> {
        let segments = segments(dir)?;
        let mut replay = Replay::default();
        let mut last: Option<(u32, u64)> = None;
        let mut closed = Vec::new();
        let mut found_owner = None;
        let mut end = 0;
        for (i, (segment, path)) in segments.iter().enumerate() {
            if let Some((expected, _)) = i.checked_sub(1).and_then(|i| segments.get(i))
                && *segment != expected + 1
            {
                return Err(Error::Gap {
                    path: path.clone(),
                    expected: expected + 1,
                });
            }
            let bytes = Bytes::from(std::fs::read(path).map_err(io_error(path))?);
            let is_last = i + 1 == segments.len();
            let mut at = 0;
            while let Some(frame) = record::read(&bytes[at..], *segment) {
                if last.is_some_and(|(sum, number)| {
                    frame.previous != sum || frame.number != number + 1
                }) {
                    break;
                }
                if frame.kind == Kind::Segment
                    && let (Some(cluster), Some(member)) =
                        (frame.payload.get(..8), frame.payload.get(8..16))
                {
                    let owner = Owner {
                        cluster: u64::from_le_bytes(cluster.try_into().unwrap_or_default()),
                        member: u64::from_le_bytes(member.try_into().unwrap_or_default()),
                    };
                    found_owner = Some(owner);
                }
                let after = at + record::HEAD + frame.payload.len();
                replay
                    .take(frame.kind, &bytes.slice(at + record::HEAD..after))
                    .map_err(|what| Error::Malformed {
                        path: path.clone(),
                        what,
                    })?;
                last = Some((frame.sum, frame.number));
                at = after;
            }
            let number = last.map_or(0, |(_, number)| number);
            if lost(&bytes, at, *segment, number) || (!is_last && !begun(&segments[i + 1], number)?)
            {
                return Err(Error::Damaged {
                    path: path.clone(),
                    offset: at as u64,
                });
            }
            if is_last {
                let rest = &bytes[at..];
                replay.torn = rest
                    .iter()
                    .rposition(|b| *b != 0)
                    .map_or(0, |p| p as u64 + 1);
                end = at;
            } else {
                let highest = replay.entries.last().map_or(0, |e| e.index);
                let restarted = replay.restart.map_or(0, |(index, _)| index);
                closed.push((*segment, highest.max(restarted)));
            }
        }
        let Some((number, path)) = segments.last().cloned() else {
            return Err(Error::Malformed {
                path: dir.to_path_buf(),
                what: "there is no log".to_owned(),
            });
        };
        let Some(found) = found_owner else {
            return Err(Error::Malformed {
                path,
                what: "no sound record in it".to_owned(),
            });
        };
        if owner.is_some_and(|owner| owner != found) {
            return Err(Error::Foreign {
                path,
                cluster: found.cluster,
                member: found.member,
            });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(io_error(&path))?;
        let highest = replay.entries.last().map_or(0, |e| e.index);
        let size = file.metadata().map_err(io_error(&path))?.len();
        let mut wal = Self {
            dir: dir.to_path_buf(),
            owner: found,
            segment: Segment {
                number,
                file,
                path,
                size,
            },
            offset: end as u64,
            last: last.unwrap_or_default(),
            synced: true,
            hard_state: replay.hard_state.clone(),
            closed,
            highest,
            buffer: Vec::new(),
            segment_size: SEGMENT,
        };
        // A torn tail must not be taken for a record again. A fresh segment is simpler to trust than a patched one.
        if replay.torn > 0 || end == 0 {
            wal.cut()?;
        }
        Ok((wal, replay))
    }

    /// Overwrites what is behind the last sound record with zeros.
    fn cut(&mut self) -> Result<(), Error> {
        let path = self.segment.path.clone();
        self.segment
            .file
            .set_len(self.offset)
            .map_err(io_error(&path))?;
        self.segment
            .file
            .set_len(self.segment.size)
            .map_err(io_error(&path))?;
        self.segment.file.sync_all().map_err(io_error(&path))?;
        if self.offset == 0 {
            self.open_segment();
            self.flush()?;
            self.sync()?;
        }
        sync_dir(&self.dir)
    }

    pub fn owner(&self) -> Owner {
        self.owner
    }
}

/// Whether a record that was written after a later sync lies behind the end of the readable part.
fn lost(bytes: &[u8], end: usize, segment: u64, number: u64) -> bool {
    let Some(last) = bytes.iter().rposition(|b| *b != 0) else {
        return false;
    };
    (end..=last).any(|at| {
        // Cheap to ask, and false nearly everywhere.
        let plausible = bytes
            .get(at + 12..at + 20)
            .and_then(|b| Some(u64::from_le_bytes(b.try_into().ok()?)))
            .is_some_and(|n| n > number && n - number < 1 << 24);
        plausible
            && record::read(&bytes[at..], segment).is_some_and(|f| f.number > number + 1 && f.first)
    })
}

/// Whether the segment goes on where the one before ended. If not, the end of the one before is damaged. One without
/// any record was put into place and then the power went.
fn begun((segment, path): &(u64, PathBuf), number: u64) -> Result<bool, Error> {
    // Its first record says whose it is, and is short.
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(BEGIN).read_to_end(&mut bytes))
        .map_err(io_error(path))?;
    Ok(record::read(&bytes, *segment).is_none_or(|frame| frame.number == number + 1))
}
