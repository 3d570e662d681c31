//! The state machine: a request in, a new tree and an event out.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::{Deserialize, Serialize};

use super::error::{Code, Error};
use super::event::{Action, Event, NodeView};
use super::history::History;
use super::hub::{Hub, Watch};
use super::request::Request;
use super::stats::{Stats, count};
use super::tree::{Content, Lost, MAX_DEPTH, Node};
use super::{AUTH, KEYS, path};

/// An expiry before this is a client's mistake in writing dates, and means "never".
const YEAR_2000: i64 = 946_684_800_000_000_000;
const SERVER: &str = "/0";

/// What a request led to.
pub type Outcome = Result<Option<Arc<Event>>, Error>;

/// The keys, their index, and what happened lately.
#[derive(Debug)]
pub struct Store {
    root: Node,
    index: u64,
    history: History,
    /// Which nodes expire, soonest first.
    expiring: BTreeSet<(i64, String)>,
    stats: Stats,
    hub: Hub,
}

impl Default for Store {
    fn default() -> Self {
        let mut root = Node::dir(0);
        for space in [SERVER, KEYS, AUTH] {
            // A fresh root holds no file that could be in the way.
            let _ = root.make_dirs(space, 0);
        }
        // Users and roles get their directories when the first is made.
        if let Content::Dir(children) = &mut root.content {
            children.remove(AUTH.trim_start_matches('/'));
        }
        Store {
            root,
            index: 0,
            history: History::default(),
            expiring: BTreeSet::new(),
            stats: Stats::default(),
            hub: Hub::default(),
        }
    }
}

impl Store {
    /// The index of the last change.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// When the next key expires, in nanoseconds since 1970: then the leader proposes [`Request::sync`].
    pub fn next_expiry(&self) -> Option<i64> {
        self.expiring.first().map(|(at, _)| *at)
    }

    /// The counters as JSON.
    pub fn stats(&self) -> String {
        self.stats.line(self.hub.count())
    }

    /// Applies a request from the log.
    pub fn apply(&mut self, request: &Request) -> Outcome {
        match request.method.as_str() {
            "PUT" => match request.prev_exist {
                Some(false) => self.create(request),
                Some(true) if !request.compares() => self.update(request),
                _ if request.compares() => self.compare_and_swap(request),
                _ => self.set(request),
            },
            "POST" => self.create_in_order(request),
            "DELETE" if request.compares() => self.compare_and_delete(request),
            "DELETE" => self.delete(request),
            "QGET" => self
                .get(&request.path, request.recursive, request.time)
                .map(|event| Some(Arc::new(event))),
            "SYNC" => {
                self.expire(request.time);
                Ok(None)
            }
            method => Err(Error::new(
                Code::RaftInternal,
                format!("etcdserver: unknown method {method}"),
                self.index,
            )),
        }
    }

    /// Looks at a key. Children come sorted, whether asked for or not.
    pub fn get(&self, path: &str, recursive: bool, now: i64) -> Result<Event, Error> {
        let path = path::clean(path);
        let outcome = self.find(&path).map(|node| {
            let levels = if recursive { usize::MAX } else { 1 };
            Event {
                action: Action::Get,
                node: Some(node.view(&path, levels, now)),
                prev_node: None,
                refresh: false,
                etcd_index: self.index,
            }
        });
        count(outcome, &self.stats.get_success, &self.stats.get_fail)
    }

    /// Waits for changes of a key since an index; 0: from now on.
    pub fn watch(
        &self,
        path: &str,
        recursive: bool,
        stream: bool,
        since: u64,
    ) -> Result<Watch, Error> {
        let path = path::clean(path);
        let since = if since == 0 { self.index + 1 } else { since };
        let wanted = if stream { usize::MAX } else { 1 };
        let past = self.history.scan(&path, recursive, since, self.index)?;
        let past = past.take(wanted).cloned().collect();
        Ok(self
            .hub
            .watch(path, (recursive, stream), since, self.index, past))
    }

    fn create(&mut self, request: &Request) -> Outcome {
        let outcome = self.place(request, path::clean(&request.path), Action::Create);
        self.counted(outcome, |stats| (&stats.create_success, &stats.create_fail))
    }

    fn create_in_order(&mut self, request: &Request) -> Outcome {
        let path = path::clean(&format!("{}/{:020}", request.path, self.index + 1));
        let outcome = self.place(request, path, Action::Create);
        self.counted(outcome, |stats| (&stats.create_success, &stats.create_fail))
    }

    fn set(&mut self, request: &Request) -> Outcome {
        let path = path::clean(&request.path);
        let outcome = match self.find(&path) {
            Err(error) if error.code != Code::KeyNotFound || request.refreshes() => Err(error),
            _ => self.place(request, path, Action::Set),
        };
        self.counted(outcome, |stats| (&stats.set_success, &stats.set_fail))
    }

    fn counted(
        &self,
        outcome: Outcome,
        which: impl Fn(&Stats) -> (&std::sync::atomic::AtomicU64, &std::sync::atomic::AtomicU64),
    ) -> Outcome {
        let (success, fail) = which(&self.stats);
        count(outcome, success, fail)
    }

    /// Puts a new node at a path: `create` wants nothing there, `set` replaces a file.
    fn place(&mut self, request: &Request, path: String, action: Action) -> Outcome {
        let (index, next) = (self.index, self.index + 1);
        self.writable(&path)?;
        if path::parts(&path).count() > MAX_DEPTH {
            let cause = format!("the key has more than {MAX_DEPTH} components");
            return Err(Error::new(Code::InvalidField, cause, index));
        }
        let expires = request.expires().filter(|at| *at >= YEAR_2000);
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let siblings = self
            .root
            .make_dirs(parent, next)
            .map_err(|lost| at_index(lost, index))?;

        let old = siblings.get(name);
        let previous = match old {
            None => None,
            Some(_) if action == Action::Create => {
                return Err(Error::new(Code::NodeExist, path, index));
            }
            Some(node) if node.is_dir() => return Err(Error::new(Code::NotFile, path, index)),
            Some(node) => {
                if let Some(at) = node.expires {
                    self.expiring.remove(&(at, path.clone()));
                }
                Some(node.view(&path, 0, request.time))
            }
        };
        let content = match (request.dir, old) {
            (true, _) => Content::Dir(Default::default()),
            (false, Some(node)) if request.refreshes() => Content::File(node.value().to_owned()),
            (false, _) => Content::File(request.val.clone()),
        };
        let node = Node::new(content, next, expires);
        let view = node.view(&path, 0, request.time);
        siblings.insert(name.to_owned(), node);
        if let Some(at) = expires {
            self.expiring.insert((at, path));
        }
        self.index = next;
        Ok(Some(self.record(Event {
            action,
            node: Some(view),
            prev_node: previous,
            refresh: action == Action::Set && request.refreshes(),
            etcd_index: next,
        })))
    }

    fn update(&mut self, request: &Request) -> Outcome {
        let outcome = self.change(request, Action::Update);
        self.counted(outcome, |stats| (&stats.update_success, &stats.update_fail))
    }

    fn compare_and_swap(&mut self, request: &Request) -> Outcome {
        let outcome = self.change(request, Action::CompareAndSwap);
        self.counted(outcome, |stats| (&stats.cas_success, &stats.cas_fail))
    }

    /// Changes a node that is there: `update` also takes a directory, to give it a time to live.
    fn change(&mut self, request: &Request, action: Action) -> Outcome {
        let path = path::clean(&request.path);
        self.writable(&path)?;
        let next = self.index + 1;
        let node = self.find(&path)?;
        let swap = action == Action::CompareAndSwap;
        if node.is_dir() && (swap || !request.val.is_empty()) {
            return Err(Error::new(Code::NotFile, path, self.index));
        }
        if swap {
            self.compare(node, request)?;
        }
        let previous = node.view(&path, 0, request.time);
        let old_expiry = node.expires;
        // Found just now; the borrow ends in between because the checks need the rest of the store.
        let Some(node) = self.root.find_mut(&path) else {
            return Err(Error::new(Code::KeyNotFound, path, self.index));
        };
        if let Content::File(value) = &mut node.content {
            if !request.refreshes() {
                request.val.clone_into(value);
            }
            // A directory keeps the index of its making.
            node.modified = next;
        }
        node.expires = request.expires();
        let mut view = node.view(&path, 0, request.time);
        view.modified_index = next;
        if let Some(at) = old_expiry {
            self.expiring.remove(&(at, path.clone()));
        }
        if let Some(at) = request.expires() {
            self.expiring.insert((at, path));
        }
        self.index = next;
        Ok(Some(self.record(Event {
            action,
            node: Some(view),
            prev_node: Some(previous),
            refresh: request.refreshes(),
            etcd_index: next,
        })))
    }

    fn delete(&mut self, request: &Request) -> Outcome {
        let path = path::clean(&request.path);
        let outcome = self.writable(&path).and_then(|()| {
            let node = self.find(&path)?;
            if let Some(children) = node.children() {
                if !request.dir && !request.recursive {
                    return Err(Error::new(Code::NotFile, path.clone(), self.index));
                }
                if !children.is_empty() && !request.recursive {
                    return Err(Error::new(Code::DirNotEmpty, path.clone(), self.index));
                }
            }
            Ok(Some(self.remove(&path, Action::Delete, request.time)))
        });
        self.counted(outcome, |stats| (&stats.delete_success, &stats.delete_fail))
    }

    fn compare_and_delete(&mut self, request: &Request) -> Outcome {
        let path = path::clean(&request.path);
        let outcome = self.find(&path).and_then(|node| {
            if node.is_dir() {
                return Err(Error::new(Code::NotFile, path.clone(), self.index));
            }
            self.compare(node, request)
        });
        let outcome =
            outcome.map(|()| Some(self.remove(&path, Action::CompareAndDelete, request.time)));
        self.counted(outcome, |stats| (&stats.cad_success, &stats.cad_fail))
    }

    fn expire(&mut self, until: i64) {
        while let Some((at, path)) = self.expiring.first().cloned() {
            if at > until {
                break;
            }
            self.remove(&path, Action::Expire, until);
            self.expiring.remove(&(at, path));
            self.stats.expire_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes a node out that is there, with all that is below it, and tells who watched any of it.
    fn remove(&mut self, path: &str, action: Action, now: i64) -> Arc<Event> {
        self.index += 1;
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let removed = self
            .root
            .find_mut(parent)
            .and_then(|parent| match &mut parent.content {
                Content::Dir(children) => children.remove(name),
                Content::File(_) => None,
            })
            .unwrap_or_else(|| Node::dir(0));
        let event = Arc::new(Event {
            action,
            node: Some(NodeView {
                key: path.to_owned(),
                dir: removed.is_dir() && action != Action::CompareAndDelete,
                modified_index: self.index,
                created_index: removed.created,
                ..NodeView::default()
            }),
            prev_node: Some(removed.view(path, 0, now)),
            refresh: false,
            etcd_index: self.index,
        });
        let (expiring, hub) = (&mut self.expiring, &self.hub);
        removed.visit(path, &mut |path, node| {
            if let Some(at) = node.expires {
                expiring.remove(&(at, path.to_owned()));
            }
            hub.notify_at(&event, path, true);
        });
        self.history.add(event.clone());
        self.hub.notify(&event);
        event
    }

    fn record(&mut self, event: Event) -> Arc<Event> {
        let event = Arc::new(event);
        self.history.add(event.clone());
        if !event.refresh {
            self.hub.notify(&event);
        }
        event
    }

    fn find(&self, path: &str) -> Result<&Node, Error> {
        self.root
            .find(path)
            .map_err(|lost| at_index(lost, self.index))
    }

    fn writable(&self, path: &str) -> Result<(), Error> {
        match path {
            "/" | SERVER | KEYS => Err(Error::new(Code::RootReadOnly, "/", self.index)),
            _ => Ok(()),
        }
    }

    fn compare(&self, node: &Node, request: &Request) -> Result<(), Error> {
        let index = request.prev_index;
        let value = request.prev_value.as_str();
        let index_differs = index != 0 && index != node.modified;
        let value_differs = !value.is_empty() && value != node.value();
        let by_index = format!("[{index} != {}]", node.modified);
        let by_value = format!("[{value} != {}]", node.value());
        let cause = match (value_differs, index_differs) {
            (false, false) => return Ok(()),
            (false, true) => by_index,
            (true, false) => by_value,
            (true, true) => format!("{by_value} {by_index}"),
        };
        Err(Error::new(Code::TestFailed, cause, self.index))
    }

    /// The whole state. The tree is written as a list: nesting has no limit there, and readers of JSON have one.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut nodes = Vec::new();
        self.root.visit("/", &mut |path, node| {
            nodes.push(SavedNode {
                path: path.to_owned(),
                created: node.created,
                modified: node.modified,
                expires: node.expires,
                value: match &node.content {
                    Content::File(value) => Some(value.clone()),
                    Content::Dir(_) => None,
                },
            });
        });
        let saved = Saved {
            index: self.index,
            nodes,
            history: self
                .history
                .events()
                .map(|event| (Event::clone(event), event.refresh))
                .collect(),
        };
        // String keys and plain numbers: there is nothing that JSON could refuse.
        serde_json::to_vec(&saved).unwrap_or_default()
    }

    /// Replaces the state by a snapshot. Watchers are sent away, to come back with their index.
    pub fn restore(&mut self, snapshot: &[u8]) -> Result<(), serde_json::Error> {
        let saved: Saved = serde_json::from_slice(snapshot)?;
        let mut root = Node::dir(0);
        let mut expiring = BTreeSet::new();
        // Parents come after their children: made on the way down first, completed when their line comes.
        for node in saved.nodes {
            if let Some(at) = node.expires {
                expiring.insert((at, node.path.clone()));
            }
            let content = node.value.map(Content::File);
            let is_file = content.is_some();
            let dir = match (&node.path, is_file) {
                (path, false) => path.as_str(),
                (path, true) => path.rsplit_once('/').map_or("", |(parent, _)| parent),
            };
            let lost = |_| serde::de::Error::custom(format!("{}: not a directory", node.path));
            let children = root.make_dirs(dir, 0).map_err(lost)?;
            if let Some(content) = content {
                let name = node.path.rsplit('/').next().unwrap_or_default();
                children.insert(name.to_owned(), Node::new(content, 0, None));
            }
            if let Some(placed) = root.find_mut(&node.path) {
                placed.created = node.created;
                placed.modified = node.modified;
                placed.expires = node.expires;
            }
        }
        let mut history = History::default();
        for (mut event, refresh) in saved.history {
            event.refresh = refresh;
            event.etcd_index = event.index();
            history.add(Arc::new(event));
        }
        self.hub.clear();
        self.root = root;
        self.expiring = expiring;
        self.index = saved.index;
        self.history = history;
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    index: u64,
    nodes: Vec<SavedNode>,
    history: Vec<(Event, bool)>,
}

#[derive(Serialize, Deserialize)]
struct SavedNode {
    #[serde(rename = "p")]
    path: String,
    #[serde(rename = "c")]
    created: u64,
    #[serde(rename = "m")]
    modified: u64,
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    expires: Option<i64>,
    #[serde(rename = "v", default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
}

fn at_index(lost: Lost, index: u64) -> Error {
    match lost {
        Lost::Missing(path) => Error::new(Code::KeyNotFound, path, index),
        Lost::NotDir(path) => Error::new(Code::NotDir, path, index),
    }
}

/// The store as the apply path and the HTTP handlers share it.
#[derive(Debug, Default)]
pub struct Shared(RwLock<Store>);

impl Shared {
    /// For reading and watching.
    pub fn read(&self) -> RwLockReadGuard<'_, Store> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the apply path alone.
    pub fn write(&self) -> RwLockWriteGuard<'_, Store> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
