//! One question, one answer, without the machinery that gRPC needs for streams: half a dozen allocations less for each of
//! the calls that a store spends its day with. What is out of the ordinary (compression, a body that is not exactly one
//! message, one that is too big) goes on to tonic as it came, and so do its errors.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use prost::Message;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tower_service::Service;

use super::streams::apart;

/// Of a message: whether it is compressed, and its length.
const HEADER: usize = 5;

/// Answers with `call`, or lets `service` do it.
pub(super) async fn serve<Q, R, S, F>(
    request: http::Request<Body>,
    limit: usize,
    mut service: S,
    is_long: impl FnOnce(&Q) -> bool,
    call: impl FnOnce(tonic::Request<Q>) -> F,
) -> Result<Response<Body>, Infallible>
where
    Q: Message + Default,
    R: Message + 'static,
    S: Service<http::Request<Body>, Response = Response<tonic::body::Body>, Error = Infallible>,
    F: Future<Output = Result<tonic::Response<R>, Status>> + Send + 'static,
{
    let (parts, body) = request.into_parts();
    let question = if parts.headers.contains_key("grpc-encoding") {
        Err(body)
    } else {
        read(body, limit).await
    };
    match question {
        Ok(question) => {
            let metadata = MetadataMap::from_headers(parts.headers);
            let long = is_long(&question);
            let request = tonic::Request::from_parts(metadata, parts.extensions, question);
            let call = call(request);
            let answer = async {
                Ok(match call.await {
                    Ok(answer) => write(answer),
                    Err(status) => status.into_http(),
                })
            };
            if long {
                apart(answer).await
            } else {
                answer.await
            }
        }
        Err(body) => {
            let request = http::Request::from_parts(parts, body);
            Ok(service.call(request).await?.map(Body::new))
        }
    }
}

/// The one message of a body, or the body as it was.
async fn read<Q: Message + Default>(mut body: Body, limit: usize) -> Result<Q, Body> {
    // Nearly always all of it is the first piece. If not, the pieces are put together.
    let mut first = Bytes::new();
    let mut pieces = BytesMut::new();
    let mut odd = None;
    while odd.is_none() && !body.is_end_stream() {
        match body.frame().await {
            None => break,
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if first.is_empty() => first = data,
                Ok(data) => {
                    if pieces.is_empty() {
                        pieces.extend_from_slice(&first);
                    }
                    pieces.extend_from_slice(&data);
                }
                Err(frame) => odd = Some(Ok(frame)),
            },
            Some(Err(error)) => odd = Some(Err(error)),
        }
        let seen: &[u8] = if pieces.is_empty() { &first } else { &pieces };
        // Long before a body that claims to be short fills the memory.
        if length(seen).is_some_and(|length| length > limit || seen.len() > HEADER + length) {
            break;
        }
    }
    let whole = if pieces.is_empty() {
        first
    } else {
        pieces.freeze()
    };
    if odd.is_none()
        && let Some(length) = length(&whole)
        && whole.len() == HEADER + length
        && whole.first() == Some(&0)
        && let Ok(question) = Q::decode(whole.slice(HEADER..))
    {
        return Ok(question);
    }
    let seen = [Ok(Frame::data(whole))].into_iter().chain(odd);
    let seen = futures_util::stream::iter(seen);
    Err(Body::new(StreamBody::new(futures_util::StreamExt::chain(
        seen,
        BodyStream::new(body),
    ))))
}

/// What the header of a message says of its length.
fn length(message: &[u8]) -> Option<usize> {
    let bytes = message.get(1..HEADER)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(bytes)).ok()
}

/// None of our answers has metadata of its own.
fn write<R: Message>(answer: tonic::Response<R>) -> Response<Body> {
    let message = answer.into_inner();
    let length = message.encoded_len();
    let Ok(size) = u32::try_from(length) else {
        return Status::resource_exhausted(format!(
            "Cannot return body with more than 4GB of data but got {length} bytes"
        ))
        .into_http();
    };
    let mut data = Vec::with_capacity(HEADER + length);
    data.put_u8(0);
    data.put_u32(size);
    message.encode_raw(&mut data);
    let mut response = Response::new(Body::new(Answer {
        data: Some(data.into()),
        ended: false,
    }));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}

/// A message, and that all went well.
struct Answer {
    data: Option<Bytes>,
    ended: bool,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = if let Some(data) = self.data.take() {
            Some(Frame::data(data))
        } else if self.ended {
            None
        } else {
            self.ended = true;
            let mut trailers = HeaderMap::with_capacity(1);
            trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
            Some(Frame::trailers(trailers))
        };
        Poll::Ready(next.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::PutRequest;

    fn question() -> PutRequest {
        PutRequest {
            key: b"key".into(),
            value: vec![7; 300],
            ..PutRequest::default()
        }
    }

    fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
        let mut framed = vec![flag];
        framed.put_u32(u32::try_from(message.len()).expect("small"));
        framed.extend_from_slice(message);
        framed
    }

    fn in_pieces(bytes: &[u8], of: usize) -> Body {
        let pieces: Vec<_> = bytes
            .chunks(of)
            .map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        Body::new(StreamBody::new(futures_util::stream::iter(pieces)))
    }

    #[tokio::test]
    async fn a_message_is_read_however_it_comes() {
        let bytes = framed(0, &question().encode_to_vec());
        for of in [1, 4, 5, 6, 100, bytes.len()] {
            let read = read::<PutRequest>(in_pieces(&bytes, of), 1000).await;
            assert_eq!(read.ok(), Some(question()), "in pieces of {of}");
        }
    }

    #[tokio::test]
    async fn what_is_not_plain_goes_on_as_it_came() {
        let message = question().encode_to_vec();
        let plain = framed(0, &message);
        let cases = [
            ("nothing", vec![]),
            ("half a header", plain[..3].to_vec()),
            ("half a message", plain[..100].to_vec()),
            ("two messages", [&plain[..], &plain[..]].concat()),
            ("one more byte", [&plain[..], &[0]].concat()),
            ("compressed", framed(1, &message)),
            ("too long", framed(0, &[0; 1001])),
            ("no message", framed(0, &[0xff; 10])),
        ];
        for (what, bytes) in cases {
            for of in [1, 7, bytes.len().max(1)] {
                let Err(body) = read::<PutRequest>(in_pieces(&bytes, of), 1000).await else {
                    panic!("{what} in pieces of {of} was read");
                };
                let again = body.collect().await.expect("a body").to_bytes();
                assert_eq!(again, bytes, "{what} in pieces of {of}");
            }
        }
    }
}
