//! The server as a whole.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::service::TowerToHyperService;
use mcpscope_core::HostPolicy;
use tokio::net::TcpListener;

use crate::accept::{self, Limits};
use crate::guard::Guarded;
use crate::routes::{self, Sources};

/// Who is answered, and how much at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Host names answered to besides loopback, without port. Default: none.
    pub allowed_hosts: Vec<String>,
    /// Origins answered to besides loopback ones, such as `https://grafana.example`. Default: none.
    pub allowed_origins: Vec<String>,
    /// Connections served at a time, at least 1; further ones wait in the system's accept queue until one of these ends.
    /// Default: [`Config::DEFAULT_MAX_CONNECTIONS`].
    pub max_connections: usize,
    /// How long a client may take to send the head of its next request, and how long it may leave an answer lying
    /// without taking a byte of it, before its connection is closed. Default: [`Config::DEFAULT_HEADER_TIMEOUT`].
    pub header_timeout: Duration,
}

impl Config {
    /// 256 connections.
    pub const DEFAULT_MAX_CONNECTIONS: usize = 256;
    /// 10 seconds.
    pub const DEFAULT_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            max_connections: Self::DEFAULT_MAX_CONNECTIONS,
            header_timeout: Self::DEFAULT_HEADER_TIMEOUT,
        }
    }
}

/// Why the dashboard cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DashboardError {
    /// The address can be reached from elsewhere.
    #[error(
        "{0} is no loopback address: the dashboard listens on loopback only; for a pod address, a read-only listener \
         comes with --probe in a later version"
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

/// Serves until `stop` ends, then lets requests in flight finish for at most 2 seconds.
///
/// Neither a failure to accept nor a panic in a request ends it. Dropping the future closes every connection at once.
///
/// # Errors
/// [`DashboardError::NoListener`].
pub async fn serve(
    listeners: Vec<TcpListener>,
    sources: Sources,
    config: Config,
    stop: impl Future<Output = ()>,
) -> Result<(), DashboardError> {
    if listeners.is_empty() {
        return Err(DashboardError::NoListener);
    }
    let Config { allowed_hosts, allowed_origins, max_connections, header_timeout } = config;
    let policy = Arc::new(HostPolicy { allowed_hosts, allowed_origins, any_host: false });
    let panics = sources.metrics.as_ref().map(|metrics| metrics.dropped("dashboard_panic"));
    let on_panic = || {
        if let Some(panics) = &panics {
            panics.increment(Instant::now());
        }
    };
    let service = Guarded::new(policy, TowerToHyperService::new(warp::service(routes::routes(sources))));
    accept::run(listeners, &service, Limits { max_connections, header_timeout }, on_panic, stop).await;
    Ok(())
}
