//! `/v2/keys`.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::Request as HttpRequest;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use futures_util::stream;

use super::form::Form;
use super::{
    Api, X_ETCD_INDEX, X_RAFT_INDEX, X_RAFT_TERM, allowed, cluster_header, json, key_error,
};
use crate::v2::auth::{Access, Credentials};
use crate::v2::error::{Code, Error};
use crate::v2::event::{Action, Event};
use crate::v2::hub::Watch;
use crate::v2::proposer::{Proposer, RaftState};
use crate::v2::request::Request;
use crate::v2::{KEYS, path};

const SECOND: i64 = 1_000_000_000;

/// `key` is what follows `/v2/keys`, decoded.
pub(super) async fn serve<P: Proposer>(
    api: &Api<P>,
    request: HttpRequest,
    key: String,
) -> Response {
    if let Err(refusal) = allowed(request.method(), "HEAD,GET,PUT,POST,DELETE") {
        return *refusal;
    }
    let response = match respond(api, request, &key).await {
        Ok(response) => response,
        Err(mut error) => {
            if let Some(rest) = error.cause.strip_prefix(KEYS) {
                error.cause = rest.to_owned();
            }
            key_error(&error)
        }
    };
    cluster_header(api, response)
}

async fn respond<P: Proposer>(
    api: &Api<P>,
    request: HttpRequest,
    key: &str,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let method = parts.method;
    let now = api.server.now();
    let body = match method {
        Method::PUT | Method::POST => Some(
            super::body(body)
                .await
                .map_err(|error| Error::request(Code::InvalidForm, error))?,
        ),
        _ => None,
    };
    let kind = parts.headers.get(header::CONTENT_TYPE);
    let form = Form::read(
        parts.uri.query().unwrap_or_default(),
        kind.map(|kind| kind.to_str().unwrap_or("/")),
        body.as_deref(),
    )
    .map_err(|error| Error::request(Code::InvalidForm, error))?;
    let (request, quiet) = parse(&method, key, &form, now)?;

    let credentials = Credentials::of(&parts.headers, &parts.extensions);
    let access = Access {
        store: api.server.store(),
        passwords: &api.passwords,
    };
    let write = !matches!(method, Method::GET | Method::HEAD);
    if !access
        .may_use_key(&credentials, key, request.recursive, write)
        .await
    {
        return Err(Error::request(
            Code::Unauthorized,
            "Insufficient credentials",
        ));
    }

    let failed =
        |failure: crate::v2::Failure| Error::request(Code::RaftInternal, failure.to_string());
    if write {
        let outcome = api.server.propose(request).await.map_err(failed)?;
        let event = outcome?.ok_or_else(|| {
            Error::request(
                Code::RaftInternal,
                "received response with no Event/Watcher!",
            )
        })?;
        return Ok(event_response(&event, quiet, api.server.raft()));
    }
    let quorum = request.quorum && method == Method::GET;
    if quorum {
        api.server.linearize().await.map_err(failed)?;
    }
    let store = api.server.store().read();
    // A quorum read does not wait, and neither does a HEAD.
    if request.wait && !quorum && method == Method::GET {
        let watch = store.watch(
            &request.path,
            request.recursive,
            request.stream,
            request.since,
        )?;
        drop(store);
        return Ok(watch_response(watch, request.stream, api.server.raft()));
    }
    let event = store.get(&request.path, request.recursive, api.server.now())?;
    drop(store);
    Ok(event_response(&event, false, api.server.raft()))
}

/// A request for the store, and whether the answer leaves the nodes out.
pub(crate) fn parse(
    method: &Method,
    key: &str,
    form: &Form,
    now: i64,
) -> Result<(Request, bool), Error> {
    let number = |field: &str| {
        form.number(field).ok_or_else(|| {
            Error::request(
                Code::IndexNotANumber,
                format!("invalid value for \"{field}\""),
            )
        })
    };
    let flag = |field: &str| {
        form.flag(field).ok_or_else(|| {
            Error::request(Code::InvalidField, format!("invalid value for \"{field}\""))
        })
    };
    // With an own text, and nothing when the field is not there.
    let choice = |field: &str| match (form.get(field), form.flag(field)) {
        (None, _) => Ok(None),
        (_, Some(value)) => Ok(Some(value)),
        (_, None) => Err(Error::request(
            Code::InvalidField,
            format!("invalid value for {field}"),
        )),
    };

    // The order decides which of several mistakes is reported.
    let prev_index = number("prevIndex")?;
    let since = number("waitIndex")?;
    let recursive = flag("recursive")?;
    let sorted = flag("sorted")?;
    let wait = flag("wait")?;
    let dir = flag("dir")?;
    let quorum = flag("quorum")?;
    let stream = flag("stream")?;
    if wait && method != Method::GET {
        return Err(Error::request(
            Code::InvalidField,
            "\"wait\" can only be used with GET requests",
        ));
    }
    let prev_value = form.get("prevValue");
    if prev_value == Some("") {
        return Err(Error::request(
            Code::PrevValueRequired,
            "\"prevValue\" cannot be empty",
        ));
    }
    let quiet = flag("noValueOnSuccess")?;
    let ttl = match form.get("ttl") {
        None | Some("") => None,
        Some(_) => Some(
            form.number("ttl")
                .ok_or_else(|| Error::request(Code::TtlNotANumber, "invalid value for \"ttl\""))?,
        ),
    };
    let prev_exist = choice("prevExist")?;
    let refresh = choice("refresh")?;
    let value = form.get("value").unwrap_or_default();
    if refresh == Some(true) {
        if !value.is_empty() {
            return Err(Error::request(
                Code::RefreshValue,
                "A value was provided on a refresh",
            ));
        }
        if ttl.is_none() {
            return Err(Error::request(Code::RefreshTtlRequired, "No TTL value set"));
        }
    }
    let expiration = ttl.map_or(0, |ttl| {
        // Centuries ahead is as good as never; it must not wrap into the past.
        let ttl = i64::try_from(ttl).unwrap_or(i64::MAX);
        now.saturating_add(ttl.saturating_mul(SECOND))
    });
    let request = Request {
        id: 0,
        method: method.as_str().to_owned(),
        path: path::clean(&format!("{KEYS}/{key}")),
        val: value.to_owned(),
        dir,
        prev_value: prev_value.unwrap_or_default().to_owned(),
        prev_index,
        prev_exist,
        expiration,
        wait,
        since,
        recursive,
        sorted,
        quorum,
        time: now,
        stream,
        refresh,
    };
    Ok((request, quiet))
}

fn event_response(event: &Event, quiet: bool, raft: RaftState) -> Response {
    let status = if event.is_created() {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let mut shown = event.without_prefix(KEYS);
    let writes = matches!(
        event.action,
        Action::Set | Action::CompareAndSwap | Action::Create | Action::Update
    );
    if quiet && writes {
        shown.node = None;
        shown.prev_node = None;
    }
    with_indices(json(status, shown.line()), event.etcd_index, raft)
}

fn watch_response(watch: Watch, stream: bool, raft: RaftState) -> Response {
    let start = watch.start_index;
    // Until the client goes away, the stream is dropped, and the watch with it.
    let lines = stream::unfold(Some(watch), move |watch| async move {
        let mut watch = watch?;
        let event = watch.next().await?;
        let line = Bytes::from(event.without_prefix(KEYS).line());
        Some((Ok::<_, Infallible>(line), stream.then_some(watch)))
    });
    with_indices(json(StatusCode::OK, Body::from_stream(lines)), start, raft)
}

fn with_indices(mut response: Response, index: u64, raft: RaftState) -> Response {
    let headers = response.headers_mut();
    headers.insert(X_ETCD_INDEX, HeaderValue::from(index));
    headers.insert(X_RAFT_INDEX, HeaderValue::from(raft.index));
    headers.insert(X_RAFT_TERM, HeaderValue::from(raft.term));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(method: Method, query: &str) -> Result<(Request, bool), Error> {
        parse(
            &method,
            "/a",
            &Form::read(query, None, None).unwrap(),
            5 * SECOND,
        )
    }

    #[test]
    fn a_condition_is_a_value_that_is_not_empty_or_an_index_that_is_not_zero() {
        assert!(!parsed(Method::PUT, "prevIndex=0").unwrap().0.compares());
        assert!(parsed(Method::PUT, "prevIndex=7").unwrap().0.compares());
        assert!(parsed(Method::PUT, "prevValue=x").unwrap().0.compares());
        let error = parsed(Method::PUT, "prevValue=").unwrap_err();
        assert_eq!(error.code, Code::PrevValueRequired);
    }

    #[test]
    fn a_time_to_live_of_centuries_does_not_wrap() {
        let (request, _) = parsed(Method::PUT, "ttl=18446744073709551615").unwrap();
        assert_eq!(request.expiration, i64::MAX);
        assert_eq!(parsed(Method::PUT, "ttl=").unwrap().0.expiration, 0);
        assert_eq!(
            parsed(Method::PUT, "ttl=-1").unwrap_err().code,
            Code::TtlNotANumber
        );
    }

    fn fields() -> impl Strategy<Value = String> {
        let names = prop::sample::select(vec![
            "value",
            "ttl",
            "dir",
            "prevIndex",
            "prevValue",
            "prevExist",
            "refresh",
            "wait",
            "waitIndex",
            "recursive",
            "sorted",
            "quorum",
            "stream",
            "noValueOnSuccess",
            "other",
        ]);
        let values = prop_oneof![
            Just(String::new()),
            Just("true".to_owned()),
            Just("0".to_owned()),
            any::<u64>().prop_map(|n| n.to_string()),
            "[a-z%+;=&]{0,6}",
            any::<String>(),
        ];
        prop::collection::vec((names, values), 0..8).prop_map(|fields| {
            let fields: Vec<String> = fields.iter().map(|(k, v)| format!("{k}={v}")).collect();
            fields.join("&")
        })
    }

    proptest! {
        /// Whatever is sent is either a request for a key below the user's root, or an error with one of the codes
        /// for bad requests.
        #[test]
        fn a_request_is_understood_or_refused(query in fields(), key in any::<String>(), put in any::<bool>()) {
            let method = if put { Method::PUT } else { Method::GET };
            let result = Form::read(&query, None, None)
                .map_err(|error| Error::request(Code::InvalidForm, error))
                .and_then(|form| parse(&method, &key, &form, 0));
            match result {
                Ok((request, _)) => {
                    prop_assert_eq!(&path::clean(&request.path), &request.path);
                    let mut store = crate::v2::Store::default();
                    let _ = store.apply(&request);
                }
                Err(error) => prop_assert!((200..=212).contains(&error.code.number())),
            }
        }
    }
}
