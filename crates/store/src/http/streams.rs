//! The streams of a connection, run by the connection's own task: what they answer leaves together, a hundred answers
//! of one sync wake each connection once, and no call costs a task of the runtime. What computes for long has to go
//! to a task of its own, or the connection's other calls wait for it.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use axum::body::Body;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::Response;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::Answer;

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes the streams that a connection opens.
#[derive(Clone, Default)]
pub(super) struct Streams(Arc<Mutex<Vec<Stream>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.0.lock().push(Box::pin(stream));
    }
}

impl Streams {
    /// Runs a connection and what it opens, until it ends.
    pub(super) async fn run<T>(&self, connection: impl Future<Output = T>) -> T {
        let mut connection = pin!(connection);
        let mut running = FuturesUnordered::new();
        poll_fn(|task| {
            if let Poll::Ready(end) = connection.as_mut().poll(task) {
                return Poll::Ready(end);
            }
            running.extend(self.0.lock().drain(..));
            // What they have to send wakes the connection, so it is this task's turn again at once.
            while let Poll::Ready(Some(())) = running.poll_next_unpin(task) {}
            Poll::Pending
        })
        .await
    }
}

/// A call with a task of its own, which ends when nobody waits for it any more.
pub(super) fn apart(
    call: impl Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
) -> Answer {
    Box::pin(async move {
        let mut task = JoinSet::new();
        task.spawn(call);
        match task.join_next().await {
            Some(Ok(answer)) => answer,
            Some(Err(error)) if error.is_panic() => resume_unwind(error.into_panic()),
            // Only a runtime that ends cancels it.
            Some(Err(_)) | None => std::future::pending().await,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::rt::Executor as _;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn streams_run_beside_their_connection() {
        let streams = Streams::default();
        let (first, again) = (oneshot::channel(), oneshot::channel());
        let opener = streams.clone();
        let connection = async move {
            opener.execute(async move {
                let _ = first.0.send(1);
            });
            let one = first.1.await.expect("it runs");
            opener.execute(async move {
                tokio::task::yield_now().await;
                let _ = again.0.send(one + 1);
            });
            again.1.await.expect("it runs")
        };
        assert_eq!(streams.run(connection).await, 2);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_call_that_was_given_up() {
        let (guard, held) = oneshot::channel::<()>();
        let call = apart(async move {
            let _guard = guard;
            std::future::pending().await
        });
        let waits = tokio::time::timeout(std::time::Duration::from_millis(1), call);
        assert!(waits.await.is_err());
        assert!(held.await.is_err());
    }

    #[tokio::test]
    async fn they_end_with_it() {
        let streams = Streams::default();
        let (guard, held) = oneshot::channel::<()>();
        streams.execute(async move {
            let _guard = guard;
            std::future::pending().await
        });
        streams.run(tokio::task::yield_now()).await;
        assert!(held.await.is_err());
    }
}
