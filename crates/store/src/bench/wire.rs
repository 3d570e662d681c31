//! Connections to what is measured, plain or encrypted.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::tls;

const CONNECT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection, and what HTTP calls the server.
pub(super) async fn open(
    url: &str,
    connector: Option<&Arc<tls::Connector>>,
) -> Result<(Wire, String)> {
    let (encrypted, authority) = match url.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        _ => bail!("{url}: http://HOST:PORT or https://HOST:PORT can be measured"),
    };
    let authority = authority.trim_end_matches('/');
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect(authority))
        .await
        .with_context(|| format!("{url} does not answer"))?
        .with_context(|| format!("cannot connect to {url}"))?;
    stream.set_nodelay(true)?;
    if !encrypted {
        return Ok((Wire::Plain(stream), authority.to_owned()));
    }
    let connector =
        connector.with_context(|| format!("{url} wants TLS: give --cacert, --cert and --key"))?;
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    let name = tls::server_name(host.trim_matches(['[', ']']))
        .with_context(|| format!("{url}: no name to look for in a certificate"))?;
    let connector = tokio_rustls::TlsConnector::from(connector.get());
    let stream = tokio::time::timeout(CONNECT, connector.connect(name, stream))
        .await
        .with_context(|| format!("{url} does not answer"))?
        .with_context(|| format!("{url}: TLS"))?;
    Ok((Wire::Tls(Box::new(stream)), authority.to_owned()))
}

impl Wire {
    pub(super) fn scheme(&self) -> &'static str {
        match self {
            Self::Plain(_) => "http",
            Self::Tls(_) => "https",
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Poller<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Poller<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<std::io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<std::io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
