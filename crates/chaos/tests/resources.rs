//! What a target tells of how it goes, and what becomes of the experiment: on made-up time, with a made-up target.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{SECOND, World, request};
use mcpscope_chaos::{
    Achieved, ChaosTarget, Ended, Order, Parameters, Plan, ProcessId, Progress, Scenario, Status, TargetError, Unit,
    Victim,
};
use mcpscope_core::{Component, FaultId};

/// A target that tells what a test wants.
#[derive(Debug, Default)]
struct Fake {
    progress: Mutex<Progress>,
    /// In whose control group it was asked to do it.
    victims: Mutex<Vec<Victim>>,
    /// Why it could not.
    refusal: Option<TargetError>,
}

impl ChaosTarget for Fake {
    fn name(&self) -> &str {
        "fake"
    }

    fn is_critical(&self) -> bool {
        false
    }

    fn carries(&self, scenario: Scenario) -> bool {
        matches!(scenario, Scenario::MemoryPressure | Scenario::CpuOverload)
    }

    fn check(&self, _: Scenario, _: &Parameters, victims: &[Victim]) -> Result<(), TargetError> {
        *self.victims.lock().unwrap() = victims.to_vec();
        self.refusal.clone().map_or(Ok(()), Err)
    }

    fn apply(&self, order: &Order<'_>) -> Result<(), TargetError> {
        assert_eq!(*self.victims.lock().unwrap(), order.victims, "what was checked is what is done");
        Ok(())
    }

    fn undo(&self, _: FaultId) -> Result<(), TargetError> {
        Ok(())
    }

    fn left_over(&self, _: FaultId) -> Option<String> {
        None
    }

    fn progress(&self, _: FaultId) -> Progress {
        self.progress.lock().unwrap().clone()
    }
}

fn world() -> (World, Arc<Fake>) {
    let (world, fake) = (World::new(Plan::default()), Arc::new(Fake::default()));
    world.controller.register(fake.clone(), world.now);
    (world, fake)
}

#[track_caller]
fn check_end(ended: Ended, status: Status, why: &str) {
    let (mut world, fake) = world();
    let id = world.start("memory_pressure", &[]);
    world.pass(SECOND);
    assert_eq!(world.status(id), Status::Running);
    fake.progress.lock().unwrap().ended = Some(ended);
    world.pass(SECOND);
    let test = world.test(id);
    assert_eq!((test.status, test.details.error.as_deref()), (status, Some(why)));
}

#[test]
fn what_lets_go_aborts_the_experiment_and_what_breaks_fails_it() {
    check_end(
        Ended::LetGo("the machine has little left".into()),
        Status::Aborted,
        "fake let go: the machine has little left",
    );
    check_end(Ended::Failed("it was killed".into()), Status::Failed, "fake: it was killed");
}

#[test]
fn what_was_achieved_is_reported_beside_what_was_requested() {
    for (scenario, unit, requested, share) in [
        ("memory_pressure", Unit::Bytes, 200.0, (1.0, Some(0.5))),
        ("cpu_overload", Unit::Share, 0.8, (0.8, Some(0.4))),
    ] {
        let (mut world, fake) = world();
        let id = world.start(scenario, &["duration=2s"]);
        let achieved = Achieved { requested, achieved: requested / 2.0, unit, cgroup: Some("/its".into()) };
        fake.progress.lock().unwrap().achieved = Some(achieved.clone());
        world.pass(60 * SECOND);
        let report = world.controller.report(id.0, world.now).unwrap();
        let injection = &report.injection;
        assert_eq!(report.to_html().contains("<dd>100 B<"), unit == Unit::Bytes, "{}", report.to_html());
        assert!(report.to_html().contains("In the control group <bdi>/its</bdi>"), "{}", report.to_html());
        assert_eq!(injection.resource.as_ref(), Some(&achieved));
        assert_eq!((injection.requested_intensity, injection.achieved_intensity), share);
    }
}

// === in the control group of a server ===

/// A server, as what carries `process_crash`.
#[derive(Debug)]
struct Server {
    name: &'static str,
    pid: Option<u32>,
    is_critical: AtomicBool,
    is_there: bool,
}

impl Server {
    fn new(name: &'static str, pid: Option<u32>) -> Self {
        Self { name, pid, is_critical: AtomicBool::new(false), is_there: true }
    }
}

impl ChaosTarget for Server {
    fn name(&self) -> &str {
        self.name
    }

    fn components(&self) -> &[Component] {
        &Component::ALL
    }

    fn is_critical(&self) -> bool {
        self.is_critical.load(Ordering::Relaxed)
    }

    fn is_there(&self) -> bool {
        self.is_there
    }

    fn process(&self) -> Option<ProcessId> {
        self.pid.map(|pid| ProcessId { pid, started: 7 })
    }

    fn carries(&self, scenario: Scenario) -> bool {
        scenario == Scenario::ProcessCrash
    }

    fn apply(&self, _: &Order<'_>) -> Result<(), TargetError> {
        Err(TargetError("nothing is to be done to it".into()))
    }

    fn undo(&self, _: FaultId) -> Result<(), TargetError> {
        Ok(())
    }

    fn left_over(&self, _: FaultId) -> Option<String> {
        None
    }
}

fn world_of(servers: Vec<Server>) -> (World, Arc<Fake>, Vec<Arc<Server>>) {
    let (world, fake) = world();
    let servers: Vec<_> = servers.into_iter().map(Arc::new).collect();
    servers.iter().for_each(|server| world.controller.register(server.clone(), world.now));
    (world, fake, servers)
}

fn victim(name: &str, pid: u32) -> Victim {
    Victim { name: name.into(), process: ProcessId { pid, started: 7 } }
}

#[test]
fn it_is_done_in_the_control_group_of_the_server_that_is_named() {
    let servers = || vec![Server::new("a", Some(20)), Server::new("b", Some(30)), Server::new("in-process", None)];
    for (scenario, pairs, expected) in [
        ("memory_pressure", &[][..], vec![]),
        ("memory_pressure", &["cgroup=own"], vec![]),
        ("memory_pressure", &["cgroup=target", "target_processes=b"], vec![victim("b", 30)]),
        ("cpu_overload", &["cgroup=target", "target_processes=b"], vec![victim("b", 30)]),
        ("cpu_overload", &["cgroup=target", "target_processes=tools"], vec![victim("a", 20), victim("b", 30)]),
        ("cpu_overload", &["cgroup=target"], vec![victim("a", 20), victim("b", 30)]),
    ] {
        let (world, fake, _servers) = world_of(servers());
        let plan = world.controller.plan(&request(scenario, pairs), &[], world.now).unwrap();
        let id = world.start(scenario, pairs);
        assert_eq!(*fake.victims.lock().unwrap(), expected, "{pairs:?}");
        let names: Vec<_> = expected.into_iter().map(|victim| victim.name).collect();
        let names = if names.is_empty() { vec!["fake".to_owned()] } else { names };
        assert_eq!((&plan.targets, &world.test(id).details.targets), (&names, &names), "{pairs:?}");
    }
}

#[test]
fn without_a_server_that_may_be_touched_nothing_is_started() {
    let critical = Server { is_critical: AtomicBool::new(true), ..Server::new("a", Some(20)) };
    let ended = Server { is_there: false, ..Server::new("a", None) };
    for (servers, pairs, why) in [
        (vec![], &[][..], "cgroup=target needs a server that mcpscope starts, and starts again when it crashes"),
        (vec![Server::new("a", Some(20))], &["target_processes=b"], "no target of that name; there is a"),
        (vec![critical], &[], "all that match are critical or protected; there is a"),
        (vec![ended], &["target_processes=a"], "none of those that match runs now; there is a"),
        (vec![Server::new("a", None)], &[], "none of those that match is a process"),
    ] {
        let (world, _, _servers) = world_of(servers);
        let request = request("memory_pressure", &[&["cgroup=target"], pairs].concat());
        let told = world.controller.start(&request, world.now).unwrap_err().to_string();
        assert!(told.starts_with("memory_pressure matches nothing: ") && told.contains(why), "{told}");
        assert_eq!(world.controller.status(world.now).total_history, 0);
    }
    // What the helper's own check has to say is a refusal, too.
    let world = World::new(Plan::default());
    let refusal = Some(TargetError("it has none of its own".into()));
    world.controller.register(Arc::new(Fake { refusal, ..Fake::default() }), world.now);
    world.controller.register(Arc::new(Server::new("a", Some(20))), world.now);
    let told = world.controller.start(&request("cpu_overload", &["cgroup=target"]), world.now).unwrap_err();
    assert_eq!(told.to_string(), "it has none of its own");
}

#[test]
fn a_server_that_must_not_be_touched_any_more_is_let_alone() {
    let start = |world: &World| world.start("memory_pressure", &["cgroup=target", "target_processes=a"]);
    let both = || vec![Server::new("a", Some(20)), Server::new("b", Some(30))];
    let reason = |world: &World, id| {
        let test = world.test(id);
        (test.status, test.details.error.unwrap_or_default())
    };
    let (mut world, _fake, servers) = world_of(both());
    let id = start(&world);
    servers[1].is_critical.store(true, Ordering::Relaxed);
    world.pass(SECOND);
    assert_eq!(world.status(id), Status::Running, "it is not about that one");
    servers[0].is_critical.store(true, Ordering::Relaxed);
    world.pass(SECOND);
    assert_eq!(reason(&world, id), (Status::Aborted, "a is marked as critical".into()));

    let (world, _fake, _servers) = world_of(both());
    let id = start(&world);
    let mut plan = Plan::default();
    plan.blast_radius.protected = vec!["a".into()];
    world.controller.replace_plan(plan, world.now).unwrap();
    assert_eq!(reason(&world, id), (Status::Aborted, "the plan has changed: a is protected".into()));
}
