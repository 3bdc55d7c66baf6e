//! Limits on how long a peer may take to say anything, and how long it may leave what is written to it lying.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// As many bytes as it takes to tell HTTP/2 from HTTP/1. No request is shorter that a sound client sends.
const BEGINNING: usize = 24;

/// How patient a [`StallLimit`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StallLimits {
    /// How long the first 24 bytes may take.
    pub beginning: Duration,
    /// How long a write may wait without the peer taking a byte.
    pub write: Duration,
}

/// A stream whose writes fail once the peer has taken nothing for some time, and whose reads fail if it has not even sent the
/// beginning of a request in time; both with [`ErrorKind::TimedOut`].
///
/// Without it a client that asks and never reads would hold its connection, and the answer in memory, for ever; and one
/// that never says whether it speaks HTTP/1 or HTTP/2 would not fall under the limits of either.
#[derive(Debug)]
pub struct StallLimit<S, F> {
    stream: S,
    write_limit: Duration,
    on_stall: F,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
    /// How many bytes are missing from the beginning, and until when they must have come.
    beginning: Option<(usize, Pin<Box<Sleep>>)>,
}

impl<S, F: FnMut() + Unpin> StallLimit<S, F> {
    /// Limits `stream`; `on_stall` is called when a write has waited too long.
    pub fn new(stream: S, limits: StallLimits, on_stall: F) -> Self {
        let beginning = Some((BEGINNING, Box::pin(sleep(limits.beginning))));
        Self { stream, write_limit: limits.write, on_stall, waiting: None, beginning }
    }

    fn limited<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let limit = self.write_limit;
        ready!(self.waiting.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
        self.waiting = None;
        (self.on_stall)();
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin, F: FnMut() + Unpin> AsyncRead for StallLimit<S, F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some((missing, deadline)) = &mut self.beginning {
            if read.is_pending() {
                ready!(deadline.as_mut().poll(cx));
                return Poll::Ready(Err(ErrorKind::TimedOut.into()));
            }
            *missing = missing.saturating_sub(buf.filled().len() - before);
            if *missing == 0 {
                self.beginning = None;
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin, F: FnMut() + Unpin> AsyncWrite for StallLimit<S, F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.limited(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.limited(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.limited(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.limited(cx, closed)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;

    const LIMITS: StallLimits = StallLimits { beginning: Duration::from_secs(10), write: Duration::from_secs(30) };

    #[tokio::test(start_paused = true)]
    async fn a_peer_must_begin_in_time_and_may_be_silent_after_that() {
        let (mut client, server) = duplex(64);
        let mut server = StallLimit::new(server, LIMITS, || {});
        let begun = Instant::now();
        client.write_all(&[0; BEGINNING - 1]).await.unwrap();
        server.read_exact(&mut [0; BEGINNING - 1]).await.unwrap();
        assert_eq!(server.read_u8().await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), LIMITS.beginning);

        let (mut client, server) = duplex(64);
        let mut server = StallLimit::new(server, LIMITS, || {});
        client.write_all(&[0; BEGINNING]).await.unwrap();
        server.read_exact(&mut [0; BEGINNING]).await.unwrap();
        let silent = tokio::time::timeout(100 * LIMITS.beginning, server.read_u8());
        silent.await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_write_that_nothing_is_taken_of_fails() {
        let (mut client, server) = duplex(64);
        let mut stalls = 0;
        let mut server = StallLimit::new(server, LIMITS, || stalls += 1);
        let slow = async {
            for _ in 0..10 {
                tokio::time::sleep(LIMITS.write / 2).await;
                client.read_exact(&mut [0; 64]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(server.write_all(&[0; 64 * 11]), slow);
        written.unwrap();
        let begun = Instant::now();
        assert_eq!(server.write_all(&[0; 64]).await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), LIMITS.write);
        drop(server);
        assert_eq!(stalls, 1);
    }
}
