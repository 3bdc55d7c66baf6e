//! The life of experiments, from their start to their report, on made-up time.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::time::Duration;

use common::{MS, SECOND, World, request};
use mcpscope_chaos::{Cause, Happened, Plan, Rearm, Refusal, StartedBy, Status};
use mcpscope_core::{Break, Effect, OnEnd, Order, Release, Transport};

#[test]
fn an_experiment_ends_by_itself_and_is_reported() {
    let mut world = World::new(Plan::default());
    world.watched.set(100, 1);
    let mut client = world.client();
    assert!(!world.injector.is_active() && client.request("echo", world.now).is_empty());
    let id = world.start("latency_injection", &["delay=300ms", "duration=8s", "tool=echo"]);
    assert!(world.injector.is_active());
    let hit = client.request("echo", world.now);
    let by = 300 * MS;
    assert_eq!(hit.len(), 1);
    assert_eq!(
        (hit[0].fault, &hit[0].effect),
        (id, &Effect::Delay { by, order: Order::Preserve, on_end: OnEnd::Deliver })
    );
    assert_eq!(hit[0].ends, world.now + 8 * SECOND);
    world.injector.acted(&hit[0]);
    assert!(client.request("add", world.now).is_empty(), "another tool");
    assert_eq!(client.response("echo", world.now).len(), 1);
    world.pass(8 * SECOND - MS);
    assert_eq!(world.status(id), Status::Running);
    assert_eq!(client.request("echo", world.now).len(), 1);
    world.pass(MS);
    assert!(client.request("echo", world.now).is_empty(), "it has expired");
    world.pass(MS);
    assert_eq!(world.status(id), Status::Recovering);
    assert!(!world.injector.is_active());
    world.pass(4 * SECOND);
    let report = world.controller.report(id.0, world.now).unwrap();
    assert_eq!((report.status, report.recovery.time, report.recovery.observed), (Status::Completed, Some(0), true));
    assert_eq!(report.end_time - report.start_time, 8000);
    let injection = report.injection;
    assert_eq!((injection.matched, injection.injected, injection.observed), (3, 3, 1));
    assert_eq!((injection.requested_intensity, injection.achieved_intensity), (1.0, Some(1.0)));
    assert_eq!((report.targets, report.leak, injection.unjournalled), (vec!["demo".to_owned()], None, 0));
    for slot in [report.before, report.during, report.after] {
        assert_eq!(slot.unwrap().error_rate, Some(0.01));
    }
    assert_eq!(world.controller.history(10, world.now).len(), 1);
}

#[test]
fn a_lease_ends_even_if_nobody_drives_the_controller() {
    let world = World::new(Plan::default());
    let mut client = world.client();
    let id = world.start("packet_loss", &["intensity=1", "duration=2s"]);
    let end = world.now + 2 * SECOND;
    assert_eq!(client.request("echo", end - MS).len(), 1);
    assert!(world.injector.is_live(id, end - MS) && !world.injector.is_live(id, end));
    assert!(client.request("echo", end).is_empty());
}

#[test]
fn what_does_not_come_back_in_time_has_failed() {
    let mut world = World::new(Plan::default());
    world.watched.set(100, 0);
    let id = world.start("rpc_error", &["duration=5s", "recovery_time=2s"]);
    world.pass(2 * SECOND);
    world.watched.set(100, 50);
    world.pass(3 * SECOND + MS);
    assert_eq!(world.status(id), Status::Recovering);
    world.pass(6 * SECOND);
    let report = world.controller.report(id.0, world.now).unwrap();
    assert_eq!((report.status, report.recovery.time), (Status::Failed, None));
    assert_eq!(report.error.as_deref(), Some("not well again within 2s"));
    assert_eq!(report.time_to_detect, Some(3000));
    let status = world.controller.status(world.now);
    assert_eq!((status.active_tests, status.recent_failures.len(), status.total_history), (0, 1, 1));
}

#[test]
fn without_calls_recovery_is_not_observed() {
    let mut world = World::new(Plan::default());
    let id = world.start("hang", &["duration=1s", "recovery_time=1s"]);
    world.pass(10 * SECOND);
    let report = world.controller.report(id.0, world.now).unwrap();
    assert_eq!((report.status, report.recovery.observed), (Status::Completed, false));
}

#[test]
fn a_system_that_is_unwell_is_left_alone() {
    let mut world = World::new(Plan::default());
    world.watched.set(100, 20);
    let id = world.start("hang", &[]);
    assert!(!world.injector.is_active());
    assert_eq!(world.status(id), Status::NotStarted);
    world.pass(SECOND);
    let error = world.test(id).details.error.unwrap();
    assert_eq!(error, "steady state: error_rate < 0.05 does not hold");
    // An experiment may say otherwise itself.
    let id = world.start("hang", &["steady_state=error_rate < 0.5"]);
    assert_eq!(world.status(id), Status::Running);
}

#[test]
fn a_guard_ends_the_fault() {
    let mut world = World::new(Plan::default());
    world.watched.set(100, 0);
    let id = world.start("hang", &["duration=30s", "abort_when=error_rate > 0.3"]);
    world.pass(3 * SECOND);
    assert_eq!(world.status(id), Status::Running);
    world.watched.set(100, 31);
    world.pass(SECOND);
    assert!(!world.injector.is_active());
    let test = world.test(id);
    assert_eq!((test.status, test.details.error.as_deref()), (Status::Aborted, Some("abort_when: error_rate > 0.3")));
}

#[test]
fn one_is_stopped_without_the_others() {
    let mut world = World::new(Plan::default());
    let mut client = world.client();
    let first = world.start("latency_injection", &["delay=1s"]);
    let second = world.start("duplicate_response", &[]);
    assert_eq!(client.response("echo", world.now).len(), 2, "one after the other");
    world.controller.stop(first.0, world.now).unwrap();
    assert_eq!(client.response("echo", world.now).iter().map(|hit| hit.fault).collect::<Vec<_>>(), [second]);
    assert_eq!(world.status(first), Status::Aborted);
    world.pass(SECOND);
    let error = world.controller.stop(first.0, world.now).unwrap_err();
    assert_eq!(error.to_string(), format!("experiment {} is not running: expected one of [{}]", first.0, second.0));
}

#[test]
fn what_one_fault_does_away_with_the_next_does_not_see() {
    let mut world = World::new(Plan::default());
    let mut client = world.client();
    let loss = world.start("lost_response", &["every=2"]);
    let copies = world.start("duplicate_response", &[]);
    let hits: Vec<_> = (0..4).map(|_| client.response("echo", world.now)[0].fault).collect();
    assert_eq!(hits, [copies, loss, copies, loss]);
    world.pass(20 * SECOND);
    let injection = |id: mcpscope_core::FaultId| world.controller.report(id.0, world.now).unwrap().injection;
    assert_eq!((injection(loss).matched, injection(loss).injected), (4, 2));
    assert_eq!((injection(copies).matched, injection(copies).injected), (2, 2));
}

#[test]
fn an_emergency_stop_ends_everything_until_it_is_armed_again() {
    let mut world = World::new(Plan::default());
    let mut client = world.client();
    let ids = [world.start("hang", &[]), world.start("packet_loss", &["intensity=1"])];
    world.controller.emergency_stop(Cause::Person, world.now);
    assert!(!world.injector.is_active() && client.response("echo", world.now).is_empty());
    assert!(ids.iter().all(|id| world.status(*id) == Status::Aborted && !world.injector.is_live(*id, world.now)));
    let refusal = world.controller.start(&request("hang", &[]), world.now).unwrap_err();
    assert_eq!(refusal.to_string(), "everything was stopped by a person: expected it to be armed again");
    let status = world.controller.status(world.now);
    assert!(status.emergency_stop && status.rearm_at.is_none());
    // What a person stopped, a person may arm again at any time.
    world.controller.rearm(world.now).unwrap();
    world.start("hang", &[]);
    world.pass(SECOND);
    let error = world.test(ids[0]).details.error;
    assert_eq!(error.as_deref(), Some("emergency stop by a person"));
    let events = world.controller.events_since(0, world.now);
    assert!(events.iter().any(|event| event.what == Happened::EmergencyStop { cause: Cause::Person }));
    assert!(events.iter().any(|event| matches!(&event.what, Happened::Refused { scenario, .. } if scenario == "hang")));
}

#[test]
fn an_alert_needs_the_cooldown() {
    for rearm in [Rearm::Manual, Rearm::Auto] {
        let mut world = World::new(Plan { rearm, ..Plan::default() });
        world.controller.emergency_stop(Cause::Alert("memory_critical".into()), world.now);
        world.pass(299 * SECOND);
        let error = world.controller.rearm(world.now).unwrap_err().to_string();
        assert_eq!(error, "stopped by alert memory_critical: it can be armed again in 1 s");
        assert!(matches!(world.controller.start(&request("hang", &[]), world.now), Err(Refusal::Stopped { .. })));
        world.pass(SECOND + MS);
        assert_eq!(world.controller.status(world.now).emergency_stop, rearm == Rearm::Manual);
        assert_eq!(world.controller.rearm(world.now).is_ok(), rearm == Rearm::Manual);
        world.start("hang", &[]);
    }
}

/// An experiment that ends as failed, or as completed.
fn experiment(world: &mut World, fails: bool) {
    world.watched.set(10, 0);
    let id = world.start("lost_request", &["duration=1s", "recovery_time=1s"]);
    world.watched.set(10, if fails { 10 } else { 0 });
    world.pass(10 * SECOND);
    assert_eq!(world.status(id), if fails { Status::Failed } else { Status::Completed });
}

#[test]
fn five_failures_in_a_row_stop_everything() {
    let mut world = World::new(Plan::default());
    for fails in [true, true, true, true, false, true, true, true, true] {
        experiment(&mut world, fails);
        assert!(!world.controller.status(world.now).emergency_stop);
    }
    experiment(&mut world, true);
    let status = world.controller.status(world.now);
    assert_eq!(status.stopped_by.as_deref(), Some("too many failures in a row"));
    assert!(world.controller.rearm(world.now).is_err());
    world.pass(300 * SECOND);
    world.controller.rearm(world.now).unwrap();
    experiment(&mut world, true);
    assert!(!world.controller.status(world.now).emergency_stop, "it counts from the beginning");
}

#[test]
fn the_automatic_stop_can_be_off_and_a_persons_never() {
    let mut world = World::new(Plan { automatic_stop: false, ..Plan::default() });
    (0..6).for_each(|_| experiment(&mut world, true));
    assert!(!world.controller.emergency_stop(Cause::Alert("high_error_rate".into()), world.now));
    assert!(!world.controller.status(world.now).emergency_stop);
    assert!(world.controller.emergency_stop(Cause::Person, world.now));
    assert!(world.controller.status(world.now).emergency_stop);
}

#[test]
fn calls_are_followed_since_the_first_of_the_experiments_that_run() {
    let mut world = World::new(Plan::default());
    let endpoint = world.endpoint.clone();
    assert_eq!(endpoint.followed_since(), None);
    let [first, second] = [5, 20].map(|seconds| world.start("hang", &[&format!("duration={seconds}s")]));
    assert_eq!(endpoint.followed_since(), Some(first));
    world.controller.stop(first.0, world.now).unwrap();
    world.pass(SECOND);
    assert_eq!(endpoint.followed_since(), Some(first), "the second has not ended");
    world.controller.stop(second.0, world.now).unwrap();
    let third = world.start("hang", &["duration=5s"]);
    assert_eq!(endpoint.followed_since(), Some(third), "though the engine was not driven between them");
    world.controller.stop(third.0, world.now).unwrap();
    world.pass(SECOND);
    assert_eq!(endpoint.followed_since(), None);
}

#[test]
fn a_partition_is_about_whole_connections() {
    let mut world = World::new(Plan::default());
    let mut clients: Vec<_> = (0..5).map(|_| world.client()).collect();
    world.start("network_partition", &["intensity=0.5", "duration=10s"]);
    let now = world.now;
    let cut: Vec<_> = clients.iter_mut().map(|client| !client.request("echo", now).is_empty()).collect();
    assert_eq!(cut.iter().filter(|cut| **cut).count(), 3, "half of five, rounded up");
    for (client, cut) in clients.iter_mut().zip(&cut) {
        let hit = client.response("echo", now);
        let held = Effect::Hold { until: Release::FaultEnd, on_end: OnEnd::Deliver };
        assert_eq!(hit.first().map(|hit| &hit.effect), cut.then_some(&held));
        assert_eq!(client.connection.standing(false, now), None, "it stays open");
    }
    let mut late: Vec<_> = (0..5).map(|_| world.client()).collect();
    let late = late.iter_mut().filter_map(|client| client.request("echo", now).pop()).count();
    assert_eq!(late + 3, 5, "half of ten");
    // Nothing passes by which recovery could be judged, so its whole time is waited for.
    world.pass(60 * SECOND);
    let report = world.controller.history(1, world.now)[0].details.report.clone().unwrap();
    assert_eq!((report.injection.connections, report.injection.connections_chosen), (10, 5));
    assert_eq!(report.injection.achieved_intensity, Some(0.5));
}

#[test]
fn a_connection_is_reset_once_also_when_it_is_idle() {
    let world = World::new(Plan::default());
    let (client, stdio) = (world.client(), world.injector.endpoint("local", Transport::Stdio, false));
    let mut stdio = common::Client::new(&stdio);
    let id = world.start("network_partition", &["mode=reset", "intensity=1"]);
    let reset = client.connection.standing(false, world.now).unwrap();
    assert_eq!((reset.fault, reset.effect), (id, Effect::Break(Break::Reset)));
    assert_eq!(client.connection.standing(false, world.now), None);
    assert!(stdio.request("echo", world.now).is_empty(), "a stdio pair cannot be reset");
    world.controller.stop(id.0, world.now).unwrap();
    world.start("network_partition", &["mode=refuse_new", "intensity=1"]);
    let new = world.client().connection;
    assert_eq!(new.standing(true, world.now).unwrap().effect, Effect::Break(Break::Refuse));
    assert_eq!(client.connection.standing(false, world.now), None);
}

#[test]
fn what_an_experiment_touches_is_asked_for_by_its_own_number() {
    let mut world = World::new(Plan::default());
    let ids = [world.start("hang", &["duration=3s"]), world.start("tool_error", &["duration=3s"])];
    world.watched.1.lock().unwrap().clear();
    world.pass(10 * SECOND);
    let asked: Vec<_> = world.watched.1.lock().unwrap().iter().map(|window| window.touched_by).collect();
    assert!(ids.iter().all(|id| asked.contains(&Some(*id))), "{asked:?}");
    assert!(asked.iter().all(|by| by.is_some_and(|by| ids.contains(&by))), "{asked:?}");
}

#[test]
fn a_control_share_is_left_untouched() {
    let world = World::new(Plan::default());
    let mut clients: Vec<_> = (0..10).map(|_| world.client()).collect();
    world.start("lost_request", &["control=0.3"]);
    let hit = clients.iter_mut().filter_map(|client| client.request("echo", world.now).pop()).count();
    assert_eq!(hit, 7);
}

#[test]
fn one_session_can_be_disturbed_alone() {
    use mcpscope_chaos::MessageKind;
    use mcpscope_core::Direction;
    let world = World::new(Plan::default());
    let refusal = world.controller.start(&request("lost_request", &["session=abc*"]), world.now).unwrap_err();
    assert!(refusal.to_string().contains("no session that matches is open"), "{refusal}");
    let _open = world.endpoint.connect(Some("abc-0"));
    world.start("lost_request", &["session=abc*"]);
    let hit = |session| {
        let mut lane = world.endpoint.connect(session).lane(Direction::ToServer);
        !lane.decide(&common::message(MessageKind::Request, "echo"), world.now).is_empty()
    };
    assert_eq!([Some("abc-1"), Some("xyz"), None].map(hit), [true, false, false]);
}

#[test]
fn any_session_may_be_one_that_is_still_to_come() {
    use mcpscope_chaos::MessageKind;
    use mcpscope_core::Direction;
    let world = World::new(Plan::default());
    world.start("lost_request", &["session=*"]);
    let hit = |session| {
        let mut lane = world.endpoint.connect(session).lane(Direction::ToServer);
        !lane.decide(&common::message(MessageKind::Request, "echo"), world.now).is_empty()
    };
    assert_eq!([Some("abc"), None].map(hit), [true, false]);
}

#[test]
fn only_sessions_that_were_there_are_stale() {
    use mcpscope_chaos::MessageKind;
    use mcpscope_core::Direction;
    let world = World::new(Plan::default());
    let refusal = world.controller.start(&request("stale_session", &[]), world.now).unwrap_err();
    assert!(refusal.to_string().contains("no session that matches is open"), "{refusal}");
    let (old, nameless) = (world.endpoint.connect(Some("old")), world.endpoint.connect(None));
    let id = world.start("stale_session", &[]);
    let new = world.endpoint.connect(Some("new"));
    let hit = |connection: &mcpscope_chaos::Connection| {
        let mut lane = connection.lane(Direction::ToServer);
        MessageKind::ALL.map(|kind| !lane.decide(&common::message(kind, "echo"), world.now).is_empty())
    };
    assert_eq!([&old, &nameless, &new].map(hit), [[true; 3], [false; 3], [false; 3]]);
    world.controller.stop(id.0, world.now).unwrap();
    assert_eq!(hit(&old), [false; 3]);
}

#[test]
fn a_fault_of_one_era_is_refused_where_only_the_other_is_spoken() {
    use mcpscope_core::Era;
    let world = World::new(Plan::default());
    // Until it is known what is spoken, it may be.
    let id = world.start("input_required_loop", &[]);
    world.controller.stop(id.0, world.now).unwrap();
    world.endpoint.saw(Era::Legacy);
    let refusal = world.controller.start(&request("input_required_loop", &[]), world.now).unwrap_err().to_string();
    assert!(refusal.starts_with("input_required_loop means nothing over http, as demo speaks it"), "{refusal}");
    world.endpoint.saw(Era::Modern);
    world.start("input_required_loop", &[]);
}

#[test]
fn critical_and_protected_servers_are_never_touched() {
    let mut plan = Plan::default();
    plan.blast_radius.protected = vec!["pay*".into()];
    let world = World::new(plan);
    let endpoints = [("payments", false), ("auth", true)]
        .map(|(name, critical)| world.injector.endpoint(name, Transport::Http, critical));
    for (endpoint, name) in endpoints.iter().zip(["server=payments", "server=auth"]) {
        let refusal = world.controller.start(&request("hang", &[name]), world.now).unwrap_err().to_string();
        assert!(refusal.contains("all servers that match are critical or protected"), "{refusal}");
        let id = world.start("hang", &["duration=10s"]);
        assert_eq!(world.test(id).details.targets, ["demo"]);
        assert!(common::Client::new(endpoint).response("echo", world.now).is_empty());
        world.controller.stop(id.0, world.now).unwrap();
    }
}

#[test]
fn a_server_that_becomes_critical_is_let_alone_at_once() {
    let world = World::new(Plan::default());
    let mut client = common::Client::new(&world.endpoint);
    let id = world.start("packet_loss", &["duration=10s", "intensity=1"]);
    assert_eq!(client.response("echo", world.now).len(), 1);
    // Before anybody has looked.
    world.endpoint.set_critical(true);
    assert!(client.response("echo", world.now).is_empty());
    world.endpoint.set_critical(false);
    assert_eq!(client.response("echo", world.now).len(), 1);
    world.endpoint.set_critical(true);
    let refusal = world.controller.start(&request("hang", &[]), world.now).unwrap_err().to_string();
    assert!(refusal.contains("all servers that match are critical or protected"), "{refusal}");
    assert_eq!(world.status(id), Status::Aborted);
}

#[test]
fn an_experiment_on_a_server_that_becomes_critical_ends() {
    let mut world = World::new(Plan::default());
    let other = world.injector.endpoint("other", Transport::Http, false);
    let [id, elsewhere] = ["server=demo", "server=other"]
        .map(|server| world.start("packet_loss", &["duration=10s", "intensity=1", server]));
    world.endpoint.set_critical(true);
    // What begins after that has nothing to do with it.
    let after = world.start("hang", &["duration=10s"]);
    world.pass(MS);
    let test = world.test(id);
    assert_eq!((test.status, test.details.error.as_deref()), (Status::Aborted, Some("demo is marked as critical")));
    assert_eq!([elsewhere, after].map(|id| world.status(id)), [Status::Running; 2]);
    world.endpoint.set_critical(false);
    let mut client = common::Client::new(&world.endpoint);
    world.controller.stop(after.0, world.now).unwrap();
    assert!(client.response("echo", world.now).is_empty(), "it is over for good");
    assert_eq!(common::Client::new(&other).response("echo", world.now).len(), 1);
}

#[test]
fn what_a_start_finds_to_be_over_is_over_also_if_the_start_is_refused() {
    let mut world = World::new(Plan::default());
    let other = world.injector.endpoint("other", Transport::Http, false);
    for server in ["server=demo", "server=other"] {
        world.start("packet_loss", &["duration=10s", "intensity=1", server]);
    }
    world.endpoint.set_critical(true);
    world.controller.start(&request("hang", &["server=none"]), world.now).unwrap_err();
    world.endpoint.set_critical(false);
    assert!(common::Client::new(&world.endpoint).response("echo", world.now).is_empty());
    assert_eq!(common::Client::new(&other).response("echo", world.now).len(), 1);
    // Nor is it left in the table, which would be a leak.
    world.pass(5 * SECOND);
    assert!(!world.controller.status(world.now).emergency_stop);
}

#[test]
fn who_started_it_is_told() {
    let world = World::new(Plan::default());
    for by in [StartedBy::Person, StartedBy::Demo] {
        let id = world.controller.start_as(by, &request("hang", &[]), world.now).unwrap();
        world.controller.stop(id.0, world.now).unwrap();
        assert_eq!(world.controller.report(id.0, world.now).unwrap().started_by, by);
    }
}

#[test]
fn what_matches_nothing_is_told_where_it_would_mean_something() {
    let world = World::new(Plan::default());
    let refusal = |scenario: &str, pairs: &[&str]| {
        world.controller.start(&request(scenario, pairs), world.now).unwrap_err().to_string()
    };
    let nothing = "matches nothing: no server of that name and transport; there is demo (http)";
    for (scenario, pairs, place) in [
        ("stdout_noise", &[][..], "; as asked for, it means something over stdio"),
        ("rpc_error", &["direction=to_client"], "; as asked for, it means something over stdio"),
        ("hang", &["transport=stdio"], "; as asked for, it means something over stdio"),
        ("http_status", &["server=none"], "; as asked for, it means something over HTTP"),
        ("hang", &["server=none"], ""),
    ] {
        assert_eq!(refusal(scenario, pairs), format!("{scenario} {nothing}{place}"));
    }
}

#[test]
fn a_stop_is_seen_by_whoever_watches() {
    #[derive(Debug, Default)]
    struct Watcher(std::sync::atomic::AtomicUsize);
    impl mcpscope_chaos::Watch for Watcher {
        fn changed(&self) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let world = World::new(Plan::default());
    let watcher = std::sync::Arc::new(Watcher::default());
    let watch: std::sync::Arc<dyn mcpscope_chaos::Watch> = watcher.clone();
    world.injector.watch(&watch);
    let seen = || watcher.0.load(std::sync::atomic::Ordering::Relaxed);
    world.start("hang", &[]);
    let started = seen();
    assert!(started > 0);
    world.controller.emergency_stop(Cause::Person, world.now);
    assert!(seen() > started);
}

#[test]
fn the_longest_experiment_is_a_minute_unless_the_plan_says_otherwise() {
    let world = World::new(Plan { test_duration: Duration::from_secs(5), ..Plan::default() });
    let refusal = world.controller.start(&request("hang", &["duration=6s"]), world.now).unwrap_err().to_string();
    assert!(refusal.contains("expected at most 5s, which is the plan's test_duration"), "{refusal}");
    let id = world.start("network_partition", &[]);
    let test = world.test(id);
    assert_eq!(test.end_time - test.start_time, 5000, "its own default is 30 s");
}
