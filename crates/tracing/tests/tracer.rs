//! What is kept, and how it is found.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::{
    Call, CallEvent, CallEventKind, CallRecord, ClockAnchor, Component, Direction, ErrorType, Forwarded, Method,
    Outcome, Protocol, Ratio, RequestId, TraceContext, TraceId, Transport,
};
use mcpscope_tracing::{Config, Filter, NotStored, Root, Span, SpanKind, Status, Tracer, Value, parse_traceparent};

fn anchor() -> ClockAnchor {
    static ANCHOR: OnceLock<ClockAnchor> = OnceLock::new();
    *ANCHOR.get_or_init(|| ClockAnchor { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH })
}

fn tracer(config: &Config) -> Tracer {
    Tracer::new(config, anchor(), 7)
}

fn call(tool: &str, duration_ms: u64, outcome: Outcome, root: Root) -> CallRecord {
    let call = Call {
        server: "s".into(),
        transport: Transport::Stdio,
        direction: Direction::ToServer,
        protocol: Some(Protocol::V2025_11_25),
        method: Method::new("tools/call"),
        id: Some(RequestId::Integer(1)),
        target: Some(tool.into()),
        session: None,
        request_bytes: 10,
        context: None,
        tracestate: None,
    };
    CallRecord {
        call,
        started: anchor().mono + Duration::from_secs(duration_ms),
        duration: Duration::from_millis(duration_ms),
        outcome,
        response_bytes: 20,
        injected: None,
        trace_id: root.trace_id,
        span_id: root.span_id,
        forwarded: None,
        events: Vec::new(),
        dropped_events: 0,
    }
}

fn record(tracer: &Tracer, tool: &str, duration_ms: u64, outcome: Outcome, context: Option<TraceContext>) -> TraceId {
    let root = tracer.start(Component::JsonRpc, context);
    let mut record = call(tool, duration_ms, outcome, root);
    record.call.context = context;
    tracer.record_call(&record, root).unwrap();
    root.trace_id
}

#[test]
fn finds_by_every_filter() {
    let tracer = tracer(&Config::default());
    record(&tracer, "echo", 1, Outcome::Ok, None);
    let failed = record(&tracer, "add", 50, Outcome::error(ErrorType::Tool), None);
    record(&tracer, "slow", 500, Outcome::Timeout, None);
    let found = |filter: &Filter| tracer.traces(filter).iter().map(|t| t.tool.clone().unwrap()).collect::<Vec<_>>();
    let all = Filter::default();
    assert_eq!(found(&all), ["slow".into(), "add".into(), "echo".into()] as [Box<str>; 3]);
    assert_eq!(found(&Filter { tool: Some("echo".into()), ..all.clone() }), ["echo".into()] as [Box<str>; 1]);
    assert_eq!(
        found(&Filter { operation: Some("tools/call add".into()), ..all.clone() }),
        ["add".into()] as [Box<str>; 1]
    );
    assert_eq!(found(&Filter { status: Some(Status::Timeout), ..all.clone() }), ["slow".into()] as [Box<str>; 1]);
    assert_eq!(found(&Filter { min_duration: Some(Duration::from_millis(50)), ..all.clone() }).len(), 2);
    assert_eq!(found(&Filter { limit: Some(1), ..all.clone() }), ["slow".into()] as [Box<str>; 1]);
    assert_eq!(found(&Filter { server: Some("other".into()), ..all.clone() }).len(), 0);
    let second_10 = SystemTime::UNIX_EPOCH + Duration::from_secs(10);
    assert_eq!(found(&Filter { since: Some(second_10), ..all.clone() }).len(), 2);
    assert_eq!(found(&Filter { until: Some(second_10), ..all.clone() }), ["echo".into()] as [Box<str>; 1]);
    assert_eq!(found(&Filter { session: Some("other".into()), ..all.clone() }).len(), 0);
    assert_eq!(found(&Filter { injected: Some(true), ..all.clone() }).len(), 0);
    assert_eq!(found(&Filter { injected: Some(false), ..all.clone() }).len(), 3);
    let text = |text: &str| found(&Filter { text: Some(text.into()), ..all.clone() });
    assert_eq!(text("CALL ADD"), ["add".into()] as [Box<str>; 1]);
    assert_eq!(text(&failed.to_string()[5..]), ["add".into()] as [Box<str>; 1]);
    assert_eq!((text("s").len(), text("none").len()), (3, 0));

    let trace = tracer.trace(failed).unwrap();
    assert_eq!((trace.status, &*trace.operation, trace.spans.len()), (Status::Error, "tools/call add", 1));
    let attribute = |name| trace.spans[0].attributes.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
    assert_eq!(attribute("gen_ai.tool.name").as_deref(), Some("add"));
    assert_eq!(attribute("error.type").as_deref(), Some("tool_error"));
    assert_eq!(attribute("jsonrpc.request.id").as_deref(), Some("1"));
    tracer.clear();
    assert!(tracer.trace(failed).is_none());
}

#[test]
fn calls_of_one_incoming_trace_are_found_together() {
    let tracer = tracer(&Config::default());
    let context = parse_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let id = record(&tracer, "echo", 1, Outcome::Ok, context);
    assert_eq!(record(&tracer, "add", 2, Outcome::error(ErrorType::Tool), context), id);
    let trace = tracer.trace(id).unwrap();
    assert_eq!((trace.spans.len(), trace.status), (2, Status::Error));
    assert!(trace.spans.iter().all(|span| span.parent == context.map(|c| c.parent)));
    assert_eq!(trace.spans[1].start, Duration::from_secs(1));
}

#[test]
fn only_critical_paths_and_incoming_flags_escape_sampling() {
    let none = Config { sampling_rate: Ratio::ZERO, ..Config::default() };
    let tracer = tracer(&none);
    assert!(tracer.start(Component::JsonRpc, None).kept);
    assert!(!tracer.start(Component::Transport, None).kept);
    let context = parse_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
    assert!(tracer.start(Component::Transport, Some(context)).kept);
    assert!(!tracer.start(Component::Transport, Some(TraceContext { sampled: false, ..context })).kept);
}

#[test]
fn the_share_sampled_is_the_one_asked_for() {
    let tracer = tracer(&Config::default());
    let kept = (0..100_000).filter(|_| tracer.start(Component::Transport, None).kept).count();
    // 99.99 % of the binomial distribution of 100,000 draws at 0.1: 10,000 +- 3.89 * 94.9.
    assert!((9_630..=10_370).contains(&kept), "{kept}");
}

#[test]
fn the_newest_are_kept() {
    for max_traces in [1, 10, 1000] {
        let tracer = tracer(&Config { max_traces, ..Config::default() });
        for n in 1..=2500 {
            record(&tracer, &format!("tool{n}"), n, Outcome::Ok, None);
        }
        let newest = tracer.traces(&Filter { limit: Some(max_traces), ..Filter::default() });
        let found: Vec<_> = newest.iter().map(|trace| trace.duration.as_millis() as usize).collect();
        assert_eq!(found, (2501 - max_traces..=2500).rev().collect::<Vec<_>>());
    }
}

#[test]
fn the_one_that_failed_and_the_slowest_are_not_pushed_out() {
    let tracer = tracer(&Config::default());
    let failed = record(&tracer, "echo", 1, Outcome::error(ErrorType::Tool), None);
    let slow: Vec<_> = (0..7).map(|n| record(&tracer, "echo", 1000 + n, Outcome::Ok, None)).collect();
    let other = record(&tracer, "other", 2, Outcome::Ok, None);
    for _ in 0..100_000 {
        record(&tracer, "echo", 1, Outcome::Ok, None);
    }
    assert_eq!(tracer.trace(failed).unwrap().status, Status::Error);
    let found: Vec<_> = slow.iter().map(|id| tracer.trace(*id).is_some()).collect();
    assert_eq!(found, [false, false, true, true, true, true, true], "five of each operation");
    assert!(tracer.trace(other).is_some(), "the slowest of its operation, and the only one");
    let failures = tracer.traces(&Filter { status: Some(Status::Error), ..Filter::default() });
    assert_eq!(failures.iter().map(|trace| trace.id).collect::<Vec<_>>(), [failed]);
    assert_eq!(tracer.len(), 1000 + 1 + 5 + 1);
    tracer.clear();
    assert_eq!((tracer.len(), tracer.trace(failed)), (0, None));
}

#[test]
fn memory_is_bounded_in_bytes() {
    const MAX_BYTES: usize = 64 * 1024;
    let tracer = tracer(&Config { max_bytes: MAX_BYTES, ..Config::default() });
    let tool = "x".repeat(250);
    for n in 0..1000 {
        let outcome = if n % 2 == 0 { Outcome::Ok } else { Outcome::error(ErrorType::Tool) };
        record(&tracer, &tool, 1, outcome, None);
    }
    // A record holds the name twice.
    assert!((MAX_BYTES / 2 / 800..MAX_BYTES / 500).contains(&tracer.len()), "{}", tracer.len());
    let root = tracer.start(Component::JsonRpc, None);
    let mut record = call("echo", 1, Outcome::Ok, root);
    let progress = CallEventKind::Progress { progress: Some(1.0), total: None };
    record.events = vec![CallEvent { at: record.started, kind: progress }; 1000];
    assert_eq!(tracer.record_call(&record, root), Err(NotStored), "larger than a part of the store");
}

#[test]
fn a_reader_gets_each_once_and_knows_what_it_missed() {
    let tracer = tracer(&Config { max_traces: 80, ..Config::default() });
    record(&tracer, "before", 1, Outcome::Ok, None);
    let mut cursor = tracer.cursor();
    let mut wanted: Vec<_> = (0..50).map(|n| record(&tracer, "t", n, Outcome::Ok, None)).collect();
    let read = |cursor: &mut _| {
        let (traces, missed) = tracer.newer(cursor);
        (traces.iter().map(|trace| trace.id).collect::<Vec<_>>(), missed)
    };
    assert_eq!(read(&mut cursor), (wanted.clone(), 0));
    assert_eq!(read(&mut cursor), (Vec::new(), 0));
    wanted.extend((50..250).map(|n| record(&tracer, "t", n, Outcome::Ok, None)));
    let (found, missed) = read(&mut cursor);
    assert_eq!((&found[..], missed), (&wanted[170..], 120));
}

#[test]
fn a_call_that_was_sent_on_is_a_span_on_either_side() {
    let tracer = tracer(&Config::default());
    let context = parse_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let root = tracer.start(Component::JsonRpc, context);
    let mut record = call("add", 100, Outcome::error(ErrorType::Rpc(-32602)), root);
    (record.call.context, record.call.tracestate) = (context, Some("a=1".into()));
    let at = |ms| record.started + Duration::from_millis(ms);
    let span_id = tracer.new_span_id();
    record.forwarded = Some(Forwarded { span_id, queued: at(1), sent: at(11) });
    let progress = CallEventKind::Progress { progress: Some(0.5), total: Some(2.0) };
    record.events =
        vec![CallEvent { at: at(20), kind: progress }, CallEvent { at: at(30), kind: CallEventKind::Cancelled }];
    tracer.record_call(&record, root).unwrap();
    let trace = tracer.trace(root.trace_id).unwrap();
    let [server, client] = &trace.spans[..] else { panic!("{trace:?}") };
    assert_eq!((server.kind, server.id, server.parent), (SpanKind::Server, root.span_id, context.map(|c| c.parent)));
    assert_eq!((client.kind, client.id, client.parent), (SpanKind::Client, span_id, Some(root.span_id)));
    assert_eq!((client.start, client.duration), (Duration::from_millis(11), Duration::from_millis(89)));
    assert_eq!([&server.name, &client.name], [&trace.operation; 2]);
    assert_eq!([&server.tracestate, &client.tracestate], [&Some("a=1".into()); 2]);
    let text = |span: &Span, name| span.attributes.iter().find(|(n, _)| n == name).map(|(_, v)| v.to_string());
    let both = |name| [server, client].map(|span| text(span, name));
    assert_eq!(both("rpc.response.status_code"), [Some("-32602".into()), Some("-32602".into())]);
    assert_eq!(both("error.type"), [None, Some("-32602".into())], "the caller's mistake is none of the server's");
    let detail = |name| trace.details.iter().find(|(n, _)| n == name).map(|(_, value)| value.to_string());
    let times = ["proxy_us", "queue_us", "server_us"].map(detail);
    assert_eq!(times, ["1000", "10000", "89000"].map(|us| Some(us.to_owned())));
    let events: Vec<_> = server.events.iter().map(|event| (&*event.name, event.at.as_millis())).collect();
    assert_eq!(events, [("notifications/progress", 20), ("notifications/cancelled", 30)]);
    let progress = [("progress".into(), Value::Float(0.5)), ("total".into(), Value::Float(2.0))];
    assert_eq!(server.events[0].attributes, progress);
    assert!(client.events.is_empty());
}

#[test]
fn writers_and_readers_agree_on_every_trace() {
    let tracer = tracer(&Config::default());
    let mut cursor = tracer.cursor();
    let (mut read, mut missed) = (Vec::new(), 0);
    std::thread::scope(|scope| {
        let writers = [(); 3].map(|()| {
            scope.spawn(|| {
                let try_record = |ms: &u64| {
                    let root = tracer.start(Component::JsonRpc, None);
                    tracer.record_call(&call("t", *ms, Outcome::Ok, root), root).is_ok()
                };
                (0..5000).filter(try_record).count() as u64
            })
        });
        let mut look = || {
            let (traces, lost) = tracer.newer(&mut cursor);
            read.extend(traces.iter().map(|trace| trace.id));
            missed += lost;
        };
        while !writers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            look();
        }
        look();
        let kept: u64 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
        assert_eq!(read.len() as u64 + missed, kept);
    });
    let all = read.len();
    read.sort_unstable();
    read.dedup();
    assert_eq!(read.len(), all, "none twice");
}

#[test]
fn readers_of_the_same_trace_hold_it_once() {
    let tracer = tracer(&Config::default());
    let mut cursor = tracer.cursor();
    for n in 0..3000 {
        record(&tracer, "echo", n, Outcome::Ok, None);
        if n % 1000 == 999 {
            let (listed, followed) = (tracer.traces(&Filter::default()), tracer.newer(&mut cursor).0);
            let held = |trace: &Arc<_>| followed.iter().any(|other| Arc::ptr_eq(trace, other));
            assert!(listed.iter().take(1000).all(held));
        }
    }
    let again = tracer.traces(&Filter::default());
    assert!(again.iter().all(|trace| Arc::strong_count(trace) == 1), "nobody else holds them");
}

fn on_another_thread(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap());
}

#[test]
fn whoever_wrote_them_the_newest_are_kept_and_the_one_that_failed() {
    let tracer = tracer(&Config::default());
    let good = |tool: &str, times| {
        for _ in 0..times {
            record(&tracer, tool, 1, Outcome::Ok, None);
        }
    };
    let failures = Filter { status: Some(Status::Error), ..Filter::default() };
    on_another_thread(|| {
        record(&tracer, "echo", 1, Outcome::error(ErrorType::Tool), None);
    });
    good("old", 5000);
    assert_eq!(tracer.traces(&failures).len(), 1);
    on_another_thread(|| good("new", 5000));
    let tools = tracer.traces(&Filter::default());
    assert_eq!(tools.iter().filter(|trace| trace.tool.as_deref() == Some("new")).count(), 1000 + 5);
    assert_eq!(tracer.traces(&failures).len(), 1);
}

#[test]
fn a_record_that_is_too_large_pushes_nothing_out() {
    let tracer = tracer(&Config { max_bytes: 64 << 10, ..Config::default() });
    for n in 0..50 {
        record(&tracer, "echo", n, Outcome::Ok, None);
    }
    let root = tracer.start(Component::JsonRpc, None);
    let mut large = call("echo", 1, Outcome::Ok, root);
    large.events = vec![CallEvent { at: large.started, kind: CallEventKind::Cancelled }; 1000];
    assert_eq!(tracer.record_call(&large, root), Err(NotStored));
    assert_eq!(tracer.len(), 50);
}

#[test]
fn invented_names_do_not_fill_the_reserve_for_ever() {
    let tracer = tracer(&Config::default());
    for n in 1..1000 {
        record(&tracer, &format!("invented{n}"), 1, Outcome::Ok, None);
    }
    let slow = record(&tracer, "real", 1000, Outcome::Ok, None);
    for _ in 0..3000 {
        record(&tracer, "real", 1, Outcome::Ok, None);
    }
    assert!(tracer.trace(slow).is_some());
    // Of the invented ones there is one each.
    assert!(tracer.len() <= 1000 + 256 + 4, "{}", tracer.len());
}

#[test]
fn nothing_is_read_twice_while_it_moves_to_the_reserve() {
    let tracer = tracer(&Config { max_traces: 80, ..Config::default() });
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0..20_000 {
                record(&tracer, "echo", n, Outcome::error(ErrorType::Tool), None);
            }
        });
        while !writer.is_finished() {
            let traces = tracer.traces(&Filter::default());
            let mut ids: Vec<_> = traces.iter().map(|trace| trace.id).collect();
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), traces.len());
        }
    });
}
