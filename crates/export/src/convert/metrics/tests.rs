//! What `/metrics` shows, as OTLP has it.

use std::time::{Duration, Instant};

use mcpscope_core::{ClockAnchor, Direction, Method, Outcome, Protocol, Transport};
use mcpscope_metrics::{Declared, Metrics, Operation};
use prost::Message as _;

use super::*;

const BEGAN: SystemTime = SystemTime::UNIX_EPOCH;

fn metrics() -> (Metrics, Instant) {
    let anchor = ClockAnchor { mono: Instant::now(), wall: BEGAN };
    (Metrics::new(&mcpscope_metrics::Config::default(), anchor), anchor.mono)
}

fn at(seconds: u64) -> SystemTime {
    BEGAN + Duration::from_secs(seconds)
}

impl Starts {
    fn export(&mut self, metrics: &Metrics, now: Instant, seconds: u64) -> Vec<Metric> {
        let mut request = self.request(&metrics.snapshot(now), at(seconds), &Resource::default());
        assert_eq!(ExportMetricsServiceRequest::decode(&*request.encode_to_vec()).unwrap(), request);
        request.resource_metrics.remove(0).scope_metrics.remove(0).metrics
    }
}

#[track_caller]
fn find<'a>(metrics: &'a [Metric], name: &str) -> &'a Metric {
    let names: Vec<_> = metrics.iter().map(|metric| &metric.name).collect();
    metrics.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("no {name} in {names:?}"))
}

fn distribution(metric: &Metric) -> &HistogramDataPoint {
    match metric.data.as_ref().unwrap() {
        metric::Data::Histogram(Histogram { data_points, aggregation_temporality: CUMULATIVE }) => &data_points[0],
        other => panic!("{other:?}"),
    }
}

fn sum(metric: &Metric) -> &[NumberDataPoint] {
    match metric.data.as_ref().unwrap() {
        metric::Data::Sum(Sum { data_points, aggregation_temporality: CUMULATIVE, is_monotonic: true }) => data_points,
        other => panic!("{other:?}"),
    }
}

fn texts(attributes: &[KeyValue]) -> Vec<String> {
    let text = |pair: &KeyValue| match pair.value.as_ref().unwrap().value.as_ref().unwrap() {
        StringValue(text) => format!("{}={text}", pair.key),
        other => panic!("{other:?}"),
    };
    attributes.iter().map(text).collect()
}

fn operation(error_type: &'static str) -> Operation<'static> {
    Operation {
        server: "s",
        method: "tools/call",
        tool: Some("echo"),
        prompt: None,
        error_type,
        status_code: "",
        protocol: Some(Protocol::V2025_11_25),
        transport: Transport::Stdio,
        injected: false,
    }
}

#[test]
fn the_conventions_names_attributes_and_bounds() {
    let (metrics, now) = metrics();
    let operations = metrics.server_operations(&operation("tool_error"));
    operations.record(Duration::from_millis(10), now);
    operations.record(Duration::from_millis(11), now);
    operations.record(Duration::from_secs(301), now);
    let exported = Starts::new(BEGAN).export(&metrics, now, 60);
    let metric = find(&exported, "mcp.server.operation.duration");
    assert_eq!(metric.unit, "s");
    let point = distribution(metric);
    assert_eq!(
        texts(&point.attributes),
        [
            "server=s",
            "mcp.method.name=tools/call",
            "gen_ai.operation.name=execute_tool",
            "gen_ai.tool.name=echo",
            "error.type=tool_error",
            "mcp.protocol.version=2025-11-25",
            "network.transport=pipe",
            "injected=false",
        ]
    );
    let bounds = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
    assert_eq!(point.explicit_bounds, bounds);
    assert_eq!(point.bucket_counts, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!((point.count, point.sum), (3, Some(301.021)));
    assert_eq!((point.min, point.max), (Some(0.01), Some(301.0)));
    assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (0, 60_000_000_000));
}

#[test]
fn a_collector_gives_our_names_back_to_prometheus() {
    let (metrics, now) = metrics();
    for (name, kind) in
        [("cache_hits_total", Kind::Counter), ("cache_entries", Kind::Gauge), ("lookup_ms", Kind::Histogram)]
    {
        metrics.declare(&Declared::new(name, kind, "Mine.").unwrap()).unwrap();
        metrics.record(name, 1.0, &[], now).unwrap();
    }
    metrics.tool_calls("s", "echo", Outcome::Ok.as_label(), false).record(Duration::from_millis(1), now);
    metrics.set_process(
        &mcpscope_metrics::Process {
            cpu: Duration::from_millis(1500),
            resident_bytes: 7,
            virtual_bytes: 8,
            started: at(3),
            open_fds: Some(1),
            max_fds: None,
            threads: None,
        },
        now,
    );
    let exported = Starts::new(BEGAN).export(&metrics, now, 1);
    // As a collector's Prometheus exporter does it.
    let given_back = |metric: &Metric| {
        let unit = match &*metric.unit {
            "s" => "_seconds",
            "By" => "_bytes",
            "" => "",
            other => panic!("{other}"),
        };
        let total = if matches!(metric.data, Some(metric::Data::Sum(_))) { "_total" } else { "" };
        format!("{}{unit}{total}", metric.name.replace('.', "_"))
    };
    let mut found: Vec<_> = exported.iter().map(given_back).collect();
    let text = metrics.exposition(mcpscope_metrics::Format::Prometheus, now);
    let mut shown: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, _)| name.to_owned())
        .filter(|name| text.contains(&format!("\n{name}")))
        .collect();
    found.sort();
    shown.sort();
    assert_eq!(found, shown);
    for name in [
        "mcpscope.tool_call_duration",
        "process.cpu",
        "process.resident_memory",
        "cache_hits",
        "cache_entries",
        "lookup",
    ] {
        find(&exported, name);
    }
    let cpu = &sum(find(&exported, "process.cpu"))[0];
    assert_eq!(cpu.value, Some(number_data_point::Value::AsDouble(1.5)));
}

#[test]
fn counters_and_gauges() {
    let (metrics, now) = metrics();
    metrics.registry_operations("s", Method::REGISTRY_OPERATIONS[0]).add(3, now);
    metrics.queue_depth("s", Direction::ToServer).add(2.0, now);
    let exported = Starts::new(BEGAN).export(&metrics, now, 5);
    let counter = &sum(find(&exported, "mcpscope.registry_operations"))[0];
    assert_eq!(counter.value, Some(number_data_point::Value::AsInt(3)));
    assert_eq!(texts(&counter.attributes)[0], "server=s");
    match find(&exported, "mcpscope.message_queue_depth").data.as_ref().unwrap() {
        metric::Data::Gauge(gauge) => {
            assert_eq!(gauge.data_points[0].value, Some(number_data_point::Value::AsDouble(2.0)));
            assert_eq!(gauge.data_points[0].start_time_unix_nano, 0);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_series_has_its_own_start_and_keeps_it() {
    let (metrics, now) = metrics();
    metrics.component_errors(mcpscope_core::Component::Tools, "tool_error", false).increment(now);
    let first = metrics.registry_operations("first", "list");
    first.increment(now);
    let mut starts = Starts::new(at(10));
    let start = |exported: &[Metric], server: &str| {
        let points = sum(find(exported, "mcpscope.registry_operations"));
        let point = points.iter().find(|point| texts(&point.attributes)[0] == format!("server={server}"));
        point.map(|point| point.start_time_unix_nano / 1_000_000_000)
    };
    let exported = starts.export(&metrics, now, 60);
    assert_eq!(start(&exported, "first"), Some(10));
    metrics.registry_operations("second", "list").increment(now);
    let exported = starts.export(&metrics, now, 120);
    assert_eq!([start(&exported, "first"), start(&exported, "second")], [Some(10), Some(60)]);
    let exported = starts.export(&metrics, now, 180);
    assert_eq!([start(&exported, "first"), start(&exported, "second")], [Some(10), Some(60)]);
}

#[test]
fn exemplars_lead_to_traces() {
    let (metrics, now) = metrics();
    let trace = mcpscope_core::TraceId(std::num::NonZeroU128::new(0xabc).unwrap());
    metrics.server_operations(&operation("")).record_traced(Duration::from_millis(15), trace, now);
    let exported = Starts::new(BEGAN).export(&metrics, now, 5);
    let point = distribution(find(&exported, "mcp.server.operation.duration"));
    let [exemplar] = &point.exemplars[..] else { panic!("{:?}", point.exemplars) };
    assert_eq!(exemplar.trace_id, 0xabc_u128.to_be_bytes());
    assert_eq!(exemplar.value, Some(exemplar::Value::AsDouble(0.015)));
    assert!(exemplar.span_id.is_empty());
}
