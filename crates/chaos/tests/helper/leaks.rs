//! However a fault ends, nothing of it is left.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use mcpscope_chaos::helper::Ready;
use mcpscope_chaos::{ChaosTarget as _, Ended, ProcessId, Scenario};

use crate::embedding::Program;
use crate::outside::{
    FAULT, MS, SECOND, active, apply, busy_cores, helpers, is_there, signal, stat, target, wait_for, wait_until,
};

/// Within which nothing may be left.
const SOON: Duration = Duration::from_secs(2);
const BOTH: [Scenario; 2] = [Scenario::MemoryPressure, Scenario::CpuOverload];

pub(crate) fn tests(ready: Ready) -> Vec<Trial> {
    let mut all = Vec::new();
    for scenario in BOTH {
        let mut add = |name: &str, test: fn(Ready, Scenario)| {
            all.push(Trial::test(format!("leaks::{scenario}_{name}"), move || {
                test(ready, scenario);
                Ok(())
            }));
        };
        add("ends_when_its_program_is_killed", |_, scenario| program_ends(scenario, "waits", Some("KILL")));
        add("ends_when_its_program_is_asked_to_end", |_, scenario| program_ends(scenario, "waits", Some("TERM")));
        add("ends_when_its_program_panics", |_, scenario| program_ends(scenario, "panics", None));
        add("ends_when_its_program_returns", |_, scenario| program_ends(scenario, "returns", None));
        add("ends_with_its_target", |_, scenario| program_ends(scenario, "drops", None));
        add("does_not_need_its_program_s_file", program_is_replaced);
        add("ends_when_it_is_undone", undone);
        add("ends_when_it_is_undone_while_it_is_stopped", stopped);
        add("ends_at_its_own_deadline", deadline);
        add("is_told_when_it_is_killed", killed);
        add("is_swept_if_it_is_what_it_is_taken_for", swept);
        add("stays_by_itself", protected);
    }
    all
}

#[track_caller]
fn assert_gone_soon(process: ProcessId) {
    let start = Instant::now();
    assert!(wait_until(SOON, || !is_there(process)), "a helper is still there");
    println!("gone after {:?}", start.elapsed());
}

fn this_program() -> std::path::PathBuf {
    std::env::current_exe().unwrap()
}

fn program_ends(scenario: Scenario, then: &str, by: Option<&str>) {
    let (program, process) = Program::with_fault(&this_program(), scenario, then);
    if let Some(by) = by {
        assert!(is_there(process));
        signal(program.0.id(), by);
    }
    assert_gone_soon(process);
}

fn program_is_replaced(_: Ready, scenario: Scenario) {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("program");
    fs::copy(this_program(), &copy).unwrap();
    let (program, process) = Program::with_fault(&copy, scenario, "program is replaced");
    assert_eq!(fs::read_to_string(&copy).unwrap(), "no program");
    assert!(is_there(process));
    drop(program);
    assert_gone_soon(process);
}

fn undone(ready: Ready, scenario: Scenario) {
    let target = target(ready);
    apply(&target, scenario, &[], 60 * SECOND).unwrap();
    let process = active(&target);
    assert_eq!(target.helpers(), [(process.pid, FAULT)]);
    let start = Instant::now();
    target.undo(FAULT).unwrap();
    println!("undone after {:?}", start.elapsed());
    assert_gone_soon(process);
    assert!(wait_until(SOON, || target.left_over(FAULT).is_none()));
    assert_eq!((target.helpers(), helpers()), (Vec::new(), 0));
    assert_eq!(target.progress(FAULT).ended, None);
    // It may be asked more than once, also about what never was.
    target.undo(FAULT).unwrap();
    target.undo(mcpscope_core::FaultId(77)).unwrap();
}

fn stopped(ready: Ready, scenario: Scenario) {
    let target = target(ready);
    apply(&target, scenario, &[], 60 * SECOND).unwrap();
    let process = active(&target);
    signal(process.pid, "STOP");
    let left = target.left_over(FAULT);
    assert_eq!(left, Some(format!("the helper process {} is still there", process.pid)));
    target.undo(FAULT).unwrap();
    assert_gone_soon(process);
}

fn deadline(ready: Ready, scenario: Scenario) {
    let target = target(ready);
    let start = Instant::now();
    apply(&target, scenario, &[], SECOND).unwrap();
    let process = active(&target);
    assert!(wait_until(SECOND + SOON, || !is_there(process)), "a helper is still there");
    assert!(start.elapsed() > 990 * MS, "it ended early: {:?}", target.progress(FAULT));
    let progress = wait_for(&target, "its end is known", |_| target.left_over(FAULT).is_none());
    assert!(progress.ended.is_none() && progress.achieved.is_some(), "{progress:?}");
}

fn killed(ready: Ready, scenario: Scenario) {
    let target = target(ready);
    apply(&target, scenario, &[], 60 * SECOND).unwrap();
    signal(active(&target).pid, "KILL");
    let progress = wait_for(&target, "its end is known", |progress| progress.ended.is_some());
    let Some(Ended::Failed(why)) = progress.ended else { panic!("{progress:?}") };
    assert!(why.starts_with("the helper process ended before its time (signal: 9"), "{why}");
}

fn swept(ready: Ready, scenario: Scenario) {
    let (first, second) = (target(ready), target(ready));
    apply(&first, scenario, &[], 60 * SECOND).unwrap();
    let process = active(&first);
    let another = ProcessId { started: process.started - 1, ..process };
    second.sweep(FAULT, another).unwrap();
    assert!(is_there(process), "it is not the one that was meant");
    second.sweep(FAULT, process).unwrap();
    assert!(!is_there(process));
    // A process of the right number and time that is no helper.
    let mut decoy = Command::new("sleep").arg("60").spawn().unwrap();
    let started = stat(decoy.id(), 22).unwrap().parse().unwrap();
    second.sweep(FAULT, ProcessId { pid: decoy.id(), started }).unwrap();
    assert!(decoy.try_wait().unwrap().is_none(), "it is nobody's helper");
    decoy.kill().unwrap();
    decoy.wait().unwrap();
}

/// What a helper does to be gone in time, and to be the first to go.
fn protected(ready: Ready, scenario: Scenario) {
    let target = target(ready);
    apply(&target, scenario, &[], 10 * SECOND).unwrap();
    let pid = active(&target).pid;
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    assert_eq!(read("oom_score_adj").trim(), "1000");
    assert_eq!(stat(pid, 5), Some(pid.to_string()), "it is not in a process group of its own");
    let limits = read("limits");
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_ascii_whitespace().next().unwrap().parse::<u64>().unwrap_or(u64::MAX)
    };
    assert_eq!(limit("Max core file size"), 0);
    assert!(limit("Max cpu time") < 20 * busy_cores(pid).max(1) as u64, "{limits}");
    assert!(limit("Max address space") < 4 << 30, "{limits}");
}
