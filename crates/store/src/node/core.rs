//! One member, without disk, network or clock: events go in, actions come out. The driver (`node/driver.rs`) runs
//! the actions for real, the simulation runs them with faults.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, HardState, Message, MessageType, Snapshot};
use raft::{Config, RawNode, SnapshotStatus, StateRole};

use super::log::Log;
use crate::error::Error;
use crate::machine::{Machine, Shared};
use crate::mvcc::Change;
use crate::pb::etcdserverpb::LeaseRevokeRequest;
use crate::pb::orlop::store::command::Op;
use crate::pb::orlop::store::{Batch, Command, MemberChange};
use crate::propose::Reply;
use crate::wal;

/// Commands of one log entry, in bytes. More wait for the next.
const BATCH: usize = 1 << 20;
/// Entries of more bytes than this are read ahead of being applied, so many at most.
const MUCH: usize = 4 << 20;
const AHEAD: usize = 64;
/// Entries and bytes that a slow follower may still fetch one by one.
const KEEP_ENTRIES: u64 = 5000;
const KEEP_BYTES: usize = 32 << 20;
/// A proposal that found no leader for so long is forgotten; whoever made it has stopped waiting.
const PATIENCE: Duration = Duration::from_secs(7);
/// A read whose confirmation was lost is asked for again.
const READ_RETRY: Duration = Duration::from_millis(500);
/// Leases that are ended at once, and for how long their end may be on the way.
const REVOKES: usize = 1000;

#[derive(Debug)]
pub enum Event {
    Tick,
    /// An encoded [`Command`] and its id.
    Propose(Vec<u8>),
    Change(MemberChange, ConfChangeV2),
    /// A linearizable read wants to know when it may look.
    Read(u64),
    Message(Message),
    /// The write with this number, and all before it, are on disk.
    Persisted(u64),
    /// A leader's snapshot; the state that came with it is on disk already.
    Install(Message, Box<Machine>),
    Unreachable(u64),
    SnapshotSent(u64, bool),
    Transfer(u64),
    Campaign,
}

#[derive(Debug)]
pub struct Write {
    pub number: u64,
    pub batch: wal::Batch,
}

#[derive(Debug, Default)]
pub struct Actions {
    pub send: Vec<Message>,
    pub write: Vec<Write>,
    pub replies: Vec<(u64, Result<Reply, Error>)>,
    /// Reads that may look now.
    pub reads: Vec<u64>,
    /// What watchers have to hear, and the revision that they are at then.
    pub changes: Vec<Change>,
    pub revision: i64,
    /// Members came, went or moved.
    pub members_changed: bool,
    pub installed: bool,
    /// This member does not belong to the cluster any more.
    pub removed: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub leader: u64,
    pub term: u64,
    pub commit: u64,
    pub applied: u64,
    /// The only voter, which leads and has applied whatever was acknowledged before: nobody else can have more. What it
    /// applies from now on it acknowledges afterwards.
    pub alone: bool,
}

pub struct Options {
    pub member: u64,
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    pub pre_vote: bool,
    /// Two members must not have the same.
    pub seed: u64,
}

/// A command on its way into the log.
struct Pending {
    since: Duration,
    command: Vec<u8>,
    /// Whose leader wants it, if only that one may: the next knows better which leases have ended.
    term: Option<u64>,
}

/// Reads that are confirmed together.
struct Reads {
    context: [u8; 16],
    since: Duration,
    tokens: Vec<u64>,
}

pub struct Core {
    raw: RawNode<Log>,
    machine: Shared,
    member: u64,
    random: u64,
    timeout: usize,
    last_role: (u64, StateRole),
    pending: VecDeque<Pending>,
    /// Writes that are not on disk yet, with what is to be sent then.
    unsynced: VecDeque<(u64, Vec<Message>)>,
    released: Vec<Message>,
    waiting_reads: Vec<u64>,
    asked_reads: Option<Reads>,
    confirmed_reads: VecDeque<(u64, Vec<u64>)>,
    reads_made: u64,
    installing: Option<Box<Machine>>,
    /// The write that makes a leader's snapshot durable, and its index.
    installed: Option<(u64, u64)>,
    revoking: HashMap<i64, Duration>,
    leading: bool,
}

fn next_random(state: &mut u64) -> u64 {
    // splitmix64: election timeouts need to differ, not to surprise.
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Core {
    /// Goes on from a checkpoint (already in `machine`) and the log behind it.
    pub fn new(
        options: &Options,
        machine: Shared,
        mut hard_state: HardState,
        entries: Vec<Entry>,
    ) -> Result<Self, raft::Error> {
        let (applied, conf) = {
            let machine = machine.read();
            (
                (machine.applied, machine.applied_term),
                machine.conf.clone(),
            )
        };
        // A snapshot may have reached the disk just before what Raft would have written about it.
        hard_state.commit = hard_state.commit.max(applied.0);
        if applied.1 > hard_state.term {
            hard_state.term = applied.1;
            hard_state.vote = 0;
        }
        let last = entries.last().map_or(applied.0, |e| e.index);
        hard_state.commit = hard_state.commit.min(last);
        let log = Log::new(applied, conf, hard_state, entries);
        let config = Config {
            id: options.member,
            election_tick: options.election_ticks,
            heartbeat_tick: options.heartbeat_ticks,
            applied: applied.0,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            max_committed_size_per_ready: 16 << 20,
            check_quorum: true,
            pre_vote: options.pre_vote,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, log, &logger)?;
        let mut core = Self {
            raw,
            machine,
            member: options.member,
            random: options.seed,
            timeout: options.election_ticks,
            last_role: (0, StateRole::Follower),
            pending: VecDeque::new(),
            unsynced: VecDeque::new(),
            released: Vec::new(),
            waiting_reads: Vec::new(),
            asked_reads: None,
            confirmed_reads: VecDeque::new(),
            reads_made: next_random(&mut options.seed.clone()),
            installing: None,
            installed: None,
            revoking: HashMap::new(),
            leading: false,
        };
        core.draw_timeout();
        Ok(core)
    }

    pub fn standing(&self) -> Standing {
        Standing {
            leader: self.raw.raft.leader_id,
            term: self.raw.raft.term,
            commit: self.raw.raft.raft_log.committed,
            applied: self.raw.raft.raft_log.applied,
            alone: self.is_leader()
                && self.raw.raft.promotable()
                && self.raw.raft.prs().is_singleton()
                && self.raw.raft.commit_to_current_term()
                && self.raw.raft.raft_log.applied >= self.raw.raft.raft_log.committed,
        }
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// How far another member has come, if this one leads.
    pub fn matched(&self, id: u64) -> Option<(u64, bool)> {
        let progress = self.raw.raft.prs().get(id)?;
        self.is_leader()
            .then_some((progress.matched, progress.recent_active))
    }

    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Takes an event. Nothing happens before [`Core::act`], so that many events are worth one write.
    pub fn take(&mut self, event: Event, now: Duration) {
        match event {
            Event::Tick => {
                self.raw.tick();
                if self.raw.raft.election_elapsed == 0 && !self.is_leader() {
                    self.draw_timeout();
                }
                self.end_leases(now);
                self.pending
                    .retain(|pending| now < pending.since + PATIENCE);
                if let Some(reads) = self.asked_reads.take_if(|r| now >= r.since + READ_RETRY) {
                    self.waiting_reads.extend(reads.tokens);
                }
            }
            Event::Propose(command) => self.pending.push_back(Pending {
                since: now,
                command,
                term: None,
            }),
            Event::Change(context, change) => {
                let context = prost::Message::encode_to_vec(&context);
                // Dropped without a leader; whoever asked gives up in time.
                let _ = self.raw.propose_conf_change(context, change);
            }
            Event::Read(token) => self.waiting_reads.push(token),
            // A snapshot comes with its state, or not at all.
            Event::Message(message) if message.get_msg_type() == MessageType::MsgSnapshot => {}
            Event::Message(message) => {
                let _ = self.raw.step(message);
            }
            Event::Persisted(number) => {
                self.raw.on_persist_ready(number);
                if let Some((_, index)) = self.installed.take_if(|(write, _)| *write <= number) {
                    self.raw.advance_apply_to(index);
                }
                while self.unsynced.front().is_some_and(|(n, _)| *n <= number) {
                    if let Some((_, messages)) = self.unsynced.pop_front() {
                        self.released.extend(messages);
                    }
                }
            }
            Event::Install(message, machine) => self.offer(message, machine),
            Event::Unreachable(id) => self.raw.report_unreachable(id),
            Event::SnapshotSent(id, sent) => {
                let status = if sent {
                    SnapshotStatus::Finish
                } else {
                    SnapshotStatus::Failure
                };
                self.raw.report_snapshot(id, status);
            }
            Event::Transfer(id) => self.raw.transfer_leader(id),
            Event::Campaign => {
                let _ = self.raw.campaign();
            }
        }
        self.fix_timeout();
    }

    /// Keeps the state that came with a snapshot if Raft wants that: not one that is older than what it has, or than another
    /// that came just before.
    fn offer(&mut self, message: Message, machine: Box<Machine>) {
        let place = (machine.applied, machine.applied_term);
        if place_of(message.get_snapshot()) != place {
            tracing::error!("a snapshot is not of the state that came with it, and is ignored");
            return;
        }
        let _ = self.raw.step(message);
        if self.raw.snap().map(place_of) == Some(place) {
            self.installing = Some(machine);
        }
    }

    /// Does what the events of before make necessary.
    pub fn act(&mut self, now: Duration) -> Actions {
        let mut actions = Actions {
            send: std::mem::take(&mut self.released),
            ..Actions::default()
        };
        self.propose();
        self.ask_reads(now);
        while self.raw.has_ready() {
            self.ready(&mut actions, now);
            // Reads of a single member are confirmed at once, and more proposals may fit now.
            self.ask_reads(now);
        }
        self.fix_timeout();
        self.raw.mut_store().trim(KEEP_ENTRIES, KEEP_BYTES);
        let machine = self.machine.read();
        let applied = machine.applied;
        actions.revision = machine.kv.revision();
        drop(machine);
        while self
            .confirmed_reads
            .front()
            .is_some_and(|(index, _)| *index <= applied)
        {
            if let Some((_, tokens)) = self.confirmed_reads.pop_front() {
                actions.reads.extend(tokens);
            }
        }
        actions
    }

    /// One entry per sync: what comes while the disk is busy waits here and goes together.
    fn propose(&mut self) {
        while !self.pending.is_empty() && self.unsynced.is_empty() {
            let mut batch = Vec::new();
            let mut taken = Vec::new();
            while let Some(next) = self.pending.front() {
                if !batch.is_empty() && batch.len() + next.command.len() > BATCH {
                    break;
                }
                let Some(next) = self.pending.pop_front() else {
                    break;
                };
                if next.term.is_some_and(|term| !self.leads(term)) {
                    continue;
                }
                let command = &next.command;
                // Field 1 of a `Batch`.
                prost::encoding::encode_key(
                    1,
                    prost::encoding::WireType::LengthDelimited,
                    &mut batch,
                );
                prost::encoding::encode_varint(command.len() as u64, &mut batch);
                batch.extend_from_slice(command);
                taken.push(next);
            }
            if taken.is_empty() {
                return;
            }
            if self.raw.propose(Vec::new(), batch).is_err() {
                // No leader, or one that is leaving.
                for one in taken.into_iter().rev() {
                    self.pending.push_front(one);
                }
                return;
            }
        }
    }

    fn ask_reads(&mut self, now: Duration) {
        if self.waiting_reads.is_empty()
            || self.asked_reads.is_some()
            || self.raw.raft.leader_id == 0
        {
            return;
        }
        // A leader may answer only once it has committed something itself; Raft would lose the question.
        if self.is_leader() && !self.raw.raft.commit_to_current_term() {
            return;
        }
        self.reads_made = self.reads_made.wrapping_add(1);
        let mut context = [0; 16];
        context[..8].copy_from_slice(&self.member.to_le_bytes());
        context[8..].copy_from_slice(&self.reads_made.to_le_bytes());
        self.asked_reads = Some(Reads {
            context,
            since: now,
            tokens: std::mem::take(&mut self.waiting_reads),
        });
        self.raw.read_index(context.to_vec());
    }

    fn ready(&mut self, actions: &mut Actions, now: Duration) {
        let mut ready = self.raw.ready();
        self.change_role(now);
        actions.send.extend(ready.take_messages());
        for state in ready.take_read_states() {
            if let Some(reads) = self
                .asked_reads
                .take_if(|r| r.context[..] == state.request_ctx)
            {
                self.confirmed_reads.push_back((state.index, reads.tokens));
            }
        }
        let mut batch = wal::Batch::default();
        if !ready.snapshot().is_empty() {
            let at = place_of(ready.snapshot());
            let conf = ready.snapshot().get_metadata().get_conf_state();
            batch.restart = Some(at);
            self.installed = Some((ready.number(), at.0));
            self.raw.mut_store().restart(at, conf.clone());
            if let Some(machine) = self.installing.take() {
                self.install(*machine, actions, now);
            }
        }
        let committed = ready.take_committed_entries();
        // A commit index alone need not be on disk: it is found again. But to find it one asks the members that one knows, and
        // with those of before a change, a majority may be one that the others have gone on without.
        let members = committed
            .iter()
            .any(|entry| entry.get_entry_type() != EntryType::EntryNormal);
        self.apply(committed, actions, now);
        batch.entries = ready.take_entries();
        batch.hard_state = ready.hs().cloned();
        if members && batch.hard_state.is_none() {
            batch.hard_state = Some(self.raw.raft.hard_state());
        }
        let messages = ready.take_persisted_messages();
        let number = ready.number();
        self.raw.mut_store().append(batch.entries.iter().cloned());
        if let Some(state) = &batch.hard_state {
            self.raw.mut_store().hard_state = state.clone();
        }
        let idle = batch.restart.is_none() && batch.entries.is_empty() && messages.is_empty();
        let votes = batch.hard_state.is_some() && ready.must_sync();
        self.raw.advance_append_async(ready);
        if idle && !votes && !members && self.unsynced.is_empty() {
            self.raw.on_persist_ready(number);
        } else {
            self.unsynced.push_back((number, messages));
            actions.write.push(Write { number, batch });
        }
    }

    fn install(&mut self, mut machine: Machine, actions: &mut Actions, now: Duration) {
        let mut current = self.machine.write();
        machine.generation = current.generation + 1;
        machine.leases.minimum = current.leases.minimum;
        (machine.tokens, machine.epoch) = (current.tokens.take(), current.epoch);
        // Whoever serves it holds the old one.
        let tree = machine.v2.read().snapshot();
        if let Err(error) = current.v2.write().restore(&tree) {
            tracing::error!("the v2 tree of a snapshot cannot be used: {error}");
        }
        machine.v2 = current.v2.clone();
        if self.leading {
            machine.leases.lead(now);
        }
        let before = std::mem::replace(&mut *current, machine);
        drop(current);
        // Nobody has to wait until that is gone.
        drop(before);
        actions.members_changed = true;
        actions.installed = true;
    }

    fn apply(&mut self, entries: Vec<Entry>, actions: &mut Actions, now: Duration) {
        let Some(last) = entries.last().map(|e| e.index) else {
            return;
        };
        let bytes: usize = entries.iter().map(|entry| entry.data.len()).sum();
        if bytes > MUCH {
            // After a restart, mostly: another processor can read ahead.
            std::thread::scope(|scope| {
                let (ahead, read) = std::sync::mpsc::sync_channel(AHEAD);
                scope.spawn(move || {
                    for entry in entries {
                        let batch = commands(&entry);
                        if ahead.send((entry, batch)).is_err() {
                            return;
                        }
                    }
                });
                for (entry, batch) in read {
                    self.apply_one(&entry, batch, actions, now);
                }
            });
        } else {
            for entry in entries {
                self.apply_one(&entry, commands(&entry), actions, now);
            }
        }
        self.raw.advance_apply_to(last);
    }

    fn apply_one(
        &mut self,
        entry: &Entry,
        batch: Option<Batch>,
        actions: &mut Actions,
        now: Duration,
    ) {
        let at = (entry.index, entry.term);
        match entry.get_entry_type() {
            EntryType::EntryNormal => {
                self.apply_commands(batch.unwrap_or_default(), at, actions, now);
            }
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                self.apply_change(entry, actions);
            }
        }
        let mut machine = self.machine.write();
        (machine.applied, machine.applied_term) = at;
        drop(machine);
        self.raw.mut_store().applied = at;
    }

    /// `at` is written under the same lock: who takes a picture of the machine in between would have the effects of an
    /// entry that it says is still to come.
    fn apply_commands(
        &mut self,
        batch: Batch,
        at: (u64, u64),
        actions: &mut Actions,
        now: Duration,
    ) {
        if batch.commands.is_empty() {
            return;
        }
        let mut machine = self.machine.write();
        for command in &batch.commands {
            let reply = machine.apply(command, now);
            if command.id != 0 {
                actions.replies.push((command.id, reply));
            }
        }
        actions.changes.append(&mut machine.take_changes());
        (machine.applied, machine.applied_term) = at;
    }

    fn apply_change(&mut self, entry: &Entry, actions: &mut Actions) {
        let change = ConfChangeV2::parse_from_bytes(&entry.data);
        let (Ok(change), Ok(context)) = (change, MemberChange::decode(&*entry.context)) else {
            tracing::error!(
                index = entry.index,
                "a change of members makes no sense and is ignored"
            );
            return;
        };
        let checked = self.machine.read().check_change(&context);
        if let Err(error) = checked {
            actions.replies.push((context.request, Err(error)));
            return;
        }
        match self.raw.apply_conf_change(&change) {
            Ok(conf) => {
                self.raw.mut_store().conf = conf.clone();
                let mut machine = self.machine.write();
                machine.conf = conf;
                machine.change_members(&context);
                (machine.applied, machine.applied_term) = (entry.index, entry.term);
                actions.members_changed = true;
                actions.removed |= context.member.is_none() && context.id == self.member;
                actions
                    .replies
                    .push((context.request, Ok(Reply::Attributes)));
            }
            Err(error) => {
                let error = Error::internal(format!("etcdserver: {error}"));
                actions.replies.push((context.request, Err(error)));
            }
        }
    }

    fn change_role(&mut self, now: Duration) {
        let leading = self.is_leader();
        if leading == self.leading {
            return;
        }
        self.leading = leading;
        self.revoking.clear();
        let mut machine = self.machine.write();
        if leading {
            machine.leases.lead(now)
        } else {
            machine.leases.follow()
        }
    }

    fn end_leases(&mut self, now: Duration) {
        // Somebody else may lead already, and have heard from those that we have not.
        if !self.leading || !self.is_leader() {
            return;
        }
        self.revoking.retain(|_, since| now < *since + PATIENCE);
        let expired = self.machine.read().leases.expired(now);
        let due: Vec<i64> = expired
            .into_iter()
            .filter(|id| !self.revoking.contains_key(id))
            .take(REVOKES)
            .collect();
        for id in due {
            self.revoking.insert(id, now);
            let command = Command {
                op: Some(Op::LeaseRevoke(LeaseRevokeRequest { id })),
                ..Command::default()
            };
            self.pending.push_back(Pending {
                since: now,
                command: prost::Message::encode_to_vec(&command),
                term: Some(self.raw.raft.term),
            });
        }
    }

    fn leads(&self, term: u64) -> bool {
        self.is_leader() && self.raw.raft.term == term
    }

    fn draw_timeout(&mut self) {
        let base = self.raw.raft.election_timeout();
        let more = next_random(&mut self.random) % (base as u64);
        self.timeout = base + usize::try_from(more).unwrap_or(0);
    }

    /// Raft draws its timeouts from the machine's randomness. These come from the seed, so that a run can be repeated.
    fn fix_timeout(&mut self) {
        let role = (self.raw.raft.term, self.raw.raft.state);
        if role != self.last_role {
            self.last_role = role;
            self.draw_timeout();
        }
        self.raw.raft.set_randomized_election_timeout(self.timeout);
    }
}

fn place_of(snapshot: &Snapshot) -> (u64, u64) {
    let metadata = snapshot.get_metadata();
    (metadata.index, metadata.term)
}

/// What an entry says is to be done.
fn commands(entry: &Entry) -> Option<Batch> {
    if entry.get_entry_type() != EntryType::EntryNormal || entry.data.is_empty() {
        return None;
    }
    let batch = Batch::decode(&*entry.data);
    batch
        .inspect_err(|error| {
            tracing::error!(
                index = entry.index,
                "an entry of the log makes no sense and is ignored: {error}"
            );
        })
        .ok()
}

/// Whether a message is so small and so urgent that it goes before others.
pub fn is_heartbeat(message: &Message) -> bool {
    matches!(
        message.get_msg_type(),
        MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse
    )
}
