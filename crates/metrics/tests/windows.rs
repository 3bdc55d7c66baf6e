//! The law of windows: what they add up to is what was recorded, whoever records while they close.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::ClockAnchor;
use mcpscope_metrics::{Config, Metrics, Value, desc};
use proptest::prelude::*;

fn metrics(start: Instant) -> Metrics {
    Metrics::new(&Config::default(), ClockAnchor { mono: start, wall: SystemTime::UNIX_EPOCH })
}

#[test]
fn the_sum_over_windows_is_the_cumulative_total() {
    const THREADS: u64 = 4;
    const RECORDS: u64 = 50_000;
    let start = Instant::now();
    let metrics = metrics(start);
    let done = AtomicBool::new(false);
    let mut closed = 0;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let metrics = metrics.clone();
                scope.spawn(move || {
                    let tool = metrics.tool_calls("s", "echo", "ok", false);
                    let list = metrics.registry_operations("s", "list");
                    for n in 0..RECORDS {
                        tool.record(Duration::from_nanos(thread * RECORDS + n), start);
                        list.increment(start);
                    }
                })
            })
            .collect();
        let (metrics, done) = (&metrics, &done);
        let closer = scope.spawn(move || {
            let mut at = start;
            while !done.load(Ordering::Relaxed) {
                at += Duration::from_millis(1);
                metrics.close_window(at);
            }
            at
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
        let at = closer.join().unwrap();
        metrics.close_window(at + Duration::from_millis(1));
    });
    let (mut calls, mut sum_ms, mut lists) = (0, 0.0, 0);
    for window in metrics.closed_windows() {
        closed += 1;
        for series in &window.series {
            if *series.desc == desc::TOOL_CALLS {
                calls += series.stats.count;
                sum_ms += series.stats.sum;
                assert!(series.stats.min <= series.stats.p50 && series.stats.p99 <= series.stats.max);
            } else if *series.desc == desc::REGISTRY_OPERATIONS {
                lists += series.stats.count;
            }
        }
    }
    let total = THREADS * RECORDS;
    assert!(closed > 1);
    assert_eq!((calls, lists), (total, total));
    let exact_ms = (total * (total - 1) / 2) as f64 / 1e6;
    assert!((sum_ms - exact_ms).abs() / exact_ms < 1e-9, "{sum_ms} for {exact_ms}");
}

#[test]
fn windows_are_kept_for_the_retention_and_no_longer() {
    let start = Instant::now();
    let config = Config { retention: Duration::from_secs(60), ..Config::default() };
    let metrics = Metrics::new(&config, ClockAnchor { mono: start, wall: SystemTime::UNIX_EPOCH });
    for n in 1..=100 {
        metrics.close_window(start + Duration::from_secs(10 * n));
    }
    assert_eq!(metrics.closed_windows().len(), 7, "the newest, and those that ended at most 60 s before it");
}

#[test]
fn numbers_of_a_window_are_those_of_its_records() {
    let start = Instant::now();
    let metrics = metrics(start);
    let tool = metrics.tool_calls("s", "echo", "ok", false);
    tool.record(Duration::from_secs(9), start);
    metrics.close_window(start + Duration::from_secs(10));
    (1..=100).for_each(|ms| tool.record(Duration::from_millis(ms), start));
    let window = metrics.close_window(start + Duration::from_secs(20));
    let stats = window.series.iter().find(|s| *s.desc == desc::TOOL_CALLS).unwrap().stats;
    assert_eq!((stats.min, stats.max, stats.count), (1.0, 100.0, 100));
    assert!((stats.sum - 5050.0).abs() < 1e-6 && (stats.avg - 50.5).abs() < 1e-6 && (stats.rate - 10.0).abs() < 1e-9);
    for (found, exact) in [(stats.p50, 50.0), (stats.p90, 90.0), (stats.p95, 95.0), (stats.p99, 99.0)] {
        assert!((found - exact).abs() / exact <= 1.0 / 64.0, "{found} for {exact}");
    }
}

proptest! {
    #[test]
    fn lowest_and_highest_of_a_window_are_exact(values in prop::collection::vec((1_u64..86_400_000_000_000, 0_u32..47), 1..20)) {
        let start = Instant::now();
        let metrics = metrics(start);
        let tool = metrics.tool_calls("s", "echo", "ok", false);
        for (n, (value, bits)) in (1..).zip(values) {
            let value = Duration::from_nanos(value >> bits);
            tool.record(value, start);
            let window = metrics.close_window(start + Duration::from_secs(10 * n));
            let stats = window.series.iter().find(|s| *s.desc == desc::TOOL_CALLS).unwrap().stats;
            let ms = value.as_nanos() as f64 / 1e6;
            prop_assert_eq!((stats.min, stats.p50, stats.max, stats.avg), (ms, ms, ms, ms));
        }
    }
}

#[test]
fn a_duration_of_a_day_has_quantiles() {
    let start = Instant::now();
    let metrics = metrics(start);
    let tool = metrics.tool_calls("s", "echo", "ok", false);
    (1..=24).for_each(|hours| tool.record(Duration::from_hours(hours), start));
    let window = metrics.close_window(start + Duration::from_secs(10));
    let stats = window.series.iter().find(|s| *s.desc == desc::TOOL_CALLS).unwrap().stats;
    for (found, hours) in [(stats.p50, 12.0), (stats.p90, 22.0), (stats.p99, 24.0)] {
        let exact = hours * 3.6e6;
        assert!((found - exact).abs() / exact <= 1.0 / 64.0, "{found} for {exact}");
    }
}

#[test]
fn reset_forgets_all_but_the_cumulative_values() {
    let start = Instant::now();
    let metrics = metrics(start);
    let list = metrics.registry_operations("s", "list");
    list.increment(start);
    metrics.close_window(start + Duration::from_secs(10));
    let before = metrics.summary(start + Duration::from_secs(10));
    assert_eq!((before.critical_metrics, before.counters["registry_operations_per_second"]), (1, 1));
    assert_eq!(before.aggregates["registry_operations_per_second"].count, 1);

    metrics.reset(start + Duration::from_secs(10));
    let view = metrics.metrics("registry_operations_per_second", start + Duration::from_secs(12)).unwrap();
    assert_eq!(view.series[0].value, 0.0, "of what came before nothing is shown");
    let after = metrics.summary(start + Duration::from_secs(10));
    assert_eq!((after.critical_metrics, after.counters["registry_operations_per_second"]), (0, 0));
    assert!(after.aggregates.is_empty() && metrics.closed_windows().is_empty());

    list.increment(start);
    let window = metrics.close_window(Instant::now());
    assert!(window.series.iter().any(|s| *s.desc == desc::REGISTRY_OPERATIONS && s.stats.count == 1));
    let snapshot = metrics.snapshot(start);
    let family = snapshot.families.iter().find(|f| *f.desc == desc::REGISTRY_OPERATIONS).unwrap();
    assert_eq!(family.series[0].value, Value::Counter(2));
}

#[test]
fn each_series_of_a_view_has_its_own_window() {
    const SERIES: u64 = 200;
    let start = Instant::now();
    let metrics = metrics(start);
    let calls = |n: u64| metrics.tool_calls("s", &format!("tool{n}"), "ok", false);
    (0..SERIES).for_each(|n| calls(n).record(Duration::from_millis(n + 1), start));
    metrics.close_window(start + Duration::from_secs(10));
    // The last one is not in the newest window.
    (0..SERIES - 1).for_each(|n| calls(n).record(Duration::from_millis(2 * n + 1), start));
    metrics.close_window(start + Duration::from_secs(20));
    let view = metrics.metrics("tool_call_duration_ms", start + Duration::from_secs(20)).unwrap();
    for n in 0..SERIES {
        let tool = format!("tool{n}");
        let series = view.series.iter().find(|s| s.labels.get("tool") == Some(&tool)).unwrap();
        let expected = (n < SERIES - 1).then_some((1, (2 * n + 1) as f64));
        assert_eq!(series.window.map(|stats| (stats.count, stats.max)), expected, "{tool}");
    }
}

#[test]
fn all_seven_have_a_view_with_their_names_and_units() {
    let start = Instant::now();
    let metrics = metrics(start);
    metrics.announce_server("s", mcpscope_core::Transport::Http);
    metrics.component_errors(mcpscope_core::Component::Tools, "tool_error", false).increment(start);
    let tools = metrics.component_operations(mcpscope_core::Component::Tools, false);
    (0..4).for_each(|_| tools.increment(start));
    let views = metrics.views(start + Duration::from_secs(1));
    let names: Vec<_> = views.iter().map(|v| (&*v.name, v.kind, v.unit)).collect();
    assert_eq!(
        names,
        [
            ("registry_operations_per_second", "rate", "1/s"),
            ("session_creation_latency_ms", "histogram", "ms"),
            ("transport_connection_count", "gauge", "1"),
            ("tool_call_duration_ms", "histogram", "ms"),
            ("error_rates_by_component", "ratio", "ratio"),
            ("active_sessions_count", "gauge", "1"),
            ("message_queue_depth", "gauge", "1"),
        ]
    );
    let errors = metrics.metrics("error_rates_by_component", start).unwrap();
    let of = |component| errors.series.iter().find(|s| s.labels.get("component") == Some(component)).unwrap().value;
    assert_eq!((of("tools"), of("registry")), (0.25, 0.0));
}
