//! The machine under the process: its cores, its memory, the processes on it.

use std::time::Duration;

#[cfg(not(target_os = "linux"))]
use crate::elsewhere::System;
#[cfg(target_os = "linux")]
use crate::linux::System;

/// Readings closer together than this say nothing about CPU use: the share of the last interval is repeated.
pub(crate) const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// One process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// The process group, named after the process that leads it.
    pub(crate) group: u32,
    /// When it started, in a unit of the system's own: tells processes apart that had the same `pid`.
    pub(crate) started: u64,
    pub(crate) resident_bytes: u64,
    /// CPU time of all its threads since it started.
    pub(crate) cpu: Duration,
    /// CPU time of its children that have ended and that it waited for, and of theirs; zero where the system does not
    /// tell.
    pub(crate) waited_for: Duration,
}

#[derive(Debug)]
pub(crate) struct Machine {
    cores: f64,
    pub(crate) system: System,
}

impl Machine {
    pub(crate) fn new() -> Self {
        // Honours CPU affinity and, on Linux, the quota of the control group.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { cores: cores as f64, system: System::new() }
    }

    /// The share of all usable cores (0..=1) that `cpu` time is of an interval, which is not zero.
    pub(crate) fn share(&self, cpu: Duration, interval: Duration) -> f64 {
        (cpu.as_secs_f64() / interval.as_secs_f64() / self.cores).clamp(0.0, 1.0)
    }
}
