//! Connections to other members, with TLS where the URL says so.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use crate::tls;

const CONNECT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is no URL")]
    Url(String),
    #[error("{0} wants TLS, but there is no certificate for it")]
    NoTls(String),
    #[error("{url}: {what}")]
    Connect { url: String, what: String },
}

fn endpoint(url: &str) -> Result<Endpoint, Error> {
    // The connector below encrypts; to the library the URL is a plain one.
    let plain = url.replacen("https://", "http://", 1);
    Ok(Endpoint::from_shared(plain)
        .map_err(|_| Error::Url(url.to_owned()))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .initial_stream_window_size(Some(4 << 20))
        .initial_connection_window_size(Some(8 << 20))
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(3)))
}

type Stream = TokioIo<Box<dyn Both>>;

trait Both: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Both for T {}

async fn dial(uri: Uri, tls: Option<Arc<tls::Connector>>) -> std::io::Result<Stream> {
    let host = uri
        .host()
        .unwrap_or_default()
        .trim_matches(['[', ']'])
        .to_owned();
    let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(2380))).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else {
        return Ok(TokioIo::new(Box::new(stream)));
    };
    let connector = tokio_rustls::TlsConnector::from(tls.get());
    let stream = connector.connect(tls::server_name(&host)?, stream).await?;
    Ok(TokioIo::new(Box::new(stream)))
}

fn connector(
    url: &str,
    tls: Option<Arc<tls::Connector>>,
) -> Result<
    impl tower_service::Service<
        Uri,
        Response = Stream,
        Error = std::io::Error,
        Future = impl Future<Output = std::io::Result<Stream>> + Send,
    > + Send
    + Clone
    + 'static,
    Error,
> {
    let tls = if url.starts_with("https://") {
        Some(tls.ok_or_else(|| Error::NoTls(url.to_owned()))?)
    } else {
        None
    };
    Ok(Dial(tls))
}

#[derive(Clone)]
struct Dial(Option<Arc<tls::Connector>>);

impl tower_service::Service<Uri> for Dial {
    type Response = Stream;
    type Error = std::io::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = std::io::Result<Stream>> + Send>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(dial(uri, self.0.clone()))
    }
}

pub async fn connect(url: &str, tls: Option<Arc<tls::Connector>>) -> Result<Channel, Error> {
    let connector = connector(url, tls)?;
    let endpoint = endpoint(url)?;
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|error| Error::Connect {
            url: url.to_owned(),
            what: source(&error),
        })
}

/// Connects when it is used.
pub fn lazy(url: &str, tls: Option<Arc<tls::Connector>>) -> Result<Channel, Error> {
    Ok(endpoint(url)?.connect_with_connector_lazy(connector(url, tls)?))
}

/// The cause, which says more than "transport error".
fn source(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}
