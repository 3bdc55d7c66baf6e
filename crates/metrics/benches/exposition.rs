//! What Prometheus text costs: 10,000 counters, and 1,000 histograms.

mod support;

use std::time::{Duration, Instant};

use mcpscope_metrics::{Config, Format, Metrics};
use mcpscope_test_support::bench::{self, Race, Ratio, Report, Table};
use metrics_exporter_prometheus::PrometheusHandle;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, TextEncoder};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use support::{Error, KEYS, Labels, PEER_BOUNDS, exporter, labels, nanoseconds, on_living_threads, pairs};

const COUNTERS: u64 = 10_000;
const HISTOGRAMS: u64 = 1_000;
/// In each histogram.
const RECORDS: u64 = 100;

fn main() -> Result<(), Error> {
    if !bench::wanted() {
        return Ok(());
    }
    let mut report = Report::new("exposition");
    for table in of_counters()?.into_iter().chain(of_histograms()?) {
        report.add(table);
    }
    Ok(report.finish(env!("CARGO_TARGET_TMPDIR"))?)
}

/// How many threads have written, where it is several.
const THREADS: usize = 4;

/// One instance that this thread has written, and one that several live threads have.
struct Ours {
    one: Metrics,
    several: Metrics,
    now: Instant,
}

impl Ours {
    fn filled(fill: fn(&Metrics, Instant) -> Result<(), Error>) -> Result<Self, Error> {
        let (one, now) = support::metrics(Config::default());
        let (several, _) = support::metrics(Config::default());
        fill(&one, now)?;
        let shared = several.clone();
        on_living_threads(THREADS, move || drop(fill(&shared, now)));
        Ok(Self { one, several, now })
    }

    fn counters(metrics: &Metrics, now: Instant) -> Result<(), Error> {
        for number in 0..COUNTERS {
            metrics.counter("bench_calls", &pairs(labels(number).each_ref().map(String::as_str)))?.add(number, now);
        }
        Ok(())
    }

    fn histograms(metrics: &Metrics, now: Instant) -> Result<(), Error> {
        for number in 0..HISTOGRAMS {
            let labels = labels(number);
            let histogram =
                metrics.histogram("bench_duration_seconds", &pairs(labels.each_ref().map(String::as_str)))?;
            for record in 0..RECORDS {
                histogram.record(Duration::from_nanos(nanoseconds(number * RECORDS + record)), now);
            }
        }
        Ok(())
    }
}

/// The peers that make text, filled with the same.
struct Peers {
    exporter: PrometheusHandle,
    prometheus: prometheus::Registry,
    client: Registry,
}

impl Peers {
    fn of_counters() -> Result<Self, Error> {
        let (recorder, prometheus, mut client) = (exporter()?, prometheus::Registry::new(), Registry::default());
        let vec = IntCounterVec::new(Opts::new("bench_calls_total", HELP), &KEYS)?;
        prometheus.register(Box::new(vec.clone()))?;
        let family = Family::<Labels, Counter>::default();
        client.register("bench_calls", HELP, family.clone());
        metrics::with_local_recorder(&recorder, || metrics::describe_counter!("bench_calls_total", HELP));
        for number in 0..COUNTERS {
            let labels = labels(number);
            let [tool, method, outcome] = labels.clone();
            metrics::with_local_recorder(&recorder, || {
                metrics::counter!("bench_calls_total", "tool" => tool, "method" => method, "outcome" => outcome)
                    .increment(number);
            });
            let labels = labels.each_ref().map(String::as_str);
            vec.with_label_values(&labels).inc_by(number);
            family.get_or_create(&Labels::new(labels)).inc_by(number);
        }
        Ok(Self { exporter: recorder.handle(), prometheus, client })
    }

    fn of_histograms() -> Result<Self, Error> {
        let (recorder, prometheus, mut client) = (exporter()?, prometheus::Registry::new(), Registry::default());
        let vec =
            HistogramVec::new(HistogramOpts::new("bench_duration_seconds", HELP).buckets(PEER_BOUNDS.to_vec()), &KEYS)?;
        prometheus.register(Box::new(vec.clone()))?;
        let family: Family<Labels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(PEER_BOUNDS));
        client.register("bench_duration_seconds", HELP, family.clone());
        metrics::with_local_recorder(&recorder, || metrics::describe_histogram!("bench_duration_seconds", HELP));
        for number in 0..HISTOGRAMS {
            let labels = labels(number);
            let [tool, method, outcome] = labels.clone();
            let facade = metrics::with_local_recorder(
                &recorder,
                || metrics::histogram!("bench_duration_seconds", "tool" => tool, "method" => method, "outcome" => outcome),
            );
            let labels = labels.each_ref().map(String::as_str);
            let (prometheus, client) =
                (vec.with_label_values(&labels), family.get_or_create_owned(&Labels::new(labels)));
            for record in 0..RECORDS {
                let seconds = nanoseconds(number * RECORDS + record) as f64 / 1e9;
                facade.record(seconds);
                prometheus.observe(seconds);
                client.observe(seconds);
            }
        }
        Ok(Self { exporter: recorder.handle(), prometheus, client })
    }

    fn exporter(&self) -> String {
        self.exporter.render()
    }

    fn prometheus(&self) -> String {
        TextEncoder::new().encode_to_string(&self.prometheus.gather()).unwrap_or_default()
    }

    fn client(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.client);
        text
    }
}

const HELP: &str = "What the benchmark counts";

fn of_counters() -> Result<[Table; 2], Error> {
    let (ours, peers) = (Ours::filled(Ours::counters)?, Peers::of_counters()?);
    Ok([times("B5 text of 10,000 counters", &ours, &peers), sizes("bytes of 10,000 counters", &ours, &peers)])
}

fn of_histograms() -> Result<[Table; 2], Error> {
    let (ours, peers) = (Ours::filled(Ours::histograms)?, Peers::of_histograms()?);
    Ok([
        times("B5 text of 1,000 histograms, 12 bounds, ours 17", &ours, &peers),
        sizes("bytes of 1,000 histograms", &ours, &peers),
    ])
}

fn times(title: &str, ours: &Ours, peers: &Peers) -> Table {
    Race::new(title, 1)
        .case("mcpscope, Prometheus", || ours.one.exposition(Format::Prometheus, ours.now))
        .case("mcpscope, written by 4 threads", || ours.several.exposition(Format::Prometheus, ours.now))
        .case("mcpscope, OpenMetrics", || ours.one.exposition(Format::OpenMetrics, ours.now))
        .case("prometheus-client", || peers.client())
        .case("prometheus", || peers.prometheus())
        .case("metrics-exporter-prometheus", || peers.exporter())
        .run()
}

fn sizes(title: &str, ours: &Ours, peers: &Peers) -> Table {
    let size = |text: String| vec![text.len() as f64];
    Table::new(title, "bytes", Ratio::OursToPeer)
        .row("mcpscope", size(ours.one.exposition(Format::Prometheus, ours.now)))
        .row("mcpscope, OpenMetrics", size(ours.one.exposition(Format::OpenMetrics, ours.now)))
        .row("prometheus-client", size(peers.client()))
        .row("prometheus", size(peers.prometheus()))
        .row("metrics-exporter-prometheus", size(peers.exporter()))
}
