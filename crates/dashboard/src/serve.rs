//! The server as a whole.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::service::TowerToHyperService;
use mcpscope_core::{HostPolicy, Origins};
use mcpscope_hub::{Admin, ChaosToken, Reader};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::accept::{self, Limits, Speaks};
use crate::chaos::Engine;
use crate::guard::Guarded;
use crate::publish::Publisher;
use crate::{routes, websocket};

/// What a request that panicked is counted as.
const PANIC: &str = "dashboard_panic";
/// What a connection that had to make room for a newer one is counted as.
const EVICTED: &str = "dashboard_evicted";

/// Who is answered, and how much at a time.
#[derive(Clone, Debug)]
pub struct Config {
    /// Host names answered to besides loopback, without port. Default: none.
    pub allowed_hosts: Vec<String>,
    /// Origins answered to besides the dashboard's own, such as `https://grafana.example`. Default: none.
    pub allowed_origins: Vec<String>,
    /// HTTP connections served at a time, at least 1, WebSockets not counted; for a further one, that is ended which misses its
    /// place least ([`OpenDoor`](mcpscope_accept::OpenDoor)). Default: [`Config::DEFAULT_MAX_CONNECTIONS`].
    pub max_connections: usize,
    /// How long a client may take to send the head of its next request, and how long it may leave an answer lying
    /// without taking a byte of it, before its connection is closed. Default: [`Config::DEFAULT_HEADER_TIMEOUT`].
    pub header_timeout: Duration,
    /// WebSockets at a time, at least 1; one more is answered 503. Default: [`Config::DEFAULT_MAX_WEBSOCKETS`].
    pub max_websockets: usize,
    /// How long the client of a WebSocket may say nothing at all, not even answer a ping, before it is closed. Default:
    /// [`Config::DEFAULT_SUBSCRIBER_TIMEOUT`].
    pub subscriber_timeout: Duration,
    /// What whoever starts chaos experiments, or allows them again, has to show. Default: nobody can.
    pub chaos_token: ChaosToken,
}

impl Config {
    /// 256 connections.
    pub const DEFAULT_MAX_CONNECTIONS: usize = 256;
    /// 10 seconds.
    pub const DEFAULT_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
    /// 100 sockets (behaviour D2).
    pub const DEFAULT_MAX_WEBSOCKETS: usize = 100;
    /// 30 seconds (behaviour D2).
    pub const DEFAULT_SUBSCRIBER_TIMEOUT: Duration = Duration::from_secs(30);
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            max_connections: Self::DEFAULT_MAX_CONNECTIONS,
            header_timeout: Self::DEFAULT_HEADER_TIMEOUT,
            max_websockets: Self::DEFAULT_MAX_WEBSOCKETS,
            subscriber_timeout: Self::DEFAULT_SUBSCRIBER_TIMEOUT,
            chaos_token: ChaosToken::new(""),
        }
    }
}

/// Why the dashboard cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DashboardError {
    /// The address can be reached from elsewhere.
    #[error(
        "{0} is no loopback address: the dashboard listens on loopback only; for a pod address there is the \
         read-only listener of --probe"
    )]
    NotLoopback(SocketAddr),
    /// There is nothing to listen on.
    #[error("the dashboard was given no listener")]
    NoListener,
}

/// Checks that an address can be reached from this machine only.
///
/// # Errors
/// [`DashboardError::NotLoopback`].
pub fn check_loopback(addr: SocketAddr) -> Result<(), DashboardError> {
    if addr.ip().to_canonical().is_loopback() { Ok(()) } else { Err(DashboardError::NotLoopback(addr)) }
}

/// Serves until `stop` ends, then closes WebSockets with code 1001 and lets requests in flight finish, for at most 2
/// seconds.
///
/// Neither a failure to accept nor a panic in a request ends it. Dropping the future closes every connection at once.
///
/// # Errors
/// [`DashboardError::NoListener`].
pub async fn serve(
    listeners: Vec<TcpListener>,
    reader: Reader,
    admin: Admin,
    config: Config,
    stop: impl Future<Output = ()>,
) -> Result<(), DashboardError> {
    if listeners.is_empty() {
        return Err(DashboardError::NoListener);
    }
    let Config {
        allowed_hosts,
        allowed_origins,
        max_connections,
        header_timeout,
        max_websockets,
        subscriber_timeout,
        chaos_token,
    } = config;
    for what in [PANIC, EVICTED, websocket::REFUSED, websocket::SILENT, websocket::SLOW, websocket::EVENT] {
        reader.may_drop(what);
    }
    let policy = Arc::new(HostPolicy { allowed_hosts, allowed_origins, origins: Origins::Own, any_host: false });
    let turn = reader.turn();
    let chaos = admin.chaos().ok().cloned();
    let publisher = Publisher::new(reader.clone(), chaos.clone(), turn.clone());
    let (gate, sockets) = websocket::gate(publisher.clone(), max_websockets, subscriber_timeout);
    let routes = routes::routes(&publisher, &turn, gate, Engine::new(chaos, chaos_token, turn.clone()));
    let service = Guarded::new(policy, TowerToHyperService::new(warp::service(routes)));
    let on_panic = || reader.dropped(PANIC);
    let counting = reader.clone();
    let on_evicted = move || counting.dropped(EVICTED);
    let stopping = CancellationToken::new();
    let requests = async {
        let stop = async {
            stop.await;
            stopping.cancel();
        };
        // The service goes with it, and with the service the gate: no more sockets come then.
        let service = service;
        let limits = Limits { max_connections, header_timeout };
        accept::run(listeners, &service, Speaks::Http1, limits, on_panic, on_evicted, stop).await;
    };
    tokio::join!(requests, sockets.run(stopping.clone(), on_panic));
    Ok(())
}
