//! Sockets that tell the calls among what they are given when they were written.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use mcpscope_hooks::Departure;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::framing::Share;

/// What was handed to a connection, and is not yet known to be in its socket.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    any: AtomicBool,
    waiting: Mutex<Vec<Leaving>>,
}

/// The calls that leave with some bytes, and what those took from the budget.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    pub(super) departure: Option<Departure>,
    pub(super) share: Option<Share>,
}

impl Outbox {
    /// These are the next bytes, or the end, that the connection is handed.
    pub(super) fn put(&self, leaving: Leaving) {
        if leaving.departure.is_some() || leaving.share.is_some() {
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(leaving);
            self.any.store(true, Ordering::Release);
        }
    }

    /// What was handed to the connection will never be in its socket.
    pub(super) fn forget(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Everything that was handed to the connection is in the socket.
    fn flushed(&self) {
        if self.any.load(Ordering::Relaxed) && self.any.swap(false, Ordering::Acquire) {
            let now = Instant::now();
            self.waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .drain(..)
                .for_each(|leaving| leaving.departure.into_iter().for_each(|departure| departure.sent(now)));
        }
    }
}

/// A socket with an outbox. The connection over it flushes when it has written all that it was handed.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    outbox: Arc<Outbox>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, outbox: Arc<Outbox>) -> Self {
        Self { stream, outbox }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.outbox.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
