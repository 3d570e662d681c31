//! Watch: one stream, many watchers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt as _, stream};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, Context};
use crate::auth::Access;
use crate::error::{self, Error};
use crate::pb::etcdserverpb as rpc;
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::watch::{Hub, Notice, Outbox, Request as Wanted};
use crate::wire::WatchResponse;

#[derive(Clone)]
pub struct Watch(pub Arc<Context>);

/// The watchers of one stream; they go when it does.
struct Watchers {
    context: Arc<Context>,
    stream: u64,
    /// What the stream came with: a stream lives long, and what that is worth may change.
    token: Option<String>,
    name: Option<String>,
    out: Outbox,
    /// The client's number to the hub's.
    ids: HashMap<i64, u64>,
    next: i64,
}

impl Drop for Watchers {
    fn drop(&mut self) {
        for id in self.ids.values() {
            self.hub().cancel(*id);
        }
        self.hub().open_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watchers {
    fn hub(&self) -> &Hub {
        &self.context.node.hub
    }

    fn revision(&self) -> i64 {
        self.context.node.machine.read().kv.revision()
    }

    fn handle(&mut self, request: RequestUnion) {
        match request {
            RequestUnion::CreateRequest(request) => self.create(request),
            RequestUnion::CancelRequest(request) => {
                if let Some(id) = self.ids.remove(&request.watch_id) {
                    self.hub().cancel(id);
                    self.notice(Notice::Canceled {
                        watch: request.watch_id,
                        revision: self.revision(),
                        reason: String::new(),
                    });
                }
            }
            RequestUnion::ProgressRequest(_) => self.hub().progress(self.stream, self.out.clone()),
        }
    }

    /// Whether they may read that now: what is watched already goes on.
    fn permit(&self, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        let machine = self.context.node.machine.read();
        let (token, name) = (self.token.as_deref(), self.name.as_deref());
        let caller = self.context.caller(&machine, token, name)?;
        machine.auth.permits(&caller, key, range_end, Access::Read)
    }

    fn notice(&self, notice: Notice) {
        let _ = self.out.notices.send(notice);
    }

    fn create(&mut self, request: rpc::WatchCreateRequest) {
        if request.watch_id != 0 && self.ids.contains_key(&request.watch_id) {
            self.notice(Notice::Canceled {
                watch: -1,
                revision: self.revision(),
                reason: "mvcc: watch ID already exists".to_owned(),
            });
            return;
        }
        let key = if request.key.is_empty() {
            &[0][..]
        } else {
            &request.key
        };
        if let Err(error) = self.permit(key, &request.range_end) {
            self.notice(Notice::Canceled {
                watch: -1,
                revision: self.revision(),
                reason: format!("rpc error: code = {:?} desc = {error}", error.code),
            });
            return;
        }
        let watch = if request.watch_id == 0 {
            while self.ids.contains_key(&self.next) {
                self.next += 1;
            }
            self.next += 1;
            self.next - 1
        } else {
            request.watch_id
        };
        let filters: Vec<_> = request.filters().collect();
        let wanted = Wanted {
            // No key at all means the first possible one.
            key: if request.key.is_empty() {
                vec![0]
            } else {
                request.key
            },
            range_end: request.range_end,
            start: request.start_revision,
            prev_kv: request.prev_kv,
            no_put: filters.contains(&FilterType::Noput),
            no_delete: filters.contains(&FilterType::Nodelete),
            progress_notify: request.progress_notify,
            fragment: request.fragment,
        };
        let id = self
            .hub()
            .create(self.stream, watch, wanted, self.out.clone());
        self.ids.insert(watch, id);
    }
}

enum Input {
    Request(Result<rpc::WatchRequest, Status>),
    /// The client says no more; it may still listen.
    End,
    Notice(Notice),
    LeaderLost,
}

#[tonic::async_trait]
impl rpc::watch_server::Watch for Watch {
    type WatchStream = Answers<WatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<rpc::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.0.led(&request)?;
        let (token, name) = self.0.shown(&request);
        let (token, name) = (token.map(str::to_owned), name.map(str::to_owned));
        let require_leader = request
            .metadata()
            .get("hasleader")
            .is_some_and(|v| v == "true");
        let (notices, receiver) = mpsc::unbounded_channel();
        let backlog = Arc::new(AtomicUsize::new(0));
        let hub = &self.0.node.hub;
        hub.open_streams.fetch_add(1, Ordering::Relaxed);
        let watchers = Watchers {
            context: self.0.clone(),
            stream: hub.new_stream(),
            token,
            name,
            out: Outbox { notices, backlog },
            ids: HashMap::new(),
            next: 0,
        };
        let requests = request
            .into_inner()
            .map(Input::Request)
            .chain(stream::iter([Input::End]));
        let notices = stream::unfold(receiver, |mut receiver| async move {
            receiver
                .recv()
                .await
                .map(|notice| (Input::Notice(notice), receiver))
        });
        let leaderless = leader_lost(&self.0, require_leader);
        let inputs = stream::select(stream::select(requests, notices), leaderless);
        let context = self.0.clone();
        let answers = inputs
            .scan(watchers, move |watchers, input| {
                let answers = match input {
                    Input::Request(Ok(request)) => {
                        if let Some(request) = request.request_union {
                            watchers.handle(request);
                        }
                        Some(Vec::new())
                    }
                    Input::Request(Err(_)) => None,
                    Input::End => Some(Vec::new()),
                    Input::LeaderLost => Some(vec![Err(error::NO_LEADER.into())]),
                    Input::Notice(notice) => Some(answer(&context, watchers, notice)),
                };
                std::future::ready(answers)
            })
            .flat_map(stream::iter);
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Says once that there has been no leader for longer than an election takes.
fn leader_lost(context: &Arc<Context>, wanted: bool) -> Answersless {
    if !wanted {
        return Box::pin(stream::pending());
    }
    let mut leader = context.node.leader();
    Box::pin(stream::once(async move {
        loop {
            if leader.wait_for(|l| *l == 0).await.is_err() {
                std::future::pending::<()>().await;
            }
            let grace = std::time::Duration::from_secs(3);
            if tokio::time::timeout(grace, leader.wait_for(|l| *l != 0))
                .await
                .is_err()
            {
                return Input::LeaderLost;
            }
        }
    }))
}

type Answersless = std::pin::Pin<Box<dyn futures_util::Stream<Item = Input> + Send>>;

fn answer(
    context: &Context,
    watchers: &mut Watchers,
    notice: Notice,
) -> Vec<Result<WatchResponse, Status>> {
    let plain = |revision, watch_id| WatchResponse {
        header: context.header(revision),
        watch_id,
        ..WatchResponse::default()
    };
    match notice {
        Notice::Created { watch, revision } => vec![Ok(WatchResponse {
            created: true,
            ..plain(revision, watch)
        })],
        Notice::Progress { watch, revision } => vec![Ok(plain(revision, watch))],
        Notice::Canceled {
            watch,
            revision,
            reason,
        } => vec![Ok(WatchResponse {
            created: watch == -1,
            canceled: true,
            cancel_reason: reason,
            ..plain(revision, watch)
        })],
        Notice::Compacted { watch, compact, .. } => {
            watchers.ids.remove(&watch);
            vec![Ok(WatchResponse {
                canceled: true,
                compact_revision: compact,
                // That is reason enough: etcd adds neither a text nor the store's revision.
                ..plain(0, watch)
            })]
        }
        Notice::Events {
            watch,
            revision,
            events,
            fragment,
        } => {
            if watchers.out.sent(&events) {
                watchers.hub().resume();
            }
            // The client has canceled it meanwhile.
            if !watchers.ids.contains_key(&watch) {
                return Vec::new();
            }
            let whole = WatchResponse {
                events,
                ..plain(revision, watch)
            };
            if fragment {
                split(whole, context.limits.request_bytes + (512 << 10))
            } else {
                vec![Ok(whole)]
            }
        }
    }
}

/// Cuts a response that is too large for one message; all but the last say that more is to come.
fn split(whole: WatchResponse, room: usize) -> Vec<Result<WatchResponse, Status>> {
    if whole.encoded_len() <= room {
        return vec![Ok(whole)];
    }
    let mut pieces: Vec<WatchResponse> = Vec::new();
    let mut size = 0;
    for event in whole.events {
        let length = event.0.len() + 16;
        if pieces.is_empty() || size + length > room {
            size = 0;
            pieces.push(WatchResponse {
                header: whole.header,
                watch_id: whole.watch_id,
                fragment: true,
                ..WatchResponse::default()
            });
        }
        size += length;
        if let Some(piece) = pieces.last_mut() {
            piece.events.push(event);
        }
    }
    if let Some(last) = pieces.last_mut() {
        last.fragment = false;
    }
    pieces.into_iter().map(Ok).collect()
}
