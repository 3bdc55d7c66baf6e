//! An ordinary program, told by the crate `tracing`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::{ClockAnchor, Ratio};
use mcpscope_tracing::{Config, Event, Filter, Span, SpanKind, Status, Trace, Tracer, Value};
use tracing::subscriber::with_default;
use tracing::{Dispatch, Instrument, dispatcher, error, info, info_span, trace, trace_span, warn};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::{self, SubscriberExt as _};
use tracing_subscriber::{Registry, registry};

fn tracer(sampling_rate: f64) -> Tracer {
    let config = Config { sampling_rate: Ratio::new(sampling_rate).unwrap(), ..Config::default() };
    Tracer::new(&config, ClockAnchor { mono: Instant::now(), wall: SystemTime::now() }, 7)
}

/// What a program does, as traces, oldest first.
fn seen(program: impl FnOnce()) -> Vec<Arc<Trace>> {
    let tracer = tracer(1.0);
    with_default(registry().with(mcpscope_tracing::layer(tracer.clone())), program);
    oldest_first(&tracer)
}

fn oldest_first(tracer: &Tracer) -> Vec<Arc<Trace>> {
    let mut traces = tracer.traces(&Filter::default());
    traces.sort_by_key(|trace| trace.timestamp);
    traces
}

fn span<'a>(trace: &'a Trace, name: &str) -> &'a Span {
    let mut found = trace.spans.iter().filter(|span| &*span.name == name);
    let span = found.next().unwrap_or_else(|| panic!("no span {name} in {trace:?}"));
    assert!(found.next().is_none(), "two spans {name}");
    span
}

fn names(trace: &Trace) -> Vec<&str> {
    let mut names: Vec<_> = trace.spans.iter().map(|span| &*span.name).collect();
    names.sort_unstable();
    names
}

fn attribute<'a>(span: &'a Span, name: &str) -> Option<&'a Value> {
    span.attributes.iter().find(|(found, _)| found == name).map(|(_, value)| value)
}

fn text(text: &str) -> Value {
    Value::Str(text.into())
}

#[test]
fn spans_have_their_fields_and_their_parents() {
    let traces = seen(|| {
        let order =
            info_span!("order", items = 3_u8, weight = 1.5, express = true, to = "here", by = ?Some(1), fee = -2)
                .entered();
        let pay = info_span!("pay", amount = tracing::field::Empty, large = u64::MAX).entered();
        pay.record("amount", 12);
        drop(pay);
        info_span!("send").in_scope(|| info_span!("label").in_scope(|| ()));
        drop(order);
    });
    let [trace] = &*traces else { panic!("{traces:?}") };
    assert_eq!((&*trace.operation, trace.status), ("order", Status::Ok));
    assert_eq!(names(trace), ["label", "order", "pay", "send"]);
    let order = span(trace, "order");
    assert_eq!((order.parent, order.kind), (None, SpanKind::Internal));
    for (name, value) in [
        ("items", Value::Int(3)),
        ("weight", Value::Float(1.5)),
        ("express", Value::Bool(true)),
        ("to", text("here")),
        ("by", text("Some(1)")),
        ("fee", Value::Int(-2)),
        ("target", text("layer")),
    ] {
        assert_eq!(attribute(order, name), Some(&value), "{name}");
    }
    assert_eq!(attribute(span(trace, "pay"), "amount"), Some(&Value::Int(12)));
    assert_eq!(attribute(span(trace, "pay"), "large"), Some(&Value::Int(i64::MAX)), "as much as OpenTelemetry can say");
    assert_eq!(span(trace, "pay").parent, Some(order.id));
    assert_eq!(span(trace, "label").parent, Some(span(trace, "send").id));
}

#[test]
fn events_belong_to_the_span_they_happen_in() {
    let traces = seen(|| {
        info!("outside of any span");
        let outer = info_span!("outer").entered();
        info_span!("inner").in_scope(|| {
            info!(done = 1, of = 2.5, "half way");
            info!(parent: &outer, "to the outer one");
            info!(parent: None, "to none");
        });
    });
    let [trace] = &*traces else { panic!("{traces:?}") };
    let [Event { name, at, attributes }] = &*span(trace, "inner").events else { panic!("{trace:?}") };
    assert_eq!(&**name, "half way");
    assert!((span(trace, "inner").start..=trace.duration).contains(at), "{at:?} is from the beginning of the trace");
    let expected: [(_, Value); 4] = [
        ("level".into(), text("INFO")),
        ("target".into(), text("layer")),
        ("done".into(), Value::Int(1)),
        ("of".into(), Value::Float(2.5)),
    ];
    assert_eq!(**attributes, expected);
    let outer: Vec<_> = span(trace, "outer").events.iter().map(|event| &*event.name).collect();
    assert_eq!(outer, ["to the outer one"]);
    assert_eq!(span(trace, "outer").status, Status::Ok, "no event was an error");
}

#[test]
fn an_error_is_the_spans_and_nobody_elses() {
    let traces = seen(|| {
        info_span!("root").in_scope(|| {
            info_span!("bad").in_scope(|| {
                warn!("it may break");
                error!(code = 7, "it broke");
                error!("and then more");
            });
            info_span!("worse").in_scope(|| error!(error = %fmt::Error));
        });
    });
    let [trace] = &*traces else { panic!("{traces:?}") };
    let [root, bad, worse] = ["root", "bad", "worse"].map(|name| span(trace, name));
    assert_eq!((root.status, &root.message), (Status::Ok, &None));
    assert_eq!((bad.status, bad.message.as_deref()), (Status::Error, Some("it broke")));
    assert_eq!(bad.events.len(), 3);
    assert_eq!((worse.status, worse.message.as_deref()), (Status::Error, Some(fmt::Error.to_string().as_str())));
}

#[test]
fn fields_of_opentelemetry_speak_of_the_span() {
    let traces = seen(|| {
        let call = info_span!(
            "call",
            otel.name = "GET /orders",
            otel.kind = "Client",
            otel.status_code = tracing::field::Empty,
            otel.status_description = tracing::field::Empty,
        );
        call.record("otel.status_code", "ERROR").record("otel.status_description", "no route");
        call.record("otel.kind", "no such kind");
    });
    let [trace] = &*traces else { panic!("{traces:?}") };
    let root = &trace.spans[0];
    assert_eq!((&*trace.operation, &*root.name, root.kind), ("GET /orders", "GET /orders", SpanKind::Client));
    assert_eq!((root.status, root.message.as_deref()), (Status::Error, Some("no route")));
    assert!(root.attributes.iter().all(|(name, _)| !name.starts_with("otel.")), "{root:?}");
}

#[test]
fn a_parent_may_be_named() {
    let traces = seen(|| {
        let first = info_span!("first");
        info_span!("second").in_scope(|| {
            info_span!(parent: &first, "of the first").in_scope(|| ());
            info_span!(parent: None, "of none").in_scope(|| ());
        });
    });
    assert_eq!(traces.len(), 3);
    let of_first = traces.iter().find(|trace| &*trace.operation == "first").unwrap();
    assert_eq!(span(of_first, "of the first").parent, Some(of_first.spans[0].id));
    for alone in ["second", "of none"] {
        let trace = traces.iter().find(|trace| &*trace.operation == alone).unwrap();
        assert_eq!((trace.spans.len(), trace.spans[0].parent), (1, None));
    }
}

/// What the same program tells of its spans `outer` and `inner` through a filter.
fn filtered(filter: impl layer::Filter<Registry> + Send + Sync + 'static) -> [Vec<String>; 2] {
    let tracer = tracer(1.0);
    with_default(registry().with(mcpscope_tracing::layer(tracer.clone()).with_filter(filter)), || {
        let outer = info_span!("outer").entered();
        let hidden = trace_span!(target: "noise", "hidden").entered();
        info_span!("inner").in_scope(|| {
            trace!("too fine");
            info!("seen");
            info!(target: "noise", "noise");
        });
        info!("in what is hidden");
        drop((hidden, outer));
    });
    let traces = oldest_first(&tracer);
    let [trace] = &*traces else { panic!("{traces:?}") };
    assert_eq!(names(trace), ["inner", "outer"]);
    assert_eq!(span(trace, "inner").parent, Some(span(trace, "outer").id), "what is hidden is passed over");
    ["outer", "inner"].map(|name| span(trace, name).events.iter().map(|event| event.name.to_string()).collect())
}

#[test]
fn filters_decide_by_level_target_and_name() {
    let outer = ["in what is hidden".to_owned()];
    let all = ["too fine", "seen", "noise"].map(str::to_owned);
    assert_eq!(filtered(LevelFilter::INFO), [&outer, &all[1..]]);
    assert_eq!(filtered(filter_fn(|metadata| metadata.target() != "noise")), [&outer, &all[..2]]);
    assert_eq!(filtered(filter_fn(|metadata| metadata.name() != "hidden")), [&outer[..], &all]);
}

/// Pending the first `times` times that it is asked.
fn pause(times: u32) -> impl Future<Output = ()> {
    let mut left = times;
    poll_fn(move |_| {
        let done = left == 0;
        left = left.saturating_sub(1);
        if done { Poll::Ready(()) } else { Poll::Pending }
    })
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Polls a task once, on a thread of its own, as a runtime with many threads may. Returns it if it is not done.
fn poll_elsewhere(dispatch: &Dispatch, mut task: Task) -> Option<Task> {
    let poll = || {
        dispatcher::with_default(dispatch, || {
            let pending = task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending();
            pending.then_some(task)
        })
    };
    thread::scope(|scope| scope.spawn(poll).join().unwrap())
}

/// A clock that only goes on when it is told to.
static NOW: AtomicU64 = AtomicU64::new(0);

fn now() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now) + Duration::from_secs(NOW.load(Ordering::Relaxed))
}

#[test]
fn tasks_that_take_turns_on_many_threads_stay_apart() {
    let config = Config { sampling_rate: Ratio::ONE, ..Config::default() };
    let tracer = Tracer::with_clock(&config, ClockAnchor { mono: now(), wall: SystemTime::UNIX_EPOCH }, 7, now);
    let dispatch = Dispatch::new(registry().with(mcpscope_tracing::layer(tracer.clone())));
    let request = |number: u64| -> Task {
        let work = async move {
            pause(1).await;
            async {
                pause(2).await;
                info!(number, "asked");
            }
            .instrument(info_span!("query", number))
            .await;
            pause(1).await;
        };
        Box::pin(work.instrument(info_span!("request", number)))
    };
    let mut tasks: Vec<Task> = dispatcher::with_default(&dispatch, || (0..8).map(request).collect());
    // Each is entered and left by turns, a second apart.
    while !tasks.is_empty() {
        tasks = tasks.into_iter().filter_map(|task| poll_elsewhere(&dispatch, task)).collect();
        NOW.fetch_add(1, Ordering::Relaxed);
    }
    let traces = oldest_first(&tracer);
    assert_eq!(traces.len(), 8);
    for trace in traces {
        assert_eq!(names(&trace), ["query", "request"]);
        let (request, query) = (span(&trace, "request"), span(&trace, "query"));
        assert_eq!(query.parent, Some(request.id));
        let number = attribute(request, "number").unwrap();
        assert_eq!(attribute(query, "number"), Some(number));
        let [event] = &*query.events else { panic!("{query:?}") };
        assert_eq!(event.attributes.last(), Some(&("number".into(), number.clone())));
        // They lasted until they were closed, not until they were left for the first time.
        let seconds = |duration: Duration| duration.as_secs();
        assert_eq!((seconds(request.start), seconds(request.duration)), (0, 4));
        assert_eq!((seconds(query.start), seconds(query.duration), seconds(event.at)), (1, 2, 3));
    }
}

#[test]
fn a_child_in_another_thread_outlives_what_held_its_parent() {
    let tracer = tracer(1.0);
    let dispatch = Dispatch::new(registry().with(mcpscope_tracing::layer(tracer.clone())));
    let child = dispatcher::with_default(&dispatch, || info_span!("parent").in_scope(|| info_span!("child")));
    assert!(tracer.is_empty(), "a child keeps its parent open");
    // The registry closes the parent through the thread's own default.
    thread::spawn(move || dispatcher::with_default(&dispatch, || drop(child))).join().unwrap();
    let traces = oldest_first(&tracer);
    assert_eq!((traces.len(), names(&traces[0])), (1, vec!["child", "parent"]));
}

#[test]
fn a_trace_is_kept_whole_or_not_at_all() {
    let program = |roots: usize| {
        for _ in 0..roots {
            info_span!("root")
                .in_scope(|| info_span!("middle").in_scope(|| info_span!("leaf").in_scope(|| info!("x"))));
        }
    };
    let none = tracer(0.0);
    with_default(registry().with(mcpscope_tracing::layer(none.clone())), || program(100));
    assert!(none.is_empty());
    let some = tracer(0.25);
    with_default(registry().with(mcpscope_tracing::layer(some.clone())), || program(1000));
    // 99.99 % of the binomial distribution of 1000 draws at 0.25: 250 +- 3.89 * 13.7.
    assert!((196..=304).contains(&some.len()), "{}", some.len());
    assert!(some.traces(&Filter::default()).iter().all(|trace| trace.spans.len() == 3));
}

#[test]
fn what_a_span_holds_is_bounded() {
    struct Endless;
    impl fmt::Debug for Endless {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            // Ends only because nobody listens any more.
            loop {
                f.write_str("é and so on ")?;
            }
        }
    }
    let traces = seen(|| {
        let long = "é".repeat(10_000);
        let span = info_span!("x", long, endless = ?Endless, again = tracing::field::Empty).entered();
        for n in 0..1000 {
            span.record("again", n);
            info!(long, endless = ?Endless, "{long}");
        }
    });
    let [trace] = &*traces else { panic!("{traces:?}") };
    let root = &trace.spans[0];
    assert!((50..=128).contains(&root.attributes.len()) && (50..=128).contains(&root.events.len()));
    assert_eq!(root.events.len() + root.dropped_events as usize, 1000);
    let all = root.attributes.iter().chain(root.events.iter().flat_map(|event| &event.attributes));
    let bytes: usize = all.map(|(name, value)| name.len() + value.to_string().len()).sum();
    assert!(bytes < 256 << 10, "{bytes}");
    let longest = |span: &Span| {
        let attributes = span.attributes.iter().chain(span.events.iter().flat_map(|event| &event.attributes));
        attributes.map(|(_, value)| value.to_string().len()).max()
    };
    assert!(longest(root) <= Some(1024), "{:?}", longest(root));
    assert!(root.events[0].name.len() <= 512);
}

/// Says something while it is told.
struct Chatty;

impl fmt::Debug for Chatty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        info!("asked for my name");
        f.write_str("Chatty")
    }
}

#[test]
fn a_value_that_tells_something_itself_does_no_harm() {
    let traces = seen(|| {
        let span = info_span!("x", first = ?Chatty, then = tracing::field::Empty).entered();
        span.record("then", tracing::field::debug(Chatty));
        info!(third = ?Chatty, "done");
    });
    let [trace] = &*traces else { panic!("{traces:?}") };
    let root = &trace.spans[0];
    assert_eq!((attribute(root, "first"), attribute(root, "then")), (Some(&text("Chatty")), Some(&text("Chatty"))));
    assert!(root.events.iter().any(|event| &*event.name == "done"));
}

#[test]
fn a_future_that_is_dropped_ends_its_span() {
    let traces = seen(|| {
        let mut never = pin!(pause(u32::MAX).instrument(info_span!("never")));
        assert!(never.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    });
    assert_eq!(traces.iter().map(|trace| &*trace.operation).collect::<Vec<_>>(), ["never"]);
}
