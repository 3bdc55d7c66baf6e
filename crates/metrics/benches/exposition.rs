//! What Prometheus text costs: 10,000 counters, and 1,000 histograms.

#![allow(clippy::print_stdout, reason = "a case tells what it measured")]

mod support;

use std::cell::Cell;
use std::env;
use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use mcpscope_metrics::{Config, Format, Metrics};
use mcpscope_test_support::bench::{self, Ratio, Report, Table, median};
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
    if let Some(case) = env::args().find_map(|argument| argument.strip_prefix(CASE).map(str::to_owned)) {
        return play(&case);
    }
    if !bench::wanted() {
        return Ok(());
    }
    let mut report = Report::new("exposition");
    for (subject, title) in SUBJECTS {
        let mut rounds = [const { (Vec::new(), Vec::new()) }; CASES.len()];
        for _ in 0..ROUNDS {
            for (case, rounds) in CASES.iter().zip(&mut rounds) {
                let (time_us, bytes) = in_a_process(subject, case)?;
                rounds.0.push(time_us);
                rounds.1.push(bytes);
            }
        }
        let mut times = Table::new(format!("B5 text of {title}"), "us", Ratio::PeerToOurs);
        let mut sizes = Table::new(format!("bytes of {title}"), "bytes", Ratio::OursToPeer);
        for (case, (time_us, bytes)) in CASES.iter().zip(rounds) {
            (times, sizes) = (times.row(*case, time_us), sizes.row(*case, bytes));
        }
        report.add(times);
        report.add(sizes);
    }
    Ok(report.finish(env!("CARGO_TARGET_TMPDIR"))?)
}

/// Each case has a process of its own: in one process, the same case took twice as long in one place of the round as in
/// another.
fn in_a_process(subject: &str, case: &str) -> Result<(f64, f64), Error> {
    let output = Command::new(env::current_exe()?).arg(format!("{CASE}{subject}/{case}")).output()?;
    let told = String::from_utf8(output.stdout)?;
    let (time_us, bytes) = told.trim().split_once(' ').ok_or_else(|| format!("{subject}/{case} tells `{told}`"))?;
    Ok((time_us.parse()?, bytes.parse()?))
}

/// Tells the median time in microseconds, and the size in bytes.
fn play(which: &str) -> Result<(), Error> {
    let (subject, case) = which.split_once('/').ok_or("SUBJECT/CASE is expected")?;
    let counters = subject == SUBJECTS[0].0;
    let fill = if counters { Ours::counters } else { Ours::histograms };
    let peers = || if counters { Peers::of_counters() } else { Peers::of_histograms() };
    let text: Box<dyn Fn() -> String> = match case {
        OURS | SEVERAL | NEW | OPEN_METRICS | SNAPSHOT => {
            let (metrics, now) = Ours::filled(if case == SEVERAL { THREADS } else { 1 }, fill)?;
            match case {
                OPEN_METRICS => Box::new(move || metrics.exposition(Format::OpenMetrics, now)),
                SNAPSHOT => Box::new(move || metrics.snapshot(now).to_prometheus()),
                NEW => {
                    let next = Cell::new(COUNTERS);
                    let add = if counters { Ours::counter } else { Ours::histogram };
                    Box::new(move || {
                        // Cannot fail: all that goes before had such names too.
                        let _ = add(&metrics, next.replace(next.get() + 1), now);
                        metrics.exposition(Format::Prometheus, now)
                    })
                }
                _ => Box::new(move || metrics.exposition(Format::Prometheus, now)),
            }
        }
        CLIENT => {
            let peers = peers()?;
            Box::new(move || peers.client())
        }
        PROMETHEUS => {
            let peers = peers()?;
            Box::new(move || peers.prometheus())
        }
        EXPORTER => {
            let peers = peers()?;
            Box::new(move || peers.exporter())
        }
        _ => return Err(format!("there is no case `{case}`").into()),
    };
    for _ in 0..CALLS {
        drop(black_box(text()));
    }
    let times: Vec<_> = (0..CALLS)
        .map(|_| {
            let start = Instant::now();
            drop(black_box(text()));
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    println!("{} {}", median(&times), text().len());
    Ok(())
}

const CASE: &str = "--case=";
const SUBJECTS: [(&str, &str); 2] =
    [("counters", "10,000 counters"), ("histograms", "1,000 histograms, 12 bounds, ours 17")];
const OURS: &str = "mcpscope, what /metrics answers";
const SEVERAL: &str = "mcpscope, written by 4 threads";
const NEW: &str = "mcpscope, with a new series in each";
const OPEN_METRICS: &str = "mcpscope, OpenMetrics";
const SNAPSHOT: &str = "mcpscope, by way of a snapshot";
const CLIENT: &str = "prometheus-client";
const PROMETHEUS: &str = "prometheus";
const EXPORTER: &str = "metrics-exporter-prometheus";
const CASES: [&str; 8] = [OURS, SEVERAL, NEW, OPEN_METRICS, SNAPSHOT, CLIENT, PROMETHEUS, EXPORTER];
/// Processes of each case.
const ROUNDS: usize = 9;
/// In a process, before the measurement and in it.
const CALLS: usize = 9;

/// How many threads have written, where it is several.
const THREADS: usize = 4;

/// Ours, filled with what the peers get.
struct Ours;

impl Ours {
    /// The first writer is this thread, the others live on.
    fn filled(threads: usize, fill: fn(&Metrics, Instant) -> Result<(), Error>) -> Result<(Metrics, Instant), Error> {
        let (metrics, now) = support::metrics(Config { max_series: Config::MAX_SERIES, ..Config::default() });
        fill(&metrics, now)?;
        let shared = metrics.clone();
        on_living_threads(threads - 1, move || drop(fill(&shared, now)));
        Ok((metrics, now))
    }

    fn counters(metrics: &Metrics, now: Instant) -> Result<(), Error> {
        (0..COUNTERS).try_for_each(|number| Self::counter(metrics, number, now))
    }

    fn counter(metrics: &Metrics, number: u64, now: Instant) -> Result<(), Error> {
        let labels = labels(number);
        metrics.counter("bench_calls", &pairs(labels.each_ref().map(String::as_str)))?.add(number, now);
        Ok(())
    }

    fn histograms(metrics: &Metrics, now: Instant) -> Result<(), Error> {
        (0..HISTOGRAMS).try_for_each(|number| Self::histogram(metrics, number, now))
    }

    fn histogram(metrics: &Metrics, number: u64, now: Instant) -> Result<(), Error> {
        let labels = labels(number);
        let histogram = metrics.histogram("bench_duration_seconds", &pairs(labels.each_ref().map(String::as_str)))?;
        for record in 0..RECORDS {
            histogram.record(Duration::from_nanos(nanoseconds(number * RECORDS + record)), now);
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
