//! What a probe counts, keeps and survives.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use mcpscope_chaos::{Cause, ChaosTarget, Controller, Injector, Order, Outage, Plan, Request, Scenario, TargetError};
use mcpscope_core::{
    Call, CallEvent, CallEventKind, CallRecord, ClockAnchor, Direction, ErrorType, FaultId, Method, Outcome, Protocol,
    Ratio, RequestId, Transport,
};
use mcpscope_hooks::{Fate, InFlight, Instrumentation, Lane, Observer, Parts, Passage, Probe};
use mcpscope_metrics::Metrics;
use mcpscope_tracing::{Config, Filter, SpanKind, Status, Tracer};

struct Bench {
    now: Instant,
    metrics: Metrics,
    tracer: Tracer,
    parts: Parts,
}

fn bench() -> Bench {
    let now = Instant::now();
    let anchor = ClockAnchor { mono: now, wall: SystemTime::UNIX_EPOCH };
    let metrics = Metrics::new(&mcpscope_metrics::Config::default(), anchor);
    let tracer = Tracer::new(&Config { max_traces: 4, ..Config::default() }, anchor, 1);
    let parts =
        Parts { metrics: Some(metrics.clone()), tracer: Some(tracer.clone()), ..Parts::new("s", Transport::Stdio) };
    Bench { now, metrics, tracer, parts }
}

impl Bench {
    #[track_caller]
    fn has(&self, line: &str) {
        let text = self.metrics.snapshot(self.now).to_prometheus();
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }

    fn call(&self, probe: &Probe, method: &str, target: Option<&str>, outcome: Outcome) {
        probe.begin(call(method, target), self.now).finish(outcome, 1, self.now + Duration::from_millis(5));
    }
}

fn call(method: &str, target: Option<&str>) -> Call {
    Call {
        server: "s".into(),
        transport: Transport::Stdio,
        direction: Direction::ToServer,
        protocol: Some(Protocol::V2025_11_25),
        method: Method::new(method),
        id: None,
        target: target.map(Into::into),
        session: None,
        request_bytes: 1,
        context: None,
        tracestate: None,
    }
}

fn rpc(code: i64) -> Outcome {
    Outcome::error(ErrorType::Rpc(code))
}

#[test]
fn calls_count_where_they_belong() {
    let bench = bench();
    let probe = Probe::new(bench.parts.clone());
    bench.call(&probe, "initialize", None, Outcome::Ok);
    bench.call(&probe, "tools/list", None, Outcome::Ok);
    bench.call(&probe, "tools/call", Some("echo"), Outcome::Ok);
    bench.call(&probe, "tools/call", Some("echo"), Outcome::error(ErrorType::Tool));
    bench.call(&probe, "tools/call", Some("echo"), rpc(-32603));
    bench.call(&probe, "tools/call", Some("echo"), rpc(-32602));
    bench.call(&probe, "tools/call", Some("echo"), Outcome::InputRequired);
    drop(probe.begin(call("tools/call", Some("echo")), bench.now));
    probe.notify(call("notifications/tools/list_changed", None), bench.now);
    for line in [
        "mcpscope_component_operations_total{component=\"json_rpc\",injected=\"false\"} 8",
        "mcpscope_component_operations_total{component=\"tools\",injected=\"false\"} 6",
        "mcpscope_component_operations_total{component=\"registry\",injected=\"false\"} 2",
        "mcpscope_component_operations_total{component=\"session_manager\",injected=\"false\"} 1",
        "mcpscope_component_errors_total{component=\"tools\",error_type=\"tool_error\",injected=\"false\"} 1",
        "mcpscope_component_errors_total{component=\"tools\",error_type=\"-32603\",injected=\"false\"} 1",
        "mcpscope_component_errors_total{component=\"json_rpc\",error_type=\"-32603\",injected=\"false\"} 1",
        "mcpscope_session_creation_seconds_count{server=\"s\",protocol=\"2025-11-25\"} 1",
        "mcpscope_registry_operations_total{server=\"s\",operation=\"list\"} 1",
        "mcpscope_registry_operations_total{server=\"s\",operation=\"list_changed\"} 1",
    ] {
        bench.has(line);
    }
    for (outcome, count) in [("ok", 1), ("error", 2), ("caller_error", 1), ("cancelled", 1)] {
        bench.has(&format!(
            "mcpscope_tool_call_duration_seconds_count{{server=\"s\",tool=\"echo\",outcome=\"{outcome}\",injected=\"false\"}} {count}"
        ));
    }
    let text = bench.metrics.snapshot(bench.now).to_prometheus();
    assert!(!text.contains("error_type=\"-32602\""), "the caller's own error counts against no component");
    assert!(!text.contains("component=\"json_rpc\",error_type=\"tool_error\""), "JSON-RPC did its part");
}

#[test]
fn an_error_of_the_client_is_no_error_of_the_server() {
    let bench = bench();
    let probe = Probe::new(bench.parts.clone());
    let asked = Call { direction: Direction::ToClient, ..call("sampling/createMessage", None) };
    probe.begin(asked, bench.now).finish(rpc(-32603), 1, bench.now);
    bench.has("mcpscope_component_operations_total{component=\"json_rpc\",injected=\"false\"} 1");
    bench.has("mcpscope_component_errors_total{component=\"json_rpc\",error_type=\"-32603\",injected=\"false\"} 0");
}

#[test]
fn what_is_open_is_counted_until_it_is_dropped() {
    let bench = bench();
    let probe = Probe::new(bench.parts.clone());
    let open = (
        probe.connection(bench.now),
        probe.session(Protocol::V2025_06_18, Some(bench.now), bench.now),
        probe.queued(Direction::ToClient, 3, bench.now),
    );
    bench.has("mcpscope_transport_connections{server=\"s\",transport=\"stdio\"} 1");
    bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2025-06-18\"} 1");
    bench.has("mcpscope_message_queue_depth{server=\"s\",direction=\"to_client\"} 3");
    drop(open);
    bench.has("mcpscope_transport_connections{server=\"s\",transport=\"stdio\"} 0");
    bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2025-06-18\"} 0");
    bench.has("mcpscope_message_queue_depth{server=\"s\",direction=\"to_client\"} 0");
    bench.has("mcpscope_component_operations_total{component=\"session_manager\",injected=\"false\"} 1");
}

#[test]
fn a_full_trace_store_counts_what_made_room() {
    let bench = bench();
    let probe = Probe::new(bench.parts.clone());
    for _ in 0..20 {
        bench.call(&probe, "ping", None, Outcome::Ok);
    }
    // The newest four, and five that are the slowest of their operation since all take as long.
    assert_eq!(bench.tracer.traces(&Filter::default()).len(), 9);
    bench.has("mcpscope_dropped_total{what=\"trace_evicted\"} 11");
    bench.has("mcpscope_component_operations_total{component=\"json_rpc\",injected=\"false\"} 20");
}

#[derive(Debug)]
struct Panics;

impl Observer for Panics {
    fn on_call(&self, _: &CallRecord) {
        panic!("provoked inside recording");
    }
}

/// An engine in which this fault is active for a minute.
fn chaos(now: Instant) -> (Controller, Injector) {
    let clock = ClockAnchor { mono: now, wall: SystemTime::UNIX_EPOCH };
    mcpscope_chaos::new(mcpscope_chaos::Parts::new(Plan::default(), 1, clock)).unwrap()
}

#[test]
fn a_panic_inside_ends_inside_and_is_counted() {
    let bench = bench();
    let probe = Probe::new(Parts { observer: Some(Arc::new(Panics)), ..bench.parts.clone() });
    bench.call(&probe, "ping", None, Outcome::Ok);
    bench.has("mcpscope_dropped_total{what=\"panic\"} 1");
    bench.has("mcpscope_component_operations_total{component=\"json_rpc\",injected=\"false\"} 1");
    assert_eq!(bench.tracer.traces(&Filter::default()).len(), 1, "recorded before the observer had its look");
}

#[test]
fn what_a_fault_touched_is_labelled_injected() {
    let bench = bench();
    let (controller, injector) = chaos(bench.now);
    let probe = Probe::new(Parts { injector: Some(injector), ..bench.parts.clone() });
    let link = probe.link(None);
    assert!(!probe.holds());
    let fault = controller.start(&Request::new("lost_request").with("tool", "echo"), bench.now).unwrap();
    assert!(probe.holds());
    let mut other = probe.begin(call("tools/call", Some("other")), bench.now);
    assert_eq!(other.admit(&link, Direction::ToServer, bench.now), Passage::Now);
    other.discard();
    let mut in_flight = probe.begin(call("tools/call", Some("echo")), bench.now);
    let Passage::Touched(touch) = in_flight.admit(&link, Direction::ToServer, bench.now) else { panic!("it was hit") };
    assert_eq!(probe.fate(&touch, bench.now, || false), Fate::Lost);
    probe.acted(touch.injections());
    controller.emergency_stop(Cause::Person, bench.now);
    controller.drive(bench.now);
    let injected = controller.report(fault.0, bench.now).unwrap().injection;
    assert_eq!((injected.matched, injected.injected, injected.observed), (1, 1, 1));
    in_flight.finish(Outcome::Timeout, 0, bench.now + Duration::from_secs(1));
    bench.has("mcpscope_component_operations_total{component=\"tools\",injected=\"true\"} 1");
    bench.has("mcpscope_component_errors_total{component=\"tools\",error_type=\"timeout\",injected=\"true\"} 1");
    bench.has("mcpscope_component_operations_total{component=\"tools\",injected=\"false\"} 0");
    let traces = bench.tracer.traces(&Filter { status: Some(Status::Timeout), ..Filter::default() });
    assert!(traces.len() == 1 && traces[0].injected);
}

/// The process of the server that the bench has; it crashes in words alone.
#[derive(Debug, Default)]
struct Process(Mutex<Option<Arc<Outage>>>);

impl ChaosTarget for Process {
    fn name(&self) -> &str {
        "s"
    }

    fn is_critical(&self) -> bool {
        false
    }

    fn carries(&self, scenario: Scenario) -> bool {
        scenario == Scenario::ProcessCrash
    }

    fn apply(&self, order: &Order<'_>) -> Result<(), TargetError> {
        *self.0.lock().unwrap() = order.outage.cloned();
        Ok(())
    }

    fn undo(&self, _: FaultId) -> Result<(), TargetError> {
        Ok(())
    }

    fn left_over(&self, _: FaultId) -> Option<String> {
        None
    }
}

#[test]
fn an_outage_is_over_with_a_call_that_no_fault_touched() {
    let bench = bench();
    let (controller, injector) = chaos(bench.now);
    let probe = Probe::new(Parts { injector: Some(injector), ..bench.parts.clone() });
    let process = Arc::new(Process::default());
    controller.register(Arc::<Process>::clone(&process), bench.now);
    let fault = controller.start(&Request::new("process_crash"), bench.now).unwrap();
    let outage = process.0.lock().unwrap().take().unwrap();
    outage.ended(bench.now);
    outage.restarted(bench.now);
    let good = || outage.report(bench.now).unwrap().first_good_call_after;
    let ended_after = |is_touched: bool, millis| {
        let mut in_flight =
            probe.begin(Call { id: Some(RequestId::Integer(7)), ..call("tools/call", Some("echo")) }, bench.now);
        if is_touched {
            in_flight.touched_by(fault);
        }
        in_flight.finish(Outcome::Ok, 1, bench.now + Duration::from_millis(millis));
    };
    ended_after(true, 5);
    assert_eq!(good(), None);
    ended_after(false, 9);
    assert_eq!(good(), Some(9));
}

#[test]
fn who_is_refused_by_the_next_process_until_the_end_is_not_served_again() {
    // As a server over HTTP answers calls in a session that it does not know; of the others it has understood each.
    let (unknown_session, bad_arguments) = (ErrorType::HttpStatus(400), ErrorType::Rpc(-32602));
    for (outcome, status) in [
        (Outcome::error(unknown_session), mcpscope_chaos::Status::Failed),
        (Outcome::error(bad_arguments), mcpscope_chaos::Status::Completed),
        (Outcome::Cancelled, mcpscope_chaos::Status::Completed),
    ] {
        let bench = bench();
        let (controller, injector) = chaos(bench.now);
        let probe = Probe::new(Parts { injector: Some(injector), ..bench.parts.clone() });
        let process = Arc::new(Process::default());
        controller.register(Arc::<Process>::clone(&process), bench.now);
        let request = Request::new("process_crash").with("duration", "1s").with("recovery_time", "2s");
        let fault = controller.start(&request, bench.now).unwrap();
        let outage = process.0.lock().unwrap().take().unwrap();
        outage.ended(bench.now);
        outage.restarted(bench.now);
        outage.ready(bench.now);
        let in_flight =
            probe.begin(Call { id: Some(RequestId::Integer(7)), ..call("tools/call", Some("echo")) }, bench.now);
        in_flight.finish(outcome, 1, bench.now + Duration::from_millis(5));
        for second in 1..=5 {
            controller.drive(bench.now + Duration::from_secs(second));
        }
        let report = controller.report(fault.0, bench.now + Duration::from_secs(5)).unwrap();
        assert_eq!(report.status, status, "{:?}", report.error);
    }
}

#[test]
fn a_probe_of_nothing_is_off() {
    let probe = Probe::new(Parts::new("s", Transport::Http));
    assert!(!probe.is_on() && !probe.holds());
    probe.begin(call("ping", None), Instant::now()).finish(Outcome::Ok, 0, Instant::now());
}

#[test]
fn an_uninstrumented_component_counts_nothing_until_it_is_instrumented_again() {
    let bench = bench();
    let instrumentation = Instrumentation::new(true);
    let probe = Probe::new(Parts { instrumentation: Some(instrumentation.clone()), ..bench.parts.clone() });
    let tools = |operations: u64, calls: u64| {
        bench.has(&format!(
            "mcpscope_component_operations_total{{component=\"tools\",injected=\"false\"}} {operations}"
        ));
        let labels = "{server=\"s\",tool=\"echo\",outcome=\"ok\",injected=\"false\"}";
        bench.has(&format!("mcpscope_tool_call_duration_seconds_count{labels} {calls}"));
    };
    bench.call(&probe, "tools/call", Some("echo"), Outcome::Ok);
    tools(1, 1);
    instrumentation.uninstrument("tools").unwrap();
    bench.call(&probe, "tools/call", Some("echo"), Outcome::Ok);
    tools(1, 1);
    bench.has("mcpscope_component_operations_total{component=\"json_rpc\",injected=\"false\"} 2");
    instrumentation.instrument("tools", vec!["call_tool".into()]).unwrap();
    bench.call(&probe, "tools/call", Some("echo"), Outcome::Ok);
    tools(2, 2);
}

#[test]
fn a_call_that_goes_on_has_a_span_for_that() {
    let bench = bench();
    let probe = Probe::new(bench.parts.clone());
    let ms = |n| bench.now + Duration::from_millis(n);
    let mut lane = Lane::default();
    let mut begin = |probe: &Probe| {
        let mut in_flight = probe.begin(call("ping", None), bench.now);
        let context = in_flight.forward(&mut lane);
        (in_flight, context, lane.depart())
    };
    let (in_flight, context, departure) = begin(&probe);
    let departure = departure.unwrap();
    departure.queued(ms(1));
    departure.sent(ms(2));
    in_flight.finish(Outcome::Ok, 1, ms(5));
    let context = context.unwrap();
    assert!(context.sampled, "it is kept");
    let trace = bench.tracer.trace(context.trace_id).unwrap();
    let [server, client] = &trace.spans[..] else { panic!("{trace:?}") };
    assert_eq!((server.kind, client.kind), (SpanKind::Server, SpanKind::Client));
    assert_eq!((client.id, client.parent), (context.parent, Some(server.id)));
    assert_eq!((client.start, client.duration), (Duration::from_millis(2), Duration::from_millis(3)));

    // It did not go on after all.
    let (in_flight, context, _) = begin(&probe);
    in_flight.finish(Outcome::error(ErrorType::UpstreamUnreachable), 0, ms(5));
    assert_eq!(bench.tracer.trace(context.unwrap().trace_id).unwrap().spans.len(), 1);

    // Nobody would see the span, or learn of it.
    let untraced = Probe::new(Parts { tracer: None, propagate: true, ..bench.parts.clone() });
    let config = Config { critical_paths: Vec::new(), sampling_rate: Ratio::ZERO, ..Config::default() };
    let anchor = ClockAnchor { mono: bench.now, wall: SystemTime::UNIX_EPOCH };
    let tracer = Some(Tracer::new(&config, anchor, 1));
    let unsampled = Probe::new(Parts { tracer: tracer.clone(), ..bench.parts.clone() });
    for probe in [untraced, unsampled] {
        let (_, context, departure) = begin(&probe);
        assert!(context.is_none() && departure.is_none());
    }
    // But whoever answers must not take our caller for its own.
    let propagating = Probe::new(Parts { tracer, propagate: true, ..bench.parts.clone() });
    let (_, context, _) = begin(&propagating);
    assert!(!context.unwrap().sampled);
}

#[test]
fn what_a_message_waited_before_it_was_seen_is_part_of_its_call_and_no_work_on_it() {
    let bench = bench();
    let probe = Probe::new(bench.parts.clone());
    let ms = |n| bench.now + Duration::from_millis(n);
    let mut lane = Lane::default();
    let mut in_flight = probe.begin_held_up(call("ping", None), ms(0), ms(800));
    let trace = in_flight.forward(&mut lane).unwrap().trace_id;
    let departure = lane.depart().unwrap();
    departure.queued(ms(801));
    departure.sent(ms(810));
    in_flight.finish(Outcome::Ok, 1, ms(850));
    let trace = bench.tracer.trace(trace).unwrap();
    let detail = |name: &str| trace.details.iter().find(|(key, _)| &**key == name).map(|(_, value)| value.clone());
    assert_eq!(trace.duration, Duration::from_millis(850));
    let micros = |n| Some(mcpscope_tracing::Value::Int(n));
    assert_eq!(["proxy_us", "queue_us", "server_us"].map(detail), [micros(1_000), micros(809_000), micros(40_000)]);
}

#[test]
fn of_the_events_of_a_call_the_first_are_kept_and_the_others_counted() {
    let bench = bench();
    let probe = Probe::new(bench.parts.clone());
    let mut in_flight: InFlight = probe.begin(call("ping", None), bench.now);
    for n in 0..40 {
        let kind = CallEventKind::Progress { progress: Some(f64::from(n)), total: None };
        in_flight.event(CallEvent { at: bench.now + Duration::from_millis(1), kind });
    }
    in_flight.finish(Outcome::Ok, 1, bench.now + Duration::from_millis(5));
    let traces = bench.tracer.traces(&Filter::default());
    let span = &traces[0].spans[0];
    assert_eq!((traces[0].spans.len(), span.events.len(), span.dropped_events), (1, 32, 8));
    assert_eq!(span.events[31].attributes, [("progress".into(), mcpscope_tracing::Value::Float(31.0))]);
}

#[test]
fn calls_of_many_kinds_in_turn_are_each_counted_as_what_they_are() {
    let bench = bench();
    let probe = Probe::new(bench.parts.clone());
    for probe in [probe.for_connection(), probe] {
        for _ in 0..3 {
            for tool in ["a", "b", "c", "d", "e", "f"] {
                bench.call(&probe, "tools/call", Some(tool), Outcome::Ok);
                bench.call(&probe, "tools/call", Some(tool), Outcome::error(ErrorType::Tool));
                bench.call(&probe, "prompts/get", Some(tool), Outcome::Ok);
            }
        }
    }
    let line = "mcpscope_tool_call_duration_seconds_count{server=\"s\",tool=";
    for tool in ["a", "b", "c", "d", "e", "f"] {
        bench.has(&format!("{line}\"{tool}\",outcome=\"ok\",injected=\"false\"}} 6"));
        bench.has(&format!("{line}\"{tool}\",outcome=\"error\",injected=\"false\"}} 6"));
    }
    let text = bench.metrics.snapshot(bench.now).to_prometheus();
    let prompts = |line: &&str| line.contains("_duration_seconds_count") && line.contains("gen_ai_prompt_name=\"c\"");
    assert!(text.lines().filter(prompts).all(|line| line.ends_with(" 6")), "{text}");
}

#[test]
fn each_label_for_which_there_was_no_place_is_counted_however_often_it_comes() {
    let mut bench = bench();
    let config = mcpscope_metrics::Config { max_label_values: 1, ..mcpscope_metrics::Config::default() };
    bench.metrics = Metrics::new(&config, ClockAnchor { mono: bench.now, wall: SystemTime::UNIX_EPOCH });
    let probe = Probe::new(Parts { metrics: Some(bench.metrics.clone()), ..bench.parts.clone() });
    let tools: Vec<_> = (0..300).map(|n| n.to_string()).collect();
    for tool in &tools {
        bench.call(&probe, "tools/call", Some(tool), Outcome::Ok);
    }
    let dropped = || {
        let text = bench.metrics.snapshot(bench.now).to_prometheus();
        let line = text.lines().find_map(|line| line.strip_prefix("mcpscope_dropped_total{what=\"label_value\"} "));
        line.and_then(|number| number.parse::<u64>().ok()).unwrap()
    };
    let before = dropped();
    (0..5).for_each(|_| bench.call(&probe, "tools/call", Some("299"), Outcome::Ok));
    assert_eq!(dropped() - before, 10, "of the operation and of the tool, each time");
}

#[test]
fn many_threads_at_one_probe_are_counted_exactly() {
    let bench = bench();
    let probe = Probe::new(bench.parts.clone());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..500).for_each(|_| bench.call(&probe, "tools/call", Some("echo"), Outcome::Ok)));
        }
    });
    let line =
        "mcpscope_tool_call_duration_seconds_count{server=\"s\",tool=\"echo\",outcome=\"ok\",injected=\"false\"}";
    bench.has(&format!("{line} 2000"));
}
