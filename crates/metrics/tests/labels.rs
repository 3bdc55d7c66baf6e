//! Names and values of labels that are refused, or kept in part only.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::time::{Instant, SystemTime};

use mcpscope_core::ClockAnchor;
use mcpscope_metrics::{Config, Metrics};

fn metrics() -> (Metrics, Instant) {
    let now = Instant::now();
    (Metrics::new(&Config::default(), ClockAnchor { mono: now, wall: SystemTime::UNIX_EPOCH }), now)
}

#[test]
fn labels_with_few_values_take_no_others() {
    let (metrics, at) = metrics();
    let record = |name: &str, value, label: &str, text: &str| metrics.record(name, value, &[(label, text)], at);
    for (name, label, bad, expected) in [
        (
            "registry_operations_per_second",
            "operation",
            "tools/list",
            "list, read, subscribe, listen, discover, list_changed, register, unregister",
        ),
        (
            "session_creation_latency_ms",
            "protocol",
            "2025-01-01",
            "2024-11-05, 2025-03-26, 2025-06-18, 2025-11-25, 2026-07-28, other",
        ),
        ("transport_connection_count", "transport", "sse", "stdio, http"),
        ("tool_call_duration_ms", "outcome", "OK", "ok, error, caller_error, timeout, cancelled"),
        ("tool_call_duration_ms", "injected", "1", "true, false"),
        (
            "active_sessions_count",
            "protocol",
            "mcp",
            "2024-11-05, 2025-03-26, 2025-06-18, 2025-11-25, 2026-07-28, other",
        ),
        ("message_queue_depth", "direction", "up", "to_server, to_client"),
    ] {
        let before = metrics.snapshot(at).to_prometheus();
        for bad in [bad.to_owned(), "x".repeat(10_000)] {
            let refused = record(name, 1.0, label, &bad).unwrap_err().to_string();
            let shown = &bad[..bad.len().min(64)];
            assert_eq!(refused, format!("{name} does not take {label} {shown:?}: expected one of {expected}"));
        }
        assert_eq!(metrics.snapshot(at).to_prometheus(), before);
        expected.split(", ").for_each(|good| record(name, 1.0, label, good).unwrap());
        // As if it was left out.
        record(name, 1.0, label, "").unwrap();
    }
    assert!(!metrics.snapshot(at).to_prometheus().contains("outcome=\"\""));
    // There is no end of these.
    record("error_rates_by_component", 1.0, "error_type", "-32000").unwrap();
    record("error_rates_by_component", 1.0, "component", "mine").unwrap();
}

#[test]
fn values_that_are_cut_are_counted() {
    let (metrics, at) = metrics();
    let dropped = |what: &str| {
        let page = metrics.snapshot(at).to_prometheus();
        let value =
            page.lines().find_map(|line| line.strip_prefix(&format!("mcpscope_dropped_total{{what=\"{what}\"}} ")));
        value.unwrap().parse::<u64>().unwrap()
    };
    let cut = || dropped("cut_label_value");
    assert_eq!(cut(), 0, "there from the start");
    let (fits, long) = ("x".repeat(256), "x".repeat(257));
    for _ in 0..2 {
        metrics.record("tool_call_duration_ms", 1.0, &[("tool", &fits)], at).unwrap();
    }
    assert_eq!(cut(), 0);
    for _ in 0..2 {
        metrics.record("tool_call_duration_ms", 1.0, &[("tool", &long)], at).unwrap();
    }
    assert_eq!(cut(), 2, "each time");
    let _handle = metrics.counter("jobs", &[("queue", &long)]).unwrap();
    assert_eq!((cut(), dropped("label_value")), (3, 0));
}

#[cfg(feature = "prometheus")]
#[test]
fn names_under_which_nothing_could_be_shown_are_refused_each_time() {
    use mcpscope_metrics::{Declared, Kind, Prometheus};

    let at = Instant::now();
    let general = Prometheus::new(std::time::Duration::from_secs(3600), 10, Instant::now);
    let config = Config { general: Some(std::sync::Arc::new(general)), ..Config::default() };
    let metrics = Metrics::new(&config, ClockAnchor { mono: at, wall: SystemTime::UNIX_EPOCH });
    metrics.declare(&Declared::new("lookup_ms", Kind::Histogram, "").unwrap()).unwrap();
    // What that is called in Prometheus.
    let refused = (0..100).filter(|_| metrics.record("lookup_seconds", 1.0, &[], at).is_err());
    assert_eq!(refused.count(), 100, "though only one in ten is kept");
    let text = metrics.snapshot(at).to_prometheus();
    assert!(text.contains("mcpscope_dropped_total{what=\"metric_conflict\"} 100\n"), "{text}");
}
