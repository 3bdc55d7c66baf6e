//! The plain read-only listeners, for addresses that others can reach: one for probes and scrapes, one for scrapes alone.

use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::Either;
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use mcpscope_core::HostPolicy;
use mcpscope_hub::Reader;
use tokio::net::TcpListener;
use warp::filters::BoxedFilter;
use warp::reply;

use crate::accept::{self, Limits, Speaks};
use crate::guard::Guarded;
use crate::routes;
use crate::serve::DashboardError;

/// What is counted as dropped here: requests that panicked, and connections that had to make room for newer ones.
#[derive(Clone, Copy, Debug)]
struct Dropped {
    panic: &'static str,
    evicted: &'static str,
}

const PROBE: Dropped = Dropped { panic: "probe_panic", evicted: "probe_evicted" };
const METRICS: Dropped = Dropped { panic: "metrics_panic", evicted: "metrics_evicted" };

/// How much a plain listener serves at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainConfig {
    /// Connections served at a time, at least 2; for a further one, that is ended which misses its place least
    /// ([`OpenDoor`](mcpscope_accept::OpenDoor)). At most half of them speak HTTP/2: one more ends the oldest. Default:
    /// [`PlainConfig::DEFAULT_MAX_CONNECTIONS`].
    pub max_connections: usize,
    /// How long a client may take to begin, and to send the head of its request, and how long it may leave an answer lying
    /// without taking a byte of it, before its connection is closed. Default: [`PlainConfig::DEFAULT_HEADER_TIMEOUT`].
    pub header_timeout: Duration,
}

impl PlainConfig {
    /// 64 connections.
    pub const DEFAULT_MAX_CONNECTIONS: usize = 64;
    /// 10 seconds.
    pub const DEFAULT_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
}

impl Default for PlainConfig {
    fn default() -> Self {
        Self { max_connections: Self::DEFAULT_MAX_CONNECTIONS, header_timeout: Self::DEFAULT_HEADER_TIMEOUT }
    }
}

/// Serves `/metrics`, `/healthz` and `/readyz` over HTTP/1, and hands what comes over HTTP/2 to `grpc`, until `stop` ends;
/// then lets requests in flight finish for at most 2 seconds.
///
/// Fit for an address that others can reach: nothing can be changed here, no traffic is shown, and any `Host` is answered
/// to, because a kubelet calls it by address. Over HTTP/1 each connection is closed after its answer. An HTTP/2 connection
/// has at most 32 streams at a time and 16 KiB of headers in each request, and is closed once it no longer answers pings, or
/// once it is the oldest of more than half of the connections. `grpc` must bound everything else, such as the time that a
/// request may take.
///
/// # Errors
/// [`DashboardError::NoListener`].
pub async fn serve_probe<S, B>(
    listeners: Vec<TcpListener>,
    reader: Reader,
    grpc: S,
    config: PlainConfig,
    stop: impl Future<Output = ()>,
) -> Result<(), DashboardError>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    let service = ByVersion { plain: open(routes::probe_routes(&reader, &reader.turn())), grpc };
    run(listeners, &reader, &service, Speaks::Http1And2, PROBE, config, stop).await
}

/// Serves `/metrics` over HTTP/1 and nothing else until `stop` ends, under the rules of [`serve_probe`].
///
/// # Errors
/// [`DashboardError::NoListener`].
pub async fn serve_metrics(
    listeners: Vec<TcpListener>,
    reader: Reader,
    config: PlainConfig,
    stop: impl Future<Output = ()>,
) -> Result<(), DashboardError> {
    let service = open(routes::metrics_routes(&reader, &reader.turn()));
    run(listeners, &reader, &service, Speaks::Http1Once, METRICS, config, stop).await
}

/// The routes for anybody, by whatever name.
fn open(
    routes: BoxedFilter<(reply::Response,)>,
) -> impl Service<Request<Incoming>, Response = reply::Response, Error = Infallible, Future: Send> + Clone + Send {
    let policy = Arc::new(HostPolicy { any_host: true, ..HostPolicy::default() });
    Guarded::new(policy, TowerToHyperService::new(warp::service(routes)))
}

async fn run<S, B>(
    listeners: Vec<TcpListener>,
    reader: &Reader,
    service: &S,
    speaks: Speaks,
    dropped: Dropped,
    config: PlainConfig,
    stop: impl Future<Output = ()>,
) -> Result<(), DashboardError>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    if listeners.is_empty() {
        return Err(DashboardError::NoListener);
    }
    let Dropped { panic, evicted } = dropped;
    [panic, evicted].into_iter().for_each(|what| reader.may_drop(what));
    let PlainConfig { max_connections, header_timeout } = config;
    let limits = Limits { max_connections: max_connections.max(2), header_timeout };
    let counting = reader.clone();
    let on_evicted = move || counting.dropped(evicted);
    accept::run(listeners, service, speaks, limits, || reader.dropped(panic), on_evicted, stop).await;
    Ok(())
}

/// One service for HTTP/1, another one for HTTP/2.
#[derive(Clone, Debug)]
struct ByVersion<P, G> {
    plain: P,
    grpc: G,
}

impl<P, G, A, B> Service<Request<Incoming>> for ByVersion<P, G>
where
    P: Service<Request<Incoming>, Response = Response<A>, Error = Infallible>,
    P::Future: Send + 'static,
    G: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    G::Future: Send + 'static,
{
    type Response = Response<Either<A, B>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        if request.version() == Version::HTTP_2 {
            let answer = self.grpc.call(request);
            Box::pin(async { Ok(answer.await?.map(Either::Right)) })
        } else {
            let answer = self.plain.call(request);
            Box::pin(async { Ok(answer.await?.map(Either::Left)) })
        }
    }
}
