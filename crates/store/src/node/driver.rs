//! Runs a [`Core`]: one thread owns it, one writes and syncs the log, one writes checkpoints now and then.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use prost::Message as _;
use raft::eraftpb::{ConfChangeV2, Message};
use tokio::sync::oneshot;

use super::core::{Actions, Core, Event, Standing, Write};
use super::disk::{self, Disk};
use crate::error::{self, Error};
use crate::machine::{Machine, Shared};
use crate::metrics::Metrics;
use crate::pb::orlop::store::command::Op;
use crate::pb::orlop::store::{Command, MemberChange};
use crate::propose::{Boxed, Proposer, Reply};
use crate::wal::Wal;
use crate::watch::Hub;

type Answer = oneshot::Sender<Result<Reply, Error>>;

/// Who waits for a proposal, and how long.
struct Waiting {
    answer: Answer,
    until: Duration,
}

/// More proposals than this on their way means that the disk or the followers do not keep up.
const QUEUE: usize = 5000;
/// What one turn of the loop takes before it acts.
const TURN: usize = 4096;
/// Keys per turn that a compaction frees.
const RECLAIM: usize = 1000;

enum Input {
    Event(Event),
    Propose(u64, Vec<u8>, Answer),
    Change(MemberChange, ConfChangeV2, Answer),
    Read(oneshot::Sender<()>),
    /// How far a member has come: its index, whether it was heard of lately, and the leader's.
    Matched(u64, oneshot::Sender<Option<(u64, bool, u64)>>),
    Checkpointed(Option<u64>),
    Checkpoint,
    Stop,
}

/// Takes messages to other members. It may lose them.
pub trait Transport: Send + 'static {
    fn send(&self, messages: Vec<Message>);
    fn members_changed(&self, machine: &Machine);
}

/// When a new checkpoint is due.
#[derive(Debug, Clone, Copy)]
pub struct CheckpointRule {
    pub entries: u64,
    pub bytes: u64,
}

/// The log of this process, as everybody uses it.
pub struct Node {
    pub member: u64,
    pub machine: Shared,
    pub hub: Arc<Hub>,
    pub metrics: Arc<Metrics>,
    inbox: Sender<Input>,
    ids: AtomicU64,
    standing: RwLock<Standing>,
    leader: tokio::sync::watch::Sender<u64>,
    started: Instant,
    timeout: Duration,
}

impl Node {
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub fn standing(&self) -> Standing {
        *self.standing.read()
    }

    pub fn is_leader(&self) -> bool {
        self.standing().leader == self.member
    }

    /// Changes when there is another leader, or none.
    pub fn leader(&self) -> tokio::sync::watch::Receiver<u64> {
        self.leader.subscribe()
    }

    pub fn event(&self, event: Event) {
        let _ = self.inbox.send(Input::Event(event));
    }

    pub fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    pub async fn propose_as(
        &self,
        op: Op,
        user: String,
        auth_revision: u64,
    ) -> Result<Reply, Error> {
        let id = self.next_id();
        let command = Command {
            id,
            user,
            auth_revision,
            op: Some(op),
        };
        let (answer, reply) = oneshot::channel();
        self.metrics
            .proposals_pending
            .fetch_add(1, Ordering::Relaxed);
        let sent = self
            .inbox
            .send(Input::Propose(id, command.encode_to_vec(), answer));
        let result = match sent {
            // The driver ends the waiting.
            Ok(()) => reply.await.unwrap_or(Err(error::STOPPED)),
            Err(_) => Err(error::STOPPED),
        };
        self.metrics
            .proposals_pending
            .fetch_sub(1, Ordering::Relaxed);
        if result.as_ref().is_err_and(|e| *e == error::TIMEOUT) {
            self.metrics
                .proposals_failed
                .fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    pub async fn change(
        &self,
        mut context: MemberChange,
        change: ConfChangeV2,
    ) -> Result<(), Error> {
        context.request = self.next_id();
        let (answer, reply) = oneshot::channel();
        self.inbox
            .send(Input::Change(context, change, answer))
            .map_err(|_| error::STOPPED)?;
        reply.await.unwrap_or(Err(error::STOPPED)).map(|_| ())
    }

    /// Returns once a read sees whatever was acknowledged before.
    pub async fn read(&self) -> Result<(), Error> {
        if self.standing().alone {
            return Ok(());
        }
        let (answer, ready) = oneshot::channel();
        self.inbox
            .send(Input::Read(answer))
            .map_err(|_| error::STOPPED)?;
        match tokio::time::timeout(self.timeout, ready).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(error::STOPPED),
            Err(_) => {
                self.metrics
                    .read_index_failed
                    .fetch_add(1, Ordering::Relaxed);
                Err(error::TIMEOUT)
            }
        }
    }

    pub async fn matched(&self, id: u64) -> Option<(u64, bool, u64)> {
        let (answer, reply) = oneshot::channel();
        self.inbox.send(Input::Matched(id, answer)).ok()?;
        reply.await.ok().flatten()
    }

    /// Writes a checkpoint now, whether it is due or not.
    pub fn checkpoint(&self) {
        let _ = self.inbox.send(Input::Checkpoint);
    }

    pub fn stop(&self) {
        let _ = self.inbox.send(Input::Stop);
    }
}

impl Proposer for Node {
    fn propose(&self, op: Op) -> Boxed<'_, Result<Reply, Error>> {
        Box::pin(self.propose_as(op, String::new(), 0))
    }

    fn read_barrier(&self) -> Boxed<'_, Result<(), Error>> {
        Box::pin(self.read())
    }
}

pub struct Parts<T> {
    pub core: Core,
    pub machine: Shared,
    pub wal: Wal,
    pub disk: Arc<Disk>,
    pub transport: T,
    pub hub: Arc<Hub>,
    pub metrics: Arc<Metrics>,
    pub member: u64,
    pub tick: Duration,
    pub timeout: Duration,
    pub rule: CheckpointRule,
    /// The only voter need not wait for an election.
    pub campaign: bool,
}

/// What the driver was waiting for when it ended.
pub type Ended = std::thread::JoinHandle<()>;

enum Job {
    Write(Vec<Write>),
    Release(u64),
}

struct Driver<T> {
    core: Core,
    node: Arc<Node>,
    inbox: Receiver<Input>,
    jobs: Sender<Job>,
    transport: T,
    disk: Arc<Disk>,
    waiting: HashMap<u64, Waiting>,
    readers: HashMap<u64, oneshot::Sender<()>>,
    next_reader: u64,
    tick: Duration,
    rule: CheckpointRule,
    /// Since the last checkpoint.
    entries: u64,
    bytes: u64,
    checkpointing: bool,
}

/// Starts the threads. The first handle ends when the node does.
pub fn start<T: Transport>(parts: Parts<T>) -> (Arc<Node>, Ended) {
    let (inbox, receiver) = channel();
    let since = jiff::Timestamp::now().as_millisecond().cast_unsigned();
    let prefix = (parts.member & 0xffff) << 48;
    let node = Arc::new(Node {
        member: parts.member,
        machine: parts.machine,
        hub: parts.hub,
        metrics: parts.metrics,
        inbox,
        ids: AtomicU64::new(prefix | ((since << 8) & 0xffff_ffff_ffff)),
        standing: RwLock::default(),
        leader: tokio::sync::watch::Sender::new(0),
        started: Instant::now(),
        timeout: parts.timeout,
    });
    let (jobs, work) = channel();
    let writer = node.clone();
    let wal = parts.wal;
    std::thread::spawn(move || write_log(wal, &work, &writer));
    let mut driver = Driver {
        core: parts.core,
        node: node.clone(),
        inbox: receiver,
        jobs,
        transport: parts.transport,
        disk: parts.disk,
        waiting: HashMap::new(),
        readers: HashMap::new(),
        next_reader: 0,
        tick: parts.tick,
        rule: parts.rule,
        entries: 0,
        bytes: 0,
        checkpointing: false,
    };
    if parts.campaign {
        driver.core.take(Event::Campaign, Duration::ZERO);
    }
    let ended = std::thread::spawn(move || driver.run());
    (node, ended)
}

impl<T: Transport> Driver<T> {
    fn run(&mut self) {
        let mut next_tick = Instant::now() + self.tick;
        let mut more = false;
        self.turn();
        loop {
            let wait = if more {
                Duration::ZERO
            } else {
                next_tick.saturating_duration_since(Instant::now())
            };
            match self.inbox.recv_timeout(wait) {
                Ok(input) => {
                    let mut next = Some(input);
                    for _ in 0..TURN {
                        let Some(input) = next else { break };
                        if self.take(input) {
                            return;
                        }
                        next = self.inbox.try_recv().ok();
                    }
                    if let Some(input) = next
                        && self.take(input)
                    {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            if now >= next_tick {
                // After a pause (a stopped process, a suspended machine) one tick counts, not the whole time.
                next_tick = (next_tick + self.tick).max(now);
                self.core.take(Event::Tick, self.node.now());
                self.end_waiting();
                self.readers.retain(|_, ready| !ready.is_closed());
            }
            self.turn();
            more = self.reclaim();
            self.checkpoint_if_due();
        }
    }

    /// Says whether this was the last.
    fn take(&mut self, input: Input) -> bool {
        let now = self.node.now();
        match input {
            Input::Event(event) => self.core.take(event, now),
            Input::Propose(id, command, answer) => {
                if self.core.pending() >= QUEUE {
                    let _ = answer.send(Err(error::TOO_MANY_REQUESTS));
                } else {
                    self.wait(id, answer, now);
                    self.core.take(Event::Propose(command), now);
                }
            }
            Input::Change(context, change, answer) => {
                self.wait(context.request, answer, now);
                self.core.take(Event::Change(context, change), now);
            }
            Input::Read(ready) => {
                self.next_reader += 1;
                self.readers.insert(self.next_reader, ready);
                self.core.take(Event::Read(self.next_reader), now);
            }
            Input::Matched(id, answer) => {
                let commit = self.core.standing().commit;
                let matched = self
                    .core
                    .matched(id)
                    .map(|(index, recent)| (index, recent, commit));
                let _ = answer.send(matched);
            }
            Input::Checkpointed(index) => {
                self.checkpointing = false;
                if let Some(index) = index {
                    let _ = self.jobs.send(Job::Release(index));
                }
            }
            Input::Checkpoint => self.write_checkpoint(),
            Input::Stop => return true,
        }
        false
    }

    fn wait(&mut self, id: u64, answer: Answer, now: Duration) {
        let until = now + self.node.timeout;
        self.waiting.insert(id, Waiting { answer, until });
    }

    /// For those who waited long enough, or do not wait any more.
    fn end_waiting(&mut self) {
        let now = self.node.now();
        let ended = self
            .waiting
            .extract_if(|_, waiting| waiting.until <= now || waiting.answer.is_closed());
        for (_, waiting) in ended {
            let _ = waiting.answer.send(Err(error::TIMEOUT));
        }
    }

    fn turn(&mut self) {
        let actions = self.core.act(self.node.now());
        self.run_actions(actions);
        let standing = self.core.standing();
        let mut known = self.node.standing.write();
        if *known != standing {
            *known = standing;
            drop(known);
            let changed =
                |leader: &mut u64| std::mem::replace(leader, standing.leader) != standing.leader;
            if self.node.leader.send_if_modified(changed) {
                self.node
                    .metrics
                    .leader_changes
                    .fetch_add(1, Ordering::Relaxed);
                tracing::info!(
                    leader = format!("{:x}", standing.leader),
                    term = standing.term,
                    "leader changed"
                );
            }
        }
    }

    fn run_actions(&mut self, actions: Actions) {
        if !actions.write.is_empty() {
            for write in &actions.write {
                self.entries += write.batch.entries.len() as u64;
                let bytes: usize = write.batch.entries.iter().map(|e| e.data.len() + 64).sum();
                self.bytes += bytes as u64;
            }
            let _ = self.jobs.send(Job::Write(actions.write));
        }
        if actions.members_changed {
            self.transport.members_changed(&self.node.machine.read());
        }
        if !actions.send.is_empty() {
            self.transport.send(actions.send);
        }
        if actions.installed {
            self.node.hub.reset(actions.revision);
        }
        if !actions.changes.is_empty() {
            self.node.hub.publish(actions.changes, actions.revision);
        }
        for (id, reply) in actions.replies {
            if let Some(waiting) = self.waiting.remove(&id) {
                let _ = waiting.answer.send(reply);
            }
        }
        for token in actions.reads {
            if let Some(ready) = self.readers.remove(&token) {
                let _ = ready.send(());
            }
        }
        if actions.removed {
            tracing::error!("this member was removed from the cluster and ends");
            self.node.stop();
        }
    }

    fn reclaim(&self) -> bool {
        let machine = self.node.machine.upgradable_read();
        if !machine.wants_reclaim() {
            return false;
        }
        parking_lot::RwLockUpgradableReadGuard::upgrade(machine).reclaim(RECLAIM)
    }

    fn checkpoint_if_due(&mut self) {
        let state = self.node.machine.read().kv.bytes();
        // Big states are written less often; small ones often enough that a restart reads little.
        let due = self.bytes >= self.rule.bytes.max(state / 2)
            || (self.entries >= self.rule.entries && state < self.rule.bytes / 2);
        if due && !self.checkpointing {
            self.write_checkpoint();
        }
    }

    fn write_checkpoint(&mut self) {
        if self.checkpointing {
            return;
        }
        self.checkpointing = true;
        (self.entries, self.bytes) = (0, 0);
        let (disk, node) = (self.disk.clone(), self.node.clone());
        std::thread::spawn(move || {
            let index = match disk.checkpoint(&node.machine) {
                Ok((index, size)) => {
                    tracing::info!(index, size, "checkpoint written");
                    Some(index)
                }
                Err(disk::Error::Replaced(why)) => {
                    tracing::info!("no checkpoint is written, the leader's is there: {why}");
                    None
                }
                Err(error) => {
                    tracing::error!("cannot write a checkpoint, the log is kept instead: {error}");
                    None
                }
            };
            let _ = node.inbox.send(Input::Checkpointed(index));
        });
    }
}

/// Writes what comes, syncs once for all that has come meanwhile, and says so.
fn write_log(mut wal: Wal, jobs: &Receiver<Job>, node: &Node) {
    let mut preparing: Option<std::thread::JoinHandle<()>> = None;
    while let Ok(first) = jobs.recv() {
        let mut next = Some(first);
        let mut written = None;
        while let Some(job) = next {
            let done = match job {
                Job::Write(writes) => writes.iter().try_for_each(|write| {
                    written = Some(write.number);
                    wal.append(&write.batch)
                }),
                Job::Release(index) => wal.release(index),
            };
            if let Err(error) = done {
                die(&error);
            }
            next = jobs.try_recv().ok();
        }
        let Some(number) = written else { continue };
        let before = Instant::now();
        if let Err(error) = wal.sync() {
            die(&error);
        }
        node.metrics.wal_fsync.observe(before.elapsed());
        node.event(Event::Persisted(number));
        if preparing
            .as_ref()
            .is_none_or(std::thread::JoinHandle::is_finished)
            && wal.wants_spare()
        {
            let dir = wal.dir().to_path_buf();
            preparing = Some(std::thread::spawn(move || {
                if let Err(error) = Wal::prepare(&dir) {
                    tracing::warn!("cannot prepare the next segment of the log: {error}");
                }
            }));
        }
    }
}

/// After a failed write nobody knows what is on the disk; going on could acknowledge what is lost.
fn die(error: &dyn std::error::Error) -> ! {
    tracing::error!("cannot write the log, so this member stops: {error}");
    std::process::exit(1)
}
