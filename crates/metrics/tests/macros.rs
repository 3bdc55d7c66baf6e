//! What the macros take, and that series which threads only remember are let go.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::ClockAnchor;
use mcpscope_metrics::{Config, Declared, Kind, Metrics, counter, gauge, histogram};

fn metrics(start: Instant) -> Metrics {
    let config = Config { idle_timeout: Duration::from_secs(60), ..Config::default() };
    Metrics::new(&config, ClockAnchor { mono: start, wall: SystemTime::UNIX_EPOCH })
}

#[test]
fn the_instance_may_be_any_expression() {
    let now = Instant::now();
    let metrics = metrics(now);
    let owned = || metrics.clone();
    for _ in 0..2 {
        counter!(owned(), "jobs_total", "queue" => "mail").increment(now);
        gauge!(owned(), "jobs_waiting").set(3.0, now);
        histogram!(owned(), "job_seconds").record(Duration::from_millis(1), now);
    }
    let text = metrics.snapshot(now).to_prometheus();
    for line in ["jobs_total{queue=\"mail\"} 2", "jobs_waiting 3", "job_seconds_count 2"] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn a_series_that_a_thread_only_remembers_is_retired_and_comes_back() {
    let start = Instant::now();
    let metrics = metrics(start);
    metrics.declare(&Declared::new("jobs_total", Kind::Counter, "").unwrap()).unwrap();
    let line = |at| {
        let text = metrics.snapshot(at).to_prometheus();
        text.lines().find_map(|line| line.strip_prefix("jobs_total{queue=\"mail\"} ").map(str::to_owned))
    };
    metrics.record("jobs_total", 1.0, &[("queue", "mail")], start).unwrap();
    assert_eq!(line(start).as_deref(), Some("1"));
    let later = |seconds| start + Duration::from_secs(seconds);
    for seconds in [100, 200, 300] {
        metrics.close_window(later(seconds));
    }
    assert_eq!(line(later(300)), None, "nobody holds it");
    metrics.record("jobs_total", 1.0, &[("queue", "mail")], later(400)).unwrap();
    assert_eq!(line(later(400)).as_deref(), Some("2"), "with what it counted before");
}
