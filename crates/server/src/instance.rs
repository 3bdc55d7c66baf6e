//! One running instance: what records, and what it records about.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use mcpscope_chaos::Mode;
use mcpscope_chaos::helper::Ready;
use mcpscope_config::{Configuration, CriticalMetric, MetricKind, Places, Settings};
use mcpscope_core::{ClockAnchor, Component, HostPolicy, Origins, Ratio, Transport};
use mcpscope_export::{Enabled, Exporter, Service};
use mcpscope_health::{Reporter, View};
use mcpscope_hooks::{Instrumentation, Observer, Parts, Probe};
use mcpscope_hub::Sources;
use mcpscope_metrics::{Declared, Kind, Metrics, Prometheus, RecordError, Recorder};
use mcpscope_proxy::{Limits, Paths, Traffic};
use mcpscope_tracing::{Export, Exports, Tracer};

use crate::access::Access;
use crate::chaos::Chaos;
use crate::cli::{self, Common, Propagate};
use crate::engine::{Engine, Targets};
use crate::failure::{Failure, say};

/// What records the traffic of this process.
pub(crate) struct Instance {
    pub(crate) settings: Settings,
    /// Where they were written.
    pub(crate) places: Places,
    /// The files that the configuration depends on.
    pub(crate) files: Vec<PathBuf>,
    /// What the configuration says about chaos.
    pub(crate) configured_chaos: Chaos,
    /// What starting experiments takes.
    pub(crate) access: Access,
    /// Whether the command line switches chaos off, which no reload changes.
    is_chaos_forbidden: bool,
    /// What is exported. [`mcpscope_export::Config::exports_traces`] is what `--propagate auto` goes by.
    pub(crate) export: mcpscope_export::Config,
    metrics: Option<Metrics>,
    tracer: Option<Tracer>,
    instrumentation: Option<Instrumentation>,
    chaos: Option<Engine>,
    propagate: Propagate,
    anchor: ClockAnchor,
    reporter: Reporter,
    view: View,
}

impl Instance {
    /// Reads the configuration and makes what records.
    pub(crate) fn new(common: &Common, name: &str, helper: Ready) -> Result<Self, Failure> {
        crate::logging::install(common.log, common.log_format);
        let loaded = Configuration::load(&common.config, mcpscope_config::environment(&[]));
        let configuration = loaded.map_err(Failure::usage)?;
        let configured_chaos = Chaos::read(&configuration, common.chaos).map_err(Failure::usage)?;
        let configured_chaos = configured_chaos.judged_by(common.steady_state.as_ref());
        let Configuration { settings, places, files, .. } = configuration;
        let access = Access::new(common.no_auth, &settings, &places)?;
        let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
        let on = settings.observability_enabled;
        let export = export_config(&settings)?;
        let metrics = if on && settings.metrics.enabled {
            let metrics = Metrics::new(&metrics_config(&settings), anchor);
            declare(&metrics, &settings.metrics.critical_metrics).map_err(Failure::usage)?;
            record_libraries(&metrics);
            Some(metrics)
        } else {
            None
        };
        let tracer = (on && settings.tracing.enabled)
            .then(|| Tracer::new(&tracing_config(&settings, export.traces.as_ref()), anchor, seed()));
        let instrumentation = if on { Some(instrumentation(&settings)?) } else { None };
        let (reporter, view) = mcpscope_health::channel(anchor.mono);
        let chaos =
            if on { Some(Engine::new(common, name, helper, &configured_chaos, anchor, view.clone())?) } else { None };
        let propagate = common.propagate;
        Ok(Self {
            settings,
            places,
            files,
            configured_chaos,
            access,
            is_chaos_forbidden: common.chaos == Some(cli::Chaos::Off),
            export,
            metrics,
            tracer,
            instrumentation,
            chaos,
            propagate,
            anchor,
            reporter,
            view,
        })
    }

    /// What the hub observes.
    pub(crate) fn sources(&self) -> Sources {
        Sources {
            metrics: self.metrics.clone(),
            tracer: self.tracer.clone(),
            reporter: self.reporter.clone(),
            health: self.view.clone(),
            instrumentation: self.instrumentation.clone(),
            chaos: self.chaos.as_ref().map(|engine| engine.source.clone()),
            anchor: self.anchor,
        }
    }

    /// Whether people can start experiments now: not where nothing is observed, or chaos is off.
    pub(crate) fn may_start_experiments(&self) -> bool {
        self.chaos.is_some() && self.configured_chaos.plan.mode != Mode::Off
    }

    /// Whether there is a chaos engine, be it off.
    pub(crate) const fn has_chaos(&self) -> bool {
        self.chaos.is_some()
    }

    /// Whether people can start experiments, or could after a reload: not where the command line forbids it.
    pub(crate) const fn may_ever_start_experiments(&self) -> bool {
        self.chaos.is_some() && !self.is_chaos_forbidden
    }

    /// Where servers that are started again are made known to the chaos engine.
    pub(crate) fn targets(&self) -> Targets {
        Targets::of(self.chaos.as_ref())
    }

    /// Where parts report how they are.
    pub(crate) fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// What the tracer holds for an exporter from now on, if there is one.
    pub(crate) fn exports(&self) -> Option<Exports> {
        self.tracer.as_ref()?.exports()
    }

    /// Whether there are metrics to show.
    pub(crate) fn has_metrics(&self) -> bool {
        self.metrics.is_some()
    }

    /// The interception point for one MCP server, which no fault may do anything to if it is `critical`.
    pub(crate) fn probe(&self, server: &str, transport: Transport, critical: bool) -> Probe {
        Probe::new(Parts {
            metrics: self.metrics.clone(),
            tracer: self.tracer.clone(),
            propagate: self.propagates(),
            instrumentation: self.instrumentation.clone(),
            injector: self.chaos.as_ref().map(|engine| engine.injector.clone()),
            observer: self.chaos.as_ref().map(|engine| engine.source.calls.clone() as Arc<dyn Observer>),
            critical,
            ..Parts::new(server, transport)
        })
    }

    /// Whether requests are passed on with our trace context.
    fn propagates(&self) -> bool {
        match self.propagate {
            Propagate::Auto => self.export.exports_traces() && self.export.propagators.trace_context,
            Propagate::On => {
                if self.tracer.is_none() {
                    tracing::warn!("--propagate on does nothing: tracing.enabled is false");
                }
                true
            }
            Propagate::Off => false,
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            max_message: usize::try_from(self.settings.proxy.max_message_bytes).unwrap_or(usize::MAX),
            queue_messages: self.settings.proxy.queue_messages,
            queue_bytes: usize::try_from(self.settings.proxy.queue_bytes).unwrap_or(usize::MAX),
            call_timeout: self.settings.tracing.call_timeout,
        }
    }

    /// The traffic path as components and a condition of readiness.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic::new(self.reporter.clone())
    }

    /// The traffic paths to many servers as components and a condition of readiness.
    pub(crate) fn paths(&self) -> Paths {
        Paths::new(self.reporter.clone())
    }

    /// The host policy of a proxy listener that is bound to `addr`.
    pub(crate) fn proxy_hosts(&self, addr: SocketAddr) -> HostPolicy {
        let proxy = &self.settings.proxy;
        HostPolicy {
            allowed_hosts: proxy.allowed_hosts.clone(),
            allowed_origins: proxy.allowed_origins.clone(),
            // Inspectors and other pages of this machine are clients of MCP servers.
            origins: Origins::Loopback,
            // Someone who listens for the network on purpose is called by names that we cannot know, unless they say so.
            any_host: !addr.ip().is_loopback() && proxy.allowed_hosts.is_empty(),
        }
    }
}

fn metrics_config(settings: &Settings) -> mcpscope_metrics::Config {
    let metrics = &settings.metrics;
    let (idle_timeout, max_series) = (mcpscope_metrics::Config::DEFAULT_IDLE_TIMEOUT, Prometheus::DEFAULT_MAX_SERIES);
    let others = Prometheus::new(idle_timeout, max_series, Instant::now);
    mcpscope_metrics::Config {
        idle_timeout,
        retention: metrics.retention,
        max_label_values: metrics.max_label_values,
        sampling_rate: metrics.sampling_rate.get(),
        general: Some(Arc::new(others)),
        ..mcpscope_metrics::Config::default()
    }
}

/// Makes the metrics that are critical because the configuration says so.
fn declare(metrics: &Metrics, critical: &[CriticalMetric]) -> Result<(), RecordError> {
    critical.iter().try_for_each(|metric| {
        let kind = match metric.kind {
            MetricKind::Counter => Kind::Counter,
            MetricKind::Gauge => Kind::Gauge,
            MetricKind::Histogram => Kind::Histogram,
        };
        metrics.declare(&Declared::new(&metric.name, kind, &metric.help)?)
    })
}

/// What libraries of this process emit through the `metrics` facade is recorded from now on.
fn record_libraries(metrics: &Metrics) {
    let on_refused = |name: &str, why: &dyn Error| tracing::warn!(name, %why, "a metric of a library is not recorded");
    let recorder = Recorder::new(metrics.clone(), Instant::now, on_refused);
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("metrics of libraries are not recorded: there is another recorder");
    }
}

fn tracing_config(settings: &Settings, export: Option<&mcpscope_export::Traces>) -> mcpscope_tracing::Config {
    let tracing = &settings.tracing;
    let named = |name: &String| Component::ALL.into_iter().find(|component| component.as_str() == name);
    mcpscope_tracing::Config {
        max_traces: tracing.max_traces,
        max_bytes: usize::try_from(tracing.max_bytes).unwrap_or(usize::MAX),
        // Both are shares in 0..=1, checked when the settings were read.
        sampling_rate: Ratio::new(tracing.sampling_rate.get()).unwrap_or(Ratio::ONE),
        critical_paths: tracing.critical_paths.iter().filter_map(named).collect(),
        export: export.map(|traces| Export { sampler: traces.sampler, max_bytes: traces.max_queue_bytes() }),
    }
}

/// What is exported by the configuration and the standard variables; what is wrong with those is said, and passed over.
fn export_config(settings: &Settings) -> Result<mcpscope_export::Config, Failure> {
    let otel = &settings.otel;
    let enabled = match otel.enabled {
        _ if !settings.observability_enabled => Enabled::Off,
        None => Enabled::Auto,
        Some(true) => Enabled::On,
        Some(false) => Enabled::Off,
    };
    let exporter = |name: &String| if name == "console" { Exporter::Console } else { Exporter::Otlp };
    let wanted = mcpscope_export::Settings {
        enabled,
        service_name: otel.service_name.clone(),
        exporters: otel.exporters.iter().map(exporter).collect(),
        sampler: mcpscope_export::parse_sampler(&otel.sampling).map_err(Failure::usage)?,
    };
    let service = Service { version: env!("CARGO_PKG_VERSION").to_owned(), instance_id: instance_id() };
    let (mut export, warnings) = mcpscope_export::Config::read(&wanted, &service, mcpscope_export::environment());
    warnings.iter().for_each(|warning| say(format_args!("mcpscope: {warning}")));
    export.traces = export.traces.filter(|_| settings.tracing.enabled);
    export.metrics = export.metrics.filter(|_| settings.metrics.enabled);
    Ok(export)
}

fn instrumentation(settings: &Settings) -> Result<Instrumentation, Failure> {
    let configured = &settings.instrumentation;
    let instrumentation = Instrumentation::new(configured.auto_instrument);
    let components = configured.components.by_name().into_iter().filter(|_| configured.auto_instrument);
    for (component, functions) in components {
        if functions.is_empty() {
            instrumentation.uninstrument(component).map_err(Failure::usage)?;
        } else {
            instrumentation.instrument(component, functions.to_vec()).map_err(Failure::usage)?;
        }
    }
    Ok(instrumentation)
}

/// A seed nobody can guess, from the keys that the standard library draws from the system for its hash maps.
pub(crate) fn seed() -> u64 {
    use std::hash::BuildHasher as _;
    std::hash::RandomState::new().hash_one(std::process::id())
}

/// An id that no other instance has.
fn instance_id() -> String {
    let random = (u128::from(seed()) << 64) | u128::from(seed());
    uuid::Builder::from_random_bytes(random.to_be_bytes()).into_uuid().to_string()
}

/// The name of something in labels, from what the user called it.
pub(crate) fn server_name(given: Option<&str>, otherwise: &str) -> Arc<str> {
    given.unwrap_or(otherwise).into()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn loaded(name: &str, kind: &str) -> Option<Settings> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "metrics: {{ critical_metrics: [{{ name: {name}, kind: {kind} }}] }}").unwrap();
        Settings::load(&[file.path().to_owned()], []).ok()
    }

    #[test]
    fn what_the_configuration_takes_can_be_declared() {
        let endings = ["", "_total", "_ms", "_seconds", "_bytes", "_count", "_sum", "_bucket", "_created", "_info"];
        let mut taken = 0;
        for start in ["", "x", "mcp", "mcpscope", "process"] {
            for (one, two) in endings.iter().flat_map(|one| endings.iter().map(move |two| (one, two))) {
                for kind in ["counter", "gauge", "histogram"] {
                    let name = format!("{start}{one}{two}");
                    let Some(settings) = loaded(&name, kind) else { continue };
                    let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
                    let metrics = Metrics::new(&metrics_config(&settings), anchor);
                    let declared = declare(&metrics, &settings.metrics.critical_metrics);
                    assert!(declared.is_ok(), "{kind} {name}: {declared:?}");
                    taken += 1;
                }
            }
        }
        assert!(taken > 50, "{taken}");
    }
}
