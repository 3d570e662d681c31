//! Who watches what. One thread tells watchers of changes, in the order of revisions; an event is encoded once,
//! however many watch it. A watcher that starts in the past, or that does not read, is caught up from the store: in pieces,
//! as fast as it reads, and without the locks for which writes and other watchers wait.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost::encoding::encode_varint;
use tokio::sync::mpsc::UnboundedSender;

use crate::machine::Shared;
use crate::mvcc::{Change, Past, Search, contains};
use crate::wire::Encoded;

/// Events that may wait in a stream before its watchers count as slow. Long ones count as several.
const BACKLOG: usize = 10_000;
const LONG: usize = 16 << 10;
/// Events of one response when catching up; a revision is never torn.
const CHUNK: usize = 1000;
/// Changes that all who lag are known to have before them.
const PLACES: usize = 200_000;
/// Keys that are looked at under one lock.
const PAGE: usize = 1000;
const RESYNC: Duration = Duration::from_millis(100);

/// What a stream of watchers is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    Created {
        watch: i64,
        revision: i64,
    },
    Events {
        watch: i64,
        revision: i64,
        events: Vec<Encoded>,
        fragment: bool,
    },
    /// The past that the watcher asked for is gone.
    Compacted {
        watch: i64,
        revision: i64,
        compact: i64,
    },
    /// Nothing older than `revision` will come any more; for all watchers of the stream if `watch` is -1.
    Progress {
        watch: i64,
        revision: i64,
    },
    Canceled {
        watch: i64,
        revision: i64,
        reason: String,
    },
}

/// Where the notices of one stream go.
#[derive(Debug, Clone)]
pub struct Outbox {
    pub notices: UnboundedSender<Notice>,
    /// Events that were not sent on yet.
    pub backlog: Arc<AtomicUsize>,
}

/// How much of a backlog an event is.
fn weight(length: usize) -> usize {
    1 + length / LONG
}

fn total(events: &[Encoded]) -> usize {
    events.iter().map(|event| weight(event.len())).sum()
}

impl Outbox {
    fn send(&self, notice: Notice) -> bool {
        if let Notice::Events { events, .. } = &notice {
            self.backlog.fetch_add(total(events), Ordering::Relaxed);
        }
        self.notices.send(notice).is_ok()
    }

    /// These events were sent on. Says whether that made room for what a watcher may have missed.
    pub fn sent(&self, events: &[Encoded]) -> bool {
        let total = total(events);
        let before = self.backlog.fetch_sub(total, Ordering::Relaxed);
        before > BACKLOG / 4 && before - total <= BACKLOG / 4
    }

    /// Whether there is room for what a watcher has missed.
    fn has_room(&self) -> bool {
        self.backlog.load(Ordering::Relaxed) <= BACKLOG / 2
    }
}

#[derive(Debug, Clone, Default)]
pub struct Request {
    pub key: Vec<u8>,
    pub range_end: Vec<u8>,
    pub start: i64,
    pub prev_kv: bool,
    pub no_put: bool,
    pub no_delete: bool,
    pub progress_notify: bool,
    pub fragment: bool,
}

#[derive(Debug)]
struct Watcher {
    stream: u64,
    watch: i64,
    request: Request,
    out: Outbox,
    /// The first revision that it has not heard of.
    next: i64,
    synced: bool,
    /// What is known of what it has missed, and up to which revision that is all.
    past: VecDeque<Past>,
    through: i64,
    told: Instant,
    batch: Vec<Encoded>,
}

impl Watcher {
    fn wants(&self, main: i64, dead: bool) -> bool {
        let unwanted = if dead {
            self.request.no_delete
        } else {
            self.request.no_put
        };
        main >= self.next && !unwanted
    }

    /// The next piece of what it has missed.
    fn piece(&mut self) -> Piece {
        let mut changes = Vec::new();
        let (mut size, mut at) = (0, 0);
        while let Some(past) = self.past.front() {
            if size >= CHUNK && past.main() != at {
                break;
            }
            at = past.main();
            let wanted = self.wants(at, past.is_dead());
            let past = self.past.pop_front().filter(|_| wanted);
            size += past.as_ref().map_or(0, |past| weight(past.length()));
            changes.extend(past);
        }
        Piece {
            changes,
            revision: if self.past.is_empty() {
                self.through
            } else {
                at
            },
            with_previous: self.request.prev_kv,
        }
    }

    fn send(&mut self, revision: i64, events: Vec<Encoded>) -> bool {
        self.told = Instant::now();
        self.out.send(Notice::Events {
            watch: self.watch,
            revision,
            events,
            fragment: self.request.fragment,
        })
    }
}

/// What is sent at once to a watcher that lags, and the revision that it knows everything of then.
#[derive(Debug)]
struct Piece {
    changes: Vec<Past>,
    revision: i64,
    with_previous: bool,
}

/// The past that a watcher asked for is gone.
struct Compacted {
    revision: i64,
    compact: i64,
}

/// What is to be done next for a watcher that lags.
enum Step {
    Search(Search),
    Send(Piece),
}

#[derive(Debug, Default)]
struct Inner {
    /// Everything up to here has been told.
    processed: i64,
    watchers: HashMap<u64, Watcher>,
    /// Synced watchers of one key, and of ranges.
    keys: HashMap<Vec<u8>, Vec<u64>>,
    ranges: BTreeMap<u64, (Vec<u8>, Vec<u8>)>,
    unsynced: Vec<u64>,
    next_id: u64,
}

enum Task {
    Publish(Vec<Change>, i64),
    Reset(i64),
    Kick,
    Progress(u64, Outbox),
}

#[derive(Debug)]
pub struct Hub {
    inner: Mutex<Inner>,
    tasks: Sender<Task>,
    /// Tasks that the thread has not done yet.
    queued: AtomicUsize,
    streams: AtomicU64,
    pub open_streams: AtomicU64,
    pub events: AtomicU64,
    machine: Shared,
}

impl Hub {
    /// Starts the thread; it ends with the hub.
    pub fn start(machine: Shared, progress: Duration) -> Arc<Self> {
        let (tasks, receiver) = channel();
        let revision = machine.read().kv.revision();
        let hub = Arc::new(Self {
            inner: Mutex::new(Inner {
                processed: revision,
                ..Inner::default()
            }),
            tasks,
            queued: AtomicUsize::new(0),
            streams: AtomicU64::new(0),
            open_streams: AtomicU64::new(0),
            events: AtomicU64::new(0),
            machine,
        });
        let weak = Arc::downgrade(&hub);
        std::thread::spawn(move || run(&weak, &receiver, progress));
        hub
    }

    fn task(&self, task: Task) {
        self.queued.fetch_add(1, Ordering::AcqRel);
        let _ = self.tasks.send(task);
    }

    pub fn publish(&self, changes: Vec<Change>, revision: i64) {
        // Not while the thread is at it: it is not worth waiting for.
        if self.queued.load(Ordering::Acquire) == 0
            && let Some(mut inner) = self.inner.try_lock()
            && inner.watchers.is_empty()
            && self.queued.load(Ordering::Acquire) == 0
        {
            inner.processed = revision;
            return;
        }
        self.task(Task::Publish(changes, revision));
    }

    /// The state was replaced by a newer one; what lies between is read from the store.
    pub fn reset(&self, revision: i64) {
        self.task(Task::Reset(revision));
    }

    pub fn new_stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds a watcher; the notice of its creation is in its outbox before this returns.
    pub fn create(&self, stream: u64, watch: i64, request: Request, out: Outbox) -> u64 {
        let mut inner = self.inner.lock();
        let revision = self.machine.read().kv.revision();
        let next = if request.start > 0 {
            request.start
        } else {
            revision + 1
        };
        out.send(Notice::Created { watch, revision });
        inner.next_id += 1;
        let id = inner.next_id;
        let synced = next > inner.processed;
        let watcher = Watcher {
            stream,
            watch,
            request,
            out,
            next,
            synced,
            past: VecDeque::new(),
            through: 0,
            told: Instant::now(),
            batch: Vec::new(),
        };
        if synced {
            inner.index(id, &watcher);
        } else {
            inner.unsynced.push(id);
        }
        inner.watchers.insert(id, watcher);
        drop(inner);
        if !synced {
            self.task(Task::Kick);
        }
        id
    }

    pub fn cancel(&self, id: u64) {
        self.inner.lock().remove(id);
    }

    /// Tells a stream how far its watchers are, once they are all synced.
    pub fn progress(&self, stream: u64, out: Outbox) {
        self.task(Task::Progress(stream, out));
    }

    /// There is room in a stream again.
    pub fn resume(&self) {
        self.task(Task::Kick);
    }

    /// Brings lagging watchers further; says whether some of them can go on at once.
    fn catch_up(&self) -> bool {
        let lagging = self.inner.lock().unsynced.clone();
        let places = (PLACES / lagging.len().max(1)).max(CHUNK);
        let mut more = false;
        for id in lagging {
            more |= self.advance(id, places);
        }
        more
    }

    /// Up to what has been told to the others, or as far as the stream has room. Nobody else can change how far that is: it
    /// is this thread that tells.
    fn advance(&self, id: u64, places: usize) -> bool {
        let mut sent = 0;
        loop {
            if sent >= BACKLOG {
                // It reads as fast as it is told. Now for the others.
                return true;
            }
            let Some(step) = self.inner.lock().next_step(id, places) else {
                return false;
            };
            match step {
                Step::Search(search) => {
                    let found = self.search(search);
                    if !self.inner.lock().found(id, found) {
                        return false;
                    }
                }
                Step::Send(piece) => {
                    let with_previous = piece.with_previous;
                    let events: Vec<Encoded> = piece
                        .changes
                        .into_iter()
                        .map(|past| event(&past.read(), with_previous))
                        .collect();
                    sent += total(&events);
                    if !self.inner.lock().send(id, piece.revision, events) {
                        return false;
                    }
                }
            }
        }
    }

    fn search(&self, mut search: Search) -> Result<(Vec<Past>, i64), Compacted> {
        loop {
            let machine = self.machine.read();
            let compact = machine.kv.compact_revision();
            if search.from() < compact {
                let revision = machine.kv.revision();
                return Err(Compacted { revision, compact });
            }
            let more = search.step(&machine.kv, PAGE);
            drop(machine);
            if !more {
                return Ok(search.done());
            }
        }
    }

    /// Watchers, and those that lag behind.
    pub fn counts(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.watchers.len(), inner.unsynced.len())
    }
}

impl Inner {
    fn index(&mut self, id: u64, watcher: &Watcher) {
        let request = &watcher.request;
        if request.range_end.is_empty() {
            self.keys.entry(request.key.clone()).or_default().push(id);
        } else {
            self.ranges
                .insert(id, (request.key.clone(), request.range_end.clone()));
        }
    }

    fn unindex(&mut self, id: u64, key: &[u8]) {
        self.ranges.remove(&id);
        if let Some(ids) = self.keys.get_mut(key) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.keys.remove(key);
            }
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(watcher) = self.watchers.remove(&id) {
            self.unindex(id, &watcher.request.key);
            self.unsynced.retain(|other| *other != id);
        }
    }

    fn publish(&mut self, changes: &[Change], revision: i64) -> u64 {
        let mut touched = Vec::new();
        let mut told = 0;
        for change in changes {
            let (mut plain, mut full) = (None, None);
            let single = self.keys.get(&*change.key).into_iter().flatten();
            let ranged = self
                .ranges
                .iter()
                .filter(|(_, (from, end))| contains(from, end, &change.key))
                .map(|(id, _)| id);
            for id in single.chain(ranged) {
                let Some(watcher) = self.watchers.get_mut(id) else {
                    continue;
                };
                if !watcher.wants(change.version.main, change.version.dead) {
                    continue;
                }
                let slot = if watcher.request.prev_kv {
                    &mut full
                } else {
                    &mut plain
                };
                let event = slot.get_or_insert_with(|| event(change, watcher.request.prev_kv));
                if watcher.batch.is_empty() {
                    touched.push(*id);
                }
                watcher.batch.push(event.clone());
                told += 1;
            }
        }
        self.processed = revision;
        for id in touched {
            let Some(watcher) = self.watchers.get_mut(&id) else {
                continue;
            };
            let events = std::mem::take(&mut watcher.batch);
            if watcher.out.backlog.load(Ordering::Relaxed) > BACKLOG {
                // It does not read. What it misses is in the store; from the first of these on.
                let first = changes.first().map_or(revision, |c| c.version.main);
                watcher.next = watcher.next.max(first);
                watcher.synced = false;
                let key = watcher.request.key.clone();
                self.unindex(id, &key);
                self.unsynced.push(id);
            } else {
                watcher.next = revision + 1;
                if !watcher.send(revision, events) {
                    self.remove(id);
                }
            }
        }
        told
    }

    /// `None` if there is nothing more to do for it now.
    fn next_step(&mut self, id: u64, places: usize) -> Option<Step> {
        let processed = self.processed;
        let watcher = self.watchers.get_mut(&id)?;
        if !watcher.past.is_empty() {
            let room = watcher.out.has_room();
            return room.then(|| Step::Send(watcher.piece()));
        }
        if watcher.next <= processed {
            let request = &watcher.request;
            let revisions = (watcher.next, processed);
            let search = Search::new(&request.key, &request.range_end, revisions, places);
            return watcher.out.has_room().then_some(Step::Search(search));
        }
        watcher.synced = true;
        self.unsynced.retain(|other| *other != id);
        if let Some(watcher) = self.watchers.remove(&id) {
            self.index(id, &watcher);
            self.watchers.insert(id, watcher);
        }
        None
    }

    /// Says whether the watcher is still there.
    fn found(&mut self, id: u64, found: Result<(Vec<Past>, i64), Compacted>) -> bool {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return false;
        };
        match found {
            Ok((past, through)) => {
                if past.is_empty() {
                    watcher.next = through + 1;
                }
                (watcher.past, watcher.through) = (past.into(), through);
                true
            }
            Err(Compacted { revision, compact }) => {
                watcher.out.send(Notice::Compacted {
                    watch: watcher.watch,
                    revision,
                    compact,
                });
                self.remove(id);
                false
            }
        }
    }

    /// Says whether the watcher is still there.
    fn send(&mut self, id: u64, revision: i64, events: Vec<Encoded>) -> bool {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return false;
        };
        watcher.next = watcher.next.max(revision + 1);
        if !events.is_empty() && !watcher.send(revision, events) {
            self.remove(id);
            return false;
        }
        true
    }

    fn notify(&mut self, progress: Duration) {
        let revision = self.processed;
        for watcher in self.watchers.values_mut() {
            if watcher.request.progress_notify
                && watcher.synced
                && watcher.told.elapsed() >= progress
            {
                watcher.told = Instant::now();
                let watch = watcher.watch;
                watcher.out.send(Notice::Progress { watch, revision });
            }
        }
    }
}

/// The encoded `mvccpb.Event`.
fn event(change: &Change, with_previous: bool) -> Encoded {
    let mut out = Vec::with_capacity(change.version.pair.0.len() + 16);
    if change.version.dead {
        out.extend_from_slice(&[0x08, 1]);
    }
    let mut field = |tag: u8, pair: &Encoded| {
        out.push(tag);
        encode_varint(pair.0.len() as u64, &mut out);
        out.extend_from_slice(&pair.0);
    };
    field(0x12, &change.version.pair);
    if let Some(previous) = change.previous.as_ref().filter(|_| with_previous) {
        field(0x1a, &previous.load());
    }
    Encoded(out.into())
}

fn run(hub: &std::sync::Weak<Hub>, tasks: &Receiver<Task>, progress: Duration) {
    let mut waiting: Vec<(u64, Outbox)> = Vec::new();
    let mut last_notify = Instant::now();
    let mut last_resync = Instant::now();
    let mut more = false;
    loop {
        let task = tasks.recv_timeout(if more { Duration::ZERO } else { RESYNC });
        let Some(hub) = hub.upgrade() else { return };
        let mut inner = hub.inner.lock();
        let done = usize::from(task.is_ok());
        // Who lags does not keep those waiting who do not, nor the other way round.
        let mut catch_up = last_resync.elapsed() >= RESYNC;
        match task {
            Ok(Task::Publish(changes, revision)) => {
                let told = inner.publish(&changes, revision);
                hub.events.fetch_add(told, Ordering::Relaxed);
            }
            Ok(Task::Reset(revision)) => {
                inner.processed = revision;
                inner.keys.clear();
                inner.ranges.clear();
                inner.unsynced = inner.watchers.keys().copied().collect();
                for watcher in inner.watchers.values_mut() {
                    watcher.synced = false;
                }
                catch_up = true;
            }
            Ok(Task::Kick) | Err(RecvTimeoutError::Timeout) => catch_up = true,
            Ok(Task::Progress(stream, out)) => {
                waiting.push((stream, out));
                catch_up = true;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
        drop(inner);
        hub.queued.fetch_sub(done, Ordering::AcqRel);
        if catch_up {
            more = hub.catch_up();
            last_resync = Instant::now();
        }
        let mut inner = hub.inner.lock();
        waiting.retain(|(stream, out)| {
            let lags = inner
                .watchers
                .values()
                .any(|w| w.stream == *stream && !w.synced);
            if !lags {
                out.send(Notice::Progress {
                    watch: -1,
                    revision: inner.processed,
                });
            }
            lags
        });
        if last_notify.elapsed() >= progress.min(Duration::from_secs(1)) {
            last_notify = Instant::now();
            inner.notify(progress);
        }
    }
}
