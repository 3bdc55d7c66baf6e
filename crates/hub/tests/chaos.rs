//! The chaos engine through the hub: commands go in, events, metrics and frames come out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail")]
#![allow(clippy::disallowed_methods, reason = "a test may spawn")]

use std::num::{NonZeroU64, NonZeroU128};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::{
    Call, CallRecord, ClockAnchor, Direction, Era, FaultId, Method, Outcome, RequestId, SpanId, TraceId, Transport,
};
use mcpscope_hooks::Observer as _;
use mcpscope_hub::chaos::{
    Cause, Happened, Injector, Message, MessageKind, Parts, Plan, Refusal, Request, Status, Watch, new,
};
use mcpscope_hub::metrics::{Format, Metrics};
use mcpscope_hub::{Admin, Calls, Change, ChaosSource, Config, Events, Reader, Sources, hub};

const MS: Duration = Duration::from_millis(1);

struct Bench {
    reader: Reader,
    admin: Admin,
    injector: Injector,
    metrics: Metrics,
    calls: Arc<Calls>,
}

impl Bench {
    /// On the clock of the runtime, with the hub and the engine running.
    fn new() -> Self {
        let start = tokio::time::Instant::now().into_std();
        let anchor = ClockAnchor { mono: start, wall: SystemTime::now() };
        let metrics = Metrics::new(&Default::default(), anchor);
        let (reporter, health) = mcpscope_hub::health::channel(start);
        let calls = Arc::new(Calls::new(start, health.clone()));
        let parts = Parts { steady_state: Some(calls.clone()), ..Parts::new(Plan::default(), 7, anchor) };
        let (controller, injector) = new(parts).unwrap();
        let chaos = Some(ChaosSource::new(controller, calls.clone()));
        let sources = Sources {
            metrics: Some(metrics.clone()),
            tracer: None,
            reporter,
            health,
            instrumentation: None,
            chaos,
            anchor,
        };
        let (hub, reader, admin) = hub(sources, Config::default());
        tokio::spawn(hub.run());
        tokio::spawn(admin.chaos().unwrap().clone().run());
        Self { reader, admin, injector, metrics, calls }
    }

    fn metric(&self, name: &str) -> String {
        let text = self.reader.exposition(Format::Prometheus).unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{scenario=\"tool_error\"}}")));
        line.and_then(|line| line.rsplit(' ').next()).unwrap_or("absent").to_owned()
    }
}

/// A call of so long that ends now.
fn ends(duration: Duration, injected: Option<FaultId>) -> CallRecord {
    let call = Call {
        server: "s".into(),
        transport: Transport::Http,
        direction: Direction::ToServer,
        protocol: None,
        method: Method::new("tools/call"),
        id: Some(RequestId::Integer(1)),
        target: Some("t".into()),
        session: None,
        request_bytes: 1,
        context: None,
        tracestate: None,
    };
    CallRecord {
        call,
        started: now() - duration,
        duration,
        outcome: Outcome::Ok,
        response_bytes: 1,
        injected,
        trace_id: TraceId(NonZeroU128::MIN),
        span_id: SpanId(NonZeroU64::MIN),
        forwarded: None,
        events: Vec::new(),
        dropped_events: 0,
    }
}

async fn next(events: &mut Events) -> Happened {
    loop {
        let (event, missed) = events.next().await.unwrap();
        assert_eq!(missed, 0);
        if let Change::Chaos(event) = &event.change {
            return event.what.clone();
        }
    }
}

fn status(happened: &Happened) -> Status {
    let Happened::Changed { status, .. } = happened else { panic!("{happened:?}") };
    *status
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[tokio::test(start_paused = true)]
async fn an_experiment_is_told_counted_and_shown_from_its_start_to_its_end() {
    let bench = Bench::new();
    let chaos = bench.admin.chaos().unwrap();
    let mut events = bench.reader.events();
    let server = bench.injector.endpoint("s", Transport::Http, false);
    server.saw(Era::Legacy);
    let mut lane = server.connect(None).lane(Direction::ToServer);

    let id = chaos.start(Request::new("tool_error").with("duration", "8s")).await.unwrap();
    assert_eq!(status(&next(&mut events).await), Status::Planned);
    assert_eq!(status(&next(&mut events).await), Status::Running);
    assert_eq!(chaos.status().await.active_tests, 1);
    let call = Message { kind: MessageKind::Request, method: Some("tools/call"), tool: Some("t"), protocol: None };
    for _ in 0..3 {
        assert_eq!(lane.decide(&call, now()).len(), 1);
    }
    // The engine is driven ten times a second while a fault is active.
    tokio::time::sleep(1000 * MS).await;
    let mut frames = bench.reader.subscribe();
    while frames.next().await.unwrap().chaos.as_ref().is_none_or(|chaos| chaos.active_tests == 0) {}
    assert_eq!(bench.metric("mcpscope_chaos_experiments_active"), "1");
    assert_eq!(bench.metric("mcpscope_chaos_faults_injected_total"), "3");

    assert_eq!(status(&next(&mut events).await), Status::Recovering);
    assert_eq!(status(&next(&mut events).await), Status::Completed);
    assert_eq!(chaos.report(id.0).await.unwrap().injection.injected, 3);
    assert_eq!(chaos.history(10).await.len(), 1);
    while frames.next().await.unwrap().chaos.as_ref().is_some_and(|chaos| chaos.active_tests > 0) {}
    tokio::time::sleep(1000 * MS).await;
    for (name, expected) in [
        ("mcpscope_chaos_experiments_active", "0"),
        ("mcpscope_chaos_experiments_started_total", "1"),
        ("mcpscope_chaos_experiments_completed_total", "1"),
        ("mcpscope_chaos_experiments_failed_total", "0"),
        ("mcpscope_chaos_faults_injected_total", "3"),
    ] {
        assert_eq!(bench.metric(name), expected, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn there_is_no_report_before_it_is_decided_what_was_left_over() {
    /// A data path that lets one message go no more.
    #[derive(Debug)]
    struct Holds;
    impl Watch for Holds {
        fn changed(&self) {}

        fn holds(&self, _: FaultId) -> Option<u64> {
            Some(1)
        }
    }
    let bench = Bench::new();
    let chaos = bench.admin.chaos().unwrap();
    let path: Arc<dyn Watch> = Arc::new(Holds);
    bench.injector.watch(&path);
    let _server = bench.injector.endpoint("s", Transport::Http, false);
    let id = chaos.start(Request::new("latency_injection").with("duration", "60s")).await.unwrap().0;
    assert!(chaos.report(id).await.is_none(), "it has not ended, which nobody waits for");
    chaos.stop(id).await.unwrap();
    let ended = chaos.experiment(id).await.unwrap();
    assert_eq!((ended.status, ended.details.report), (Status::Aborted, None));
    let (began, report) = (tokio::time::Instant::now(), chaos.report(id).await.unwrap());
    assert_eq!(report.leak.as_deref(), Some("1 messages are still held back"));
    assert!(began.elapsed() >= 2000 * MS && chaos.status().await.emergency_stop, "{:?}", began.elapsed());
    assert!(chaos.report(id + 1).await.is_none(), "there is no such experiment");
}

#[tokio::test(start_paused = true)]
async fn an_emergency_stop_is_told_and_what_comes_is_refused_until_it_is_armed_again() {
    let bench = Bench::new();
    let chaos = bench.admin.chaos().unwrap();
    let mut events = bench.reader.events();
    let server = bench.injector.endpoint("s", Transport::Http, false);
    server.saw(Era::Legacy);
    chaos.start(Request::new("packet_loss")).await.unwrap();
    assert_eq!(status(&next(&mut events).await), Status::Planned);
    assert_eq!(status(&next(&mut events).await), Status::Running);
    assert!(chaos.emergency_stop(Cause::Person));
    let mut seen = vec![next(&mut events).await, next(&mut events).await];
    seen.retain(|happened| !matches!(happened, Happened::EmergencyStop { cause: Cause::Person }));
    assert_eq!(seen.iter().map(status).collect::<Vec<_>>(), [Status::Aborted]);
    assert!(matches!(chaos.start(Request::new("packet_loss")).await, Err(Refusal::Stopped { .. })));
    assert!(matches!(next(&mut events).await, Happened::Refused { .. }));
    chaos.rearm().await.unwrap();
    assert!(matches!(next(&mut events).await, Happened::Rearmed { .. }));
    chaos.start(Request::new("packet_loss")).await.unwrap();
    assert_eq!(chaos.events_since(0).await.len(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_plan_goes_by_the_traffic_of_the_last_minute() {
    let bench = Bench::new();
    let chaos = bench.admin.chaos().unwrap();
    let server = bench.injector.endpoint("s", Transport::Http, false);
    server.saw(Era::Legacy);
    for second in 0..30 {
        // From the start on, and not only when the first window is closed.
        if second == 5 {
            let outlook = chaos.plan(Request::new("latency_injection")).await.unwrap();
            assert!((outlook.expected_hits - 100.0).abs() < 10.0, "{outlook:?}");
        }
        let operation = mcpscope_hub::metrics::Operation {
            server: "s",
            method: "tools/call",
            tool: Some("echo"),
            prompt: None,
            error_type: "",
            status_code: "",
            protocol: None,
            transport: Transport::Http,
            injected: false,
        };
        (0..5).for_each(|_| bench.metrics.server_operations(&operation).record(MS, now()));
        tokio::time::sleep(1000 * MS).await;
    }
    let outlook = chaos.plan(Request::new("latency_injection").with("tool", "echo")).await.unwrap();
    // Five a second in 10 s, to the server and back.
    assert!((outlook.expected_hits - 100.0).abs() < 10.0, "{outlook:?}");
    assert_eq!(outlook.hits.len(), 2, "{outlook:?}");
    let outlook = chaos.plan(Request::new("latency_injection").with("tool", "other")).await.unwrap();
    assert_eq!(outlook.expected_hits, 0.0);
}

/// A reader's runtime has one thread for work, which something large may hold for a while.
#[test]
fn to_stop_an_experiment_waits_for_no_work_of_readers() {
    let runtime = |builder: &mut tokio::runtime::Builder| builder.enable_all().build().unwrap();
    let engine = runtime(&mut tokio::runtime::Builder::new_current_thread());
    let bench = engine.block_on(async { Bench::new() });
    let (ends, end) = tokio::sync::oneshot::channel::<()>();
    let engine = std::thread::spawn(move || engine.block_on(end).is_err());
    let server = bench.injector.endpoint("s", Transport::Http, false);
    server.saw(Era::Legacy);
    let readers = runtime(tokio::runtime::Builder::new_current_thread().max_blocking_threads(1));
    readers.block_on(async {
        let chaos = bench.admin.chaos().unwrap();
        let mut events = bench.reader.events();
        let id = chaos.start(Request::new("packet_loss").with("duration", "60s")).await.unwrap().0;
        // Told by the engine, so it runs.
        assert_eq!(status(&next(&mut events).await), Status::Planned);
        let (go_on, held) = std::sync::mpsc::channel::<()>();
        let work = tokio::task::spawn_blocking(move || held.recv().is_err());
        chaos.stop(id).await.unwrap();
        drop(go_on);
        assert!(work.await.unwrap(), "it was at work all the time");
    });
    drop(ends);
    assert!(engine.join().unwrap());
}

#[tokio::test(start_paused = true)]
async fn each_call_that_ends_as_the_fault_begins_or_ends_is_in_one_of_the_times_of_the_report() {
    for past in [0, 10, 30, 60, 90, 120] {
        let bench = Bench::new();
        let chaos = bench.admin.chaos().unwrap();
        let _server = bench.injector.endpoint("s", Transport::Http, false);
        let mut events = bench.reader.events();
        // Between the ends of the slices that calls are counted in.
        tokio::time::sleep(70 * MS).await;
        let id = chaos
            .start(Request::new("hang").with("duration", "2s").with("steady_state", "error_rate < 0.5"))
            .await
            .unwrap();
        let three = || (0..3).for_each(|_| bench.calls.on_call(&ends(1500 * MS, Some(id))));
        tokio::time::sleep(past * MS).await;
        three();
        while status(&next(&mut events).await) != Status::Recovering {}
        tokio::time::sleep(past * MS).await;
        three();
        while !status(&next(&mut events).await).is_final() {}
        let report = chaos.report(id.0).await.unwrap();
        let touched = [report.during, report.after].map(|slot| slot.unwrap().sample.touched.map_or(0, |it| it.calls));
        assert_eq!(touched.iter().sum::<u64>(), 6, "{past} ms after its beginning and end: {touched:?}");
    }
}
