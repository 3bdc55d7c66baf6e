//! What is started by itself, on made-up time.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use common::{MS, SECOND, World, request};
use mcpscope_chaos::{Cause, Happened, Mode, Plan, Refusal, Scenario, ScenarioPlan, StartedBy, Status};
use mcpscope_core::Ratio;

/// A plan whose scheduler starts this whenever it may.
fn plan(scenario: Scenario, pairs: &[&str]) -> Plan {
    let parameters = request(scenario.as_str(), pairs).parameters;
    let scenario = ScenarioPlan { probability: Ratio::ONE, parameters, ..ScenarioPlan::new(scenario) };
    Plan { mode: Mode::Scheduled, scenarios: vec![ScenarioPlan { enabled: true, ..scenario }], ..Plan::default() }
}

/// When experiments were started and refused, in ms since the beginning.
fn times(world: &World) -> (Vec<u64>, Vec<u64>) {
    let events = world.controller.events_since(0, world.now);
    let times = |is: fn(&Happened) -> bool| {
        let of = events.iter().filter(|event| is(&event.what));
        of.map(|event| event.time - 1_800_000_000_000).collect()
    };
    let started = times(|what| matches!(what, Happened::Changed { status: Status::Running, .. }));
    (started, times(|what| matches!(what, Happened::Refused { by: StartedBy::Scheduler, .. })))
}

#[test]
fn the_first_tick_is_after_5_seconds_and_then_every_30() {
    let mut world = World::new(plan(Scenario::LatencyInjection, &[]));
    world.pass(5 * SECOND - MS);
    assert_eq!(times(&world), (vec![], vec![]));
    world.pass(100 * SECOND);
    assert_eq!(times(&world), (vec![5_000, 35_000, 65_000, 95_000], vec![]));
    let test = &world.controller.history(1, world.now)[0];
    assert_eq!(test.details.report.as_ref().unwrap().started_by, StartedBy::Scheduler);
}

#[test]
fn nothing_is_started_by_itself_unless_the_mode_says_so() {
    for mode in [Mode::Manual, Mode::Off] {
        let mut world = World::new(Plan { mode, ..plan(Scenario::Hang, &[]) });
        world.pass(300 * SECOND);
        assert_eq!(times(&world), (vec![], vec![]));
        let started = world.controller.start(&request("hang", &[]), world.now);
        match mode {
            Mode::Manual => assert!(started.is_ok()),
            _ => assert!(matches!(started, Err(Refusal::Off { .. }))),
        }
    }
}

#[test]
fn there_are_never_more_than_three_at_once() {
    let plan = Plan { scheduler_interval: 10 * SECOND, ..plan(Scenario::Hang, &["duration=60s"]) };
    let mut world = World::new(plan);
    for second in 0..300 {
        world.pass(SECOND);
        assert!(world.controller.status(world.now).active_tests <= 3, "second {second}");
    }
    let (started, refused) = times(&world);
    // Each lasts its minute; without calls, recovery is waited for another 5 + 3 s.
    assert_eq!(started[..4], [5_000, 15_000, 25_000, 75_000]);
    assert_eq!(refused[..4], [35_000, 45_000, 55_000, 65_000]);
    let refusal = world.controller.start(&request("hang", &[]), world.now).unwrap_err().to_string();
    assert_eq!(refusal, "3 experiments are running: expected fewer than 3 (max_concurrent_tests)");
}

#[test]
fn nothing_is_started_in_an_emergency_stop() {
    let mut world = World::new(plan(Scenario::LatencyInjection, &["duration=1s"]));
    world.pass(40 * SECOND);
    world.controller.emergency_stop(Cause::Alert("memory_critical".into()), world.now);
    world.pass(300 * SECOND);
    assert_eq!(times(&world).0, [5_000, 35_000]);
    world.controller.rearm(world.now).unwrap();
    world.pass(30 * SECOND);
    assert_eq!(times(&world).0, [5_000, 35_000, 365_000], "the ticks went on");
    assert!(times(&world).1.is_empty(), "what was not asked for was not refused");
}

#[test]
fn the_scheduler_touches_at_most_a_share_of_the_connections() {
    let mut world = World::new(plan(Scenario::LostRequest, &["duration=20s"]));
    let mut clients: Vec<_> = (0..10).map(|_| world.client()).collect();
    world.pass(6 * SECOND);
    let hit = clients.iter_mut().filter_map(|client| client.request("echo", world.now).pop()).count();
    assert_eq!(hit, 3);
    world.controller.emergency_stop(Cause::Person, world.now);
    world.controller.rearm(world.now).unwrap();
    world.start("lost_request", &[]);
    let hit = clients.iter_mut().filter_map(|client| client.request("echo", world.now).pop()).count();
    assert_eq!(hit, 10, "a person states how much");
}

#[test]
fn an_experiment_that_cannot_be_is_refused_and_written_down() {
    let mut world = World::new(plan(Scenario::ProcessCrash, &[]));
    world.pass(40 * SECOND);
    assert_eq!(times(&world), (vec![], vec![5_000, 35_000]));
}

#[test]
fn nothing_is_started_where_too_much_is_unwell() {
    let world = World::new(Plan::default());
    world.watched.0.lock().unwrap().healthy = Some(0.69);
    let refusal = world.controller.start(&request("hang", &[]), world.now).unwrap_err().to_string();
    assert_eq!(refusal, "69 % of the components are healthy: expected at least 70 % (blast_radius.min_healthy)");
    world.watched.0.lock().unwrap().healthy = Some(0.7);
    world.start("hang", &[]);
}

#[test]
fn five_failures_in_a_row_end_what_the_scheduler_does() {
    let mut world = World::new(plan(Scenario::LostRequest, &["duration=1s", "recovery_time=1s"]));
    for _ in 0..400 {
        // Well until something is done to it, and not well again for 10 s.
        let unwell = world.controller.status(world.now).active_tests > 0;
        world.watched.set(10, if unwell { 5 } else { 0 });
        world.pass(SECOND / 2);
    }
    assert_eq!(times(&world).0, [5_000, 35_000, 65_000, 95_000, 125_000]);
    let status = world.controller.status(world.now);
    assert_eq!(status.stopped_by.as_deref(), Some("too many failures in a row"));
}

#[test]
fn a_plan_tells_what_would_happen_and_does_nothing() {
    use mcpscope_chaos::{MessageKind, Traffic};
    use mcpscope_core::{Direction, Protocol, Transport};
    let world = World::new(Plan::default());
    let _clients: Vec<_> = (0..4).map(|_| world.client()).collect();
    let traffic = |tool: &str, per_second| Traffic {
        server: "demo".into(),
        transport: Transport::Http,
        direction: Direction::ToServer,
        protocol: Some(Protocol::V2025_11_25),
        kind: MessageKind::Request,
        method: Some("tools/call".into()),
        tool: Some(tool.into()),
        per_second,
    };
    // What differs in nothing that is shown is one row.
    let older = Traffic { protocol: Some(Protocol::V2025_06_18), ..traffic("echo", 4.0) };
    let traffic = [traffic("echo", 6.0), traffic("add", 30.0), older];
    let plan = |pairs: &[&str]| world.controller.plan(&request("tool_error", pairs), &traffic, world.now).unwrap();
    let outlook = plan(&["duration=5s", "probability=0.5"]);
    assert_eq!((outlook.targets, outlook.connections, outlook.duration), (vec!["demo".to_owned()], 4, 5000));
    assert_eq!(outlook.expected_hits, 100.0);
    let hits: Vec<_> = outlook.hits.iter().map(|part| (part.tool.as_deref().unwrap(), part.hits)).collect();
    assert_eq!(hits, [("add", 75.0), ("echo", 25.0)]);
    assert!(outlook.hits.iter().all(|part| (&*part.direction, &*part.kind) == ("to_server", "request")));
    assert_eq!(plan(&["duration=5s", "tool=echo"]).expected_hits, 50.0);
    assert_eq!(plan(&["duration=5s", "max_hits=7"]).expected_hits, 7.0);
    assert_eq!(plan(&["duration=5s", "every=4", "after=40"]).expected_hits, 40.0);
    assert_eq!(plan(&["duration=5s", "nth=3"]).expected_hits, 1.0);
    assert_eq!(plan(&["duration=5s", "control=0.5"]).expected_hits, 100.0);
    assert!(!world.injector.is_active() && world.controller.status(world.now).active_tests == 0);
    let refusal = world.controller.plan(&request("tool_error", &["server=other"]), &traffic, world.now).unwrap_err();
    assert!(refusal.to_string().contains("there is demo (http)"), "{refusal}");
    world.endpoint.saw(mcpscope_core::Era::Legacy);
    let refusal = world.controller.plan(&request("header_mismatch", &[]), &traffic, world.now).unwrap_err();
    let expected = "header_mismatch means nothing over http, as demo speaks it: expected HTTP since 2026-07-28";
    assert_eq!(refusal.to_string(), expected);
}
