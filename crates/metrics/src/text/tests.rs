//! The page in both formats.

use std::collections::BTreeMap;
use std::num::NonZeroU128;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use expect_test::{Expect, expect};
use mcpscope_core::{ClockAnchor, Component, TraceId};
use proptest::prelude::*;

use crate::text::Format;
use crate::{Config, Declared, General, Kind, Metrics, Refusal};

const FORMATS: [Format; 2] = [Format::Prometheus, Format::OpenMetrics];

fn with(config: &Config, critical: &[Declared]) -> (Metrics, Instant) {
    let now = Instant::now();
    let wall = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_020);
    let metrics = Metrics::new(config, ClockAnchor { mono: now, wall });
    critical.iter().for_each(|declared| metrics.declare(declared).unwrap());
    (metrics, now)
}

fn declared(name: &str, kind: Kind, help: &str) -> Declared {
    Declared::new(name, kind, help).unwrap()
}

fn trace(number: u128) -> TraceId {
    TraceId(NonZeroU128::new(number).unwrap())
}

/// The lines in which one of `names` is.
fn check(text: &str, names: &[&str], expected: &Expect) {
    let lines = text.lines().filter(|line| names.iter().any(|name| line.contains(name)));
    expected.assert_eq(&lines.map(|line| format!("{line}\n")).collect::<String>());
}

/// What both formats are tried with.
fn sample() -> (Metrics, Instant) {
    let critical = [
        declared("jobs", Kind::Counter, "All \"jobs\",\nalso those in C:\\tmp."),
        declared("wait_ms", Kind::Histogram, "Waiting."),
        declared("level", Kind::Gauge, "A level."),
        declared("never_seconds", Kind::Histogram, ""),
    ];
    let (metrics, now) = with(&Config::default(), &critical);
    let jobs = metrics.counter("jobs", &[("queue", "a\"b\\c\nd")]).unwrap();
    jobs.add(41, now);
    jobs.increment_traced(trace(7), now);
    metrics.gauge("level", &[]).unwrap().set(-0.25, now);
    let wait = metrics.histogram("wait_ms", &[]).unwrap();
    wait.record(Duration::from_micros(1500), now);
    wait.record_traced(Duration::from_secs(1), trace(8), now);
    wait.record_traced(Duration::from_secs(301), trace(9), now + Duration::from_millis(500));
    (metrics, now)
}

#[test]
fn prometheus() {
    let (metrics, now) = sample();
    let text = metrics.exposition(Format::Prometheus, now);
    assert_eq!(text, metrics.snapshot(now).to_prometheus());
    check(
        &text,
        &["jobs", "wait", "level", "never"],
        &expect![[r##"
            # TYPE jobs_total counter
            # HELP jobs_total All "jobs",\nalso those in C:\\tmp.
            jobs_total{queue="a\"b\\c\nd"} 42
            # TYPE wait_seconds histogram
            # HELP wait_seconds Waiting.
            wait_seconds_bucket{le="0.001"} 0
            wait_seconds_bucket{le="0.002"} 1
            wait_seconds_bucket{le="0.005"} 1
            wait_seconds_bucket{le="0.01"} 1
            wait_seconds_bucket{le="0.02"} 1
            wait_seconds_bucket{le="0.05"} 1
            wait_seconds_bucket{le="0.1"} 1
            wait_seconds_bucket{le="0.2"} 1
            wait_seconds_bucket{le="0.5"} 1
            wait_seconds_bucket{le="1.0"} 2
            wait_seconds_bucket{le="2.0"} 2
            wait_seconds_bucket{le="5.0"} 2
            wait_seconds_bucket{le="10.0"} 2
            wait_seconds_bucket{le="30.0"} 2
            wait_seconds_bucket{le="60.0"} 2
            wait_seconds_bucket{le="120.0"} 2
            wait_seconds_bucket{le="300.0"} 2
            wait_seconds_bucket{le="+Inf"} 3
            wait_seconds_sum 302.0015
            wait_seconds_count 3
            # TYPE level gauge
            # HELP level A level.
            level -0.25
            # TYPE never_seconds histogram
            # HELP never_seconds Declared by the user.
        "##]],
    );
}

#[test]
fn openmetrics() {
    let (metrics, now) = sample();
    let text = metrics.exposition(Format::OpenMetrics, now);
    assert_eq!(text, metrics.snapshot(now).to_openmetrics());
    check(
        &text,
        &["jobs", "wait", "level", "never", "# EOF"],
        &expect![[r##"
            # TYPE jobs counter
            # HELP jobs All \"jobs\",\nalso those in C:\\tmp.
            jobs_total{queue="a\"b\\c\nd"} 42 # {trace_id="00000000000000000000000000000007"} 1 1700000000.02
            # TYPE wait_seconds histogram
            # UNIT wait_seconds seconds
            # HELP wait_seconds Waiting.
            wait_seconds_bucket{le="0.001"} 0
            wait_seconds_bucket{le="0.002"} 1
            wait_seconds_bucket{le="0.005"} 1
            wait_seconds_bucket{le="0.01"} 1
            wait_seconds_bucket{le="0.02"} 1
            wait_seconds_bucket{le="0.05"} 1
            wait_seconds_bucket{le="0.1"} 1
            wait_seconds_bucket{le="0.2"} 1
            wait_seconds_bucket{le="0.5"} 1
            wait_seconds_bucket{le="1.0"} 2 # {trace_id="00000000000000000000000000000008"} 1.0 1700000000.02
            wait_seconds_bucket{le="2.0"} 2
            wait_seconds_bucket{le="5.0"} 2
            wait_seconds_bucket{le="10.0"} 2
            wait_seconds_bucket{le="30.0"} 2
            wait_seconds_bucket{le="60.0"} 2
            wait_seconds_bucket{le="120.0"} 2
            wait_seconds_bucket{le="300.0"} 2
            wait_seconds_bucket{le="+Inf"} 3 # {trace_id="00000000000000000000000000000009"} 301.0 1700000000.52
            wait_seconds_sum 302.0015
            wait_seconds_count 3
            # TYPE level gauge
            # HELP level A level.
            level -0.25
            # TYPE never_seconds histogram
            # UNIT never_seconds seconds
            # HELP never_seconds Declared by the user.
            # EOF
        "##]],
    );
    check(
        &text,
        &["# UNIT", "build_info", "process_cpu", "component_errors_total{component=\"server\""],
        &expect![[r##"
            # UNIT mcpscope_session_creation_seconds seconds
            # UNIT mcpscope_tool_call_duration_seconds seconds
            mcpscope_component_errors_total{component="server",error_type="crash",injected="false"} 0
            # UNIT mcp_server_operation_duration_seconds seconds
            # UNIT mcp_client_operation_duration_seconds seconds
            # UNIT mcp_server_session_duration_seconds seconds
            # UNIT mcpscope_proxy_overhead_seconds seconds
            # TYPE mcpscope_build_info gauge
            # HELP mcpscope_build_info The version of mcpscope that is running; always 1.
            mcpscope_build_info{version="0.1.0"} 1
            # TYPE process_cpu_seconds counter
            # UNIT process_cpu_seconds seconds
            # HELP process_cpu_seconds Total user and system CPU time spent in seconds.
            # UNIT process_resident_memory_bytes bytes
            # UNIT process_virtual_memory_bytes bytes
            # UNIT process_start_time_seconds seconds
            # UNIT wait_seconds seconds
            # UNIT never_seconds seconds
        "##]],
    );
}

#[test]
fn the_bounds_of_microseconds_are_canonical() {
    let (metrics, now) = with(&Config::default(), &[]);
    metrics.proxy_overhead("s", mcpscope_core::Direction::ToClient).record(Duration::from_micros(3), now);
    check(
        &metrics.snapshot(now).to_openmetrics(),
        &["overhead_seconds_bucket"],
        &expect![[r#"
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="1e-06"} 0
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="2e-06"} 0
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="5e-06"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="1e-05"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="2e-05"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="5e-05"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="0.0001"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="0.0002"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="0.0005"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="0.001"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="0.002"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="0.005"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="0.01"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="0.02"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="0.05"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="0.1"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="0.2"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="0.5"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="1.0"} 1
            mcpscope_proxy_overhead_seconds_bucket{server="s",direction="to_client",le="+Inf"} 1
        "#]],
    );
}

#[test]
fn a_series_has_the_same_name_in_both_formats() {
    let (metrics, now) = sample();
    let samples = |format| {
        let text = metrics.exposition(format, now);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split(" # ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(samples(Format::Prometheus), samples(Format::OpenMetrics));
}

#[test]
fn what_is_known_beforehand_is_zero_from_the_start() {
    let (metrics, now) = with(&Config::default(), &[]);
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

#[test]
fn an_exemplar_is_in_its_bucket_and_never_before_its_count() {
    let (metrics, now) = with(&Config::default(), &[]);
    let calls = metrics.tool_calls("s", "t", "error", false);
    for ms in [1, 2, 3, 100, 101, 400_000] {
        calls.record_traced(Duration::from_millis(ms), trace(u128::from(ms)), now);
    }
    let errors = metrics.component_errors(Component::Tools, "tool_error", false);
    errors.increment_traced(trace(5), now);
    let text = metrics.snapshot(now).to_openmetrics();
    let with_exemplar: Vec<_> = text.lines().filter_map(|line| line.split_once(" # ")).collect();
    assert_eq!(with_exemplar.len(), 6 + 1, "{text}");
    for (sample, exemplar) in with_exemplar {
        let [_, value, at] = exemplar.split(' ').collect::<Vec<_>>()[..] else { panic!("{exemplar}") };
        assert_eq!(at, "1700000000.02");
        let value: f64 = value.parse().unwrap();
        match sample.split_once("le=\"") {
            Some((_, rest)) => {
                assert!(value <= rest.split('"').next().unwrap().parse().unwrap(), "{sample} {exemplar}");
            }
            None => assert_eq!(value, 1.0),
        }
    }
    let nothing_yet = metrics.snapshot(now).since(&metrics.snapshot(now)).to_openmetrics();
    assert!(!nothing_yet.contains(" # {"), "{nothing_yet}");
    assert!(!metrics.snapshot(now).to_prometheus().contains(" # {"));
}

/// Others' metrics, as they come.
#[derive(Debug)]
struct Others(&'static str);

impl General for Others {
    fn record(&self, _: &str, _: f64, _: &[(&str, &str)], _: &dyn Fn(&str) -> bool) -> Result<(), Refusal> {
        Ok(())
    }

    fn counter(&self, _: &::metrics::Key, _: &dyn Fn(&str) -> bool) -> Result<::metrics::Counter, Refusal> {
        Ok(::metrics::Counter::noop())
    }

    fn gauge(&self, _: &::metrics::Key, _: &dyn Fn(&str) -> bool) -> Result<::metrics::Gauge, Refusal> {
        Ok(::metrics::Gauge::noop())
    }

    fn histogram(&self, _: &::metrics::Key, _: &dyn Fn(&str) -> bool) -> Result<::metrics::Histogram, Refusal> {
        Ok(::metrics::Histogram::noop())
    }

    fn to_prometheus(&self) -> String {
        self.0.to_owned()
    }

    fn records(&self) -> u64 {
        0
    }
}

fn beside(critical: &[Declared], text: &'static str) -> (Metrics, Instant) {
    with(&Config { general: Some(Arc::new(Others(text))), ..Config::default() }, critical)
}

/// What the page has beyond our own families.
fn others(format: Format, critical: &[Declared], text: &'static str) -> String {
    let (metrics, now) = beside(critical, text);
    let (page, ours) = (metrics.exposition(format, now), metrics.snapshot(now).to_prometheus());
    match format {
        Format::Prometheus => page.strip_prefix(&*ours).unwrap().to_owned(),
        Format::OpenMetrics => {
            let ours = metrics.snapshot(now).to_openmetrics();
            page.strip_prefix(ours.strip_suffix("# EOF\n").unwrap()).unwrap().to_owned()
        }
    }
}

const OTHERS: &str = r#"# HELP hits_total Hits on "C:\\".
# TYPE hits_total counter
hits_total{path="/quantile=\"1\"",host="a b"} 3
hits_total 4

# a remark
# TYPE load gauge
load 0.5

# HELP took_seconds Time.
# TYPE took_seconds summary
took_seconds{a="b",quantile="0"} 0.1
took_seconds{a="b",quantile="0.99"} 0.2
took_seconds{a="b",quantile="1"} 0.3
took_seconds_sum{a="b"} 0.6
took_seconds_count{a="b"} 3

# TYPE sizes histogram
sizes_bucket{le="1"} 1
sizes_bucket{le="2.5"} 1
sizes_bucket{le="+Inf"} 1
sizes_sum 0.5
sizes_count 1

"#;

#[test]
fn others_metrics_are_shown_in_both_formats() {
    expect![[r##"
        # TYPE hits_total counter
        # HELP hits_total Hits on "C:\\".
        hits_total{path="/quantile=\"1\"",host="a b"} 3
        hits_total 4
        # TYPE load gauge
        load 0.5
        # TYPE took_seconds summary
        # HELP took_seconds Time.
        took_seconds{a="b",quantile="0"} 0.1
        took_seconds{a="b",quantile="0.99"} 0.2
        took_seconds{a="b",quantile="1"} 0.3
        took_seconds_sum{a="b"} 0.6
        took_seconds_count{a="b"} 3
        # TYPE sizes histogram
        sizes_bucket{le="1"} 1
        sizes_bucket{le="2.5"} 1
        sizes_bucket{le="+Inf"} 1
        sizes_sum 0.5
        sizes_count 1
    "##]]
    .assert_eq(&others(Format::Prometheus, &[], OTHERS));
    expect![[r##"
        # TYPE hits counter
        # HELP hits Hits on \"C:\\\".
        hits_total{path="/quantile=\"1\"",host="a b"} 3
        hits_total 4
        # TYPE load gauge
        load 0.5
        # TYPE took_seconds summary
        # HELP took_seconds Time.
        took_seconds{a="b",quantile="0.0"} 0.1
        took_seconds{a="b",quantile="0.99"} 0.2
        took_seconds{a="b",quantile="1.0"} 0.3
        took_seconds_sum{a="b"} 0.6
        took_seconds_count{a="b"} 3
        # TYPE sizes histogram
        sizes_bucket{le="1.0"} 1
        sizes_bucket{le="2.5"} 1
        sizes_bucket{le="+Inf"} 1
        sizes_sum 0.5
        sizes_count 1
        # EOF
    "##]]
    .assert_eq(&others(Format::OpenMetrics, &[], OTHERS));
}

#[test]
fn no_name_is_there_twice() {
    let text = "# TYPE jobs_total counter\njobs_total 1\n# TYPE jobs gauge\njobs 1\n# TYPE wait_seconds_sum gauge\n\
                wait_seconds_sum 1\n# TYPE x_total counter\nx_total 1\n# TYPE x_total counter\nx_total 2\n\
                # TYPE x gauge\nx 3\n# TYPE bare counter\nbare 4\n";
    let critical = [declared("jobs", Kind::Counter, ""), declared("wait_ms", Kind::Histogram, "")];
    let kept = "# TYPE x_total TYPE\nx_total 1\n# TYPE x gauge\nx 3\n# TYPE bare TYPE\nbare 4\n";
    assert_eq!(others(Format::Prometheus, &critical, text), kept.replace("TYPE\n", "counter\n"));
    let openmetrics = kept.replace("TYPE\n", "unknown\n") + "# EOF\n";
    assert_eq!(others(Format::OpenMetrics, &critical, text), openmetrics);
}

#[test]
fn others_text_may_be_anything() {
    for text in ["", "\n\n", "stray 1\n", "# TYPE", "# TYPE \n", "# HELP a\n", "# TYPE a summary\na{quantile=\"", "#"] {
        for format in FORMATS {
            let _page = others(format, &[], text);
        }
    }
}

/// Takes back what is escaped.
fn unescaped(text: &str, quotes: bool) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => out.push('\n'),
            ('\\', Some('\\')) => out.push('\\'),
            ('\\', Some('"')) if quotes => out.push('"'),
            ('\\', other) => panic!("\\{other:?} in {text}"),
            (c, _) => out.push(c),
        }
    }
    out
}

/// The values by labels of one counter in a page, and its help.
fn read(page: &str, name: &str, format: Format) -> (String, BTreeMap<String, u64>) {
    let family = if format == Format::OpenMetrics { name.strip_suffix("_total").unwrap() } else { name };
    let help = page.split('\n').find_map(|line| line.strip_prefix(&format!("# HELP {family} "))).unwrap();
    let start = format!("{name}{{a=\"");
    let samples = page.split('\n').filter_map(|line| line.strip_prefix(&start)?.rsplit_once("\"} "));
    let samples = samples.map(|(value, number)| (unescaped(value, true), number.parse().unwrap()));
    (unescaped(help, format == Format::OpenMetrics), samples.collect())
}

proptest! {
    #[test]
    fn any_text_is_read_back(help in any::<String>(), values in prop::collection::btree_map("(?s).{0,40}", 0_u64..1000, 0..8)) {
        let (metrics, now) = with(&Config::default(), &[declared("c", Kind::Counter, &help)]);
        for (value, count) in &values {
            metrics.counter("c", &[("a", value)]).unwrap().add(*count, now);
        }
        let help = if help.trim().is_empty() { "Declared by the user." } else { help.trim() };
        for format in FORMATS {
            let page = metrics.exposition(format, now);
            prop_assert_eq!(read(&page, "c_total", format), (help.to_owned(), values.clone()));
        }
    }
}
