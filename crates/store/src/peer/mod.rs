//! Members talking to each other: Raft's messages in order over one stream per member, snapshots beside it.

pub mod client;
pub mod service;
mod stats;

use std::collections::HashMap;
use std::io::BufReader;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use parking_lot::Mutex;
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use tokio::sync::mpsc;
use tonic::transport::Channel;

use crate::machine::Machine;
use crate::machine::checkpoint::{Replaced, Source, conf_state};
use crate::node::disk::Disk;
use crate::node::driver::Transport;
use crate::node::{Event, Node};
use crate::pb::orlop::store::peer_client::PeerClient;
use crate::pb::orlop::store::{RaftMessages, SnapshotChunk};
use crate::tls;

/// Batches of messages that wait for a slow member; what comes then is lost, which Raft can bear.
const QUEUE: usize = 4096;
const RETRY: Duration = Duration::from_millis(100);
/// The longest pause between attempts to reach a member.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Messages larger than any that Raft sends.
pub const MESSAGE: usize = 512 << 20;

struct Link {
    urls: Vec<String>,
    queue: mpsc::Sender<Vec<Message>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The other members, as this one reaches them.
pub struct Peers {
    member: u64,
    cluster: u64,
    tls: Option<Arc<tls::Connector>>,
    links: Mutex<HashMap<u64, Link>>,
    runtime: tokio::runtime::Handle,
    node: OnceLock<Arc<Node>>,
    learner: AtomicBool,
    followers: Mutex<stats::Followers>,
}

impl Peers {
    pub fn new(member: u64, cluster: u64, tls: Option<Arc<tls::Connector>>) -> Arc<Self> {
        Arc::new(Self {
            member,
            cluster,
            tls,
            links: Mutex::new(HashMap::new()),
            runtime: tokio::runtime::Handle::current(),
            node: OnceLock::new(),
            learner: AtomicBool::new(false),
            followers: Mutex::default(),
        })
    }

    /// The node exists once its transport does.
    pub fn attach(&self, node: Arc<Node>) {
        let _ = self.node.set(node);
    }

    pub fn is_learner(&self) -> bool {
        self.learner.load(Ordering::Relaxed)
    }

    /// A way to ask the leader, if there is another one.
    pub fn leader(&self, node: &Node) -> Option<PeerClient<Channel>> {
        let leader = node.standing().leader;
        let url = self.links.lock().get(&leader)?.urls.first()?.clone();
        let channel = client::lazy(&url, self.tls.clone()).ok()?;
        Some(PeerClient::new(channel))
    }

    pub fn update(self: &Arc<Self>, machine: &Machine) {
        let own = machine.members.all.get(&self.member);
        self.learner
            .store(own.is_some_and(|m| m.is_learner), Ordering::Relaxed);
        let mut links = self.links.lock();
        links.retain(|id, link| {
            machine
                .members
                .all
                .get(id)
                .is_some_and(|m| m.peer_ur_ls == link.urls)
        });
        for (id, member) in &machine.members.all {
            if *id == self.member || links.contains_key(id) {
                continue;
            }
            let (queue, receiver) = mpsc::channel(QUEUE);
            let peers = Arc::downgrade(self);
            let urls = member.peer_ur_ls.clone();
            let task = self
                .runtime
                .spawn(run_link(peers, *id, urls.clone(), receiver));
            links.insert(*id, Link { urls, queue, task });
        }
    }

    fn event(&self, event: Event) {
        if let Some(node) = self.node.get() {
            node.event(event);
        }
    }

    fn unreachable(&self, id: u64) {
        self.followers.lock().failed(id);
        self.event(Event::Unreachable(id));
    }

    fn now(&self) -> Duration {
        self.node.get().map_or(Duration::ZERO, |node| node.now())
    }

    /// Looks at what comes in, for the statistics of a leader.
    fn heard(&self, message: &Message) {
        if message.get_msg_type() == MessageType::MsgAppendResponse && !message.reject {
            let now = self.now();
            self.followers
                .lock()
                .answered(message.from, message.index, now);
        }
    }

    /// How a follower does, as long as this member leads.
    pub fn follower(&self, id: u64) -> crate::v2::FollowerStats {
        self.followers.lock().of(id)
    }

    /// Sends the state to a member that is too far behind, and tells Raft how it went.
    fn send_snapshot(self: &Arc<Self>, message: Message) {
        let id = message.to;
        let url = self
            .links
            .lock()
            .get(&id)
            .and_then(|link| link.urls.first().cloned());
        let peers = self.clone();
        self.runtime.spawn(async move {
            let result = match url {
                Some(url) => peers.stream_snapshot(&url, message).await,
                None => Err("it is no member".to_owned()),
            };
            if let Err(error) = &result {
                tracing::warn!(
                    member = format!("{id:x}"),
                    "cannot send a snapshot: {error}"
                );
            }
            peers.event(Event::SnapshotSent(id, result.is_ok()));
        });
    }

    async fn stream_snapshot(&self, url: &str, mut message: Message) -> Result<(), String> {
        let node = self.node.get().ok_or("there is no node yet")?.clone();
        let channel = client::connect(url, self.tls.clone())
            .await
            .map_err(|e| e.to_string())?;
        let source = Source::new(&node.machine);
        // The state may have gone on since Raft asked; its own place counts.
        let head = source.head();
        let (index, term, conf) = (head.index, head.term, conf_state(head));
        let metadata = message.mut_snapshot().mut_metadata();
        metadata.index = index;
        metadata.term = term;
        metadata.set_conf_state(conf);
        let bytes = message.write_to_bytes().map_err(|e| e.to_string())?;
        tracing::info!(
            member = format!("{:x}", message.to),
            index,
            "sends a snapshot"
        );
        let cluster_id = self.cluster;
        let (sender, receiver) = mpsc::channel(4);
        let pieces = tokio::task::spawn_blocking(move || {
            let first = SnapshotChunk {
                cluster_id,
                message: bytes,
                data: Vec::new(),
            };
            let rest = source.map(|data| {
                Ok(SnapshotChunk {
                    cluster_id,
                    message: Vec::new(),
                    data: data?,
                })
            });
            for chunk in std::iter::once(Ok(first)).chain(rest) {
                let chunk = chunk.inspect_err(|why: &Replaced| {
                    // Half a snapshot is none: whoever receives it sees that its end is missing.
                    tracing::info!("a snapshot is not sent to its end: {why}");
                });
                let Ok(chunk) = chunk else { return };
                if sender.blocking_send(chunk).is_err() {
                    return;
                }
            }
        });
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let result = PeerClient::new(channel)
            .max_decoding_message_size(MESSAGE)
            .install(stream)
            .await;
        let _ = pieces.await;
        result
            .map(|_| ())
            .map_err(|status| status.message().to_owned())
    }
}

impl Transport for Arc<Peers> {
    fn send(&self, messages: Vec<Message>) {
        let mut sorted: HashMap<u64, Vec<Message>> = HashMap::new();
        for message in messages {
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.send_snapshot(message);
            } else {
                if message.get_msg_type() == MessageType::MsgAppend
                    && let Some(last) = message.entries.last()
                {
                    let now = self.now();
                    self.followers.lock().sent(message.to, last.index, now);
                }
                sorted.entry(message.to).or_default().push(message);
            }
        }
        let links = self.links.lock();
        for (id, batch) in sorted {
            let sent = links
                .get(&id)
                .is_some_and(|link| link.queue.try_send(batch).is_ok());
            if !sent {
                self.unreachable(id);
            }
        }
    }

    fn members_changed(&self, machine: &Machine) {
        self.update(machine);
    }
}

/// Keeps a stream to one member open as long as the member exists.
async fn run_link(
    peers: std::sync::Weak<Peers>,
    id: u64,
    urls: Vec<String>,
    receiver: mpsc::Receiver<Vec<Message>>,
) {
    let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
    let mut pause = RETRY;
    let mut said = false;
    for attempt in 0.. {
        let Some(strong) = peers.upgrade() else {
            return;
        };
        let Some(url) = urls.get(attempt % urls.len().max(1)) else {
            return;
        };
        let (cluster, member, tls) = (strong.cluster, strong.member, strong.tls.clone());
        drop(strong);
        let connected = match client::connect(url, tls).await {
            Ok(channel) => {
                if said {
                    tracing::info!(member = format!("{id:x}"), "reached again");
                }
                (said, pause) = (false, RETRY);
                let batches = outgoing(peers.clone(), receiver.clone(), cluster, member);
                let mut client = PeerClient::new(channel).max_encoding_message_size(MESSAGE);
                client
                    .messages(batches)
                    .await
                    .map(|_| ())
                    .map_err(|status| {
                        if status.code() == tonic::Code::PermissionDenied
                            && let Some(node) = peers.upgrade().and_then(|p| p.node.get().cloned())
                        {
                            tracing::error!("{}: this member ends", status.message());
                            node.stop();
                        }
                        status.message().to_owned()
                    })
            }
            Err(error) => Err(error.to_string()),
        };
        let Some(strong) = peers.upgrade() else {
            return;
        };
        strong.unreachable(id);
        if let Err(error) = connected
            && !said
        {
            tracing::warn!(
                member = format!("{id:x}"),
                url,
                "cannot be reached: {error}"
            );
            said = true;
        }
        drop(strong);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
        // What waited meanwhile is old by now.
        let mut receiver = receiver.lock().await;
        while receiver.try_recv().is_ok() {}
    }
}

type Queue = Arc<tokio::sync::Mutex<mpsc::Receiver<Vec<Message>>>>;

fn outgoing(
    peers: std::sync::Weak<Peers>,
    receiver: Queue,
    cluster_id: u64,
    from: u64,
) -> impl futures_util::Stream<Item = RaftMessages> + Send + 'static {
    futures_util::stream::unfold((peers, receiver), move |(peers, receiver)| async move {
        let mut batch = {
            let mut receiver = receiver.lock().await;
            let mut batch = receiver.recv().await?;
            while batch.len() < 1024 {
                let Ok(more) = receiver.try_recv() else { break };
                batch.extend(more);
            }
            batch
        };
        let messages: Vec<_> = batch
            .drain(..)
            .filter_map(|message| Some(message.write_to_bytes().ok()?.into()))
            .collect();
        if let Some(node) = peers.upgrade().and_then(|p| p.node.get().cloned()) {
            let bytes: usize = messages.iter().map(bytes::Bytes::len).sum();
            node.metrics
                .peer_sent
                .fetch_add(bytes as u64, Ordering::Relaxed);
        }
        let out = RaftMessages {
            cluster_id,
            from,
            messages,
        };
        Some((out, (peers, receiver)))
    })
    .boxed()
}

/// Reads a received snapshot back before anybody believes in it, and puts it among the checkpoints.
pub fn accept_snapshot(disk: &Disk, part: &Path) -> Result<Machine, String> {
    let said = |e: std::io::Error| format!("{}: {e}", part.display());
    let file = std::fs::File::open(part).map_err(said)?;
    file.sync_all().map_err(said)?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let machine = disk.read(&mut reader).map_err(said)?;
    disk.settle(part, &disk.path_of(machine.applied))
        .map_err(|e| e.to_string())?;
    Ok(machine)
}
