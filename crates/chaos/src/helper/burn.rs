//! Keeping cores busy for a share of their time: a closed loop on what each thread has had of its core.

use std::hint::black_box;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, nice};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::target::Victim;

/// What is always left of each core, and of a quota, for whoever has to end it.
const LEFT: f64 = 0.05;
/// How often work and rest take turns. Shorter than what schedulers give a thread at a time, and than the 100 ms of quotas.
const PERIOD: Duration = Duration::from_millis(10);
/// A shade below those whom the load is to disturb: who has to end it is one of them.
const NICE: i32 = 1;
const STACK: usize = 128 << 10;

/// Cores on which this thread, and what it starts, may run, and all of these processes as well.
pub(super) fn cores(beside: &[Victim]) -> Vec<usize> {
    let set = |pid| sched_getaffinity(pid).unwrap_or_else(|_| CpuSet::new());
    let pid = |victim: &Victim| i32::try_from(victim.process.pid).ok().and_then(Pid::from_raw);
    let sets: Vec<_> = std::iter::once(set(None)).chain(beside.iter().map(|victim| set(pid(victim)))).collect();
    (0..CpuSet::MAX_CPU).filter(|core| sets.iter().all(|set| set.is_set(*core))).collect()
}

/// The share of each of so many cores that may be taken, when `duty` is wanted and a quota gives `quota` cores' worth.
fn allowed(duty: f64, cores: usize, quota: Option<f64>) -> f64 {
    let most = quota.map_or(1.0, |quota| quota / cores.max(1) as f64).min(1.0);
    duty.min(most * (1.0 - LEFT))
}

/// What share of each of so many cores it will be if nobody else wants them, and why that is not what was asked for.
pub(super) fn expected(duty: f64, cores: usize, quota: Option<f64>) -> (f64, Option<String>) {
    let expected = allowed(duty, cores, quota);
    let percent = LEFT * 100.0;
    let limit = match quota.filter(|quota| *quota < cores as f64) {
        Some(quota) => format!("the quota of a control group is {quota:.2} cores, of which {percent:.0} % stay free"),
        None => format!("{percent:.0} % of each core stay free"),
    };
    (expected, (expected < duty).then_some(limit))
}

/// Threads that keep cores busy until the process ends.
#[derive(Debug)]
pub(super) struct Burn {
    started: Instant,
    /// What each thread has had of its core, in nanoseconds.
    worked: Vec<Arc<AtomicU64>>,
}

impl Burn {
    /// Starts a thread on each of so many of these cores, the last ones: the first ones serve most interrupts.
    pub(super) fn start(all: &[usize], cores: usize, duty: f64, quota: Option<f64>) -> io::Result<Self> {
        let chosen: Vec<_> = all.iter().copied().rev().take(cores).collect();
        let duty = allowed(duty, chosen.len(), quota);
        // They have the memory that a thread begins with before that is limited, and begin together.
        let up = Arc::new(Barrier::new(chosen.len() + 1));
        let worked = chosen.into_iter().map(|core| {
            let worked = Arc::new(AtomicU64::new(0));
            let (told, is_up) = (Arc::clone(&worked), Arc::clone(&up));
            let work = move || {
                is_up.wait();
                burn(core, duty, &told);
            };
            thread::Builder::new().name(format!("burn-{core}")).stack_size(STACK).spawn(work)?;
            Ok(worked)
        });
        let worked = worked.collect::<io::Result<_>>()?;
        up.wait();
        Ok(Self { started: Instant::now(), worked })
    }

    /// The share of the cores' time that was had since the start.
    pub(super) fn achieved(&self, now: Instant) -> f64 {
        let worked: u64 = self.worked.iter().map(|worked| worked.load(Ordering::Relaxed)).sum();
        let there = now.saturating_duration_since(self.started).as_nanos() as f64 * self.worked.len() as f64;
        if there > 0.0 { worked as f64 / there } else { 0.0 }
    }
}

/// Never returns: it ends with its process.
fn burn(core: usize, duty: f64, worked: &AtomicU64) {
    let mut only = CpuSet::new();
    only.set(core);
    // Wherever else it runs, the share of the time is the same.
    let _ = sched_setaffinity(None, &only);
    let _ = nice(NICE);
    let (started, mut pace) = (Instant::now(), Pace::new(duty, PERIOD));
    loop {
        let period = pace.next(started.elapsed(), cpu_time());
        while cpu_time() < period.work_until && started.elapsed() < period.end {
            some_work();
            worked.store(nanos(cpu_time()), Ordering::Relaxed);
        }
        thread::sleep(period.end.saturating_sub(started.elapsed()));
    }
}

/// Some microseconds.
fn some_work() {
    let numbers =
        (0..2000_u64).fold(black_box(1_u64), |number, add| number.wrapping_mul(6_364_136_223_846_793_005) ^ add);
    black_box(numbers);
}

/// What this thread has had of a core.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How much is to be worked, period by period, so that it comes to the same share in the long run.
#[derive(Debug)]
struct Pace {
    duty: f64,
    period: Duration,
    /// Work that others did not let us do, and that is not made up for: to run at full load once they are gone would be
    /// another fault than the one that was asked for.
    forgiven: Duration,
}

/// One turn of work and rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Period {
    /// The thread's time at which there was enough work.
    work_until: Duration,
    /// When it is over, since the start.
    end: Duration,
}

impl Pace {
    fn new(duty: f64, period: Duration) -> Self {
        Self { duty, period, forgiven: Duration::ZERO }
    }

    /// The period that goes on at `now`, since the start, for a thread that has worked for so long.
    fn next(&mut self, now: Duration, worked: Duration) -> Period {
        let passed = now.as_nanos() / self.period.as_nanos().max(1);
        let end = self.period.saturating_mul(u32::try_from(passed).unwrap_or(u32::MAX).saturating_add(1));
        let wanted = end.mul_f64(self.duty).saturating_sub(self.forgiven);
        let owed = wanted.saturating_sub(worked);
        let most = self.period.mul_f64(self.duty).saturating_mul(2);
        self.forgiven += owed.saturating_sub(most);
        Period { work_until: worked + owed.min(most), end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Lets a thread of this pace live through so many milliseconds, of which others leave it the share `free`.
    struct Thread {
        pace: Pace,
        now: Duration,
        worked: Duration,
    }

    impl Thread {
        fn new(duty: f64) -> Self {
            Self { pace: Pace::new(duty, PERIOD), now: Duration::ZERO, worked: Duration::ZERO }
        }

        fn live(&mut self, ms: u32, free: f64, oversleep: Duration) -> f64 {
            let (start, before) = (self.now, self.worked);
            while self.now < start + MS * ms {
                let period = self.pace.next(self.now, self.worked);
                let left = period.end.saturating_sub(self.now);
                let work = period.work_until.saturating_sub(self.worked).min(left.mul_f64(free));
                self.worked += work;
                self.now = period.end + oversleep;
            }
            (self.worked - before).as_secs_f64() / (self.now - start).as_secs_f64()
        }
    }

    #[test]
    fn a_free_core_is_busy_for_the_share_that_was_asked_for() {
        for duty in [0.0, 0.1, 0.25, 0.5, 0.8, 0.95] {
            for oversleep in [Duration::ZERO, MS / 10, MS / 3] {
                let achieved = Thread::new(duty).live(5000, 1.0, oversleep);
                assert!((achieved - duty).abs() < 0.002, "{duty} {oversleep:?}: {achieved}");
            }
        }
    }

    #[test]
    fn what_others_took_is_not_made_up_for() {
        let mut thread = Thread::new(0.5);
        let contended = thread.live(5000, 0.2, Duration::ZERO);
        assert!((contended - 0.2).abs() < 0.01, "{contended}");
        let after = thread.live(1000, 1.0, Duration::ZERO);
        assert!((after - 0.5).abs() < 0.02, "{after}");
        // Neither is one that stood still, as at a stopped process.
        thread.now += MS * 10_000;
        let after = thread.live(1000, 1.0, Duration::ZERO);
        assert!((after - 0.5).abs() < 0.02, "{after}");
    }

    #[test]
    fn something_is_left_for_control() {
        assert_eq!(allowed(0.8, 4, None), 0.8);
        assert_eq!(allowed(1.0, 4, None), 0.95);
        assert_eq!(allowed(1.0, 4, Some(2.0)), 0.475);
        assert_eq!(allowed(0.3, 4, Some(2.0)), 0.3);
        assert_eq!(allowed(1.0, 1, Some(8.0)), 0.95);
    }

    #[test]
    fn it_is_told_beforehand_what_is_left_free() {
        assert_eq!(expected(0.8, 4, Some(4.0)), (0.8, None));
        assert_eq!(expected(1.0, 4, Some(4.0)), (0.95, Some("5 % of each core stay free".into())));
        let quota = "the quota of a control group is 1.50 cores, of which 5 % stay free";
        assert_eq!(expected(0.8, 3, Some(1.5)), (0.475, Some(quota.into())));
    }
}
