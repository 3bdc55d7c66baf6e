//! What the hub publishes, when, and to whom.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail")]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime};

use mcpscope_core::{
    Call, CallRecord, ClockAnchor, Component, Direction, Method, Outcome, Protocol, RequestId, Transport,
};
use mcpscope_hub::health::{Overall, Reporter, State, channel};
use mcpscope_hub::hooks::Instrumentation;
use mcpscope_hub::metrics::{General, Metrics, RecordError, Refusal, Value, desc};
use mcpscope_hub::tracing::Tracer;
use mcpscope_hub::{Admin, AdminError, Change, Config, Frame, Frames, Off, Reader, Sources, hub};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, advance, sleep};

struct Bench {
    anchor: ClockAnchor,
    metrics: Metrics,
    tracer: Tracer,
    reporter: Reporter,
    reader: Reader,
    admin: Admin,
    hub: Option<mcpscope_hub::Hub>,
}

fn bench() -> Bench {
    with(&mcpscope_hub::metrics::Config::default())
}

fn with(config: &mcpscope_hub::metrics::Config) -> Bench {
    let anchor = ClockAnchor { mono: Instant::now().into_std(), wall: SystemTime::UNIX_EPOCH };
    let metrics = Metrics::new(config, anchor);
    let tracer = Tracer::new(&mcpscope_hub::tracing::Config::default(), anchor, 1);
    let (reporter, health) = channel(anchor.mono);
    let sources = Sources {
        metrics: Some(metrics.clone()),
        tracer: Some(tracer.clone()),
        reporter: reporter.clone(),
        health,
        instrumentation: Some(Instrumentation::new(true)),
        chaos: None,
        anchor,
    };
    let (hub, reader, admin) = hub(sources, Config::default());
    Bench { anchor, metrics, tracer, reporter, reader, admin, hub: Some(hub) }
}

/// Keeps nothing, and counts.
#[derive(Debug, Default)]
struct Others {
    records: AtomicU64,
    upkeeps: AtomicU64,
    hold: Option<Hold>,
}

/// Says that it began, and lasts until it is told to end.
#[derive(Debug)]
struct Hold {
    began: UnboundedSender<()>,
    end: Mutex<mpsc::Receiver<()>>,
}

impl General for Others {
    fn record(&self, _: &str, _: f64, _: &[(&str, &str)], _: &dyn Fn(&str) -> bool) -> Result<(), Refusal> {
        self.records.fetch_add(1, Relaxed);
        Ok(())
    }

    fn counter(&self, _: &metrics::Key, _: &dyn Fn(&str) -> bool) -> Result<metrics::Counter, Refusal> {
        Ok(metrics::Counter::noop())
    }

    fn gauge(&self, _: &metrics::Key, _: &dyn Fn(&str) -> bool) -> Result<metrics::Gauge, Refusal> {
        Ok(metrics::Gauge::noop())
    }

    fn histogram(&self, _: &metrics::Key, _: &dyn Fn(&str) -> bool) -> Result<metrics::Histogram, Refusal> {
        Ok(metrics::Histogram::noop())
    }

    fn to_prometheus(&self) -> String {
        String::new()
    }

    fn upkeep(&self) {
        self.upkeeps.fetch_add(1, Relaxed);
        if let Some(Hold { began, end }) = &self.hold {
            // Nobody is there any more once the test has ended.
            let _ = began.send(());
            let _ = end.lock().unwrap().recv();
        }
    }

    fn records(&self) -> u64 {
        self.records.load(Relaxed)
    }

    fn reset(&self) {
        self.records.store(0, Relaxed);
    }
}

impl Bench {
    /// Runs the hub beside `test`.
    async fn run<T>(&mut self, test: impl AsyncFnOnce(&Self) -> T) -> T {
        let hub = self.hub.take().unwrap();
        tokio::select! {
            () = hub.run() => unreachable!("the hub ended"),
            result = test(self) => result,
        }
    }

    fn call(&self, tool: &str) {
        let at = Instant::now().into_std();
        self.metrics.tool_calls("s", tool, "ok", false).record(Duration::from_millis(5), at);
        let root = self.tracer.start(Component::JsonRpc, None);
        let call = Call {
            server: "s".into(),
            transport: Transport::Stdio,
            direction: Direction::ToServer,
            protocol: Some(Protocol::V2025_11_25),
            method: Method::new("tools/call"),
            id: Some(RequestId::Integer(1)),
            target: Some(tool.into()),
            session: None,
            request_bytes: 1,
            context: None,
            tracestate: None,
        };
        let record = CallRecord {
            call,
            started: at,
            duration: Duration::from_millis(5),
            outcome: Outcome::Ok,
            response_bytes: 1,
            injected: None,
            trace_id: root.trace_id,
            span_id: root.span_id,
            forwarded: None,
            events: Vec::new(),
            dropped_events: 0,
        };
        self.tracer.record_call(&record, root).unwrap();
    }

    fn operations(&self, failed: u64, fine: u64) {
        let at = Instant::now().into_std();
        for _ in 0..failed + fine {
            self.metrics.component_operations(Component::Registry, false).increment(at);
        }
        for _ in 0..failed {
            self.metrics.component_errors(Component::Registry, "-32603", false).increment(at);
        }
    }
}

async fn frame(frames: &mut Frames) -> Arc<Frame> {
    frames.next().await.expect("the hub ended")
}

/// Tool calls in the frame since the frame before.
fn calls(frame: &Frame) -> u64 {
    let change = &frame.metrics.as_ref().unwrap().change;
    let count = |value: &Value| if let Value::Histogram(values) = value { values.count } else { 0 };
    change.series(&desc::TOOL_CALLS).map(|series| count(&series.value)).sum()
}

#[tokio::test(start_paused = true)]
async fn before_the_first_tick_there_is_nothing_and_all_is_well() {
    let bench = bench();
    let frame = bench.reader.frame();
    assert_eq!((frame.sequence, frame.traces.len(), frame.active_connections), (0, 0, 0));
    assert!(frame.metrics.is_none() && frame.usage.is_none() && frame.health.components.is_empty());
    assert_eq!((frame.health.overall, frame.health.health_percentage), (Overall::Healthy, 1.0));
}

#[tokio::test(start_paused = true)]
async fn a_frame_every_five_seconds_and_their_changes_add_up() {
    let mut bench = bench();
    bench
        .run(async |bench| {
            let mut frames = bench.reader.subscribe();
            assert_eq!(frame(&mut frames).await.sequence, 0, "the one of the moment comes at once");
            assert_eq!(frame(&mut frames).await.sequence, 1);
            let began = Instant::now();
            let mut seen = 0;
            for round in 1..=3_u64 {
                (0..round).for_each(|_| bench.call("echo"));
                let frame = frame(&mut frames).await;
                assert_eq!((frame.sequence, calls(&frame)), (round + 1, round));
                assert_eq!(began.elapsed().as_secs(), round * 5);
                assert_eq!(frame.timestamp, bench.anchor.wall_at(frame.at));
                assert_eq!(frame.metrics.as_ref().unwrap().interval, Duration::from_secs(5));
                seen += calls(&frame);
                assert_eq!(frame.traces.len() as u64, seen);
            }
            assert_eq!(bench.reader.frame().sequence, 4);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_frame_has_the_window_that_ends_with_it() {
    let mut bench = bench();
    bench
        .run(async |bench| {
            let mut frames = bench.reader.subscribe();
            while frame(&mut frames).await.sequence < 1 {}
            bench.call("echo");
            let window = |frame: &Frame| {
                let views = &frame.metrics.as_ref().unwrap().views;
                views.iter().find(|view| view.name == "tool_call_duration_ms").unwrap().series[0].window
            };
            assert!(window(&*frame(&mut frames).await).is_none(), "5 s");
            assert_eq!(window(&*frame(&mut frames).await).unwrap().count, 1, "10 s");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_skips_frames_and_holds_nobody_up() {
    let mut bench = bench();
    bench
        .run(async |bench| {
            let (mut slow, mut quick) = (bench.reader.subscribe(), bench.reader.subscribe());
            for sequence in 0..10 {
                assert_eq!(frame(&mut quick).await.sequence, sequence);
            }
            assert_eq!(frame(&mut slow).await.sequence, 9);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn subscriptions_end_with_the_hub() {
    let mut bench = bench();
    let (mut frames, mut events) = (bench.reader.subscribe(), bench.reader.events());
    let mut traces = bench.reader.follow_traces().unwrap();
    bench.run(async |_| sleep(Duration::from_secs(1)).await).await;
    assert_eq!(frames.next().await.unwrap().sequence, 1, "the last one is still there");
    assert!(frames.next().await.is_none() && events.next().await.is_none() && traces.next().await.is_none());
    assert_eq!(bench.reader.frame().sequence, 1);
    assert!(bench.reader.events().next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_component_that_fails_and_recovers_is_told_at_once() {
    let mut bench = bench();
    bench
        .run(async |bench| {
            let mut events = bench.reader.events();
            sleep(Duration::from_secs(2)).await;
            bench.operations(30, 20);
            let failing = events.next().await.unwrap().0;
            let Change::Health { component, from, to, .. } = &failing.change else { panic!("{failing:?}") };
            assert_eq!((component.as_str(), *from, *to), ("registry", State::Healthy, State::Critical));
            let report = bench.reader.watch_health().borrow_and_update().clone();
            assert_eq!(report.components["registry"].state, State::Critical);
            let text = bench.reader.snapshot().unwrap().to_prometheus();
            for line in [
                "mcpscope_health_state{component=\"registry\",state=\"critical\"} 1",
                "mcpscope_health_state{component=\"registry\",state=\"healthy\"} 0",
                "mcpscope_health_state{component=\"overall\",state=\"healthy\"} 0",
            ] {
                assert!(text.contains(line), "{line}\n{text}");
            }
            let failed = Instant::now();
            let recovered = events.next().await.unwrap().0;
            let Change::Health { to, message, .. } = &recovered.change else { panic!("{recovered:?}") };
            assert_eq!((*to, message.as_str()), (State::Healthy, "Registry idle"));
            assert!((58..=62).contains(&failed.elapsed().as_secs()), "{:?}", failed.elapsed());
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_an_owner_says_is_told_within_a_second() {
    let mut bench = bench();
    bench
        .run(async |bench| {
            let mut health = bench.reader.watch_health();
            sleep(Duration::from_secs(2)).await;
            health.borrow_and_update();
            let began = Instant::now();
            bench.reporter.set("transports", State::Critical, "gone", SystemTime::UNIX_EPOCH);
            health.changed().await.unwrap();
            assert!(began.elapsed() <= Duration::from_secs(1), "{:?}", began.elapsed());
            assert_eq!(health.borrow().components["transports"].message, "gone");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_follower_gets_each_new_trace_once() {
    let mut bench = bench();
    bench
        .run(async |bench| {
            bench.call("before");
            let mut follower = bench.reader.follow_traces().unwrap();
            for n in 0..10 {
                bench.call(&format!("tool{n}"));
            }
            let mut seen = Vec::new();
            while seen.len() < 10 {
                let (traces, missed) = follower.next().await.unwrap();
                assert_eq!(missed, 0);
                seen.extend(traces.iter().map(|trace| trace.tool.clone().unwrap()));
            }
            let expected: Vec<Box<str>> = (0..10).map(|n| format!("tool{n}").into()).collect();
            assert_eq!(seen, expected);
            for _ in 0..5_000 {
                bench.call("flood");
            }
            let (traces, missed) = follower.next().await.unwrap();
            assert_eq!(traces.len() as u64 + missed, 5_000);
            assert!(missed >= 3_900, "{missed}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn the_admin_changes_what_readers_see() {
    let bench = bench();
    let (reader, admin) = (&bench.reader, &bench.admin);
    bench.call("echo");
    admin.record("error_rates_by_component", 1.0, &[("component", "mine")]).unwrap();
    admin.instrument("mine", vec!["work".into()]).unwrap();
    let status = reader.instrumentation().unwrap();
    assert!(status.auto_instrument);
    let mine = status.components.iter().find(|component| component.component == "mine").unwrap();
    assert_eq!((mine.functions.as_slice(), mine.calls, mine.errors), (["work".to_owned()].as_slice(), 1, 1));
    admin.uninstrument("mine").unwrap();
    assert_eq!(reader.instrumentation().unwrap().components.len(), 6);
    assert!(matches!(admin.uninstrument("mine"), Err(AdminError::Instrument(_))));
    assert!(matches!(admin.record("nonsense", 1.0, &[]), Err(AdminError::Record(_))));
    assert_eq!(admin.clear_traces().unwrap(), 1);
    assert!(reader.traces(&Default::default()).unwrap().is_empty());
    assert!(!reader.raw_records().unwrap().is_empty());
    admin.reset_metrics().unwrap();
    assert!(reader.raw_records().unwrap().is_empty());
    assert_eq!(reader.summary().unwrap().counters["tool_call_duration_ms"], 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_off_says_so() {
    let anchor = ClockAnchor { mono: Instant::now().into_std(), wall: SystemTime::UNIX_EPOCH };
    let (reporter, health) = channel(anchor.mono);
    let sources = Sources { metrics: None, tracer: None, reporter, health, instrumentation: None, chaos: None, anchor };
    let (hub, reader, admin) = hub(sources, Config::default());
    assert_eq!(reader.snapshot().unwrap_err(), Off::Metrics);
    assert_eq!(reader.follow_traces().unwrap_err(), Off::Tracing);
    assert_eq!(reader.instrumentation().unwrap_err(), Off::Instrumentation);
    assert!(matches!(admin.clear_traces(), Err(AdminError::Off(Off::Tracing))));
    let mut frames = reader.subscribe();
    tokio::select! {
        () = hub.run() => unreachable!(),
        () = async { while frame(&mut frames).await.sequence < 2 {} } => {}
    }
    let frame = reader.frame();
    assert!(frame.metrics.is_none() && frame.usage.is_some());
    assert_eq!(frame.health.components.len(), 1, "observability alone: {:?}", frame.health);
}

#[tokio::test(start_paused = true)]
async fn those_who_keep_the_rest_tidy_up_every_second() {
    let others = Arc::new(Others::default());
    let general: Arc<dyn General> = others.clone();
    let mut bench =
        with(&mcpscope_hub::metrics::Config { general: Some(general), sampling_rate: 1.0, ..Default::default() });
    bench
        .run(async |bench| {
            sleep(Duration::from_millis(4500)).await;
            assert_eq!(others.upkeeps.load(Relaxed), 5, "at once, and after each second");
            bench.admin.record("not_critical", 1.0, &[]).unwrap();
            assert_eq!(bench.reader.summary().unwrap().total_metrics, 1);
            bench.admin.reset_metrics().unwrap();
            assert_eq!(bench.reader.summary().unwrap().total_metrics, 0);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn frames_come_though_what_is_done_every_second_takes_longer() {
    let (began, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let (ends, end) = mpsc::channel();
    let general: Arc<dyn General> =
        Arc::new(Others { hold: Some(Hold { began, end: Mutex::new(end) }), ..Others::default() });
    let mut bench = with(&mcpscope_hub::metrics::Config { general: Some(general), ..Default::default() });
    bench
        .run(async |bench| {
            for _ in 0..40 {
                begins.recv().await.unwrap();
                advance(Duration::from_millis(1500)).await;
                ends.send(()).unwrap();
            }
            begins.recv().await.unwrap();
            assert_eq!(bench.reader.frame().sequence, 12, "one in 5 s, in a minute");
            drop(ends);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn without_them_a_name_that_is_not_critical_is_unknown() {
    let refused = bench().admin.record("not_critical", 1.0, &[]).unwrap_err();
    assert!(matches!(refused, AdminError::Record(RecordError::UnknownMetric { .. })), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn spans_that_found_no_place_are_counted_once() {
    let dropped = |bench: &Bench| {
        let snapshot = bench.reader.snapshot().unwrap();
        let found = snapshot.series(&desc::DROPPED).find(|series| series.labels.get("what") == Some("span"));
        found.map(|series| series.value.clone())
    };
    // More than a trace can have.
    let lose = |bench: &Bench| {
        let root = bench.tracer.span(Component::Server, "root", None);
        (0..1500).for_each(|_| root.child("one of many").end());
    };
    bench()
        .run(async |bench| {
            sleep(Duration::from_millis(1)).await;
            assert_eq!(dropped(bench), Some(Value::Counter(0)), "it is there before the first loss");
            for times in 1..=2 {
                lose(bench);
                sleep(Duration::from_secs(3)).await;
                assert_eq!(bench.tracer.lost(), times * 501);
                assert_eq!(dropped(bench), Some(Value::Counter(times * 501)));
            }
        })
        .await;
}
