//! What a report says, on made-up time.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use common::{Client, MS, SECOND, World};
use mcpscope_chaos::{Journal, JournalLimits, OutageReport, Plan, Report, Sample, Status, Touched};

fn well(world: &World) {
    let sample = Sample { calls: 10, p50_ms: Some(4.0), p95_ms: Some(8.0), p99_ms: Some(9.0), ..Sample::default() };
    *world.watched.0.lock().unwrap() = sample;
}

fn unwell(world: &World) {
    let touched = Touched { calls: 5, errors: 4, p50_ms: Some(304.0), ..Touched::default() };
    let sample = Sample { calls: 10, errors: 5, touched: Some(touched), ..Sample::default() };
    *world.watched.0.lock().unwrap() = sample;
}

fn report(world: &World, id: mcpscope_core::FaultId) -> Report {
    world.controller.report(id.0, world.now).unwrap()
}

/// An experiment of 5 s, in the middle of which it becomes unwell, and which is well again so many seconds after the end.
fn experiment(world: &mut World, well_after: u32) -> Report {
    well(world);
    let id = world.start("lost_request", &["duration=5s", "recovery_time=3s"]);
    // Without a hit nothing is shown.
    assert_eq!(Client::new(&world.endpoint).request("echo", world.now).len(), 1);
    world.pass(2 * SECOND);
    unwell(world);
    world.pass(3 * SECOND + well_after * SECOND);
    well(world);
    world.pass(20 * SECOND);
    report(world, id)
}

#[test]
fn it_has_the_seconds_before_during_and_after() {
    let report = experiment(&mut World::new(Plan::default()), 2);
    let seconds: Vec<_> = report.samples.iter().map(|point| (point.at / 1000, point.sample.errors)).collect();
    let mut expected: Vec<_> = (-9..=2).map(|second| (second, 0)).collect();
    expected.extend([(3, 5), (4, 5), (5, 5), (6, 5), (7, 5), (8, 0), (9, 0), (10, 0)]);
    assert_eq!(seconds, expected);
    assert!(report.samples.iter().all(|point| point.duration == 1000));
    assert_eq!(report.samples[13].sample.touched.unwrap().error_rate(), Some(0.8));
    assert_eq!((report.time_to_detect, report.recovery.time), (Some(3000), Some(2000)));
    assert_eq!(report.steady_state, ["error_rate < 0.05"]);
    let slots = [report.before, report.during, report.after].map(|slot| slot.unwrap().duration);
    assert_eq!(slots, [10_000, 5000, 5000]);
}

#[test]
fn the_verdict_is_a_sentence_with_its_reason() {
    let verdict = |report: &Report| (report.held(), report.verdict());
    let mut world = World::new(Plan::default());
    let quick = experiment(&mut world, 0);
    assert_eq!(verdict(&quick), (Some(true), "It held: all was well from the end of the fault on (limit 3s).".into()));
    let slow = experiment(&mut world, 2);
    let outages = vec![OutageReport {
        target: "demo".into(),
        at: 0,
        restarted_after: None,
        ready_after: None,
        first_good_call_after: Some(1302),
    }];
    let crashed = Report { outages, ..slow.clone() };
    let text = "It held: all was well again 2s after the fault (limit 3s); a call ended well 1s 302ms after the crash.";
    assert_eq!(verdict(&crashed), (Some(true), text.into()));
    assert_eq!(verdict(&slow), (Some(true), "It held: all was well again 2s after the fault (limit 3s).".into()));
    let late = experiment(&mut world, 10);
    assert_eq!(verdict(&late), (Some(false), "It did not hold: not well again within 3s.".into()));
    world.watched.set(0, 0);
    let id = world.start("hang", &["duration=1s"]);
    world.pass(20 * SECOND);
    let nothing = "Not known: nothing matched, and nothing was done.";
    assert_eq!(verdict(&report(&world, id)), (None, nothing.into()));
    let id = world.start("hang", &["duration=1s"]);
    assert_eq!(Client::new(&world.endpoint).response("echo", world.now).len(), 1);
    world.pass(20 * SECOND);
    let unseen = "Not known: there were too few calls after the fault to judge by.";
    assert_eq!(verdict(&report(&world, id)), (None, unseen.into()));
    well(&world);
    let id = world.start("hang", &["duration=9s", "abort_when=error_rate > 0.3"]);
    unwell(&world);
    world.pass(2 * SECOND);
    let guarded = report(&world, id);
    let expected = "It did not hold: the fault was ended early, as error_rate > 0.3.";
    assert_eq!((guarded.status, verdict(&guarded)), (Status::Aborted, (Some(false), expected.into())));
    let id = world.start("hang", &[]);
    world.pass(MS);
    let spared = "Nothing was done: steady state: error_rate < 0.05 does not hold.";
    let not_started = report(&world, id);
    assert_eq!((verdict(&not_started), not_started.replay), ((None, spared.into()), None));
}

#[test]
fn what_was_ended_early_has_its_figures_too() {
    let mut world = World::new(Plan::default());
    well(&world);
    let id = world.start("lost_request", &["duration=30s"]);
    world.pass(4 * SECOND);
    world.controller.stop(id.0, world.now).unwrap();
    world.pass(SECOND);
    let report = report(&world, id);
    assert_eq!(report.verdict(), "Not known: it was ended early (stopped by a person).");
    assert_eq!((report.during.unwrap().duration, report.samples.len()), (4000, 14));
    assert_eq!(report.replay, Some(format!("mcpscope chaos replay {} --start", id.0)));
}

#[test]
fn lists_of_reports_have_no_samples_and_a_report_has_them_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Journal::open(folder.path(), JournalLimits::default()).unwrap();
    for journal in [Journal::in_memory(), open()] {
        let mut world = World::with_journal(Plan::default(), 1, journal);
        assert_eq!(experiment(&mut world, 0).samples.len(), 18);
        let test = world.controller.history(1, world.now).remove(0);
        assert!(test.details.report.unwrap().samples.is_empty());
    }
    let world = World::with_journal(Plan::default(), 1, open());
    assert_eq!(world.controller.report(1, world.now).unwrap().samples.len(), 18);
    let test = world.controller.experiment(1, world.now).unwrap();
    assert_eq!(test.details.report.unwrap().samples.len(), 18);
    assert!(world.controller.history(1, world.now)[0].details.report.as_ref().unwrap().samples.is_empty());
}

#[test]
fn what_is_not_known_is_not_in_it_and_reports_of_before_can_be_read() {
    let report = experiment(&mut World::new(Plan::default()), 0);
    let mut json = serde_json::to_value(&report).unwrap();
    let before = json["before"].as_object().unwrap();
    assert!(!before.contains_key("repeated") && !before.contains_key("touched"), "{before:?}");
    assert_eq!(serde_json::from_value::<Report>(json.clone()).unwrap(), report);
    for name in ["samples", "steady_state", "replay"] {
        json.as_object_mut().unwrap().remove(name).unwrap();
    }
    assert_eq!(serde_json::from_value::<Report>(json).unwrap().seed, report.seed);
}
