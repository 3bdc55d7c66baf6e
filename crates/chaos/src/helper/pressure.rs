//! When it becomes dangerous to keep memory: before the system has to kill somebody for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::helper::room::{Limits, What, size};

/// The share of the time in which nobody got anywhere for want of memory that is too much.
const STALLED: f64 = 0.2;
/// Over which it is measured.
const WINDOW: Duration = Duration::from_secs(1);

/// Watches what the kernel says about memory.
#[derive(Debug)]
pub(super) struct Watch {
    limits: Limits,
    /// The files that count kills, and what they said at first.
    kills: Vec<(PathBuf, u64)>,
    stalls: Vec<Stall>,
}

/// How long everybody was stalled, by one file.
#[derive(Debug)]
struct Stall {
    file: PathBuf,
    since: Instant,
    total: Duration,
}

impl Watch {
    /// In a file system that begins at `root`.
    pub(super) fn new(root: &Path, now: Instant) -> Self {
        let limits = Limits::new(root);
        let groups = limits.groups();
        let events = groups.v2.iter().map(|folder| folder.join("memory.events"));
        let events = events.chain(groups.v1_memory.iter().map(|folder| folder.join("memory.oom_control")));
        let kills = events.filter_map(|file| Some((kills(&file)?, file))).map(|(count, file)| (file, count)).collect();
        let pressures = groups.v2.iter().map(|folder| folder.join("memory.pressure"));
        let pressures = pressures.chain([root.join("proc/pressure/memory")]);
        let stalls = pressures.filter_map(|file| Some(Stall { total: stalled(&file)?, file, since: now })).collect();
        Self { limits, kills, stalls }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Why memory must not be kept any longer.
    pub(super) fn danger(&mut self, now: Instant) -> Option<String> {
        let close = self.limits.shared().into_iter().find(|limit| limit.free < limit.reserve() / 2);
        if let Some(limit) = close {
            let of = if limit.what == What::Machine { "the machine".to_owned() } else { limit.what.to_string() };
            return Some(format!("{of} has only {} left of {}", size(limit.free), size(limit.total)));
        }
        if let Some((file, _)) = self.kills.iter().find(|(file, before)| kills(file).is_some_and(|now| now > *before)) {
            return Some(format!("the system was out of memory ({})", file.display()));
        }
        self.stalls.iter_mut().find_map(|stall| {
            let share = stall.share(now)?;
            let file = stall.file.display();
            (share > STALLED)
                .then(|| format!("everything waited for memory {:.0} % of the time ({file})", share * 100.0))
        })
    }
}

impl Stall {
    /// Which share of the last window everybody was stalled, when one has passed.
    fn share(&mut self, now: Instant) -> Option<f64> {
        let passed = now.saturating_duration_since(self.since);
        if passed < WINDOW {
            return None;
        }
        let total = stalled(&self.file)?;
        let share = total.saturating_sub(self.total).as_secs_f64() / passed.as_secs_f64();
        (self.since, self.total) = (now, total);
        Some(share)
    }
}

/// How often something was killed in a group for want of memory, or was about to be.
fn kills(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let counts = text.lines().filter_map(|line| line.split_once(' '));
    let counts = counts.filter(|(name, _)| matches!(*name, "oom" | "oom_kill"));
    Some(counts.filter_map(|(_, count)| count.parse::<u64>().ok()).sum())
}

/// For how long nobody got anywhere, ever.
fn stalled(file: &Path) -> Option<Duration> {
    // "full avg10=0.00 avg60=0.00 avg300=0.00 total=1123523", in microseconds.
    let text = fs::read_to_string(file).ok()?;
    let full = text.lines().find(|line| line.starts_with("full "))?;
    full.rsplit_once("total=")?.1.trim().parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::helper::groups::tests::{V2, tree};

    const FILES: [(&str, &str); 7] = [
        ("proc/self/cgroup", "0::/a\n"),
        ("proc/self/mountinfo", V2),
        ("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n"),
        ("proc/pressure/memory", "some avg10=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\n"),
        ("sys/fs/cgroup/a/memory.events", "low 0\nhigh 7\nmax 3\noom 1\noom_kill 0\n"),
        ("sys/fs/cgroup/a/memory.max", "1073741824\n"),
        ("sys/fs/cgroup/a/memory.current", "0\n"),
    ];

    #[test]
    fn danger_is_seen_where_it_comes_from() {
        let start = Instant::now();
        let after = |path: &str, text: &str| {
            let root = tree(&FILES);
            let mut watch = Watch::new(root.path(), start);
            assert_eq!(watch.danger(start + WINDOW), None);
            fs::write(root.path().join(path), text).unwrap();
            watch.danger(start + 2 * WINDOW)
        };
        let told = |path, text| after(path, text).unwrap_or_default();
        // Reclaiming page cache is no danger.
        assert_eq!(after("sys/fs/cgroup/a/memory.events", "high 9\nmax 8\noom 1\noom_kill 0\n"), None);
        assert!(told("sys/fs/cgroup/a/memory.events", "oom 2\noom_kill 0\n").contains("out of memory ("));
        assert!(told("sys/fs/cgroup/a/memory.events", "oom 1\noom_kill 1\n").contains("out of memory ("));
        assert!(told("sys/fs/cgroup/a/memory.current", "1020000000\n").contains("left of 1.0 GiB"));
        let low = told("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 1048576 kB\n");
        assert_eq!(low, "the machine has only 1.0 GiB left of 16.0 GiB");
        assert_eq!(after("proc/pressure/memory", "some total=9\nfull avg10=0.00 total=1150000\n"), None);
        let stalled = told("proc/pressure/memory", "some total=9\nfull avg10=0.00 total=1300000\n");
        assert!(stalled.starts_with("everything waited for memory 30 % of the time"), "{stalled}");
    }

    #[test]
    fn what_is_not_there_is_no_danger() {
        let root = tree(&[]);
        let start = Instant::now();
        assert_eq!(Watch::new(root.path(), start).danger(start + 5 * WINDOW), None);
    }
}
