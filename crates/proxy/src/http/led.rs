//! A connection to the server that is led through a network with faults, for as long as these are active.
//!
//! What is written to it goes to the near end of a connection through that network, comes out of its far end, and goes on to the
//! server; what the server sends, the other way. A copy of what is on the way is kept: when the fault is over, it goes on
//! at once, however long the network would still have taken to bring it. What is on the way to the server when nobody
//! needs the connection any more does so, too. So what arrives is always what was sent.

use std::convert::Infallible;
use std::fmt;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use mcpscope_core::FaultId;
use mcpscope_hooks::Detour;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::stream::{Half, Stream};

/// What may be on the way in one direction of a connection, in bytes.
pub(super) const MAX_ON_THE_WAY: usize = 64 << 10;
/// What is read at once.
const READ_BYTES: usize = 8 << 10;
/// How often it is looked whether the way is still open, whoever else tells of its end.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// One direction. Its bytes come in at the back: first those that have come out of the network, then those that are in it, then
/// those that are still to go in.
#[derive(Debug, Default)]
struct Way {
    bytes: BytesMut,
    /// How many have come out, and how many have gone in.
    out: usize,
    entered: usize,
}

impl Way {
    fn room(&self) -> usize {
        MAX_ON_THE_WAY.saturating_sub(self.bytes.len())
    }

    /// Takes as many as there is room for.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.bytes.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        taken
    }

    /// Those that may go on.
    fn ready(&self) -> &[u8] {
        self.bytes.get(..self.out).unwrap_or_default()
    }

    /// So many of them have gone on.
    fn went(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
        self.out -= bytes;
        self.entered -= bytes;
    }

    /// There is no network any more: all may go on.
    fn release(&mut self) {
        self.out = self.bytes.len();
        self.entered = self.out;
    }

    /// Has bytes go in at one end, and come out of the other; whether any did.
    fn pass(&mut self, cx: &mut Context<'_>, entry: &mut TcpStream, exit: &mut TcpStream) -> io::Result<bool> {
        let before = (self.out, self.entered);
        while let Some(next @ [_, ..]) = self.bytes.get(self.entered..) {
            match Pin::new(&mut *entry).poll_write(cx, next)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => self.entered += written,
                Poll::Pending => break,
            }
        }
        let mut room = [0; READ_BYTES];
        while self.out < self.entered {
            let most = (self.entered - self.out).min(READ_BYTES);
            let mut buffer = ReadBuf::new(room.get_mut(..most).unwrap_or_default());
            match Pin::new(&mut *exit).poll_read(cx, &mut buffer)? {
                Poll::Ready(()) if buffer.filled().is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
                // Which bytes these are is known.
                Poll::Ready(()) => self.out += buffer.filled().len(),
                Poll::Pending => break,
            }
        }
        Ok((self.out, self.entered) != before)
    }
}

/// Whose network it is, and whether that is still to be used.
struct Gate {
    fault: FaultId,
    is_open: Box<dyn Fn(Instant) -> bool + Send + Sync>,
}

/// A connection to the server that is led through a network.
pub(super) struct Led {
    server: Stream,
    gate: Gate,
    /// Both ends of the way, as long as that is open.
    pair: Option<[TcpStream; 2]>,
    to_server: Way,
    to_client: Way,
    look: Pin<Box<Sleep>>,
    /// How the server has ended what it sends.
    ended: Option<io::Result<()>>,
    /// Why it takes nothing any more.
    refused: Option<io::Error>,
    is_flushed: bool,
}

impl fmt::Debug for Led {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Led").field("fault", &self.gate.fault).field("server", &self.server).finish_non_exhaustive()
    }
}

impl Led {
    /// Leads this connection through the network of a fault.
    pub(super) fn new(server: Stream, detour: Detour, pair: [TcpStream; 2]) -> Self {
        let gate = Gate { fault: detour.fault(), is_open: Box::new(move |now| detour.is_open(now)) };
        Self::through(server, gate, pair)
    }

    fn through(server: Stream, gate: Gate, pair: [TcpStream; 2]) -> Self {
        Self {
            server,
            gate,
            pair: Some(pair),
            to_server: Way::default(),
            to_client: Way::default(),
            look: Box::pin(sleep(LOOK)),
            ended: None,
            refused: None,
            is_flushed: true,
        }
    }

    pub(super) fn fault(&self) -> FaultId {
        self.gate.fault
    }

    /// The connection beneath.
    pub(super) fn server(&self) -> &Stream {
        &self.server
    }

    /// The same, if that is all there is: the fault is over, and nothing is left on the way.
    pub(super) fn freed(self) -> Stream {
        let mut led = self;
        led.server = led.server.freed();
        if led.pair.is_some() && !(led.gate.is_open)(Instant::now()) {
            led.leave();
        }
        let is_empty = led.to_server.bytes.is_empty() && led.to_client.bytes.is_empty() && led.is_flushed;
        if led.pair.is_none() && is_empty && led.ended.is_none() && led.refused.is_none() {
            led.server
        } else {
            Stream::Led(Box::new(led))
        }
    }

    /// Ends what is sent to the server, once all that was taken for it has gone on, past the networks.
    ///
    /// # Errors
    /// The server takes nothing any more.
    pub(super) async fn conclude(&mut self) -> io::Result<()> {
        self.leave_all();
        self.shutdown().await
    }

    /// From here on there is no network, nor one beneath.
    fn leave_all(&mut self) {
        self.leave();
        if let Stream::Led(inner) = &mut self.server {
            inner.leave_all();
        }
    }

    /// From here on there is no network.
    fn leave(&mut self) {
        self.pair = None;
        self.to_server.release();
        self.to_client.release();
    }

    /// Goes on as far as it can now. Whoever is woken for it is to call this again.
    pub(super) fn poll_on(&mut self, cx: &mut Context<'_>) {
        // We may have nothing to write to it, and no room for what it has to read.
        if let Stream::Led(inner) = &mut self.server {
            inner.poll_on(cx);
        }
        while self.pair.is_some() {
            if !(self.gate.is_open)(Instant::now()) {
                self.leave();
            } else if self.look.as_mut().poll(cx).is_pending() {
                break;
            } else {
                self.look.as_mut().reset(tokio::time::Instant::now() + LOOK);
            }
        }
        while self.poll_once(cx) {}
    }

    /// Whether anything has come further.
    fn poll_once(&mut self, cx: &mut Context<'_>) -> bool {
        let mut has_moved = false;
        if let Some([near, far]) = &mut self.pair {
            let passed = self
                .to_server
                .pass(cx, near, far)
                .and_then(|to_server| Ok(self.to_client.pass(cx, far, near)? || to_server));
            match passed {
                Ok(moved) => has_moved = moved,
                // Without a network it goes on without one.
                Err(_) => self.leave(),
            }
        }
        if self.pair.is_none() {
            self.to_server.release();
            self.to_client.release();
        }
        has_moved | self.poll_to_server(cx) | self.poll_from_server(cx)
    }

    fn poll_to_server(&mut self, cx: &mut Context<'_>) -> bool {
        let mut has_moved = false;
        while self.refused.is_none() && !self.to_server.ready().is_empty() {
            match Pin::new(&mut self.server).poll_write(cx, self.to_server.ready()) {
                Poll::Ready(Ok(0)) => self.refused = Some(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => {
                    self.to_server.went(written);
                    (has_moved, self.is_flushed) = (true, false);
                }
                Poll::Ready(Err(error)) => self.refused = Some(error),
                Poll::Pending => break,
            }
        }
        if !self.is_flushed && self.refused.is_none() {
            match Pin::new(&mut self.server).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.is_flushed = true,
                Poll::Ready(Err(error)) => self.refused = Some(error),
                Poll::Pending => {}
            }
        }
        has_moved
    }

    fn poll_from_server(&mut self, cx: &mut Context<'_>) -> bool {
        let mut has_moved = false;
        let mut room = [0; READ_BYTES];
        while self.ended.is_none() && self.to_client.room() > 0 {
            let most = self.to_client.room().min(READ_BYTES);
            let mut buffer = ReadBuf::new(room.get_mut(..most).unwrap_or_default());
            match Pin::new(&mut self.server).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => self.ended = Some(Ok(())),
                Poll::Ready(Ok(())) => {
                    self.to_client.take(buffer.filled());
                    has_moved = true;
                }
                Poll::Ready(Err(error)) => self.ended = Some(Err(error)),
                Poll::Pending => break,
            }
        }
        has_moved
    }
}

impl AsyncRead for Led {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let led = self.get_mut();
        led.poll_on(cx);
        let ready = led.to_client.ready();
        if !ready.is_empty() {
            let read = ready.len().min(into.remaining());
            into.put_slice(ready.get(..read).unwrap_or_default());
            led.to_client.went(read);
            return Poll::Ready(Ok(()));
        }
        match &mut led.ended {
            Some(how) if led.to_client.bytes.is_empty() => Poll::Ready(std::mem::replace(how, Ok(()))),
            _ => Poll::Pending,
        }
    }
}

impl AsyncWrite for Led {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let led = self.get_mut();
        led.poll_on(cx);
        if let Some(error) = &led.refused {
            return Poll::Ready(Err(again(error)));
        }
        let taken = led.to_server.take(bytes);
        if taken == 0 && !bytes.is_empty() {
            return Poll::Pending;
        }
        led.poll_on(cx);
        Poll::Ready(Ok(taken))
    }

    /// What was taken is on its way, as what is in a socket.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let led = self.get_mut();
        led.poll_on(cx);
        Poll::Ready(led.refused.as_ref().map_or(Ok(()), |error| Err(again(error))))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let led = self.get_mut();
        led.poll_on(cx);
        match &led.refused {
            Some(error) => Poll::Ready(Err(again(error))),
            None if led.to_server.bytes.is_empty() => Pin::new(&mut led.server).poll_shutdown(cx),
            None => Poll::Pending,
        }
    }
}

/// An error of a connection, which stays as it is.
fn again(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

/// Keeps what is on the way going, while nobody else asks for it. It is never done.
pub(super) async fn keep_on(led: Option<Half<'_, Led>>) -> Infallible {
    let Some(led) = led else { return pending().await };
    poll_fn(|cx| {
        led.with(|led| led.poll_on(cx));
        Poll::Pending
    })
    .await
}

/// The same for a connection that nobody asks anything.
pub(super) async fn keep_quiet_on(stream: Option<&mut Stream>) -> Infallible {
    let Some(Stream::Led(led)) = stream else { return pending().await };
    poll_fn(|cx| {
        led.poll_on(cx);
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests;
