//! HTTP as Go's server and etcd's handlers speak it, down to the status lines and texts that scripts look at.

mod auth;
mod form;
mod keys;
mod members;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;

use super::auth::Passwords;
use super::proposer::Proposer;
use super::{error, path};

/// A body larger than this is refused, as Go refuses larger forms.
const BODY_LIMIT: usize = 10 << 20;

pub(crate) const X_ETCD_INDEX: HeaderName = HeaderName::from_static("x-etcd-index");
const X_ETCD_CLUSTER_ID: HeaderName = HeaderName::from_static("x-etcd-cluster-id");
const X_RAFT_INDEX: HeaderName = HeaderName::from_static("x-raft-index");
const X_RAFT_TERM: HeaderName = HeaderName::from_static("x-raft-term");

/// Who the TLS layer says the client is: the common name of a checked client certificate. Put into the extensions of a
/// request when client certificates are required, and only then.
#[derive(Clone, Debug)]
pub struct CommonName(pub String);

struct Api<P> {
    server: Arc<P>,
    passwords: Passwords,
}

/// Everything below `/v2`.
pub fn router<P: Proposer>(server: Arc<P>) -> axum::Router {
    let api = Arc::new(Api {
        server,
        passwords: Passwords::default(),
    });
    axum::Router::new()
        .route("/v2", axum::routing::any(serve::<P>))
        .route("/v2/", axum::routing::any(serve::<P>))
        .route("/v2/{*path}", axum::routing::any(serve::<P>))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(api)
}

/// Takes a request apart as [`keys`] does, and carries it out on an empty tree.
pub(crate) fn probe(bytes: &[u8]) {
    let mut halves = bytes.splitn(2, |b| *b == b'\n');
    let head = String::from_utf8_lossy(halves.next().unwrap_or_default());
    let body = halves.next().unwrap_or_default();
    let (method, url) = head.split_once(' ').unwrap_or(("GET", &head));
    let Ok(method) = Method::from_bytes(method.as_bytes()) else {
        return;
    };
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let Ok(path) = form::unescape(path, false) else {
        return;
    };
    let path = path::clean_url(&path);
    assert_eq!(path::clean_url(&path), path, "a tidy path can be tidied");
    let kind = Some("application/x-www-form-urlencoded");
    let Ok(form) = form::Form::read(query, kind, Some(body)) else {
        return;
    };
    let Ok((request, _)) = keys::parse(&method, &path, &form, 1) else {
        return;
    };
    let mut store = super::Store::default();
    // The second finds what the first has left.
    let _ = store.apply(&request);
    let _ = store.apply(&request);
}

async fn serve<P: Proposer>(State(api): State<Arc<Api<P>>>, request: Request) -> Response {
    // Go's server refuses this before any handler sees it.
    let Ok(url) = form::unescape(request.uri().path(), false) else {
        return text(
            StatusCode::BAD_REQUEST,
            "text/plain; charset=utf-8",
            "400 Bad Request",
        );
    };
    answer(&api, request, &url).await
}

async fn answer<P: Proposer>(api: &Api<P>, request: Request, url: &str) -> Response {
    let tidy = path::clean_url(url);
    if tidy != url {
        return moved(&tidy, &request);
    }
    let rest = url.strip_prefix("/v2/").unwrap_or_default();
    let (area, rest) = rest.split_once('/').unwrap_or((rest, ""));
    match area {
        // The slash counts: below it is the tree.
        "keys" => keys::serve(api, request, url["/v2/keys".len()..].to_owned()).await,
        "members" => members::serve(api, request, rest).await,
        "machines" if rest.is_empty() && !url.ends_with('/') => members::machines(api, &request),
        "stats" => members::stats(api, &request, rest),
        "auth" => auth::serve(api, request, rest).await,
        _ => not_found(),
    }
}

fn moved(to: &str, request: &Request) -> Response {
    let mut location = form::escape_path(to);
    if let Some(query) = request.uri().query() {
        location.push('?');
        location.push_str(query);
    }
    let mut response = match *request.method() {
        Method::GET | Method::HEAD => {
            let link = location
                .replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;")
                .replace('"', "&#34;");
            let page = format!("<a href=\"{link}\">Moved Permanently</a>.\n\n");
            text(
                StatusCode::MOVED_PERMANENTLY,
                "text/html; charset=utf-8",
                page,
            )
        }
        _ => {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            response
        }
    };
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The whole body, or what Go says about one that is too large or breaks off.
async fn body(body: Body) -> Result<axum::body::Bytes, String> {
    axum::body::to_bytes(body, BODY_LIMIT)
        .await
        .map_err(|error| {
            let mut source: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = source {
                if error.to_string().contains("length limit exceeded") {
                    return "http: POST too large".to_owned();
                }
                source = error.source();
            }
            "unexpected EOF".to_owned()
        })
}

fn text(status: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn json(status: StatusCode, body: impl Into<Body>) -> Response {
    text(status, "application/json", body)
}

/// An answer of Go's own.
fn plain(status: StatusCode, line: &str) -> Response {
    let mut response = text(status, "text/plain; charset=utf-8", format!("{line}\n"));
    response.headers_mut().insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

fn not_found() -> Response {
    plain(StatusCode::NOT_FOUND, "404 page not found")
}

/// A refusal unless the method is one of these.
fn allowed(method: &Method, methods: &'static str) -> Result<(), Box<Response>> {
    if methods.split(',').any(|allowed| allowed == method.as_str()) {
        return Ok(());
    }
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(methods));
    Err(Box::new(response))
}

/// An error of the keys API.
fn key_error(error: &error::Error) -> Response {
    let mut response = json(error.code.status(), error.body());
    response
        .headers_mut()
        .insert(X_ETCD_INDEX, HeaderValue::from(error.index));
    response
}

/// An error of everything else.
fn message(status: StatusCode, message: &str) -> Response {
    #[derive(serde::Serialize)]
    struct Message<'a> {
        message: &'a str,
    }
    json(status, super::gojson::text(&Message { message }))
}

fn no_auth() -> Response {
    message(StatusCode::UNAUTHORIZED, "Insufficient credentials")
}

fn cluster_header<P: Proposer>(api: &Api<P>, mut response: Response) -> Response {
    let id = format!("{:x}", api.server.cluster_id());
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(X_ETCD_CLUSTER_ID, id);
    }
    response
}
