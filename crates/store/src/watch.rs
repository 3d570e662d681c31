//! Who watches what. One thread tells watchers of changes, in the order of revisions; an event is encoded once,
//! however many watch it. A watcher that starts in the past, or that does not read, is caught up from the store.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost::encoding::encode_varint;
use tokio::sync::mpsc::UnboundedSender;

use crate::machine::Shared;
use crate::mvcc::{Change, contains};
use crate::wire::Encoded;

/// Events that may wait in a stream before its watchers count as slow.
const BACKLOG: usize = 10_000;
/// Events of one response when catching up; a revision is never torn.
const CHUNK: usize = 1000;
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

impl Outbox {
    fn send(&self, notice: Notice) -> bool {
        if let Notice::Events { events, .. } = &notice {
            self.backlog.fetch_add(events.len(), Ordering::Relaxed);
        }
        self.notices.send(notice).is_ok()
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
    told: Instant,
    batch: Vec<Encoded>,
}

impl Watcher {
    fn wants(&self, change: &Change) -> bool {
        let unwanted = if change.version.dead {
            self.request.no_delete
        } else {
            self.request.no_put
        };
        change.version.main >= self.next && !unwanted
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
        if self.queued.load(Ordering::Acquire) == 0 {
            let mut inner = self.inner.lock();
            if inner.watchers.is_empty() && self.queued.load(Ordering::Acquire) == 0 {
                inner.processed = revision;
                return;
            }
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
                if !watcher.wants(change) {
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

    /// Brings lagging watchers up to what has been told to the others.
    fn catch_up(&mut self, machine: &Shared) {
        let lagging = std::mem::take(&mut self.unsynced);
        for id in lagging {
            let processed = self.processed;
            let Some(watcher) = self.watchers.get_mut(&id) else {
                continue;
            };
            if watcher.out.backlog.load(Ordering::Relaxed) > BACKLOG / 2 {
                self.unsynced.push(id);
                continue;
            }
            let request = &watcher.request;
            let machine = machine.read();
            let compact = machine.kv.compact_revision();
            if watcher.next < compact {
                let revision = machine.kv.revision();
                drop(machine);
                watcher.out.send(Notice::Compacted {
                    watch: watcher.watch,
                    revision,
                    compact,
                });
                self.watchers.remove(&id);
                continue;
            }
            let changes =
                machine
                    .kv
                    .changes(&request.key, &request.range_end, watcher.next, processed);
            drop(machine);
            let mut events = Vec::new();
            let mut at = 0;
            let mut alive = true;
            for change in &changes {
                if events.len() >= CHUNK && change.version.main != at {
                    alive &= watcher.send(at, std::mem::take(&mut events));
                }
                if watcher.wants(change) {
                    events.push(event(change, watcher.request.prev_kv));
                }
                at = change.version.main;
            }
            if !events.is_empty() {
                alive &= watcher.send(processed, events);
            }
            watcher.next = watcher.next.max(processed + 1);
            watcher.synced = true;
            if !alive {
                self.watchers.remove(&id);
                continue;
            }
            if let Some(watcher) = self.watchers.remove(&id) {
                self.index(id, &watcher);
                self.watchers.insert(id, watcher);
            }
        }
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
    loop {
        let task = tasks.recv_timeout(RESYNC);
        let Some(hub) = hub.upgrade() else { return };
        let mut inner = hub.inner.lock();
        let done = usize::from(task.is_ok());
        let mut catch_up = true;
        match task {
            Ok(Task::Publish(changes, revision)) => {
                let told = inner.publish(&changes, revision);
                hub.events.fetch_add(told, Ordering::Relaxed);
                catch_up = false;
            }
            Ok(Task::Reset(revision)) => {
                inner.processed = revision;
                let ids: Vec<u64> = inner.watchers.keys().copied().collect();
                inner.keys.clear();
                inner.ranges.clear();
                inner.unsynced = ids;
            }
            Ok(Task::Kick) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Task::Progress(stream, out)) => waiting.push((stream, out)),
            Err(RecvTimeoutError::Disconnected) => return,
        }
        hub.queued.fetch_sub(done, Ordering::AcqRel);
        if catch_up && !inner.unsynced.is_empty() {
            inner.catch_up(&hub.machine);
        }
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
