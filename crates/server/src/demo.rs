//! `mcpscope demo`: a real MCP server under real traffic, with everything visible.

use std::io::IsTerminal as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Context as _;
use mcpscope_chaos::guardian::Guardians;
use mcpscope_chaos::{Check, Comparison, Request, StartedBy, Subject};
use mcpscope_core::{FaultId, Transport};
use mcpscope_demo::{HTTP_PATH, serve_stdio, traffic_http, traffic_io};
use mcpscope_health::Reporter;
use mcpscope_hooks::Probe;
use mcpscope_hub::{Chaos, Frames};
use mcpscope_proxy::http::{Config, Upstream};
use mcpscope_proxy::stdio::ClientEnd;
use mcpscope_proxy::{Limits, Program, RestartPolicy};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::announce::Listeners;
use crate::cli::{DemoArgs, DemoServerArgs, Restart};
use crate::engine::{Entries, Targets, follow_plan};
use crate::failure::{Failure, say};
use crate::figures;
use crate::instance::{Instance, server_name};
use crate::listen::{Address, bind_or_fail};
use crate::observe::{Bindings, Observing, Taken};
use crate::relay::only_relay;
use crate::reload::{AtHangup, Reloads};
use crate::running::Mode;
use crate::{signals, supervise, tls};

/// What is normal here: the server fails some calls on purpose, and each second has only a few.
const NORMAL: Check = Check { subject: Subject::ErrorRate, comparison: Comparison::Less, bound: 0.5 };
/// How long the traffic is seen as it is before something is done to it.
const UNDISTURBED: Duration = Duration::from_secs(20);
/// Before a stdio session that has ended begins anew.
const ANEW: Duration = Duration::from_secs(1);
/// How long the parts may take to end: the relays have limits of their own, which this is beyond.
const END: Duration = Duration::from_secs(20);

pub(crate) async fn demo(args: DemoArgs, entries: Entries) -> Result<ExitCode, Failure> {
    let listen: Address =
        args.listen.parse().map_err(|error: anyhow::Error| Failure::usage(error.context("--listen")))?;
    let name = server_name(args.common.name.as_deref(), "demo");
    let mut args = args;
    args.common.steady_state = Some(vec![NORMAL]);
    let instance = Instance::new(&args.common, &name, entries.helper)?;
    tls::say_unused(&instance.settings, "demo");
    let bindings = Bindings::bind(&instance, &args.common, Taken::Fails)?;
    let bound = bind_or_fail(&listen, "--listen")?;
    let stop = CancellationToken::new();
    signals::cancel_on_end(stop.clone(), instance.sources().chaos, || ()).map_err(Failure::internal)?;

    let mut reloads = Reloads::new(&args.common, &instance, AtHangup::Reload)?;
    let server = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.map_err(Failure::unavailable)?;
    let server_addr = server.local_addr().map_err(Failure::internal)?;
    let upstream = Upstream::parse(&format!("http://{server_addr}{HTTP_PATH}")).map_err(Failure::internal)?;
    let url = format!("http://{}{HTTP_PATH}", bound.addr);
    let listeners = Listeners { proxies: vec![(name.to_string(), url.clone())], ..Listeners::new(&bindings) };
    let shows_metrics = instance.has_metrics();
    // Unless they have a listener of their own, which is announced as such.
    let hint = shows_metrics && listeners.metrics.is_none();
    let metrics_url = listeners.dashboard.as_ref().filter(|_| hint).map(|at| format!("{at}metrics"));
    let announcement = listeners.prepare(args.common.ready_file.as_deref())?;
    // The client ends first, then the relay, then the server: nothing is cut off.
    let (relay_stop, server_stop) = (CancellationToken::new(), CancellationToken::new());
    let relay = only_relay(&instance, &name, Config::new(upstream), bound, relay_stop.clone())?;
    let stdio = Stdio {
        probe: instance.probe(&format!("{name}-stdio"), Transport::Stdio, false),
        limits: instance.limits(),
        guardians: entries.guardians,
        targets: instance.targets(),
        policy: supervise::policy(&instance.settings, args.restart, Restart::OnFailure),
        reporter: instance.reporter().clone(),
        seed: args.seed,
    };
    let observing = Observing::start(&instance, bindings, std::io::stdout())?;
    let _announced = announcement.publish(&name, Mode::Demo, &instance)?;
    if let Some(url) = metrics_url {
        say(format_args!("metrics {url}"));
    }

    let mut servers = JoinSet::new();
    let mut clients = JoinSet::new();
    servers.spawn(http_server(server, args.seed, server_stop.clone()));
    servers.spawn(async move {
        relay.await;
        Ok(())
    });
    let (client_stop, seed) = (stop.clone(), args.seed);
    clients.spawn(async move { traffic_http(url, seed, client_stop).await.context("the demo's HTTP traffic ended") });
    clients.spawn(stdio.traffic(stop.clone()));
    let chaos = observing.chaos.clone();
    if let Some(chaos) = chaos.clone().filter(|_| instance.may_start_experiments()) {
        clients.spawn(first_experiment(chaos, stop.clone()));
    }
    if shows_metrics && std::io::stderr().is_terminal() {
        clients.spawn(print_figures(observing.reader.subscribe(), stop.clone()));
    }

    // Any part that ends by itself before the stop is a failure of the demo.
    let failed = tokio::select! {
        // First: what ends because of the stop is no failure.
        biased;
        () = stop.cancelled() => None,
        Some(ended) = servers.join_next() => Some(ended),
        Some(ended) = clients.join_next() => Some(ended),
        never = reloads.follow(|changed| follow_plan(chaos.as_ref(), changed)) => match never {},
    };
    stop.cancel();
    let wind_down = async {
        while clients.join_next().await.is_some() {}
        relay_stop.cancel();
        server_stop.cancel();
        while servers.join_next().await.is_some() {}
    };
    if tokio::time::timeout(END, wind_down).await.is_err() {
        tracing::warn!("parts of the demo did not end in time");
    }
    observing.end().await;
    match failed {
        Some(ended) => {
            ended.map_err(Failure::internal)?.map_err(Failure::internal)?;
            Err(Failure::internal(anyhow::anyhow!("a part of the demo ended early")))
        }
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Starts one harmless experiment, and says how to start others.
async fn first_experiment(chaos: Chaos, stop: CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = tokio::time::sleep(UNDISTURBED) => {}
    }
    let request = Request::new("latency_injection").with("delay", "100ms").with("direction", "to_server");
    match chaos.start_as(StartedBy::Demo, request.with("duration", "15s")).await {
        Ok(FaultId(id)) => {
            say(format_args!("chaos experiment {id}: every message to the server comes 100 ms later, for 15 s"));
            say(
                "chaos status: mcpscope chaos status; another: mcpscope chaos start packet_loss duration=10s; stop all: mcpscope chaos emergency-stop",
            );
        }
        // Somebody was faster, and has stopped everything or is at it already.
        Err(refusal) => tracing::info!("the demo's experiment was not started: {refusal}"),
    }
    stop.cancelled().await;
    Ok(())
}

/// The demo's server alone, without a relay in front of it.
pub(crate) async fn server(args: DemoServerArgs) -> Result<ExitCode, Failure> {
    match args.http {
        Some(address) => server_at(&address, args.seed).await?,
        None => serve_stdio(args.seed).await.map_err(Failure::internal)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Serves over Streamable HTTP until a signal, and says where on stderr.
async fn server_at(address: &Address, seed: u64) -> Result<(), Failure> {
    let bound = bind_or_fail(address, "--http")?;
    let stop = CancellationToken::new();
    signals::cancel_on_end(stop.clone(), None, || ()).map_err(Failure::internal)?;
    let addr = bound.addr;
    let mut servers = JoinSet::new();
    for listener in bound.into_tokio().map_err(Failure::internal)? {
        servers.spawn(http_server(listener, seed, stop.clone()));
    }
    say(format_args!("demo-server http://{addr}{HTTP_PATH}"));
    while let Some(ended) = servers.join_next().await {
        ended.map_err(Failure::internal)?.map_err(Failure::internal)?;
    }
    Ok(())
}

async fn http_server(listener: tokio::net::TcpListener, seed: u64, stop: CancellationToken) -> anyhow::Result<()> {
    mcpscope_demo::http(listener, seed, stop).await.context("the demo's HTTP server ended")
}

/// The demo's stdio server, behind a relay of its own.
struct Stdio {
    probe: Probe,
    limits: Limits,
    guardians: Guardians,
    targets: Targets,
    policy: Option<RestartPolicy>,
    reporter: Reporter,
    seed: u64,
}

impl Stdio {
    /// Keeps the server running behind the relay, and a client in front of it.
    async fn traffic(self, stop: CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            if let Err(error) = self.session(stop.clone()).await {
                tracing::warn!(error = format!("{error:#}"), "the demo's stdio session ended");
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(ANEW) => {}
            }
        }
        Ok(())
    }

    async fn session(&self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        command.args(["demo-server", "--seed", &self.seed.to_string()]);
        let (client, relay_end) = UnixStream::pair()?;
        client.set_nonblocking(true)?;
        let (read, write) = tokio::net::UnixStream::from_std(client)?.into_split();
        let input = OwnedFd::from(relay_end);
        let ends = ClientEnd { output: input.try_clone()?, input };
        let program = Program::from(command).guarded(self.guardians.clone());
        let relay = supervise::spawn(program, ends, &self.probe, self.limits, self.policy)?;
        // One that is not started again is not there any more after a crash.
        let _target =
            self.policy.map(|policy| self.targets.register(self.probe.server(), false, relay.child(), &policy));
        let followed = supervise::follow(relay.state(), self.probe.server(), &self.reporter, |_| ());
        // When the traffic ends it closes its end, which is the end of file that ends the server.
        let mut result = Ok(());
        let traffic = async { result = traffic_io(read, write, self.seed, stop).await };
        let status = tokio::select! {
            status = relay.end_after(traffic) => status.context("the demo's stdio server cannot be waited for")?,
            never = followed => match never {},
        };
        result.with_context(|| format!("the demo's stdio server ended with {status}"))
    }
}

async fn print_figures(mut frames: Frames, stop: CancellationToken) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(frame) = frames.next() => figures::line(&frame).into_iter().for_each(say),
            else => {
                stop.cancelled().await;
                return Ok(());
            }
        }
    }
}
