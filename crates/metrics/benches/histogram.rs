//! What recording a duration in a histogram costs through a handle.

mod support;

use std::hint::black_box;
use std::num::NonZeroU128;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mcpscope_core::TraceId;
use mcpscope_metrics::Config;
use mcpscope_test_support::bench::{self, Race, Report, Table};
use prometheus::{Histogram, HistogramOpts};
use prometheus_client::metrics::histogram::Histogram as ClientHistogram;
use support::{Error, OpenTelemetry, PEER_BOUNDS, attributes, exporter, nanoseconds, pairs};

fn main() -> Result<(), Error> {
    if !bench::wanted() {
        return Ok(());
    }
    let mut report = Report::new("histogram");
    for threads in [1, 2] {
        report.add(handle(threads)?);
    }
    Ok(report.finish(env!("CARGO_TARGET_TMPDIR"))?)
}

fn handle(threads: usize) -> Result<Table, Error> {
    let (metrics, now) = support::metrics(Config::default());
    let ours = metrics.histogram("duration_seconds", &pairs(["echo", "tools/call", "ok"]))?;
    let critical = metrics.tool_calls("s", "echo", "ok", false);
    let prometheus = Histogram::with_opts(HistogramOpts::new("d", "D").buckets(PEER_BOUNDS.to_vec()))?;
    let client = ClientHistogram::new(PEER_BOUNDS);
    let otel = OpenTelemetry::new();
    let unbound = otel.meter.f64_histogram("d").with_boundaries(PEER_BOUNDS.to_vec()).build();
    let bound = unbound.bind(&attributes(["echo", "tools/call", "ok"]));
    let hdr = Mutex::new(hdrhistogram::Histogram::<u64>::new_with_bounds(1_000, 300_000_000_000, 2)?);
    let recorder = exporter()?;
    let facade = metrics::with_local_recorder(
        &recorder,
        || metrics::histogram!("d", "tool" => "echo", "method" => "tools/call", "outcome" => "ok"),
    );
    Ok(Race::new("B4 histogram record, handle", threads)
        .numbered_case("mcpscope", |number| black_box(&ours).record(duration(number), now))
        .numbered_case("mcpscope, with the raw record", |number| black_box(&critical).record(duration(number), now))
        .numbered_case("mcpscope, with an exemplar", |number| {
            let trace = TraceId(NonZeroU128::MIN.saturating_add(number.into()));
            black_box(&ours).record_traced(duration(number), trace, now);
        })
        .numbered_case("prometheus, 12 buckets", |number| black_box(&prometheus).observe(seconds(number)))
        .numbered_case("prometheus-client, 12 buckets", |number| black_box(&client).observe(seconds(number)))
        .numbered_case("hdrhistogram, 2 digits, in a mutex", |number| {
            // What is out of range is not recorded.
            let _ = black_box(&hdr).lock().unwrap_or_else(PoisonError::into_inner).record(nanoseconds(number));
        })
        .numbered_case("OpenTelemetry, bound, 12 buckets", |number| black_box(&bound).record(seconds(number)))
        .numbered_case("metrics over its exporter", |number| black_box(&facade).record(seconds(number)))
        .numbered_case("nothing but the value", nanoseconds)
        .run())
}

fn duration(number: u64) -> Duration {
    Duration::from_nanos(nanoseconds(number))
}

fn seconds(number: u64) -> f64 {
    nanoseconds(number) as f64 / 1e9
}
