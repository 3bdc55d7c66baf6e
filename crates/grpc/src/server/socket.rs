//! The two limits of a connection that HTTP/2 itself does not see to: its beginning, and a peer that takes nothing.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mcpscope_hub::Reader;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::SLOW;

/// `PRI * HTTP/2.0` and what follows. Keep-alive pings begin after it.
const PREFACE_BYTES: usize = 24;

/// A TCP stream that fails when the client does not begin in time, and when it takes nothing for too long.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    /// Runs until the preface is there.
    handshake: Option<Pin<Box<Sleep>>>,
    preface_left: usize,
    write_limit: Duration,
    /// Runs while a write waits.
    write: Option<Pin<Box<Sleep>>>,
    reader: Reader,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, handshake: Duration, write_limit: Duration, reader: Reader) -> Self {
        let handshake = Some(Box::pin(sleep(handshake)));
        Self { stream, handshake, preface_left: PREFACE_BYTES, write_limit, write: None, reader }
    }

    fn limited<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write = None;
            return written;
        }
        let limit = self.write_limit;
        ready!(self.write.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
        self.write = None;
        self.reader.dropped(SLOW);
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(handshake) = &mut self.handshake {
            if read.is_pending() {
                ready!(handshake.as_mut().poll(cx));
                return Poll::Ready(Err(ErrorKind::TimedOut.into()));
            }
            self.preface_left = self.preface_left.saturating_sub(buf.filled().len() - before);
            if self.preface_left == 0 {
                self.handshake = None;
            }
        }
        read
    }
}

impl AsyncWrite for Socket {
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
