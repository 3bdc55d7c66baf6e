//! What this process takes of the machine.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Readings closer together than this say nothing about CPU use: the share of the last interval is repeated.
const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// What this process takes of the machine at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Resident memory in bytes; nothing where the system does not tell.
    pub resident_bytes: Option<u64>,
    /// Share of all usable cores (0..=1) taken since the reading before.
    pub cpu_ratio: f64,
}

/// Reads what this process takes of the machine. CPU use is a rate, so the meter remembers its last reading.
#[derive(Debug)]
pub(crate) struct UsageMeter {
    cores: f64,
    last: Mutex<Reading>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    cpu: Duration,
    ratio: f64,
}

impl UsageMeter {
    /// A meter whose first interval begins at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        // Honours CPU affinity and, on Linux, the quota of the control group.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { cores: cores as f64, last: Mutex::new(Reading { at: now, cpu: cpu_time(), ratio: 0.0 }) }
    }

    /// Reads at `now`.
    pub(crate) fn read(&self, now: Instant) -> Usage {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let interval = now.saturating_duration_since(last.at);
        if interval >= MIN_INTERVAL {
            let cpu = cpu_time();
            let taken = cpu.saturating_sub(last.cpu).as_secs_f64() / interval.as_secs_f64();
            *last = Reading { at: now, cpu, ratio: (taken / self.cores).clamp(0.0, 1.0) };
        }
        Usage { resident_bytes: resident_bytes(), cpu_ratio: last.ratio }
    }
}

/// CPU time of all threads since the process started.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

#[cfg(target_os = "linux")]
fn resident_bytes() -> Option<u64> {
    // Pages: "size resident shared ...", proc_pid_statm(5).
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(not(target_os = "linux"))]
fn resident_bytes() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_thread_shows() {
        let start = Instant::now();
        let meter = UsageMeter::new(start);
        while start.elapsed() < MIN_INTERVAL + Duration::from_millis(100) {
            std::hint::black_box(0);
        }
        let usage = meter.read(Instant::now());
        assert!(usage.cpu_ratio > 0.0 && usage.cpu_ratio <= 1.0, "{usage:?}");
        assert_eq!(meter.read(Instant::now()).cpu_ratio, usage.cpu_ratio, "too soon for another");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_is_touched_shows() {
        let meter = UsageMeter::new(Instant::now());
        let before = meter.read(Instant::now()).resident_bytes.unwrap();
        let touched = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = meter.read(Instant::now()).resident_bytes.unwrap();
        assert!(after - before > 60 << 20, "{before} {after}");
        drop(touched);
    }
}
