//! What a fault leaves behind is seen, told and ends everything, on made-up figures and time.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use common::{MS, SECOND, request};
use mcpscope_chaos::{
    ChaosTarget, Child, ChildRole, Controller, Footprint, Injector, LeakAudit, Order, Parts, Plan, Report, Scenario,
    Status, TargetError, Watch,
};
use mcpscope_core::{ClockAnchor, FaultId, Transport};

const SERVER: Child = Child { pid: 10, role: ChildRole::Supervised, stopped: false };

/// What the process has, as a test wants it.
#[derive(Debug)]
struct Process(Mutex<Footprint>);

impl LeakAudit for Process {
    fn observe(&self) -> Footprint {
        self.0.lock().unwrap().clone()
    }
}

impl Process {
    fn children(&self, children: &[Child]) {
        self.0.lock().unwrap().children = Some(children.to_vec());
    }
}

/// A data path that holds so many messages.
#[derive(Debug, Default)]
struct Path(AtomicU64);

impl Watch for Path {
    fn changed(&self) {}

    fn holds(&self, _: FaultId) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed))
    }
}

/// Does nothing, so that experiments with processes can be started.
#[derive(Debug)]
struct Target;

impl ChaosTarget for Target {
    fn name(&self) -> &str {
        "server"
    }

    fn is_critical(&self) -> bool {
        false
    }

    fn carries(&self, scenario: Scenario) -> bool {
        scenario == Scenario::ProcessCrash
    }

    fn apply(&self, _: &Order<'_>) -> Result<(), TargetError> {
        Ok(())
    }

    fn undo(&self, _: FaultId) -> Result<(), TargetError> {
        Ok(())
    }

    fn left_over(&self, _: FaultId) -> Option<String> {
        None
    }
}

struct Stage {
    controller: Controller,
    injector: Injector,
    process: Arc<Process>,
    now: Instant,
    _endpoint: mcpscope_chaos::Endpoint,
}

impl Stage {
    fn new(plan: Plan) -> Self {
        let now = Instant::now();
        let clock = ClockAnchor { mono: now, wall: SystemTime::UNIX_EPOCH + SECOND * 1_800_000_000 };
        let usual = Footprint { children: Some(vec![SERVER]), descriptors: Some(20), memory_bytes: Some(30 << 20) };
        let process = Arc::new(Process(Mutex::new(usual)));
        let leak_audit: Arc<dyn LeakAudit> = process.clone();
        let parts = Parts { leak_audit: Some(leak_audit), ..Parts::new(plan, 7, clock) };
        let (controller, injector) = mcpscope_chaos::new(parts).unwrap();
        controller.register(Arc::new(Target), now);
        let endpoint = injector.endpoint("demo", Transport::Http, false);
        Self { controller, injector, process, now, _endpoint: endpoint }
    }

    fn start(&self, scenario: &str, duration: &str) -> FaultId {
        self.controller.start(&request(scenario, &[duration]), self.now).unwrap()
    }

    fn pass(&mut self, time: std::time::Duration) {
        let until = self.now + time;
        while self.now < until {
            let next = self.controller.drive(self.now);
            assert!(next > self.now, "it wants to be driven again at once");
            self.now = next.min(until);
        }
        self.controller.drive(self.now);
    }

    /// The report, once the experiment is closed.
    fn closed(&self, id: FaultId) -> Option<Report> {
        self.controller.journal(id.0, self.now)?;
        self.controller.report(id.0, self.now)
    }

    fn stopped_by(&self) -> Option<String> {
        self.controller.status(self.now).stopped_by
    }
}

#[test]
fn what_is_as_before_is_told_at_once_with_what_was_looked_at() {
    let mut stage = Stage::new(Plan::default());
    let path: Arc<dyn Watch> = Arc::new(Path::default());
    stage.injector.watch(&path);
    let id = stage.start("hang", "duration=1s");
    stage.pass(SECOND + MS);
    let report = stage.closed(id).unwrap();
    assert_eq!((report.leak.as_deref(), stage.stopped_by()), (None, None));
    assert_eq!(report.audit.looked_at, ["fault table", "queues", "children", "descriptors", "memory"]);
    assert_eq!(report.audit.before, report.audit.after);
    let html = report.to_html();
    assert!(html.contains("Resident memory") && html.contains("30.0 MiB") && html.contains("Nothing was left over."));
}

#[test]
fn what_is_not_known_is_not_said_to_be_looked_at() {
    let mut stage = Stage::new(Plan::default());
    *stage.process.0.lock().unwrap() = Footprint { descriptors: Some(5), ..Footprint::default() };
    let id = stage.start("hang", "duration=1s");
    stage.pass(SECOND + MS);
    assert_eq!(stage.closed(id).unwrap().audit.looked_at, ["fault table", "descriptors"]);
}

#[test]
fn what_is_gone_within_two_seconds_is_no_leak() {
    let mut stage = Stage::new(Plan::default());
    let id = stage.start("process_crash", "duration=1s");
    stage.process.children(&[SERVER, Child { pid: 50, role: ChildRole::Helper(id.0), stopped: false }]);
    stage.pass(SECOND * 5 / 2);
    assert!(stage.closed(id).is_none(), "it is waited for");
    stage.process.children(&[SERVER]);
    stage.pass(SECOND / 4);
    assert_eq!((stage.closed(id).unwrap().leak, stage.stopped_by()), (None, None));
}

#[test]
fn what_has_ended_is_in_the_history_while_it_is_waited_for() {
    let mut stage = Stage::new(Plan::default());
    let before = stage.start("hang", "duration=1s");
    stage.pass(SECOND * 2);
    let id = stage.start("process_crash", "duration=1s");
    stage.process.children(&[SERVER, Child { pid: 50, role: ChildRole::Helper(id.0), stopped: false }]);
    for (time, is_closed) in [(SECOND * 2, false), (SECOND * 2, true)] {
        stage.pass(time);
        assert_eq!(stage.closed(id).is_some(), is_closed);
        let status = stage.controller.status(stage.now);
        assert_eq!((status.active_tests, status.total_history), (0, 2));
        let history = stage.controller.history(10, stage.now);
        let all: Vec<_> = history.iter().map(|test| (test.id, test.status)).collect();
        assert_eq!(all, [(id.0, Status::Completed), (before.0, Status::Completed)]);
        // What is not decided is not told.
        let known = |test: &mcpscope_chaos::Test| test.details.report.as_ref().map(|report| report.leak.is_some());
        let expected = is_closed.then_some(true);
        assert_eq!(known(&history[0]), expected);
        assert_eq!(known(&stage.controller.experiment(id.0, stage.now).unwrap()), expected);
        let report = stage.controller.report(id.0, stage.now);
        assert_eq!(report.map(|report| report.leak.is_some()), expected);
        assert_eq!(known(&history[1]), Some(false));
        assert_eq!(stage.controller.history(1, stage.now).len(), 1);
    }
}

#[test]
fn what_stays_is_a_leak_and_ends_everything() {
    let mut stage = Stage::new(Plan::default());
    let id = stage.start("process_crash", "duration=1s");
    let stopped = Child { stopped: true, ..SERVER };
    stage.process.children(&[stopped, Child { pid: 50, role: ChildRole::Helper(id.0), stopped: false }]);
    let other = stage.start("hang", "duration=60s");
    stage.pass(SECOND * 3 - MS);
    assert_eq!((stage.closed(id), stage.stopped_by()), (None, None));
    stage.pass(MS * 200);
    let evidence = "child 10 is stopped; helper 50 is still there";
    let report = stage.closed(id).unwrap();
    assert_eq!(report.leak.as_deref(), Some(evidence));
    assert_eq!(report.audit.after.unwrap().children.unwrap().len(), 2, "the evidence is kept");
    assert_eq!(stage.stopped_by(), Some(format!("a leak: {evidence}")));
    assert!(!stage.injector.is_active());
    stage.pass(SECOND);
    let report = stage.controller.report(other.0, stage.now).unwrap();
    assert_eq!(report.error, Some(format!("emergency stop by a leak: {evidence}")));
}

#[test]
fn messages_that_are_still_held_are_a_leak() {
    for automatic_stop in [true, false] {
        let mut stage = Stage::new(Plan { automatic_stop, ..Plan::default() });
        let paths: Vec<_> = [2, 1].map(|held| Arc::new(Path(AtomicU64::new(held)))).into();
        let watchers: Vec<Arc<dyn Watch>> = paths.iter().map(|path| path.clone() as Arc<dyn Watch>).collect();
        watchers.iter().for_each(|watcher| stage.injector.watch(watcher));
        let id = stage.start("hang", "duration=1s");
        stage.pass(SECOND * 4);
        assert_eq!(stage.closed(id).unwrap().leak.as_deref(), Some("3 messages are still held back"));
        assert_eq!(stage.stopped_by().is_some(), automatic_stop, "it is told in any case");
    }
}

#[test]
fn who_acts_on_processes_last_answers_for_what_could_not_be_judged_before() {
    let mut stage = Stage::new(Plan::default());
    let first = stage.start("process_crash", "duration=2s");
    stage.pass(SECOND);
    stage.process.children(&[Child { stopped: true, ..SERVER }]);
    let second = stage.start("process_crash", "duration=10s");
    stage.pass(SECOND * 5);
    assert_eq!(stage.closed(first).unwrap().leak, None, "it may be the other's doing");
    stage.pass(SECOND * 10);
    assert_eq!(stage.closed(second).unwrap().leak.as_deref(), Some("child 10 is stopped"));
}

/// Panics in the middle of what it is to do, or to take back.
#[derive(Debug)]
struct Panicking {
    applies: bool,
    undone: AtomicU64,
}

impl ChaosTarget for Panicking {
    fn name(&self) -> &str {
        "panicking"
    }

    fn is_critical(&self) -> bool {
        false
    }

    fn carries(&self, scenario: Scenario) -> bool {
        scenario == Scenario::CpuOverload
    }

    fn apply(&self, _: &Order<'_>) -> Result<(), TargetError> {
        assert!(self.applies, "provoked");
        Ok(())
    }

    fn undo(&self, _: FaultId) -> Result<(), TargetError> {
        self.undone.fetch_add(1, Ordering::Relaxed);
        assert!(!self.applies, "provoked");
        Ok(())
    }

    fn left_over(&self, _: FaultId) -> Option<String> {
        None
    }
}

#[test]
fn a_target_that_panics_has_failed_and_what_it_has_begun_is_taken_back() {
    for applies in [false, true] {
        let mut stage = Stage::new(Plan::default());
        let target = Arc::new(Panicking { applies, undone: AtomicU64::new(0) });
        stage.controller.register(target.clone(), stage.now);
        let id = stage.start("cpu_overload", "duration=1s");
        stage.pass(SECOND * 5);
        let report = stage.closed(id).unwrap();
        let why = if applies { "panicking could not be undone: it panicked" } else { "panicking: it panicked" };
        assert_eq!((report.status, report.error.as_deref()), (Status::Failed, Some(why)));
        assert!(target.undone.load(Ordering::Relaxed) > 0);
        assert!(!stage.injector.is_active());
        let next = stage.start("hang", "duration=1s");
        stage.pass(SECOND * 5);
        assert_eq!(stage.closed(next).unwrap().status, Status::Completed, "the engine works on");
    }
}
