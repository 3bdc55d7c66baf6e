//! Every RPC, through the crate's own client and the official health client.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use futures_util::stream;
use mcpscope_core::Component;
use mcpscope_grpc::proto::*;
use mcpscope_grpc::tonic::transport::Endpoint;
use mcpscope_grpc::tonic::{Code, Request, Status, Streaming};
use mcpscope_hub::health::State;
use mcpscope_hub::hooks::Instrumentation;
use mcpscope_hub::metrics::{Declared, Kind};
use mcpscope_hub::tracing::parse_traceparent;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_reflection::pb;

use self::support::{Bench, Running};

async fn next<T>(stream: &mut Streaming<T>) -> T {
    let message = tokio::time::timeout(Duration::from_secs(20), stream.message());
    message.await.expect("nothing came").unwrap().expect("the stream ended")
}

fn record(name: &str, value: f64, labels: &[(&str, &str)]) -> RecordMetricsRequest {
    let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    RecordMetricsRequest { name: name.into(), value, labels }
}

#[tokio::test]
async fn metrics_are_read_recorded_and_reset() {
    let test = async |running: &Running<'_>| {
        let mut metrics = running.client().await.metrics;
        let labels = [("server", "mine"), ("tool", "echo")];
        let many: Vec<_> = (0..17).map(|n| (n.to_string(), String::new())).collect();
        let many: Vec<_> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let records = vec![
            record("tool_call_duration_ms", 12.5, &labels),
            record("tool_call_duration_ms", -1.0, &labels),
            record("no_such_metric", 1.0, &[]),
            record("tool_call_duration_ms", 1.0, &many),
            record("tool_call_duration_ms", 1.0, &[("tool", &"x".repeat(257))]),
            record("transport_connection_count", 3.0, &[]),
        ];
        let recorded = metrics.record_metrics(stream::iter(records)).await.unwrap().into_inner();
        assert_eq!((recorded.accepted, recorded.rejected), (2, 4));
        let first = recorded.first_error.unwrap();
        assert_eq!(
            first,
            "tool_call_duration_ms does not take -1: expected a number of milliseconds from 0 to 86400000, a day"
        );

        let asked = GetMetricRequest { name: "tool_call_duration_ms".into() };
        let metric = metrics.get_metric(asked).await.unwrap().into_inner().metric.unwrap();
        assert_eq!((metric.unit.as_str(), metric.kind.as_str()), ("ms", "histogram"));
        assert_eq!(metric.series[0].value, 12.5);
        let given = [("server", "mine"), ("tool", "echo"), ("outcome", "ok"), ("injected", "false")];
        let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(metric.series[0].labels, BTreeMap::from(given));

        let all = metrics.list_metrics(ListMetricsRequest {}).await.unwrap().into_inner().metrics.unwrap();
        assert_eq!(all.metrics.len(), 7);
        assert_eq!(all.metrics["tool_call_duration_ms"], metric);
        assert!(all.timestamp > 0);
        assert!(all.memory_usage.is_none_or(|bytes| bytes > 0));

        let summary = metrics.get_summary(GetSummaryRequest {}).await.unwrap().into_inner().summary.unwrap();
        assert_eq!((summary.critical_metrics, summary.counters["tool_call_duration_ms"]), (2, 1));
        metrics.reset_metrics(ResetMetricsRequest {}).await.unwrap();
        let summary = metrics.get_summary(GetSummaryRequest {}).await.unwrap().into_inner().summary.unwrap();
        assert_eq!((summary.critical_metrics, summary.counters["tool_call_duration_ms"]), (0, 0));

        let unknown = metrics.get_metric(GetMetricRequest { name: "nope".into() }).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);
        assert!(unknown.message().contains("tool_call_duration_ms"), "{unknown}");
        let empty = metrics.record_metrics(stream::iter([])).await.unwrap().into_inner();
        assert_eq!(empty, RecordMetricsResponse::default());
    };
    Bench::new().run(test).await;
}

#[tokio::test]
async fn what_is_refused_says_what_was_expected() {
    let test = async |running: &Running<'_>| {
        let mut metrics = running.client().await.metrics;
        let (fits, long, longer) = ("x".repeat(128), "x".repeat(129), "x".repeat(257));
        for (refused, why) in [
            (
                record("tool_call_duration_ms", 1.0, &[("outcome", "OK")]),
                "tool_call_duration_ms does not take outcome \"OK\": \
                 expected one of ok, error, caller_error, timeout, cancelled",
            ),
            (record(&long, 1.0, &[]), "names: expected at most 128 bytes; found 129"),
            (record("x", 1.0, &[(&long, "")]), "names: expected at most 128 bytes; found 129"),
            (record("x", 1.0, &[("label", &longer)]), "label values: expected at most 256 bytes; found 257"),
            (record(&fits, 1.0, &[]), "there is no critical metric"),
        ] {
            let answer = metrics.record_metrics(stream::iter([refused])).await.unwrap().into_inner();
            let first = answer.first_error.unwrap();
            assert!(answer.rejected == 1 && first.starts_with(why), "{first}");
        }
    };
    Bench::new().run(test).await;
}

#[tokio::test]
async fn an_unknown_metric_is_told_which_there_are() {
    let test = async |running: &Running<'_>| {
        let mut metrics = running.client().await.metrics;
        let declare = |name: String| {
            running.bench.metrics.declare(&Declared::new(name, Kind::Counter, "").unwrap()).unwrap();
        };
        let mut unknown = async || {
            metrics.get_metric(GetMetricRequest { name: "nope".into() }).await.unwrap_err().message().to_owned()
        };
        declare("jobs_total".to_owned());
        let few = unknown().await;
        assert!(few.ends_with(", message_queue_depth, jobs_total"), "{few}");
        (0..255).for_each(|n| declare(format!("{n:x>120}_total")));
        let many = unknown().await;
        assert!(many.ends_with("_total and 231 more") && many.len() < 5000, "{} bytes: {many}", many.len());
    };
    Bench::new().run(test).await;
}

#[tokio::test]
async fn a_trace_is_found_by_the_beginning_of_its_id() {
    let test = async |running: &Running<'_>| {
        let mut traces = running.client().await.traces;
        let record = |id: &str| {
            let context = parse_traceparent(&format!("00-{id}-00f067aa0ba902b7-01"));
            // The digits are in the name as well, which is none of its id.
            running.bench.tracer.span(Component::JsonRpc, "beef0", Some(context.unwrap())).end();
        };
        record("beef0000000000000000000000000001");
        record("beef1000000000000000000000000001");
        // Two calls of one trace are one.
        record("beef1000000000000000000000000001");
        record("abcdbeef000000000000000000000001");
        (0..12).for_each(|n| record(&format!("cafe{n:028x}")));
        let mut get = async |id: &str| {
            let got = traces.get_trace(GetTraceRequest { id: id.into() }).await;
            got.map(|got| got.into_inner().trace.unwrap())
                .map_err(|status| (status.code(), status.message().to_owned()))
        };
        for (beginning, id) in [
            ("beef0", "beef0000000000000000000000000001"),
            ("beef1", "beef1000000000000000000000000001"),
            ("abcd", "abcdbeef000000000000000000000001"),
            ("beef100000000000000000000000000", "beef1000000000000000000000000001"),
            ("beef1000000000000000000000000001", "beef1000000000000000000000000001"),
        ] {
            assert_eq!(get(beginning).await.unwrap().id, id, "{beginning}");
        }
        assert_eq!(get("beef1").await.unwrap().spans.len(), 2);
        let ambiguous = "2 traces have ids that begin with beef: beef0000000000000000000000000001, \
                         beef1000000000000000000000000001";
        assert_eq!(get("beef").await.unwrap_err(), (Code::InvalidArgument, ambiguous.to_owned()));
        let (code, many) = get("cafe").await.unwrap_err();
        assert_eq!((code, many.matches("cafe0").count()), (Code::InvalidArgument, 10));
        assert!(many.ends_with(" and 2 more"), "{many}");
        let none = "no trace is held whose id begins with fade";
        assert_eq!(get("fade").await.unwrap_err(), (Code::NotFound, none.to_owned()));
        assert_eq!(get("bee").await.unwrap_err().0, Code::InvalidArgument);
    };
    Bench::new().run(test).await;
}

#[tokio::test]
async fn traces_are_listed_found_and_cleared() {
    let test = async |running: &Running<'_>| {
        let mut traces = running.client().await.traces;
        ["a", "b", "c"].into_iter().for_each(|tool| running.bench.call(tool));
        let mut list = async |filter| {
            let listed = traces.list_traces(ListTracesRequest { filter }).await;
            listed.map(|listed| listed.into_inner().traces)
        };
        let tools = |traces: &[Trace]| traces.iter().map(|t| t.tool.clone().unwrap()).collect::<Vec<_>>();
        let all = list(None).await.unwrap();
        assert_eq!(tools(&all), ["c", "b", "a"]);
        let newest = list(Some(TraceFilter { limit: Some(1), ..TraceFilter::default() })).await.unwrap();
        assert_eq!(newest, all[..1]);
        let b = list(Some(TraceFilter { tool: Some("b".into()), ..TraceFilter::default() })).await.unwrap();
        assert_eq!(tools(&b), ["b"]);
        let failed = TraceFilter { status: TraceStatus::Error.into(), ..TraceFilter::default() };
        assert_eq!(list(Some(failed)).await.unwrap(), []);
        let wrong = TraceFilter { limit: Some(1_000_000), ..TraceFilter::default() };
        let wrong = list(Some(wrong)).await.unwrap_err();
        assert_eq!(
            (wrong.code(), wrong.message()),
            (Code::InvalidArgument, "limit: expected 1 to 10000; found 1000000")
        );

        let one = traces.get_trace(GetTraceRequest { id: all[0].id.clone() }).await.unwrap().into_inner().trace;
        assert_eq!(one.unwrap(), all[0]);
        let none = traces.get_trace(GetTraceRequest { id: "1".repeat(32) }).await.unwrap_err();
        assert_eq!(none.code(), Code::NotFound);
        let no_id = traces.get_trace(GetTraceRequest { id: "x".into() }).await.unwrap_err();
        assert_eq!(no_id.code(), Code::InvalidArgument);

        traces.clear_traces(ClearTracesRequest {}).await.unwrap();
        assert_eq!(traces.list_traces(ListTracesRequest::default()).await.unwrap().into_inner().traces, []);
    };
    Bench::new().run(test).await;
}

#[tokio::test]
async fn traces_are_watched_from_now_on_or_from_before() {
    let test = async |running: &Running<'_>| {
        let bench = running.bench;
        let mut traces = running.client().await.traces;
        ["old", "b", "c"].into_iter().for_each(|tool| bench.call(tool));
        let tools = |response: WatchTracesResponse| {
            assert_eq!(response.missed, 0);
            response.traces.into_iter().map(|trace| trace.tool.unwrap()).collect::<Vec<_>>()
        };
        let mut from_now = traces.watch_traces(WatchTracesRequest::default()).await.unwrap().into_inner();
        let two = TraceFilter { limit: Some(2), ..TraceFilter::default() };
        let mut from_before = traces.watch_traces(WatchTracesRequest { filter: Some(two) }).await.unwrap().into_inner();
        let only_d = TraceFilter { tool: Some("d".into()), ..TraceFilter::default() };
        let mut only_d = traces.watch_traces(WatchTracesRequest { filter: Some(only_d) }).await.unwrap().into_inner();
        assert_eq!(tools(next(&mut from_before).await), ["b", "c"]);
        bench.call("e");
        bench.call("d");
        assert_eq!(tools(next(&mut from_now).await), ["e", "d"]);
        assert_eq!(tools(next(&mut from_before).await), ["e", "d"]);
        assert_eq!(tools(next(&mut only_d).await), ["d"]);
    };
    Bench::new().run(test).await;
}

#[tokio::test]
async fn traces_that_were_gone_too_soon_are_counted() {
    let test = async |running: &Running<'_>| {
        let nothing = TraceFilter { tool: Some("none of this name".into()), ..TraceFilter::default() };
        let mut traces = running.client().await.traces;
        let mut watched = traces.watch_traces(WatchTracesRequest { filter: Some(nothing) }).await.unwrap().into_inner();
        // The store holds 64.
        (0..200).for_each(|n| running.bench.call(&format!("tool{}", n % 10)));
        let response = next(&mut watched).await;
        assert_eq!(response.traces, []);
        assert!((100..200).contains(&response.missed), "{}", response.missed);
    };
    Bench::new().run(test).await;
}

#[tokio::test]
async fn snapshots_come_at_once_and_with_every_tick() {
    let test = async |running: &Running<'_>| {
        running.bench.call("echo");
        let mut dashboard = running.client().await.dashboard;
        let mut watched = dashboard.watch_snapshots(WatchSnapshotsRequest {}).await.unwrap().into_inner();
        let mut last = 0;
        let dashboard_now = loop {
            let snapshot = next(&mut watched).await.dashboard.unwrap();
            assert!(snapshot.timestamp >= last);
            last = snapshot.timestamp;
            if snapshot.metrics.is_some() && snapshot.memory_usage.is_some() {
                break snapshot;
            }
        };
        assert_eq!(dashboard_now.traces[0].tool.as_deref(), Some("echo"));
        assert_eq!(dashboard_now.metrics.unwrap().metrics["tool_call_duration_ms"].series[0].value, 5.0);
        assert!(dashboard_now.system_health.unwrap().components.contains_key("observability"));
        let snapshot = dashboard.get_snapshot(GetSnapshotRequest {}).await.unwrap().into_inner().dashboard.unwrap();
        assert!(snapshot.timestamp >= last);
    };
    Bench::new().run(test).await;
}

#[tokio::test]
async fn health_is_told_in_detail() {
    let test = async |running: &Running<'_>| {
        let mut health = running.client().await.health;
        let mut watched = health.watch_health(WatchHealthRequest {}).await.unwrap().into_inner();
        running.bench.reporter.set("mine", State::Critical, "broken", SystemTime::now());
        let told = health.get_health(GetHealthRequest {}).await.unwrap().into_inner().health.unwrap();
        assert_eq!(told.components["mine"].status(), HealthState::Critical);
        loop {
            let health = next(&mut watched).await.health.unwrap();
            if let Some(mine) = health.components.get("mine") {
                assert_eq!((mine.status(), mine.message.as_str()), (HealthState::Critical, "broken"));
                break;
            }
        }
    };
    Bench::new().run(test).await;
}

#[tokio::test]
async fn components_are_instrumented_and_taken_out() {
    let test = async |running: &Running<'_>| {
        let mut client = running.client().await.instrumentation;
        let functions = vec!["read".to_owned()];
        client.instrument(InstrumentRequest { component: "files".into(), functions: functions.clone() }).await.unwrap();
        let mut status = async || {
            let status = client.get_status(InstrumentationServiceGetStatusRequest {}).await.unwrap().into_inner();
            status.status.unwrap()
        };
        let found = status().await;
        assert_eq!((found.instrumented_components, found.auto_instrument), (7, true));
        let files = InstrumentedComponent { component: "files".into(), functions, calls: 0, errors: 0 };
        assert!(found.components.contains(&files), "{found:?}");
        let component = || "files".to_owned();
        let empty = client.instrument(InstrumentRequest { component: component(), functions: vec![] }).await;
        assert_eq!(empty.unwrap_err().code(), Code::InvalidArgument);
        client.uninstrument(UninstrumentRequest { component: component() }).await.unwrap();
        let unknown = client.uninstrument(UninstrumentRequest { component: component() }).await.unwrap_err();
        assert_eq!((unknown.code(), unknown.message()), (Code::NotFound, "\"files\" is not instrumented"));
    };
    Bench::new().run(test).await;
}

#[tokio::test]
async fn what_is_switched_off_says_so() {
    let bench = Bench::with(|sources| {
        sources.metrics = None;
        sources.tracer = None;
        sources.instrumentation = None;
    });
    let test = async |running: &Running<'_>| {
        let mut client = running.client().await;
        let off = |what: &str, status: Status| {
            assert_eq!(status.code(), Code::FailedPrecondition);
            assert_eq!(status.message(), format!("{what} switched off"));
        };
        let records = stream::iter([record("message_queue_depth", 1.0, &[])]);
        off("metrics are", client.metrics.record_metrics(records).await.unwrap_err());
        off("metrics are", client.metrics.get_summary(GetSummaryRequest {}).await.unwrap_err());
        off("metrics are", client.metrics.list_metrics(ListMetricsRequest {}).await.unwrap_err());
        off("metrics are", client.metrics.get_metric(GetMetricRequest::default()).await.unwrap_err());
        off("metrics are", client.metrics.reset_metrics(ResetMetricsRequest {}).await.unwrap_err());
        off("tracing is", client.traces.list_traces(ListTracesRequest::default()).await.unwrap_err());
        off("tracing is", client.traces.get_trace(GetTraceRequest { id: "1".repeat(32) }).await.unwrap_err());
        off("tracing is", client.traces.watch_traces(WatchTracesRequest::default()).await.unwrap_err());
        off("tracing is", client.traces.clear_traces(ClearTracesRequest {}).await.unwrap_err());
        let status = client.instrumentation.get_status(InstrumentationServiceGetStatusRequest {}).await;
        off("instrumentation is", status.unwrap_err());
        let asked = InstrumentRequest { component: "a".into(), functions: vec!["b".into()] };
        off("instrumentation is", client.instrumentation.instrument(asked).await.unwrap_err());
        let asked = UninstrumentRequest { component: "a".into() };
        off("instrumentation is", client.instrumentation.uninstrument(asked).await.unwrap_err());
        off("chaos is", client.chaos.plan(PlanRequest::default()).await.unwrap_err());
        off("chaos is", client.chaos.get_status(ChaosServiceGetStatusRequest {}).await.unwrap_err());
        off("chaos is", client.chaos.emergency_stop(EmergencyStopRequest {}).await.unwrap_err());
        off("chaos is", client.chaos.watch_events(WatchEventsRequest::default()).await.unwrap_err());
        let snapshot = client.dashboard.get_snapshot(GetSnapshotRequest {}).await.unwrap().into_inner();
        assert!(snapshot.dashboard.unwrap().metrics.is_none());
    };
    bench.run(test).await;
}

fn asked(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

#[tokio::test]
async fn probes_learn_how_each_service_is() {
    let test = async |running: &Running<'_>| {
        let reporter = &running.bench.reporter;
        let client = running.client().await.grpc_health;
        let check = async |service| {
            let checked = client.clone().check(asked(service)).await;
            checked.map(|checked| checked.into_inner().status())
        };
        let watch = async |service| client.clone().watch(asked(service)).await.unwrap().into_inner();
        let mut mine = watch("mcpscope.mine").await;
        let mut whole = watch("").await;
        assert_eq!(next(&mut mine).await.status(), ServingStatus::ServiceUnknown);
        assert_eq!(next(&mut whole).await.status(), ServingStatus::Serving);
        assert_eq!(check("").await.unwrap(), ServingStatus::Serving);
        for absent in ["mcpscope.mine", "mcpscope.chaos", "mcpscope.", "mine", "grpc.health.v1.Health"] {
            let status = check(absent).await.unwrap_err();
            assert_eq!(status.code(), Code::NotFound, "{absent}");
            assert!(status.message().contains("mcpscope.observability"), "{status}");
        }
        for known in ["mcpscope.registry", "mcpscope.sessions", "mcpscope.transports", "mcpscope.observability"] {
            // Not before the hub's first look.
            let mut watched = watch(known).await;
            while next(&mut watched).await.status() != ServingStatus::Serving {}
            assert_eq!(check(known).await.unwrap(), ServingStatus::Serving, "{known}");
        }
        let set = |state| reporter.set("mine", state, "", SystemTime::now());
        set(State::Warning);
        assert_eq!(next(&mut mine).await.status(), ServingStatus::Serving);
        set(State::Critical);
        assert_eq!(next(&mut mine).await.status(), ServingStatus::NotServing);
        assert_eq!(check("mcpscope.mine").await.unwrap(), ServingStatus::NotServing);
        set(State::Healthy);
        assert_eq!(next(&mut mine).await.status(), ServingStatus::Serving);
        reporter.remove("mine");
        assert_eq!(next(&mut mine).await.status(), ServingStatus::ServiceUnknown);

        // The whole follows readiness, without which no component is worse.
        let condition = reporter.require("upstream");
        assert_eq!(next(&mut whole).await.status(), ServingStatus::NotServing);
        condition.met();
        assert_eq!(next(&mut whole).await.status(), ServingStatus::Serving);
        // And it follows the components, most of which must be healthy.
        for n in 0..5 {
            reporter.set(&format!("broken{n}"), State::Warning, "", SystemTime::now());
        }
        assert_eq!(next(&mut whole).await.status(), ServingStatus::NotServing);
        assert_eq!(check("").await.unwrap(), ServingStatus::NotServing);
    };
    Bench::new().run(test).await;
}

#[tokio::test]
async fn both_reflections_know_every_service() {
    let test = async |running: &Running<'_>| {
        let channel = Endpoint::from_shared(format!("http://{}", running.addr)).unwrap().connect().await.unwrap();
        let expected = [
            "grpc.health.v1.Health",
            "mcpscope.v1.ChaosService",
            "mcpscope.v1.DashboardService",
            "mcpscope.v1.HealthService",
            "mcpscope.v1.InstrumentationService",
            "mcpscope.v1.MetricsService",
            "mcpscope.v1.TraceService",
        ];
        macro_rules! listed {
            ($version:ident) => {{
                use pb::$version::server_reflection_client::ServerReflectionClient;
                use pb::$version::server_reflection_request::MessageRequest;
                use pb::$version::server_reflection_response::MessageResponse;
                let message_request = Some(MessageRequest::ListServices(String::new()));
                let request = pb::$version::ServerReflectionRequest { host: String::new(), message_request };
                let mut client = ServerReflectionClient::new(channel.clone());
                let mut answers = client.server_reflection_info(stream::iter([request])).await.unwrap().into_inner();
                let Some(MessageResponse::ListServicesResponse(list)) = next(&mut answers).await.message_response
                else {
                    panic!("no list");
                };
                let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
                names.retain(|name| !name.starts_with("grpc.reflection."));
                names.sort();
                assert_eq!(names, expected);
            }};
        }
        listed!(v1);
        listed!(v1alpha);
    };
    Bench::new().run(test).await;
}

#[tokio::test]
async fn what_does_not_exist_is_unimplemented() {
    let test = async |running: &Running<'_>| {
        let channel = Endpoint::from_shared(format!("http://{}", running.addr)).unwrap().connect().await.unwrap();
        for path in ["/mcpscope.v1.HealthService/Nope", "/mcpscope.v1.NopeService/GetHealth", "/nope"] {
            let mut client = mcpscope_grpc::tonic::client::Grpc::new(channel.clone());
            client.ready().await.unwrap();
            let codec = tonic_prost::ProstCodec::<GetHealthRequest, GetHealthResponse>::default();
            let answer = client.unary(Request::new(GetHealthRequest {}), path.parse().unwrap(), codec).await;
            assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "{path}");
        }
    };
    Bench::new().run(test).await;
}

#[tokio::test]
async fn streams_end_when_the_hub_does() {
    let mut bench = Bench::new();
    let hub = bench.hub.take().unwrap();
    let (listener, addr) = support::listen().await;
    let server = mcpscope_grpc::serve(
        vec![listener],
        bench.reader.clone(),
        bench.admin.clone(),
        bench.config.clone(),
        std::future::pending(),
    );
    let test = async {
        let mut client = mcpscope_grpc::Client::connect(&addr.to_string()).await.unwrap();
        let mut health = client.grpc_health.watch(asked("")).await.unwrap().into_inner();
        let mut detail = client.health.watch_health(WatchHealthRequest {}).await.unwrap().into_inner();
        let mut traces = client.traces.watch_traces(WatchTracesRequest::default()).await.unwrap().into_inner();
        let mut snapshots = client.dashboard.watch_snapshots(WatchSnapshotsRequest {}).await.unwrap().into_inner();
        next(&mut health).await;
        next(&mut detail).await;
        next(&mut snapshots).await;
        drop(hub);
        let ended = |status: Status| {
            assert_eq!((status.code(), status.message()), (Code::Unavailable, "the instance is stopping"));
        };
        ended(health.message().await.unwrap_err());
        ended(detail.message().await.unwrap_err());
        ended(traces.message().await.unwrap_err());
        ended(snapshots.message().await.unwrap_err());
        client.metrics.get_summary(GetSummaryRequest {}).await.unwrap();
    };
    tokio::select! {
        ended = server => panic!("the server ended: {ended:?}"),
        () = test => {}
    }
}

#[tokio::test]
async fn the_health_service_stands_alone() {
    use mcpscope_grpc::tonic::transport::server::{Server, TcpIncoming};
    let bench = Bench::with(|sources| sources.instrumentation = Some(Instrumentation::new(false)));
    let (listener, addr) = support::listen().await;
    let routes = mcpscope_grpc::health_service(bench.reader.clone(), std::future::pending());
    let server = Server::builder().add_routes(routes).serve_with_incoming(TcpIncoming::from(listener));
    let test = async {
        let mut client = mcpscope_grpc::Client::connect(&addr.to_string()).await.unwrap();
        let status = client.grpc_health.check(asked("")).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving);
        let nothing_else = client.metrics.get_summary(GetSummaryRequest {}).await.unwrap_err();
        assert_eq!(nothing_else.code(), Code::Unimplemented);
    };
    tokio::select! {
        ended = server => panic!("the server ended: {ended:?}"),
        () = test => {}
    }
}
