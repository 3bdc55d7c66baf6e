//! Prometheus text, format 0.0.4.

use std::fmt::Write as _;

use mcpscope_core::Labels;

use crate::snapshot::{FamilySnapshot, HistogramSnapshot, Snapshot, Value};

impl Snapshot {
    /// All families as Prometheus text (`text/plain; version=0.0.4`).
    #[must_use]
    pub fn to_prometheus(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        self.families.iter().for_each(|family| write_family(&mut out, family));
        out
    }
}

fn write_family(out: &mut String, family: &FamilySnapshot) {
    let name = family.desc.prometheus;
    for (keyword, text) in [("HELP", family.desc.help), ("TYPE", family.desc.kind.as_str())] {
        out.extend(["# ", keyword, " ", name, " ", text, "\n"]);
    }
    for series in &family.series {
        let labels = rendered(&series.labels);
        match &series.value {
            Value::Counter(value) => sample(out, name, "", &labels, itoa::Buffer::new().format(*value)),
            Value::Gauge(value) => sample(out, name, "", &labels, itoa::Buffer::new().format(*value)),
            Value::Histogram(values) => write_histogram(out, name, &labels, values),
        }
    }
}

fn write_histogram(out: &mut String, name: &str, labels: &str, values: &HistogramSnapshot) {
    let mut numbers = itoa::Buffer::new();
    let separator = if labels.is_empty() { "" } else { "," };
    let mut below = 0;
    for (at, count) in values.bounds.iter().enumerate() {
        below += count;
        let bound = match HistogramSnapshot::BOUNDS_NS.get(at) {
            Some(bound_ns) => seconds(*bound_ns),
            None => "+Inf".to_owned(),
        };
        out.extend([name, "_bucket{", labels, separator, "le=\"", &bound, "\"} ", numbers.format(below), "\n"]);
    }
    sample(out, name, "_sum", labels, &seconds(values.sum_ns));
    sample(out, name, "_count", labels, numbers.format(values.count));
}

fn sample(out: &mut String, name: &str, suffix: &str, labels: &str, value: &str) {
    out.extend([name, suffix]);
    if !labels.is_empty() {
        out.extend(["{", labels, "}"]);
    }
    out.extend([" ", value, "\n"]);
}

/// `a="1",b="2"`, escaped as the format wants it.
fn rendered(labels: &Labels) -> String {
    let mut text = String::new();
    for (at, (name, value)) in labels.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "{name}=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                _ => text.push(c),
            }
        }
        text.push('"');
    }
    text
}

/// Nanoseconds as seconds, with the shortest digits that mean the same number.
fn seconds(ns: u64) -> String {
    ryu::Buffer::new().format(ns as f64 / 1e9).to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, SystemTime};

    use expect_test::expect;
    use mcpscope_core::{ClockAnchor, Component};

    use crate::{Config, Metrics};

    #[test]
    fn text_is_as_prometheus_reads_it() {
        let now = Instant::now();
        let metrics = Metrics::new(&Config::default(), ClockAnchor { mono: now, wall: SystemTime::UNIX_EPOCH });
        metrics.tool_calls("s", "a\"b\\c\nd", "ok", false).record(Duration::from_micros(1500), now);
        metrics.component_errors(Component::Tools, "tool_error", true).increment(now);
        let text = metrics.snapshot(now).to_prometheus();
        let mut shown = String::new();
        for line in
            text.lines().filter(|l| !l.starts_with('#') && (l.contains("tool_call") || l.contains("injected=\"true\"")))
        {
            shown.push_str(line);
            shown.push('\n');
        }
        expect![[r#"
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="0.001"} 0
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="0.002"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="0.005"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="0.01"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="0.02"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="0.05"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="0.1"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="0.2"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="0.5"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="1.0"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="2.0"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="5.0"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="10.0"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="30.0"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="60.0"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="120.0"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="300.0"} 1
            mcpscope_tool_call_duration_seconds_bucket{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false",le="+Inf"} 1
            mcpscope_tool_call_duration_seconds_sum{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false"} 0.0015
            mcpscope_tool_call_duration_seconds_count{server="s",tool="a\"b\\c\nd",outcome="ok",injected="false"} 1
            mcpscope_component_errors_total{component="tools",error_type="tool_error",injected="true"} 1
        "#]]
        .assert_eq(&shown);
    }

    #[test]
    fn what_is_known_beforehand_is_zero_from_the_start() {
        let now = Instant::now();
        let metrics = Metrics::new(&Config::default(), ClockAnchor { mono: now, wall: SystemTime::UNIX_EPOCH });
        metrics.announce_server("s", mcpscope_core::Transport::Stdio);
        let text = metrics.snapshot(now).to_prometheus();
        for line in [
            "mcpscope_registry_operations_total{server=\"s\",operation=\"list\"} 0",
            "mcpscope_session_creation_seconds_count{server=\"s\",protocol=\"2026-07-28\"} 0",
            "mcpscope_transport_connections{server=\"s\",transport=\"stdio\"} 0",
            "mcpscope_component_operations_total{component=\"json_rpc\",injected=\"false\"} 0",
            "mcpscope_active_sessions{server=\"s\",protocol=\"2025-11-25\"} 0",
            "mcpscope_message_queue_depth{server=\"s\",direction=\"to_client\"} 0",
            "# TYPE mcpscope_tool_call_duration_seconds histogram",
            "# TYPE mcpscope_component_errors_total counter",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
