//! A gRPC client that does little, because what it costs is taken from the server that it measures: both share the
//! processors. It looks at the status of an answer and not into it.

use std::sync::Arc;

use anyhow::{Result, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header};
use prost::Message;

use super::wire;
use crate::tls;

/// Length and a flag before each message.
const HEAD: usize = 5;

/// The calls that are made.
#[derive(Debug, Clone, Copy)]
pub(super) enum Call {
    Put,
    Range,
    Txn,
    Compact,
    LeaseGrant,
    Watch,
    Defragment,
}

impl Call {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Put => "/etcdserverpb.KV/Put",
            Self::Range => "/etcdserverpb.KV/Range",
            Self::Txn => "/etcdserverpb.KV/Txn",
            Self::Compact => "/etcdserverpb.KV/Compact",
            Self::LeaseGrant => "/etcdserverpb.Lease/LeaseGrant",
            Self::Watch => "/etcdserverpb.Watch/Watch",
            Self::Defragment => "/etcdserverpb.Maintenance/Defragment",
        }
    }
}

/// One connection, shared by its clones.
#[derive(Clone)]
pub(super) struct Connection {
    sender: SendRequest<Bytes>,
    scheme: &'static str,
    authority: String,
}

pub(super) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(HEAD + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // A buffer that grows cannot be too small.
    let _ = message.encode(&mut out);
    out.freeze()
}

fn check(headers: &HeaderMap) -> Result<bool> {
    match headers.get("grpc-status").map(HeaderValue::as_bytes) {
        None => Ok(false),
        Some(b"0") => Ok(true),
        Some(code) => {
            let message = headers.get("grpc-message").and_then(|m| m.to_str().ok());
            bail!(
                "{} (code {})",
                message.unwrap_or_default(),
                String::from_utf8_lossy(code)
            )
        }
    }
}

impl Connection {
    pub(super) async fn open(url: &str, tls: Option<&Arc<tls::Connector>>) -> Result<Self> {
        let (stream, authority) = wire::open(url, tls).await?;
        let scheme = stream.scheme();
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .handshake(stream)
            .await?;
        tokio::spawn(async move {
            // Whoever waits for an answer is told.
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            scheme,
            authority,
        })
    }

    async fn start(&mut self, call: Call) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        let uri = Uri::builder()
            .scheme(self.scheme)
            .authority(self.authority.as_str())
            .path_and_query(call.path())
            .build()?;
        let request = Request::builder()
            .method(Method::POST)
            .version(Version::HTTP_2)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(())?;
        let mut sender = self.sender.clone().ready().await?;
        Ok(sender.send_request(request, false)?)
    }

    /// One question, one answer, which is left unread.
    pub(super) async fn call(&mut self, call: Call, message: &impl Message) -> Result<()> {
        self.exchange(call, message, |_| {}).await
    }

    /// One question, one answer.
    pub(super) async fn ask<A: Message + Default>(
        &mut self,
        call: Call,
        message: &impl Message,
    ) -> Result<A> {
        let mut answer = BytesMut::new();
        self.exchange(call, message, |piece| answer.extend_from_slice(piece))
            .await?;
        let Some(body) = answer.get(HEAD..) else {
            bail!("an answer without a message");
        };
        Ok(A::decode(body)?)
    }

    async fn exchange(
        &mut self,
        call: Call,
        message: &impl Message,
        mut take: impl FnMut(&[u8]),
    ) -> Result<()> {
        let (response, mut send) = self.start(call).await?;
        send.send_data(frame(message), true)?;
        let (head, mut body) = response.await?.into_parts();
        if check(&head.headers)? {
            bail!("an answer without a message");
        }
        while let Some(piece) = body.data().await {
            let piece = piece?;
            body.flow_control().release_capacity(piece.len())?;
            take(&piece);
        }
        let trailers = body.trailers().await?.unwrap_or_default();
        if !check(&trailers)? {
            bail!("an answer without a status");
        }
        Ok(())
    }

    /// Questions that are sent at once, and a stream of answers. The stream of questions stays open with the first part.
    pub(super) async fn stream(
        &mut self,
        call: Call,
        questions: Bytes,
    ) -> Result<(SendStream<Bytes>, Messages)> {
        let (response, mut send) = self.start(call).await?;
        send.send_data(questions, false)?;
        let (head, body) = response.await?.into_parts();
        check(&head.headers)?;
        let messages = Messages {
            body,
            buffer: BytesMut::new(),
        };
        Ok((send, messages))
    }
}

/// The messages of a stream.
pub(super) struct Messages {
    body: RecvStream,
    buffer: BytesMut,
}

impl Messages {
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(head) = self.buffer.get(..HEAD) {
                let length = head[1..].try_into().map_or(0, u32::from_be_bytes);
                let end = HEAD + usize::try_from(length)?;
                if self.buffer.len() >= end {
                    let message = self.buffer.split_to(end).freeze();
                    return Ok(Some(message.slice(HEAD..)));
                }
            }
            let Some(piece) = self.body.data().await else {
                return Ok(None);
            };
            let piece = piece?;
            self.body.flow_control().release_capacity(piece.len())?;
            self.buffer.extend_from_slice(&piece);
        }
    }
}
