//! The JSON shapes. Times are ms since the epoch; durations are ms unless the name says otherwise.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use mcpscope_core::Labels;
use mcpscope_hub::chaos::{self, ChaosStatus, Kind, Parameter};
use mcpscope_hub::health::{ChildUsage, ComponentReport, Readiness, Report, Usage};
use mcpscope_hub::metrics::{self, MetricSeries, MetricView, RawRecord, Stats};
use mcpscope_hub::{Change, Frame, InstrumentationStatus, InstrumentedComponent, tracing};
use serde::Serialize;

pub(crate) fn ms_since_epoch(time: SystemTime) -> u64 {
    whole_ms(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn whole_us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn by_name(attributes: &[tracing::Attribute]) -> BTreeMap<&str, String> {
    attributes.iter().map(|(name, value)| (&**name, value.to_string())).collect()
}

fn labels(labels: &Labels) -> BTreeMap<&str, &str> {
    labels.iter().collect()
}

/// `GET /healthz`.
#[derive(Debug, Serialize)]
pub(crate) struct Alive {
    pub(crate) status: &'static str,
    pub(crate) uptime: u64,
    pub(crate) timestamp: u64,
}

/// `GET /readyz`.
#[derive(Debug, Serialize)]
pub(crate) struct Ready<'a> {
    ready: bool,
    missing: Vec<Missing<'a>>,
    timestamp: u64,
}

#[derive(Debug, Serialize)]
struct Missing<'a> {
    name: &'a str,
    reason: &'a str,
}

impl<'a> Ready<'a> {
    pub(crate) fn new(readiness: &'a Readiness, timestamp: u64) -> Self {
        let missing = readiness.missing.iter().map(|m| Missing { name: &m.name, reason: &m.reason }).collect();
        Self { ready: readiness.ready, missing, timestamp }
    }
}

/// `health` of the shapes.
#[derive(Debug, Serialize)]
pub(crate) struct Health<'a> {
    overall: &'static str,
    health_percentage: f64,
    components: BTreeMap<&'a str, Component<'a>>,
    uptime: u64,
    timestamp: u64,
}

#[derive(Debug, Serialize)]
struct Component<'a> {
    status: &'static str,
    message: &'a str,
    since: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
}

impl<'a> From<&'a Report> for Health<'a> {
    fn from(report: &'a Report) -> Self {
        Self {
            overall: report.overall.as_str(),
            health_percentage: report.health_percentage,
            components: report.components.iter().map(|(name, c)| (name.as_str(), c.into())).collect(),
            uptime: whole_ms(report.uptime),
            timestamp: ms_since_epoch(report.timestamp),
        }
    }
}

impl<'a> From<&'a ComponentReport> for Component<'a> {
    fn from(component: &'a ComponentReport) -> Self {
        Self {
            status: component.state.as_str(),
            message: &component.message,
            since: ms_since_epoch(component.since),
            rate: component.rate,
            count: component.count,
        }
    }
}

/// `dashboard` of the shapes. What is not known is `null`.
#[derive(Debug, Serialize)]
pub(crate) struct Dashboard<'a> {
    timestamp: u64,
    metrics: Metrics<'a>,
    traces: Vec<Trace<'a>>,
    /// `null` where there is no chaos, and before the first tick.
    chaos_status: Option<&'a ChaosStatus>,
    system_health: Health<'a>,
    active_connections: u64,
    system_uptime: u64,
    memory_usage: Option<u64>,
    memory_ratio: Option<f64>,
    cpu_usage: Option<f64>,
    /// Always empty: there are no alerts in this version.
    alerts: [(); 0],
    processes: Vec<Process<'a>>,
}

/// What a supervised process takes of the machine.
#[derive(Debug, Serialize)]
struct Process<'a> {
    name: &'a str,
    pid: u32,
    memory_usage: Option<u64>,
    memory_ratio: Option<f64>,
    cpu_usage: f64,
}

impl<'a> From<&'a Frame> for Dashboard<'a> {
    fn from(frame: &'a Frame) -> Self {
        Self {
            timestamp: ms_since_epoch(frame.timestamp),
            metrics: Metrics::shown(frame),
            traces: frame.traces.iter().map(|trace| Trace::from(&**trace)).collect(),
            chaos_status: frame.chaos.as_ref(),
            system_health: Health::from(&*frame.health),
            active_connections: frame.active_connections,
            system_uptime: whole_ms(frame.uptime),
            memory_usage: frame.usage.and_then(|usage| usage.resident_bytes),
            memory_ratio: frame.usage.and_then(|usage| usage.memory_ratio),
            cpu_usage: frame.usage.map(|usage| usage.cpu_ratio),
            alerts: [],
            processes: frame.children.iter().map(Into::into).collect(),
        }
    }
}

impl<'a> From<&'a ChildUsage> for Process<'a> {
    fn from(child: &'a ChildUsage) -> Self {
        Self {
            name: &child.name,
            pid: child.pid,
            memory_usage: child.usage.resident_bytes,
            memory_ratio: child.usage.memory_ratio,
            cpu_usage: child.usage.cpu_ratio,
        }
    }
}

/// `metrics` of the shapes. What is not known is `null`.
#[derive(Debug, Serialize)]
pub(crate) struct Metrics<'a> {
    #[serde(flatten)]
    metrics: BTreeMap<&'a str, Metric<'a>>,
    timestamp: u64,
    system_uptime: u64,
    memory_usage: Option<u64>,
    cpu_usage: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Metric<'a> {
    unit: &'static str,
    kind: &'static str,
    series: Vec<Series<'a>>,
}

#[derive(Debug, Serialize)]
struct Series<'a> {
    labels: BTreeMap<&'a str, &'a str>,
    value: f64,
    window: Option<Window>,
}

#[derive(Debug, Serialize)]
struct Window {
    min: f64,
    max: f64,
    avg: f64,
    count: u64,
    sum: f64,
    p50: f64,
    p90: f64,
    p95: f64,
    p99: f64,
    rate: f64,
}

impl<'a> Metrics<'a> {
    pub(crate) fn new(views: &'a [MetricView], timestamp: SystemTime, uptime: Duration, usage: Option<Usage>) -> Self {
        Self {
            metrics: views.iter().map(|view| (&*view.name, view.into())).collect(),
            timestamp: ms_since_epoch(timestamp),
            system_uptime: whole_ms(uptime),
            memory_usage: usage.and_then(|usage| usage.resident_bytes),
            cpu_usage: usage.map(|usage| usage.cpu_ratio),
        }
    }

    /// All series of a frame.
    pub(crate) fn all(frame: &'a Frame) -> Self {
        Self::of(frame, frame.metrics.as_ref().map_or(&[], |metrics| &metrics.views))
    }

    /// The most active series of a frame.
    pub(crate) fn shown(frame: &'a Frame) -> Self {
        Self::of(frame, frame.metrics.as_ref().map_or(&[], |metrics| &metrics.shown))
    }

    fn of(frame: &'a Frame, views: &'a [MetricView]) -> Self {
        Self::new(views, frame.timestamp, frame.uptime, frame.usage)
    }
}

impl<'a> From<&'a MetricView> for Metric<'a> {
    fn from(view: &'a MetricView) -> Self {
        Self { unit: view.unit, kind: view.kind, series: view.series.iter().map(Into::into).collect() }
    }
}

impl<'a> From<&'a MetricSeries> for Series<'a> {
    fn from(series: &'a MetricSeries) -> Self {
        Self { labels: labels(&series.labels), value: series.value, window: series.window.map(Into::into) }
    }
}

impl From<Stats> for Window {
    fn from(stats: Stats) -> Self {
        let Stats { min, max, avg, count, sum, p50, p90, p95, p99, rate } = stats;
        Self { min, max, avg, count, sum, p50, p90, p95, p99, rate }
    }
}

/// `summary` of the shapes.
#[derive(Debug, Serialize)]
pub(crate) struct Summary<'a> {
    timestamp: u64,
    critical_metrics: usize,
    total_metrics: usize,
    aggregates: BTreeMap<&'a str, Aggregate>,
    counters: BTreeMap<&'a str, u64>,
}

#[derive(Debug, Serialize)]
struct Aggregate {
    min: f64,
    max: f64,
    avg: f64,
    count: u64,
    sum: f64,
}

impl<'a> From<&'a metrics::Summary> for Summary<'a> {
    fn from(summary: &'a metrics::Summary) -> Self {
        Self {
            timestamp: ms_since_epoch(summary.timestamp),
            critical_metrics: summary.critical_metrics,
            total_metrics: summary.total_metrics,
            aggregates: summary.aggregates.iter().map(|(name, stats)| (&**name, (*stats).into())).collect(),
            counters: summary.counters.iter().map(|(name, count)| (&**name, *count)).collect(),
        }
    }
}

impl From<Stats> for Aggregate {
    fn from(stats: Stats) -> Self {
        let Stats { min, max, avg, count, sum, .. } = stats;
        Self { min, max, avg, count, sum }
    }
}

/// `raw record` of the shapes.
#[derive(Debug, Serialize)]
pub(crate) struct Raw<'a> {
    name: &'a str,
    value: f64,
    labels: BTreeMap<&'a str, &'a str>,
    timestamp: u64,
}

impl<'a> From<&'a RawRecord> for Raw<'a> {
    fn from(record: &'a RawRecord) -> Self {
        Self {
            name: &record.name,
            value: record.value,
            labels: labels(&record.labels),
            timestamp: ms_since_epoch(record.timestamp),
        }
    }
}

/// `trace` of the shapes.
#[derive(Debug, Serialize)]
pub(crate) struct Trace<'a> {
    id: String,
    timestamp: u64,
    operation: &'a str,
    duration_ms: f64,
    status: &'static str,
    details: BTreeMap<&'a str, String>,
    server: &'a str,
    method: &'a str,
    tool: Option<&'a str>,
    session: Option<&'a str>,
    injected: bool,
    spans: Vec<Span<'a>>,
}

#[derive(Debug, Serialize)]
struct Span<'a> {
    id: String,
    parent: Option<String>,
    name: &'a str,
    kind: &'static str,
    start_us: u64,
    duration_us: u64,
    status: &'static str,
    message: Option<&'a str>,
    attributes: BTreeMap<&'a str, String>,
    events: Vec<Event<'a>>,
    dropped_events: u32,
}

#[derive(Debug, Serialize)]
struct Event<'a> {
    name: &'a str,
    at_us: u64,
    attributes: BTreeMap<&'a str, String>,
}

impl<'a> From<&'a tracing::Trace> for Trace<'a> {
    fn from(trace: &'a tracing::Trace) -> Self {
        Self {
            id: trace.id.to_string(),
            timestamp: ms_since_epoch(trace.timestamp),
            operation: &trace.operation,
            // From whole nanoseconds, so that 1.1 ms is 1.1 and not 1.1000000000000001.
            duration_ms: trace.duration.as_nanos() as f64 / 1e6,
            status: trace.status.as_str(),
            details: by_name(&trace.details),
            server: &trace.server,
            method: &trace.method,
            tool: trace.tool.as_deref(),
            session: trace.session.as_deref(),
            injected: trace.injected,
            spans: trace.spans.iter().map(Into::into).collect(),
        }
    }
}

impl<'a> From<&'a tracing::Span> for Span<'a> {
    fn from(span: &'a tracing::Span) -> Self {
        Self {
            id: span.id.to_string(),
            parent: span.parent.map(|parent| parent.to_string()),
            name: &span.name,
            kind: span.kind.as_str(),
            start_us: whole_us(span.start),
            duration_us: whole_us(span.duration),
            status: span.status.as_str(),
            message: span.message.as_deref(),
            attributes: by_name(&span.attributes),
            events: span.events.iter().map(Into::into).collect(),
            dropped_events: span.dropped_events,
        }
    }
}

impl<'a> From<&'a tracing::Event> for Event<'a> {
    fn from(event: &'a tracing::Event) -> Self {
        Self { name: &event.name, at_us: whole_us(event.at), attributes: by_name(&event.attributes) }
    }
}

/// `instrumentation` of the shapes.
#[derive(Debug, Serialize)]
pub(crate) struct Instrumentation<'a> {
    instrumented_components: usize,
    auto_instrument: bool,
    components: Vec<Instrumented<'a>>,
}

#[derive(Debug, Serialize)]
struct Instrumented<'a> {
    component: &'a str,
    functions: &'a [String],
    calls: u64,
    errors: u64,
}

impl<'a> From<&'a InstrumentationStatus> for Instrumentation<'a> {
    fn from(status: &'a InstrumentationStatus) -> Self {
        Self {
            instrumented_components: status.components.len(),
            auto_instrument: status.auto_instrument,
            components: status.components.iter().map(Into::into).collect(),
        }
    }
}

impl<'a> From<&'a InstrumentedComponent> for Instrumented<'a> {
    fn from(instrumented: &'a InstrumentedComponent) -> Self {
        let InstrumentedComponent { component, functions, calls, errors } = instrumented;
        Self { component, functions, calls: *calls, errors: *errors }
    }
}

/// What can be injected, and how it can be asked for.
#[derive(Debug, Serialize)]
pub(crate) struct Scenario {
    name: &'static str,
    description: &'static str,
    impact: &'static str,
    /// Where it means something, as people read it.
    applies_to: String,
    duration: u64,
    recovery_time: u64,
    parameters: Vec<Parameters>,
}

#[derive(Debug, Serialize)]
struct Parameters {
    name: &'static str,
    about: &'static str,
    /// What it is unless it is given; none: it is left out.
    default: Option<Cow<'static, str>>,
    /// What it may be, as people read it.
    expected: String,
    #[serde(flatten)]
    range: Range,
}

/// What a parameter may be. Durations are ms, sizes bytes.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Range {
    Duration { least: u64, most: u64 },
    Share { least: f64, most: f64 },
    Number { least: f64, most: f64 },
    Whole { least: i64, most: i64 },
    Size { least: u64, most: u64 },
    Choice { words: &'static [&'static str] },
    Text,
}

impl From<chaos::Scenario> for Scenario {
    fn from(scenario: chaos::Scenario) -> Self {
        let defaults = scenario.defaults();
        Self {
            name: scenario.as_str(),
            description: scenario.description(),
            impact: defaults.impact.as_str(),
            applies_to: scenario.meaningful(),
            duration: whole_ms(defaults.duration),
            recovery_time: whole_ms(defaults.recovery_time),
            parameters: scenario.parameters().map(|parameter| Parameters::new(scenario, parameter)).collect(),
        }
    }
}

impl Parameters {
    fn new(scenario: chaos::Scenario, parameter: &Parameter) -> Self {
        let Parameter { name, kind, about, .. } = *parameter;
        Self { name, about, default: scenario.default_of(parameter), expected: kind.to_string(), range: kind.into() }
    }
}

impl From<Kind> for Range {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Duration { least_ms, most_ms } => Self::Duration { least: least_ms, most: most_ms },
            Kind::Share => Self::Share { least: 0.0, most: 1.0 },
            Kind::Number { least, most } => Self::Number { least, most },
            Kind::Whole { least, most } => Self::Whole { least, most },
            Kind::Size { least, most } => Self::Size { least, most },
            Kind::Choice(words) => Self::Choice { words },
            Kind::Text => Self::Text,
        }
    }
}

/// What happened, as the WebSocket tells it.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Happened<'a> {
    /// A component went from one state to another.
    Health { component: &'a str, from: &'static str, to: &'static str, message: &'a str, timestamp: u64 },
    /// Something happened in the chaos engine; `event` says what.
    Chaos {
        sequence: u64,
        #[serde(flatten)]
        what: &'a chaos::Happened,
        timestamp: u64,
    },
}

impl<'a> Happened<'a> {
    /// Nothing for what this version does not know.
    pub(crate) fn new(event: &'a mcpscope_hub::Event) -> Option<Self> {
        let timestamp = ms_since_epoch(event.timestamp);
        match &event.change {
            Change::Health { component, from, to, message } => {
                Some(Self::Health { component, from: from.as_str(), to: to.as_str(), message, timestamp })
            }
            Change::Chaos(event) => {
                Some(Self::Chaos { sequence: event.sequence, what: &event.what, timestamp: event.time })
            }
            _ => None,
        }
    }
}
