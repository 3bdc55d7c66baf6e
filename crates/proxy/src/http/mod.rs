//! The HTTP relay: Streamable HTTP, and HTTP+SSE before it, request by request as they come.

mod body;
mod client;
mod exchange;
mod outbox;
mod reply;
mod sessions;
mod upstream;

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mcpscope_accept::{Door, Slot};
use mcpscope_core::{Direction, HostPolicy};
use mcpscope_hooks::Probe;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use upstream::{InvalidUpstream, Upstream};

use crate::relay::Relay;
use crate::{Limits, SWEEP, Traffic};
use client::ClientConnection;
use outbox::Socket;
use sessions::Sessions;

/// Connections served at once; further ones wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 8192;

/// Headers passed on in one message, five times what hyper allows by itself; a request with more is answered 431.
const MAX_HEADERS: usize = 512;

/// What the upstream gets as `Host`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostHeader {
    /// What the client sent if the upstream is on a loopback address, else the upstream's authority.
    #[default]
    Auto,
    /// What the client sent.
    Keep,
    /// The upstream's authority.
    Upstream,
}

/// How an HTTP relay works.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where requests go.
    pub upstream: Upstream,
    /// What the upstream gets as `Host`.
    pub host_header: HostHeader,
    /// Which hosts and origins are answered to.
    pub hosts: HostPolicy,
    /// What bounds the observation.
    pub limits: Limits,
    /// How long connecting to the upstream may take. Default: [`Config::DEFAULT_CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// How long a client may take to send a request's headers, or leave a connection unused. Default:
    /// [`Config::DEFAULT_HEADER_TIMEOUT`].
    pub header_timeout: Duration,
    /// How long a session may be unused before it counts as ended. Default: [`Config::DEFAULT_IDLE_SESSION`].
    pub idle_session: Duration,
    /// Where to tell whether the upstream can be reached; nowhere by default.
    pub traffic: Option<Arc<Traffic>>,
    /// How long exchanges under way may take to end once the relay is to stop. Default: [`Config::DEFAULT_GRACE`].
    pub grace: Duration,
}

impl Config {
    /// 10 s.
    pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
    /// 10 s.
    pub const DEFAULT_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
    /// 30 min.
    pub const DEFAULT_IDLE_SESSION: Duration = Duration::from_secs(30 * 60);
    /// 5 s.
    pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);

    /// The defaults, in front of this upstream.
    #[must_use]
    pub fn new(upstream: Upstream) -> Self {
        Self {
            upstream,
            host_header: HostHeader::default(),
            hosts: HostPolicy::default(),
            limits: Limits::default(),
            connect_timeout: Self::DEFAULT_CONNECT_TIMEOUT,
            header_timeout: Self::DEFAULT_HEADER_TIMEOUT,
            idle_session: Self::DEFAULT_IDLE_SESSION,
            traffic: None,
            grace: Self::DEFAULT_GRACE,
        }
    }
}

/// What all connections of one relay share.
#[derive(Debug)]
struct Shared {
    config: Config,
    relay: Arc<Relay>,
    sessions: Sessions,
}

/// Relays what comes in on `listeners` until `stop`, then lets exchanges under way end within [`Config::grace`]. A failure to
/// accept does not end it.
pub async fn serve(listeners: Vec<TcpListener>, config: Config, probe: Probe, stop: impl Future<Output = ()>) {
    let relay = Relay::new(probe, config.limits);
    if let Some(traffic) = &config.traffic {
        // Until the first attempt has told otherwise.
        traffic.works();
    }
    let shared = Arc::new(Shared { config, relay, sessions: Sessions::default() });
    let mut door = Door::new("the proxy", listeners, MAX_CONNECTIONS);
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut probing = JoinSet::new();
    probing.spawn(try_upstream(Arc::clone(&shared)));
    let mut sweep = tokio::time::interval(SWEEP);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            _ = sweep.tick() => {
                shared.sweep(Instant::now());
                if shared.config.traffic.as_ref().is_some_and(|traffic| !traffic.is_working()) && probing.is_empty() {
                    probing.spawn(try_upstream(Arc::clone(&shared)));
                }
            }
            Some(_) = probing.join_next() => {}
            // A panic in a connection has ended that connection only.
            Some(_) = connections.join_next() => {}
            (stream, peer, slot) = door.next() => {
                connections.spawn(connection(stream, peer, slot, Arc::clone(&shared), stopped.clone()));
            }
        }
    }
    drop(door);
    let _ = stopping.send(true);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(shared.config.grace, all_ended).await.is_err() {
        tracing::info!("exchanges still under way were cut off");
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    _slot: Slot,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let _counted = shared.relay.probe.connection(Instant::now());
    let header_timeout = shared.config.header_timeout;
    let client = Arc::new(ClientConnection::new(shared, peer));
    let handler = Arc::clone(&client);
    let socket = Socket::new(stream, client.outbox(Direction::ToClient));
    let service = service_fn(move |request| Arc::clone(&handler).handle(request));
    let mut serving = pin!(
        http1::Builder::new()
            .preserve_header_case(true)
            .auto_date_header(false)
            .max_headers(MAX_HEADERS)
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .serve_connection(TokioIo::new(socket), service)
    );
    let mut asked_to_stop = pin!(async move { drop(stopped.wait_for(|stopped| *stopped).await) });
    let mut stopping = false;
    let served = poll_fn(|cx| {
        if !stopping && asked_to_stop.as_mut().poll(cx).is_ready() {
            stopping = true;
            serving.as_mut().graceful_shutdown();
        }
        let served = serving.as_mut().poll(cx);
        if served.is_pending() {
            client.drive(cx);
        }
        served
    })
    .await;
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "a client connection ended");
    }
}

/// Finds out whether the upstream can be reached: at the start, and as long as it cannot be, when nobody may send requests
/// any more that would show it.
async fn try_upstream(shared: Arc<Shared>) {
    let config = &shared.config;
    let Some(traffic) = &config.traffic else { return };
    match config.upstream.connect(config.connect_timeout).await {
        Ok(_) => traffic.works(),
        Err(error) => traffic.fails(&format!("upstream http://{}: {error}", config.upstream.authority())),
    }
}

impl Shared {
    fn sweep(&self, now: Instant) {
        self.relay.probe.guarded(|| {
            self.sessions.sweep(self.config.idle_session, self.config.limits.call_timeout, now);
            self.relay.clients.expire(now);
        });
    }
}
