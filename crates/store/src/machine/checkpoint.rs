//! The whole state as one file: what a member restarts from, what a leader sends to one that is too far behind, and
//! what `snapshot save` keeps.
//!
//! ```text
//! magic | frames: length u32, CRC u32, payload | an empty frame | zeros up to 512 bytes
//! ```
//!
//! The first frame is a `Checkpoint` message, the others are versions of keys. The state goes on changing while it is
//! written: what is newer than the revision at the start is left out.

use std::io::{self, Read};
use std::sync::Arc;

use prost::Message as _;
use prost::encoding::{decode_varint, encode_varint};
use raft::eraftpb::ConfState;

use super::lease::Leases;
use super::members::Members;
use super::{Machine, Pin, Shared};
use crate::auth::Auth;
use crate::mvcc::{Key, Loaded, Loading, Shelf, Version};
use crate::pb::etcdserverpb::AlarmMember;
use crate::pb::orlop::store::{Checkpoint, LeaseRecord};
use crate::v2;

pub const MAGIC: &[u8; 8] = b"ORLOPCP1";
/// Keys that are read under one lock.
const PAGE: usize = 1000;
/// Zeros at the end, so that the size says that a checksum follows, as clients expect it.
const ALIGN: u64 = 512;

/// A file in the making, piece by piece.
pub struct Source {
    shared: Shared,
    head: Checkpoint,
    after: Option<Key>,
    step: Step,
    written: u64,
    generation: u64,
    _pin: Pin,
}

/// The state as of the start is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("while the state was read, a newer one of the leader took its place")]
pub struct Replaced;

enum Step {
    Head,
    Pages,
    Done,
}

impl Source {
    /// The state as of now.
    pub fn new(shared: &Shared) -> Self {
        let mut machine = shared.write();
        let pin = machine.pin();
        Self {
            shared: shared.clone(),
            head: machine.head(),
            after: None,
            step: Step::Head,
            written: 0,
            generation: machine.generation,
            _pin: pin,
        }
    }

    pub fn head(&self) -> &Checkpoint {
        &self.head
    }

    fn frame(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(
            &u32::try_from(payload.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        out.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
        out.extend_from_slice(payload);
    }
}

impl Iterator for Source {
    type Item = Result<Vec<u8>, Replaced>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut out = Vec::new();
        match self.step {
            Step::Head => {
                out.extend_from_slice(MAGIC);
                let head = self.head.encode_to_vec();
                self.frame(&head, &mut out);
                self.step = Step::Pages;
            }
            Step::Pages => {
                let machine = self.shared.read();
                if machine.generation != self.generation {
                    drop(machine);
                    self.step = Step::Done;
                    return Some(Err(Replaced));
                }
                let page = machine
                    .kv
                    .page(self.after.as_ref(), self.head.revision, PAGE);
                drop(machine);
                let mut payload = Vec::new();
                let empty = page.is_empty();
                self.after = page.last().map(|(key, _)| key.clone());
                for version in page.into_iter().flat_map(|(_, versions)| versions) {
                    encode_version(&version.read(), &mut payload);
                }
                if empty {
                    self.frame(&[], &mut out);
                    let end = self.written + out.len() as u64;
                    let padding = end.next_multiple_of(ALIGN) - end;
                    out.resize(out.len() + usize::try_from(padding).unwrap_or(0), 0);
                    self.step = Step::Done;
                } else if !payload.is_empty() {
                    self.frame(&payload, &mut out);
                }
            }
            Step::Done => return None,
        }
        self.written += out.len() as u64;
        Some(Ok(out))
    }
}

fn encode_version(version: &Version, out: &mut Vec<u8>) {
    encode_varint(version.main.cast_unsigned(), out);
    encode_varint(u64::from(version.sub) << 1 | u64::from(version.dead), out);
    encode_varint(version.pair.0.len() as u64, out);
    out.extend_from_slice(&version.pair.0);
}

fn decode_version<'a>(bytes: &mut &'a [u8]) -> Option<Loaded<'a>> {
    let main = decode_varint(bytes).ok()?.cast_signed();
    let flags = decode_varint(bytes).ok()?;
    let length = usize::try_from(decode_varint(bytes).ok()?).ok()?;
    let (pair, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(Loaded {
        main,
        sub: u32::try_from(flags >> 1).ok()?,
        dead: flags & 1 == 1,
        pair,
    })
}

fn bad(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("not a sound checkpoint: {what}"),
    )
}

fn read_frame(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = [0; 8];
    from.read_exact(&mut head)?;
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap_or_default());
    let (length, sum) = (word(&head[..4]), word(&head[4..]));
    let mut payload = Vec::new();
    from.take(u64::from(length)).read_to_end(&mut payload)?;
    if payload.len() as u64 != u64::from(length) {
        return Err(bad("it ends too early"));
    }
    if crc32fast::hash(&payload) != sum {
        return Err(bad("a checksum is wrong"));
    }
    Ok(payload)
}

/// The head alone.
pub fn read_head(from: &mut impl Read) -> io::Result<Checkpoint> {
    head_of(from, &mut 0)
}

fn head_of(from: &mut impl Read, at: &mut u64) -> io::Result<Checkpoint> {
    let mut magic = [0; 8];
    from.read_exact(&mut magic).map_err(located(*at))?;
    if &magic != MAGIC {
        return Err(bad("its first bytes are not those of one"));
    }
    *at += magic.len() as u64;
    let frame = next_frame(from, at)?;
    Checkpoint::decode(&*frame).map_err(|e| bad(&e.to_string()))
}

/// Says where the part begins that cannot be read.
fn located(at: u64) -> impl FnOnce(io::Error) -> io::Error {
    move |error| {
        let what = match error.kind() {
            io::ErrorKind::UnexpectedEof => bad("it ends too early").to_string(),
            _ => error.to_string(),
        };
        io::Error::new(error.kind(), format!("{what}, in the part at byte {at}"))
    }
}

fn next_frame(from: &mut impl Read, at: &mut u64) -> io::Result<Vec<u8>> {
    let payload = read_frame(from).map_err(located(*at))?;
    *at += 8 + payload.len() as u64;
    Ok(payload)
}

/// Reads a whole file back.
pub fn read(from: &mut impl Read) -> io::Result<Machine> {
    read_onto(from, None)
}

/// The same, with a shelf for what need not be in memory.
pub fn read_onto(from: &mut impl Read, shelf: Option<Shelf>) -> io::Result<Machine> {
    let mut at = 0;
    let head = head_of(from, &mut at)?;
    let mut machine = Machine::of(&head)?;
    let mut loading = Loading::new(head.revision, head.compact_revision, shelf);
    loop {
        let payload = next_frame(from, &mut at)?;
        if payload.is_empty() {
            break;
        }
        let mut rest = payload.as_slice();
        while !rest.is_empty() {
            let version = decode_version(&mut rest).filter(|version| loading.take(*version));
            version.ok_or_else(|| bad("a version of a key"))?;
        }
    }
    let (kv, leased) = loading.done();
    machine.kv = kv;
    for (lease, key) in &leased {
        machine.leases.attach(*lease, key);
    }
    Ok(machine)
}

impl Machine {
    fn head(&self) -> Checkpoint {
        Checkpoint {
            index: self.applied,
            term: self.applied_term,
            cluster_id: self.cluster_id,
            voters: self.conf.voters.clone(),
            learners: self.conf.learners.clone(),
            voters_outgoing: self.conf.voters_outgoing.clone(),
            learners_next: self.conf.learners_next.clone(),
            auto_leave: self.conf.auto_leave,
            revision: self.kv.revision(),
            compact_revision: self.kv.compact_revision(),
            members: self.members.list(),
            removed: self.members.removed.iter().copied().collect(),
            alarms: self
                .alarms
                .iter()
                .map(|(member_id, alarm)| AlarmMember {
                    member_id: *member_id,
                    alarm: *alarm,
                })
                .collect(),
            leases: self
                .leases
                .iter()
                .map(|(id, lease)| LeaseRecord {
                    id,
                    ttl: lease.ttl,
                    revision: lease.revision,
                })
                .collect(),
            auth: self.auth.snapshot(),
            v2: self.v2.read().snapshot(),
        }
    }

    /// The state without the keys.
    fn of(head: &Checkpoint) -> io::Result<Self> {
        let mut members = Members::of(head.members.iter().cloned());
        members.removed = head.removed.iter().copied().collect();
        let mut leases = Leases::default();
        for lease in &head.leases {
            leases.restore(lease.id, lease.ttl, lease.revision);
        }
        let auth = Auth::restore(&head.auth).map_err(|e| bad(&e.to_string()))?;
        let tree = v2::Shared::default();
        if !head.v2.is_empty() {
            tree.write()
                .restore(&head.v2)
                .map_err(|e| bad(&e.to_string()))?;
        }
        Ok(Self {
            auth,
            v2: Arc::new(tree),
            leases,
            members,
            alarms: head.alarms.iter().map(|a| (a.member_id, a.alarm)).collect(),
            cluster_id: head.cluster_id,
            applied: head.index,
            applied_term: head.term,
            conf: conf_state(head),
            ..Self::default()
        })
    }
}

pub fn conf_state(head: &Checkpoint) -> ConfState {
    let mut conf = ConfState::default();
    conf.voters.clone_from(&head.voters);
    conf.learners.clone_from(&head.learners);
    conf.voters_outgoing.clone_from(&head.voters_outgoing);
    conf.learners_next.clone_from(&head.learners_next);
    conf.auto_leave = head.auto_leave;
    conf
}
