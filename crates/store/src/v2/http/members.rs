//! `/v2/members`, `/v2/machines` and `/v2/stats`.

use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::{Api, allowed, cluster_header, json, message, no_auth, not_found, plain, text};
use crate::v2::auth::{Access, Credentials};
use crate::v2::gojson;
use crate::v2::proposer::{Member, MemberError, Proposer};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    id: String,
    name: String,
    #[serde(rename = "peerURLs")]
    peer_urls: Vec<String>,
    #[serde(rename = "clientURLs")]
    client_urls: Vec<String>,
}

impl From<Member> for Shown {
    fn from(member: Member) -> Self {
        Shown {
            id: format!("{:x}", member.id),
            name: member.name,
            peer_urls: member.peer_urls,
            client_urls: member.client_urls,
        }
    }
}

pub(super) async fn serve<P: Proposer>(api: &Api<P>, request: Request, rest: &str) -> Response {
    if let Err(refusal) = allowed(request.method(), "GET,POST,DELETE,PUT") {
        return *refusal;
    }
    let reads = request.method() == Method::GET;
    let credentials = Credentials::of(request.headers(), request.extensions());
    let access = Access {
        store: api.server.store(),
        passwords: &api.passwords,
    };
    if !reads && !access.is_root(&credentials).await {
        return no_auth();
    }
    let response = match *request.method() {
        Method::GET => show(api, rest),
        Method::POST => add(api, request).await,
        Method::DELETE => match member_id(rest) {
            Ok(id) => done(api.server.remove_member(id).await, id),
            Err(refusal) => *refusal,
        },
        _ => match member_id(rest) {
            Ok(id) => match peer_urls(request).await {
                Ok(urls) => done(api.server.update_member(id, urls).await, id),
                Err(refusal) => *refusal,
            },
            Err(refusal) => *refusal,
        },
    };
    cluster_header(api, response)
}

fn show<P: Proposer>(api: &Api<P>, rest: &str) -> Response {
    #[derive(Serialize)]
    struct Collection {
        members: Vec<Shown>,
    }
    let members = api.server.members();
    match rest {
        "" => json(
            StatusCode::OK,
            gojson::line(&Collection {
                members: members.into_iter().map(Shown::from).collect(),
            }),
        ),
        "leader" => {
            let leader = api.server.leader();
            match members.into_iter().find(|member| Some(member.id) == leader) {
                Some(member) => json(StatusCode::OK, gojson::line(&Shown::from(member))),
                None => message(StatusCode::SERVICE_UNAVAILABLE, "During election"),
            }
        }
        _ => message(StatusCode::NOT_FOUND, "Not found"),
    }
}

async fn add<P: Proposer>(api: &Api<P>, request: Request) -> Response {
    let urls = match peer_urls(request).await {
        Ok(urls) => urls,
        Err(refusal) => return *refusal,
    };
    match api.server.add_member(urls).await {
        Ok(member) => json(StatusCode::CREATED, gojson::line(&Shown::from(member))),
        Err(error) => refused(&error, 0),
    }
}

fn done(result: Result<(), MemberError>, id: u64) -> Response {
    match result {
        Ok(()) => {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Err(error) => refused(&error, id),
    }
}

fn refused(error: &MemberError, id: u64) -> Response {
    match error {
        MemberError::IdExists | MemberError::PeerUrlExists => {
            message(StatusCode::CONFLICT, &error.to_string())
        }
        MemberError::IdRemoved => message(
            StatusCode::GONE,
            &format!("Member permanently removed: {id:x}"),
        ),
        MemberError::IdNotFound => {
            message(StatusCode::NOT_FOUND, &format!("No such member: {id:x}"))
        }
        MemberError::Other(reason) => {
            tracing::error!(%reason, "cannot change the list of members");
            message(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
        }
    }
}

fn member_id(rest: &str) -> Result<u64, Box<Response>> {
    if rest.is_empty() {
        return Err(Box::new(plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "Method Not Allowed",
        )));
    }
    let hex = rest.bytes().all(|b| b.is_ascii_hexdigit());
    u64::from_str_radix(rest, 16)
        .ok()
        .filter(|_| hex)
        .ok_or_else(|| {
            Box::new(message(
                StatusCode::NOT_FOUND,
                &format!("No such member: {rest}"),
            ))
        })
}

async fn peer_urls(request: Request) -> Result<Vec<String>, Box<Response>> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(rename = "peerURLs", default)]
        peer_urls: Option<Vec<String>>,
    }
    let bad = |text: &str| Box::new(message(StatusCode::BAD_REQUEST, text));
    let kind = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    // Only what has parameters is put into lower case: a slip of etcd's that clients may have met.
    let kind = match kind.split_once(';') {
        Some((kind, _)) => kind.trim().to_ascii_lowercase(),
        None => kind.to_owned(),
    };
    if kind != "application/json" {
        return Err(Box::new(message(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            &format!("Bad Content-Type {kind}, accept application/json"),
        )));
    }
    let body = super::body(request.into_body())
        .await
        .map_err(|error| bad(&error))?;
    let body: Body = serde_json::from_slice(&body).map_err(|error| {
        bad(&if error.is_eof() {
            "unexpected end of JSON input".to_owned()
        } else {
            error.to_string()
        })
    })?;
    check_urls(body.peer_urls.unwrap_or_default()).map_err(|error| bad(&error))
}

/// The URLs, sorted, if all of them say scheme, host and port and no more.
pub(crate) fn check_urls(urls: Vec<String>) -> Result<Vec<String>, String> {
    if urls.is_empty() {
        return Err("no valid URLs given".into());
    }
    let mut checked = Vec::with_capacity(urls.len());
    for url in urls {
        let url = url.trim().to_owned();
        // Without a scheme, what is before the first slash is a path, and a colon in it is a mistake of its own.
        let first = url.split('/').next().unwrap_or_default();
        if first.contains(':') && !url.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err(format!(
                "parse {url:?}: first path segment in URL cannot contain colon"
            ));
        }
        let bad_scheme = || format!("URL scheme must be http, https, unix, or unixs: {url}");
        let (scheme, rest) = url.split_once("://").ok_or_else(bad_scheme)?;
        if !["http", "https", "unix", "unixs"].contains(&scheme) {
            return Err(bad_scheme());
        }
        let (address, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let port = address.rsplit_once(':');
        // An address of IPv6 has colons of its own, in brackets.
        let has_port = port.is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
        if !has_port {
            return Err(format!(
                "URL address does not have the form \"host:port\": {url}"
            ));
        }
        if !path.is_empty() && !scheme.starts_with("unix") {
            return Err(format!("URL must not contain a path: {url}"));
        }
        checked.push(url);
    }
    checked.sort();
    Ok(checked)
}

pub(super) fn machines<P: Proposer>(api: &Api<P>, request: &Request) -> Response {
    if let Err(refusal) = allowed(request.method(), "GET,HEAD") {
        return *refusal;
    }
    let mut urls: Vec<String> = api
        .server
        .members()
        .into_iter()
        .flat_map(|member| member.client_urls)
        .collect();
    urls.sort();
    text(StatusCode::OK, "text/plain; charset=utf-8", urls.join(", "))
}

pub(super) fn stats<P: Proposer>(api: &Api<P>, request: &Request, rest: &str) -> Response {
    if !["self", "leader", "store"].contains(&rest) {
        return not_found();
    }
    if let Err(refusal) = allowed(request.method(), "GET") {
        return *refusal;
    }
    match rest {
        "self" => json(StatusCode::OK, gojson::text(&api.server.self_stats())),
        "store" => json(StatusCode::OK, api.server.store().read().stats()),
        _ => match api.server.leader_stats() {
            Some(stats) => json(StatusCode::OK, gojson::text(&stats)),
            None => message(StatusCode::FORBIDDEN, "not current leader"),
        },
    }
}
