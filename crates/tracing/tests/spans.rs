//! Spans that a program begins and ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::{ClockAnchor, Component, Ratio};
use mcpscope_tracing::{
    Config, Export, Filter, Sampler, Span, SpanGuard, SpanKind, Status, Trace, Tracer, Value, ValueRef,
};

thread_local! {
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A clock that goes forward by a millisecond each time somebody looks at it.
fn clock() -> Instant {
    let now = NOW.get().unwrap_or_else(Instant::now) + Duration::from_millis(1);
    NOW.set(Some(now));
    now
}

fn tracer(config: &Config) -> Tracer {
    Tracer::with_clock(config, ClockAnchor { mono: clock(), wall: SystemTime::UNIX_EPOCH }, 7, clock)
}

fn only(tracer: &Tracer) -> Arc<Trace> {
    let traces = tracer.traces(&Filter::default());
    assert_eq!(traces.len(), 1, "{traces:?}");
    Arc::clone(&traces[0])
}

fn named<'a>(trace: &'a Trace, name: &str) -> &'a Span {
    trace.spans.iter().find(|span| &*span.name == name).unwrap()
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_root_has_what_it_was_given() {
    let tracer = tracer(&Config::default());
    let mut span = tracer.span(Component::Server, "work", None);
    span.kind(SpanKind::Client).attribute("text", "é").attribute("number", -7).attribute("share", 0.5);
    span.attribute("yes", true).attribute("large", u64::MAX).detail("size", 300);
    span.event("halfway", &[("of", ValueRef::Int(2))]);
    let (trace_id, span_id) = (span.trace_id(), span.span_id());
    span.end();
    let trace = only(&tracer);
    assert_eq!((trace.id, &*trace.operation, trace.status, trace.duration), (trace_id, "work", Status::Ok, 2 * MS));
    assert_eq!(trace.timestamp, SystemTime::UNIX_EPOCH + MS);
    assert_eq!(trace.details, [("size".into(), Value::Int(300))]);
    let [span] = &trace.spans[..] else { panic!("{trace:?}") };
    assert_eq!(
        (span.id, span.parent, span.kind, span.start, span.duration),
        (span_id, None, SpanKind::Client, Duration::ZERO, 2 * MS)
    );
    let expected = [
        ("text".into(), Value::Str("é".into())),
        ("number".into(), Value::Int(-7)),
        ("share".into(), Value::Float(0.5)),
        ("yes".into(), Value::Bool(true)),
        ("large".into(), Value::Int(i64::MAX)),
    ];
    assert_eq!(span.attributes, expected);
    assert_eq!((span.events.len(), &*span.events[0].name, span.events[0].at), (1, "halfway", MS));
    assert_eq!(span.events[0].attributes, [("of".into(), Value::Int(2))]);
}

#[test]
fn children_are_kept_with_their_root_in_other_threads_too() {
    let tracer = tracer(&Config::default());
    let mut root = tracer.span(Component::Server, "root", None);
    root.status(Status::Timeout);
    let first = root.child("first");
    let (below, elsewhere) = (first.child("below"), root.child("elsewhere").into_owned());
    std::thread::spawn(move || drop(elsewhere.child("further"))).join().unwrap();
    drop(below);
    drop(first);
    assert!(tracer.is_empty(), "nothing is kept before the root has ended");
    root.end();
    let trace = only(&tracer);
    assert_eq!((trace.spans.len(), &*trace.spans[0].name, trace.status), (5, "root", Status::Timeout));
    let parent = |name| named(&trace, name).parent;
    let id = |name| Some(named(&trace, name).id);
    assert_eq!(parent("root"), None);
    assert_eq!(["first", "elsewhere"].map(parent), [id("root"); 2]);
    assert_eq!((parent("below"), parent("further")), (id("first"), id("elsewhere")));
    assert_eq!((named(&trace, "first").start, named(&trace, "below").start), (MS, 2 * MS));
}

#[test]
fn what_ends_after_its_root_is_found_with_it() {
    let tracer = tracer(&Config::default());
    let root = tracer.span(Component::Server, "root", None);
    let id = root.trace_id();
    let mut late = root.child("late");
    root.end();
    late.error("broken", "it broke");
    assert_eq!(only(&tracer).spans.len(), 1);
    late.end();
    assert_eq!(only(&tracer).spans.len(), 1, "it is none of its own");
    let trace = tracer.trace(id).unwrap();
    assert_eq!((&*trace.operation, trace.status), ("root", Status::Error));
    let late = named(&trace, "late");
    assert_eq!((late.parent, late.start, late.status), (Some(trace.spans[0].id), MS, Status::Error));
    assert_eq!(late.message.as_deref(), Some("it broke"));
    assert!(late.attributes.contains(&("error.type".into(), Value::Str("broken".into()))));
}

#[test]
fn nothing_is_done_for_what_nobody_will_see() {
    fn no_clock() -> Instant {
        panic!("nobody needs the time")
    }
    let none = Config { sampling_rate: Ratio::ZERO, ..Config::default() };
    let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH };
    let tracer = Tracer::with_clock(&none, anchor, 7, no_clock);
    let mut root = tracer.span(Component::Tools, "root", None);
    assert!(!root.is_recorded() && !root.context().sampled);
    root.attribute("a", "b").detail("c", 1).error("d", "e");
    let mut child = root.child("child");
    child.event("f", &[]);
    assert_eq!((child.trace_id(), child.is_recorded()), (root.trace_id(), false));
    drop(child.into_owned());
    drop(root);
    assert!(tracer.is_empty());
}

#[test]
fn a_caller_is_followed() {
    let none = Config { sampling_rate: Ratio::ZERO, ..Config::default() };
    let tracer = tracer(&none);
    let caller = tracer.span(Component::Server, "caller", None);
    let called = tracer.span(Component::Tools, "called", Some(caller.context()));
    assert!(called.is_recorded(), "the caller's is");
    assert_eq!(called.trace_id(), caller.trace_id());
    assert_ne!(called.span_id(), caller.span_id());
    let parent = caller.span_id();
    called.end();
    assert_eq!(only(&tracer).spans[0].parent, Some(parent));
    caller.end();
}

#[test]
fn requests_sessions_and_transports_have_names_and_their_callers_ids() {
    let all = Config { sampling_rate: Ratio::ONE, ..Config::default() };
    let tracer = tracer(&all);
    let details = [("client", ValueRef::Str("inspector"))];
    tracer.trace_request("7", &details).end();
    tracer.trace_session("abc", &details).end();
    tracer.trace_transport("tcp-1", &details).end();
    let recorded = tracer.record_trace("backup", Duration::from_secs(2), Status::Error, &details);
    let traces = tracer.traces(&Filter::default());
    let mut found: Vec<_> = traces.iter().map(|trace| (&*trace.operation, trace.spans[0].attributes.first())).collect();
    found.sort_by_key(|(operation, _)| *operation);
    let attribute = |name: &'static str, value: &str| (name.into(), Value::Str(value.into()));
    assert_eq!(
        found,
        [
            ("backup", Some(&attribute("error.type", "_OTHER"))),
            ("mcp.request", Some(&attribute("jsonrpc.request.id", "7"))),
            ("mcp.session", Some(&attribute("mcp.session.id", "abc"))),
            ("mcp.transport", Some(&attribute("mcpscope.transport.id", "tcp-1"))),
        ]
    );
    assert!(traces.iter().all(|trace| trace.details == [attribute("client", "inspector")]));
    let backup = tracer.trace(recorded.unwrap()).unwrap();
    assert_eq!((backup.duration, backup.status), (Duration::from_secs(2), Status::Error));
}

#[test]
fn what_a_span_holds_is_bounded() {
    let tracer = tracer(&Config::default());
    let mut root = tracer.span(Component::Server, &"n".repeat(10_000), None);
    for n in 0..1000 {
        root.attribute(&format!("{n}"), &"é".repeat(10_000)).event("again", &[]);
    }
    root.end();
    let trace = only(&tracer);
    let span = &trace.spans[0];
    assert_eq!((span.attributes.len(), span.events.len(), span.dropped_events), (128, 128, 872));
    assert_eq!((span.name.len(), span.attributes[0].1.to_string().len()), (512, 1024));
}

#[test]
fn a_trace_of_too_many_spans_loses_the_last_and_counts_them() {
    let tracer = tracer(&Config::default());
    let root = tracer.span(Component::Server, "root", None);
    for _ in 0..1500 {
        root.child("one of many").end();
    }
    root.end();
    assert_eq!((only(&tracer).spans.len(), tracer.lost()), (1000, 501));
}

#[test]
fn all_that_is_exported_is_taken_or_counted() {
    let on = Sampler { share: Ratio::ONE, parent_based: false };
    let config = Config {
        sampling_rate: Ratio::ZERO,
        export: Some(Export { sampler: on, max_bytes: 64 << 10 }),
        ..Config::default()
    };
    let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH };
    let tracer = Tracer::new(&config, anchor, 7);
    let (threads, each) = (3, 4000);
    let mut exports = tracer.exports().unwrap();
    let (mut taken, mut lost) = (0, 0);
    let mut ids = Vec::new();
    std::thread::scope(|scope| {
        let writers = [(); 3].map(|()| {
            scope.spawn(|| {
                for n in 0..each {
                    let root = tracer.span(Component::Tools, "root", None);
                    (0..n % 4).for_each(|_| root.child("child").end());
                }
            })
        });
        let mut take = || {
            let batch = exports.take(100);
            let spans: usize = batch.traces.iter().map(|trace| trace.spans.len()).sum();
            assert!(batch.traces.len() == 1 || spans <= 100);
            ids.extend(batch.traces.iter().map(|trace| trace.id));
            taken += spans as u64;
            lost += batch.lost_spans;
            batch.traces.is_empty()
        };
        while !writers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            take();
        }
        while !take() {}
    });
    // Each four roots have 0, 1, 2 and 3 children.
    assert_eq!(taken + lost, threads * each / 4 * 10);
    assert!(taken > 0);
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "none is taken twice");
    assert!(tracer.is_empty(), "none is kept");
}

#[test]
fn the_exporters_sampler_decides_what_is_exported() {
    let caller = tracer(&Config::default()).span(Component::Server, "caller", None).context();
    let not_sampled = mcpscope_core::TraceContext { sampled: false, ..caller };
    let exported = |share, parent_based, context| {
        let export = Export { sampler: Sampler { share, parent_based }, max_bytes: 1 << 20 };
        let config = Config { export: Some(export), ..Config::default() };
        tracer(&config).start(Component::JsonRpc, context).exported
    };
    assert!(exported(Ratio::ONE, false, None) && exported(Ratio::ONE, false, Some(not_sampled)));
    assert!(exported(Ratio::ONE, true, None) && !exported(Ratio::ONE, true, Some(not_sampled)));
    assert!(exported(Ratio::ZERO, true, Some(caller)) && !exported(Ratio::ZERO, false, Some(caller)));
}

#[test]
fn messages_and_events_are_bounded_too() {
    let tracer = tracer(&Config::default());
    let mut root = tracer.span(Component::Server, "root", None);
    let long = "x".repeat(1000);
    let many = [("many", ValueRef::Str(&long)); 1000];
    for n in 0..1000 {
        root.error("worse", &format!("{n}")).event("again", &many);
    }
    root.end();
    let trace = only(&tracer);
    let span = &trace.spans[0];
    assert_eq!(span.message.as_deref(), Some("999"), "the last one");
    assert_eq!(span.attributes.iter().filter(|(name, _)| name == "error.type").count(), 1);
    assert!(span.events.len() < 10 && span.dropped_events as usize == 1000 - span.events.len());
    assert_eq!(span.events[0].attributes.len(), 32);
}

#[test]
fn what_failed_has_a_kind_of_error() {
    let kind = |fail: fn(&mut SpanGuard<'_>)| {
        let tracer = tracer(&Config::default());
        let mut span = tracer.span(Component::Server, "work", None);
        fail(&mut span);
        span.end();
        let mut attributes = only(&tracer).spans[0].attributes.clone();
        attributes.retain(|(name, _)| name == "error.type");
        attributes.into_iter().map(|(_, value)| value.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(kind(|_| {}), [""; 0]);
    assert_eq!(kind(|span| _ = span.status(Status::Error)), ["_OTHER"]);
    assert_eq!(kind(|span| _ = span.status(Status::Timeout)), ["timeout"]);
    assert_eq!(kind(|span| _ = span.status(Status::Error).attribute("error.type", "mine")), ["mine"]);
    assert_eq!(kind(|span| _ = span.error("first", "").error("last", "")), ["last"]);
}

#[test]
fn spans_that_are_too_many_for_their_trace_count_as_lost_for_the_exporter() {
    let on = Sampler { share: Ratio::ONE, parent_based: false };
    let tracer = tracer(&Config { export: Some(Export { sampler: on, max_bytes: 8 << 20 }), ..Config::default() });
    let mut exports = tracer.exports().unwrap();
    let root = tracer.span(Component::Server, "root", None);
    (0..1500).for_each(|_| root.child("child").end());
    root.end();
    let taken = exports.take(usize::MAX);
    assert_eq!((taken.traces[0].spans.len(), taken.lost_spans, taken.more), (1000, 501, false));
}

#[test]
fn what_is_taken_in_pieces_is_all_there_is() {
    let on = Sampler { share: Ratio::ONE, parent_based: false };
    let tracer = tracer(&Config { export: Some(Export { sampler: on, max_bytes: 8 << 20 }), ..Config::default() });
    let mut exports = tracer.exports().unwrap();
    for _ in 0..100 {
        let root = tracer.span(Component::Server, "root", None);
        root.child("child").end();
    }
    let mut traces = 0;
    loop {
        let taken = exports.take(5);
        assert!(taken.traces.len() <= 2, "of two spans each");
        traces += taken.traces.len();
        if !taken.more {
            break;
        }
    }
    assert_eq!((traces, exports.take(5).traces.len()), (100, 0));
}

#[test]
fn messages_say_sampled_where_the_exporter_takes_part() {
    let says = |share| {
        let export = Some(Export { sampler: Sampler { share, parent_based: true }, max_bytes: 1 << 20 });
        let tracer = tracer(&Config { export, ..Config::default() });
        let root = tracer.start(Component::JsonRpc, None);
        let mut caller = tracer.span(Component::JsonRpc, "caller", None).context();
        caller.sampled = false;
        let below = tracer.span(Component::JsonRpc, "below", Some(caller)).context().sampled;
        (tracer.is_sampled(&root), tracer.span(Component::JsonRpc, "root", None).context().sampled, below)
    };
    assert_eq!(says(Ratio::ONE), (true, true, false));
    assert_eq!(says(Ratio::ZERO), (false, false, false), "kept here, but nobody else will see it");
}

#[test]
fn spans_that_end_late_push_out_no_traces() {
    let tracer = tracer(&Config::default());
    for _ in 0..1000 {
        let root = tracer.span(Component::Server, "root", None);
        let late = [(); 9].map(|()| root.child("late"));
        root.end();
        drop(late);
    }
    assert_eq!((tracer.traces(&Filter::default()).len(), tracer.len()), (1000, 1000));
}
