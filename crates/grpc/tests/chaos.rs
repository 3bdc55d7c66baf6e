//! `ChaosService`, through the crate's own client.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail")]

mod support;

use std::time::Duration;

use mcpscope_core::{Direction, Era, Protocol, Transport};
use mcpscope_grpc::authorized;
use mcpscope_grpc::proto::chaos_event::What;
use mcpscope_grpc::proto::chaos_service_client::ChaosServiceClient;
use mcpscope_grpc::proto::*;
use mcpscope_grpc::tonic::transport::Channel;
use mcpscope_grpc::tonic::{Code, Request, Status, Streaming};
use mcpscope_hub::chaos::{Connection, Injector, Message, MessageKind};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::time::Instant;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;

use self::support::{Bench, Running};

type Chaos = ChaosServiceClient<Channel>;

async fn next<T>(stream: &mut Streaming<T>) -> T {
    let message = tokio::time::timeout(Duration::from_secs(20), stream.message());
    message.await.expect("nothing came").unwrap().expect("the stream ended")
}

fn parameters<const N: usize>(given: [(&str, Kind); N]) -> Option<Struct> {
    let fields = given.map(|(name, kind)| (name.to_owned(), Value { kind: Some(kind) }));
    Some(Struct { fields: fields.into() })
}

fn text(text: &str) -> Kind {
    Kind::StringValue(text.to_owned())
}

fn of<const N: usize>(scenario: &str, given: [(&str, Kind); N]) -> StartExperimentRequest {
    StartExperimentRequest { scenario: scenario.into(), parameters: parameters(given) }
}

/// A minute of every tool call failing.
fn tool_error() -> StartExperimentRequest {
    of("tool_error", [("duration", text("60s"))])
}

async fn start(chaos: &mut Chaos, request: StartExperimentRequest) -> Result<ChaosTest, Status> {
    let started = chaos.start_experiment(authorized(request, "token").unwrap()).await?;
    Ok(started.into_inner().test.unwrap())
}

async fn status(chaos: &mut Chaos) -> ChaosStatus {
    chaos.get_status(ChaosServiceGetStatusRequest {}).await.unwrap().into_inner().status.unwrap()
}

async fn report(chaos: &mut Chaos, id: u64) -> Result<ChaosReport, Status> {
    Ok(chaos.get_report(GetReportRequest { id, html: false }).await?.into_inner().report.unwrap())
}

async fn watch(chaos: &mut Chaos, since: Option<u64>) -> Result<Streaming<WatchEventsResponse>, Status> {
    Ok(chaos.watch_events(WatchEventsRequest { since }).await?.into_inner())
}

/// Ends an experiment, and waits until it has.
async fn stop(chaos: &mut Chaos, id: u64) {
    let mut events = watch(chaos, Some(0)).await.unwrap();
    chaos.stop_experiment(StopExperimentRequest { id }).await.unwrap();
    loop {
        if let What::Changed(changed) = next(&mut events).await.event.unwrap().what.unwrap()
            && changed.id == id
            && changed.status() == ChaosTestStatus::Aborted
        {
            return;
        }
    }
}

/// A server with one client, as the data path sees them.
fn server(injector: &Injector) -> Connection {
    let server = injector.endpoint("weather", Transport::Http, false);
    server.saw(Era::Legacy);
    server.connect(None)
}

/// Calls of a tool; how many of them were hit.
fn calls(connection: &Connection, number: usize) -> usize {
    let mut lane = connection.lane(Direction::ToServer);
    let call = Message {
        kind: MessageKind::Request,
        method: Some("tools/call"),
        tool: Some("forecast"),
        protocol: Some(Protocol::V2025_11_25),
    };
    (0..number).map(|_| lane.decide(&call, Instant::now().into_std()).len()).sum()
}

#[tokio::test]
async fn an_experiment_is_planned_started_seen_stopped_and_reported() {
    let (bench, injector) = Bench::with_chaos();
    let test = async |running: &Running<'_>| {
        let connection = server(&injector);
        let client = running.client().await;
        let mut chaos = client.chaos;
        let StartExperimentRequest { scenario, parameters } = tool_error();
        let planned = chaos.plan(PlanRequest { scenario, parameters }).await.unwrap().into_inner().outlook.unwrap();
        let expected = ("tool_error", 60_000, vec!["weather".to_owned()], 1);
        assert_eq!((&*planned.scenario, planned.duration, planned.targets, planned.connections), expected);
        assert_eq!(status(&mut chaos).await.active_tests, 0, "a plan starts nothing");

        let started = start(&mut chaos, tool_error()).await.unwrap();
        assert_eq!((started.name.as_str(), started.status()), ("tool_error", ChaosTestStatus::Running));
        assert_eq!(started.end_time - started.start_time, 60_000);
        let details = started.details.clone().unwrap();
        assert_eq!((details.targets, details.parameters), (vec!["weather".to_owned()], tool_error().parameters));
        assert_eq!(calls(&connection, 3), 3);
        let now = status(&mut chaos).await;
        assert_eq!((now.active_tests, now.mode()), (1, ChaosMode::Manual));
        assert_eq!(now.active_tests_details[0].details.as_ref().unwrap().injected, 3);
        assert!(now.available_scenarios.contains(&"tool_error".to_owned()));
        let mut dashboard = client.dashboard;
        let mut snapshots = dashboard.watch_snapshots(WatchSnapshotsRequest {}).await.unwrap().into_inner();
        while next(&mut snapshots).await.dashboard.unwrap().chaos_status.is_none_or(|chaos| chaos.active_tests != 1) {}

        let early = report(&mut chaos, started.id).await.unwrap_err();
        let expected = format!("experiment {} has not ended: expected one that has, for a report", started.id);
        assert_eq!((early.code(), early.message()), (Code::FailedPrecondition, expected.as_str()));
        stop(&mut chaos, started.id).await;
        let report = report(&mut chaos, started.id).await.unwrap();
        assert_eq!((report.status(), report.started_by()), (ChaosTestStatus::Aborted, ChaosStartedBy::Person));
        assert_eq!(report.injection.as_ref().unwrap().injected, 3);
        let page = chaos.get_report(GetReportRequest { id: started.id, html: true }).await.unwrap().into_inner();
        assert_eq!((page.report, page.held), (Some(report), None));
        assert!(page.verdict.starts_with("Not known: it was ended early"), "{}", page.verdict);
        assert!(page.html.unwrap().starts_with("<!doctype html>"));
        assert_eq!(calls(&connection, 3), 0);
        let history = chaos.list_history(ListHistoryRequest { limit: Some(1) }).await.unwrap().into_inner().tests;
        assert_eq!(history.iter().map(|test| test.id).collect::<Vec<_>>(), [started.id]);
        let again = chaos.stop_experiment(StopExperimentRequest { id: started.id }).await.unwrap_err();
        assert_eq!(again.code(), Code::NotFound);
    };
    bench.run(test).await;
}

#[tokio::test]
async fn to_start_something_needs_the_token_and_to_stop_it_does_not() {
    let (bench, injector) = Bench::with_chaos();
    let test = async |running: &Running<'_>| {
        let _connection = server(&injector);
        let mut chaos = running.client().await.chaos;
        let replay = ReplayRequest { id: 1, start: true, ..ReplayRequest::default() };
        let refused = [
            chaos.start_experiment(tool_error()).await.map(drop),
            chaos.start_experiment(authorized(tool_error(), "tokem").unwrap()).await.map(drop),
            chaos.rearm(RearmRequest {}).await.map(drop),
            chaos.replay(replay).await.map(drop),
        ];
        for refused in refused {
            let status = refused.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated);
            assert!(status.message().contains("`authorization: Bearer TOKEN`"), "{status}");
            assert!(status.message().contains("--token-file"), "{status}");
        }
        let started = start(&mut chaos, tool_error()).await.unwrap();
        stop(&mut chaos, started.id).await;
        chaos.emergency_stop(EmergencyStopRequest {}).await.unwrap();
        chaos.rearm(authorized(RearmRequest {}, "token").unwrap()).await.unwrap();
        assert!(authorized((), "a\nb").is_err());
    };
    bench.run(test).await;
}

#[tokio::test]
async fn by_default_nobody_starts_anything() {
    let (mut bench, injector) = Bench::with_chaos();
    bench.config.chaos_token = mcpscope_grpc::Config::default().chaos_token;
    let test = async |running: &Running<'_>| {
        let _connection = server(&injector);
        let mut chaos = running.client().await.chaos;
        for token in ["token", ""] {
            let request = authorized(tool_error(), token).unwrap();
            assert_eq!(chaos.start_experiment(request).await.unwrap_err().code(), Code::Unauthenticated);
        }
    };
    bench.run(test).await;
}

#[tokio::test]
async fn what_is_refused_has_its_code_and_says_what_is_allowed() {
    let (bench, injector) = Bench::with_chaos();
    let test = async |running: &Running<'_>| {
        let mut chaos = running.client().await.chaos;
        let nothing = start(&mut chaos, tool_error()).await.unwrap_err();
        assert_eq!(nothing.code(), Code::FailedPrecondition);
        assert!(nothing.message().contains("tool_error matches nothing"), "{nothing}");
        let _connection = server(&injector);
        for (request, code, why) in [
            (of("tool_eror", []), Code::InvalidArgument, "there is no scenario `tool_eror`: expected one of latency"),
            (of("tool_error", [("evry", text("2"))]), Code::InvalidArgument, "tool_error has no parameter `evry`"),
            (of("tool_error", [("every", Kind::NumberValue(0.5))]), Code::InvalidArgument, "every is 0.5: expected"),
            (of("tool_error", [("every", Kind::NumberValue(f64::NAN))]), Code::InvalidArgument, "every is \"NaN\""),
            (of("tool_error", [("every", Kind::BoolValue(true))]), Code::InvalidArgument, "every is true: expected"),
            (of("tool_error", [("every", Kind::NullValue(0))]), Code::InvalidArgument, "every is null: expected"),
            (
                of("tool_error", [("every", Kind::ListValue(Default::default()))]),
                Code::InvalidArgument,
                "every is a list: expected",
            ),
            (
                of("tool_error", [("every", Kind::StructValue(Default::default()))]),
                Code::InvalidArgument,
                "every is an object: expected",
            ),
            (
                of("tool_error", [("duration", Kind::NumberValue(60_001.0))]),
                Code::InvalidArgument,
                "at most 1m, which is the plan's test_duration",
            ),
            (of("tool_error", [("server", text("other"))]), Code::FailedPrecondition, "there is weather"),
            (
                of("stdout_noise", [("transport", text("http"))]),
                Code::InvalidArgument,
                "stdout_noise means nothing over http: expected stdio",
            ),
            (of("memory_pressure", []), Code::FailedPrecondition, "memory_pressure is not available here"),
        ] {
            let StartExperimentRequest { scenario, parameters } = request.clone();
            let planned = chaos.plan(PlanRequest { scenario, parameters }).await.unwrap_err();
            let started = start(&mut chaos, request).await.unwrap_err();
            for status in [planned, started] {
                assert_eq!(status.code(), code, "{status}");
                assert!(status.message().contains(why), "{status}");
            }
        }
        for _ in 0..3 {
            start(&mut chaos, tool_error()).await.unwrap();
        }
        let many = start(&mut chaos, tool_error()).await.unwrap_err();
        assert_eq!(many.code(), Code::ResourceExhausted);
        assert!(many.message().contains("max_concurrent_tests"), "{many}");

        let unknown = report(&mut chaos, 77).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);
        assert!(unknown.message().starts_with("there is no experiment 77: the newest are "), "{unknown}");
        for limit in [0, 1001] {
            let wrong = chaos.list_history(ListHistoryRequest { limit: Some(limit) }).await.unwrap_err();
            assert_eq!(wrong.code(), Code::InvalidArgument);
            assert_eq!(wrong.message(), format!("limit: expected 1 to 1000; found {limit}"));
        }
    };
    bench.run(test).await;
}

#[tokio::test]
async fn after_an_emergency_stop_nothing_starts_until_it_is_armed_again() {
    let (mut bench, injector) = Bench::with_chaos();
    // Whatever else there is no room for, this there is.
    (bench.config.max_streams, bench.config.max_held_bytes) = (0, 0);
    let test = async |running: &Running<'_>| {
        let connection = server(&injector);
        let mut chaos = running.client().await.chaos;
        assert_eq!(watch(&mut chaos, None).await.unwrap_err().code(), Code::ResourceExhausted);
        let armed = chaos.rearm(authorized(RearmRequest {}, "token").unwrap()).await.unwrap_err();
        assert_eq!(
            (armed.code(), armed.message()),
            (Code::FailedPrecondition, "nothing was stopped: there is nothing to arm again")
        );
        start(&mut chaos, tool_error()).await.unwrap();
        assert_eq!(calls(&connection, 1), 1);
        chaos.emergency_stop(EmergencyStopRequest {}).await.unwrap();
        assert_eq!(calls(&connection, 1), 0, "from the answer on there is no fault");
        let stopped = start(&mut chaos, tool_error()).await.unwrap_err();
        assert_eq!(stopped.code(), Code::FailedPrecondition);
        assert!(stopped.message().starts_with("everything was stopped by a person"), "{stopped}");
        let now = status(&mut chaos).await;
        assert_eq!((now.emergency_stop, now.stopped_by.as_deref()), (true, Some("a person")));
        chaos.rearm(authorized(RearmRequest {}, "token").unwrap()).await.unwrap();
        start(&mut chaos, tool_error()).await.unwrap();
        assert!(!status(&mut chaos).await.emergency_stop);
    };
    bench.run(test).await;
}

#[tokio::test]
async fn events_come_from_where_they_are_asked_for_without_gap_or_repetition() {
    let (bench, injector) = Bench::with_chaos();
    let test = async |running: &Running<'_>| {
        let _connection = server(&injector);
        let mut chaos = running.client().await.chaos;
        let (mut all, mut new) = (watch(&mut chaos, Some(0)).await.unwrap(), watch(&mut chaos, None).await.unwrap());
        start(&mut chaos, of("tool_eror", [])).await.unwrap_err();
        let id = start(&mut chaos, tool_error()).await.unwrap().id;
        // Refused, planned, running.
        let mut seen = Vec::new();
        for expected in 1..=3 {
            let (one, two) = (next(&mut all).await, next(&mut new).await);
            assert_eq!(one, two);
            assert_eq!((one.event.as_ref().unwrap().sequence, one.missed), (expected, 0));
            seen.push(one.event.unwrap().what.unwrap());
        }
        let What::Refused(refused) = &seen[0] else { panic!("{seen:?}") };
        assert_eq!((refused.scenario.as_str(), refused.by()), ("tool_eror", ChaosStartedBy::Person));
        let What::Changed(changed) = &seen[2] else { panic!("{seen:?}") };
        assert_eq!((changed.id, changed.status()), (id, ChaosTestStatus::Running));

        // More than the hub keeps for those who listen: what they miss there is still here.
        for _ in 0..600 {
            start(&mut chaos, of("tool_eror", [])).await.unwrap_err();
        }
        chaos.emergency_stop(EmergencyStopRequest {}).await.unwrap();
        let mut late = watch(&mut chaos, Some(2)).await.unwrap();
        for stream in [&mut all, &mut new, &mut late] {
            let mut last = None;
            loop {
                let told = next(stream).await;
                let event = told.event.unwrap();
                assert_eq!(told.missed, 0);
                assert!(last.is_none_or(|last| event.sequence == last + 1), "{last:?} {event:?}");
                last = Some(event.sequence);
                if let What::EmergencyStop(stop) = event.what.unwrap() {
                    assert_eq!(stop.cause.unwrap().kind(), ChaosCauseKind::Person);
                    break;
                }
            }
        }
        // Of what is not kept any more, how much it was is told.
        for _ in 0..1000 {
            start(&mut chaos, of("tool_eror", [])).await.unwrap_err();
        }
        let told = next(&mut watch(&mut chaos, Some(10)).await.unwrap()).await;
        assert!(told.missed > 100, "{told:?}");
        assert_eq!(told.event.unwrap().sequence, 10 + told.missed + 1);

        let future = watch(&mut chaos, Some(1 << 40)).await.unwrap_err();
        assert_eq!(future.code(), Code::InvalidArgument);
        assert!(future.message().starts_with("since: expected at most "), "{future}");
    };
    bench.run(test).await;
}

#[tokio::test]
async fn a_journal_is_decided_again_compared_and_done_again() {
    let (bench, injector) = Bench::with_chaos();
    let test = async |running: &Running<'_>| {
        let connection = server(&injector);
        let chaos = running.client().await.chaos;
        let half = |seed: f64| {
            of(
                "tool_error",
                [("duration", text("60s")), ("probability", text("0.5")), ("seed", Kind::NumberValue(seed))],
            )
        };
        let replay = async |request: Request<ReplayRequest>| {
            chaos.clone().replay(request).await.map(|replayed| replayed.into_inner())
        };
        let asked = |id| ReplayRequest { id, ..ReplayRequest::default() };
        let run = async |request: StartExperimentRequest, number: usize| {
            let mut chaos = chaos.clone();
            let id = start(&mut chaos, request).await.unwrap().id;
            let hits = calls(&connection, number) as u64;
            stop(&mut chaos, id).await;
            (id, hits)
        };
        let (first, hits) = run(half(5.0), 100).await;
        assert!((20..80).contains(&hits), "{hits}");
        let verified = replay(Request::new(asked(first))).await.unwrap();
        assert_eq!(verified, ReplayResponse { hits, ..ReplayResponse::default() });

        // The same again, with as much traffic, with less, and with another seed.
        let again = replay(authorized(ReplayRequest { start: true, ..asked(first) }, "token").unwrap()).await.unwrap();
        let started = again.started.unwrap();
        let details = started.details.clone().unwrap();
        assert_eq!(
            (started.name.as_str(), started.status(), details.seed),
            ("tool_error", ChaosTestStatus::Running, 5)
        );
        let running = replay(Request::new(asked(started.id))).await.unwrap_err();
        assert_eq!(running.code(), Code::FailedPrecondition);
        assert!(running.message().contains("has not ended"), "{running}");
        assert_eq!(calls(&connection, 100) as u64, hits);
        stop(&mut chaos.clone(), started.id).await;
        let (less, fewer) = run(half(5.0), 50).await;
        let (other, others) = run(half(6.0), 100).await;
        let compared = async |other_id| {
            let request = ReplayRequest { other_id: Some(other_id), ..asked(first) };
            replay(Request::new(request)).await.unwrap()
        };
        assert_eq!(compared(started.id).await, ReplayResponse { hits, other_hits: Some(hits), ..Default::default() });
        let cut = compared(less).await;
        let divergence = cut.divergence.unwrap();
        assert_eq!((cut.other_hits, divergence.at, divergence.found), (Some(fewer), fewer, None));
        assert!(divergence.text.ends_with("found nothing more"), "{}", divergence.text);
        let drawn = compared(other).await;
        assert_eq!(drawn.other_hits, Some(others));
        assert_eq!(drawn.divergence.unwrap().expected.unwrap().effect, "tool_error");

        assert_eq!(replay(Request::new(asked(77))).await.unwrap_err().code(), Code::NotFound);
        let both = ReplayRequest { other_id: Some(less), start: true, ..asked(first) };
        let both = replay(authorized(both, "token").unwrap()).await.unwrap_err();
        assert_eq!(both.code(), Code::InvalidArgument);
    };
    bench.run(test).await;
}

#[tokio::test]
async fn a_probe_learns_how_the_engine_is() {
    let (bench, _injector) = Bench::with_chaos();
    let test = async |running: &Running<'_>| {
        let asked = HealthCheckRequest { service: "mcpscope.chaos".into() };
        let mut watched = running.client().await.grpc_health.watch(asked).await.unwrap().into_inner();
        // Not before the engine was first driven.
        while next(&mut watched).await.status() != ServingStatus::Serving {}
    };
    bench.run(test).await;
}
