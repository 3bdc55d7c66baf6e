//! What supervised processes take of the machine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::channel::Shared;
use crate::machine::{MIN_INTERVAL, Machine, Process};
use crate::usage::Usage;

/// What one supervised process and all of its process group take of the machine.
#[derive(Clone, Debug, PartialEq)]
pub struct ChildUsage {
    /// What it is watched as.
    pub name: String,
    /// The process that leads the group.
    pub pid: u32,
    /// The sum over the group. The first reading has no CPU share yet: it is what later ones are compared with.
    pub usage: Usage,
}

/// A supervised process whose use of the machine is read along as long as this is held.
#[derive(Debug)]
#[must_use = "dropping it ends the watch"]
pub struct WatchedProcess {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: u64,
}

impl Drop for WatchedProcess {
    fn drop(&mut self) {
        self.shared.children.lock().watched.retain(|child| child.id != self.id);
    }
}

/// All that are watched.
#[derive(Debug, Default)]
pub(crate) struct Children(Mutex<Watched>);

#[derive(Debug, Default)]
struct Watched {
    next_id: u64,
    watched: Vec<Child>,
}

#[derive(Debug)]
struct Child {
    id: u64,
    name: String,
    pid: u32,
    last: Option<Reading>,
}

#[derive(Debug)]
struct Reading {
    at: Instant,
    /// The group as it was then.
    group: Vec<Process>,
    usage: Usage,
}

impl Children {
    pub(crate) fn watch(&self, name: &str, pid: u32) -> u64 {
        let mut children = self.lock();
        let id = children.next_id;
        children.next_id += 1;
        children.watched.push(Child { id, name: name.to_owned(), pid, last: None });
        id
    }

    pub(crate) fn read(&self, machine: &Machine, now: Instant) -> Vec<ChildUsage> {
        let mut children = self.lock();
        let due: Vec<u32> = children.watched.iter().filter(|child| child.is_due(now)).map(|child| child.pid).collect();
        if !due.is_empty() {
            let processes = machine.system.processes(&due);
            let memory_limit = machine.system.memory_limit();
            for child in children.watched.iter_mut().filter(|child| child.is_due(now)) {
                child.last = processes.as_ref().map(|processes| {
                    let group = processes.iter().filter(|process| process.group == child.pid).copied().collect();
                    Reading::new(child.last.as_ref(), group, memory_limit, machine, now)
                });
            }
        }
        children.watched.iter().map(Child::usage).collect()
    }

    // Every change is a single assignment or insertion: a panic in another holder leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Child {
    fn is_due(&self, now: Instant) -> bool {
        self.last.as_ref().is_none_or(|last| now.saturating_duration_since(last.at) >= MIN_INTERVAL)
    }

    fn usage(&self) -> ChildUsage {
        let usage = self.last.as_ref().map_or(Usage::new(None, None, 0.0), |last| last.usage);
        ChildUsage { name: self.name.clone(), pid: self.pid, usage }
    }
}

impl Reading {
    fn new(
        last: Option<&Self>,
        group: Vec<Process>,
        memory_limit: Option<u64>,
        machine: &Machine,
        now: Instant,
    ) -> Self {
        let resident_bytes = group.iter().map(|process| process.resident_bytes).sum();
        let cpu_ratio =
            last.map_or(0.0, |last| machine.share(taken(&last.group, &group), now.saturating_duration_since(last.at)));
        Self { at: now, group, usage: Usage::new(Some(resident_bytes), memory_limit, cpu_ratio) }
    }
}

/// The CPU time that a group took between two readings.
fn taken(before: &[Process], after: &[Process]) -> Duration {
    let key = |process: &Process| (process.pid, process.started);
    let mut ended: HashMap<_, _> = before.iter().map(|process| (key(process), process)).collect();
    let (mut own, mut waited_for) = (Duration::ZERO, Duration::ZERO);
    for process in after {
        // One that was not there before has begun since, and all its time counts.
        let known = ended.remove(&key(process));
        own += process.cpu.saturating_sub(known.map_or(Duration::ZERO, |known| known.cpu));
        waited_for += process.waited_for.saturating_sub(known.map_or(Duration::ZERO, |known| known.waited_for));
    }
    // What has ended is in its parent's count now, together with what was counted of it before.
    let counted: Duration = ended.values().map(|known| known.cpu + known.waited_for).sum();
    own + waited_for.saturating_sub(counted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::channel::channel;
    use crate::testing::{Group, SPIN};

    fn process(pid: u32, started: u64, cpu: u64, waited_for: u64) -> Process {
        let (cpu, waited_for) = (Duration::from_secs(cpu), Duration::from_secs(waited_for));
        Process { pid, group: 1, started, resident_bytes: 0, cpu, waited_for }
    }

    #[test]
    fn what_ends_counts_once() {
        let taken = |before: &[Process], after: &[Process]| taken(before, after).as_secs();
        let shell = |waited_for| process(1, 1, 1, waited_for);
        assert_eq!(taken(&[shell(0)], &[process(1, 1, 4, 0)]), 3);
        assert_eq!(taken(&[shell(0)], &[shell(0), process(2, 5, 7, 0)]), 7, "begun since");
        assert_eq!(taken(&[shell(0)], &[shell(6)]), 6, "begun and ended since");
        assert_eq!(taken(&[shell(0), process(2, 5, 7, 2)], &[shell(10)]), 1, "9 of them were counted before");
        assert_eq!(taken(&[shell(0), process(2, 5, 7, 0)], &[shell(0)]), 0, "ended, and nobody waited");
        assert_eq!(
            taken(&[shell(0), process(2, 5, 7, 0)], &[process(1, 1, 2, 0), process(2, 9, 3, 0)]),
            4,
            "pid again"
        );
        assert_eq!(taken(&[shell(0)], &[]), 0);
    }

    proptest! {
        #[test]
        fn the_share_is_one_whatever_comes_and_goes(
            readings in prop::collection::vec(
                prop::collection::vec((0..5_u32, 0..3_u64, 0..1000_u64, 0..1000_u64), 0..6), 2..6),
            millis in 1..5000_u64,
        ) {
            let machine = Machine::new();
            let (mut at, mut last) = (Instant::now(), None);
            for group in readings {
                at += Duration::from_millis(millis);
                let group = group.into_iter().map(|(pid, started, cpu, more)| process(pid, started, cpu, more)).collect();
                let reading = Reading::new(last.as_ref(), group, None, &machine, at);
                prop_assert!((0.0..=1.0).contains(&reading.usage.cpu_ratio), "{}", reading.usage.cpu_ratio);
                last = Some(reading);
            }
        }
    }

    #[test]
    fn a_group_that_spins_shows_and_the_others_do_not() {
        let (reporter, view) = channel(Instant::now());
        // The leader does nothing itself.
        let busy = Group::of(&format!("({SPIN}) & wait"));
        let idle = Group::of("sleep 1000 & wait");
        let watched = [reporter.watch_process("busy", busy.pid()), reporter.watch_process("idle", idle.pid())];
        busy.wait_for(2);
        idle.wait_for(2);
        let start = Instant::now();
        let first = view.children(start);
        assert_eq!(first.iter().map(|child| child.name.as_str()).collect::<Vec<_>>(), ["busy", "idle"]);
        assert_eq!(first.iter().map(|child| child.pid).collect::<Vec<_>>(), [busy.pid(), idle.pid()]);
        assert!(first.iter().all(|child| child.usage.cpu_ratio == 0.0), "{first:?}");
        std::thread::sleep(MIN_INTERVAL);
        let second = view.children(Instant::now());
        assert!(second[0].usage.cpu_ratio > 0.0 && second[0].usage.cpu_ratio <= 1.0, "{second:?}");
        assert!(
            second[1].usage.cpu_ratio < 0.05 && second[1].usage.cpu_ratio < second[0].usage.cpu_ratio,
            "{second:?}"
        );
        for child in &second {
            assert!(child.usage.resident_bytes > Some(100 << 10), "{child:?}");
            assert!(child.usage.memory_ratio > Some(0.0) && child.usage.memory_ratio < Some(1.0), "{child:?}");
        }
        assert_eq!(view.children(Instant::now()), second, "too soon for another");
        let [first, second] = watched;
        drop(first);
        assert_eq!(view.children(Instant::now()).iter().map(|child| &*child.name).collect::<Vec<_>>(), ["idle"]);
        drop(second);
        assert_eq!(view.children(Instant::now()), []);
    }

    #[test]
    fn two_watches_of_one_name_are_two() {
        let (reporter, view) = channel(Instant::now());
        let group = Group::of("sleep 1000");
        let first = reporter.watch_process("server", group.pid());
        let _second = reporter.watch_process("server", group.pid());
        assert_eq!(view.children(Instant::now()).len(), 2);
        drop(first);
        assert_eq!(view.children(Instant::now()).len(), 1);
    }

    // Elsewhere a group is what descends from its leader.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_group_outlives_its_leader_and_then_takes_nothing() {
        let (reporter, view) = channel(Instant::now());
        let mut group = Group::of("sleep 1000 & wait");
        let _watched = reporter.watch_process("server", group.pid());
        group.wait_for(2);
        let mut now = Instant::now();
        let both = view.children(now)[0].usage.resident_bytes.unwrap();
        group.kill_leader();
        now += MIN_INTERVAL;
        let usage = view.children(now)[0].usage;
        assert!(0 < usage.resident_bytes.unwrap() && usage.resident_bytes.unwrap() < both, "{usage:?} {both}");
        drop(group);
        // Whoever has inherited it must have waited for it.
        crate::testing::until(|| {
            now += MIN_INTERVAL;
            view.children(now)[0].usage == Usage::new(Some(0), Some(1), 0.0)
        });
    }

    // Elsewhere a process does not tell what it waited for.
    #[cfg(target_os = "linux")]
    #[test]
    fn short_processes_count_too() {
        let (reporter, view) = channel(Instant::now());
        // Starts one process after the other: most of the time is that of processes that no reading ever sees.
        let group = Group::of("while :; do sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'; done");
        let _watched = reporter.watch_process("server", group.pid());
        assert_eq!(view.children(Instant::now()).len(), 1);
        std::thread::sleep(3 * MIN_INTERVAL);
        let usage = view.children(Instant::now())[0].usage;
        // Nearly a whole core, were the machine ours alone.
        let cores = std::thread::available_parallelism().unwrap().get() as f64;
        assert!(usage.cpu_ratio * cores > 0.1 && usage.cpu_ratio <= 1.0, "{usage:?}");
    }
}
