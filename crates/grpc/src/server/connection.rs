//! One connection: HTTP/2 and its calls, all in one future, so that nothing is left of them when it is dropped.

use std::pin::{Pin, pin};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};

use super::SLOW;
use super::gate::Gate;
use super::stall;

/// Calls at a time on one connection; the client holds back further ones.
const MAX_CALLS: u32 = 100;
/// Longest list of headers, in bytes; a longer one is answered 431.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// How long nothing may come before the client is asked whether it is there, and how long it may take to say so.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));

type Call = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Hands the calls that HTTP/2 begins to the connection that they came on.
#[derive(Clone, Debug)]
struct Calls {
    begun: mpsc::UnboundedSender<Call>,
    subscriber_timeout: Duration,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Calls {
    fn execute(&self, call: F) {
        // It fails when the connection is ending, and its calls with it.
        let _ = self.begun.send(Box::pin(stall::limited(call, self.subscriber_timeout)));
    }
}

/// Serves one connection until the client ends it; once `stopping` has no sender any more, until its calls have ended.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    gate: Gate,
    subscriber_timeout: Duration,
    mut stopping: watch::Receiver<()>,
) {
    // No more than MAX_CALLS: HTTP/2 counts them.
    let (begun, mut new) = mpsc::unbounded_channel();
    let mut http = http2::Builder::new(Calls { begun, subscriber_timeout });
    http.timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .max_concurrent_streams(MAX_CALLS)
        .max_header_list_size(MAX_HEADER_BYTES);
    let reader = gate.reader().clone();
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), gate));
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
