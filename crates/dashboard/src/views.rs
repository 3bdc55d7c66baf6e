//! The JSON shapes. Times are ms since the epoch; durations are ms unless the name says otherwise.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use mcpscope_core::Labels;
use mcpscope_health::{ComponentReport, Readiness, Report, Usage};
use mcpscope_metrics::{MetricSeries, MetricView, RawRecord, Stats};
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

fn by_name<'a>(pairs: &'a [(&'static str, Box<str>)]) -> BTreeMap<&'a str, &'a str> {
    pairs.iter().map(|(name, value)| (*name, &**value)).collect()
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
        Self { status: component.state.as_str(), message: &component.message, since: ms_since_epoch(component.since) }
    }
}

/// `metrics` of the shapes. `memory_usage` is `null` where the system does not tell.
#[derive(Debug, Serialize)]
pub(crate) struct Metrics<'a> {
    #[serde(flatten)]
    metrics: BTreeMap<&'static str, Metric<'a>>,
    timestamp: u64,
    system_uptime: u64,
    memory_usage: Option<u64>,
    cpu_usage: f64,
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
    pub(crate) fn new(views: &'a [MetricView], timestamp: u64, system_uptime: u64, usage: Usage) -> Self {
        Self {
            metrics: views.iter().map(|view| (view.name, view.into())).collect(),
            timestamp,
            system_uptime,
            memory_usage: usage.resident_bytes,
            cpu_usage: usage.cpu_ratio,
        }
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
    counters: &'a BTreeMap<&'static str, u64>,
}

#[derive(Debug, Serialize)]
struct Aggregate {
    min: f64,
    max: f64,
    avg: f64,
    count: u64,
    sum: f64,
}

impl<'a> From<&'a mcpscope_metrics::Summary> for Summary<'a> {
    fn from(summary: &'a mcpscope_metrics::Summary) -> Self {
        Self {
            timestamp: ms_since_epoch(summary.timestamp),
            critical_metrics: summary.critical_metrics,
            total_metrics: summary.total_metrics,
            aggregates: summary.aggregates.iter().map(|(name, stats)| (*name, (*stats).into())).collect(),
            counters: &summary.counters,
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
    name: &'static str,
    value: f64,
    labels: BTreeMap<&'a str, &'a str>,
    timestamp: u64,
}

impl<'a> From<&'a RawRecord> for Raw<'a> {
    fn from(record: &'a RawRecord) -> Self {
        Self {
            name: record.name,
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
    details: BTreeMap<&'a str, &'a str>,
    server: &'a str,
    method: &'a str,
    tool: Option<&'a str>,
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
    attributes: BTreeMap<&'a str, &'a str>,
    events: Vec<Event<'a>>,
}

#[derive(Debug, Serialize)]
struct Event<'a> {
    name: &'a str,
    at_us: u64,
}

impl<'a> From<&'a mcpscope_tracing::Trace> for Trace<'a> {
    fn from(trace: &'a mcpscope_tracing::Trace) -> Self {
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
            injected: trace.injected,
            spans: trace.spans.iter().map(Into::into).collect(),
        }
    }
}

impl<'a> From<&'a mcpscope_tracing::Span> for Span<'a> {
    fn from(span: &'a mcpscope_tracing::Span) -> Self {
        Self {
            id: span.id.to_string(),
            parent: span.parent.map(|parent| parent.to_string()),
            name: &span.name,
            kind: span.kind.as_str(),
            start_us: whole_us(span.start),
            duration_us: whole_us(span.duration),
            status: span.status.as_str(),
            attributes: by_name(&span.attributes),
            events: span.events.iter().map(|e| Event { name: &e.name, at_us: whole_us(e.at) }).collect(),
        }
    }
}
