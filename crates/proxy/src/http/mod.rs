//! The HTTP relay: Streamable HTTP, and HTTP+SSE before it, request by request as they come.

mod answers;
mod body;
mod check;
mod client;
mod decode;
mod exchange;
mod facts;
mod failures;
#[cfg(feature = "_fuzz")]
pub(crate) mod fuzzing;
mod handshake;
mod head;
mod known;
mod led;
mod process;
mod reach;
mod reply;
mod sessions;
mod stream;
mod upstream;
mod wire;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mcpscope_accept::{Door, Slot};
use mcpscope_core::HostPolicy;
use mcpscope_hooks::{Loss, Probe};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::rustls;

pub use process::ServerProcess;
pub use upstream::{InvalidUpstream, Upstream};

use crate::child::ChildHandle;
use crate::relay::Relay;
use crate::{Limits, SWEEP, ServerState, Traffic};
use check::check_upstream;
use client::{Asking, Client};
use failures::Failures;
use handshake::Handshakes;
use reach::Retries;
use sessions::Sessions;
use stream::Stream;

/// Connections served at once; further ones wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 8192;

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

/// What the relay speaks TLS with; the crate `mcpscope-tls` makes both from files. HTTP/2 is refused on either side.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// To an `https` upstream, which cannot be connected to without it.
    pub connect: Option<Arc<rustls::ClientConfig>>,
    /// To clients, which speak plain HTTP without it.
    pub accept: Option<Arc<rustls::ServerConfig>>,
}

impl Tls {
    /// Of these, each for HTTP/1.1 alone.
    #[must_use]
    pub fn new(connect: Option<rustls::ClientConfig>, accept: Option<rustls::ServerConfig>) -> Self {
        let connect = connect.map(|mut config| {
            config.alpn_protocols = vec![HTTP_1_1.to_vec()];
            Arc::new(config)
        });
        let accept = accept.map(|mut config| {
            config.alpn_protocols = vec![HTTP_1_1.to_vec()];
            Arc::new(config)
        });
        Self { connect, accept }
    }
}

/// As TLS names it (RFC 7301).
const HTTP_1_1: &[u8] = b"http/1.1";

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
    /// What TLS is spoken with. Default: nothing.
    pub tls: Tls,
    /// How long connecting to the upstream may take. Default: [`Config::DEFAULT_CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// How long a client may take to send a request's head, and to begin with the first. Default:
    /// [`Config::DEFAULT_HEADER_TIMEOUT`].
    pub header_timeout: Duration,
    /// How long a session may be unused before it counts as ended. Default: [`Config::DEFAULT_IDLE_SESSION`].
    pub idle_session: Duration,
    /// Where to tell whether the upstream can be reached; nowhere by default.
    pub traffic: Option<Arc<Traffic>>,
    /// How the server is, if it is a process of ours ([`ServerProcess::state`]): as long as it is being started it is waited for,
    /// within [`Config::connect_timeout`]. Nothing by default.
    pub server: Option<watch::Receiver<ServerState>>,
    /// That process ([`ServerProcess::child`]): calls that break off because a fault has ended it are marked as injected, sessions
    /// end with it, and a crash is over once connections are accepted. Nothing by default.
    pub child: Option<ChildHandle>,
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
            tls: Tls::default(),
            connect_timeout: Self::DEFAULT_CONNECT_TIMEOUT,
            header_timeout: Self::DEFAULT_HEADER_TIMEOUT,
            idle_session: Self::DEFAULT_IDLE_SESSION,
            traffic: None,
            server: None,
            child: None,
            grace: Self::DEFAULT_GRACE,
        }
    }
}

/// What all connections of one relay share, as one of them has it.
#[derive(Debug)]
struct Shared {
    config: Arc<Config>,
    relay: Arc<Relay>,
    sessions: Arc<Sessions>,
    handshakes: Arc<Handshakes>,
    /// Requests that got no answer.
    unanswered: Arc<Failures>,
    retries: Arc<Retries>,
    asking: Asking,
}

/// Relays what comes in on `listeners` until `stop`, then lets exchanges under way end within [`Config::grace`], and the first
/// one of each client that was let in before. A failure to accept does not end it.
pub async fn serve(listeners: Vec<TcpListener>, config: Config, probe: Probe, stop: impl Future<Output = ()>) {
    let relay = Relay::new(probe, config.limits, config.child.clone());
    match (&config.traffic, &config.server) {
        // Until the first attempt has told otherwise.
        (Some(traffic), None) => traffic.works(),
        (Some(traffic), Some(server)) => traffic.awaits_server(&server.borrow().to_string()),
        (None, _) => {}
    }
    let shared = Arc::new(Shared {
        config: Arc::new(config),
        relay,
        sessions: Arc::default(),
        handshakes: Arc::default(),
        unanswered: Arc::default(),
        retries: Arc::default(),
        asking: Asking::default(),
    });
    let mut door = Door::new("the proxy", listeners, MAX_CONNECTIONS);
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut probing = JoinSet::new();
    probing.spawn(check_upstream(Arc::clone(&shared)));
    let mut sweep = tokio::time::interval(SWEEP);
    let following = Arc::clone(&shared);
    let mut following = Box::pin(async move { reach::follow(&following.config, &following.retries).await });
    let ending = Arc::clone(&shared);
    let mut ending = Box::pin(async move { ending.sessions.follow(&ending.config, &ending.relay.probe).await });
    let retrying = Arc::clone(&shared);
    let mut retrying = Box::pin(async move { reach::retry(&retrying.config, &retrying.retries).await });
    tokio::pin!(stop);
    loop {
        tokio::select! {
            // Who comes from now on is somebody else's, if there is anybody else on these sockets.
            biased;
            () = &mut stop => break,
            never = &mut following => match never {},
            never = &mut ending => match never {},
            never = &mut retrying => match never {},
            _ = sweep.tick() => {
                shared.sweep(Instant::now());
                if shared.config.traffic.as_ref().is_some_and(|traffic| !traffic.is_working()) && probing.is_empty() {
                    probing.spawn(check_upstream(Arc::clone(&shared)));
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
    drop((door, following, ending));
    let _ = stopping.send(true);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    // Some may still wait for the server.
    let all_ended = async {
        tokio::select! {
            never = retrying => match never {},
            () = all_ended => {}
        }
    };
    if tokio::time::timeout(shared.config.grace, all_ended).await.is_err() {
        tracing::info!("exchanges still under way were cut off");
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    _slot: Slot,
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
) {
    let _counted = shared.relay.probe.connection(Instant::now());
    let stream = match &shared.config.tls.accept {
        None => Stream::Plain(stream),
        Some(tls) => {
            let (limit, probe) = (shared.config.header_timeout, &shared.relay.probe);
            match shared.handshakes.accept((stream, peer), tls, limit, probe).await {
                Some(stream) => Stream::Tls(Box::new(stream.into())),
                None => return,
            }
        }
    };
    Client::new(shared.for_connection(), stream, peer).serve(stopped).await;
}

/// What is seldom waited for, in memory of its own: what every request waits for is moved as a whole, with room for all that it
/// might ever wait for within.
fn rarely<F: Future>(future: F) -> Pin<Box<F>> {
    Box::pin(future)
}

impl Shared {
    /// The same for one more connection, which counts by itself who refers to it.
    fn for_connection(&self) -> Arc<Self> {
        let (config, relay) = (Arc::clone(&self.config), self.relay.for_connection());
        let (sessions, handshakes) = (Arc::clone(&self.sessions), Arc::clone(&self.handshakes));
        let (unanswered, retries) = (Arc::clone(&self.unanswered), Arc::clone(&self.retries));
        let asking = self.asking.clone();
        Arc::new(Self { config, relay, sessions, handshakes, unanswered, retries, asking })
    }

    /// Counts a request that is not passed on.
    fn refused(&self) {
        self.relay.probe.lost(Loss::RefusedRequest, Instant::now());
    }

    fn sweep(&self, now: Instant) {
        self.relay.probe.guarded(|| {
            self.sessions.sweep(self.config.idle_session, self.config.limits.call_timeout, now);
            self.relay.clients.expire(now);
        });
        self.relay.queue.look(self.config.traffic.as_deref());
    }
}
