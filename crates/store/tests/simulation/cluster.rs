//! The members, and everything around them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use prost::Message as _;
use raft::eraftpb::{Entry, HardState, Message, MessageType};
use store::machine::checkpoint::{self, Source, conf_state};
use store::machine::{Machine, Shared};
use store::mvcc::{Change, view};
use store::node::core::Write;
use store::node::{Actions, Core, Event, Options};
use store::pb::etcdserverpb as rpc;
use store::pb::orlop::store::Command;
use store::pb::orlop::store::command::Op;
use store::propose::Reply;

use crate::bugs::Bug;
use crate::check::{Answered, Did, Truth, linearizable};
use crate::random::Random;

const TICK: Duration = Duration::from_millis(100);
const CLIENTS: usize = 4;
const KEYS: u64 = 3;
/// Time with faults, and time to recover.
const STORM: Duration = Duration::from_secs(12);
const CALM: Duration = Duration::from_secs(20);
/// Seconds of the leases that clients take.
const LEASE: i64 = 5;
/// Keys of leases; clients of the other keys do not touch them.
const LEASED: u8 = 100;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) acknowledged: u64,
    pub(crate) reads: u64,
    pub(crate) unknown: u64,
    pub(crate) crashes: u64,
    pub(crate) snapshots: u64,
    pub(crate) leases: u64,
    pub(crate) revision: i64,
}

impl Summary {
    pub(crate) fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.reads += other.reads;
        self.unknown += other.unknown;
        self.crashes += other.crashes;
        self.snapshots += other.snapshots;
        self.leases += other.leases;
        self.revision += other.revision;
    }
}

/// What survives a crash.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) checkpoint: Vec<u8>,
    pub(crate) hard_state: HardState,
    pub(crate) entries: Vec<Entry>,
}

impl Disk {
    pub(crate) fn write(&mut self, write: &Write) {
        if write.batch.restart.is_some() {
            self.entries.clear();
        }
        for entry in &write.batch.entries {
            self.entries.retain(|e| e.index < entry.index);
            self.entries.push(entry.clone());
        }
        if let Some(state) = &write.batch.hard_state {
            self.hard_state = state.clone();
        }
    }
}

struct Member {
    core: Option<Core>,
    machine: Shared,
    disk: Disk,
    unsynced: VecDeque<Write>,
    /// Until then the disk does nothing.
    stalled: Duration,
    /// Counts restarts, so that what belonged to an earlier life is ignored.
    life: u64,
    /// The last change that watchers here were told of.
    told: (i64, u32),
}

enum Happens {
    Tick(usize, u64),
    Arrives(usize, Message),
    Snapshot(usize, Message, Vec<u8>),
    Synced(usize, u64, u64),
    Restart(usize),
    Ask(usize),
    GiveUp(usize, u64),
    Heal(usize),
    Trouble,
    /// A key is put that hangs on this lease.
    Hang(i64),
}

#[derive(Clone)]
enum Asking {
    Put { key: u8, value: u64 },
    Swap { key: u8, value: u64 },
    Delete { key: u8 },
    Read { key: u8 },
    Lease { id: i64 },
}

struct Waiting {
    client: usize,
    member: usize,
    asked: Duration,
    what: Asking,
}

pub(crate) struct Cluster {
    random: Random,
    bug: Option<Bug>,
    now: Duration,
    members: Vec<Member>,
    agenda: BTreeMap<(Duration, u64), Happens>,
    numbers: u64,
    /// Pairs of members between which nothing passes.
    cut: Vec<(usize, usize)>,
    waiting: HashMap<u64, Waiting>,
    history: Vec<Answered>,
    /// By (revision, place in it): what each member told its watchers must be the same.
    events: BTreeMap<(i64, u32), Vec<u8>>,
    leases: HashMap<i64, Duration>,
    summary: Summary,
    stormy: bool,
}

fn key_of(key: u8) -> Vec<u8> {
    vec![b'k', key]
}

pub(crate) fn fresh(count: usize) -> Machine {
    let mut machine = Machine::default();
    (machine.applied, machine.applied_term) = (1, 1);
    machine.conf.voters = (1..=count as u64).collect();
    machine.leases.minimum = 2;
    machine
}

fn bytes_of(machine: &Shared) -> (store::pb::orlop::store::Checkpoint, Vec<u8>) {
    let source = Source::new(machine);
    let head = source.head().clone();
    let pieces = source.map(|piece| piece.expect("nobody replaces it"));
    (head, pieces.flatten().collect())
}

impl Cluster {
    pub(crate) fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut random = Random::new(seed);
        let count = match random.chance(25) {
            // A voter without others reads without asking.
            _ if bug.is_none() && seed % 16 == 15 => 1,
            true => 5,
            false => 3,
        };
        let mut cluster = Self {
            random,
            bug,
            now: Duration::ZERO,
            members: Vec::new(),
            agenda: BTreeMap::new(),
            numbers: 0,
            cut: Vec::new(),
            waiting: HashMap::new(),
            history: Vec::new(),
            events: BTreeMap::new(),
            leases: HashMap::new(),
            summary: Summary::default(),
            stormy: true,
        };
        for id in 0..count {
            let machine = Arc::new(RwLock::new(fresh(count)));
            let disk = Disk {
                checkpoint: bytes_of(&machine).1,
                hard_state: HardState {
                    term: 1,
                    commit: 1,
                    ..HardState::default()
                },
                entries: Vec::new(),
            };
            cluster.members.push(Member {
                core: None,
                machine,
                disk,
                unsynced: VecDeque::new(),
                stalled: Duration::ZERO,
                life: 0,
                told: (0, 0),
            });
            cluster.later(millis(id as u64), Happens::Restart(id));
        }
        for client in 0..CLIENTS {
            cluster.later(millis(500 + client as u64), Happens::Ask(client));
        }
        cluster.later(millis(1000), Happens::Trouble);
        cluster
    }

    fn later(&mut self, after: Duration, what: Happens) {
        self.numbers += 1;
        self.agenda.insert((self.now + after, self.numbers), what);
    }

    pub(crate) fn run(&mut self) -> Result<(), String> {
        while let Some(((at, _), what)) = self.agenda.pop_first() {
            if at > STORM + CALM {
                break;
            }
            self.now = at;
            if self.stormy && at > STORM {
                self.stormy = false;
                self.cut.clear();
                for member in &mut self.members {
                    member.stalled = Duration::ZERO;
                }
            }
            self.happen(what)?;
        }
        Ok(())
    }

    fn happen(&mut self, what: Happens) -> Result<(), String> {
        match what {
            Happens::Tick(id, life) => {
                if self.members[id].life == life && self.members[id].core.is_some() {
                    self.step(id, Event::Tick)?;
                    self.later(TICK, Happens::Tick(id, life));
                }
            }
            Happens::Arrives(id, message) => self.step(id, Event::Message(message))?,
            Happens::Snapshot(id, message, bytes) => self.receive_snapshot(id, message, bytes)?,
            Happens::Synced(id, life, number) => {
                if self.members[id].life != life {
                    return Ok(());
                }
                if self.members[id].stalled > self.now {
                    let wait = self.members[id].stalled - self.now;
                    self.later(wait, Happens::Synced(id, life, number));
                    return Ok(());
                }
                let member = &mut self.members[id];
                while member.unsynced.front().is_some_and(|w| w.number <= number) {
                    if let Some(write) = member.unsynced.pop_front() {
                        member.disk.write(&write);
                    }
                }
                self.step(id, Event::Persisted(number))?;
            }
            Happens::Restart(id) => self.restart(id)?,
            Happens::Ask(client) => self.ask(client)?,
            Happens::GiveUp(client, id) => {
                if self.waiting.remove(&id).is_some() {
                    self.summary.unknown += 1;
                    self.later(millis(10), Happens::Ask(client));
                }
            }
            Happens::Heal(pairs) => {
                self.cut.drain(..pairs.min(self.cut.len()));
            }
            Happens::Trouble => self.trouble(),
            Happens::Hang(lease) => self.hang(lease)?,
        }
        Ok(())
    }

    fn trouble(&mut self) {
        if !self.stormy {
            return;
        }
        let count = self.members.len() as u64;
        let id = self.random.below(count) as usize;
        match self.random.below(10) {
            0..=3 => self.crash(id),
            4..=5 => {
                let others: Vec<_> = (0..self.members.len())
                    .filter(|o| *o != id)
                    .map(|o| (id, o))
                    .collect();
                let heal = millis(self.random.between(200, 4000));
                let pairs = others.len();
                self.cut.extend(others);
                self.later(heal, Happens::Heal(pairs));
            }
            6 => {
                let other = self.random.below(count) as usize;
                let heal = millis(self.random.between(200, 3000));
                self.cut.push((id, other));
                self.later(heal, Happens::Heal(1));
            }
            7 => self.members[id].stalled = self.now + millis(self.random.between(100, 2500)),
            _ => self.checkpoint(id),
        }
        let next = millis(self.random.between(100, 900));
        self.later(next, Happens::Trouble);
    }

    fn crash(&mut self, id: usize) {
        let member = &mut self.members[id];
        if member.core.take().is_none() {
            return;
        }
        self.summary.crashes += 1;
        member.life += 1;
        // Of what was not synced, a first part may have reached the disk all the same.
        let reached = self.random.below(member.unsynced.len() as u64 + 1) as usize;
        if self.bug != Some(Bug::SyncLies) {
            for write in member.unsynced.drain(..).take(reached) {
                member.disk.write(&write);
            }
        }
        self.members[id].unsynced.clear();
        let gone: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, w)| w.member == id)
            .map(|(i, _)| *i)
            .collect();
        for waiting in sorted(gone) {
            if let Some(waiting) = self.waiting.remove(&waiting) {
                self.summary.unknown += 1;
                self.later(millis(50), Happens::Ask(waiting.client));
            }
        }
        let down = millis(self.random.between(50, 3000));
        self.later(down, Happens::Restart(id));
    }

    fn restart(&mut self, id: usize) -> Result<(), String> {
        let bug = self.bug;
        let member = &mut self.members[id];
        let mut machine =
            checkpoint::read(&mut &member.disk.checkpoint[..]).map_err(|e| e.to_string())?;
        machine.leases.minimum = 2;
        let index = machine.applied;
        let log = &mut member.disk.entries;
        if let Some(same) = log.iter().find(|e| e.index == index)
            && same.term != machine.applied_term
        {
            // As the log's record of a restart does.
            log.clear();
        }
        let mut entries: Vec<Entry> = log.clone();
        entries.retain(|e| e.index > index);
        let mut hard_state = member.disk.hard_state.clone();
        match bug {
            Some(Bug::ForgetsVote) => {
                hard_state.vote = 0;
                hard_state.term = entries.last().map_or(machine.applied_term, |e| e.term);
            }
            Some(Bug::LosesLastEntry) => {
                entries.pop();
            }
            _ => {}
        }
        member.machine = Arc::new(RwLock::new(machine));
        member.told = (member.machine.read().kv.revision(), u32::MAX);
        let options = Options {
            member: id as u64 + 1,
            election_ticks: 10,
            heartbeat_ticks: 1,
            pre_vote: true,
            seed: self.random.next(),
        };
        let core = Core::new(&options, member.machine.clone(), hard_state, entries)
            .map_err(|e| e.to_string())?;
        member.core = Some(core);
        member.life += 1;
        let life = member.life;
        self.later(TICK, Happens::Tick(id, life));
        self.act(id)
    }

    fn checkpoint(&mut self, id: usize) {
        let member = &mut self.members[id];
        if member.core.is_none() {
            return;
        }
        {
            let mut machine = member.machine.write();
            match self.bug {
                Some(Bug::CheckpointTooOld) if machine.applied > 3 => machine.applied -= 1,
                Some(Bug::CheckpointTooNew) => machine.applied += 1,
                _ => {}
            }
        }
        let (head, bytes) = bytes_of(&member.machine);
        match self.bug {
            Some(Bug::CheckpointTooOld) if head.index > 2 => member.machine.write().applied += 1,
            Some(Bug::CheckpointTooNew) => member.machine.write().applied -= 1,
            _ => {}
        }
        member.disk.checkpoint = bytes;
        // Old entries go some time later, as segments do.
        let keep = head.index.saturating_sub(self.random.below(20));
        member.disk.entries.retain(|e| e.index > keep);
    }

    fn clock(&self, id: usize) -> Duration {
        // Clocks start when the process does; only their pace matters.
        if self.bug == Some(Bug::FastClock) && id == 0 {
            self.now * 10
        } else {
            self.now
        }
    }

    fn step(&mut self, id: usize, event: Event) -> Result<(), String> {
        let now = self.clock(id);
        let Some(core) = &mut self.members[id].core else {
            return Ok(());
        };
        core.take(event, now);
        self.act(id)
    }

    fn act(&mut self, id: usize) -> Result<(), String> {
        let now = self.clock(id);
        let Some(core) = &mut self.members[id].core else {
            return Ok(());
        };
        let Actions {
            send,
            write,
            replies,
            reads,
            changes,
            ..
        } = core.act(now);
        if let Some(last) = write.last().map(|w| w.number) {
            let life = self.members[id].life;
            self.members[id].unsynced.extend(write);
            let lies = self.bug == Some(Bug::SyncLies);
            let takes = if lies { 0 } else { self.random.between(1, 20) };
            if lies {
                // Said at once, done much later.
                if let Some(core) = &mut self.members[id].core {
                    core.take(Event::Persisted(last), now);
                }
                self.later(millis(300), Happens::Synced(id, life, last));
            } else {
                self.later(millis(takes), Happens::Synced(id, life, last));
            }
        }
        self.tell(id, changes)?;
        for message in send {
            self.send(id, message);
        }
        for (request, reply) in replies {
            self.answer(request, reply);
        }
        for token in reads {
            self.answer_read(id, token);
        }
        Ok(())
    }

    fn send(&mut self, from: usize, mut message: Message) {
        let to = message.to as usize - 1;
        let blocked = self
            .cut
            .iter()
            .any(|pair| *pair == (from, to) || *pair == (to, from));
        if message.get_msg_type() == MessageType::MsgSnapshot {
            if blocked {
                let failed = Event::SnapshotSent(message.to, false);
                let now = self.clock(from);
                if let Some(core) = &mut self.members[from].core {
                    core.take(failed, now);
                }
                return;
            }
            let (head, mut bytes) = bytes_of(&self.members[from].machine);
            if self.bug == Some(Bug::SnapshotLosesKey) {
                bytes = without_a_key(&bytes);
            }
            let metadata = message.mut_snapshot().mut_metadata();
            if self.bug == Some(Bug::SnapshotStale) {
                metadata.index = metadata.index.min(head.index - 1);
                bytes = with_place(&bytes, (metadata.index, metadata.term));
            } else {
                metadata.index = head.index;
                metadata.term = head.term;
                metadata.set_conf_state(conf_state(&head));
            }
            let takes = millis(self.random.between(5, 100));
            self.later(takes, Happens::Snapshot(to, message, bytes));
            return;
        }
        let lost = blocked || (self.stormy && self.random.chance(4));
        if lost {
            return;
        }
        // Reordered, late, and sometimes twice.
        let takes = if self.random.chance(5) {
            self.random.between(20, 400)
        } else {
            self.random.between(1, 8)
        };
        if self.stormy && self.random.chance(2) {
            let again = millis(self.random.between(1, 300));
            self.later(again, Happens::Arrives(to, message.clone()));
        }
        self.later(millis(takes), Happens::Arrives(to, message));
    }

    fn receive_snapshot(
        &mut self,
        id: usize,
        message: Message,
        bytes: Vec<u8>,
    ) -> Result<(), String> {
        let from = message.from as usize - 1;
        let arrived = self.members[id].core.is_some();
        if arrived {
            let machine = checkpoint::read(&mut &bytes[..]).map_err(|e| e.to_string())?;
            self.summary.snapshots += 1;
            let current = self.members[id].machine.read().applied;
            if machine.applied > current {
                self.members[id].disk.checkpoint = bytes;
            }
            self.step(id, Event::Install(message, Box::new(machine)))?;
            let revision = self.members[id].machine.read().kv.revision();
            let told = &mut self.members[id].told;
            *told = (*told).max((revision, u32::MAX));
        }
        self.step(from, Event::SnapshotSent(id as u64 + 1, arrived))
    }

    /// Watchers of a member see every change once, in order, and the same as those of the others.
    fn tell(&mut self, id: usize, mut changes: Vec<Change>) -> Result<(), String> {
        match self.bug {
            Some(Bug::DropsEvent) if self.random.chance(3) => {
                changes.pop();
            }
            Some(Bug::RepeatsEvent) if self.random.chance(3) => {
                changes.extend(changes.first().cloned());
            }
            Some(Bug::SwapsEvents) => changes.reverse(),
            _ => {}
        }
        for change in changes {
            let at = (change.version.main, change.version.sub);
            let told = &mut self.members[id].told;
            if at <= *told {
                return Err(format!("member {id} tells of {at:?} after {told:?}"));
            }
            if at.0 > told.0 + 1 {
                return Err(format!("member {id} tells of {at:?} right after {told:?}"));
            }
            *told = at;
            let mut bytes = change.version.pair.0.to_vec();
            if self.bug == Some(Bug::Corrupts) && id == 1 && self.random.chance(1) {
                bytes.push(0);
            }
            match self.events.get(&at) {
                Some(known) if *known != bytes => {
                    return Err(format!(
                        "member {id} tells something else of {at:?} than others"
                    ));
                }
                Some(_) => {}
                None => {
                    self.check_lease(&change)?;
                    self.events.insert(at, bytes);
                }
            }
        }
        Ok(())
    }

    /// A key of a lease must not go before the lease has had its time.
    fn check_lease(&self, change: &Change) -> Result<(), String> {
        let [b'k', LEASED, id] = &*change.key else {
            return Ok(());
        };
        if !change.version.dead {
            return Ok(());
        }
        let granted = self
            .leases
            .get(&i64::from(*id))
            .copied()
            .unwrap_or_default();
        let lived = self.now - granted;
        if lived < Duration::from_secs(LEASE as u64) {
            return Err(format!("lease {id} ended after {lived:?}"));
        }
        Ok(())
    }

    fn ask(&mut self, client: usize) -> Result<(), String> {
        if self.now > STORM + CALM - Duration::from_secs(10) {
            return Ok(());
        }
        let member = self.random.below(self.members.len() as u64) as usize;
        if self.members[member].core.is_none() {
            self.later(millis(20), Happens::Ask(client));
            return Ok(());
        }
        self.numbers += 1;
        let id = self.numbers;
        let key = self.random.below(KEYS) as u8;
        let what = match self.random.below(20) {
            0..=6 => Asking::Put { key, value: id },
            7..=9 => Asking::Swap { key, value: id },
            10 => Asking::Delete { key },
            11 if self.leases.len() < 250 => Asking::Lease {
                id: self.leases.len() as i64 + 1,
            },
            _ => Asking::Read { key },
        };
        if let Asking::Lease { id } = what {
            self.leases.insert(id, self.now);
            self.summary.leases += 1;
        }
        let waiting = Waiting {
            client,
            member,
            asked: self.now,
            what: what.clone(),
        };
        self.waiting.insert(id, waiting);
        self.later(Duration::from_secs(3), Happens::GiveUp(client, id));
        if let Asking::Read { .. } = what {
            if self.bug == Some(Bug::ReadsLocally) {
                self.answer_read(member, id);
                return Ok(());
            }
            // As the driver does.
            let core = self.members[member].core.as_ref();
            if core.is_some_and(|core| core.standing().alone) {
                self.answer_read(member, id);
                return Ok(());
            }
            return self.step(member, Event::Read(id));
        }
        let command = Command {
            id,
            op: Some(operation(&what)),
            ..Command::default()
        };
        self.step(member, Event::Propose(command.encode_to_vec()))?;
        if self.bug == Some(Bug::AcknowledgesEarly) && matches!(what, Asking::Put { .. }) {
            let revision = self.members[member].machine.read().kv.revision() + 1;
            let header = Some(rpc::ResponseHeader {
                revision,
                ..Default::default()
            });
            let put = rpc::PutResponse {
                header,
                prev_kv: None,
            };
            self.answer(id, Ok(Reply::Put(put)));
        }
        Ok(())
    }

    fn answer(&mut self, id: u64, reply: Result<Reply, store::error::Error>) {
        let Some(waiting) = self.waiting.remove(&id) else {
            return;
        };
        let revision =
            |header: &Option<rpc::ResponseHeader>| header.as_ref().map_or(0, |h| h.revision);
        let did = match (&waiting.what, reply) {
            (Asking::Put { key, value }, Ok(Reply::Put(reply))) => Some(Did::Wrote {
                key: *key,
                value: Some(*value),
                revision: revision(&reply.header),
            }),
            (Asking::Swap { key, value }, Ok(Reply::Txn(reply))) => Some(if reply.succeeded {
                Did::Wrote {
                    key: *key,
                    value: Some(*value),
                    revision: revision(&reply.header),
                }
            } else {
                Did::Nothing {
                    revision: revision(&reply.header),
                }
            }),
            (Asking::Delete { key }, Ok(Reply::DeleteRange(reply))) => Some(if reply.deleted > 0 {
                Did::Wrote {
                    key: *key,
                    value: None,
                    revision: revision(&reply.header),
                }
            } else {
                Did::Nothing {
                    revision: revision(&reply.header),
                }
            }),
            _ => None,
        };
        if let Asking::Lease { id } = waiting.what {
            self.later(millis(1), Happens::Hang(id));
        }
        self.summary.acknowledged += 1;
        self.finish(waiting, did);
    }

    fn hang(&mut self, lease: i64) -> Result<(), String> {
        let alive = (0..self.members.len()).find(|id| self.members[*id].core.is_some());
        let (Some(member), Ok(id)) = (alive, u8::try_from(lease)) else {
            return Ok(());
        };
        self.numbers += 1;
        let command = Command {
            id: self.numbers,
            op: Some(Op::Put(rpc::PutRequest {
                key: vec![b'k', LEASED, id],
                lease,
                ..rpc::PutRequest::default()
            })),
            ..Command::default()
        };
        self.step(member, Event::Propose(command.encode_to_vec()))
    }

    fn answer_read(&mut self, member: usize, id: u64) {
        let Some(waiting) = self.waiting.remove(&id) else {
            return;
        };
        let Asking::Read { key } = waiting.what else {
            return;
        };
        let machine = self.members[member].machine.read();
        let value = machine
            .kv
            .get(&key_of(key))
            .map(|version| number_in(view(&version.pair).value));
        let revision = machine.kv.revision();
        drop(machine);
        self.summary.reads += 1;
        self.finish(
            waiting,
            Some(Did::Read {
                key,
                value,
                revision,
            }),
        );
    }

    fn finish(&mut self, waiting: Waiting, did: Option<Did>) {
        if let Some(did) = did {
            self.history.push(Answered {
                asked: waiting.asked,
                answered: self.now,
                did,
            });
        }
        let pause = millis(self.random.between(1, 60));
        self.later(pause, Happens::Ask(waiting.client));
    }

    /// After the calm: everybody has the same, and what clients saw is possible.
    pub(crate) fn check(&mut self) -> Result<Summary, String> {
        let mut leaders = 0;
        for member in &self.members {
            leaders += usize::from(member.core.as_ref().is_some_and(Core::is_leader));
        }
        if leaders != 1 {
            return Err(format!("{leaders} leaders after the calm"));
        }
        let place = |m: &Member| {
            let machine = m.machine.read();
            (
                machine.applied,
                machine.kv.revision(),
                machine.kv.hash(machine.kv.revision()),
            )
        };
        let first = place(&self.members[0]);
        for (id, member) in self.members.iter().enumerate() {
            if place(member) != first {
                return Err(format!(
                    "member {id} has {:?}, member 0 {first:?}",
                    place(member)
                ));
            }
        }
        let machine = self.members[0].machine.read();
        let mut truth = Truth::new();
        for change in machine.kv.changes(&[0], &[0], 0, i64::MAX) {
            let [b'k', key] = &*change.key else { continue };
            let value = (!change.version.dead).then(|| number_in(view(&change.version.pair).value));
            truth.insert(change.version.main, (*key, value));
            let at = (change.version.main, change.version.sub);
            if self
                .events
                .get(&at)
                .is_some_and(|told| *told != *change.version.pair.0)
            {
                return Err(format!(
                    "watchers were told something else of {at:?} than what is kept"
                ));
            }
        }
        let left = machine.leases.len();
        if left > 0 {
            // Whatever was granted has had its time by now, three times over.
            return Err(format!("{left} leases did not end"));
        }
        self.summary.revision = machine.kv.revision();
        drop(machine);
        linearizable(&self.history, &truth)?;
        Ok(self.summary.clone())
    }
}

fn sorted(mut ids: Vec<u64>) -> Vec<u64> {
    ids.sort_unstable();
    ids
}

fn number_in(value: &[u8]) -> u64 {
    String::from_utf8_lossy(value).parse().unwrap_or(u64::MAX)
}

fn operation(what: &Asking) -> Op {
    let put = |key: u8, value: u64| rpc::PutRequest {
        key: key_of(key),
        value: value.to_string().into_bytes(),
        ..rpc::PutRequest::default()
    };
    match what {
        Asking::Put { key, value } => Op::Put(put(*key, *value)),
        // Only if the key is there.
        Asking::Swap { key, value } => Op::Txn(rpc::TxnRequest {
            compare: vec![rpc::Compare {
                result: rpc::compare::CompareResult::Greater as i32,
                target: rpc::compare::CompareTarget::Version as i32,
                key: key_of(*key),
                target_union: Some(rpc::compare::TargetUnion::Version(0)),
                range_end: Vec::new(),
            }],
            success: vec![rpc::RequestOp {
                request: Some(rpc::request_op::Request::RequestPut(put(*key, *value))),
            }],
            failure: Vec::new(),
        }),
        Asking::Delete { key } => Op::DeleteRange(rpc::DeleteRangeRequest {
            key: key_of(*key),
            ..rpc::DeleteRangeRequest::default()
        }),
        Asking::Lease { id } => Op::LeaseGrant(rpc::LeaseGrantRequest {
            id: *id,
            ttl: LEASE,
        }),
        Asking::Read { .. } => Op::Txn(rpc::TxnRequest::default()),
    }
}

/// The same checkpoint with one key less.
fn without_a_key(bytes: &[u8]) -> Vec<u8> {
    let Ok(machine) = checkpoint::read(&mut &bytes[..]) else {
        return bytes.to_vec();
    };
    let mut copy = checkpoint::read(&mut &bytes[..]).unwrap_or_default();
    let (revision, compacted) = (machine.kv.revision(), machine.kv.compact_revision());
    let mut loading = store::mvcc::Loading::new(revision, compacted, None);
    let page = machine.kv.page(None, revision, usize::MAX);
    for version in page.into_iter().skip(1).flat_map(|(_, versions)| versions) {
        let version = version.read();
        let taken = loading.take(store::mvcc::Loaded {
            main: version.main,
            sub: version.sub,
            dead: version.dead,
            pair: &version.pair.0,
        });
        assert!(taken, "a checkpoint that was read has its keys in order");
    }
    (copy.kv, _) = loading.done();
    bytes_of(&Arc::new(RwLock::new(copy))).1
}

fn with_place(bytes: &[u8], place: (u64, u64)) -> Vec<u8> {
    let mut machine = checkpoint::read(&mut &bytes[..]).unwrap_or_default();
    (machine.applied, machine.applied_term) = place;
    bytes_of(&Arc::new(RwLock::new(machine))).1
}
