//! What recording and rendering cost, beside `prometheus-client` and the bare atomic addition.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::{ClockAnchor, Component};
use mcpscope_metrics::{Config, HistogramSnapshot, Metrics};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use mcpscope_test_support::bench::{self, Race, Report};

type Labels<const N: usize> = [(&'static str, String); N];
type PeerHistograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

const SAMPLE: Duration = Duration::from_micros(1234);
const COUNTERS: u64 = 10_000;
const HISTOGRAMS: u64 = 1_000;

fn main() -> std::io::Result<()> {
    if !bench::wanted() {
        return Ok(());
    }
    let mut report = Report::new("recording");
    for threads in [1, 2] {
        report.add(counter(threads));
        report.add(counter_by_labels(threads));
        report.add(histogram(threads));
        report.add(histogram_by_labels(threads));
    }
    report.add(text_of_counters());
    report.add(text_of_histograms());
    report.finish(env!("CARGO_TARGET_TMPDIR"))
}

fn counter(threads: usize) -> bench::Table {
    let (metrics, now) = metrics();
    let ours = metrics.component_operations(Component::Tools, false);
    let peer = Counter::<u64>::default();
    let floor = AtomicU64::new(0);
    Race::new("counter +1, handle", threads)
        .case("mcpscope", || black_box(&ours).increment(now))
        .case("prometheus-client", || black_box(&peer).inc())
        .case("floor: relaxed fetch_add", || black_box(&floor).fetch_add(1, Relaxed))
        .run()
}

fn counter_by_labels(threads: usize) -> bench::Table {
    let (metrics, now) = metrics();
    let peer = Family::<[(&'static str, &'static str); 2], Counter>::default();
    Race::new("counter +1, by 2 labels", threads)
        .case("mcpscope", || metrics.component_operations(black_box(Component::Tools), false).increment(now))
        .case("prometheus-client Family, static labels", || {
            peer.get_or_create(&[("component", black_box("tools")), ("injected", "false")]).inc()
        })
        .run()
}

fn histogram(threads: usize) -> bench::Table {
    let (metrics, now) = metrics();
    let ours = metrics.tool_calls("s", "echo", "ok", false);
    let peer = peer_histogram();
    let floor = AtomicU64::new(0);
    Race::new("histogram record, handle", threads)
        .case("mcpscope, with the raw record", || black_box(&ours).record(black_box(SAMPLE), now))
        .case("prometheus-client", || black_box(&peer).observe(black_box(SAMPLE).as_secs_f64()))
        .case("floor: relaxed fetch_add", || black_box(&floor).fetch_add(1, Relaxed))
        .run()
}

fn histogram_by_labels(threads: usize) -> bench::Table {
    let (metrics, now) = metrics();
    let peer: PeerHistograms<4> = Family::new_with_constructor(peer_histogram);
    let (server, tool) = ("s", "echo");
    Race::new("histogram record, by 4 labels", threads)
        .case("mcpscope, with the raw record", || {
            metrics.tool_calls(black_box(server), black_box(tool), "ok", false).record(black_box(SAMPLE), now);
        })
        .case("prometheus-client Family, string labels", || {
            let labels = peer_labels(black_box(server), black_box(tool));
            peer.get_or_create(&labels).observe(black_box(SAMPLE).as_secs_f64());
        })
        .run()
}

fn text_of_counters() -> bench::Table {
    let (metrics, now) = metrics();
    let peer = Family::<Labels<2>, Counter>::default();
    for n in 0..COUNTERS {
        let server = format!("server{}", n / 8);
        let operations = mcpscope_core::Method::REGISTRY_OPERATIONS;
        let operation = operations[n as usize % operations.len()];
        metrics.registry_operations(&server, operation).increment(now);
        peer.get_or_create(&[("server", server), ("operation", operation.to_owned())]).inc_by(n);
    }
    let mut registry = Registry::default();
    registry.register("mcpscope_registry_operations", "Operations", peer);
    Race::new("text of 10,000 counters", 1)
        .case("mcpscope, snapshot and text", || metrics.snapshot(now).to_prometheus())
        .case("prometheus-client", || text(&registry))
        .run()
}

fn text_of_histograms() -> bench::Table {
    let (metrics, now) = metrics();
    let peer: PeerHistograms<4> = Family::new_with_constructor(peer_histogram);
    for n in 0..HISTOGRAMS {
        let (tool, sample) = (format!("tool{n}"), Duration::from_millis(n));
        metrics.tool_calls("s", &tool, "ok", false).record(sample, now);
        peer.get_or_create(&peer_labels("s", &tool)).observe(sample.as_secs_f64());
    }
    let mut registry = Registry::default();
    registry.register("mcpscope_tool_call_duration_seconds", "Durations", peer);
    Race::new("text of 1,000 histograms with 17 bounds", 1)
        .case("mcpscope, snapshot and text", || metrics.snapshot(now).to_prometheus())
        .case("prometheus-client", || text(&registry))
        .run()
}

fn metrics() -> (Metrics, Instant) {
    let now = Instant::now();
    let config = Config { max_label_values: 2_000, ..Config::default() };
    (Metrics::new(&config, ClockAnchor { mono: now, wall: SystemTime::now() }), now)
}

/// With the bounds that ours has.
fn peer_histogram() -> Histogram {
    Histogram::new(HistogramSnapshot::BOUNDS_NS.iter().map(|bound_ns| *bound_ns as f64 / 1e9))
}

fn peer_labels(server: &str, tool: &str) -> Labels<4> {
    [
        ("server", server.to_owned()),
        ("tool", tool.to_owned()),
        ("outcome", "ok".to_owned()),
        ("injected", "false".to_owned()),
    ]
}

fn text(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, registry);
    text
}
