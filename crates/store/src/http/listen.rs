//! Listeners: one per URL, with or without TLS.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tower_service::Service;

use super::Peer;
use super::streams::Streams;
use crate::tls;

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves until the task is dropped.
pub async fn serve<S>(listener: TcpListener, tls: Option<Arc<tls::Acceptor>>, service: S)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: those that end make room.
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (tls, service) = (tls.clone(), service.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            match tls {
                None => connection(stream, Peer::default(), service).await,
                Some(tls) => encrypted(stream, from, &tls, service).await,
            }
        });
    }
}

async fn encrypted<S>(stream: TcpStream, from: SocketAddr, tls: &tls::Acceptor, service: S)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    let acceptor = tokio_rustls::TlsAcceptor::from(tls.get());
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let common_name = tls::common_name(stream.get_ref().1.peer_certificates());
            connection(stream, Peer { common_name }, service).await;
        }
        Ok(Err(error)) => tracing::warn!(%from, "rejected connection: {error}"),
        Err(_) => tracing::debug!(%from, "a TLS handshake took too long"),
    }
}

async fn connection<I, S>(stream: I, peer: Peer, service: S)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        if peer.common_name.is_some() {
            request.extensions_mut().insert(peer.clone());
        }
        service.clone().call(request)
    });
    let streams = Streams::default();
    let mut builder = auto::Builder::new(streams.clone());
    builder
        .http1()
        // Scripts look for `X-Etcd-Index`, as Go writes it.
        .title_case_headers(true)
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(None)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(Duration::from_secs(7200))
        .keep_alive_timeout(Duration::from_secs(20));
    // How a connection ends is the client's business.
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let _ = streams.run(connection).await;
}
