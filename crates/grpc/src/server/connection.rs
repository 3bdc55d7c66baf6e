//! One connection: HTTP/2 and its calls, all in one future, so that nothing is left of them when it is dropped.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use mcpscope_accept::Activity;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};

use super::SLOW;
use super::gate::Gate;
use super::stall;

/// Calls at a time on one connection; the client holds back further ones.
const MAX_CALLS: u32 = 100;
/// Calls that go on before the other connections, and whoever else is on the thread, have their turn.
const CALLS_A_TURN: usize = 8;
/// Longest list of headers, in bytes; a longer one is answered 431.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// How long nothing may come before the client is asked whether it is there, and how long it may take to say so.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));

type Call = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Hands the calls that HTTP/2 begins to the connection that they came on.
#[derive(Clone, Debug)]
struct Calls {
    begun: mpsc::UnboundedSender<Call>,
    activity: Activity,
    subscriber_timeout: Duration,
    turn: Turn,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Calls {
    fn execute(&self, call: F) {
        let (under_way, limited) = (self.activity.begin(), stall::limited(call, self.subscriber_timeout));
        let call = async move {
            let _under_way = under_way;
            limited.await
        };
        // It fails when the connection is ending, and its calls with it.
        let _ = self.begun.send(Box::pin(self.turn.share(call)));
    }
}

/// What a connection may still do before others have their turn.
#[derive(Clone, Debug, Default)]
struct Turn(Arc<Left>);

#[derive(Debug, Default)]
struct Left {
    calls: AtomicUsize,
    has_read: AtomicBool,
}

impl Turn {
    /// Runs what all who share the turn are part of.
    async fn run<T>(&self, whole: impl Future<Output = T>) -> T {
        let mut whole = pin!(whole);
        poll_fn(|cx| {
            self.0.calls.store(CALLS_A_TURN, Ordering::Relaxed);
            self.0.has_read.store(false, Ordering::Relaxed);
            whole.as_mut().poll(cx)
        })
        .await
    }

    /// A part that goes on in its turn.
    fn share<F: Future>(&self, part: F) -> impl Future<Output = F::Output> + use<F> {
        let turn = self.clone();
        async move {
            let mut part = pin!(part);
            poll_fn(|cx| {
                let left = turn.0.calls.load(Ordering::Relaxed);
                if left == 0 {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                turn.0.calls.store(left - 1, Ordering::Relaxed);
                part.as_mut().poll(cx)
            })
            .await
        }
    }
}

/// Is read once in a turn. HTTP/2 would read all that there is, and take a client that sends many small messages for an
/// attacker, because the call that they are for had no chance to take any.
struct OneRead<S> {
    stream: S,
    turn: Turn,
}

impl<S: AsyncRead + Unpin> AsyncRead for OneRead<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.turn.0.has_read.load(Ordering::Relaxed) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.turn.0.has_read.store(read.is_ready(), Ordering::Relaxed);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for OneRead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
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

/// Serves one connection until the client ends it; once `stopping` has no sender any more, until its calls have ended.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    gate: Gate,
    activity: Activity,
    subscriber_timeout: Duration,
    stopping: watch::Receiver<()>,
) {
    let turn = Turn::default();
    turn.run(take_turns(stream, gate, activity, subscriber_timeout, stopping, turn.clone())).await;
}

async fn take_turns(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    gate: Gate,
    activity: Activity,
    subscriber_timeout: Duration,
    mut stopping: watch::Receiver<()>,
    turn: Turn,
) {
    // No more than MAX_CALLS: HTTP/2 counts them.
    let (begun, mut new) = mpsc::unbounded_channel();
    let mut http = http2::Builder::new(Calls { begun, activity, subscriber_timeout, turn: turn.clone() });
    http.timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .max_concurrent_streams(MAX_CALLS)
        .max_header_list_size(MAX_HEADER_BYTES);
    let reader = gate.reader().clone();
    let mut connection = pin!(http.serve_connection(TokioIo::new(OneRead { stream, turn }), gate));
    let mut calls = FuturesUnordered::new();
    let mut stopped = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a gRPC connection failed");
                }
                return;
            }
            Some(call) = new.recv() => calls.push(call),
            Some(slow) = calls.next() => {
                if slow {
                    tracing::debug!("a gRPC call whose client took nothing is reset");
                    reader.dropped(SLOW);
                }
            }
            _ = stopping.changed(), if !stopped => {
                stopped = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn many_calls_take_many_turns() {
        let (turn, done) = (Turn::default(), Arc::new(AtomicUsize::new(0)));
        let call = |_| {
            let done = Arc::clone(&done);
            turn.share(async move { done.fetch_add(1, Ordering::Relaxed) }).boxed()
        };
        let mut calls: FuturesUnordered<_> = (0..3 * CALLS_A_TURN).map(call).collect();
        let mut all = pin!(turn.run(async move { while calls.next().await.is_some() {} }));
        for turns in 1..=3 {
            assert_eq!(all.as_mut().now_or_never().is_some(), turns == 3);
            assert_eq!(done.load(Ordering::Relaxed), turns * CALLS_A_TURN);
        }
    }
}
