//! Room for HTTP/2 connections, which may last for as long as their clients like.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// What every HTTP/2 connection begins with, and no request of HTTP/1.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The HTTP/2 connections, of which only so many are open: one more ends the oldest.
///
/// No time limit falls on such a connection while it answers pings. If the newcomer had to go instead, whoever holds all the
/// places would hold them for ever.
#[derive(Debug)]
pub(crate) struct Http2<F> {
    max: usize,
    on_evicted: F,
    /// Oldest first; those that have ended by themselves are dead.
    open: Mutex<VecDeque<Weak<Notify>>>,
}

impl<F: Fn()> Http2<F> {
    /// Room for `max` connections, at least 1; `on_evicted` is called for each that has to go.
    pub(crate) fn new(max: usize, on_evicted: F) -> Self {
        Self { max: max.max(1), on_evicted, open: Mutex::default() }
    }

    /// Lets one in that is to end once `end` is told so; it is open for as long as `end` lives.
    fn enter(&self, end: &Arc<Notify>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|one| one.strong_count() > 0);
        open.push_back(Arc::downgrade(end));
        if open.len() > self.max
            && let Some(oldest) = open.pop_front().and_then(|oldest| oldest.upgrade())
        {
            oldest.notify_one();
            (self.on_evicted)();
        }
    }
}

/// A stream that takes a place among the HTTP/2 connections once it turns out to be one.
#[derive(Debug)]
pub(crate) struct Told<S, F> {
    stream: S,
    /// How much of the preface has come, as long as it may be one.
    matched: Option<usize>,
    places: Arc<Http2<F>>,
    end: Arc<Notify>,
}

impl<S, F: Fn()> Told<S, F> {
    /// `end` is told when the connection is to end.
    pub(crate) fn new(stream: S, places: Arc<Http2<F>>, end: Arc<Notify>) -> Self {
        Self { stream, matched: Some(0), places, end }
    }

    fn look(&mut self, read: &[u8]) {
        let Some(matched) = self.matched.filter(|_| !read.is_empty()) else { return };
        let rest = &PREFACE[matched..];
        let common = rest.len().min(read.len());
        self.matched = (rest[..common] == read[..common]).then_some(matched + common);
        if self.matched == Some(PREFACE.len()) {
            self.matched = None;
            self.places.enter(&self.end);
        }
    }
}

impl<S: AsyncRead + Unpin, F: Fn()> AsyncRead for Told<S, F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.look(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin, F> AsyncWrite for Told<S, F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, empty, join};

    use super::*;

    fn is_ended(end: &Notify) -> bool {
        pin!(end.notified()).now_or_never().is_some()
    }

    /// What becomes of a connection that sends these pieces.
    async fn read<F: Fn()>(places: &Arc<Http2<F>>, pieces: [&[u8]; 2]) -> Arc<Notify> {
        let end = Arc::new(Notify::new());
        let mut stream = Told::new(join(pieces[0].chain(pieces[1]), empty()), Arc::clone(places), Arc::clone(&end));
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        end
    }

    #[tokio::test]
    async fn one_more_ends_the_oldest() {
        let evicted = AtomicUsize::new(0);
        let places = Arc::new(Http2::new(2, || _ = evicted.fetch_add(1, Ordering::Relaxed)));
        let first = read(&places, [PREFACE, b"and more"]).await;
        // In pieces, of any size.
        let second = read(&places, PREFACE.split_at(7).into()).await;
        for other in [[b"GET / HTTP/1.1\r\n".as_slice(), PREFACE], [&PREFACE[..20], b"PRI"], [&PREFACE[..23], b""]] {
            read(&places, other).await;
        }
        assert!(!is_ended(&first) && !is_ended(&second));
        // One that has ended by itself has left its place.
        drop(second);
        let third = read(&places, [PREFACE, b""]).await;
        assert!(!is_ended(&first) && !is_ended(&third));
        let fourth = read(&places, [PREFACE, b""]).await;
        assert!(is_ended(&first) && !is_ended(&third) && !is_ended(&fourth));
        assert_eq!(evicted.load(Ordering::Relaxed), 1);
    }
}
