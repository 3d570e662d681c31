//! Who waits for which key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::mpsc;

use super::event::Event;
use super::path;

/// How many events a watcher may be behind before it is dropped: one slow reader must not hold up the store.
const QUEUE: usize = 100;

#[derive(Debug)]
struct Watcher {
    id: u64,
    recursive: bool,
    stream: bool,
    since: u64,
    sender: mpsc::Sender<Arc<Event>>,
}

#[derive(Debug, Default)]
struct Watchers {
    next: u64,
    count: u64,
    by_key: HashMap<String, Vec<Watcher>>,
}

/// All watchers. A clone is the same hub.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hub(Arc<Mutex<Watchers>>);

/// A registered watcher. Dropping it unregisters.
#[derive(Debug)]
pub struct Watch {
    /// The store's index when the watch began, for the header.
    pub start_index: u64,
    receiver: mpsc::Receiver<Arc<Event>>,
    hub: Weak<Mutex<Watchers>>,
    key: String,
    id: u64,
}

impl Watch {
    /// The next event; none when the watcher was too slow or the store was replaced by a snapshot.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        self.receiver.recv().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            locked(&hub).remove(&self.key, |watcher| watcher.id == self.id);
        }
    }
}

fn locked(hub: &Mutex<Watchers>) -> MutexGuard<'_, Watchers> {
    // A list of senders is whole after any panic.
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watchers {
    fn remove(&mut self, key: &str, which: impl Fn(&Watcher) -> bool) {
        if let Some(list) = self.by_key.get_mut(key) {
            let before = list.len();
            list.retain(|watcher| !which(watcher));
            self.count -= (before - list.len()) as u64;
            if list.is_empty() {
                self.by_key.remove(key);
            }
        }
    }
}

impl Hub {
    pub(crate) fn count(&self) -> u64 {
        locked(&self.0).count
    }

    /// A watch of a clean path, which begins with what has happened already. That is enough for one that is no stream.
    pub(crate) fn watch(
        &self,
        key: String,
        (recursive, stream): (bool, bool),
        since: u64,
        start_index: u64,
        past: Vec<Arc<Event>>,
    ) -> Watch {
        let (sender, receiver) = mpsc::channel(QUEUE + past.len());
        let done = !stream && !past.is_empty();
        for event in past {
            // There is room for all of them.
            let _ = sender.try_send(event);
        }
        let mut watchers = locked(&self.0);
        watchers.next += 1;
        let id = watchers.next;
        if !done {
            watchers.count += 1;
            watchers
                .by_key
                .entry(key.clone())
                .or_default()
                .push(Watcher {
                    id,
                    recursive,
                    stream,
                    // The future may be asked for, the past has been told.
                    since: since.max(start_index + 1),
                    sender,
                });
        }
        Watch {
            start_index,
            receiver,
            hub: Arc::downgrade(&self.0),
            key,
            id,
        }
    }

    /// Tells those who watch the key or, recursively, one of its parents.
    pub(crate) fn notify(&self, event: &Arc<Event>) {
        let mut at = String::from("/");
        self.notify_at(event, "/", false);
        for part in path::parts(event.key()) {
            at = path::join(&at, part);
            self.notify_at(event, &at, false);
        }
    }

    /// Tells those who watch `at`. `deleted`: the node there went away together with the one that the event names.
    pub(crate) fn notify_at(&self, event: &Arc<Event>, at: &str, deleted: bool) {
        let mut watchers = locked(&self.0);
        if !watchers.by_key.contains_key(at) {
            return;
        }
        let original = event.key() == at;
        if !original && path::is_hidden(at, event.key()) {
            return;
        }
        watchers.remove(at, |watcher| {
            if !(watcher.recursive || original || deleted) || event.index() < watcher.since {
                return false;
            }
            watcher.sender.try_send(event.clone()).is_err() || !watcher.stream
        });
    }

    /// Ends every watch: what happens next does not follow from what they have seen.
    pub(crate) fn clear(&self) {
        let mut watchers = locked(&self.0);
        watchers.by_key.clear();
        watchers.count = 0;
    }
}
