//! `mcpscope proxy`: in front of a Streamable HTTP MCP server.

use std::future::pending;
use std::process::ExitCode;
use std::sync::Arc;

use mcpscope_config::{self as config, Settings};
use mcpscope_core::Transport;
use mcpscope_proxy::http::{self, Config, HostHeader, Tls, Upstream};
use mcpscope_tls::Identity;
use tokio_util::sync::CancellationToken;

use crate::announce::Listeners;
use crate::cli::{self, ProxyArgs};
use crate::failure::{Failure, say};
use crate::instance::{Instance, server_name};
use crate::listen::{Address, Bound, bind_or_fail};
use crate::observe::{Bindings, Observing, Taken};
use crate::running::Mode;
use crate::signals;

pub(crate) async fn proxy(args: ProxyArgs) -> Result<ExitCode, Failure> {
    let upstream = Upstream::parse(&args.upstream)
        .map_err(|error| Failure::usage(anyhow::anyhow!(error).context("--upstream")))?;
    let listen: Address =
        args.listen.parse().map_err(|error: anyhow::Error| Failure::usage(error.context("--listen")))?;
    let instance = Instance::new(&args.common)?;
    let tls = tls(&instance.settings, &upstream)?;
    let name = server_name(args.common.name.as_deref(), upstream.authority());
    let bindings = Bindings::bind(&instance, &args.common, Taken::Fails)?;
    let bound = bind_or_fail(&listen, "--listen")?;
    let stop = CancellationToken::new();
    signals::cancel_on_end(stop.clone()).map_err(Failure::internal)?;

    let listeners = Listeners {
        proxies: vec![(name.to_string(), format!("{}://{}{}", scheme(&tls), bound.addr, upstream.path()))],
        ..Listeners::new(&bindings)
    };
    let announcement = listeners.prepare(args.common.ready_file.as_deref())?;
    if !bound.addr.ip().is_loopback() && instance.settings.proxy.allowed_hosts.is_empty() {
        say(format_args!("mcpscope: {} answers to any host name; proxy.allowed_hosts limits that", bound.addr));
    }
    let host_header = match args.host_header {
        None => HostHeader::Auto,
        Some(cli::HostHeader::Keep) => HostHeader::Keep,
        Some(cli::HostHeader::Upstream) => HostHeader::Upstream,
    };
    let config = Config { host_header, tls, ..Config::new(upstream) };
    let relay = relay(&instance, &name, config, bound, stop.clone())?;
    let observing = Observing::start(&instance, bindings, std::io::stdout())?;
    let _running = announcement.publish(&name, Mode::Proxy)?;
    relay.await;
    observing.end().await;
    Ok(ExitCode::SUCCESS)
}

/// What the relay speaks TLS with, as the files say.
fn tls(settings: &Settings, upstream: &Upstream) -> Result<Tls, Failure> {
    let config::Tls { cert_file, key_file, client_ca_file } = &settings.tls;
    let accept = match (cert_file, key_file) {
        (Some(chain), Some(key)) => {
            let identity = Identity { chain: chain.clone(), key: key.clone() };
            let server = mcpscope_tls::server(&identity, client_ca_file.as_deref());
            Some(server.map_err(|error| Failure::usage(anyhow::anyhow!(error).context("tls")))?)
        }
        _ => None,
    };
    let connect = upstream.is_secure().then(|| {
        let client = mcpscope_tls::client(settings.proxy.upstream_ca_file.as_deref(), None);
        client.map_err(|error| Failure::usage(anyhow::anyhow!(error).context("TLS to the upstream")))
    });
    Ok(Tls::new(connect.transpose()?, accept))
}

fn scheme(tls: &Tls) -> &'static str {
    if tls.accept.is_some() { "https" } else { "http" }
}

/// The relay as `config` says and the instance's settings, as a future.
pub(crate) fn relay(
    instance: &Instance,
    name: &str,
    config: Config,
    bound: Bound,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>, Failure> {
    let proxy = &instance.settings.proxy;
    let config = Config {
        hosts: instance.proxy_hosts(bound.addr),
        limits: instance.limits(),
        connect_timeout: proxy.connect_timeout,
        header_timeout: proxy.header_timeout,
        idle_session: proxy.idle_session,
        traffic: Some(Arc::new(instance.traffic())),
        ..config
    };
    let probe = instance.probe(name, Transport::Http);
    let listeners = bound.into_tokio().map_err(Failure::internal)?;
    let running = instance.reporter().require("running");
    running.met();
    let relay = http::serve(listeners, config, probe, stop.clone().cancelled_owned());
    Ok(async move {
        // Who asks for readiness while calls in flight finish is told to send no more.
        let stopping = async {
            stop.cancelled().await;
            running.unmet("stopping");
            pending::<()>().await;
        };
        tokio::select! {
            () = relay => {}
            () = stopping => {}
        }
    })
}
