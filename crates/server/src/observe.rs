//! Everything that shows what was recorded: the hub and its publishers, on a thread of their own.

use std::future::pending;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use hyper_util::service::TowerToHyperService;
use mcpscope_config::Settings;
use mcpscope_health::{Observation, Reporter, Requirement, State};
use mcpscope_hub::{Admin, Chaos, Hub, Reader, hub};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use crate::cli::Common;
use crate::failure::{Failure, say};
use crate::instance::Instance;
use crate::listen::{Address, Bound, ListenAt, bind_or_fail};

/// How long a thread for work that takes a while is kept.
const WORKER_KEPT: Duration = Duration::from_secs(60 * 60);
/// How long the observing side may take to end.
const END: Duration = Duration::from_secs(3);
/// How long it may take where that would show: enough for a close frame to go out. What is exported may take
/// [`mcpscope_export::FLUSH`] besides, if the collector has not failed before.
const END_SOON: Duration = Duration::from_millis(100);

/// The listeners of the observing side, bound.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    pub(crate) dashboard: Option<Bound>,
    pub(crate) grpc: Option<Bound>,
    pub(crate) probe: Option<Bound>,
    pub(crate) metrics: Option<Bound>,
}

/// Whether a default port that is taken ends the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Always.
    Fails,
    /// Not if nobody chose the port: a free one will do.
    MovesTheDefault,
}

/// One listener: what the command line says of it, and what the configuration does.
struct Wanted<'a> {
    what: &'a str,
    /// What comes before an address that is chosen: a flag, or a key where there is none.
    option: &'a str,
    chosen: Option<&'a ListenAt>,
    configured: Option<Address>,
    is_default: bool,
    check: fn(SocketAddr) -> anyhow::Result<()>,
}

impl Bindings {
    /// Binds all that are on.
    pub(crate) fn bind(instance: &Instance, common: &Common, taken: Taken) -> Result<Self, Failure> {
        let (settings, defaults) = (&instance.settings, Settings::default());
        if !settings.observability_enabled {
            let listeners = [
                ("dashboard", &common.dashboard, false),
                ("gRPC", &common.grpc, false),
                ("probe", &common.probe, settings.probe.listen.is_some()),
                ("metrics", &None, settings.metrics.listen.is_some()),
            ];
            for (what, chosen, configured) in listeners {
                if matches!(chosen, Some(ListenAt::At(_))) || (chosen.is_none() && configured) {
                    say(format_args!("mcpscope: no {what} listener: observability_enabled is false"));
                }
            }
            return Ok(Self::default());
        }
        let parse = |address: &str| address.parse::<Address>().map_err(Failure::usage);
        let dashboard = &settings.dashboard;
        let dashboard = Wanted {
            what: "dashboard",
            option: "--dashboard",
            chosen: common.dashboard.as_ref(),
            configured: dashboard.enabled.then(|| Address { host: dashboard.host.clone(), port: dashboard.port }),
            is_default: (&dashboard.host, dashboard.port) == (&defaults.dashboard.host, defaults.dashboard.port),
            check: |addr| Ok(mcpscope_dashboard::check_loopback(addr)?),
        };
        let grpc = Wanted {
            what: "gRPC",
            option: "--grpc",
            chosen: common.grpc.as_ref(),
            configured: settings.grpc.enabled.then(|| parse(&settings.grpc.listen)).transpose()?,
            is_default: settings.grpc.listen == defaults.grpc.listen,
            check: |addr| Ok(mcpscope_grpc::check_loopback(addr)?),
        };
        let probe = Wanted {
            what: "probe",
            option: "--probe",
            chosen: common.probe.as_ref(),
            configured: settings.probe.listen.as_deref().map(parse).transpose()?,
            is_default: false,
            check: |_| Ok(()),
        };
        let metrics = Wanted {
            what: "metrics",
            option: "metrics.listen:",
            chosen: None,
            configured: settings.metrics.listen.as_deref().map(parse).transpose()?,
            is_default: false,
            check: |_| Ok(()),
        };
        Ok(Self {
            dashboard: dashboard.bind(taken)?,
            grpc: grpc.bind(taken)?,
            probe: probe.bind(taken)?,
            metrics: metrics.bind(taken)?,
        })
    }
}

impl Wanted<'_> {
    fn bind(self, taken: Taken) -> Result<Option<Bound>, Failure> {
        let address = match (self.chosen, self.configured) {
            (Some(ListenAt::Off), _) | (None, None) => return Ok(None),
            (Some(ListenAt::At(address)), _) => address.clone(),
            (None, Some(address)) => address,
        };
        for resolved in address.resolve().map_err(Failure::usage)? {
            (self.check)(resolved).map_err(Failure::usage)?;
        }
        if self.chosen.is_some() || !self.is_default || taken == Taken::Fails {
            return bind_or_fail(&address, self.option).map(Some);
        }
        // Whatever is wrong with a port that nobody asked for, the MCP server must start.
        let what = self.what;
        let bound = address.bind().or_else(|error| {
            say(format_args!("mcpscope: {error:#}; {what} takes a free port instead"));
            Address { port: 0, ..address }.bind()
        });
        Ok(bound.map_err(|error| say(format_args!("mcpscope: no {what} listener: {error:#}"))).ok())
    }
}

/// The observing thread.
#[derive(Debug)]
pub(crate) struct Observing {
    pub(crate) reader: Reader,
    /// The chaos engine, if there is one.
    pub(crate) chaos: Option<Chaos>,
    stop: CancellationToken,
    thread: JoinHandle<()>,
    exports: bool,
}

impl Observing {
    /// Starts it. A thread and runtime of its own: it answers while the traffic takes every worker, and nothing in it can
    /// hold the traffic up. Spans that are exported to the console go to `console`.
    pub(crate) fn start(
        instance: &Instance,
        bindings: Bindings,
        console: impl Write + Send + 'static,
    ) -> Result<Self, Failure> {
        let settings = &instance.settings;
        let config = mcpscope_hub::Config {
            update_interval: settings.dashboard.update_interval,
            aggregation_interval: settings.metrics.aggregation_interval,
            max_traces: settings.dashboard.max_traces,
            max_series: settings.dashboard.max_metrics,
            ..mcpscope_hub::Config::default()
        };
        let (hub, reader, admin) = hub(instance.sources(), config);
        let publishers = Publishers {
            bindings,
            dashboard: mcpscope_dashboard::Config {
                allowed_hosts: settings.dashboard.allowed_hosts.clone(),
                allowed_origins: settings.dashboard.allowed_origins.clone(),
                max_websockets: settings.dashboard.max_connections,
                subscriber_timeout: settings.dashboard.subscriber_timeout,
                chaos_token: instance.access.token(),
                ..mcpscope_dashboard::Config::default()
            },
            grpc: mcpscope_grpc::Config {
                allowed_hosts: settings.dashboard.allowed_hosts.clone(),
                subscriber_timeout: settings.dashboard.subscriber_timeout,
                chaos_token: instance.access.token(),
                ..mcpscope_grpc::Config::default()
            },
            reader: reader.clone(),
            admin,
            reporter: instance.reporter().clone(),
            stop: CancellationToken::new(),
        };
        let (stop, chaos) = (publishers.stop.clone(), publishers.admin.chaos().ok().cloned());
        let exports = instance.export.is_on();
        let export = exports.then(|| Export {
            config: instance.export.clone(),
            parts: mcpscope_export::Parts {
                reader: reader.clone(),
                exports: instance.exports(),
                reporter: instance.reporter().clone(),
                console: Box::new(console),
            },
        });
        let (reporter, ready) = (instance.reporter().clone(), instance.reporter().require("observability"));
        let runtimes = Runtimes::new(exports).map_err(Failure::internal)?;
        for destination in instance.export.destinations() {
            say(format_args!("export {destination}"));
        }
        let thread = std::thread::Builder::new()
            .name("mcpscope-observe".into())
            .spawn(move || {
                let work = || runtimes.publish(publishers, export, hub, ready);
                let error = match catch_unwind(AssertUnwindSafe(work)) {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => format!("{error:#}"),
                    Err(_) => "it panicked".to_owned(),
                };
                ended(&reporter, &error);
            })
            .context("cannot start the observing thread")
            .map_err(Failure::internal)?;
        Ok(Self { reader, chaos, stop, thread, exports })
    }

    /// Ends it, waiting a bounded time: WebSockets are closed, streams end, requests under way are answered.
    pub(crate) async fn end(self) {
        self.end_within(END).await;
    }

    /// Ends it at once, for a caller whose own end someone waits for.
    pub(crate) async fn end_soon(self) {
        let limit = END_SOON + if self.exports { mcpscope_export::FLUSH } else { Duration::ZERO };
        self.end_within(limit).await;
    }

    async fn end_within(self, limit: Duration) {
        self.stop.cancel();
        let Self { thread, .. } = self;
        let joined = tokio::task::spawn_blocking(move || thread.join());
        let _ = tokio::time::timeout(limit, joined).await;
    }
}

/// The hub has one and everyone who reads from it another, each with one thread for work that takes a while: readers share
/// theirs ([`mcpscope_hub::Turn`]), and the hub waits for none. Neither thread changes hands or ends, because most of the work
/// fills megabytes and frees them again, and the allocator keeps them for the thread that did: with two that took the hub's
/// work and the readers' as it came, each grew to the size of both. The chaos engine writes its journal on a thread of its own: an
/// experiment ends in time whatever else is at work. What is exported has one more runtime, where it is on:
/// names are resolved, and the console is written, on threads that can hang for as long as they like.
struct Runtimes {
    hub: Runtime,
    readers: Runtime,
    chaos: Runtime,
    export: Option<Runtime>,
}

/// What is exported.
struct Export {
    config: mcpscope_export::Config,
    parts: mcpscope_export::Parts,
}

impl Runtimes {
    fn new(exports: bool) -> io::Result<Self> {
        let with_one_worker =
            |mut builder: Builder| builder.enable_all().max_blocking_threads(1).thread_keep_alive(WORKER_KEPT).build();
        let mut hub = Builder::new_multi_thread();
        hub.worker_threads(1).thread_name("mcpscope-hub");
        let mut chaos = Builder::new_multi_thread();
        chaos.worker_threads(1).thread_name("mcpscope-chaos").enable_time();
        let mut export = Builder::new_multi_thread();
        export.worker_threads(1).thread_name("mcpscope-export").enable_all();
        Ok(Self {
            hub: with_one_worker(hub)?,
            readers: with_one_worker(Builder::new_current_thread())?,
            chaos: chaos.build()?,
            export: exports.then(|| export.build()).transpose()?,
        })
    }

    /// Runs the hub and everything that reads from it, on this thread, until the stop.
    fn publish(
        self,
        publishers: Publishers,
        export: Option<Export>,
        hub: Hub,
        ready: Requirement,
    ) -> anyhow::Result<()> {
        let mut hub = self.hub.spawn(hub.run());
        let engine = publishers.admin.chaos().ok().cloned();
        let chaos = engine.clone().map(|chaos| self.chaos.spawn(chaos.run()));
        let reporter = publishers.reporter.clone();
        let chaos = async {
            // It ends with the hub; before that, only by a panic. Faults end by themselves all the same.
            if let Some(chaos) = chaos
                && let Err(error) = chaos.await
            {
                tracing::error!(%error, "chaos ended; the traffic goes on");
                reporter.set("chaos", State::Critical, "Chaos not running", SystemTime::now());
            }
            pending::<anyhow::Result<()>>().await
        };
        let stop = publishers.stop.clone().cancelled_owned();
        let exported = self.export.as_ref().zip(export).map(|(runtime, Export { config, parts })| {
            let reporter = parts.reporter.clone();
            (runtime.spawn(mcpscope_export::export(config, parts, stop)), reporter)
        });
        let exported = async {
            let Some((export, reporter)) = exported else { return Ok(()) };
            match export.await {
                Ok(counts) => tracing::debug!(?counts, "the export has ended"),
                Err(error) => export_failed(&reporter, &error),
            }
            Ok(())
        };
        let ended = self.readers.block_on(async {
            tokio::select! {
                // The hub goes on until the last reader has ended.
                ended = async { tokio::try_join!(publishers.publish(ready), exported) } => ended.map(drop),
                ended = chaos => ended,
                ended = &mut hub => Err(ended.err().map_or_else(|| anyhow!("the hub ended"), anyhow::Error::new)),
            }
        });
        if let Some(engine) = engine {
            engine.shut_down();
        }
        // Without its threads that hang.
        if let Some(export) = self.export {
            export.shutdown_background();
        }
        ended
    }
}

/// What else observes goes on.
fn export_failed(reporter: &Reporter, error: &tokio::task::JoinError) {
    tracing::error!(%error, "nothing is exported any more");
    let message = "Observability failing: the export ended".to_owned();
    let observation = Observation { state: State::Warning, message, rate: None, count: None };
    reporter.observe("observability", observation, SystemTime::now());
}

fn ended(reporter: &Reporter, error: &str) {
    tracing::error!(error, "observability ended; the traffic goes on");
    reporter.set("observability", State::Critical, "Observability not running", SystemTime::now());
}

struct Publishers {
    bindings: Bindings,
    dashboard: mcpscope_dashboard::Config,
    grpc: mcpscope_grpc::Config,
    reader: Reader,
    admin: Admin,
    reporter: Reporter,
    stop: CancellationToken,
}

impl Publishers {
    /// Serves everything that reads from the hub until the stop.
    async fn publish(self, ready: Requirement) -> anyhow::Result<()> {
        let Self { bindings, dashboard, grpc, reader, admin, stop, .. } = self;
        let Bindings { dashboard: dashboard_at, grpc: grpc_at, probe: probe_at, metrics: metrics_at } = bindings;
        let listeners = |bound: Option<Bound>| bound.map(Bound::into_tokio).transpose();
        let (dashboard_at, grpc_at) = (listeners(dashboard_at)?, listeners(grpc_at)?);
        let (probe_at, metrics_at) = (listeners(probe_at)?, listeners(metrics_at)?);
        ready.met();
        let dashboard = async {
            match dashboard_at {
                Some(at) => {
                    let stop = stop.clone().cancelled_owned();
                    mcpscope_dashboard::serve(at, reader.clone(), admin.clone(), dashboard, stop).await?;
                }
                None => stop.cancelled().await,
            }
            anyhow::Ok(())
        };
        let grpc = async {
            match grpc_at {
                Some(at) => {
                    let (reader, stop) = (reader.clone(), stop.clone().cancelled_owned());
                    mcpscope_grpc::serve(at, reader, admin.clone(), grpc, stop).await?;
                }
                None => stop.cancelled().await,
            }
            anyhow::Ok(())
        };
        let probe = async {
            match probe_at {
                Some(at) => {
                    let health = TowerToHyperService::new(mcpscope_grpc::health_service(
                        reader.clone(),
                        stop.clone().cancelled_owned(),
                    ));
                    let (config, stop) = (mcpscope_dashboard::PlainConfig::default(), stop.clone().cancelled_owned());
                    mcpscope_dashboard::serve_probe(at, reader.clone(), health, config, stop).await?;
                }
                None => stop.cancelled().await,
            }
            anyhow::Ok(())
        };
        let metrics = async {
            match metrics_at {
                Some(at) => {
                    let (config, stop) = (mcpscope_dashboard::PlainConfig::default(), stop.clone().cancelled_owned());
                    mcpscope_dashboard::serve_metrics(at, reader.clone(), config, stop).await?;
                }
                None => stop.cancelled().await,
            }
            anyhow::Ok(())
        };
        tokio::try_join!(dashboard, grpc, probe, metrics).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use mcpscope_core::ClockAnchor;
    use mcpscope_hub::Sources;
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn the_hub_makes_frames_while_readers_take_all_the_time_there_is() {
        let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
        let (reporter, health) = mcpscope_health::channel(anchor.mono);
        let sources =
            Sources { metrics: None, tracer: None, reporter, health, instrumentation: None, chaos: None, anchor };
        let update_interval = Duration::from_millis(10);
        let config = mcpscope_hub::Config { update_interval, ..mcpscope_hub::Config::default() };
        let (hub, reader, _admin) = hub(sources, config);
        let runtimes = Runtimes::new(false).unwrap();
        runtimes.hub.spawn(hub.run());
        runtimes.readers.block_on(async {
            let (begins, mut began) = tokio::sync::mpsc::unbounded_channel();
            let mut tasks = JoinSet::new();
            let mut held = Vec::new();
            // As many listeners as there are, and two requests to each.
            for turn in (0..4).map(|_| reader.turn()) {
                for _ in 0..2 {
                    let (go_on, until) = mpsc::channel::<()>();
                    held.push(go_on);
                    let (turn, begins) = (turn.clone(), begins.clone());
                    tasks.spawn(async move {
                        // The other end is gone when the test ends.
                        let work = move || (begins.send(()).is_ok(), until.recv().is_ok());
                        turn.work(work).await;
                    });
                }
            }
            began.recv().await.unwrap();
            let frames = async {
                let mut frames = reader.subscribe();
                while frames.next().await.unwrap().sequence < 3 {}
            };
            timeout(Duration::from_secs(10), frames).await.expect("the hub waits for a reader");
            assert!(began.try_recv().is_err(), "one reader works at a time");
            drop(held);
            tasks.join_all().await;
        });
    }
}
