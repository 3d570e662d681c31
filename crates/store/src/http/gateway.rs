//! The JSON gateway: every gRPC method as a POST with JSON. It translates, and calls the very same services.

use std::sync::{Arc, OnceLock};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use futures_util::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MethodDescriptor, SerializeOptions,
};
use tonic::Code;

use super::Front;
use crate::pb::DESCRIPTORS;

/// Path below `/v3`, service, method. etcd's.
const ROUTES: &[(&str, &str, &str)] = &[
    ("/kv/range", "etcdserverpb.KV", "Range"),
    ("/kv/put", "etcdserverpb.KV", "Put"),
    ("/kv/deleterange", "etcdserverpb.KV", "DeleteRange"),
    ("/kv/txn", "etcdserverpb.KV", "Txn"),
    ("/kv/compaction", "etcdserverpb.KV", "Compact"),
    ("/watch", "etcdserverpb.Watch", "Watch"),
    ("/lease/grant", "etcdserverpb.Lease", "LeaseGrant"),
    ("/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("/kv/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("/lease/keepalive", "etcdserverpb.Lease", "LeaseKeepAlive"),
    ("/lease/timetolive", "etcdserverpb.Lease", "LeaseTimeToLive"),
    (
        "/kv/lease/timetolive",
        "etcdserverpb.Lease",
        "LeaseTimeToLive",
    ),
    ("/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("/kv/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("/cluster/member/add", "etcdserverpb.Cluster", "MemberAdd"),
    (
        "/cluster/member/remove",
        "etcdserverpb.Cluster",
        "MemberRemove",
    ),
    (
        "/cluster/member/update",
        "etcdserverpb.Cluster",
        "MemberUpdate",
    ),
    ("/cluster/member/list", "etcdserverpb.Cluster", "MemberList"),
    (
        "/cluster/member/promote",
        "etcdserverpb.Cluster",
        "MemberPromote",
    ),
    ("/maintenance/alarm", "etcdserverpb.Maintenance", "Alarm"),
    ("/maintenance/status", "etcdserverpb.Maintenance", "Status"),
    (
        "/maintenance/defragment",
        "etcdserverpb.Maintenance",
        "Defragment",
    ),
    ("/maintenance/hash", "etcdserverpb.Maintenance", "Hash"),
    ("/maintenance/hashkv", "etcdserverpb.Maintenance", "HashKV"),
    (
        "/maintenance/snapshot",
        "etcdserverpb.Maintenance",
        "Snapshot",
    ),
    (
        "/maintenance/transfer-leadership",
        "etcdserverpb.Maintenance",
        "MoveLeader",
    ),
    (
        "/maintenance/downgrade",
        "etcdserverpb.Maintenance",
        "Downgrade",
    ),
    ("/auth/enable", "etcdserverpb.Auth", "AuthEnable"),
    ("/auth/disable", "etcdserverpb.Auth", "AuthDisable"),
    ("/auth/status", "etcdserverpb.Auth", "AuthStatus"),
    ("/auth/authenticate", "etcdserverpb.Auth", "Authenticate"),
    ("/auth/user/add", "etcdserverpb.Auth", "UserAdd"),
    ("/auth/user/get", "etcdserverpb.Auth", "UserGet"),
    ("/auth/user/list", "etcdserverpb.Auth", "UserList"),
    ("/auth/user/delete", "etcdserverpb.Auth", "UserDelete"),
    (
        "/auth/user/changepw",
        "etcdserverpb.Auth",
        "UserChangePassword",
    ),
    ("/auth/user/grant", "etcdserverpb.Auth", "UserGrantRole"),
    ("/auth/user/revoke", "etcdserverpb.Auth", "UserRevokeRole"),
    ("/auth/role/add", "etcdserverpb.Auth", "RoleAdd"),
    ("/auth/role/get", "etcdserverpb.Auth", "RoleGet"),
    ("/auth/role/list", "etcdserverpb.Auth", "RoleList"),
    ("/auth/role/delete", "etcdserverpb.Auth", "RoleDelete"),
    (
        "/auth/role/grant",
        "etcdserverpb.Auth",
        "RoleGrantPermission",
    ),
    (
        "/auth/role/revoke",
        "etcdserverpb.Auth",
        "RoleRevokePermission",
    ),
    ("/lock/lock", "v3lockpb.Lock", "Lock"),
    ("/lock/unlock", "v3lockpb.Lock", "Unlock"),
    ("/election/campaign", "v3electionpb.Election", "Campaign"),
    ("/election/proclaim", "v3electionpb.Election", "Proclaim"),
    ("/election/leader", "v3electionpb.Election", "Leader"),
    ("/election/observe", "v3electionpb.Election", "Observe"),
    ("/election/resign", "v3electionpb.Election", "Resign"),
];

const ROOM: usize = 64 << 20;

/// The gRPC paths of all methods that clients may call.
pub fn paths() -> Vec<(&'static str, &'static str)> {
    let mut found: Vec<_> = ROUTES
        .iter()
        .map(|(_, service, method)| (*service, *method))
        .collect();
    found.push(("etcdserverpb.KV", "RangeStream"));
    found.sort_unstable();
    found.dedup();
    found
}

fn pool() -> Option<&'static DescriptorPool> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(DESCRIPTORS).ok())
        .as_ref()
}

#[derive(Clone)]
struct Route {
    front: Front,
    path: Arc<str>,
    method: MethodDescriptor,
}

pub(super) fn router(front: Front) -> axum::Router {
    let mut router = axum::Router::new();
    for (path, service, method) in ROUTES {
        let descriptor = pool()
            .and_then(|pool| pool.get_service_by_name(service))
            .and_then(|service| service.methods().find(|m| m.name() == *method));
        let Some(descriptor) = descriptor else {
            tracing::error!("the gateway does not know {service}.{method}");
            continue;
        };
        let route = Route {
            front: front.clone(),
            path: format!("/{service}/{method}").into(),
            method: descriptor,
        };
        for version in ["/v3", "/v3beta", "/v3alpha"] {
            router = router.route(
                &format!("{version}{path}"),
                any(call).with_state(route.clone()),
            );
        }
    }
    for version in ["/v3", "/v3beta", "/v3alpha"] {
        router = router.route(&format!("{version}/{{*path}}"), any(unknown));
    }
    router
}

async fn unknown() -> Response {
    super::plain(StatusCode::NOT_FOUND, "Not Found")
}

fn failure(code: Code, text: &str) -> Response {
    let status = match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let body = error_json(code, text);
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn error_json(code: Code, text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    format!(
        "{{\"error\":{quoted},\"message\":{quoted},\"code\":{}}}",
        code as i32
    )
}

/// One or more JSON objects, each framed as gRPC wants it.
fn frames(method: &MethodDescriptor, body: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut rest = body;
    if body.iter().all(u8::is_ascii_whitespace) {
        rest = b"{}";
    }
    while !rest.iter().all(u8::is_ascii_whitespace) {
        let mut json = serde_json::Deserializer::from_slice(rest).into_iter::<serde_json::Value>();
        let value = match json.next() {
            Some(Ok(value)) => value,
            Some(Err(error)) => return Err(error.to_string()),
            None => break,
        };
        rest = &rest[json.byte_offset()..];
        let options = DeserializeOptions::new().deny_unknown_fields(false);
        let message = DynamicMessage::deserialize_with_options(method.input(), value, &options)
            .map_err(|e| e.to_string())?;
        let bytes = message.encode_to_vec();
        out.push(0);
        out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&bytes);
        if !method.is_client_streaming() {
            break;
        }
    }
    Ok(out)
}

/// Translates a body for every method, and back what came out of it.
pub(super) fn probe(body: &[u8]) {
    let methods = pool()
        .into_iter()
        .flat_map(DescriptorPool::services)
        .flat_map(|service| service.methods().collect::<Vec<_>>());
    for method in methods {
        let Ok(mut framed) = frames(&method, body) else {
            continue;
        };
        while let Some(message) = take_message(&mut framed) {
            let sent = DynamicMessage::decode(method.input(), &message[..]);
            assert!(sent.is_ok(), "{}: not what it says", method.full_name());
        }
        assert!(framed.is_empty(), "{}: half a message", method.full_name());
        // Any bytes may come back, as far as this knows.
        let _ = json_of(&method, body);
    }
}

fn json_of(method: &MethodDescriptor, message: &[u8]) -> Result<Vec<u8>, String> {
    let message = DynamicMessage::decode(method.output(), message).map_err(|e| e.to_string())?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(true);
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, GoEscapes);
    message
        .serialize_with_options(&mut serializer, &options)
        .map_err(|e| e.to_string())?;
    Ok(out)
}

/// Go's encoder writes `<`, `>` and `&` as escapes.
struct GoEscapes;

impl serde_json::ser::Formatter for GoEscapes {
    fn write_string_fragment<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> std::io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&']) {
            writer.write_all(&rest.as_bytes()[..at])?;
            write!(writer, "\\u{:04x}", rest.as_bytes()[at])?;
            rest = &rest[at + 1..];
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Takes whole gRPC messages off the front of a buffer.
fn take_message(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = u32::from_be_bytes(buffer.get(1..5)?.try_into().ok()?);
    let end = 5 + usize::try_from(length).ok()?;
    let message = buffer.get(5..end)?.to_vec();
    buffer.drain(..end);
    Some(message)
}

fn status_of(headers: &HeaderMap) -> Option<(Code, String)> {
    let code = headers
        .get("grpc-status")?
        .to_str()
        .ok()?
        .parse::<i32>()
        .ok()?;
    let text = headers
        .get("grpc-message")
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    Some((Code::from(code), percent_decode(text)))
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = text
            .get(at + 1..at + 3)
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

async fn call(State(route): State<Route>, request: Request<Body>) -> Response {
    if request.method() != Method::POST {
        return super::plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, ROOM).await else {
        return failure(Code::InvalidArgument, "the request cannot be read");
    };
    let framed = match frames(&route.method, &body) {
        Ok(framed) => framed,
        Err(what) => return failure(Code::InvalidArgument, &what),
    };
    let mut inner = Request::post(&*route.path)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers");
    for name in ["authorization", "token"] {
        if let Some(value) = parts.headers.get(name) {
            inner = inner.header(name, value);
        }
    }
    let Ok(inner) = inner.body(Body::from(framed)) else {
        return failure(Code::Internal, "the request cannot be passed on");
    };
    let Ok(response) = route.front.call_grpc(inner).await;
    let (head, body) = response.into_parts();
    if let Some((code, text)) = status_of(&head.headers)
        && code != Code::Ok
    {
        return failure(code, &text);
    }
    if route.method.is_server_streaming() {
        return stream_lines(route.method, body);
    }
    let Ok(collected) = body.collect().await else {
        return failure(Code::Internal, "the answer broke off");
    };
    if let Some((code, text)) = collected.trailers().and_then(status_of)
        && code != Code::Ok
    {
        return failure(code, &text);
    }
    let mut buffer = collected.to_bytes().to_vec();
    let json = take_message(&mut buffer)
        .ok_or_else(|| "there is no answer".to_owned())
        .and_then(|message| json_of(&route.method, &message));
    match json {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(what) => failure(Code::Internal, &what),
    }
}

/// `{"result":…}` for every message, flushed as it comes.
fn stream_lines(method: MethodDescriptor, body: Body) -> Response {
    let state = (body, Vec::new(), method);
    let lines = stream::unfold(state, |(mut body, mut buffer, method)| async move {
        loop {
            if let Some(message) = take_message(&mut buffer) {
                let line = match json_of(&method, &message) {
                    Ok(json) => [b"{\"result\":", &json[..], b"}\n"].concat(),
                    Err(what) => error_line(Code::Internal, &what),
                };
                return Some((Bytes::from(line), (body, buffer, method)));
            }
            match body.frame().await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => buffer.extend_from_slice(&data),
                    Err(frame) => {
                        let (code, text) = status_of(frame.trailers_ref()?)?;
                        if code == Code::Ok {
                            return None;
                        }
                        return Some((
                            Bytes::from(error_line(code, &text)),
                            (Body::empty(), buffer, method),
                        ));
                    }
                },
                Err(_) => return None,
            }
        }
    });
    let body = Body::from_stream(lines.map(Ok::<_, std::convert::Infallible>));
    let mut response = Response::new(body);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

fn error_line(code: Code, text: &str) -> Vec<u8> {
    let quoted = serde_json::Value::from(text).to_string();
    format!(
        "{{\"error\":{{\"grpc_code\":{},\"message\":{quoted}}}}}\n",
        code as i32
    )
    .into_bytes()
}
