//! `metrics.critical_metrics`: the one list whose elements are more than texts.

use std::{fs, path::Path};

use expect_test::expect;

use super::load;
use crate::{CriticalMetric, MetricKind};

fn metric(name: &str, kind: MetricKind, help: &str) -> CriticalMetric {
    CriticalMetric { name: name.to_owned(), kind, help: help.to_owned() }
}

#[test]
fn a_name_is_enough_and_a_mapping_says_more() {
    let file = b"
metrics:
  critical_metrics:
    - orders_total
    - { name: order_value, kind: gauge, help: 'Value of an order, in EUR' }
    - name: db_query_seconds
    - { name: retries, kind: counter }
    - { help: '', name: _x1 }
";
    let settings = load(&[file], &[]).unwrap();
    let expected = [
        metric("orders_total", MetricKind::Counter, ""),
        metric("order_value", MetricKind::Gauge, "Value of an order, in EUR"),
        metric("db_query_seconds", MetricKind::Histogram, ""),
        metric("retries", MetricKind::Counter, ""),
        metric("_x1", MetricKind::Gauge, ""),
    ];
    assert_eq!(settings.metrics.critical_metrics, expected);
}

#[test]
fn the_example_in_the_documentation_loads() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once("```yaml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let expected = [
        metric("orders_total", MetricKind::Counter, ""),
        metric("db_query_ms", MetricKind::Histogram, ""),
        metric("cache_entries", MetricKind::Gauge, "Entries in the cache"),
        metric("retries", MetricKind::Counter, ""),
    ];
    assert_eq!(load(&[example.as_bytes()], &[]).unwrap().metrics.critical_metrics, expected);
}

#[test]
fn a_later_layer_replaces_the_list() {
    let variable = ("MCPSCOPE_METRICS_CRITICAL_METRICS", "orders_total, db_query_ms,order_value");
    let settings = load(&[b"metrics: { critical_metrics: [a, b] }"], &[variable]).unwrap();
    let expected = [
        metric("orders_total", MetricKind::Counter, ""),
        metric("db_query_ms", MetricKind::Histogram, ""),
        metric("order_value", MetricKind::Gauge, ""),
    ];
    assert_eq!(settings.metrics.critical_metrics, expected);
}

#[test]
fn the_ending_of_a_name_says_the_kind() {
    for (name, kind) in [
        ("a_total", MetricKind::Counter),
        ("a_seconds_total", MetricKind::Counter),
        ("a_seconds", MetricKind::Histogram),
        ("a_ms", MetricKind::Histogram),
        ("a_bytes", MetricKind::Gauge),
        ("aseconds", MetricKind::Gauge),
        ("a_items", MetricKind::Gauge),
    ] {
        assert_eq!(MetricKind::of(name), kind, "{name}");
    }
}

#[test]
fn what_fits_and_what_is_too_much() {
    let list = |count| (0..count).map(|n| format!("a{n}")).collect::<Vec<_>>().join(",");
    let variable = "MCPSCOPE_METRICS_CRITICAL_METRICS";
    assert_eq!(load(&[], &[(variable, &list(256))]).unwrap().metrics.critical_metrics.len(), 256);
    let error = load(&[], &[(variable, &list(257))]).unwrap_err();
    assert!(error.ends_with("expected 256 metrics at most, found 257"), "{error}");
    let (name, help) = ("n".repeat(128), "h".repeat(1024));
    load(&[format!("metrics: {{ critical_metrics: [{{ name: {name}, help: {help} }}] }}").as_bytes()], &[]).unwrap();
}

#[test]
fn bad_values() {
    let name = "the name of a metric, 1 to 128 letters, digits and _, not beginning with a digit";
    let long_name = "n".repeat(129);
    let long_help = format!("[{{ name: a, help: {} }}]", "h".repeat(1025));
    let table: &[(&str, String)] = &[
        ("a_total", "a list of metrics, each a name or a mapping of name, kind and help, found \"a_total\"".into()),
        ("{ name: a }", "a list of metrics, each a name or a mapping of name, kind and help, found a mapping".into()),
        ("null", "a list of metrics, each a name or a mapping of name, kind and help, found nothing".into()),
        ("[7]", "the name of a metric, or a mapping of its name, kind and help, found 7".into()),
        ("[null]", "the name of a metric, or a mapping of its name, kind and help, found nothing".into()),
        ("[[a]]", "the name of a metric, or a mapping of its name, kind and help, found a list".into()),
        ("[!t a]", "the name of a metric, or a mapping of its name, kind and help, found a tag".into()),
        ("['']", format!("{name}, found \"\"")),
        ("[9lives]", format!("{name}, found \"9lives\"")),
        ("[a-b]", format!("{name}, found \"a-b\"")),
        ("['a:b']", format!("{name}, found \"a:b\"")),
        ("['a b']", format!("{name}, found \"a b\"")),
        ("[größe]", format!("{name}, found \"größe\"")),
        ("[\"a\\n\"]", format!("{name}, found \"a\\n\"")),
        ("[{ name: 7 }]", "the name of a metric, found 7".into()),
        ("[_total]", "something before the ending of a name, found \"_total\"".into()),
        ("[_ms]", "something before the ending of a name, found \"_ms\"".into()),
        (
            "[mcpscope_x]",
            "a name that does not begin with mcpscope_, as mcpscope's own do, found \"mcpscope_x\"".into(),
        ),
        ("[mcp_calls]", "a name that does not begin with mcp_, as mcpscope's own do, found \"mcp_calls\"".into()),
        ("[mcp]", "a name that does not begin with mcp_, as mcpscope's own do, found \"mcp\"".into()),
        ("[process_x]", "a name that does not begin with process_, as mcpscope's own do, found \"process_x\"".into()),
        ("[{}]", "a name among name, kind and help".into()),
        ("[{ kind: gauge }]", "a name among name, kind and help".into()),
        ("[{ name: a, <<: {} }]", "only name, kind and help, found \"<<\"".into()),
        ("[{ name: a, unit: s }]", "only name, kind and help, found \"unit\"".into()),
        ("[{ name: a, 7: s }]", "only name, kind and help, found 7".into()),
        ("[{ name: a, kind: timer }]", "counter, gauge or histogram, found \"timer\"".into()),
        ("[{ name: a, kind: Gauge }]", "counter, gauge or histogram, found \"Gauge\"".into()),
        ("[{ name: a, kind: }]", "counter, gauge or histogram, found nothing".into()),
        (
            "[{ name: latency, kind: histogram }]",
            "the name of a histogram to end in _seconds or _ms, found \"latency\"".into(),
        ),
        ("[{ name: a_total, kind: gauge }]", "the name of a gauge not to end in _total, found \"a_total\"".into()),
        ("[a_total_total]", "the name of a counter not to end in _total_total, found \"a_total_total\"".into()),
        ("[a_count]", "the name of a gauge not to end in _count, as a part of a metric does, found \"a_count\"".into()),
        (
            "[a_count_total]",
            "the name of a counter not to end in _count_total, as a part of a metric does, found \"a_count_total\"".into(),
        ),
        ("[a_info_total]", "the name of a counter not to end in _info_total, as a part of a metric does, found \"a_info_total\"".into()),
        (
            "[{ name: q_ms, kind: gauge }]",
            "the name of a gauge not to end in _ms, of which only a histogram's becomes seconds, found \"q_ms\"".into(),
        ),
        (
            "[{ name: q_ms, kind: counter }]",
            "the name of a counter not to end in _ms, of which only a histogram's becomes seconds, found \"q_ms\"".into(),
        ),
        (
            "[q_ms_total]",
            "the name of a counter not to end in _ms_total, of which only a histogram's becomes seconds, found \"q_ms_total\""
                .into(),
        ),
        ("[{ name: a, help: 7 }]", "a help text of one line, at most 1024 bytes, found 7".into()),
        ("[{ name: a, help: \"x\\ny\" }]", "a help text of one line, at most 1024 bytes, found \"x\\ny\"".into()),
        (&long_help, format!("a help text of one line, at most 1024 bytes, found \"{}…\"", "h".repeat(80))),
    ];
    for (value, expected) in table {
        let error = load(&[format!("metrics:\n  critical_metrics: {value}\n").as_bytes()], &[]).unwrap_err();
        let column = if value.starts_with('[') { 22 } else { 21 };
        assert_eq!(error, format!("a.yaml:2:{column}: metrics.critical_metrics: expected {expected}"), "{value}");
    }
    let error = load(&[], &[("MCPSCOPE_METRICS_CRITICAL_METRICS", &format!("a,{long_name}"))]).unwrap_err();
    let shown = "n".repeat(80);
    let key = "MCPSCOPE_METRICS_CRITICAL_METRICS: metrics.critical_metrics";
    assert_eq!(error, format!("{key}: expected {name}, found \"{shown}…\""));
}

#[test]
fn no_two_may_be_the_same_to_a_scraper() {
    for (list, why) in [
        ("[a, b, a]", "a is given twice"),
        ("[a, { name: a, kind: counter }]", "a is given twice"),
        ("[a_seconds, { name: a_seconds, kind: gauge }]", "a_seconds is given twice"),
        ("[{ name: a, kind: counter }, a_total]", "a and a_total would be one and the same to a scraper"),
        ("[a_total, a]", "a_total and a would be one and the same to a scraper"),
        ("[a_ms, a_seconds]", "a_ms and a_seconds would be one and the same to a scraper"),
        ("[a_seconds, a_seconds_total]", "a_seconds and a_seconds_total would be one and the same to a scraper"),
    ] {
        let error = load(&[format!("metrics: {{ critical_metrics: {list} }}").as_bytes()], &[]).unwrap_err();
        assert!(
            error.starts_with("a.yaml:1:") && error.contains(&format!("metrics.critical_metrics: {why}")),
            "{error}"
        );
    }
    load(&[b"metrics: { critical_metrics: [a, a_bytes, b_total, c_ms, c, { name: e_seconds, kind: gauge }, { name: f_seconds, kind: counter }, g_seconds_total, h_count_ms] }"], &[]).unwrap();
}

#[test]
fn every_bad_metric_has_its_own_line() {
    let file = b"
metrics:
  critical_metrics:
    - jobs_total
    - mcp_calls
    - { name: latency, kind: histogram }
    - jobs
    - { name: wait_seconds, kind: counter, help: Fine }
    - - nested
    - jobs_total
    - name: twice
      name: twice
    - kind: gauge
    - jobs_total
  retention: never
tracing: { max_traces: 0 }
";
    expect![[r#"
        a.yaml:5:7: metrics.critical_metrics: expected a name that does not begin with mcp_, as mcpscope's own do, found "mcp_calls"
        a.yaml:6:7: metrics.critical_metrics: expected the name of a histogram to end in _seconds or _ms, found "latency"
        a.yaml:7:7: metrics.critical_metrics: jobs_total and jobs would be one and the same to a scraper
        a.yaml:9:7: metrics.critical_metrics: expected the name of a metric, or a mapping of its name, kind and help, found a list
        a.yaml:10:7: metrics.critical_metrics: jobs_total is given twice
        a.yaml:11:7: metrics.critical_metrics: metrics.critical_metrics[7]: duplicate entry with key "name" at line 11 column 7
        a.yaml:13:7: metrics.critical_metrics: expected a name among name, kind and help
        a.yaml:14:7: metrics.critical_metrics: jobs_total is given twice
        a.yaml:15:14: metrics.retention: expected a duration from 1ms to 365d such as 200ms, 10s or 60m, or a number of milliseconds, found "never"
        a.yaml:16:24: tracing.max_traces: expected a whole number from 1 to 1000000, found 0"#]]
    .assert_eq(&load(&[file], &[]).unwrap_err());
}

#[test]
fn what_is_wrong_with_the_list_hides_no_later_error() {
    let names: String = (0..300).map(|n| format!("a{n}, ")).collect();
    let file = format!("metrics: {{ critical_metrics: [7, {names} 8], listen: 7 }}\ntracing: {{ max_traces: 0 }}\n");
    let error = load(&[file.as_bytes()], &[]).unwrap_err();
    let keys: Vec<_> = error.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
    let list = "metrics.critical_metrics";
    assert_eq!(keys, [list, list, "metrics.listen", "tracing.max_traces"], "{error}");
    assert!(error.contains("expected 256 metrics at most, found 301"), "{error}");
}

#[test]
fn a_field_given_twice() {
    // Found by the parser.
    let error = load(&[b"metrics: { critical_metrics: [a, { name: b, name: c }] }"], &[]).unwrap_err();
    assert!(error.starts_with("a.yaml:1:34: metrics.critical_metrics: "), "{error}");
    assert!(error.contains("duplicate entry with key \"name\""), "{error}");
}

#[test]
fn the_seven_are_critical_in_any_case() {
    for name in [
        "registry_operations_per_second",
        "session_creation_latency_ms",
        "transport_connection_count",
        "tool_call_duration_ms",
        "error_rates_by_component",
        "active_sessions_count",
        "message_queue_depth",
    ] {
        let error = load(&[], &[("MCPSCOPE_METRICS_CRITICAL_METRICS", name)]).unwrap_err();
        assert!(error.ends_with(&format!("{name} is critical in any case: expected metrics besides mcpscope's own")));
    }
}
