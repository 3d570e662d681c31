//! What a client still sends after it was answered is read and thrown away, up to a bound.
//!
//! A connection that is closed while bytes are on their way to us is reset, and a reset takes away
//! the answer that the client has not read yet: it would see a broken pipe where we said 401 or 413
//! (RFC 9112, section 9.6). Many clients send their whole body before they read anything. Reading on
//! costs nothing but time, and keeps the connection for the next request.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::EXPECT;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;

/// So much of an unwanted body, for so long; after that the connection is closed.
const MOST: u64 = 256 << 20;
const LONGEST: Duration = Duration::from_secs(30);

/// Puts the body into a [`Lingering`].
pub(super) fn linger(request: Request) -> Request {
    let waits = request.headers().contains_key(EXPECT);
    request.map(|inner| {
        Body::new(Lingering {
            inner,
            // To read is to tell such a client to send: who is refused shall not.
            wanted: !waits,
        })
    })
}

/// A body whose rest is read by itself once nobody wants it any more.
struct Lingering {
    inner: Body,
    wanted: bool,
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.wanted = true;
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        // After the end, or an error, there is no rest.
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            self.wanted = false;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if !self.wanted || self.inner.is_end_stream() {
            return;
        }
        let rest = std::mem::take(&mut self.inner);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(drain(rest, MOST, LONGEST));
        }
    }
}

/// Gives how much there was.
async fn drain(mut rest: Body, most: u64, longest: Duration) -> u64 {
    let mut read = 0;
    let reading = async {
        while let Some(Ok(frame)) = rest.frame().await {
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
            if read > most {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(longest, reading).await;
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives `one` again and again; pends for ever after `times`.
    struct Endless {
        one: &'static [u8],
        times: usize,
    }

    impl HttpBody for Endless {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
            match self.times.checked_sub(1) {
                Some(left) => {
                    self.times = left;
                    Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(self.one)))))
                }
                None => Poll::Pending,
            }
        }
    }

    #[tokio::test]
    async fn neither_much_nor_long() {
        let one = &[0; 1000];
        let endless = |times| Body::new(Endless { one, times });
        let hour = Duration::from_secs(3600);
        assert_eq!(drain(endless(usize::MAX), 2_500, hour).await, 3_000);
        let moment = Duration::from_millis(1);
        assert_eq!(drain(endless(2), 2_500, moment).await, 2_000);
        assert_eq!(drain(Body::from("short"), 2_500, hour).await, 5);
    }
}
