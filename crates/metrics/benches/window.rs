//! What closing a window costs while threads record without a pause, and what it costs those threads.

mod support;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use mcpscope_metrics::{Config, Counter, Histogram, Metrics};
use mcpscope_test_support::bench::{self, Ratio, Report, Table, median};
use support::{Error, labels, nanoseconds, pairs};

/// Of each kind.
const SERIES: u64 = 100;
const ROUNDS: usize = 11;
const ROUND: Duration = Duration::from_millis(200);
/// The first is a thousand times as often as in production.
const PACES: [(&str, Pace); 3] = [
    ("mcpscope, closing every 10 ms", Pace::Pausing(Duration::from_millis(10))),
    ("mcpscope, closing without a pause", Pace::Pausing(Duration::ZERO)),
    ("mcpscope, not closing", Pace::Never),
];
/// So that as many windows are kept as in production in an hour, at the first pace.
const RETENTION: Duration = Duration::from_millis(3600);
const WRITERS: [(usize, &str); 3] =
    [(2, "two threads recording"), (1, "one thread recording"), (0, "no thread recording")];

#[derive(Clone, Copy)]
enum Pace {
    Never,
    Pausing(Duration),
}

fn main() -> Result<(), Error> {
    if !bench::wanted() {
        return Ok(());
    }
    let mut report = Report::new("window");
    let series = Series::new()?;
    // For each number of writers and each pace, in each round.
    let mut rounds = [const { [const { Vec::new() }; PACES.len()] }; WRITERS.len()];
    for _ in 0..ROUNDS {
        for ((writers, _), rounds) in WRITERS.iter().zip(&mut rounds) {
            for ((_, pace), rounds) in PACES.iter().zip(rounds) {
                rounds.push(series.round(*writers, *pace));
            }
        }
    }
    let closing = Table::new("close_window, 100 counters and 100 histograms", "us", Ratio::PeerToOurs);
    let closing = WRITERS.iter().zip(&rounds).fold(closing, |table, ((_, name), paces)| {
        table.row(format!("mcpscope, {name}"), paces[0].iter().map(|round| round.close_us).collect())
    });
    report.add(closing);
    for ((_, name), paces) in WRITERS.iter().zip(&rounds).filter(|((writers, _), _)| *writers > 0) {
        let recording = Table::new(format!("one record, {name}"), "ns", Ratio::OursToPeer);
        let rows = PACES.iter().zip(paces);
        report.add(rows.fold(recording, |table, ((name, _), rounds)| {
            table.row(*name, rounds.iter().map(|round| round.record_ns).collect())
        }));
    }
    Ok(report.finish(env!("CARGO_TARGET_TMPDIR"))?)
}

/// Medians of one round; no number where there was nothing to measure.
struct Round {
    close_us: f64,
    record_ns: f64,
}

struct Series {
    metrics: Metrics,
    counters: Vec<Counter>,
    histograms: Vec<Histogram>,
}

impl Series {
    fn new() -> Result<Self, Error> {
        let (metrics, _) = support::metrics(Config { retention: RETENTION, ..Config::default() });
        let (mut counters, mut histograms) = (Vec::new(), Vec::new());
        for number in 0..SERIES {
            let labels = labels(number);
            let labels = pairs(labels.each_ref().map(String::as_str));
            counters.push(metrics.counter("calls", &labels)?);
            histograms.push(metrics.histogram("duration_seconds", &labels)?);
        }
        Ok(Self { metrics, counters, histograms })
    }

    fn round(&self, writers: usize, pace: Pace) -> Round {
        let over = &AtomicBool::new(false);
        thread::scope(|scope| {
            let writing: Vec<_> = (0..writers).map(|_| scope.spawn(|| self.write_until(over))).collect();
            let close_us = median(&self.close_for_a_round(pace, writers == 0));
            over.store(true, Relaxed);
            let records: Vec<_> = writing.into_iter().filter_map(|thread| thread.join().ok()).collect();
            Round { close_us, record_ns: median(&records) }
        })
    }

    /// How long each closing takes, in microseconds.
    fn close_for_a_round(&self, pace: Pace, alone: bool) -> Vec<f64> {
        let Pace::Pausing(pause) = pace else {
            thread::sleep(ROUND);
            return Vec::new();
        };
        let (round, mut took) = (Instant::now(), Vec::new());
        while round.elapsed() < ROUND {
            thread::sleep(pause);
            if alone {
                self.write_each(took.len() as u64);
            }
            let start = Instant::now();
            self.metrics.close_window(start);
            took.push(start.elapsed().as_secs_f64() * 1e6);
        }
        took
    }

    /// How long one record takes, in nanoseconds.
    fn write_until(&self, over: &AtomicBool) -> f64 {
        let (start, mut times) = (Instant::now(), 0);
        while !over.load(Relaxed) {
            self.write_each(times);
            times += 1;
        }
        start.elapsed().as_secs_f64() * 1e9 / (times * 2 * SERIES) as f64
    }

    fn write_each(&self, number: u64) {
        let at = Instant::now();
        for (which, (counter, histogram)) in (0..).zip(self.counters.iter().zip(&self.histograms)) {
            counter.increment(at);
            histogram.record(Duration::from_nanos(nanoseconds(number * SERIES + which)), at);
        }
    }
}
