//! One running instance: what observes, and the thread that serves it.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use mcpscope_config::Settings;
use mcpscope_core::{ClockAnchor, Component, HostPolicy, Ratio, Transport};
use mcpscope_dashboard::{Sources, check_loopback};
use mcpscope_health::{Reporter, State, View};
use mcpscope_hooks::{Parts, Probe};
use mcpscope_metrics::Metrics;
use mcpscope_proxy::{Limits, Traffic};
use mcpscope_tracing::Tracer;
use tokio_util::sync::CancellationToken;

use crate::cli::Common;
use crate::failure::{Failure, say};
use crate::listen::{Address, Bound, DashboardAt, bind_or_fail};

/// How long the observing side may take to end.
const END: Duration = Duration::from_secs(3);

/// What observes the traffic of this process.
pub(crate) struct Instance {
    pub(crate) settings: Settings,
    pub(crate) metrics: Option<Metrics>,
    tracer: Option<Tracer>,
    anchor: ClockAnchor,
    reporter: Reporter,
    view: View,
}

/// Whether a dashboard port that is taken ends the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Always.
    Fails,
    /// Not if nobody chose the port: a free one will do.
    MovesTheDefault,
}

impl Instance {
    /// Reads the configuration and makes what observes.
    pub(crate) fn new(common: &Common) -> Result<Self, Failure> {
        crate::logging::install(common.log, common.log_format);
        let settings = Settings::load(&common.config, mcpscope_config::environment(&[])).map_err(Failure::usage)?;
        let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
        let on = settings.observability_enabled;
        let metrics = (on && settings.metrics.enabled).then(|| {
            let config = mcpscope_metrics::Config {
                retention: settings.metrics.retention,
                max_label_values: settings.metrics.max_label_values,
            };
            Metrics::new(&config, anchor)
        });
        let tracer = (on && settings.tracing.enabled).then(|| Tracer::new(&tracing_config(&settings), anchor, seed()));
        let (reporter, view) = mcpscope_health::channel(anchor.mono);
        Ok(Self { settings, metrics, tracer, anchor, reporter, view })
    }

    /// The interception point for one MCP server.
    pub(crate) fn probe(&self, server: &str, transport: Transport) -> Probe {
        let (metrics, tracer) = (self.metrics.clone(), self.tracer.clone());
        Probe::new(Parts { metrics, tracer, ..Parts::new(server, transport) })
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            max_message: usize::try_from(self.settings.proxy.max_message_bytes).unwrap_or(usize::MAX),
            call_timeout: self.settings.tracing.call_timeout,
            ..Limits::default()
        }
    }

    /// The traffic path as a component and a condition of readiness.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic::new(self.reporter.clone())
    }

    /// Binds the dashboard; nothing if it is off.
    pub(crate) fn bind_dashboard(&self, common: &Common, taken: Taken) -> Result<Option<Bound>, Failure> {
        let configured = &self.settings.dashboard;
        let chosen = match &common.dashboard {
            Some(DashboardAt::Off) => return Ok(None),
            Some(DashboardAt::At(address)) => Some(address.clone()),
            None => None,
        };
        if !self.settings.observability_enabled {
            if chosen.is_some() {
                say("mcpscope: no dashboard: observability_enabled is false");
            }
            return Ok(None);
        }
        if !configured.enabled && chosen.is_none() {
            return Ok(None);
        }
        let defaults = Settings::default().dashboard;
        let is_default = chosen.is_none() && configured.host == defaults.host && configured.port == defaults.port;
        let address = chosen.unwrap_or_else(|| Address { host: configured.host.clone(), port: configured.port });
        for resolved in address.resolve().map_err(Failure::usage)? {
            check_loopback(resolved).map_err(Failure::usage)?;
        }
        if !is_default || taken == Taken::Fails {
            return bind_or_fail(&address, "--dashboard").map(Some);
        }
        // Whatever is wrong with a port that nobody asked for, the MCP server must start.
        let bound = address.bind().or_else(|error| {
            say(format_args!("mcpscope: {error:#}; the dashboard takes a free port instead"));
            Address { port: 0, ..address }.bind()
        });
        Ok(bound.map_err(|error| say(format_args!("mcpscope: no dashboard: {error:#}"))).ok())
    }

    /// Starts the thread that serves the dashboard and closes windows.
    ///
    /// A thread and runtime of its own: it answers while the traffic takes every worker, and nothing in it can hold the
    /// traffic up.
    pub(crate) fn observe(&self, dashboard: Option<Bound>) -> Result<Observing, Failure> {
        let stop = CancellationToken::new();
        let ready = self.reporter.require("observability");
        let report = self.reporter.clone();
        report.set("observability", State::Healthy, "Observability running", SystemTime::now());
        let sources = Sources {
            metrics: self.metrics.clone(),
            tracer: self.tracer.clone(),
            health: self.view.clone(),
            anchor: self.anchor,
        };
        let config = mcpscope_dashboard::Config {
            allowed_hosts: self.settings.dashboard.allowed_hosts.clone(),
            allowed_origins: self.settings.dashboard.allowed_origins.clone(),
            ..mcpscope_dashboard::Config::default()
        };
        let windows = self.metrics.clone().map(|metrics| (metrics, self.settings.metrics.aggregation_interval));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::internal)?;
        let token = stop.clone();
        let work = async move {
            let served = async {
                match dashboard {
                    Some(bound) => {
                        let listeners = bound.into_tokio()?;
                        ready.met();
                        mcpscope_dashboard::serve(listeners, sources, config, token.cancelled()).await?;
                    }
                    None => {
                        ready.met();
                        token.cancelled().await;
                    }
                }
                anyhow::Ok(())
            };
            tokio::select! {
                served = served => served,
                () = close_windows(windows) => Ok(()),
            }
        };
        let thread = std::thread::Builder::new()
            .name("mcpscope-observe".into())
            .spawn(move || {
                let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(work)));
                let error = match worked {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => format!("{error:#}"),
                    Err(_) => "it panicked".to_owned(),
                };
                tracing::error!(error, "observability ended; the traffic goes on");
                report.set("observability", State::Critical, "Observability not running", SystemTime::now());
            })
            .context("cannot start the observing thread")
            .map_err(Failure::internal)?;
        Ok(Observing { stop, thread })
    }

    /// The host policy of a proxy listener that is bound to `addr`.
    pub(crate) fn proxy_hosts(&self, addr: std::net::SocketAddr) -> HostPolicy {
        let proxy = &self.settings.proxy;
        HostPolicy {
            allowed_hosts: proxy.allowed_hosts.clone(),
            allowed_origins: proxy.allowed_origins.clone(),
            // Someone who listens for the network on purpose is called by names that we cannot know, unless they say so.
            any_host: !addr.ip().is_loopback() && proxy.allowed_hosts.is_empty(),
        }
    }
}

fn tracing_config(settings: &Settings) -> mcpscope_tracing::Config {
    let tracing = &settings.tracing;
    let named = |name: &String| Component::ALL.into_iter().find(|component| component.as_str() == name);
    mcpscope_tracing::Config {
        max_traces: tracing.max_traces,
        max_bytes: usize::try_from(tracing.max_bytes).unwrap_or(usize::MAX),
        // Both are shares in 0..=1, checked when the settings were read.
        sampling_rate: Ratio::new(tracing.sampling_rate.get()).unwrap_or(Ratio::ONE),
        critical_paths: tracing.critical_paths.iter().filter_map(named).collect(),
    }
}

/// A seed nobody can guess, from the keys that the standard library draws from the system for its hash maps.
fn seed() -> u64 {
    use std::hash::BuildHasher as _;
    std::hash::RandomState::new().hash_one(std::process::id())
}

async fn close_windows(windows: Option<(Metrics, Duration)>) {
    let Some((metrics, interval)) = windows else { return std::future::pending().await };
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tick.tick().await;
        let metrics = metrics.clone();
        // It copies every series: not on the thread that answers.
        let closed = tokio::task::spawn_blocking(move || metrics.close_window(Instant::now())).await;
        if let Err(error) = closed {
            tracing::error!(%error, "a window could not be closed");
        }
    }
}

/// The observing thread.
#[derive(Debug)]
pub(crate) struct Observing {
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

impl Observing {
    /// Ends it, waiting a bounded time.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        let Self { thread, .. } = self;
        let joined = tokio::task::spawn_blocking(move || thread.join());
        let _ = tokio::time::timeout(END, joined).await;
    }
}

/// The name of something in labels, from what the user called it.
pub(crate) fn server_name(given: Option<&str>, otherwise: &str) -> Arc<str> {
    given.unwrap_or(otherwise).into()
}
