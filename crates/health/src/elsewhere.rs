//! Systems other than Linux, through `sysinfo`. Compiled into the tests on Linux too, so that it is known to work.

use std::iter;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate};

use crate::machine::Process;
use crate::process::{ProcessReading, cpu_time, max_fds};

/// The system, as far as it was asked; nothing where `sysinfo` does not know it.
#[derive(Debug)]
pub(crate) struct System(Mutex<Option<sysinfo::System>>);

impl System {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(sysinfo::System::new().ok()))
    }

    /// The resident memory of this process.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        self.with_own(|process| Some(process.memory()))
    }

    /// This process in absolute figures. How many threads it has is not told here.
    pub(crate) fn this_process(&self) -> Option<ProcessReading> {
        self.with_own(|process| {
            Some(ProcessReading {
                cpu: cpu_time(),
                resident_bytes: process.memory(),
                virtual_bytes: process.virtual_memory(),
                started: SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(process.start_time()))?,
                open_fds: process.open_files().map(|count| count as u64),
                max_fds: max_fds(),
                threads: None,
            })
        })
    }

    /// How much memory this process can have at most, in bytes: what the machine has.
    pub(crate) fn memory_limit(&self) -> Option<u64> {
        self.with(|system| {
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
            Some(system.total_memory()).filter(|bytes| *bytes > 0)
        })
    }

    /// The processes that lead `groups` and all that descend from them; nothing if the system does not list its
    /// processes. A group is not told here: a process that outlives all its parents is lost.
    pub(crate) fn processes(&self, groups: &[u32]) -> Option<Vec<Process>> {
        self.with(|system| {
            let what = ProcessRefreshKind::nothing().without_tasks().with_memory().with_cpu();
            system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
            let found = system.processes().values().filter_map(|process| read(system, process, groups)).collect();
            (!system.processes().is_empty()).then_some(found)
        })
    }

    fn with_own<T>(&self, read: impl FnOnce(&sysinfo::Process) -> Option<T>) -> Option<T> {
        let pid = sysinfo::get_current_pid().ok()?;
        self.with(|system| {
            let what = ProcessRefreshKind::nothing().without_tasks().with_memory();
            system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, what);
            read(system.process(pid)?)
        })
    }

    fn with<T>(&self, read: impl FnOnce(&mut sysinfo::System) -> Option<T>) -> Option<T> {
        read(self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?)
    }
}

/// Reads a process that is of one of the `groups`.
fn read(system: &sysinfo::System, process: &sysinfo::Process, groups: &[u32]) -> Option<Process> {
    let parent = |process: &&sysinfo::Process| system.process(process.parent()?);
    // No tree is as deep; parents that were read at different moments could make a circle.
    let ancestors = iter::successors(Some(process), parent).take(64);
    let group = ancestors.map(|ancestor| ancestor.pid().as_u32()).find(|pid| groups.contains(pid))?;
    Some(Process {
        pid: process.pid().as_u32(),
        group,
        started: process.start_time(),
        resident_bytes: process.memory(),
        cpu: Duration::from_millis(process.accumulated_cpu_time()),
        waited_for: Duration::ZERO,
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::linux;
    use crate::testing::{Group, SPIN, until};

    #[test]
    fn it_reads_what_the_files_say() {
        let (ours, theirs) = (linux::System::new(), System::new());
        assert_eq!(theirs.memory_limit(), ours.memory());
        // Other tests take and give back memory meanwhile.
        until(|| ours.resident_bytes().unwrap().abs_diff(theirs.resident_bytes().unwrap()) < 1 << 20);
    }

    #[test]
    fn it_reads_this_process_as_the_files_do() {
        let (ours, theirs) = (linux::System::new(), System::new());
        // Other tests map memory and open files meanwhile.
        until(|| {
            let (ours, theirs) = (ours.this_process().unwrap(), theirs.this_process().unwrap());
            // It says whole seconds, and on Linux counts the descriptor that it counts with.
            let earlier = ours.started.duration_since(theirs.started).unwrap();
            assert!(earlier < Duration::from_secs(1), "{ours:?} {theirs:?}");
            assert!(ours.cpu < theirs.cpu && ours.max_fds == theirs.max_fds, "{ours:?} {theirs:?}");
            ours.virtual_bytes.abs_diff(theirs.virtual_bytes) < 1 << 20
                && ours.resident_bytes.abs_diff(theirs.resident_bytes) < 1 << 20
                && ours.open_fds.map(|count| count + 1) == theirs.open_fds
        });
    }

    #[test]
    fn it_finds_the_same_processes() {
        let group = Group::of(&format!("({SPIN}) & ({SPIN}) & sleep 1000"));
        group.wait_for(4);
        let (ours, theirs) = (linux::System::new(), System::new());
        let sorted = |processes: Option<Vec<Process>>| {
            let mut processes = processes.unwrap();
            processes.sort_unstable_by_key(|process| process.pid);
            processes
        };
        // They spin: what `sysinfo` says is between two readings of ours. It counts in whole milliseconds.
        let tick = Duration::from_millis(10);
        // A shell that has only just become `sleep` is still growing.
        until(|| {
            let before = sorted(ours.processes(&[group.pid()]));
            let between = sorted(theirs.processes(&[group.pid()]));
            let after = sorted(ours.processes(&[group.pid()]));
            let named = |processes: &[Process]| processes.iter().map(|p| (p.pid, p.group)).collect::<Vec<_>>();
            assert_eq!((named(&between), between.len()), (named(&before), 4));
            before.iter().zip(&between).zip(&after).all(|((before, between), after)| {
                before.cpu <= between.cpu + tick
                    && between.cpu <= after.cpu + tick
                    && before.resident_bytes.abs_diff(between.resident_bytes) < 1 << 20
            })
        });
    }
}
