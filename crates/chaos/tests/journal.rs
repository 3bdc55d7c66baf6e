//! Journals: what they say is what happened, again and again, also after a crash.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::{MS, SECOND, World, request};
use mcpscope_chaos::{
    Cause, ChaosTarget, Journal, JournalLimits, Mode, Order, Plan, Recording, Refusal, ReplayError, Scenario, Status,
    TargetError,
};
use mcpscope_core::{FaultId, Injection};

/// Two connections with calls of two tools, and some time between them.
fn traffic(world: &mut World, calls: u64) -> Vec<Injection> {
    let mut clients = [world.client(), world.client()];
    let mut all = Vec::new();
    for call in 0..calls {
        for (client, tool) in clients.iter_mut().zip(["echo", "add"]) {
            all.extend(client.request(tool, world.now));
            all.extend(client.response(tool, world.now));
        }
        if call % 10 == 0 {
            world.pass(10 * MS);
        }
    }
    all
}

/// The journal of one experiment under that traffic.
fn journal(seed: u64, scenario: &str, pairs: &[&str]) -> String {
    let mut world = World::with_journal(Plan::default(), seed, Journal::in_memory());
    let id = world.start(scenario, pairs);
    let hits = traffic(&mut world, 200);
    world.pass(120 * SECOND);
    let report = world.controller.report(id.0, world.now).unwrap();
    assert_eq!(report.injection.injected, hits.len() as u64);
    world.controller.journal(id.0, world.now).unwrap()
}

/// Without the time stamps.
fn timeless(journal: &str) -> Vec<serde_json::Value> {
    let line = |line| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["t_us"] = 0.into();
        line
    };
    journal.lines().map(line).collect()
}

const EXPERIMENTS: [(&str, &[&str]); 6] = [
    ("latency_injection", &["intensity=0.4", "distribution=lognormal"]),
    ("packet_loss", &["intensity=0.3"]),
    ("packet_loss", &["model=gilbert_elliott", "intensity=0.2", "what=response"]),
    ("network_partition", &["intensity=0.5", "mode=half_open"]),
    ("tool_error", &["probability=0.5", "tool=echo", "max_hits=20"]),
    ("http_status", &["every=3", "after=10", "status=429", "retry_after=2s"]),
];

#[test]
fn the_same_seed_and_traffic_give_the_same_journal() {
    for (scenario, pairs) in EXPERIMENTS {
        let (one, two, other) = (journal(1, scenario, pairs), journal(1, scenario, pairs), journal(2, scenario, pairs));
        assert_eq!(timeless(&one), timeless(&two), "{scenario}");
        let [one, two, other] = [one, two, other].map(|text| Recording::parse(&text).unwrap());
        assert!(!one.hits().is_empty(), "{scenario}");
        assert_eq!(one.first_divergence(&two), None, "{scenario}");
        if pairs.iter().any(|pair| pair.starts_with("intensity=0.4") || pair.starts_with("probability")) {
            assert!(one.first_divergence(&other).is_some(), "{scenario}: another seed, other decisions");
        }
    }
}

#[test]
fn an_experiment_is_repeated_by_its_seed_whatever_came_before() {
    let first = Recording::parse(&journal(1, "packet_loss", &[])).unwrap();
    let mut world = World::with_journal(Plan::default(), 99, Journal::in_memory());
    let _before = world.client();
    let other = world.start("duplicate_response", &[]);
    traffic(&mut world, 7);
    world.controller.stop(other.0, world.now).unwrap();
    let id = world.controller.start(&first.request(), world.now).unwrap();
    traffic(&mut world, 200);
    world.pass(120 * SECOND);
    let second = Recording::parse(&world.controller.journal(id.0, world.now).unwrap()).unwrap();
    // The connection that was there already is the first that the experiment sees, and nothing passes on it.
    let shifted = |recording: &Recording, by| {
        recording.hits().iter().map(|hit| (hit.connection - by, hit.ordinal)).collect::<Vec<_>>()
    };
    assert_ne!(shifted(&first, 0), shifted(&second, 1), "draws belong to a connection's number");
    let mut world = World::with_journal(Plan::default(), 99, Journal::in_memory());
    let id = world.controller.start(&first.request(), world.now).unwrap();
    traffic(&mut world, 200);
    world.pass(120 * SECOND);
    let third = Recording::parse(&world.controller.journal(id.0, world.now).unwrap()).unwrap();
    assert_eq!(first.first_divergence(&third), None);
}

#[test]
fn a_journal_is_verified_decision_by_decision() {
    for (scenario, pairs) in EXPERIMENTS {
        let text = journal(3, scenario, pairs);
        assert_eq!(Recording::parse(&text).unwrap().verify(), None, "{scenario}");
    }
    let text = journal(3, "latency_injection", &["intensity=0.4"]);
    let recording = Recording::parse(&text).unwrap();
    let amount = recording.hits()[5].amount.unwrap();
    let forged = text.replacen(&format!("\"amount\":{amount}"), &format!("\"amount\":{}", amount + 1000), 1);
    let divergence = Recording::parse(&forged).unwrap().verify().unwrap();
    assert_eq!((divergence.at, divergence.expected.and_then(|hit| hit.amount)), (5, Some(amount)));
    let seed = format!("\"seed\":{}", recording.header().seed);
    let reseeded = text.replacen(&seed, "\"seed\":1", 1);
    let divergence = Recording::parse(&reseeded).unwrap().verify().unwrap();
    assert!(divergence.to_string().starts_with("hit 0: expected "), "{divergence}");
}

#[test]
fn what_is_no_whole_journal_is_refused() {
    let text = journal(3, "packet_loss", &[]);
    let parse = |text: &str| Recording::parse(text).unwrap_err();
    let lines = text.lines().count();
    assert_eq!(parse(""), ReplayError::NoJournal);
    assert_eq!(parse("{\"record\":\"hit\"}"), ReplayError::NoJournal);
    assert_eq!(parse(&text.replacen("\"version\":1", "\"version\":2", 1)), ReplayError::Version { found: 2 });
    let whole_lines: String = text.lines().take(lines - 1).map(|line| format!("{line}\n")).collect();
    assert_eq!(parse(&whole_lines), ReplayError::Cut { line: lines - 1 });
    assert_eq!(parse(&text[..text.len() - 10]), ReplayError::BadLine { line: lines });
    let mut fewer: Vec<_> = text.lines().collect();
    let hit = fewer.iter().position(|line| line.contains("\"record\":\"hit\"")).unwrap();
    fewer.remove(hit);
    assert_eq!(parse(&fewer.join("\n")), ReplayError::Incomplete { missing: 1 });
    let packets = text.replacen("\"parameters\":{}", "\"parameters\":{\"backend\":\"netem\"}", 1);
    assert_eq!(parse(&packets), ReplayError::Packets);
    let twice = format!("{text}{}", text.lines().last().unwrap());
    assert_eq!(parse(&twice), ReplayError::BadLine { line: lines + 1 });
    for cut in (0..text.len() - 1).step_by(997) {
        assert!(Recording::parse(&text[..cut]).is_err(), "{cut} of {} bytes", text.len());
    }
}

fn open(folder: &Path) -> Journal {
    Journal::open(folder, JournalLimits::default()).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn history_outlives_the_instance() {
    let folder = tempfile::tempdir().unwrap();
    let mut ids = Vec::new();
    for run in 0..2 {
        let mut world = World::with_journal(Plan::default(), 1, open(folder.path()));
        assert_eq!(world.controller.status(world.now).total_history, run);
        ids.push(world.start("hang", &["duration=1s"]).0);
        traffic(&mut world, 20);
        world.pass(20 * SECOND);
        let history = world.controller.history(10, world.now);
        let newest_first: Vec<_> = ids.iter().rev().copied().collect();
        assert_eq!(history.iter().map(|test| test.id).collect::<Vec<_>>(), newest_first);
        let recording = Recording::parse(&world.controller.journal(ids[0], world.now).unwrap()).unwrap();
        assert_eq!((recording.verify(), recording.hits().len()), (None, 40));
    }
    assert_eq!(
        (names(folder.path()), ids),
        (vec!["1.jsonl".into(), "2.jsonl".into(), "engine.jsonl".into()], vec![1, 2])
    );
}

#[test]
fn history_has_also_what_is_not_kept_in_memory() {
    const COUNT: u64 = 300;
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::with_journal(Plan::default(), 1, open(folder.path()));
    for _ in 0..COUNT {
        world.start("hang", &["duration=1ms", "recovery_time=1ms"]);
        world.pass(10 * SECOND);
    }
    for world in [world, World::with_journal(Plan::default(), 1, open(folder.path()))] {
        let ids = |most| world.controller.history(most, world.now).iter().map(|test| test.id).collect::<Vec<_>>();
        assert_eq!(ids(1000), (1..=COUNT).rev().collect::<Vec<_>>());
        assert_eq!(ids(280), (21..=COUNT).rev().collect::<Vec<_>>());
    }
}

#[test]
fn what_a_crash_left_is_closed_by_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    {
        let mut world = World::with_journal(Plan::default(), 1, open(folder.path()));
        world.start("hang", &[]);
        traffic(&mut world, 20);
        world.pass(SECOND);
    }
    let running = folder.path().join("1.running.jsonl");
    // The crash came in the middle of a line, and another before anything was written.
    let text = fs::read(&running).unwrap();
    fs::write(&running, &text[..text.len() - 7]).unwrap();
    fs::write(folder.path().join("2.running.jsonl"), "{\"rec").unwrap();
    let journal = open(folder.path());
    assert_eq!(journal.swept().ids, [1]);
    let mut world = World::with_journal(Plan::default(), 1, journal);
    world.pass(SECOND);
    let test = &world.controller.history(10, world.now)[0];
    assert_eq!((test.id, test.status), (1, Status::Aborted));
    assert_eq!(test.details.error.as_deref(), Some("the instance ended during the experiment"));
    assert!(Recording::parse(&world.controller.journal(1, world.now).unwrap()).is_err(), "it is cut");
    assert_eq!(names(folder.path()), ["1.jsonl", "engine.jsonl"]);
    let engine = fs::read_to_string(folder.path().join("engine.jsonl")).unwrap();
    assert!(engine.lines().last().unwrap().contains("\"event\":\"swept\",\"ids\":[1]"), "{engine}");
    assert_eq!(world.start("hang", &[]).0, 2);
}

#[test]
fn the_oldest_make_room() {
    let folder = tempfile::tempdir().unwrap();
    let limits = JournalLimits { experiments: 3, ..JournalLimits::default() };
    let mut world = World::with_journal(Plan::default(), 1, Journal::open(folder.path(), limits).unwrap());
    for _ in 0..5 {
        world.start("hang", &["duration=1s", "recovery_time=1s"]);
        world.pass(10 * SECOND);
    }
    assert_eq!(names(folder.path()), ["3.jsonl", "4.jsonl", "5.jsonl", "engine.jsonl"]);
    assert_eq!(world.controller.status(world.now).total_history, 3);
}

#[test]
fn a_journal_that_is_full_says_so_and_counts_on() {
    let folder = tempfile::tempdir().unwrap();
    let limits = JournalLimits { experiment_bytes: 10_000, ..JournalLimits::default() };
    let mut world = World::with_journal(Plan::default(), 1, Journal::open(folder.path(), limits).unwrap());
    let id = world.start("hang", &[]);
    traffic(&mut world, 200);
    world.pass(60 * SECOND);
    let report = world.controller.report(id.0, world.now).unwrap();
    let text = world.controller.journal(id.0, world.now).unwrap();
    let written = text.lines().filter(|line| line.contains("\"record\":\"hit\"")).count() as u64;
    assert!(written > 0 && text.len() < 15_000);
    assert_eq!((report.injection.injected, report.injection.unjournalled), (400, 400 - written));
    let error = Recording::parse(&text).unwrap_err();
    assert_eq!(error, ReplayError::Incomplete { missing: 400 - written });
}

#[test]
fn what_finds_no_place_on_the_way_to_the_journal_is_counted() {
    let mut world = World::new(Plan::default());
    let id = world.start("hang", &[]);
    let mut client = world.client();
    // Nobody drives the controller meanwhile.
    (0..20_000).for_each(|_| drop(client.response("echo", world.now)));
    world.pass(60 * SECOND);
    let report = world.controller.report(id.0, world.now).unwrap();
    let text = world.controller.journal(id.0, world.now).unwrap();
    let written = text.lines().filter(|line| line.contains("\"record\":\"hit\"")).count() as u64;
    assert_eq!((report.injection.injected, report.injection.unjournalled), (20_000, 20_000 - written));
    assert!(written < 20_000);
}

#[test]
fn what_cannot_be_written_down_is_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::with_journal(Plan::default(), 1, open(&folder.path().join("journal")));
    fs::remove_dir(folder.path().join("journal")).unwrap();
    let refusal = world.controller.start(&request("hang", &[]), world.now).unwrap_err();
    assert!(matches!(refusal, Refusal::Journal(_)) && !world.injector.is_active());
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(Journal::open(&file, JournalLimits::default()).is_err());
}

/// A target that does what it is told, and remembers it.
#[derive(Debug, Default)]
struct Fake {
    applied: Mutex<Vec<String>>,
    undone: Mutex<Vec<u64>>,
    left: Option<String>,
    breaks: bool,
    journal: Option<std::path::PathBuf>,
}

impl ChaosTarget for Fake {
    fn name(&self) -> &str {
        "worker"
    }

    fn is_critical(&self) -> bool {
        false
    }

    fn carries(&self, scenario: Scenario) -> bool {
        scenario == Scenario::ProcessCrash
    }

    fn apply(&self, order: &Order<'_>) -> Result<(), TargetError> {
        if let Some(folder) = &self.journal {
            let text = fs::read_to_string(folder.join(format!("{}.running.jsonl", order.fault.0))).unwrap();
            assert!(text.lines().last().unwrap().contains("\"record\":\"intent\""), "it is on disk by now: {text}");
        }
        self.applied.lock().unwrap().push(order.scenario.to_string());
        if self.breaks { Err(TargetError("no such process".into())) } else { Ok(()) }
    }

    fn undo(&self, fault: FaultId) -> Result<(), TargetError> {
        self.undone.lock().unwrap().push(fault.0);
        Ok(())
    }

    fn left_over(&self, _: FaultId) -> Option<String> {
        self.left.clone()
    }
}

#[test]
fn what_is_done_outside_is_written_down_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::with_journal(Plan::default(), 1, open(folder.path()));
    let refusal = world.controller.start(&request("process_crash", &[]), world.now).unwrap_err();
    assert!(refusal.to_string().starts_with("process_crash is not available here"), "{refusal}");
    let target = Arc::new(Fake { journal: Some(folder.path().into()), ..Fake::default() });
    world.controller.register(target.clone(), world.now);
    let refusal = world.controller.start(&request("process_crash", &["target_processes=other"]), world.now);
    assert!(matches!(refusal, Err(Refusal::NothingMatched { .. })), "{refusal:?}");
    let id = world.start("process_crash", &["duration=2s"]);
    assert_eq!((target.applied.lock().unwrap().len(), world.status(id)), (1, Status::Running));
    assert!(!world.injector.is_active(), "messages have nothing to do with it");
    world.pass(30 * SECOND);
    assert_eq!((&*target.undone.lock().unwrap(), world.status(id)), (&vec![id.0], Status::Completed));
    let text = world.controller.journal(id.0, world.now).unwrap();
    assert!(text.contains("\"record\":\"undone\""), "{text}");
    let recording = mcpscope_chaos::Recording::parse(&text).unwrap();
    assert_eq!(
        (recording.hits().len(), recording.verify()),
        (0, None),
        "it has no messages, and can be asked for again"
    );
}

#[test]
fn what_a_crash_left_done_outside_is_undone() {
    let folder = tempfile::tempdir().unwrap();
    {
        let world = World::with_journal(Plan::default(), 1, open(folder.path()));
        world.controller.register(Arc::new(Fake::default()), world.now);
        world.start("process_crash", &[]);
    }
    // It had done it again, and gone on for two seconds.
    let running = folder.path().join("1.running.jsonl");
    let more = r#"{"record":"intent","t_us":1500000,"target":"worker"}
{"record":"state","t_us":3500000,"status":"running"}
"#;
    let text = fs::read_to_string(&running).unwrap();
    fs::write(&running, text + more).unwrap();
    let journal = open(folder.path());
    assert_eq!(journal.swept().intents, [(1, "worker".to_owned())]);
    let world = World::with_journal(Plan::default(), 1, journal);
    let report = world.controller.report(1, world.now).unwrap();
    assert_eq!((report.injection.injected, report.injection.observed), (2, 2));
    assert_eq!(report.end_time - report.start_time, 3500);
    let html = report.to_html();
    assert!(html.contains("Not known: nobody looked.") && !html.contains("Nothing was left over."), "{html}");
    let target = Arc::new(Fake::default());
    world.controller.register(target.clone(), world.now);
    assert_eq!(&*target.undone.lock().unwrap(), &[1]);
}

#[test]
fn a_target_that_fails_fails_the_experiment_and_a_leak_stops_everything() {
    let mut world = World::new(Plan::default());
    world.controller.register(Arc::new(Fake { breaks: true, ..Fake::default() }), world.now);
    let id = world.start("process_crash", &[]);
    world.pass(SECOND);
    let test = world.test(id);
    assert_eq!((test.status, test.details.error.as_deref()), (Status::Failed, Some("worker: no such process")));
    let mut world = World::new(Plan::default());
    world.controller.register(Arc::new(Fake { left: Some("pid 42".into()), ..Fake::default() }), world.now);
    let id = world.start("process_crash", &["duration=1s"]);
    world.pass(60 * SECOND);
    let report = world.controller.report(id.0, world.now).unwrap();
    assert_eq!(report.leak.as_deref(), Some("worker: pid 42"));
    let status = world.controller.status(world.now);
    assert_eq!(status.stopped_by.as_deref(), Some("a leak: worker: pid 42"));
    world.controller.emergency_stop(Cause::Person, world.now);
}

#[test]
fn there_is_an_end_to_crashes() {
    let mut plan = Plan::default();
    plan.blast_radius.max_kills_per_hour = 2;
    let mut world = World::new(plan);
    world.controller.register(Arc::new(Fake::default()), world.now);
    for _ in 0..2 {
        world.start("process_crash", &["duration=1s"]);
        world.pass(20 * SECOND);
    }
    let refusal = world.controller.start(&request("process_crash", &[]), world.now).unwrap_err().to_string();
    assert!(refusal.contains("2 crashes in the last hour"), "{refusal}");
    world.pass(3600 * SECOND);
    world.start("process_crash", &["duration=1s"]);
}

#[test]
fn at_the_end_of_the_instance_everything_is_ended_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan { mode: Mode::Scheduled, max_concurrent_tests: 3, ..Plan::default() };
    let mut world = World::with_journal(plan, 1, open(folder.path()));
    world.watched.set(100, 0);
    let target = Arc::new(Fake { left: Some("pid 42".into()), ..Fake::default() });
    world.controller.register(target.clone(), world.now);
    let left_over = world.start("process_crash", &["duration=1s", "recovery_time=1s"]);
    world.pass(SECOND / 2);
    world.controller.stop(left_over.0, world.now).unwrap();
    let recovering = world.start("hang", &["duration=1s", "recovery_time=30s"]);
    let outside = world.start("process_crash", &["duration=60s"]);
    world.watched.set(100, 50);
    world.pass(SECOND);
    // It was unwell in the last second of the fault, and no sample is due any more until the end.
    world.watched.set(100, 0);
    let running = world.start("hang", &["duration=60s"]);
    let mut client = world.client();
    assert_eq!(client.response("echo", world.now).len(), 1);
    assert_eq!((world.status(recovering), world.status(left_over)), (Status::Recovering, Status::Aborted));
    assert_eq!(&*target.undone.lock().unwrap(), &[left_over.0]);

    world.now += 100 * MS;
    world.controller.shut_down(world.now);
    assert!(!world.injector.is_active() && client.response("echo", world.now).is_empty());
    assert_eq!(&*target.undone.lock().unwrap(), &[left_over.0, outside.0]);
    let all = [left_over, recovering, outside, running].map(|id| id.0);
    assert_eq!(names(folder.path()), ["1.jsonl", "2.jsonl", "3.jsonl", "4.jsonl", "engine.jsonl"]);
    for id in all {
        let report = world.controller.report(id, world.now).unwrap();
        let reason = if id == left_over.0 { "stopped by a person" } else { "the instance is stopping" };
        assert_eq!((report.status, report.error.as_deref()), (Status::Aborted, Some(reason)));
        assert!(report.audit.looked_at.is_empty() && report.leak.is_none(), "nobody waited for it");
        assert!(report.before.is_some() && report.during.is_some());
        assert_eq!(report.after.is_some(), id == recovering.0);
        Recording::parse(&world.controller.journal(id, world.now).unwrap()).unwrap();
    }
    assert_eq!(world.controller.report(running.0, world.now).unwrap().injection.injected, 1);
    let status = world.controller.status(world.now);
    assert_eq!((status.active_tests, status.total_history, status.stopped_by), (0, 4, None));

    let refusal = world.controller.start(&request("hang", &[]), world.now).unwrap_err();
    assert!(matches!(refusal, Refusal::Stopping), "{refusal}");
    world.pass(3600 * SECOND);
    assert_eq!(world.controller.status(world.now).total_history, 4, "nothing is scheduled any more");
    assert_eq!(open(folder.path()).swept().ids, [0; 0]);
}
