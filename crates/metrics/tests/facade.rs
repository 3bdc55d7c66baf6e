//! What libraries emit through the `metrics` facade, and what is recorded by names that are not critical.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::{ClockAnchor, Transport};
use mcpscope_metrics::{Config, Declared, Format, General, Kind, Metrics, Prometheus, RecordError, Recorder};
use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram, with_local_recorder,
};

const HOUR: Duration = Duration::from_secs(3600);

struct Bench {
    metrics: Metrics,
    recorder: Recorder,
    told: Arc<Mutex<Vec<String>>>,
    start: Instant,
}

impl Bench {
    fn new() -> Self {
        Self::with(Config::DEFAULT_SAMPLING_RATE, HOUR, 1000)
    }

    fn with(sampling_rate: f64, idle: Duration, max_series: usize) -> Self {
        let start = Instant::now();
        let general: Arc<dyn General> = Arc::new(Prometheus::new(idle, max_series, Instant::now));
        let config = Config { sampling_rate, general: Some(general), ..Config::default() };
        let metrics = Metrics::new(&config, ClockAnchor { mono: start, wall: SystemTime::UNIX_EPOCH });
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let theirs = Arc::clone(&told);
        let on_refused =
            move |name: &str, why: &dyn std::error::Error| theirs.lock().unwrap().push(format!("{name}: {why}"));
        let recorder = Recorder::new(metrics.clone(), move || start, on_refused);
        Self { metrics, recorder, told, start }
    }

    fn critical() -> Self {
        let bench = Self::new();
        declare_some(&bench.metrics);
        bench
    }

    fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        with_local_recorder(&self.recorder, work)
    }

    /// The page, which can be read.
    fn page(&self) -> Page {
        let page = Page::read(&self.metrics.exposition(Format::Prometheus, self.start));
        assert!(self.metrics.exposition(Format::OpenMetrics, self.start).ends_with("# EOF\n"));
        page
    }

    fn dropped(&self, what: &str) -> f64 {
        self.page().value(&format!("mcpscope_dropped_total{{what=\"{what}\"}}"))
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }
}

/// A page in which each family has its help and its type, and each series is there once.
#[derive(Debug)]
struct Page {
    samples: BTreeMap<String, f64>,
    helps: BTreeMap<String, String>,
    kinds: BTreeMap<String, String>,
}

impl Page {
    fn read(text: &str) -> Self {
        let (mut samples, mut helps, mut kinds) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut parts = HashSet::new();
        for line in text.split_terminator('\n') {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                assert!(!help.trim().is_empty(), "{line}");
                assert_eq!(helps.insert(name.to_owned(), help.to_owned()), None, "{line}");
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                assert_eq!(kinds.insert(name.to_owned(), kind.to_owned()), None, "{line}");
                let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                for suffix in suffixes {
                    assert!(parts.insert(format!("{name}{suffix}")), "two families have {name}{suffix}");
                }
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
                let name = series.split('{').next().unwrap();
                assert!(parts.contains(name), "no family of {line}");
                let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
                assert!(name.chars().all(fits) && !name.starts_with(|c: char| c.is_ascii_digit()), "{line}");
                assert_eq!(samples.insert(series.to_owned(), value.parse().unwrap()), None, "{line}");
            }
        }
        assert_eq!(helps.keys().collect::<Vec<_>>(), kinds.keys().collect::<Vec<_>>());
        Self { samples, helps, kinds }
    }

    #[track_caller]
    fn value(&self, series: &str) -> f64 {
        *self.samples.get(series).unwrap_or_else(|| panic!("no {series} in {self:#?}"))
    }

    fn has(&self, family: &str) -> bool {
        self.kinds.contains_key(family)
    }
}

fn declare_some(metrics: &Metrics) {
    let durations = ["wait_seconds", "lookup_ms"].map(|name| (name, Kind::Histogram));
    for (name, kind) in [("jobs", Kind::Counter), ("cache_entries", Kind::Gauge)].into_iter().chain(durations) {
        metrics.declare(&Declared::new(name, kind, "").unwrap()).unwrap();
    }
}

#[test]
fn critical_names_go_to_the_core() {
    let bench = Bench::critical();
    bench.run(|| {
        counter!("jobs", "queue" => "mail").increment(3);
        counter!("jobs", "queue" => "mail").increment(0);
        gauge!("cache.entries").set(7.5);
        gauge!("cache_entries").increment(1.0);
        gauge!("cache_entries").decrement(0.5);
        histogram!("wait_seconds").record(0.25);
        histogram!("wait_seconds").record(Duration::from_millis(250));
        histogram!("lookup_ms").record(4.0);
        histogram!("tool_call_duration_ms", "server" => "s", "tool" => "echo").record(12.5);
        counter!("registry_operations_per_second", "server" => "s", "operation" => "list").increment(2);
        gauge!("active_sessions_count", "server" => "s").set(4.0);
        counter!("error_rates_by_component", "component" => "tools").increment(0);
        counter!("error_rates_by_component", "component" => "tools").increment(2);
    });
    let page = bench.page();
    for (series, value) in [
        ("jobs_total{queue=\"mail\"}", 3.0),
        ("cache_entries", 8.0),
        ("wait_seconds_count", 2.0),
        ("wait_seconds_sum", 0.5),
        ("lookup_seconds_sum", 0.004),
        (
            "mcpscope_tool_call_duration_seconds_sum{server=\"s\",tool=\"echo\",outcome=\"ok\",injected=\"false\"}",
            0.0125,
        ),
        ("mcpscope_registry_operations_total{server=\"s\",operation=\"list\"}", 2.0),
        ("mcpscope_active_sessions{server=\"s\",protocol=\"\"}", 4.0),
        ("mcpscope_component_operations_total{component=\"tools\",injected=\"false\"}", 3.0),
        ("mcpscope_component_errors_total{component=\"tools\",error_type=\"\",injected=\"false\"}", 2.0),
        ("mcpscope_dropped_total{what=\"bad_value\"}", 0.0),
        ("mcpscope_dropped_total{what=\"metric_conflict\"}", 0.0),
    ] {
        assert_eq!(page.value(series), value, "{series}");
    }
    assert_eq!(bench.told(), Vec::<String>::new());
    let raw = bench.metrics.critical_metrics();
    assert!(raw.iter().any(|record| record.name == "lookup_ms" && record.value == 4.0));
}

#[test]
fn a_handle_of_another_kind_or_with_other_labels_is_refused() {
    let bench = Bench::critical();
    bench.metrics.announce_server("relayed", Transport::Stdio);
    bench.run(|| {
        gauge!("jobs").set(1.0);
        counter!("tool_call_duration_ms").increment(1);
        histogram!("tool_call_duration_ms", "nonsense" => "x").record(1.0);
        histogram!("tool_call_duration_ms", "tool" => "x", "tool" => "x").record(1.0);
        gauge!("active_sessions_count", "server" => "relayed").set(5.0);
        counter!("jobs", "le" => "1").increment(1);
    });
    assert_eq!(bench.dropped("metric_conflict"), 6.0);
    assert_eq!(bench.told().len(), 3, "once for each name: {:?}", bench.told());
    let page = bench.page();
    assert!(!page.samples.contains_key("jobs_total"));
    assert_eq!(page.value("mcpscope_active_sessions{server=\"relayed\",protocol=\"2025-11-25\"}"), 0.0);
}

#[test]
fn values_that_are_none_are_counted_and_not_recorded() {
    let bench = Bench::critical();
    bench.run(|| {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1e10] {
            histogram!("wait_seconds").record(bad);
        }
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            gauge!("cache_entries").set(bad);
            gauge!("cache_entries").increment(bad);
            gauge!("theirs").set(bad);
            gauge!("theirs").decrement(bad);
            histogram!("their_values").record(bad);
        }
        // Sessions are whole.
        gauge!("active_sessions_count", "server" => "s").set(0.5);
        gauge!("active_sessions_count", "server" => "s").increment(0.5);
        counter!("error_rates_by_component").absolute(3);
    });
    assert_eq!(bench.dropped("bad_value"), 5.0 + 15.0 + 3.0);
    let page = bench.page();
    for (series, value) in
        [("wait_seconds_count", 0.0), ("cache_entries", 0.0), ("theirs", 0.0), ("their_values_count", 0.0)]
    {
        assert_eq!(page.value(series), value, "{series}");
    }
    assert!(bench.told().is_empty());
}

#[test]
fn absolute_makes_a_counter_at_least_so_high() {
    let bench = Bench::critical();
    for name in ["jobs", "theirs"] {
        bench.run(|| {
            let (counter, same) = (counter!(name), counter!(name));
            counter.absolute(10);
            same.absolute(7);
            assert_eq!(bench.page().value(&format!("{name}_total")), 10.0);
            counter.increment(1);
            same.absolute(12);
            assert_eq!(bench.page().value(&format!("{name}_total")), 12.0);
        });
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| bench.run(|| (0..1000).for_each(|n| counter!("jobs", "queue" => "many").absolute(n))));
        }
    });
    assert_eq!(bench.page().value("jobs_total{queue=\"many\"}"), 999.0, "not four times");
}

#[test]
fn all_threads_are_counted() {
    const THREADS: u32 = 4;
    const RECORDS: u32 = 10_000;
    let bench = Bench::critical();
    let kept = bench.run(|| (counter!("jobs"), histogram!("their_seconds")));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                bench.run(|| {
                    for n in 0..RECORDS {
                        counter!("jobs").increment(1);
                        kept.0.increment(1);
                        histogram!("wait_seconds").record(0.5);
                        counter!("theirs", "even" => if n % 2 == 0 { "yes" } else { "no" }).increment(1);
                        gauge!("level").increment(1.0);
                        kept.1.record(2.0);
                    }
                });
            });
        }
        for _ in 0..20 {
            bench.metrics.upkeep(bench.start);
            let _text = bench.page();
        }
    });
    let (page, all) = (bench.page(), f64::from(THREADS * RECORDS));
    for (series, value) in [
        ("jobs_total", 2.0 * all),
        ("wait_seconds_count", all),
        ("wait_seconds_sum", all / 2.0),
        ("theirs_total{even=\"yes\"}", all / 2.0),
        ("theirs_total{even=\"no\"}", all / 2.0),
        ("level", all),
        ("their_seconds_count", all),
        ("their_seconds_sum", 2.0 * all),
    ] {
        assert_eq!(page.value(series), value, "{series}");
    }
}

#[test]
fn metrics_of_libraries_have_the_names_and_helps_that_are_recommended() {
    let bench = Bench::new();
    bench.run(|| {
        describe_counter!("http.sent", Unit::Bytes, "What \\ was\nsent.");
        counter!("http.sent", "path" => "a\"b\\c\nd").increment(5);
        gauge!("plain").set(0.5);
        describe_gauge!("plain", Unit::Milliseconds, "Said later.");
        describe_histogram!("wait", Unit::Seconds, "  ");
        histogram!("wait").record(0.003);
        histogram!("sizes").record(2000.0);
    });
    let page = bench.page();
    let help = |name| page.helps.get(name).map(String::as_str);
    assert_eq!(help("http_sent_bytes_total"), Some("What \\\\ was\\nsent."));
    assert_eq!(help("plain"), Some("Said later. Unit: milliseconds."));
    assert_eq!(help("wait_seconds"), Some("Not described by who records it."));
    assert_eq!(page.value("http_sent_bytes_total{path=\"a\\\"b\\\\c\\nd\"}"), 5.0);
    assert_eq!(page.value("wait_seconds_bucket{le=\"0.005\"}"), 1.0);
    assert_eq!(page.value("wait_seconds_bucket{le=\"0.002\"}"), 0.0);
    assert_eq!(page.value("sizes_bucket{le=\"3000\"}"), 1.0);
    assert_eq!((page.value("sizes_bucket{le=\"1000\"}"), page.value("sizes_sum")), (0.0, 2000.0));
    assert_eq!(bench.metrics.snapshot(bench.start).to_prometheus().find("sizes"), None, "the core knows nothing of it");
}

#[test]
fn label_values_that_differ_in_backslashes_are_different_series() {
    let bench = Bench::new();
    let values = ["\\", "\\\\", "\\\"", "\"", "\\n", "\n", "\\\n", "a\\b", "é\u{1F600}", "\r"];
    bench.run(|| values.iter().for_each(|value| counter!("x", "v" => *value).increment(1)));
    let page = bench.page();
    assert_eq!(page.samples.keys().filter(|series| series.starts_with("x_total")).count(), values.len());
    for value in values {
        let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        assert_eq!(page.value(&format!("x_total{{v=\"{escaped}\"}}")), 1.0);
    }
}

#[test]
fn reserved_names_are_ours() {
    let bench = Bench::new();
    let names = [
        "mcpscope_x",
        "mcp_x",
        "process_x",
        "mcp.x",
        "mcp-x",
        "mcp:x",
        "process.cpu.seconds",
        "mcpscope_tool_calls",
        "mcp",
    ];
    bench.run(|| {
        for name in names {
            counter!(name).increment(1);
            gauge!(name).set(1.0);
            histogram!(name).record(1.0);
        }
        gauge!("mcpx").set(1.0);
        gauge!("processes").set(1.0);
    });
    let page = bench.page();
    assert_eq!(bench.dropped("reserved_name"), 3.0 * names.len() as f64);
    assert!(page.has("mcpx") && page.has("processes"));
    assert!(!page.has("mcp_x_total") && !page.has("mcp_x"));
    // Those that look the same are the same.
    assert_eq!(bench.told().len(), 6, "{:?}", bench.told());
    assert!(bench.told()[0].contains("mcpscope's own"));
}

#[test]
fn what_would_break_the_page_is_refused() {
    let bench = Bench::critical();
    let long = "x".repeat(10_000);
    bench.run(|| {
        counter!("first").increment(1);
        gauge!("second").set(1.0);
        histogram!("third").record(1.0);
        let _fine = (bench.page(), bench.dropped("metric_conflict"));
        // As another kind.
        gauge!("first").set(1.0);
        gauge!("first_total").set(1.0);
        histogram!("second").record(1.0);
        counter!("second").increment(1);
        counter!("third").increment(1);
        // As ours.
        gauge!("jobs_total").set(1.0);
        counter!("jobs_total").increment(1);
        gauge!("lookup_seconds").set(1.0);
        // As parts of others.
        gauge!("third_sum").set(1.0);
        gauge!("third_count").set(1.0);
        counter!("third.bucket").increment(1);
        counter!("other_count").increment(1);
        histogram!("other_sum").record(1.0);
        // As no name.
        counter!("").increment(1);
        counter!(long.clone()).increment(1);
        // With labels that are none.
        gauge!("good", "le" => "1").set(1.0);
        gauge!("good", "quantile" => "1").set(1.0);
        gauge!("good", "__name__" => "x").set(1.0);
        gauge!("good", "" => "x").set(1.0);
        gauge!("good", "a.b" => "1", "a-b" => "2").set(1.0);
        gauge!("good", "a" => "1", "a" => "2").set(1.0);
        gauge!("good", &(0..17).map(|n| (format!("l{n}"), "x".to_owned())).collect::<Vec<_>>()).set(1.0);
    });
    assert_eq!(bench.dropped("metric_conflict"), 22.0, "{:#?}", bench.told());
    let page = bench.page();
    assert_eq!((page.value("first_total"), page.value("second"), page.value("third_count")), (1.0, 1.0, 1.0));
    assert!(
        ["good", "first", "other_sum", "jobs_total"].iter().all(|family| *family == "jobs_total" || !page.has(family))
    );
    assert!(bench.told().iter().all(|told| told.len() < 300));
    // What is refused leaves nothing behind.
    bench.run(|| gauge!("good", "a" => "1").set(3.0));
    assert_eq!(bench.page().value("good{a=\"1\"}"), 3.0);
}

#[test]
fn the_order_of_labels_makes_no_series_and_empty_ones_neither() {
    let bench = Bench::new();
    bench.run(|| {
        counter!("x", "a" => "1", "b" => "2").increment(1);
        counter!("x", "b" => "2", "a" => "1").increment(1);
        counter!("x", "b" => "2", "c" => "", "a" => "1").increment(1);
        counter!("x.total", "b" => "2", "a" => "1").increment(1);
        counter!("x_total", "a" => "1", "b" => "2").increment(1);
    });
    assert_eq!(bench.page().value("x_total{a=\"1\",b=\"2\"}"), 5.0);
    assert!(bench.told().is_empty());
}

#[test]
fn a_million_names_keep_a_bounded_number_of_series() {
    const NAMES: u64 = 200_000;
    let bench = Bench::with(Config::DEFAULT_SAMPLING_RATE, HOUR, 100);
    bench.run(|| {
        for n in 0..NAMES {
            counter!(format!("name{n}")).increment(1);
            counter!("one", "tool" => n.to_string()).increment(1);
        }
    });
    let page = bench.page();
    assert_eq!(
        page.samples.keys().filter(|series| series.starts_with("name") || series.starts_with("one")).count(),
        100
    );
    assert_eq!(bench.dropped("general_series"), 2.0 * NAMES as f64 - 100.0);
    assert_eq!(bench.told().len(), 256, "it is told of no more");
    // Names that are reserved or in conflict are bounded as well.
    bench.run(|| (0..NAMES).for_each(|n| gauge!(format!("mcp_{n}")).set(1.0)));
    assert_eq!((bench.dropped("reserved_name"), bench.told().len()), (NAMES as f64, 256));
    bench.run(|| (0..NAMES).for_each(|n| describe_counter!(format!("described{n}"), "x")));
}

#[test]
fn what_is_idle_is_dropped_and_comes_back() {
    let bench = Bench::with(Config::DEFAULT_SAMPLING_RATE, Duration::from_millis(2), 100);
    let end = Instant::now() + Duration::from_secs(20);
    let until = |what: &str, is: &dyn Fn(&Page) -> bool| {
        while Instant::now() < end {
            bench.metrics.upkeep(bench.start);
            if is(&bench.page()) {
                return;
            }
        }
        panic!("not {what}: {:#?}", bench.page());
    };
    for round in 1..=3 {
        let (held, value) = bench.run(|| {
            let held = counter!(format!("held{round}"));
            held.increment(5);
            gauge!("once").set(1.0);
            (held, histogram!(format!("values{round}")))
        });
        value.record(1.0);
        until("dropped", &|page| page.kinds.keys().all(|name| !name.starts_with("held") && name != "once"));
        // It counts from 0 again, as a program that was started again, or goes on; in any case it loses nothing.
        held.increment(2);
        held.increment(1);
        value.record(1.0);
        let page = bench.page();
        assert!([3.0, 8.0].contains(&page.value(&format!("held{round}_total"))));
        assert!([1.0, 2.0].contains(&page.value(&format!("values{round}_count"))));
        // Now it may be something else.
        bench.run(|| {
            if round == 2 {
                counter!("other").increment(1);
            }
        });
        until("dropped again", &|page| !page.has(&format!("held{round}_total")) && !page.has("other_total"));
        until("another's", &|_| {
            bench.run(|| gauge!(format!("held{round}")).set(1.0));
            bench.page().has(&format!("held{round}"))
        });
        held.increment(1);
        assert!(!bench.page().has(&format!("held{round}_total")), "its name is another's");
        until("dropped", &|page| page.kinds.keys().all(|name| !name.starts_with("held")));
    }
    assert_eq!(bench.dropped("general_series"), 3.0, "only what was written while its name was another's");
}

#[test]
fn samples_are_within_the_bounds_of_chance() {
    const RECORDS: u32 = 100_000;
    let bench = Bench::new();
    for n in 0..RECORDS {
        bench
            .metrics
            .record("lookup_seconds", 0.5, &[("cache", if n % 2 == 0 { "a" } else { "b" })], bench.start)
            .unwrap();
    }
    let page = bench.page();
    let rate = page.value("mcpscope_sampling_rate");
    assert_eq!(rate, 0.1);
    let sigma = (f64::from(RECORDS / 2) * rate * (1.0 - rate)).sqrt();
    let mut all = 0.0;
    for cache in ["a", "b"] {
        let count = page.value(&format!("lookup_seconds_count{{cache=\"{cache}\"}}"));
        assert!((count - f64::from(RECORDS / 2) * rate).abs() < 5.0 * sigma, "{count}");
        assert_eq!(page.value(&format!("lookup_seconds_sum{{cache=\"{cache}\"}}")), count / 2.0);
        all += count;
    }
    assert!(page.helps["lookup_seconds"].contains("mcpscope_sampling_rate"));
    let summary = bench.metrics.summary(bench.start);
    assert_eq!((summary.critical_metrics, summary.total_metrics as f64), (0, all));
    bench.metrics.reset(bench.start);
    assert_eq!(bench.metrics.summary(bench.start).total_metrics, 0);
    assert_eq!(
        bench.page().samples.get("lookup_seconds_count{cache=\"a\"}"),
        page.samples.get("lookup_seconds_count{cache=\"a\"}")
    );
}

#[test]
fn all_or_nothing_is_exact() {
    for (sampling_rate, kept) in [(0.0, None), (f64::NAN, None), (1.0, Some(1000.0))] {
        let bench = Bench::with(sampling_rate, HOUR, 10);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let record = || bench.metrics.record("lookup_seconds", 0.5, &[], bench.start);
                scope.spawn(move || (0..500).for_each(|_| record().unwrap()));
            }
        });
        let page = bench.page();
        assert_eq!(page.samples.get("lookup_seconds_count").copied(), kept);
        assert_eq!(page.value("mcpscope_sampling_rate"), sampling_rate.max(0.0), "a number in any case");
    }
}

#[test]
fn records_by_name_that_cannot_be_kept_are_refused() {
    let bench = Bench::with(1.0, HOUR, 3);
    let record = |name: &str, value, labels: &[(&str, &str)]| bench.metrics.record(name, value, labels, bench.start);
    for name in ["mcpscope_x", "mcp_x", "process_x", "mcp.x", "", "1x", "a b", &"x".repeat(10_000)] {
        assert!(matches!(record(name, 1.0, &[]), Err(RecordError::BadName { .. })), "{name}");
    }
    let bad = [f64::NAN, f64::INFINITY, -1.5];
    for value in bad {
        assert!(matches!(record("good", value, &[]), Err(RecordError::BadValue { .. })));
    }
    record("good", 1.5, &[]).unwrap();
    for value in bad {
        assert!(record("good", value, &[]).is_err());
    }
    let refused = record("sampled_total", 1.0, &[]).unwrap_err();
    assert!(refused.to_string().contains("is a counter"), "{refused}");
    let refused = record("tool_call_duration_ms", 1.0, &[("server", "a"), ("server", "b")]).unwrap_err();
    assert_eq!(refused.to_string(), "\"server\" cannot be a label: expected each label once");
    let refused = record("good_count", 1.0, &[]).unwrap_err();
    assert!(matches!(refused, RecordError::BadName { .. }), "{refused}");
    assert!(record("good", 1.0, &[("le", "1")]).is_err());
    bench.run(|| {
        // What is whole and what is a sample cannot be told apart in one family.
        histogram!("good").record(1.0);
        counter!("theirs").increment(1);
    });
    let refused = record("theirs", 1.0, &[]).unwrap_err();
    assert!(matches!(refused, RecordError::NotKept { .. }), "{refused}");
    record("good", 1.0, &[("a", "1")]).unwrap();
    let refused = record("good", 1.0, &[("a", "2")]).unwrap_err();
    assert!(refused.to_string().contains("too many series"), "{refused}");
    assert_eq!(bench.dropped("general_series"), 1.0);
    let page = bench.page();
    assert_eq!((page.value("good_count"), page.value("good_sum")), (1.0, 1.5));
    assert_eq!(bench.metrics.summary(bench.start).total_metrics, 2);
}

#[test]
fn without_anybody_who_keeps_the_rest_only_what_is_critical_is_recorded() {
    let start = Instant::now();
    let metrics = Metrics::new(&Config::default(), ClockAnchor { mono: start, wall: SystemTime::UNIX_EPOCH });
    declare_some(&metrics);
    let recorder = Recorder::new(metrics.clone(), Instant::now, |name, _| assert_eq!(name, "mcp_x"));
    with_local_recorder(&recorder, || {
        counter!("jobs").increment(1);
        counter!("theirs").increment(1);
        counter!("mcp_x").increment(1);
    });
    for _ in 0..100 {
        let refused = metrics.record("theirs", 1.0, &[], start).unwrap_err();
        assert!(matches!(refused, RecordError::UnknownMetric { .. }));
    }
    let page = Page::read(&metrics.exposition(Format::Prometheus, start));
    assert_eq!(page.value("jobs_total"), 1.0);
    assert_eq!(page.value("mcpscope_dropped_total{what=\"reserved_name\"}"), 1.0);
    assert!(!page.has("theirs_total") && !page.samples.contains_key("mcpscope_sampling_rate"));
}

#[test]
fn what_others_have_is_not_taken_from_them() {
    let bench = Bench::with(1.0, HOUR, 100);
    let held = bench.run(|| counter!("late"));
    held.increment(1);
    bench.metrics.record("late_ms", 1.0, &[], bench.start).unwrap();
    let taken = |kind, name| {
        matches!(bench.metrics.declare(&Declared::new(name, kind, "").unwrap()), Err(RecordError::Taken { .. }))
    };
    assert!(taken(Kind::Counter, "late") && taken(Kind::Gauge, "late") && taken(Kind::Histogram, "late_ms"));
    assert!(matches!(bench.metrics.counter("late_total", &[]), Err(RecordError::Taken { .. })));
    held.increment(1);
    bench.run(|| counter!("late").increment(5));
    bench.metrics.record("late_ms", 250.0, &[], bench.start).unwrap();
    let page = bench.page();
    assert_eq!((page.value("late_total"), page.value("late_ms_sum")), (7.0, 251.0));
}
