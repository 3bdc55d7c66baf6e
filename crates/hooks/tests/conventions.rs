//! What is recorded as the OpenTelemetry MCP conventions want it, under which attributes, and with which examples.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::{
    Call, CallRecord, ClockAnchor, Component, Direction, ErrorType, Method, Outcome, Protocol, Ratio, TraceId,
    Transport,
};
use mcpscope_hooks::{Instrumentation, Observer, Parts, Probe};
use mcpscope_metrics::{Desc, HistogramSnapshot, Metrics, SeriesSnapshot, Value, desc};
use mcpscope_tracing::{Filter, Tracer};

const TOOK: Duration = Duration::from_millis(5);

struct Bench {
    now: Instant,
    metrics: Metrics,
    anchor: ClockAnchor,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        let anchor = ClockAnchor { mono: now, wall: SystemTime::UNIX_EPOCH };
        Self { now, metrics: Metrics::new(&mcpscope_metrics::Config::default(), anchor), anchor }
    }

    fn parts(&self, transport: Transport) -> Parts {
        Parts { metrics: Some(self.metrics.clone()), ..Parts::new("s", transport) }
    }

    fn probe(&self) -> Probe {
        Probe::new(self.parts(Transport::Stdio))
    }

    fn run(&self, probe: &Probe, call: Call, outcome: Outcome) {
        probe.begin(call, self.now).finish(outcome, 1, self.now + TOOK);
    }

    /// The series of a family in which there is something.
    fn series(&self, family: &Desc) -> Vec<SeriesSnapshot> {
        let has_any = |series: &&SeriesSnapshot| match &series.value {
            Value::Counter(count) => *count > 0,
            Value::Gauge(level) => *level != 0.0,
            Value::Histogram(values) => values.count > 0,
        };
        self.metrics.snapshot(self.now).series(family).filter(has_any).cloned().collect()
    }

    /// Their labels that are not empty, and how many records there are.
    fn recorded(&self, family: &Desc) -> Vec<(String, u64)> {
        let labels = |series: &SeriesSnapshot| {
            let pairs = series.labels.iter().filter(|(_, value)| !value.is_empty());
            pairs.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        };
        self.series(family).iter().map(|series| (labels(series), values(series).count)).collect()
    }
}

fn values(series: &SeriesSnapshot) -> &HistogramSnapshot {
    let Value::Histogram(values) = &series.value else { panic!("a histogram") };
    values
}

fn call(direction: Direction, method: &str, target: Option<&str>) -> Call {
    Call {
        server: "s".into(),
        transport: Transport::Stdio,
        direction,
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

/// One operation, and the labels that it is recorded under, but for those that are always the same.
#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "the calls read better with a value")]
fn check(direction: Direction, method: &str, target: Option<&str>, outcome: Outcome, expected: &str) {
    let bench = Bench::new();
    let tracer = Tracer::new(&mcpscope_tracing::Config::default(), bench.anchor, 1);
    let probe = Probe::new(Parts { tracer: Some(tracer.clone()), ..bench.parts(Transport::Stdio) });
    bench.run(&probe, call(direction, method, target), outcome.clone());
    let (mine, other) = match direction {
        Direction::ToServer => (&desc::SERVER_OPERATIONS, &desc::CLIENT_OPERATIONS),
        Direction::ToClient => (&desc::CLIENT_OPERATIONS, &desc::SERVER_OPERATIONS),
    };
    let space = if expected.is_empty() { "" } else { " " };
    let labels = format!(
        "server=s mcp_method_name={method}{space}{expected} \
         mcp_protocol_version=2025-11-25 network_transport=pipe injected=false"
    );
    assert_eq!((bench.recorded(mine), bench.recorded(other)), (vec![(labels, 1)], vec![]), "{outcome:?}");
    let series = &bench.series(mine)[0];
    assert_eq!(values(series).sum_ns, TOOK.as_nanos() as u64);
    // The span says the same.
    let traces = tracer.traces(&Filter::default());
    for name in
        ["error.type", "rpc.response.status_code", "gen_ai.tool.name", "gen_ai.prompt.name", "network.transport"]
    {
        let attribute = traces[0].spans[0].attributes.iter().find(|(found, _)| *found == name);
        let label = series.labels.get(&name.replace('.', "_")).filter(|label| !label.is_empty());
        assert_eq!(attribute.map(|(_, value)| value.to_string()).as_deref(), label, "{name} of {outcome:?}");
    }
}

const CALLERS: [i64; 5] = [-32700, -32600, -32601, -32602, -32002];

#[test]
fn a_server_is_not_to_blame_for_the_mistakes_of_its_caller() {
    let check = |outcome, expected: &str| check(Direction::ToServer, "tools/list", None, outcome, expected);
    check(Outcome::Ok, "");
    check(Outcome::InputRequired, "");
    check(Outcome::Cancelled, "");
    for code in CALLERS {
        check(rpc(code), &format!("rpc_response_status_code={code}"));
    }
    for code in [-32603, -32000, -32020, -32042, 1, 404] {
        check(rpc(code), &format!("error_type={code} rpc_response_status_code={code}"));
    }
    check(Outcome::error(ErrorType::HttpStatus(404)), "");
    for (kind, expected) in [
        (ErrorType::HttpStatus(503), "503"),
        (ErrorType::UpstreamUnreachable, "upstream_unreachable"),
        (ErrorType::ConnectionLost, "connection_lost"),
        (ErrorType::Timeout, "timeout"),
    ] {
        check(Outcome::error(kind), &format!("error_type={expected}"));
    }
    check(Outcome::Timeout, "error_type=timeout");
}

#[test]
fn who_asks_sees_every_error() {
    let check = |outcome, expected: &str| check(Direction::ToClient, "sampling/createMessage", None, outcome, expected);
    check(Outcome::Ok, "");
    check(Outcome::Cancelled, "");
    for code in CALLERS.into_iter().chain([-32603, -1]) {
        check(rpc(code), &format!("error_type={code} rpc_response_status_code={code}"));
    }
    check(Outcome::error(ErrorType::HttpStatus(404)), "error_type=404");
    check(Outcome::Timeout, "error_type=timeout");
}

#[test]
fn tools_and_prompts_are_named_and_resources_are_not() {
    let tool = "gen_ai_operation_name=execute_tool gen_ai_tool_name=echo";
    let check = |method, target, outcome, expected: &str| check(Direction::ToServer, method, target, outcome, expected);
    check("tools/call", Some("echo"), Outcome::Ok, tool);
    check("tools/call", Some("echo"), Outcome::error(ErrorType::Tool), &format!("{tool} error_type=tool_error"));
    check("tools/call", None, rpc(-32602), "gen_ai_operation_name=execute_tool rpc_response_status_code=-32602");
    check("prompts/get", Some("review"), Outcome::Ok, "gen_ai_prompt_name=review");
    check("resources/read", Some("file:///etc/passwd"), Outcome::Ok, "");
    check("mine/custom", Some("x"), Outcome::Ok, "");
}

#[test]
fn revision_transport_and_faults_are_told() {
    let bench = Bench::new();
    let clock = mcpscope_core::ClockAnchor { mono: bench.now, wall: std::time::SystemTime::UNIX_EPOCH };
    let parts = mcpscope_chaos::Parts::new(mcpscope_chaos::Plan::default(), 1, clock);
    let (controller, injector) = mcpscope_chaos::new(parts).unwrap();
    let probe = Probe::new(Parts { injector: Some(injector), ..bench.parts(Transport::Http) });
    controller.start(&mcpscope_chaos::Request::new("lost_request"), bench.now).unwrap();
    let asked = Call { transport: Transport::Http, protocol: None, ..call(Direction::ToServer, "ping", None) };
    let mut in_flight = probe.begin(asked, bench.now);
    let _passage = in_flight.admit(&probe.link(None), Direction::ToServer, bench.now);
    in_flight.finish(Outcome::Timeout, 0, bench.now);
    let labels = "server=s mcp_method_name=ping error_type=timeout network_transport=tcp injected=true";
    assert_eq!(bench.recorded(&desc::SERVER_OPERATIONS), [(labels.to_owned(), 1)]);
}

#[test]
fn a_notification_has_no_duration_but_zero() {
    let bench = Bench::new();
    let probe = bench.probe();
    probe.notify(call(Direction::ToServer, "notifications/initialized", None), bench.now);
    probe.notify(call(Direction::ToClient, "notifications/progress", None), bench.now);
    for (family, method) in
        [(&desc::SERVER_OPERATIONS, "notifications/initialized"), (&desc::CLIENT_OPERATIONS, "notifications/progress")]
    {
        let labels = format!(
            "server=s mcp_method_name={method} mcp_protocol_version=2025-11-25 network_transport=pipe injected=false"
        );
        assert_eq!(bench.recorded(family), [(labels, 1)]);
        assert_eq!(values(&bench.series(family)[0]).sum_ns, 0);
    }
}

#[test]
fn a_stream_that_stays_open_is_no_latency() {
    let bench = Bench::new();
    bench.run(&bench.probe(), call(Direction::ToServer, "subscriptions/listen", None), Outcome::Ok);
    assert_eq!(bench.recorded(&desc::SERVER_OPERATIONS), []);
}

#[test]
fn a_session_lasts_from_its_initialize_to_its_end() {
    let bench = Bench::new();
    let probe = bench.probe();
    let (protocol, started) = (Protocol::V2025_06_18, bench.now);
    let open = || probe.session(protocol, Some(started), started + Duration::from_secs(1));
    open().end(None, started + Duration::from_secs(40));
    open().end(None, started + Duration::from_secs(2));
    open().end(Some(ErrorType::Crash), started + Duration::from_secs(3));
    // Nobody knows when it began.
    probe.session(protocol, None, started).end(None, started + Duration::from_secs(4));
    drop(probe.session(protocol, None, started));
    let labels = "server=s mcp_protocol_version=2025-06-18 network_transport=pipe";
    let crashed = format!("{labels} error_type=crash");
    assert_eq!(bench.recorded(&desc::SERVER_SESSIONS), [(labels.to_owned(), 2), (crashed, 1)]);
    let sums: Vec<_> = bench.series(&desc::SERVER_SESSIONS).iter().map(|s| values(s).sum_ns / 1_000_000_000).collect();
    assert_eq!(sums, [42, 3]);
    assert_eq!(bench.series(&desc::ACTIVE_SESSIONS).len(), 0);
    drop(probe.session(protocol, Some(started), started));
    assert_eq!(bench.recorded(&desc::SERVER_SESSIONS)[0].1, 3, "whoever drops it ends it");
}

#[test]
fn messages_take_their_time_from_being_read_to_being_handed_on() {
    let bench = Bench::new();
    let probe = bench.probe();
    let before = bench.now.checked_sub(Duration::from_secs(60)).unwrap();
    drop(probe.queued(Direction::ToClient, 3, before));
    drop(probe.queued(Direction::ToClient, 0, before));
    let mut held = probe.queued(Direction::ToServer, 1, before);
    held.held_until(before + Duration::from_secs(30));
    held.held_until(before);
    drop(held);
    let labels = |direction| format!("server=s direction={direction}");
    let found = bench.recorded(&desc::PROXY_OVERHEAD);
    assert_eq!(found, [(labels("to_client"), 3), (labels("to_server"), 1)]);
    let seconds: Vec<_> =
        bench.series(&desc::PROXY_OVERHEAD).iter().map(|s| values(s).sum_ns / 1_000_000_000).collect();
    assert!((180..210).contains(&seconds[0]) && (30..40).contains(&seconds[1]), "{seconds:?}");
}

#[test]
fn what_is_not_instrumented_is_not_recorded() {
    let bench = Bench::new();
    let instrumentation = Instrumentation::new(false);
    let probe = Probe::new(Parts { instrumentation: Some(instrumentation), ..bench.parts(Transport::Stdio) });
    bench.run(&probe, call(Direction::ToServer, "ping", None), Outcome::Ok);
    probe.notify(call(Direction::ToClient, "notifications/progress", None), bench.now);
    drop((probe.queued(Direction::ToServer, 1, bench.now), probe.session(Protocol::Other, Some(bench.now), bench.now)));
    for family in [&desc::SERVER_OPERATIONS, &desc::CLIENT_OPERATIONS, &desc::SERVER_SESSIONS, &desc::PROXY_OVERHEAD] {
        assert_eq!(bench.recorded(family), [], "{}", family.prometheus);
    }
}

#[test]
fn bounds_are_those_of_the_conventions() {
    let ms = [10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000];
    let bounds = ms.map(|ms| ms * 1_000_000);
    for family in [&desc::SERVER_OPERATIONS, &desc::CLIENT_OPERATIONS, &desc::SERVER_SESSIONS] {
        assert_eq!(family.bounds_ns(), bounds, "{}", family.prometheus);
    }
}

/// The traces that the families of a failed tool call and of session creation give as examples.
fn examples(bench: &Bench) -> Vec<TraceId> {
    let families = [&desc::TOOL_CALLS, &desc::SERVER_OPERATIONS, &desc::SESSION_CREATION, &desc::COMPONENT_ERRORS];
    let of = |family| {
        let found = bench.series(family).into_iter().flat_map(|series| series.exemplars).flatten();
        found.map(|exemplar| exemplar.trace_id).collect::<Vec<_>>()
    };
    let all = families.map(of);
    assert!(all.iter().all(|traces| traces.is_empty()) || all.iter().all(|traces| !traces.is_empty()), "{all:?}");
    all.concat()
}

fn traced(bench: &Bench, config: &mcpscope_tracing::Config) -> Tracer {
    let tracer = Tracer::new(config, bench.anchor, 1);
    let probe = Probe::new(Parts { tracer: Some(tracer.clone()), ..bench.parts(Transport::Stdio) });
    bench.run(&probe, call(Direction::ToServer, "initialize", None), Outcome::Ok);
    bench.run(&probe, call(Direction::ToServer, "tools/call", Some("echo")), rpc(-32603));
    tracer
}

#[test]
fn examples_lead_to_traces_that_are_there() {
    let bench = Bench::new();
    let tracer = traced(&bench, &mcpscope_tracing::Config::default());
    let found = examples(&bench);
    assert!(!found.is_empty() && found.iter().all(|id| tracer.trace(*id).is_some()), "{found:?}");
}

#[test]
fn a_trace_that_is_not_kept_is_no_example() {
    let sampled_out = mcpscope_tracing::Config {
        sampling_rate: Ratio::ZERO,
        critical_paths: vec![Component::Tools],
        ..mcpscope_tracing::Config::default()
    };
    let no_room = mcpscope_tracing::Config { max_bytes: 8, ..mcpscope_tracing::Config::default() };
    for config in [sampled_out, no_room] {
        let bench = Bench::new();
        assert!(traced(&bench, &config).is_empty());
        assert_eq!(examples(&bench), []);
    }
    let bench = Bench::new();
    bench.run(&bench.probe(), call(Direction::ToServer, "tools/call", Some("echo")), rpc(-32603));
    assert_eq!(examples(&bench), [], "nobody traces");
}

#[test]
fn a_panic_of_an_observer_loses_no_record() {
    #[derive(Debug)]
    struct Panics;
    impl Observer for Panics {
        fn on_call(&self, _: &CallRecord) {
            panic!("provoked inside recording");
        }
    }

    let bench = Bench::new();
    let probe = Probe::new(Parts { observer: Some(Arc::new(Panics)), ..bench.parts(Transport::Stdio) });
    bench.run(&probe, call(Direction::ToServer, "ping", None), Outcome::Ok);
    drop(probe.begin(call(Direction::ToClient, "roots/list", None), bench.now));
    assert_eq!(bench.recorded(&desc::SERVER_OPERATIONS)[0].1, 1);
    assert_eq!(bench.recorded(&desc::CLIENT_OPERATIONS)[0].1, 1);
}
