//! Helpers under an engine: written down, ended with the experiment, swept by the next run.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Instant, SystemTime};

use libtest_mimic::Trial;
use mcpscope_chaos::helper::{Ready, ResourceTarget};
use mcpscope_chaos::{
    Cause, ChaosTarget, Controller, Journal, JournalLimits, Mode, Order, Parameters, Parts, Plan, ProcessId, Progress,
    Report, Request, Scenario, Status, Swept, TargetError, Unit,
};
use mcpscope_core::{ClockAnchor, FaultId, Transport};

use crate::outside::{MS, SECOND, apply_silent, is_there, signal, target, wait_until};

pub(crate) fn tests(ready: Ready) -> Vec<Trial> {
    let test = |name: &str, test: fn(Ready)| {
        Trial::test(format!("engine::{name}"), move || {
            test(ready);
            Ok(())
        })
    };
    vec![
        test("an_experiment_is_written_down_with_its_process_and_what_it_came_to", completed),
        test("an_emergency_stop_ends_every_helper", stopped),
        test("an_emergency_stop_waits_for_no_network", stopped_silent),
        test("a_plan_that_switches_chaos_off_ends_every_helper", switched_off),
        test("a_helper_that_is_killed_fails_the_experiment", killed),
        test("a_helper_that_a_filter_ends_says_so", forbidden),
        test("what_is_too_large_fails_and_starts_nothing", too_large),
        test("a_later_run_makes_sure_that_nothing_is_left", swept),
        test("a_later_run_makes_sure_that_nothing_is_left_of_another", swept_by_another),
    ]
}

fn controller(folder: &Path, ready: Ready) -> Controller {
    let journal = Journal::open(folder, JournalLimits::default()).unwrap();
    let clock = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
    let parts = Parts { journal, ..Parts::new(Plan::default(), 1, clock) };
    let (controller, _) = mcpscope_chaos::new(parts).unwrap();
    controller.register(Arc::new(target(ready)), Instant::now());
    controller
}

fn start(controller: &Controller, scenario: &str, pairs: &[&str]) -> u64 {
    let parameters = Parameters::from_pairs(pairs.iter().copied()).unwrap();
    let request = Request { parameters, ..Request::new(scenario) };
    controller.start(&request, Instant::now()).unwrap().0
}

/// The report, once it is over. Nobody waits longer than it is to take.
#[track_caller]
fn report(controller: &Controller, id: u64) -> Report {
    let over = wait_until(20 * SECOND, || {
        controller.drive(Instant::now());
        controller.journal(id, Instant::now()).is_some()
    });
    assert!(over, "{:?}", controller.experiment(id, Instant::now()));
    controller.report(id, Instant::now()).unwrap()
}

/// What the journal on disk says that was started.
#[track_caller]
fn process(folder: &Path, id: u64) -> ProcessId {
    let text = fs::read_to_string(folder.join(format!("{id}.running.jsonl"))).unwrap();
    let line = text.lines().find(|line| line.contains("\"record\":\"process\"")).expect(&text);
    serde_json::from_str(line).unwrap()
}

fn completed(ready: Ready) {
    let folder = tempfile::tempdir().unwrap();
    let controller = controller(folder.path(), ready);
    let plan = |scenario: &str, name: &str, value: &str| {
        let request = Request::new(scenario).with(name, value);
        controller.plan(&request, &[], Instant::now()).unwrap().resource.unwrap()
    };
    let load = plan("cpu_overload", "intensity", "1");
    assert!(load.expected > 0.0 && load.expected <= 0.95 && load.cores > Some(0), "{load:?}");
    assert!(load.limit.as_ref().is_some_and(|limit| limit.contains("5 % ")), "{load:?}");
    let foreseen = plan("memory_pressure", "size", "32MiB");
    assert_eq!((foreseen.expected, foreseen.limit, foreseen.cores), (foreseen.requested, None, None));
    let id = start(&controller, "memory_pressure", &["size=32MiB", "duration=1s"]);
    let process = process(folder.path(), id);
    assert!(is_there(process));
    let report = report(&controller, id);
    assert!(!is_there(process));
    assert_eq!((report.status, &report.error, &report.leak), (Status::Completed, &None, &None));
    let resource = report.injection.resource.as_ref().unwrap();
    assert_eq!((resource.requested, resource.unit), (f64::from(32 << 20), Unit::Bytes));
    assert_eq!(
        (foreseen.requested, foreseen.unit, &foreseen.cgroup),
        (resource.requested, Unit::Bytes, &resource.cgroup)
    );
    let share = report.injection.achieved_intensity.unwrap();
    assert!(report.injection.requested_intensity == 1.0 && (share - 1.0).abs() < 0.02, "{report:?}");
    assert_eq!(report.targets, ["helper"]);
}

fn stopped(ready: Ready) {
    let folder = tempfile::tempdir().unwrap();
    let controller = controller(folder.path(), ready);
    let all = [("memory_pressure", "size=256MiB"), ("cpu_overload", "intensity=1")];
    let ids = all.map(|(scenario, parameter)| start(&controller, scenario, &[parameter]));
    let processes = ids.map(|id| process(folder.path(), id));
    // However busy all cores are.
    thread::sleep(500 * MS);
    let start = Instant::now();
    controller.emergency_stop(Cause::Person, start);
    let returned = start.elapsed();
    assert!(wait_until(2 * SECOND, || processes.iter().all(|process| !is_there(*process))));
    println!("the stop returned after {returned:?}, and they were gone after {:?}", start.elapsed());
    assert_eq!(report(&controller, ids[0]).status, Status::Aborted);
    assert_eq!(report(&controller, ids[1]).leak, None);
    assert_eq!(controller.status(Instant::now()).stopped_by.as_deref(), Some("a person"));
}

/// Makes networks whose helpers say nothing from the beginning on, and so are never up.
#[derive(Debug)]
struct Silent(ResourceTarget);

impl ChaosTarget for Silent {
    fn name(&self) -> &str {
        "silent"
    }

    fn is_critical(&self) -> bool {
        false
    }

    fn carries(&self, scenario: Scenario) -> bool {
        scenario == Scenario::PacketLoss
    }

    fn apply(&self, order: &Order<'_>) -> Result<(), TargetError> {
        apply_silent(&self.0, order).map(drop)
    }

    fn undo(&self, fault: FaultId) -> Result<(), TargetError> {
        self.0.undo(fault)
    }

    fn left_over(&self, fault: FaultId) -> Option<String> {
        self.0.left_over(fault)
    }

    fn progress(&self, fault: FaultId) -> Progress {
        self.0.progress(fault)
    }
}

fn stopped_silent(ready: Ready) {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), JournalLimits::default()).unwrap();
    let clock = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
    let parts = Parts { journal, ..Parts::new(Plan::default(), 1, clock) };
    let (controller, injector) = mcpscope_chaos::new(parts).unwrap();
    controller.register(Arc::new(Silent(target(ready))), Instant::now());
    controller.register(Arc::new(target(ready)), Instant::now());
    let _server = injector.endpoint("demo", Transport::Http, false);
    let of_network = ("packet_loss", &["backend=netem"][..]);
    let all = [of_network, of_network, ("cpu_overload", &["intensity=1"])];
    let ids = all.map(|(scenario, pairs)| start(&controller, scenario, pairs));
    let processes = ids.map(|id| process(folder.path(), id));
    let start = Instant::now();
    controller.emergency_stop(Cause::Person, start);
    let returned = start.elapsed();
    assert!(returned < 50 * MS, "{returned:?}");
    assert!(wait_until(2 * SECOND, || processes.iter().all(|process| !is_there(*process))));
    println!("the stop returned after {returned:?}, and they were gone after {:?}", start.elapsed());
    for id in ids {
        let report = report(&controller, id);
        assert_eq!((report.status, report.leak), (Status::Aborted, None));
    }
}

fn switched_off(ready: Ready) {
    let folder = tempfile::tempdir().unwrap();
    let controller = controller(folder.path(), ready);
    let ids = ["memory_pressure", "cpu_overload"].map(|scenario| start(&controller, scenario, &[]));
    let processes = ids.map(|id| process(folder.path(), id));
    assert!(processes.into_iter().all(is_there));
    controller.replace_plan(Plan { mode: Mode::Off, ..Plan::default() }, Instant::now()).unwrap();
    assert!(wait_until(2 * SECOND, || processes.iter().all(|process| !is_there(*process))));
    for id in ids {
        let report = report(&controller, id);
        assert_eq!((report.status, report.leak), (Status::Aborted, None));
    }
}

fn killed(ready: Ready) {
    let folder = tempfile::tempdir().unwrap();
    let controller = controller(folder.path(), ready);
    let id = start(&controller, "cpu_overload", &["intensity=0.1"]);
    signal(process(folder.path(), id).pid, "KILL");
    let report = report(&controller, id);
    let why = report.error.unwrap();
    assert!(report.status == Status::Failed && why.contains("ended before its time (signal: 9"), "{why}");
}

/// As by a filter that forbids what a helper does.
fn forbidden(ready: Ready) {
    let folder = tempfile::tempdir().unwrap();
    let controller = controller(folder.path(), ready);
    let id = start(&controller, "cpu_overload", &["intensity=0.1"]);
    signal(process(folder.path(), id).pid, "SYS");
    let report = report(&controller, id);
    let why = report.error.unwrap();
    assert_eq!(report.status, Status::Failed);
    assert!(why.contains("a seccomp filter forbids") && why.contains("expected one that allows"), "{why}");
}

fn too_large(ready: Ready) {
    let folder = tempfile::tempdir().unwrap();
    let controller = controller(folder.path(), ready);
    let request = Request::new("memory_pressure").with("size", "1TiB");
    for refused in
        [controller.plan(&request, &[], Instant::now()).map(drop), controller.start(&request, Instant::now()).map(drop)]
    {
        let why = refused.unwrap_err().to_string();
        assert!(why.starts_with("1.0 TiB is wanted: expected at most "), "{why}");
    }
    assert_eq!(controller.status(Instant::now()).total_history, 0);
    let said = controller.events_since(0, Instant::now());
    assert!(said.iter().any(|event| format!("{event:?}").contains("1.0 TiB is wanted")), "{said:?}");
}

fn swept(ready: Ready) {
    let folder = tempfile::tempdir().unwrap();
    let earlier = controller(folder.path(), ready);
    let id = start(&earlier, "cpu_overload", &["intensity=0.1"]);
    let process = process(folder.path(), id);
    // As if it had outlived its program, which it cannot.
    let journal = Journal::open(folder.path(), JournalLimits::default()).unwrap();
    assert_eq!(journal.swept().processes, [(id, "helper".to_owned(), process)]);
    let clock = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
    let (later, _) = mcpscope_chaos::new(Parts { journal, ..Parts::new(Plan::default(), 1, clock) }).unwrap();
    assert!(is_there(process));
    later.register(Arc::new(target(ready)), Instant::now());
    assert!(!is_there(process));
}

fn swept_by_another(ready: Ready) {
    let (folder, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let earlier = controller(others.path(), ready);
    let id = start(&earlier, "cpu_overload", &["intensity=0.1"]);
    let process = process(others.path(), id);
    let left = Swept::in_folder(others.path()).unwrap();
    assert_eq!((&left.ids, &left.processes), (&vec![id], &vec![(id, "helper".to_owned(), process)]));
    assert_eq!(Swept::in_folder(others.path()).unwrap(), Swept::default(), "it is closed");
    let journal = Journal::open(folder.path(), JournalLimits::default()).unwrap().ending(left);
    assert!(journal.swept().ids.is_empty(), "it is none of its own");
    let clock = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
    let (later, _) = mcpscope_chaos::new(Parts { journal, ..Parts::new(Plan::default(), 1, clock) }).unwrap();
    assert!(is_there(process));
    later.register(Arc::new(target(ready)), Instant::now());
    assert!(!is_there(process));
}
