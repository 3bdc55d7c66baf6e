//! What no input may do: panic, hang or take memory without bound.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_yaml::Value;

use super::load;
use crate::{
    CriticalMetric, MetricKind, Settings,
    kind::{Kind, Period, Size},
};

/// Text made of the pieces that matter to YAML and to us, so that more than the first byte is looked at.
fn yamlish() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "tracing",
        "metrics",
        "dashboard",
        "proxy",
        "max_traces",
        "enabled",
        "host",
        "allowed_hosts",
        "critical_metrics",
        "servers",
        "listen",
        "upstream",
        "name",
        "kind",
        ": ",
        ":",
        "\n",
        "\n  ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "- ",
        "? ",
        "&a ",
        "*a",
        "!t ",
        "|\n",
        ">",
        "'",
        "\"",
        "#",
        "---\n",
        "...\n",
        "%",
        "<<",
        "~",
        "1",
        "0.5",
        "10s",
        "true",
        "\t",
        "\u{feff}",
        "\u{85}",
        "é",
    ]);
    prop::collection::vec(pieces, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_bytes_give_settings_or_errors(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = load(&[&bytes], &[]);
    }

    #[test]
    fn any_yaml_gives_settings_or_errors(text in yamlish()) {
        if let Err(errors) = load(&[text.as_bytes()], &[]) {
            prop_assert!(errors.lines().all(|line| line.starts_with("a.yaml:")), "{errors}");
        }
    }

    #[test]
    fn any_variable_gives_settings_or_errors(name in "[A-Z_]{0,20}", text in any::<String>()) {
        let _ = load(&[], &[(&format!("MCPSCOPE_{name}"), &text)]);
        let _ = load(&[], &[("MCPSCOPE_DASHBOARD_ALLOWED_ORIGINS", &text), ("MCPSCOPE_TRACING_MAX_BYTES", &text)]);
        let _ = load(&[], &[("MCPSCOPE_METRICS_CRITICAL_METRICS", &text)]);
    }

    #[test]
    fn durations_come_back(millis in 1..=31_536_000_000_u64) {
        let duration = Duration::from_millis(millis);
        prop_assert_eq!(Period::read(&Period::write(&duration)).ok(), Some(duration));
        prop_assert_eq!(Period::read(&Value::from(millis)).ok(), Some(duration));
    }

    #[test]
    fn sizes_come_back(bytes in 1..=1_u64 << 40, shift in 0..40_u32) {
        for bytes in [bytes, (bytes >> shift).max(1) << shift] {
            prop_assert_eq!(Size::read(&Size::write(&bytes)).ok(), Some(bytes));
            prop_assert_eq!(Size::read(&Value::from(bytes)).ok(), Some(bytes));
        }
    }
}

#[test]
fn settings_written_as_yaml_come_back() {
    let mut settings = Settings::default();
    settings.tracing.max_bytes = 1_234_567;
    settings.metrics.retention = Duration::from_millis(3_661_001);
    settings.metrics.critical_metrics = ["cache_hits_total", "cache_fill_ms", "cache_entries"]
        .map(|name| CriticalMetric { name: name.to_owned(), kind: MetricKind::of(name), help: "\"It\": #1".to_owned() })
        .into();
    settings.dashboard.allowed_hosts = vec!["on.example".to_owned()];
    let text = serde_yaml::to_string(&settings).unwrap();
    assert_eq!(load(&[text.as_bytes()], &[]), Ok(settings));
}

#[test]
fn hostile_files_end_soon() {
    let deep = "[".repeat(1 << 20);
    let deep_keys = "? ".repeat(1 << 16);
    let nested = format!("tracing: {}1{}", "{a: ".repeat(200), "}".repeat(200));
    let nested_list = format!("proxy: {{ allowed_hosts: {}{} }}", "[".repeat(100), "]".repeat(100));
    let mut wide = String::new();
    for n in 0..5_000 {
        wide += &format!("unknown_{n}: 1\n");
    }
    let list = format!("proxy: {{ allowed_hosts: [{}] }}", "x, ".repeat(30_000));
    let metrics: String = (0..50_000).map(|n| format!("a{n}_ms, ")).collect();
    let metrics = format!("metrics: {{ critical_metrics: [{metrics}] }}");
    let servers = format!("servers: [{}]", "{}, ".repeat(20_000));
    let named: String =
        (0..5_000).map(|n| format!("{{name: a{n}, upstream: 'http://a', listen: 'a:{n}'}}, ")).collect();
    let named = format!("servers: [{named}]");
    for file in [deep, deep_keys, nested, nested_list, wide, list, metrics, servers, named] {
        let start = Instant::now();
        let result = load(&[file.as_bytes()], &[]).map(|_| ()).map_err(|errors| errors.lines().count());
        let shown: String = file.chars().take(20).collect();
        // Minutes when it goes wrong, so there is room for a busy machine.
        assert!(start.elapsed() < Duration::from_secs(30), "{shown:?}: {result:?} after {:?}", start.elapsed());
    }
}
