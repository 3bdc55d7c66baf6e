//! This process as the system counts it.

use std::time::{Duration, SystemTime};

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// This process at one moment, in absolute figures: what Prometheus calls `process_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessReading {
    /// CPU time of all its threads, user and system, since it started. That of its children is not in it.
    pub cpu: Duration,
    /// Resident memory in bytes. Pages that processes share count for each.
    pub resident_bytes: u64,
    /// Address space in bytes, whether there is memory behind it or not.
    pub virtual_bytes: u64,
    /// When it started. As exact as the system tells: up to a second early, but the same in every reading, unless the
    /// wall clock is set.
    pub started: SystemTime,
    /// Open file descriptors; nothing where the system does not tell.
    pub open_fds: Option<u64>,
    /// How many there can be at most (the soft limit); nothing where there is no limit.
    pub max_fds: Option<u64>,
    /// Threads; nothing where the system does not tell, which only Linux does.
    pub threads: Option<u64>,
}

/// CPU time of all threads since the process started.
pub(crate) fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// How many file descriptors the process can have open, if there is a limit.
pub(crate) fn max_fds() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::Command;
    use std::time::Instant;

    use super::*;
    use crate::channel::channel;

    const MARK: &str = "started and max_fds:";

    /// What the test below has another process do.
    #[test]
    fn a_reading_is_printed() {
        let (_reporter, view) = channel(Instant::now());
        let reading = view.process().unwrap();
        let started = reading.started.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        println!("\n{MARK} {} {}", started.as_nanos(), reading.max_fds.unwrap());
        assert_eq!(view.process().unwrap().started, reading.started, "it moves");
    }

    #[test]
    fn a_process_knows_when_it_started_and_how_much_it_may_open() {
        let this = std::fs::read_link("/proc/self/exe").unwrap();
        let before = SystemTime::now();
        // A shell that becomes this program, with another limit: one process all the time.
        let script = "ulimit -n 99 && exec \"$0\" --exact process::tests::a_reading_is_printed --nocapture";
        let output = Command::new("sh").args(["-c", script]).arg(this).output().unwrap();
        let after = SystemTime::now();

        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        let (_, numbers) = text.split_once(MARK).expect(&text);
        let numbers: Vec<u64> = numbers.split_ascii_whitespace().take(2).map(|n| n.parse().unwrap()).collect();
        let started = SystemTime::UNIX_EPOCH + Duration::from_nanos(numbers[0]);
        // Rounded down are the boot time, to seconds, and the time since, to ticks.
        let rounded = Duration::from_millis(1010);
        assert!(before - rounded <= started && started <= after, "{before:?} {started:?} {after:?}");
        assert_eq!(numbers[1], 99);
    }
}
