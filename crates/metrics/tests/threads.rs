//! Threads that come, record and go, while windows are closed: whatever they do, nothing is lost and nothing is counted
//! twice. What they did is counted by themselves as well.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::ClockAnchor;
use mcpscope_metrics::{Config, Declared, HistogramSnapshot, Kind, Metrics, Snapshot, Value, counter};

/// Fewer under valgrind, which is some fifty times slower.
const ROUNDS: u64 = if cfg!(debug_assertions) { 30 } else { 300 };
const THREADS: u64 = 4;
const RECORDS: u64 = 500;

/// What the threads say that they recorded.
#[derive(Debug, Default)]
struct Independent {
    events: AtomicU64,
    durations: AtomicU64,
    sum_ns: AtomicU64,
    max_ns: AtomicU64,
}

fn metrics(start: Instant) -> Metrics {
    let metrics = Metrics::new(&Config::default(), ClockAnchor { mono: start, wall: SystemTime::UNIX_EPOCH });
    for (name, kind) in [("jobs_total", Kind::Counter), ("job_seconds", Kind::Histogram), ("jobs_waiting", Kind::Gauge)]
    {
        metrics.declare(&Declared::new(name, kind, "").unwrap()).unwrap();
    }
    metrics
}

/// A thread's life: through handles, a call site and names, and the last of it while the thread ends.
fn live(metrics: &Metrics, counted: &Independent, seed: u64, at: Instant) {
    struct Late(Metrics, Instant);
    impl Drop for Late {
        fn drop(&mut self) {
            self.0.counter("late_total", &[]).unwrap().increment(self.1);
        }
    }
    thread_local!(static LATE: std::cell::RefCell<Option<Late>> = const { std::cell::RefCell::new(None) });
    LATE.set(Some(Late(metrics.clone(), at)));

    let handle = metrics.counter("jobs_total", &[("by", "handle")]).unwrap();
    let histogram = metrics.histogram("job_seconds", &[("by", "handle")]).unwrap();
    let gauge = metrics.gauge("jobs_waiting", &[]).unwrap();
    for n in 0..RECORDS {
        let value_ns = (seed * RECORDS + n) * 7919 % 400_000_000_000;
        gauge.add(1.0, at);
        handle.increment(at);
        counter!(metrics, "jobs_total", "by" => "site").add(2, at);
        // Not declared: its place keeps a cell for each thread.
        counter!(metrics, "sites_total").increment(at);
        metrics.record("jobs_total", 3.0, &[("by", "name")], at).unwrap();
        histogram.record(Duration::from_nanos(value_ns), at);
        gauge.add(-1.0, at);
        counted.events.fetch_add(6, Relaxed);
        counted.durations.fetch_add(1, Relaxed);
        counted.sum_ns.fetch_add(value_ns, Relaxed);
        counted.max_ns.fetch_max(value_ns, Relaxed);
    }
}

fn values(snapshot: &Snapshot, name: &str) -> Vec<Value> {
    let family = snapshot.families.iter().find(|family| family.desc.prometheus == name);
    family.map(|family| family.series.iter().map(|series| series.value.clone()).collect()).unwrap_or_default()
}

fn events(snapshot: &Snapshot, name: &str) -> u64 {
    values(snapshot, name).iter().map(|value| if let Value::Counter(n) = value { *n } else { 0 }).sum()
}

fn durations(snapshot: &Snapshot) -> HistogramSnapshot {
    let mut all = HistogramSnapshot::default();
    for value in values(snapshot, "job_seconds") {
        if let Value::Histogram(values) = value {
            all.merge(&values);
        }
    }
    all
}

#[test]
fn threads_that_come_and_go_lose_nothing() {
    let start = Instant::now();
    let metrics = metrics(start);
    let (counted, done) = (Independent::default(), AtomicBool::new(false));
    let (mut window_events, mut window_durations, mut window_sum_ms) = (0, 0, 0.0);
    thread::scope(|scope| {
        let closer = scope.spawn(|| {
            let (mut at, mut last) = (start, 0);
            while !done.load(Relaxed) {
                at += Duration::from_millis(10);
                metrics.close_window(at);
                let snapshot = metrics.snapshot(at);
                let all = durations(&snapshot);
                assert_eq!(all.count, all.bounds.iter().sum::<u64>(), "a snapshot is consistent in each series");
                assert_eq!(all.count, all.scale.iter().map(|(_, n)| n).sum::<u64>());
                assert!(all.count >= last, "what is cumulative never falls");
                last = all.count;
            }
            at
        });
        for round in 0..ROUNDS {
            let lives = (0..THREADS).map(|thread| {
                let (metrics, counted) = (&metrics, &counted);
                scope.spawn(move || live(metrics, counted, round * THREADS + thread, start))
            });
            let lives: Vec<_> = lives.collect();
            lives.into_iter().for_each(|life| life.join().unwrap());
        }
        done.store(true, Relaxed);
        let at = closer.join().unwrap();
        metrics.close_window(at + Duration::from_millis(10));
    });
    for series in metrics.closed_windows().iter().flat_map(|window| &window.series) {
        match &*series.desc.prometheus {
            "jobs_total" => window_events += series.stats.count,
            "job_seconds" => {
                window_durations += series.stats.count;
                window_sum_ms += series.stats.sum;
                let stats = series.stats;
                assert!(stats.min <= stats.avg && stats.avg <= stats.max, "{stats:?}");
            }
            _ => {}
        }
    }
    let snapshot = metrics.snapshot(start);
    let all = durations(&snapshot);
    let jobs = events(&snapshot, "jobs_total");
    assert_eq!(jobs, counted.events.load(Relaxed));
    assert_eq!(events(&snapshot, "sites_total"), ROUNDS * THREADS * RECORDS, "of a place with cells of its own");
    assert_eq!(events(&snapshot, "late_total"), ROUNDS * THREADS, "what a thread records as it ends");
    assert_eq!((all.count, all.sum_ns), (counted.durations.load(Relaxed), counted.sum_ns.load(Relaxed)));
    assert_eq!((all.min_ns, all.max_ns), (0, counted.max_ns.load(Relaxed)));
    assert_eq!(values(&snapshot, "jobs_waiting"), [Value::Gauge(0.0)]);

    assert_eq!((window_events, window_durations), (jobs, all.count));
    let exact_ms = all.sum_ns as f64 / 1e6;
    assert!((window_sum_ms - exact_ms).abs() / exact_ms < 1e-9, "{window_sum_ms} for {exact_ms}");
}
