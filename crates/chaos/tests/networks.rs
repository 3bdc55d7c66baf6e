//! What is heard while a network is tried and made, which takes long: with a made-up target that takes as long as a test wants.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::collections::BTreeSet;
use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use common::{SECOND, World, request};
use mcpscope_chaos::{
    Cause, ChaosTarget, Ended, MessageKind, Mode, Network, Order, Parameters, Plan, Progress, Refusal, Scenario,
    ScenarioPlan, Status, TargetError, Traffic,
};
use mcpscope_core::{Direction, FaultId, Ratio, Transport};

/// Longer than anything takes that does not wait for the target.
const LONG: Duration = Duration::from_secs(20);
const NETEM: &[&str] = &["backend=netem", "intensity=0.1"];

/// A target whose every step waits until the test lets it go on.
#[derive(Debug, Default)]
struct Slow {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The steps in which it is or has been, and those that may end.
    begun: BTreeSet<&'static str>,
    released: BTreeSet<&'static str>,
    undone: bool,
    progress: Progress,
}

impl Slow {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    fn wait(&self, is_so: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let (state, waited) =
            self.changed.wait_timeout_while(self.state.lock().unwrap(), LONG, |state| !is_so(state)).unwrap();
        assert!(!waited.timed_out(), "{state:?}");
        state
    }

    fn step(&self, step: &'static str) {
        self.change(|state| _ = state.begun.insert(step));
        drop(self.wait(|state| state.released.contains(step) || state.undone));
    }

    fn release(&self, step: &'static str) {
        self.change(|state| _ = state.released.insert(step));
    }

    fn wait_for(&self, step: &'static str) {
        drop(self.wait(|state| state.begun.contains(step)));
    }
}

impl ChaosTarget for Slow {
    fn name(&self) -> &str {
        "slow"
    }

    fn is_critical(&self) -> bool {
        false
    }

    fn carries(&self, scenario: Scenario) -> bool {
        scenario == Scenario::PacketLoss
    }

    fn probe(&self, _: Scenario, _: &Parameters) -> Result<(), TargetError> {
        self.step("probe");
        Ok(())
    }

    fn apply(&self, _: &Order<'_>) -> Result<(), TargetError> {
        Ok(())
    }

    fn wait_until_begun(&self, _: FaultId) {
        self.step("begin");
    }

    fn undo(&self, _: FaultId) -> Result<(), TargetError> {
        self.change(|state| state.undone = true);
        Ok(())
    }

    fn left_over(&self, _: FaultId) -> Option<String> {
        None
    }

    fn progress(&self, _: FaultId) -> Progress {
        self.state.lock().unwrap().progress.clone()
    }

    fn network(&self, _: FaultId) -> Option<Arc<dyn Network>> {
        Some(Arc::new(Never))
    }
}

/// A network that is never up.
#[derive(Debug)]
struct Never;

impl Network for Never {
    fn pair(&self) -> io::Result<[TcpStream; 2]> {
        Err(io::ErrorKind::NotConnected.into())
    }

    fn is_up(&self) -> bool {
        false
    }
}

fn world(plan: Plan) -> (World, Arc<Slow>) {
    let (world, slow) = (World::new(plan), Arc::new(Slow::default()));
    world.controller.register(slow.clone(), world.now);
    (world, slow)
}

#[test]
fn an_emergency_stop_is_heard_while_a_network_is_tried() {
    let (world, slow) = world(Plan::default());
    let hang = world.start("hang", &[]);
    let (controller, now) = (&world.controller, world.now);
    thread::scope(|scope| {
        let start = scope.spawn(|| controller.start(&request("packet_loss", NETEM), now));
        slow.wait_for("probe");
        let began = Instant::now();
        assert!(controller.emergency_stop(Cause::Person, now));
        assert_eq!(world.status(hang), Status::Aborted);
        assert_eq!(controller.status(now).stopped_by.as_deref(), Some("a person"));
        assert!(began.elapsed() < LONG / 2, "{:?}", began.elapsed());
        slow.release("probe");
        let refusal = start.join().unwrap().unwrap_err();
        assert!(matches!(refusal, Refusal::Stopped { .. }), "{refusal}");
    });
    assert_eq!(controller.status(now).active_tests, 0);
}

#[test]
fn an_emergency_stop_is_heard_while_a_network_is_made() {
    let (world, slow) = world(Plan::default());
    let (controller, now) = (&world.controller, world.now);
    slow.release("probe");
    thread::scope(|scope| {
        let start = scope.spawn(|| controller.start(&request("packet_loss", NETEM), now));
        slow.wait_for("begin");
        let began = Instant::now();
        assert_eq!(controller.status(now).active_tests, 1);
        assert!(controller.emergency_stop(Cause::Person, now));
        // It waits no longer for what is undone.
        let id = start.join().unwrap().unwrap();
        assert!(began.elapsed() < LONG / 2, "{:?}", began.elapsed());
        assert_eq!(world.status(id), Status::Aborted);
    });
}

#[test]
fn a_plan_foretells_the_connections_that_a_report_counts() {
    let (world, slow) = world(Plan::default());
    slow.release("probe");
    let _clients = [world.client(), world.client(), world.client()];
    let traffic = [Traffic {
        server: "demo".to_owned(),
        transport: Transport::Http,
        direction: Direction::ToServer,
        protocol: None,
        kind: MessageKind::Request,
        method: Some("tools/call".to_owned()),
        tool: None,
        per_second: 100.0,
    }];
    let request = request("packet_loss", &[NETEM, &["control=0.5"]].concat());
    let outlook = world.controller.plan(&request, &traffic, world.now).unwrap();
    assert_eq!(
        (outlook.packets, outlook.connections, outlook.expected_hits),
        (true, 3, 2.0),
        "half of them, rounded up"
    );
    assert_eq!(outlook.hits, []);
}

#[test]
fn a_network_that_does_not_come_has_failed_when_the_start_returns() {
    let (world, slow) = world(Plan::default());
    slow.release("probe");
    slow.release("begin");
    let why = "no namespaces are left".to_owned();
    slow.change(|state| state.progress.ended = Some(Ended::Failed(why)));
    let id = world.start("packet_loss", NETEM);
    let test = world.test(id);
    let told = (test.status, test.details.error.as_deref());
    assert_eq!(told, (Status::Failed, Some("slow: no namespaces are left")));
    assert!(slow.state.lock().unwrap().undone);
}

#[test]
fn nothing_else_waits_for_a_network_that_the_scheduler_wants() {
    let parameters = Parameters::from_pairs(NETEM.iter().copied()).unwrap();
    let wanted =
        ScenarioPlan { probability: Ratio::ONE, enabled: true, parameters, ..ScenarioPlan::new(Scenario::PacketLoss) };
    let plan = Plan { mode: Mode::Scheduled, scenarios: vec![wanted], ..Plan::default() };
    let delay = plan.scheduler_delay;
    let (mut world, slow) = world(plan);
    let began = Instant::now();
    world.pass(delay + SECOND);
    slow.wait_for("probe");
    assert_eq!(world.controller.status(world.now).active_tests, 0);
    assert!(began.elapsed() < LONG / 2, "{:?}", began.elapsed());
    slow.release("probe");
    slow.wait_for("begin");
    assert_eq!(world.controller.status(world.now).active_tests, 1);
    world.controller.emergency_stop(Cause::Person, world.now);
}
