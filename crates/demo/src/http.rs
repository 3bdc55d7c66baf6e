//! The MCP server over Streamable HTTP.

use std::{convert::Infallible, io, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{DemoError, DemoServer};

/// The path at which [`http()`] serves MCP.
pub const HTTP_PATH: &str = "/mcp";

/// How long connections may take to end by themselves after the stop.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);
/// Accepting fails when the process has no file descriptor left; some come back, so it is retried.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const ACCEPT_ATTEMPTS: u32 = 50;

type Mcp = StreamableHttpService<DemoServer, LocalSessionManager>;

/// Serves a [`DemoServer`] over Streamable HTTP on `listener`, at [`HTTP_PATH`], until `stop`.
///
/// Both kinds of protocol revision are served at the same path: with sessions up to 2025-11-25,
/// without from 2026-07-28 on. Only requests whose `Host` names a loopback address are answered.
/// `stop` ends all sessions and their event streams at once; dropping the future does the same.
///
/// # Errors
///
/// [`DemoError::Accept`] if the listener fails for several seconds on end.
pub async fn http(listener: TcpListener, seed: u64, stop: CancellationToken) -> Result<(), DemoError> {
    let sessions = stop.child_token();
    // rmcp serves each session in a task of its own: it must not outlive this future.
    let _end_of_sessions = sessions.clone().drop_guard();
    let server = DemoServer::new(seed);
    let mcp = StreamableHttpService::new(
        move || Ok(server.clone()),
        Arc::new(LocalSessionManager::default()),
        StreamableHttpServerConfig::default().with_cancellation_token(sessions),
    );

    let mut connections = JoinSet::new();
    let mut failures = 0;
    let ended = loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break Ok(()),
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                failures = 0;
                connections.spawn(serve(stream, mcp.clone(), stop.clone()));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) if failures < ACCEPT_ATTEMPTS => {
                failures += 1;
                tracing::warn!(%error, "the demo server could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            Err(error) => break Err(DemoError::Accept(error)),
        }
    };
    drop(listener);
    if ended.is_ok() {
        // What is left after that is aborted together with the set.
        let _ = tokio::time::timeout(STOP_TIMEOUT, async { while connections.join_next().await.is_some() {} }).await;
    }
    ended
}

async fn serve(stream: TcpStream, mcp: Mcp, stop: CancellationToken) {
    // Small messages back and forth: waiting to fill packets would add up to 40 ms to each.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let service = service_fn(move |request| {
        let mcp = mcp.clone();
        async move { Ok::<_, Infallible>(answer(&mcp, request).await) }
    });
    let mut connection =
        pin!(http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the demo server ended early");
    }
}

async fn answer(mcp: &Mcp, request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
    if request.uri().path() == HTTP_PATH {
        return mcp.handle(request).await;
    }
    let body = Full::new(Bytes::from_static(b"MCP is served at /mcp\n"));
    let mut response = Response::new(body.boxed());
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

/// Whether accepting failed because of the connection that was to be accepted, not the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
