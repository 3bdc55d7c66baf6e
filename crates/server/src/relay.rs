//! A relay in front of an HTTP server, as the settings say.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;

use mcpscope_config::Settings;
use mcpscope_core::Transport;
use mcpscope_health::Reporter;
use mcpscope_hooks::Probe;
use mcpscope_proxy::Traffic;
use mcpscope_proxy::http::{self, Config, Tls, Upstream};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, say};
use crate::instance::Instance;
use crate::listen::Bound;

/// Where clients find the relay that is bound to `addr`.
pub(crate) fn url(addr: SocketAddr, tls: &Tls, upstream: &Upstream) -> String {
    let scheme = if tls.accept.is_some() { "https" } else { "http" };
    format!("{scheme}://{addr}{}", upstream.path())
}

/// Says so if what is bound to `addr` answers to any host name.
pub(crate) fn warn_of_any_host(settings: &Settings, addr: SocketAddr) {
    if !addr.ip().is_loopback() && settings.proxy.allowed_hosts.is_empty() {
        say(format_args!("mcpscope: {addr} answers to any host name; proxy.allowed_hosts limits that"));
    }
}

/// The relay as `config` says and the instance's settings, as a future that ends some time after `stop`.
pub(crate) fn relay(
    instance: &Instance,
    probe: Probe,
    traffic: Arc<Traffic>,
    config: Config,
    (addr, listeners): (SocketAddr, Vec<TcpListener>),
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    let proxy = &instance.settings.proxy;
    let config = Config {
        hosts: instance.proxy_hosts(addr),
        limits: instance.limits(),
        connect_timeout: proxy.connect_timeout,
        header_timeout: proxy.header_timeout,
        idle_session: proxy.idle_session,
        traffic: Some(traffic),
        ..config
    };
    http::serve(listeners, config, probe, stop.cancelled_owned())
}

/// The relay that is all there is of the instance: it is ready only until `stop`.
pub(crate) fn only_relay(
    instance: &Instance,
    name: &str,
    config: Config,
    bound: Bound,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>, Failure> {
    let probe = instance.probe(name, Transport::Http, false);
    let listeners = (bound.addr, bound.into_tokio().map_err(Failure::internal)?);
    let relay = relay(instance, probe, Arc::new(instance.traffic()), config, listeners, stop.clone());
    Ok(until_stopping(instance.reporter(), stop, relay))
}

/// Runs `relays`; who asks for readiness while calls in flight finish is told to send no more.
pub(crate) fn until_stopping<F: Future>(
    reporter: &Reporter,
    stop: CancellationToken,
    relays: F,
) -> impl Future<Output = F::Output> + use<F> {
    let running = reporter.require("running");
    running.met();
    async move {
        let stopping = async {
            stop.cancelled().await;
            running.unmet("stopping");
            pending().await
        };
        tokio::select! {
            ended = relays => ended,
            never = stopping => never,
        }
    }
}
