//! The accept loop: a limited number of connections, each in a task of its own.
//!
//! It is our own because warp's has no limit on connections and none on the time that a client may take.

use std::convert::Infallible;
use std::error::Error;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::rt::{Executor, Read, Write};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use mcpscope_accept::{OpenDoor, StallLimit, StallLimits};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;

use crate::busy::Busy;
use crate::http2::{Http2, Told};

/// How long what is in flight may take to finish once the server stops.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// Longest request head over HTTP/1, in bytes; a longer one is answered 431.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Longest list of headers over HTTP/2, in bytes.
const MAX_HEADER_LIST_BYTES: u32 = 16 << 10;

/// Most streams of one HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 32;

/// How often a quiet HTTP/2 connection is asked whether there is still somebody, and how long the answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_connections: usize,
    pub(crate) header_timeout: Duration,
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// HTTP/1, and what it is upgraded to; HTTP/2 as well, on half of the connections at most, because hyper-util cannot
    /// do the one without the other.
    Http1,
    /// HTTP/1, one request on each connection, so that nobody can keep one by asking again and again.
    Http1Once,
    /// HTTP/2 to those who begin with it, on half of the connections at most; to the others [`Speaks::Http1Once`].
    Http1And2,
}

/// Accepts and serves until `stop` ends, then finishes what is in flight. `on_evicted` is called for each connection that had to
/// make room for a newer one.
pub(crate) async fn run<S, B>(
    listeners: Vec<TcpListener>,
    service: &S,
    speaks: Speaks,
    limits: Limits,
    on_panic: impl Fn(),
    on_evicted: impl Fn() + Clone + Send + Sync + 'static,
    stop: impl Future<Output = ()>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    let what = match speaks {
        Speaks::Http1 => "the dashboard",
        Speaks::Http1Once => "the metrics listener",
        Speaks::Http1And2 => "the probe listener",
    };
    let mut door = OpenDoor::new(what, listeners, limits.max_connections, on_evicted.clone());
    let http2 = Arc::new(Http2::new(limits.max_connections / 2, on_evicted));
    let stall = StallLimits { beginning: limits.header_timeout, write: limits.header_timeout };
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(result) = connections.join_next() => ended(result, &on_panic),
            (stream, _, place) = door.next() => {
                let end = Arc::new(Notify::new());
                let stream = StallLimit::new(stream, stall, || {});
                let io = TokioIo::new(Told::new(stream, Arc::clone(&http2), Arc::clone(&end)));
                let connection = connection(speaks, limits, io, Busy::new(service.clone(), place.activity()), &graceful);
                connections.spawn(async move {
                    // Its place is free again once it has ended or is none of HTTP any more.
                    tokio::select! {
                        ended = connection => if let Err(error) = ended {
                            tracing::debug!(%error, "a connection to {what} failed");
                        },
                        () = place.evicted() => tracing::debug!("a connection to {what} made room for a newer one"),
                        () = end.notified() => tracing::debug!("an HTTP/2 connection made room for a newer one"),
                    }
                });
            }
        }
    }
    // From here on the port is free, and a client that comes now is told so.
    drop(door);
    let in_flight = async {
        graceful.shutdown().await;
        while let Some(result) = connections.join_next().await {
            ended(result, &on_panic);
        }
    };
    if timeout(GRACE, in_flight).await.is_err() {
        tracing::debug!("connections to {what} that did not end in time are cut off");
    }
}

/// Looks at how a connection's task ended.
pub(crate) fn ended(result: Result<(), JoinError>, on_panic: impl Fn()) {
    if let Err(error) = result
        && error.is_panic()
    {
        tracing::error!("a request panicked; its connection is closed");
        on_panic();
    }
}

type Connection = Pin<Box<dyn Future<Output = Result<(), Box<dyn Error + Send + Sync>>> + Send>>;

/// One connection in what its listener speaks, until it ends or `graceful` has told it to.
fn connection<I, S, B>(speaks: Speaks, limits: Limits, io: I, service: S, graceful: &GracefulShutdown) -> Connection
where
    I: Read + Write + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    // For one connection, because its streams are its own.
    let mut http = auto::Builder::new(Streams::default());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(speaks == Speaks::Http1);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    match speaks {
        Speaks::Http1 => Box::pin(graceful.watch(http.serve_connection_with_upgrades(io, service).into_owned())),
        Speaks::Http1Once => Box::pin(graceful.watch(http.http1_only().serve_connection(io, service).into_owned())),
        Speaks::Http1And2 => Box::pin(graceful.watch(http.serve_connection(io, service).into_owned())),
    }
}

/// The tasks of one HTTP/2 connection's streams. They end with it.
#[derive(Clone, Debug, Default)]
struct Streams(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while streams.try_join_next().is_some() {}
        streams.spawn(stream);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_request_that_panics_ends_its_own_connection_only() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let service = service_fn(|request: Request<Incoming>| async move {
            assert_ne!(request.uri().path(), "/panic", "provoked");
            Ok::<_, Infallible>(Response::new(String::from("fine")))
        });
        let ask = async |path: &str| {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await;
            answer
        };
        let client = async {
            for _ in 0..5 {
                assert_eq!(ask("/panic").await, "");
                assert!(ask("/").await.ends_with("fine"));
            }
        };
        let panics = AtomicUsize::new(0);
        let count = || {
            panics.fetch_add(1, Ordering::Relaxed);
        };
        // Fewer slots than panics: each gave its own back.
        let limits = Limits { max_connections: 2, header_timeout: Duration::from_secs(10) };
        run(vec![listener], &service, Speaks::Http1, limits, count, || {}, client).await;
        assert_eq!(panics.into_inner(), 5);
    }
}
