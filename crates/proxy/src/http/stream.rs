//! Connections, plain or with TLS, and the way that they take.

use std::future::pending;
use std::io::{self, IoSlice};
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use mcpscope_core::FaultId;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, tcp};
use tokio_rustls::TlsStream;

use super::led::Led;

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Either, or one that is led itself.
    Led(Box<Led>),
}

impl Stream {
    /// Both directions at once.
    pub(super) fn split(&mut self) -> (Reader<'_>, Writer<'_>) {
        match self {
            Self::Plain(stream) => {
                let (reader, writer) = stream.split();
                (Reader::Plain(reader), Writer::Plain(writer))
            }
            Self::Tls(stream) => {
                let half = Half::of(&mut **stream);
                (Reader::Tls(half.clone()), Writer::Tls(half))
            }
            Self::Led(stream) => {
                let half = Half::of(&mut **stream);
                (Reader::Led(half.clone()), Writer::Led(half))
            }
        }
    }

    /// Lets the peer see an error instead of an end when it is dropped.
    pub(super) fn reset(&self) {
        // What the system refuses ends like any other.
        let _ = self.tcp().set_zero_linger();
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
            Self::Led(stream) => stream.server().tcp(),
        }
    }

    /// The faults whose networks it is led through, the last first.
    pub(super) fn leaders(&self) -> impl Iterator<Item = FaultId> {
        let through = std::iter::successors(self.as_led(), |led| led.server().as_led());
        through.map(Led::fault)
    }

    fn as_led(&self) -> Option<&Led> {
        if let Self::Led(led) = self { Some(led) } else { None }
    }

    /// Without the networks of faults that are over.
    pub(super) fn freed(self) -> Self {
        if let Self::Led(led) = self { led.freed() } else { self }
    }

    /// Whether an end has to be said before it is dropped, or it is taken for an error.
    pub(super) fn says_its_end(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(_) => true,
            Self::Led(stream) => stream.server().says_its_end(),
        }
    }
}

/// What can be read, and watched while nothing is read from it.
pub(super) trait Source: AsyncRead + Unpin {
    /// Waits until the peer has reset the connection, and says so, though something may be left to read.
    fn until_reset(&self) -> impl Future<Output = io::Error> + Send;

    /// Waits until the peer has ended the connection, one way or the other, and says how, though something may be left to
    /// read. It is heard of no sooner than the system has room for everything that was sent before.
    fn until_ended(&self) -> impl Future<Output = io::Error> + Send;
}

impl Source for Stream {
    async fn until_reset(&self) -> io::Error {
        until_reset(self.tcp()).await
    }

    async fn until_ended(&self) -> io::Error {
        until_ended(apart(self.tcp())).await
    }
}

impl Source for Reader<'_> {
    async fn until_reset(&self) -> io::Error {
        match self {
            Self::Plain(stream) => until_reset(stream.as_ref()).await,
            Self::Tls(stream) => {
                let apart = stream.with(|stream| apart(stream.get_ref().0));
                let Ok(apart) = apart else { return pending().await };
                until_reset(&apart).await
            }
            Self::Led(stream) => {
                let apart = stream.with(|stream| apart(stream.server().tcp()));
                let Ok(apart) = apart else { return pending().await };
                until_reset(&apart).await
            }
        }
    }

    async fn until_ended(&self) -> io::Error {
        until_ended(match self {
            Self::Plain(stream) => apart(stream.as_ref()),
            Self::Tls(stream) => stream.with(|stream| apart(stream.get_ref().0)),
            Self::Led(stream) => stream.with(|stream| apart(stream.server().tcp())),
        })
        .await
    }
}

async fn until_reset(stream: &TcpStream) -> io::Error {
    stream.ready(Interest::ERROR).await.err().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
}

async fn until_ended(apart: io::Result<TcpStream>) -> io::Error {
    // Without a descriptor to spare, whoever waits is told by the next thing that is written.
    let Ok(apart) = apart else { return pending().await };
    loop {
        match apart.ready(Interest::READABLE).await {
            Ok(ready) if ready.is_read_closed() => return io::ErrorKind::UnexpectedEof.into(),
            // There is more to read, which is left where it is.
            Ok(_) => drop(apart.try_io::<()>(Interest::READABLE, || Err(io::ErrorKind::WouldBlock.into()))),
            Err(error) => return error,
        }
    }
}

/// The same connection, watched apart: to wait for more than is there already would hide from the connection itself that
/// there is anything.
fn apart(stream: &TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream.as_fd().try_clone_to_owned()?.into())
}

/// One direction of a connection that shares its state with the other.
#[derive(Debug)]
pub(super) struct Half<'a, T>(Arc<Mutex<&'a mut T>>);

impl<T> Clone for Half<'_, T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<'a, T> Half<'a, T> {
    fn of(stream: &'a mut T) -> Self {
        Self(Arc::new(Mutex::new(stream)))
    }

    pub(super) fn with<R>(&self, does: impl FnOnce(&mut T) -> R) -> R {
        does(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Half<'_, T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| Pin::new(stream).poll_read(cx, into))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Half<'_, T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|stream| Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|stream| Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| Pin::new(stream).poll_shutdown(cx))
    }
}

/// What is read of a connection.
#[derive(Debug)]
pub(super) enum Reader<'a> {
    Plain(tcp::ReadHalf<'a>),
    Tls(Half<'a, TlsStream<TcpStream>>),
    Led(Half<'a, Led>),
}

impl<'a> Reader<'a> {
    /// What keeps the connection going, if it is led through a network.
    pub(super) fn led(&self) -> Option<Half<'a, Led>> {
        if let Self::Led(led) = self { Some(led.clone()) } else { None }
    }
}

/// What is written to a connection.
#[derive(Debug)]
pub(super) enum Writer<'a> {
    Plain(tcp::WriteHalf<'a>),
    Tls(Half<'a, TlsStream<TcpStream>>),
    Led(Half<'a, Led>),
}

/// Does the same to whichever it is.
macro_rules! either {
    ($self:expr, $stream:ident => $does:expr) => {
        match $self.get_mut() {
            Self::Plain($stream) => $does,
            Self::Tls($stream) => $does,
            Self::Led($stream) => $does,
        }
    };
}

macro_rules! reads {
    ($($type:ty),*) => {$(
        impl AsyncRead for $type {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                either!(self, stream => Pin::new(stream).poll_read(cx, into))
            }
        }
    )*};
}

macro_rules! writes {
    ($($type:ty),*) => {$(
        impl AsyncWrite for $type {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                either!(self, stream => Pin::new(stream).poll_write(cx, bytes))
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                either!(self, stream => Pin::new(stream).poll_write_vectored(cx, slices))
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                either!(self, stream => Pin::new(stream).poll_flush(cx))
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                either!(self, stream => Pin::new(stream).poll_shutdown(cx))
            }
        }
    )*};
}

reads!(Stream, Reader<'_>);
writes!(Stream, Writer<'_>);
