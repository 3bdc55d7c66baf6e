//! Crashes: who crashes, when, and how often at most.

#![allow(clippy::unwrap_used, reason = "clippy does not take the helpers of an integration test for tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{MS, SECOND, World, request};
use mcpscope_chaos::{
    Cause, ChaosTarget, Crash, Foresight, Order, Outage, OutageReport, Parameters, Plan, ProcessOutlook, Refusal,
    Report, Scenario, Status, TargetError, Victim,
};
use mcpscope_core::{Component, FaultId};

/// Who, how, and when.
type Crashed = (&'static str, Crash, Duration);

/// A process that may be crashed, and comes back at once.
#[derive(Debug)]
struct Process {
    name: &'static str,
    components: &'static [Component],
    is_critical: AtomicBool,
    is_there: AtomicBool,
    crashes: Arc<Mutex<Vec<Crashed>>>,
    outages: Arc<Mutex<Vec<Arc<Outage>>>>,
    began: std::time::Instant,
}

impl ChaosTarget for Process {
    fn name(&self) -> &str {
        self.name
    }

    fn components(&self) -> &[Component] {
        self.components
    }

    fn is_critical(&self) -> bool {
        self.is_critical.load(Ordering::Relaxed)
    }

    fn is_there(&self) -> bool {
        self.is_there.load(Ordering::Relaxed)
    }

    fn carries(&self, scenario: Scenario) -> bool {
        scenario == Scenario::ProcessCrash
    }

    fn foresee(&self, _: Scenario, _: &Parameters, _: &[Victim]) -> Foresight {
        Foresight { restarted_after: Some(Duration::from_millis(200)), ..Foresight::default() }
    }

    fn apply(&self, order: &Order<'_>) -> Result<(), TargetError> {
        assert!(order.now < order.expires_at);
        self.crashes.lock().unwrap().push((self.name, order.crash(), order.now - self.began));
        self.outages.lock().unwrap().extend(order.outage.cloned());
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
    world: World,
    targets: Vec<Arc<Process>>,
}

impl Stage {
    fn new(plan: Plan, names: &[(&'static str, &'static [Component])]) -> Self {
        let world = World::new(plan);
        let crashes = Arc::default();
        let targets = names.iter().map(|(name, components)| {
            let (is_critical, is_there) = (AtomicBool::new(false), AtomicBool::new(true));
            let (crashes, outages, began) = (Arc::clone(&crashes), Arc::default(), world.now);
            Arc::new(Process { name, components, is_critical, is_there, crashes, outages, began })
        });
        let targets: Vec<_> = targets.collect();
        for target in &targets {
            world.controller.register(target.clone(), world.now);
        }
        Self { world, targets }
    }

    fn crashes(&self) -> Vec<Crashed> {
        std::mem::take(&mut *self.targets[0].crashes.lock().unwrap())
    }

    fn refused(&self, pairs: &[&str]) -> String {
        let refusal = self.world.controller.start(&request("process_crash", pairs), self.world.now).unwrap_err();
        assert!(matches!(refusal, Refusal::NothingMatched { .. } | Refusal::TooManyKills { .. }), "{refusal:?}");
        refusal.to_string()
    }
}

const TWO: &[(&str, &[Component])] = &[("one", &[Component::Tools]), ("two", &[Component::Registry])];

#[test]
fn a_plan_says_who_could_crash_and_how_often() {
    let mut plan = Plan::default();
    plan.blast_radius.max_kills_per_hour = 8;
    let mut stage = Stage::new(plan, TWO);
    stage.world.start("process_crash", &["duration=1s"]);
    stage.world.pass(Duration::from_secs(20));
    stage.crashes();
    let planned = |pairs: &[&str]| {
        let outlook = stage.world.controller.plan(&request("process_crash", pairs), &[], stage.world.now).unwrap();
        assert_eq!((outlook.recovery_time, outlook.resource), (5000, None));
        let crash = outlook.crash.unwrap();
        let process = |process: ProcessOutlook| {
            assert_eq!((process.pid, process.program, process.group), (None, None, None), "it is no process");
            (process.target, process.components.join(" "), process.restarted_after)
        };
        (crash.signal, crash.rate, crash.most, crash.processes.into_iter().map(process).collect::<Vec<_>>())
    };
    let of = |target: &str, components: &str| (target.to_owned(), components.to_owned(), Some(200));
    let both = || vec![of("one", ""), of("two", "")];
    assert_eq!(planned(&[]), ("kill".to_owned(), None, 1, both()));
    let tools = planned(&["signal=stop", "target_processes=tools"]);
    assert_eq!(tools, ("stop".to_owned(), None, 1, vec![of("one", "tools")]));
    // Each in each second that begins, and never more than what is left of this hour.
    assert_eq!(planned(&["crash_rate=0.5", "duration=2500ms"]), ("kill".to_owned(), Some(0.5), 6, both()));
    assert_eq!(planned(&["crash_rate=0.5", "duration=10s"]).2, 7);
    assert_eq!(planned(&["crash_rate=1", "target_processes=two"]).3, [of("two", "")]);
    assert_eq!(stage.crashes(), [], "nothing is done");
}

#[test]
fn one_of_them_crashes_at_once_and_the_seed_says_which() {
    let mut stage = Stage::new(Plan::default(), TWO);
    let mut chosen = Vec::new();
    for seed in 0..8 {
        let seed = format!("seed={seed}");
        for _ in 0..2 {
            let id = stage.world.start("process_crash", &["duration=1s", "signal=term", &seed]);
            let crashes = stage.crashes();
            assert_eq!((crashes.len(), crashes[0].1), (1, Crash::Term));
            assert_eq!(stage.world.test(id).details.targets, [crashes[0].0], "and no other is named");
            chosen.push(crashes[0].0);
            stage.world.pass(Duration::from_secs(20));
            assert_eq!(stage.world.controller.report(id.0, stage.world.now).unwrap().targets, [crashes[0].0]);
            assert_eq!(stage.crashes(), [], "once");
        }
    }
    assert!(chosen.chunks(2).all(|twice| twice[0] == twice[1]), "{chosen:?}");
    assert!(chosen.contains(&"one") && chosen.contains(&"two"), "{chosen:?}");
}

#[test]
fn with_a_rate_each_target_has_its_own_chance_every_second() {
    let mut plan = Plan::default();
    plan.blast_radius.max_kills_per_hour = 1000;
    let mut stage = Stage::new(plan, TWO);
    let id = stage.world.start("process_crash", &["duration=10s", "crash_rate=1"]);
    assert_eq!(stage.crashes().len(), 2, "at once");
    stage.world.pass(Duration::from_secs(60));
    let rest = stage.crashes();
    assert_eq!(rest.len(), 18);
    assert!(rest.iter().all(|(.., at)| at.as_millis().is_multiple_of(1000) && *at < 10 * SECOND), "{rest:?}");
    let report = stage.world.controller.report(id.0, stage.world.now).unwrap();
    let injection = report.injection;
    assert_eq!((report.status, injection.injected, injection.achieved_intensity), (Status::Completed, 20, Some(1.0)));

    let run = |stage: &mut Stage, parameters: &[&str]| {
        let began = stage.world.now - stage.targets[0].began;
        stage.world.start("process_crash", parameters);
        stage.world.pass(Duration::from_secs(120));
        let crashes = stage.crashes().into_iter();
        crashes.map(|(name, _, at)| (name, (at - began).as_secs())).collect::<Vec<_>>()
    };
    let first = run(&mut stage, &["duration=60s", "crash_rate=0.3", "seed=5"]);
    // 120 draws: the binomial 99.99 % interval.
    assert!((18..=57).contains(&first.len()), "{}", first.len());
    assert_eq!(run(&mut stage, &["duration=60s", "crash_rate=0.3", "seed=5"]), first, "the same seed");
    assert_ne!(run(&mut stage, &["duration=60s", "crash_rate=0.3", "seed=6"]), first, "another seed");
    let of = |name| first.iter().filter(|(of, _)| *of == name).map(|(_, second)| *second).collect::<Vec<_>>();
    assert_ne!(of("one"), of("two"), "each its own draws");
    assert_eq!(run(&mut stage, &["duration=60s", "crash_rate=0"]), []);
}

#[test]
fn crashes_by_chance_count_and_the_first_too_many_is_said() {
    let mut plan = Plan::default();
    plan.blast_radius.max_kills_per_hour = 3;
    let mut stage = Stage::new(plan, TWO);
    stage.world.start("process_crash", &["duration=10s", "crash_rate=1"]);
    stage.world.pass(Duration::from_secs(60));
    assert_eq!(stage.crashes().len(), 3);
    let events = stage.world.controller.events_since(0, stage.world.now);
    let refusals: Vec<_> =
        events.iter().map(|event| format!("{event:?}")).filter(|text| text.contains("Refused")).collect();
    assert!(refusals.len() == 1 && refusals[0].contains("3 crashes in the last hour"), "{refusals:?}");
    assert!(stage.refused(&[]).contains("3 crashes in the last hour"));
}

#[test]
fn the_time_that_nobody_drove_is_over_and_a_stop_is_the_end() {
    let mut stage = Stage::new(Plan::default(), &TWO[..1]);
    stage.world.start("process_crash", &["duration=30s", "crash_rate=1"]);
    stage.world.now += Duration::from_secs(20);
    stage.world.controller.drive(stage.world.now);
    assert_eq!(stage.crashes().len(), 2, "one at the start, one now");
    stage.world.controller.emergency_stop(Cause::Person, stage.world.now);
    stage.world.pass(Duration::from_secs(30));
    assert_eq!(stage.crashes(), []);
}

#[test]
fn who_is_away_or_has_become_critical_is_left_alone() {
    let mut stage = Stage::new(Plan::default(), TWO);
    stage.world.start("process_crash", &["duration=4s", "crash_rate=1"]);
    stage.targets[0].is_there.store(false, Ordering::Relaxed);
    stage.targets[1].is_critical.store(true, Ordering::Relaxed);
    stage.world.pass(Duration::from_millis(2500));
    assert_eq!(stage.crashes().len(), 2, "those of the start");
    stage.targets[0].is_there.store(true, Ordering::Relaxed);
    stage.world.pass(Duration::from_secs(20));
    assert_eq!(stage.crashes().iter().map(|(name, ..)| *name).collect::<Vec<_>>(), ["one"]);

    stage.targets[0].is_there.store(false, Ordering::Relaxed);
    assert!(stage.refused(&["target_processes=one"]).contains("none of those that match runs now; there is one, two"));
    assert!(stage.refused(&["target_processes=two"]).contains("critical or protected"));
    let two: Arc<dyn ChaosTarget> = stage.targets[1].clone();
    stage.world.controller.unregister(&two, stage.world.now);
    assert!(stage.refused(&["target_processes=two"]).contains("no target of that name"));
}

#[test]
fn what_becomes_critical_ends_the_experiment_on_it() {
    for rate in [None, Some("crash_rate=0")] {
        let mut stage = Stage::new(Plan::default(), TWO);
        let parameters: Vec<_> = ["duration=4s", "signal=stop"].into_iter().chain(rate).collect();
        let id = stage.world.start("process_crash", &parameters);
        stage.targets.iter().for_each(|target| target.is_critical.store(true, Ordering::Relaxed));
        stage.world.pass(Duration::from_millis(200));
        let test = stage.world.test(id);
        assert_eq!(test.status, Status::Aborted);
        assert!(test.details.error.unwrap().ends_with(" is marked as critical"));
    }
}

#[test]
fn a_component_is_the_process_that_carries_it() {
    let mut plan = Plan::default();
    plan.blast_radius.protected = vec!["tw*".into(), "tools".into()];
    let mut stage = Stage::new(plan, TWO);
    stage.world.start("process_crash", &["duration=1s", "target_processes=tools"]);
    assert_eq!(stage.crashes()[0].0, "one");
    stage.world.pass(Duration::from_secs(20));
    assert!(stage.refused(&["target_processes=registry"]).contains("critical or protected"));
    assert!(stage.refused(&["target_processes=transport"]).contains("no target of that name"));
    for _ in 0..5 {
        stage.world.start("process_crash", &["duration=1s"]);
        assert_eq!(stage.crashes()[0].0, "one", "the other is protected");
        stage.world.pass(Duration::from_secs(20));
    }
}

/// An engine with one process, called as the server that the world has, which is well.
fn one_process() -> Stage {
    let stage = Stage::new(Plan::default(), &[("demo", &[])]);
    stage.world.watched.set(10, 0);
    stage
}

impl Stage {
    /// What is to be told of the process that crashed last.
    fn outage(&self) -> Arc<Outage> {
        self.targets[0].outages.lock().unwrap().last().unwrap().clone()
    }

    fn report(&self, id: FaultId) -> Report {
        self.world.controller.report(id.0, self.world.now).unwrap()
    }
}

#[test]
fn what_follows_a_crash_is_timed() {
    let mut stage = one_process();
    let endpoint = stage.world.endpoint.clone();
    assert!(!endpoint.is_followed());
    let id = stage.world.start("process_crash", &["duration=2s", "recovery_time=5s"]);
    let (outage, start) = (stage.outage(), stage.world.now);
    assert!(endpoint.is_followed());
    outage.ended(start + 5 * MS);
    outage.restarted(start + 105 * MS);
    outage.ready(start + 405 * MS);
    endpoint.call_ended(true, start, start + 6 * MS);
    endpoint.call_ended(false, start + 10 * MS, start + 20 * MS);
    endpoint.call_ended(true, start + 500 * MS, start + 505 * MS);
    endpoint.call_ended(true, start + 600 * MS, start + 605 * MS);
    stage.world.pass(20 * SECOND);
    let report = stage.report(id);
    let expected = OutageReport {
        target: "demo".into(),
        at: 5,
        restarted_after: Some(100),
        ready_after: Some(400),
        first_good_call_after: Some(500),
    };
    assert_eq!((report.status, report.outages), (Status::Completed, vec![expected]));
    assert!(!endpoint.is_followed(), "calls cost nothing any more");
}

#[test]
fn all_is_well_again_no_sooner_than_the_process_that_was_ended() {
    // How long the fault takes, when the process ends and when its first call ends well, and when all is well.
    for (lasts, ended, good, well, verdict) in [
        (
            "1ms",
            0,
            856,
            855,
            "all was well again 855ms after the fault (limit 5s); a call ended well 856ms after the crash.",
        ),
        (
            "1s",
            1500,
            3500,
            2000,
            "all was well again 2s after the fault (limit 5s); a call ended well 2s after the crash.",
        ),
        (
            "1s",
            100,
            900,
            0,
            "all was well from the end of the fault on (limit 5s); a call ended well 800ms after the crash.",
        ),
    ] {
        let mut stage = one_process();
        let lasts = format!("duration={lasts}");
        let id = stage.world.start("process_crash", &[&lasts, "recovery_time=5s"]);
        let (outage, start) = (stage.outage(), stage.world.now);
        outage.ended(start + ended * MS);
        outage.restarted(start + ended * MS);
        outage.ready(start + ended * MS);
        stage.world.endpoint.call_ended(true, start + good * MS, start + good * MS);
        stage.world.pass(20 * SECOND);
        let report = stage.report(id);
        assert_eq!((report.status, report.recovery.time), (Status::Completed, Some(well)));
        assert_eq!(report.verdict(), format!("It held: {verdict}"));
    }
}

#[test]
fn who_is_not_of_use_again_in_time_has_failed_and_is_waited_for_until_then() {
    let mut stage = one_process();
    let id = stage.world.start("process_crash", &["duration=1s", "recovery_time=8s"]);
    stage.outage().ended(stage.world.now);
    stage.world.pass(7 * SECOND);
    assert_eq!(stage.world.status(id), Status::Recovering, "what is left of the system is well, but it is not back");
    stage.world.pass(20 * SECOND);
    let report = stage.report(id);
    assert_eq!(report.status, Status::Failed);
    assert_eq!(report.error.as_deref(), Some("demo was not started again within 8s"));
    assert_eq!(report.held(), Some(false));
    assert_eq!(report.outages[0].restarted_after, None);
    assert_eq!((report.recovery.time, report.recovery.observed), (None, true), "it was not well again in time");
}

#[test]
fn one_that_stands_still_and_one_that_crashes_again_are_not_judged() {
    let mut stage = one_process();
    let id = stage.world.start("process_crash", &["duration=1s", "signal=stop"]);
    assert!(stage.targets[0].outages.lock().unwrap().is_empty());
    stage.world.pass(20 * SECOND);
    assert_eq!((stage.world.status(id), stage.report(id).outages), (Status::Completed, Vec::new()));

    let id = stage.world.start("process_crash", &["duration=2s", "crash_rate=1", "recovery_time=3s"]);
    stage.outage().ended(stage.world.now);
    stage.world.pass(1500 * MS);
    let (second, now) = (stage.outage(), stage.world.now);
    second.ended(now);
    second.restarted(now);
    second.ready(now);
    stage.world.endpoint.call_ended(true, now, now);
    stage.world.pass(20 * SECOND);
    let report = stage.report(id);
    let good: Vec<_> = report.outages.iter().map(|outage| outage.first_good_call_after).collect();
    assert_eq!((report.status, good), (Status::Completed, vec![None, Some(0)]));
}
