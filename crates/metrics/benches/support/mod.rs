//! What the benchmarks share: the peers as their documentation sets them up, and labels and values that all of them get.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Instant, SystemTime};

use mcpscope_core::ClockAnchor;
use mcpscope_metrics::{Config, Metrics};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusRecorder};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider as _};
use opentelemetry_sdk::metrics::{ManualReader, SdkMeterProvider};
use prometheus_client::encoding::EncodeLabelSet;

pub(crate) type Error = Box<dyn std::error::Error>;

/// The names of the labels in all benchmarks.
pub(crate) const KEYS: [&str; 3] = ["tool", "method", "outcome"];
/// The buckets of the peers.
pub(crate) const PEER_BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// An instance with room for every series here, and the time that all records get.
pub(crate) fn metrics(config: Config) -> (Metrics, Instant) {
    let now = Instant::now();
    let config = Config { max_series: 20_000, ..config };
    (Metrics::new(&config, ClockAnchor { mono: now, wall: SystemTime::now() }), now)
}

/// The labels of ours and of every peer that takes pairs.
pub(crate) fn pairs([tool, method, outcome]: [&str; 3]) -> [(&str, &str); 3] {
    [(KEYS[0], tool), (KEYS[1], method), (KEYS[2], outcome)]
}

/// Runs `work` on so many threads, which then live on as long as the program: of those that end, the next ones go on with the cells.
pub(crate) fn on_living_threads(threads: usize, work: impl Fn() + Clone + Send + 'static) {
    let done = Arc::new(Barrier::new(threads + 1));
    for _ in 0..threads {
        let (work, done) = (work.clone(), Arc::clone(&done));
        thread::spawn(move || {
            work();
            done.wait();
            loop {
                thread::park();
            }
        });
    }
    done.wait();
}

/// The labels of prometheus-client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Labels {
    tool: String,
    method: String,
    outcome: String,
}

impl Labels {
    pub(crate) fn new([tool, method, outcome]: [&str; 3]) -> Self {
        Self { tool: tool.to_owned(), method: method.to_owned(), outcome: outcome.to_owned() }
    }
}

/// The attributes of OpenTelemetry.
pub(crate) fn attributes(values: [&str; 3]) -> [KeyValue; 3] {
    let [tool, method, outcome] = values.map(str::to_owned);
    [KeyValue::new(KEYS[0], tool), KeyValue::new(KEYS[1], method), KeyValue::new(KEYS[2], outcome)]
}

/// The recorder of `metrics` that is asked for Prometheus text.
pub(crate) fn exporter() -> Result<PrometheusRecorder, BuildError> {
    Ok(PrometheusBuilder::new().set_buckets(&PEER_BOUNDS)?.build_recorder())
}

/// A meter that is read by hand: without a reader it would measure nothing.
pub(crate) struct OpenTelemetry {
    _provider: SdkMeterProvider,
    pub(crate) meter: Meter,
}

impl OpenTelemetry {
    pub(crate) fn new() -> Self {
        let provider = SdkMeterProvider::builder().with_reader(ManualReader::default()).build();
        let meter = provider.meter("bench");
        Self { _provider: provider, meter }
    }
}

/// A duration in nanoseconds, up to 67 ms and all over that range; 1 ns to make.
pub(crate) fn nanoseconds(number: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 38
}

/// The values of ten thousand series: a hundred tools, ten methods, ten outcomes.
pub(crate) fn labels(number: u64) -> [String; 3] {
    [format!("tool_{}", number % 100), format!("method_{}", number / 100 % 10), format!("outcome_{}", number / 1000)]
}
