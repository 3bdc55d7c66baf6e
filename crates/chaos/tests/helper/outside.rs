//! What `/proc` says, and what these tests do with a target.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use mcpscope_chaos::helper::{Ready, ResourceTarget};
use mcpscope_chaos::{ChaosTarget as _, Order, Parameters, ProcessId, Progress, ProtectedNames, Scenario, TargetError};
use mcpscope_core::FaultId;
use rustix::process::{Pid, Signal, kill_process};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const FAULT: FaultId = FaultId(1);

pub(crate) fn target(ready: Ready) -> ResourceTarget {
    ResourceTarget::new(ready).unwrap()
}

/// Applies a fault that lasts so long.
pub(crate) fn apply(
    target: &ResourceTarget,
    scenario: Scenario,
    pairs: &[&str],
    duration: Duration,
) -> Result<(), TargetError> {
    let parameters = Parameters::from_pairs(pairs.iter().copied()).unwrap();
    target.apply(&order(scenario, &parameters, &ProtectedNames::default(), duration))
}

pub(crate) fn order<'a>(
    scenario: Scenario,
    parameters: &'a Parameters,
    protected: &'a ProtectedNames,
    duration: Duration,
) -> Order<'a> {
    let now = Instant::now();
    let expires_at = now + duration;
    Order { fault: FAULT, scenario, parameters, victims: &[], seed: 1, now, expires_at, protected, outage: None }
}

/// Its progress, once it is so.
#[track_caller]
pub(crate) fn wait_for(target: &ResourceTarget, what: &str, is_so: impl Fn(&Progress) -> bool) -> Progress {
    let mut progress = target.progress(FAULT);
    let so = wait_until(20 * SECOND, || {
        progress = target.progress(FAULT);
        is_so(&progress)
    });
    assert!(so, "{what}: {progress:?}");
    progress
}

/// Looks every millisecond; whether it became so in time.
pub(crate) fn wait_until(at_most: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + at_most;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        thread::sleep(MS);
    }
}

/// The process of a fault that is doing something.
#[track_caller]
pub(crate) fn active(target: &ResourceTarget) -> ProcessId {
    let is_active = |progress: &Progress| progress.achieved.as_ref().is_some_and(|achieved| achieved.achieved > 0.0);
    let progress = wait_for(target, "the fault is active", |progress| is_active(progress) || progress.ended.is_some());
    assert!(is_active(&progress), "{progress:?}");
    progress.process.unwrap()
}

/// A field of `/proc/PID/stat`, numbered as in proc_pid_stat(5).
pub(crate) fn stat(pid: u32, field: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(") ")?.1;
    after_name.split(' ').nth(field - 3).map(str::to_owned)
}

pub(crate) fn is_there(process: ProcessId) -> bool {
    let is_zombie = stat(process.pid, 3).is_some_and(|state| state == "Z" || state == "X");
    stat(process.pid, 22) == Some(process.started.to_string()) && !is_zombie
}

/// Bytes of its own memory that are resident.
pub(crate) fn anonymous(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// How long all its threads have had a core, and have waited for one.
pub(crate) fn ran_and_waited(pid: u32) -> (Duration, Duration) {
    let mut sums = (Duration::ZERO, Duration::ZERO);
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let text = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
        let mut fields = text.split(' ').map(|field| Duration::from_nanos(field.trim().parse().unwrap()));
        sums.0 += fields.next().unwrap();
        sums.1 += fields.next().unwrap();
    }
    sums
}

/// On how many cores it keeps a thread busy.
pub(crate) fn busy_cores(pid: u32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    names.filter(|name| name.starts_with("burn-")).count()
}

/// Helpers among our children.
pub(crate) fn helpers() -> usize {
    let us = std::process::id().to_string();
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes.filter(|pid: &u32| stat(*pid, 4) == Some(us.clone()) && stat(*pid, 3) != Some("Z".into())).count()
}

/// Has a network made for a fault by a helper that says nothing, before it has found out whether there can be one; its process id.
pub(crate) fn apply_silent(target: &ResourceTarget, order: &Order<'_>) -> Result<u32, TargetError> {
    loop {
        target.apply(order)?;
        let pid = target.progress(order.fault).process.unwrap().pid;
        // If it was faster, and is gone, another one is tried.
        if kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::STOP).is_ok()
            && wait_until(20 * SECOND, || !matches!(stat(pid, 3).as_deref(), Some("R" | "S" | "D")))
            && stat(pid, 3).as_deref() == Some("T")
        {
            return Ok(pid);
        }
    }
}

pub(crate) fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().unwrap().success());
}
