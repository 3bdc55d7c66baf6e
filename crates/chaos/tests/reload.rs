//! Another plan for an engine that is running, on made-up time.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use common::{MS, SECOND, World, request};
use mcpscope_chaos::{Cause, Happened, Mode, Plan, Rearm, Scenario, ScenarioPlan, Status};
use mcpscope_core::{FaultId, Ratio, Transport};

/// What the newest change of plans was.
fn replaced(world: &World) -> Option<(Mode, Option<String>, Vec<u64>)> {
    let events = world.controller.events_since(0, world.now);
    events.into_iter().rev().find_map(|event| match event.what {
        Happened::PlanReplaced { mode, off, ended } => Some((mode, off, ended)),
        _ => None,
    })
}

fn aborted(world: &World, id: FaultId) -> Option<String> {
    let test = world.test(id);
    (test.status == Status::Aborted).then_some(test.details.error).flatten()
}

#[test]
fn what_is_running_keeps_the_terms_it_was_started_with() {
    let mut world = World::new(Plan::default());
    world.watched.set(10, 0);
    let mut client = world.client();
    let id = world.start("lost_request", &["duration=30s"]);
    let scenario = ScenarioPlan {
        parameters: request("lost_request", &["tool=other"]).parameters,
        ..ScenarioPlan::new(Scenario::LostRequest)
    };
    let plan = Plan {
        test_duration: 5 * SECOND,
        max_concurrent_tests: 1,
        steady_state: mcpscope_chaos::Check::parse_all("p95 < 1").unwrap(),
        scenarios: vec![scenario],
        ..Plan::default()
    };
    world.controller.replace_plan(plan, world.now).unwrap();
    assert_eq!(replaced(&world), Some((Mode::Manual, None, vec![])));
    let refusal = world.controller.start(&request("hang", &[]), world.now).unwrap_err().to_string();
    assert_eq!(refusal, "1 experiments are running: expected fewer than 1 (max_concurrent_tests)");
    world.pass(30 * SECOND - MS);
    assert_eq!(client.request("echo", world.now).len(), 1, "not of the tool that the new plan names");
    world.pass(10 * SECOND);
    assert_eq!(world.status(id), Status::Completed);
    let id = world.start("lost_request", &[]);
    assert_eq!(world.test(id).end_time - world.test(id).start_time, 5000);
    assert!(client.request("echo", world.now).is_empty() && client.request("other", world.now).len() == 1);
}

#[test]
fn the_mode_off_ends_all_and_says_why() {
    let mut world = World::new(Plan::default());
    world.watched.set(10, 0);
    let mut client = world.client();
    let over = world.start("hang", &["duration=1s", "recovery_time=9s"]);
    world.pass(SECOND + MS);
    let running = world.start("lost_request", &["duration=30s"]);
    assert_eq!((world.status(over), world.status(running)), (Status::Recovering, Status::Running));
    let off = Plan {
        mode: Mode::Off,
        off_reason: Some("chaos_engine.enabled: false in chaos.yaml".into()),
        ..Plan::default()
    };
    world.controller.replace_plan(off, world.now).unwrap();
    assert!(!world.injector.is_active() && client.request("echo", world.now).is_empty());
    let reason = "the plan has changed: chaos is off (chaos_engine.enabled: false in chaos.yaml)";
    assert_eq!(aborted(&world, running).as_deref(), Some(reason));
    assert_eq!(world.status(over), Status::Recovering, "its fault is over: nothing has to be ended");
    let why = "chaos_engine.enabled: false in chaos.yaml".to_owned();
    assert_eq!(replaced(&world), Some((Mode::Off, Some(why.clone()), vec![running.0])));
    let status = world.controller.status(world.now);
    assert_eq!((status.mode, status.off, status.emergency_stop), (Mode::Off, Some(why), false));
    let refusal = world.controller.start(&request("hang", &[]), world.now).unwrap_err().to_string();
    let expected = "chaos is off (chaos_engine.enabled: false in chaos.yaml): expected mode manual or scheduled";
    assert_eq!(refusal, expected);
    world.pass(10 * SECOND);
    assert_eq!(world.status(over), Status::Completed);
    world.controller.replace_plan(Plan::default(), world.now).unwrap();
    assert_eq!(world.controller.status(world.now).off, None);
    world.start("hang", &[]);
}

#[test]
fn a_bad_plan_changes_nothing() {
    let world = World::new(Plan::default());
    let id = world.start("hang", &[]);
    let bad = Plan { mode: Mode::Off, max_concurrent_tests: 0, ..Plan::default() };
    let error = world.controller.replace_plan(bad, world.now).unwrap_err().to_string();
    assert_eq!(error, "max_concurrent_tests is 0: expected 1 to 100");
    assert_eq!((world.status(id), replaced(&world)), (Status::Running, None));
    assert_eq!(world.controller.status(world.now).mode, Mode::Manual);
}

#[test]
fn what_is_protected_from_now_on_is_touched_no_more() {
    let world = World::new(Plan::default());
    let payments = world.injector.endpoint("payments", Transport::Http, false);
    let auth = world.injector.endpoint("auth", Transport::Http, true);
    let mut clients = [&world.endpoint, &payments, &auth].map(common::Client::new);
    let all = world.start("lost_request", &[]);
    let one = world.start("lost_request", &["server=demo"]);
    let mut hits = |now| clients.each_mut().map(|client| client.request("echo", now).first().map(|hit| hit.fault));
    assert_eq!(hits(world.now), [Some(all), Some(all), None]);
    let mut plan = Plan::default();
    plan.blast_radius.protected = vec!["pay*".into()];
    world.controller.replace_plan(plan, world.now).unwrap();
    assert_eq!(hits(world.now), [Some(one), None, None], "the one that cannot touch it goes on");
    assert_eq!(aborted(&world, all).as_deref(), Some("the plan has changed: payments is protected"));
    let refusal = world.controller.start(&request("hang", &["server=payments"]), world.now).unwrap_err().to_string();
    assert!(refusal.contains("all servers that match are critical or protected"), "{refusal}");
    world.controller.stop(one.0, world.now).unwrap();
    world.controller.replace_plan(Plan::default(), world.now).unwrap();
    let again = world.start("lost_request", &[]);
    assert_eq!(hits(world.now), [Some(again), Some(again), None], "what is critical stays so");
}

#[test]
fn the_rules_of_emergency_stops_are_the_new_ones() {
    let mut world = World::new(Plan::default());
    let without = Plan { automatic_stop: false, ..Plan::default() };
    world.controller.replace_plan(without.clone(), world.now).unwrap();
    assert!(!world.controller.emergency_stop(Cause::Alert("a".into()), world.now));
    world.controller.replace_plan(Plan::default(), world.now).unwrap();
    assert!(world.controller.emergency_stop(Cause::Alert("a".into()), world.now));
    // A stop that holds is not taken back by a plan, but may arm itself under it.
    world.controller.replace_plan(without.clone(), world.now).unwrap();
    world.pass(301 * SECOND);
    assert!(world.controller.status(world.now).emergency_stop);
    world.controller.replace_plan(Plan { rearm: Rearm::Auto, ..without }, world.now).unwrap();
    world.pass(MS);
    assert!(!world.controller.status(world.now).emergency_stop);
}

// === the scheduler ===

/// Ticks every 30 s, of which about every second one starts something that lasts 1 s.
fn scheduled() -> Plan {
    let scenario = |scenario: Scenario, probability| ScenarioPlan {
        enabled: true,
        probability: Ratio::new(probability).unwrap(),
        parameters: request(scenario.as_str(), &["duration=1s"]).parameters,
        ..ScenarioPlan::new(scenario)
    };
    let scenarios = vec![scenario(Scenario::LostRequest, 0.5), scenario(Scenario::Hang, 0.5)];
    Plan { mode: Mode::Scheduled, scenarios, ..Plan::default() }
}

/// When what was started, in seconds since the beginning.
fn started(world: &World) -> Vec<(u64, String)> {
    let events = world.controller.events_since(0, world.now);
    let started = events.into_iter().filter_map(|event| match event.what {
        Happened::Changed { status: Status::Running, scenario, .. } => {
            Some((event.time / 1000 - 1_800_000_000, scenario))
        }
        _ => None,
    });
    started.collect()
}

#[test]
fn draws_and_ticks_of_the_scheduler_go_on_as_they_would_have() {
    let (mut world, mut other) = (World::new(scheduled()), World::new(scheduled()));
    world.pass(1000 * SECOND);
    for at in 0..100 {
        let mut plan = scheduled();
        plan.max_concurrent_tests = 1 + at;
        // Where a scenario is in the plan, and what else there is that cannot be chosen, does not matter.
        plan.scenarios.insert(0, ScenarioPlan { enabled: false, ..ScenarioPlan::new(Scenario::PacketLoss) });
        other.controller.replace_plan(plan, other.now).unwrap();
        other.pass(10 * SECOND);
    }
    let started = [&world, &other].map(started);
    assert!(started[0].len() > 8 && started[0].len() < 25, "{started:?}");
    assert_eq!(started[0], started[1]);
}

#[test]
fn another_interval_counts_from_the_last_tick() {
    let mut plan = scheduled();
    plan.scenarios.iter_mut().for_each(|scenario| scenario.probability = Ratio::ONE);
    let mut world = World::new(plan.clone());
    let mut pass = |seconds: u32, plan: &Plan| {
        world.pass(SECOND * seconds);
        world.controller.replace_plan(plan.clone(), world.now).unwrap();
    };
    let (later, often) = (Plan { scheduler_delay: 7 * SECOND, ..plan.clone() }, 10 * SECOND);
    let often = Plan { scheduler_interval: often, ..later.clone() };
    let manual = Plan { mode: Mode::Manual, ..often.clone() };
    pass(1, &later); // Before the first tick.
    pass(39, &often); // After the ticks of 7 and 37: then 47, 57.
    pass(24, &manual); // After the tick of 57.
    pass(36, &often); // From 100 on.
    pass(30, &later); // After the ticks of 107, 117, 127: then 157.
    pass(28, &later);
    let times: Vec<_> = started(&world).into_iter().map(|(at, _)| at).collect();
    assert_eq!(times, [7, 37, 47, 57, 107, 117, 127, 157]);
}

#[test]
fn a_tick_that_would_be_over_by_now_is_due_at_once() {
    let mut plan = scheduled();
    plan.scenarios.iter_mut().for_each(|scenario| scenario.probability = Ratio::ONE);
    let mut world = World::new(Plan { scheduler_interval: 100 * SECOND, ..plan.clone() });
    world.pass(60 * SECOND);
    world.controller.replace_plan(plan, world.now).unwrap();
    world.pass(31 * SECOND);
    let times: Vec<_> = started(&world).into_iter().map(|(at, _)| at).collect();
    assert_eq!(times, [5, 60, 90], "the one that would have been at 35 is not made up for");
}
