//! What a series holds in memory, and what a record leaves behind there.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mcpscope_metrics::{Config, Metrics};
use mcpscope_test_support::bench::{self, Ratio, Report, Table};
use metrics_exporter_prometheus::PrometheusRecorder;
use peak_alloc::PeakAlloc;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use support::{Error, KEYS, Labels, PEER_BOUNDS, exporter, labels, nanoseconds, on_living_threads, pairs};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const SERIES: u64 = 1_000;
/// How many durations each of many histograms gets.
const RECORDS: u64 = 100;
/// How many durations the one histogram gets whose growth is told.
const SAMPLES: u64 = 10_000_000;
/// How many of them go between two readings, where it is read.
const BETWEEN_READINGS: u64 = 1_000_000;

fn main() -> Result<(), Error> {
    if !bench::wanted() {
        return Ok(());
    }
    let mut report = Report::new("footprint");
    report.add(counters()?);
    report.add(histograms()?);
    report.add(samples()?);
    Ok(report.finish(env!("CARGO_TARGET_TMPDIR"))?)
}

fn counters() -> Result<Table, Error> {
    let ours = Held::by(
        |metrics, labels| Ok(metrics.counter("calls", &pairs(labels))?),
        |counter, now| counter.increment(now),
    )?;
    let (client, client_size) = growth(|| {
        let family = Family::<Labels, Counter>::default();
        each_label_set(|labels| {
            family.get_or_create(&Labels::new(labels)).inc();
        });
        family
    });
    drop(client);
    let (prometheus, prometheus_size) = growth(|| {
        let vec = IntCounterVec::new(Opts::new("calls", "Calls"), &KEYS)?;
        each_label_set(|labels| vec.with_label_values(&labels).inc());
        Ok::<_, prometheus::Error>(vec)
    });
    drop(prometheus?);
    let recorder = exporter()?;
    let ((), exporter_size) = growth(|| {
        each_label_set(|labels| {
            let [tool, method, outcome] = labels.map(str::to_owned);
            metrics::with_local_recorder(&recorder, || {
                metrics::counter!("calls", "tool" => tool, "method" => method, "outcome" => outcome).increment(1);
            });
        });
    });
    Ok(ours
        .rows(Table::new("a counter with 3 labels", "bytes", Ratio::OursToPeer))
        .row("prometheus-client Family", vec![client_size])
        .row("prometheus vec", vec![prometheus_size])
        .row("metrics over its exporter", vec![exporter_size]))
}

fn histograms() -> Result<Table, Error> {
    let ours = Held::by(
        |metrics, labels| Ok(metrics.histogram("duration_seconds", &pairs(labels))?),
        |histogram, now| each_value(|value| histogram.record(value, now)),
    )?;
    let (client, client_size) = growth(|| {
        let family: Family<Labels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(PEER_BOUNDS));
        each_label_set(|labels| {
            each_value(|value| family.get_or_create(&Labels::new(labels)).observe(value.as_secs_f64()));
        });
        family
    });
    drop(client);
    let (prometheus, prometheus_size) = growth(|| {
        let vec = HistogramVec::new(HistogramOpts::new("d", "D").buckets(PEER_BOUNDS.to_vec()), &KEYS)?;
        each_label_set(|labels| each_value(|value| vec.with_label_values(&labels).observe(value.as_secs_f64())));
        Ok::<_, prometheus::Error>(vec)
    });
    drop(prometheus?);
    let recorder = exporter()?;
    let ((), exporter_size) = growth(|| {
        each_label_set(|labels| {
            let [tool, method, outcome] = labels.map(str::to_owned);
            let histogram = metrics::with_local_recorder(
                &recorder,
                || metrics::histogram!("d", "tool" => tool, "method" => method, "outcome" => outcome),
            );
            each_value(|value| histogram.record(value));
        });
        recorder.handle().run_upkeep();
        // What is read is freed at the next reading.
        recorder.handle().run_upkeep();
    });
    Ok(ours
        .rows(Table::new("a histogram with 3 labels, 100 durations up to 67 ms", "bytes", Ratio::OursToPeer))
        .row("prometheus-client Family, 12 buckets", vec![client_size])
        .row("prometheus vec, 12 buckets", vec![prometheus_size])
        .row("metrics over its exporter, 12 buckets, read", vec![exporter_size]))
}

fn samples() -> Result<Table, Error> {
    let (metrics, now) = support::metrics(Config::default());
    let ours = metrics.histogram("duration_seconds", &[])?;
    let our_peak = peak(|| (0..SAMPLES).for_each(|number| ours.record(duration(number), now)));
    let (unread, read) = (exporter()?, exporter()?);
    let (peer_unread, peer_read) = (histogram_of(&unread), histogram_of(&read));
    let unread_peak = peak(|| (0..SAMPLES).for_each(|number| peer_unread.record(duration(number))));
    let read_peak = peak(|| {
        for number in 0..SAMPLES {
            peer_read.record(duration(number));
            if number % BETWEEN_READINGS == 0 {
                read.handle().run_upkeep();
            }
        }
    });
    Ok(Table::new("B4 growth of a histogram over 10 M samples", "bytes/sample", Ratio::OursToPeer)
        .row("mcpscope", vec![our_peak])
        .row("metrics over its exporter, not read", vec![unread_peak])
        .row("metrics over its exporter, read every 1 M", vec![read_peak]))
}

/// What a series of ours holds.
struct Held {
    resolved: f64,
    first_thread: f64,
    second_thread: f64,
}

impl Held {
    fn by<H: Send + Sync + 'static>(
        resolve: impl Fn(&Metrics, [&str; 3]) -> Result<H, Error>,
        write: fn(&H, Instant),
    ) -> Result<Self, Error> {
        let (metrics, now) = support::metrics(Config::default());
        // The handles themselves do not count.
        let mut handles = Vec::with_capacity(SERIES as usize);
        let ((), resolved) = growth(|| each_label_set(|labels| handles.push(resolve(&metrics, labels))));
        let handles: Arc<Vec<_>> = Arc::new(handles.into_iter().collect::<Result<_, _>>()?);
        let written = || {
            let handles = Arc::clone(&handles);
            growth(|| on_living_threads(1, move || handles.iter().for_each(|handle| write(handle, now)))).1
        };
        Ok(Self { resolved, first_thread: written(), second_thread: written() })
    }

    fn rows(&self, table: Table) -> Table {
        table
            .row("mcpscope, one thread has written it", vec![self.resolved + self.first_thread])
            .row("mcpscope, each further thread", vec![self.second_thread])
            .row("mcpscope, not written yet", vec![self.resolved])
    }
}

/// By how much the memory in use grows, for each series.
fn growth<R>(work: impl FnOnce() -> R) -> (R, f64) {
    let before = ALLOCATOR.current_usage() as f64;
    let result = work();
    (result, (ALLOCATOR.current_usage() as f64 - before) / SERIES as f64)
}

/// By how much the memory in use grows at most, for each sample.
fn peak(work: impl FnOnce()) -> f64 {
    let before = ALLOCATOR.current_usage() as f64;
    ALLOCATOR.reset_peak_usage();
    work();
    (ALLOCATOR.peak_usage() as f64 - before) / SAMPLES as f64
}

fn histogram_of(recorder: &PrometheusRecorder) -> metrics::Histogram {
    metrics::with_local_recorder(recorder, || metrics::histogram!("d"))
}

fn each_label_set(mut with: impl FnMut([&str; 3])) {
    (0..SERIES).for_each(|number| with(labels(number).each_ref().map(String::as_str)));
}

fn each_value(with: impl Fn(Duration)) {
    (0..RECORDS).map(duration).for_each(with);
}

fn duration(number: u64) -> Duration {
    Duration::from_nanos(nanoseconds(number))
}
