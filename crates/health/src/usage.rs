//! What this process takes of the machine.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::machine::{MIN_INTERVAL, Machine};
use crate::process::cpu_time;

/// What a process, or a group of them, takes of the machine at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Resident memory in bytes; nothing where the system does not tell. Pages that processes share count for each.
    pub resident_bytes: Option<u64>,
    /// `resident_bytes` as a share (0..=1) of the limit that really applies to this process: the tightest of the
    /// control groups it is in, at most the machine's memory. Of the resident memory because that is what the process
    /// itself can do something about: a control group's own count has the page cache and its other processes in it.
    pub memory_ratio: Option<f64>,
    /// Share of all usable cores (0..=1) taken since the reading before.
    pub cpu_ratio: f64,
}

impl Usage {
    /// `limit` is the memory limit in bytes.
    pub(crate) fn new(resident_bytes: Option<u64>, limit: Option<u64>, cpu_ratio: f64) -> Self {
        // No limit is zero in earnest; a division by it would not be a share.
        let ratio = |resident: u64, limit: u64| (resident as f64 / limit.max(1) as f64).min(1.0);
        let memory_ratio = resident_bytes.zip(limit).map(|(resident, limit)| ratio(resident, limit));
        Self { resident_bytes, memory_ratio, cpu_ratio }
    }
}

/// Reads what this process takes of the machine. CPU use is a rate, so the meter remembers its last reading.
#[derive(Debug)]
pub(crate) struct UsageMeter(Mutex<Reading>);

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    cpu: Duration,
    ratio: f64,
    memory_limit: Option<u64>,
}

impl UsageMeter {
    /// A meter whose first interval begins at `now`.
    pub(crate) fn new(machine: &Machine, now: Instant) -> Self {
        let memory_limit = machine.system.memory_limit();
        Self(Mutex::new(Reading { at: now, cpu: cpu_time(), ratio: 0.0, memory_limit }))
    }

    /// Reads at `now`.
    pub(crate) fn read(&self, machine: &Machine, now: Instant) -> Usage {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let interval = now.saturating_duration_since(last.at);
        if interval >= MIN_INTERVAL {
            let cpu = cpu_time();
            let ratio = machine.share(cpu.saturating_sub(last.cpu), interval);
            // Again every time: a limit can be changed while the process runs.
            *last = Reading { at: now, cpu, ratio, memory_limit: machine.system.memory_limit() };
        }
        Usage::new(machine.system.resident_bytes(), last.memory_limit, last.ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_thread_shows() {
        let start = Instant::now();
        let machine = Machine::new();
        let meter = UsageMeter::new(&machine, start);
        while start.elapsed() < MIN_INTERVAL + Duration::from_millis(100) {
            std::hint::black_box(0);
        }
        let usage = meter.read(&machine, Instant::now());
        assert!(usage.cpu_ratio > 0.0 && usage.cpu_ratio <= 1.0, "{usage:?}");
        assert_eq!(meter.read(&machine, Instant::now()).cpu_ratio, usage.cpu_ratio, "too soon for another");
    }

    #[test]
    fn memory_that_is_touched_shows() {
        let machine = Machine::new();
        let meter = UsageMeter::new(&machine, Instant::now());
        let before = meter.read(&machine, Instant::now());
        let touched = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = meter.read(&machine, Instant::now());
        assert!(after.resident_bytes.unwrap() - before.resident_bytes.unwrap() > 60 << 20, "{before:?} {after:?}");
        assert!(after.memory_ratio > before.memory_ratio && after.memory_ratio <= Some(1.0), "{before:?} {after:?}");
        drop(touched);
    }

    #[test]
    fn the_memory_ratio_is_a_share_of_the_limit() {
        let ratio = |resident, limit| Usage::new(resident, limit, 0.0).memory_ratio;
        assert_eq!(ratio(Some(1), Some(4)), Some(0.25));
        assert_eq!(ratio(Some(5), Some(4)), Some(1.0));
        assert_eq!((ratio(Some(5), Some(0)), ratio(Some(0), Some(0))), (Some(1.0), Some(0.0)));
        assert_eq!((ratio(None, Some(4)), ratio(Some(1), None)), (None, None));
    }
}
