//! The ports: gRPC over HTTP/2, and HTTP/1 for everything else, on one listener.

mod gateway;
pub mod listen;
mod pages;
mod streams;
mod unary;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};

use axum::body::Body;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tower_service::Service;

use crate::api::{self, Context};
use crate::pb;
use crate::pb::etcdserverpb as rpc;
use crate::pb::etcdserverpb::kv_server::Kv as _;

pub use gateway::paths;
use streams::apart;

/// A line of text, as Go's server sends it when it has nothing better to say.
fn plain(status: StatusCode, line: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("{line}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// Is every percent sign of a path followed by two digits?
fn is_escaped_well(path: &str) -> bool {
    path.split('%').skip(1).all(|part| {
        let digits = part.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// Every answer may be read by any page, as etcd has it unless told otherwise.
fn with_cors(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    for (name, value) in [
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "accept, content-type, authorization",
        ),
        (
            header::ACCESS_CONTROL_ALLOW_METHODS,
            "POST, GET, OPTIONS, PUT, DELETE",
        ),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Health and metrics on a port of their own.
pub(crate) fn probe_gateway(bytes: &[u8]) {
    gateway::probe(bytes);
}

pub fn status_pages(context: &Arc<Context>) -> axum::Router {
    pages::router(context)
}

/// What people ask the peer port.
pub fn peer_pages(context: &Arc<Context>) -> axum::Router {
    pages::for_peers(context)
}

/// Pairs that are found so fast that others can wait.
const FEW: i64 = 100;

/// A range of many pairs.
fn is_long(request: &rpc::RangeRequest) -> bool {
    !request.range_end.is_empty() && !(1..=FEW).contains(&request.limit)
}

/// A transaction with such a range.
fn has_long(request: &rpc::TxnRequest) -> bool {
    use rpc::request_op::Request;
    let mut ops = request.success.iter().chain(&request.failure);
    ops.any(|op| match &op.request {
        Some(Request::RequestRange(request)) => is_long(request),
        Some(Request::RequestTxn(request)) => has_long(request),
        _ => false,
    })
}

/// Answers of HTTP calls.
pub type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// Who connected.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// From the client's certificate.
    pub common_name: Option<String>,
}

type KvServer = pb::etcdserverpb::kv_server::KvServer<api::Kv>;
type WatchServer = pb::etcdserverpb::watch_server::WatchServer<api::Watch>;

/// What answers on the client port.
#[derive(Clone)]
pub struct Front(Arc<Services>);

#[derive(Clone)]
struct Services {
    context: Arc<Context>,
    /// The biggest message that is taken.
    room: usize,
    calls: api::Kv,
    kv: KvServer,
    watch: WatchServer,
    others: axum::Router,
    pages: axum::Router,
}

impl Front {
    pub fn new(context: &Arc<Context>) -> Self {
        let room = context.limits.request_bytes + (512 << 10);
        macro_rules! service {
            ($module:ident :: $server:ident, $service:expr) => {
                $module::$server::new($service)
                    .max_decoding_message_size(room)
                    .max_encoding_message_size(usize::MAX)
            };
        }
        use pb::etcdserverpb::{
            auth_server, cluster_server, kv_server, lease_server, maintenance_server, watch_server,
        };
        use pb::grpc::health::v1::health_server;
        use pb::v3electionpb::election_server;
        use pb::v3lockpb::lock_server;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
        };
        let mut others = tonic::service::Routes::new(service!(
            lease_server::LeaseServer,
            api::Lease(context.clone())
        ))
        .add_service(service!(
            auth_server::AuthServer,
            api::Auth(context.clone())
        ))
        .add_service(service!(
            cluster_server::ClusterServer,
            api::Cluster(context.clone())
        ))
        .add_service(service!(
            maintenance_server::MaintenanceServer,
            api::Maintenance(context.clone())
        ))
        .add_service(service!(
            lock_server::LockServer,
            api::Lock(context.clone())
        ))
        .add_service(service!(
            election_server::ElectionServer,
            api::Election(context.clone())
        ))
        .add_service(service!(
            health_server::HealthServer,
            api::Health(context.clone())
        ));
        // Python's clients, and older ones, ask by the name that it had first.
        let named = (reflection().build_v1(), reflection().build_v1alpha());
        match named {
            (Ok(v1), Ok(v1alpha)) => others = others.add_service(v1).add_service(v1alpha),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!("gRPC reflection is off: {error}");
            }
        }
        let kv = service!(kv_server::KvServer, api::Kv(context.clone()));
        let watch = service!(watch_server::WatchServer, api::Watch(context.clone()));
        let services = Services {
            context: context.clone(),
            room,
            calls: api::Kv(context.clone()),
            kv,
            watch,
            others: others.into_axum_router(),
            pages: axum::Router::new(),
        };
        let gateway = gateway::router(Self(Arc::new(services.clone())));
        Self(Arc::new(Services {
            pages: pages::router(context)
                .merge(gateway)
                .fallback(async || plain(StatusCode::NOT_FOUND, "404 page not found")),
            ..services
        }))
    }

    /// Adds what else is served by HTTP.
    pub fn with(mut self, router: axum::Router) -> Self {
        let services = Arc::make_mut(&mut self.0);
        services.pages = std::mem::take(&mut services.pages).merge(router);
        self
    }

    fn grpc(&self, request: Request<Body>) -> Answer {
        let front = &*self.0;
        /// A call of the busiest service. What it does is the same as by `kv`, which gets what is not plain.
        macro_rules! unary {
            ($call:ident, $is_long:expr) => {{
                let (kv, service, room) = (front.calls.clone(), front.kv.clone(), front.room);
                Box::pin(unary::serve(
                    request,
                    room,
                    service,
                    $is_long,
                    |question| async move { kv.$call(question).await },
                ))
            }};
        }
        match request.uri().path() {
            "/etcdserverpb.KV/Range" => return unary!(range, is_long),
            "/etcdserverpb.KV/Put" => return unary!(put, |_| false),
            "/etcdserverpb.KV/Txn" => return unary!(txn, has_long),
            "/etcdserverpb.KV/DeleteRange" => return unary!(delete_range, |_| false),
            path if path.starts_with("/etcdserverpb.KV/") => {
                let call = front.kv.clone().call(request);
                return apart(async move { Ok(call.await?.map(Body::new)) });
            }
            path if path.starts_with("/etcdserverpb.Watch/") => {
                let call = front.watch.clone().call(request);
                return Box::pin(async move { Ok(call.await?.map(Body::new)) });
            }
            _ => {}
        }
        apart(front.others.clone().call(request))
    }

    /// A gRPC call, counted.
    pub fn call_grpc(&self, request: Request<Body>) -> Answer {
        let counter = self.0.context.node.metrics.rpc(request.uri().path());
        let answer = self.grpc(request);
        Box::pin(async move {
            let answer = answer.await;
            if let (Some(counter), Ok(response)) = (counter, &answer) {
                // What fails at once says so in the head; the code of a stream that fails later comes too late for this.
                let code = response
                    .headers()
                    .get("grpc-status")
                    .and_then(|code| code.to_str().ok()?.parse::<usize>().ok())
                    .unwrap_or(0);
                counter.count(code);
            }
            answer
        })
    }
}

impl Service<Request<Body>> for Front {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Task<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Answer {
        let is_grpc = request
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if is_grpc {
            return self.call_grpc(request);
        }
        if self.0.context.cert_auth {
            let name = request
                .extensions()
                .get::<Peer>()
                .and_then(|peer| peer.common_name.clone());
            if let Some(name) = name {
                request
                    .extensions_mut()
                    .insert(crate::v2::http::CommonName(name));
            }
        }
        if !is_escaped_well(request.uri().path()) {
            // Go's server refuses this before it looks at anything else.
            let mut response = plain(StatusCode::BAD_REQUEST, "");
            response
                .headers_mut()
                .remove(header::X_CONTENT_TYPE_OPTIONS);
            *response.body_mut() = Body::from("400 Bad Request");
            return Box::pin(async { Ok(response) });
        }
        if request.method() == Method::OPTIONS {
            return Box::pin(async { Ok(with_cors(Response::new(Body::empty()))) });
        }
        let call = self.0.pages.clone().call(request);
        Box::pin(async move { Ok(with_cors(call.await?)) })
    }
}
