//! What is exported, and where to: mcpscope's own settings, and the standard variables, which beat them.

mod endpoint;
mod variables;

use std::fmt;
use std::time::Duration;

use mcpscope_core::Ratio;
use mcpscope_tracing::Sampler;
use opentelemetry_proto::tonic::resource::v1::Resource;

pub use endpoint::{Endpoint, Headers, Protocol, Tls};
pub use variables::{Warning, environment};

use crate::condition::Destination;
use crate::convert;
use endpoint::Signal;
use variables::Variables;

/// What mcpscope's own configuration says.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Whether anything is exported.
    pub enabled: Enabled,
    /// `service.name`.
    pub service_name: String,
    /// Where to.
    pub exporters: Vec<Exporter>,
    /// Which traces.
    pub sampler: Sampler,
}

impl Default for Settings {
    fn default() -> Self {
        let sampler = Sampler { share: Ratio::ONE, parent_based: false };
        let (enabled, exporters) = (Enabled::Auto, vec![Exporter::Otlp]);
        Self { enabled, service_name: "mcpscope".to_owned(), exporters, sampler }
    }
}

/// Whether anything is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enabled {
    /// What the standard variables give an endpoint or an exporter.
    Auto,
    /// Traces and metrics.
    On,
    /// Nothing, whatever the variables say.
    Off,
}

/// Where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exporter {
    /// A collector.
    Otlp,
    /// A console, for traces; metrics have their page.
    Console,
}

/// Who exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `service.version`.
    pub version: String,
    /// `service.instance.id`: one that no other has.
    pub instance_id: String,
}

/// What is exported, and where to.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The traces, if any are.
    pub traces: Option<Traces>,
    /// The metrics, if they are.
    pub metrics: Option<Metrics>,
    /// Which context is passed on with requests; a matter of whoever does that.
    pub propagators: Propagators,
    pub(crate) resource: Resource,
}

/// How traces are exported.
#[derive(Clone, Debug, PartialEq)]
pub struct Traces {
    /// The collector, if there is one.
    pub otlp: Option<Endpoint>,
    /// Whether each span is shown on the console.
    pub console: bool,
    /// Which traces.
    pub sampler: Sampler,
    /// How long a span waits at most for others to be sent with. Default: 5 s.
    pub schedule_delay: Duration,
    /// Most spans that wait. Default: 2048.
    pub max_queue_spans: usize,
    /// Most spans sent together. Default: 512.
    pub max_batch_spans: usize,
    /// How long one batch is tried. Default: 30 s.
    pub export_timeout: Duration,
}

/// How metrics are exported.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// The collector.
    pub otlp: Endpoint,
    /// From one export to the next. Default: 60 s.
    pub interval: Duration,
    /// How long one export is tried. Default: 30 s.
    pub export_timeout: Duration,
}

/// Which context is passed on with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagators {
    /// `traceparent` and `tracestate`.
    pub trace_context: bool,
    /// `baggage`.
    pub baggage: bool,
}

impl Default for Propagators {
    fn default() -> Self {
        Self { trace_context: true, baggage: true }
    }
}

impl Config {
    /// What is exported if mcpscope is configured like this and has these `variables`, of which those that are standard
    /// ([`environment`]) count; and what is wrong with them. What is wrong is passed over, as the OpenTelemetry
    /// specification wants it.
    pub fn read(
        settings: &Settings,
        service: &Service,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> (Self, Vec<Warning>) {
        let mut variables = Variables::new(variables);
        let resource = resource(settings, service, &mut variables);
        let propagators = propagators(&mut variables);
        let is_off = settings.enabled == Enabled::Off || variables.flag("OTEL_SDK_DISABLED");
        let [traces, metrics] = if is_off {
            [None, None]
        } else {
            [Signal::Traces, Signal::Metrics].map(|signal| Wanted::of(signal, settings, &mut variables))
        };
        let traces = traces.map(|wanted| Traces::new(wanted, settings.sampler, &mut variables));
        let metrics = metrics.and_then(|wanted| Some(Metrics::new(wanted.otlp?, &mut variables)));
        let config = Self { traces, metrics, propagators, resource };
        let mut warnings = variables.into_warnings();
        for Warning { variable, message } in &mut warnings {
            if let Some(consequence) = config.without_endpoint(variable) {
                message.push_str(&format!("; {consequence}"));
            }
        }
        (config, warnings)
    }

    /// What becomes of the signals for which this variable would give an endpoint, where it is passed over.
    fn without_endpoint(&self, variable: &str) -> Option<String> {
        let traces = ("traces", self.traces.as_ref().map(|traces| traces.destination().full));
        let metrics = ("metrics", self.metrics.as_ref().map(|metrics| metrics.otlp.to_string()));
        let concerned = match variable {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => vec![traces, metrics],
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => vec![traces],
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT" => vec![metrics],
            _ => return None,
        };
        if concerned.iter().all(|(_, to)| to.is_none()) {
            let names: Vec<_> = concerned.iter().map(|(signal, _)| *signal).collect();
            return Some(format!("{} are not exported", names.join(" and ")));
        }
        let become_of = concerned.into_iter().map(|(signal, to)| match to {
            Some(to) => format!("{signal} go to {to}"),
            None => format!("{signal} are not exported"),
        });
        Some(become_of.collect::<Vec<_>>().join(", "))
    }

    /// Whether traces are exported: whoever passes context on only while somebody sees it asks this.
    #[must_use]
    pub const fn exports_traces(&self) -> bool {
        self.traces.is_some()
    }

    /// Whether anything is exported.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.traces.is_some() || self.metrics.is_some()
    }

    /// What goes where, for people; without anything secret.
    #[must_use]
    pub fn destinations(&self) -> Vec<String> {
        let traces = self.traces.as_ref().map(|traces| {
            let console = traces.console.then(|| "the console".to_owned());
            let all: Vec<_> = traces.otlp.as_ref().map(Endpoint::to_string).into_iter().chain(console).collect();
            format!("traces to {}", all.join(" and "))
        });
        let metrics = self.metrics.as_ref().map(|metrics| {
            format!("metrics to {} every {}", metrics.otlp, humantime::format_duration(metrics.interval))
        });
        traces.into_iter().chain(metrics).collect()
    }
}

impl Traces {
    /// Memory for spans that wait, in bytes: about what so many of them take.
    #[must_use]
    pub const fn max_queue_bytes(&self) -> usize {
        self.max_queue_spans.saturating_mul(1024)
    }

    /// Where they go, for people.
    pub(crate) fn destination(&self) -> Destination {
        self.otlp.as_ref().map_or_else(Destination::console, Endpoint::destination)
    }

    fn new(wanted: Wanted, sampler: Sampler, variables: &mut Variables) -> Self {
        let max_queue_spans = variables.count("OTEL_BSP_MAX_QUEUE_SIZE").unwrap_or(2048);
        let max_batch_spans = variables.count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE").unwrap_or(512);
        Self {
            otlp: wanted.otlp,
            console: wanted.console,
            sampler: standard_sampler(variables).unwrap_or(sampler),
            schedule_delay: variables.millis("OTEL_BSP_SCHEDULE_DELAY", 0).unwrap_or(Duration::from_secs(5)),
            max_queue_spans,
            max_batch_spans: max_batch_spans.min(max_queue_spans),
            export_timeout: variables.timeout("OTEL_BSP_EXPORT_TIMEOUT").unwrap_or(Duration::from_secs(30)),
        }
    }
}

impl Metrics {
    fn new(otlp: Endpoint, variables: &mut Variables) -> Self {
        Self {
            otlp,
            // With none there would be no pause.
            interval: variables.millis("OTEL_METRIC_EXPORT_INTERVAL", 1).unwrap_or(Duration::from_secs(60)),
            export_timeout: variables.timeout("OTEL_METRIC_EXPORT_TIMEOUT").unwrap_or(Duration::from_secs(30)),
        }
    }
}

/// Where one signal is to go.
struct Wanted {
    otlp: Option<Endpoint>,
    console: bool,
}

impl Wanted {
    /// Nothing if it is not to be exported.
    fn of(signal: Signal, settings: &Settings, variables: &mut Variables) -> Option<Self> {
        let chosen = signal.exporters(variables);
        let is_on = settings.enabled == Enabled::On || chosen.is_some() || Endpoint::is_given(signal, variables);
        let exporters = chosen.unwrap_or_else(|| settings.exporters.clone());
        if !is_on {
            return None;
        }
        let otlp = exporters.contains(&Exporter::Otlp).then(|| Endpoint::read(signal, variables));
        let console = exporters.contains(&Exporter::Console);
        (otlp.is_some() || console).then_some(Self { otlp, console })
    }
}

impl Signal {
    /// What the standard variable chooses; nothing where it says nothing that we know.
    fn exporters(self, variables: &mut Variables) -> Option<Vec<Exporter>> {
        let name = format!("OTEL_{}_EXPORTER", self.as_str());
        let expected = match self {
            Self::Traces => "otlp, console or none",
            Self::Metrics => "otlp or none; all metrics are at /metrics too",
        };
        let chosen = variables.list(&name, expected, |exporter| match (self, exporter) {
            (_, "otlp") => Some(Some(Exporter::Otlp)),
            (Self::Traces, "console") => Some(Some(Exporter::Console)),
            // They are always there for Prometheus.
            (_, "none") | (Self::Metrics, "prometheus") => Some(None),
            _ => None,
        })?;
        Some(chosen.into_iter().flatten().collect())
    }
}

fn resource(settings: &Settings, service: &Service, variables: &mut Variables) -> Resource {
    let mut attributes = vec![
        ("service.name".to_owned(), settings.service_name.clone()),
        ("service.version".to_owned(), service.version.clone()),
        ("service.instance.id".to_owned(), service.instance_id.clone()),
    ];
    let mut set = |name: String, value: String| match attributes.iter_mut().find(|(known, _)| *known == name) {
        Some((_, known)) => *known = value,
        None => attributes.push((name, value)),
    };
    let given = variables.pairs("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    given.into_iter().for_each(|(name, value)| set(name, value));
    if let Some(name) = variables.text("OTEL_SERVICE_NAME") {
        set("service.name".to_owned(), name);
    }
    // As the specification wants it of whoever is not OpenTelemetry's own library; it is not for others to say.
    for (name, value) in [("name", "mcpscope"), ("language", "rust"), ("version", env!("CARGO_PKG_VERSION"))] {
        set(format!("telemetry.sdk.{name}"), value.to_owned());
    }
    convert::resource(attributes)
}

fn propagators(variables: &mut Variables) -> Propagators {
    let expected = "tracecontext, baggage or none";
    let listed = variables.list("OTEL_PROPAGATORS", expected, |name| {
        matches!(name, "tracecontext" | "baggage" | "none").then(|| name.to_owned())
    });
    let Some(listed) = listed else { return Propagators::default() };
    let has = |wanted: &str| listed.iter().any(|name| name == wanted);
    Propagators { trace_context: has("tracecontext"), baggage: has("baggage") }
}

/// What the standard variables say of sampling.
fn standard_sampler(variables: &mut Variables) -> Option<Sampler> {
    const NAME: &str = "OTEL_TRACES_SAMPLER";
    const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
    let expected = "always_on, always_off, traceidratio, or one of them after parentbased_";
    let name = variables.choice(NAME, expected, |name| kind_of(name).map(|_| name.to_owned()))?;
    let (parent_based, kind) = kind_of(&name)?;
    let share = match kind {
        Kind::On => Ratio::ONE,
        Kind::Off => Ratio::ZERO,
        Kind::Share => variables.choice(ARGUMENT, "a number from 0 to 1", share).unwrap_or(Ratio::ONE),
    };
    Some(Sampler { share, parent_based })
}

fn share(text: &str) -> Option<Ratio> {
    Ratio::new(text.parse().ok()?).ok()
}

enum Kind {
    On,
    Off,
    Share,
}

fn kind_of(name: &str) -> Option<(bool, Kind)> {
    let (parent_based, kind) = match name.strip_prefix("parentbased_") {
        Some(kind) => (true, kind),
        None => (false, name),
    };
    let kind = match kind {
        "always_on" => Kind::On,
        "always_off" => Kind::Off,
        "traceidratio" => Kind::Share,
        _ => return None,
    };
    Some((parent_based, kind))
}

/// Reads `always_on`, `always_off` or `traceidratio:0.1`, each also after `parentbased_`: the standard names, with what is a
/// variable of its own there.
///
/// # Errors
/// [`InvalidSampler`].
pub fn parse_sampler(text: &str) -> Result<Sampler, InvalidSampler> {
    let invalid = || InvalidSampler(text.to_owned());
    let (name, argument) = text.split_once(':').map_or((text, None), |(name, share)| (name, Some(share)));
    let (parent_based, kind) = kind_of(name).ok_or_else(invalid)?;
    let share = match (kind, argument) {
        (Kind::On, None) => Ratio::ONE,
        (Kind::Off, None) => Ratio::ZERO,
        (Kind::Share, Some(text)) => share(text).ok_or_else(invalid)?,
        _ => return Err(invalid()),
    };
    Ok(Sampler { share, parent_based })
}

/// Not a way to choose traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidSampler(pub String);

impl fmt::Display for InvalidSampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected always_on, always_off or traceidratio:0.1, also after parentbased_, found \"{}\"", self.0)
    }
}

impl std::error::Error for InvalidSampler {}

#[cfg(test)]
mod tests;
