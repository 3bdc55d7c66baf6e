//! `mcpscope proxy`: in front of a Streamable HTTP MCP server.

use std::process::ExitCode;

use mcpscope_proxy::http::{Config, HostHeader, Upstream};
use tokio_util::sync::CancellationToken;

use crate::announce::Listeners;
use crate::cli::{self, ProxyArgs};
use crate::engine::{Entries, follow_plan};
use crate::failure::Failure;
use crate::instance::{Instance, server_name};
use crate::listen::{Address, bind_or_fail};
use crate::observe::{Bindings, Observing, Taken};
use crate::reload::{AtHangup, Reloads};
use crate::running::Mode;
use crate::tls::{say_unused_ca, tls};
use crate::{relay, signals};

pub(crate) async fn proxy(args: ProxyArgs, entries: Entries) -> Result<ExitCode, Failure> {
    let upstream = Upstream::parse(&args.upstream)
        .map_err(|error| Failure::usage(anyhow::anyhow!(error).context("--upstream")))?;
    let listen: Address =
        args.listen.parse().map_err(|error: anyhow::Error| Failure::usage(error.context("--listen")))?;
    let name = server_name(args.common.name.as_deref(), upstream.authority());
    let instance = Instance::new(&args.common, &name, entries.helper)?;
    let tls = tls(&instance, &upstream)?;
    say_unused_ca(&instance.settings, &upstream);
    let bindings = Bindings::bind(&instance, &args.common, Taken::Fails)?;
    let bound = bind_or_fail(&listen, "--listen")?;
    let stop = CancellationToken::new();
    signals::cancel_on_end(stop.clone(), instance.sources().chaos, || ()).map_err(Failure::internal)?;
    let mut reloads = Reloads::new(&args.common, &instance, AtHangup::Reload)?;

    let listeners = Listeners {
        proxies: vec![(name.to_string(), relay::url(bound.addr, &tls, &upstream))],
        ..Listeners::new(&bindings)
    };
    let announcement = listeners.prepare(args.common.ready_file.as_deref())?;
    relay::warn_of_any_host(&instance.settings, bound.addr);
    let host_header = match args.host_header {
        None => HostHeader::Auto,
        Some(cli::HostHeader::Keep) => HostHeader::Keep,
        Some(cli::HostHeader::Upstream) => HostHeader::Upstream,
    };
    let config = Config { host_header, tls, ..Config::new(upstream) };
    let relay = relay::only_relay(&instance, &name, config, bound, stop)?;
    let observing = Observing::start(&instance, bindings, std::io::stdout())?;
    let _announced = announcement.publish(&name, Mode::Proxy, &instance)?;
    tokio::select! {
        () = relay => {}
        never = reloads.follow(|changed| follow_plan(observing.chaos.as_ref(), changed)) => match never {},
    }
    observing.end().await;
    Ok(ExitCode::SUCCESS)
}
