//! Times in which faults made the processes of one server stand still.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mcpscope_core::FaultId;

/// Standstills that are remembered: no call lasts longer than so many.
const KEPT: usize = 64;
/// How soon it is looked again whether a process goes on that would be late otherwise.
const LOOK: Duration = Duration::from_millis(100);

/// The standstills of one server's processes, those of several faults perhaps at the same time.
#[derive(Debug)]
pub(crate) struct Standstills {
    /// No moment that matters is before that.
    beginning: Instant,
    /// A call that began later was touched by none: in nanoseconds after the beginning. What calls cost while all are over.
    last: AtomicU64,
    /// Who asks waits for nobody who writes.
    kept: ArcSwap<VecDeque<Standstill>>,
}

#[derive(Clone, Copy, Debug)]
struct Standstill {
    fault: FaultId,
    from: Instant,
    /// Whatever else fails, the process goes on then.
    until: Instant,
}

impl Standstills {
    /// None, of a server that has no process yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self { beginning: now, last: AtomicU64::new(0), kept: ArcSwap::default() }
    }

    /// The process stands still by this fault, unless it goes on before `until`.
    pub(crate) fn begin(&self, fault: FaultId, from: Instant, until: Instant) {
        self.change(|kept| {
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(Standstill { fault, from, until });
        });
    }

    /// As far as this fault goes it goes on; or whatever made it stand still, if none is given.
    pub(crate) fn end(&self, fault: Option<FaultId>, at: Instant) {
        self.change(|kept| {
            for standstill in kept.iter_mut().filter(|it| fault.is_none_or(|fault| it.fault == fault)) {
                standstill.until = standstill.until.min(at);
            }
        });
    }

    /// The fault that made the process stand still at some time between the beginning of a call and its end.
    pub(crate) fn within(&self, began: Instant, ended: Instant) -> Option<FaultId> {
        if self.after(began) > self.last.load(Ordering::Acquire) {
            return None;
        }
        self.kept.load().iter().find(|it| it.from <= ended && began <= it.until).map(|it| it.fault)
    }

    /// How long the process stood still between these, however many faults made it do so at a time.
    pub(crate) fn total(&self, from: Instant, to: Instant) -> Duration {
        let kept = self.kept.load();
        let mut times: Vec<_> = kept.iter().map(|it| (it.from.max(from), it.until.min(to))).collect();
        times.sort_unstable();
        let (mut total, mut seen) = (Duration::ZERO, from);
        for (begin, end) in times {
            total += end.saturating_duration_since(begin.max(seen));
            seen = seen.max(end);
        }
        total
    }

    /// One at a time: only who has the lock of the process begins and ends its standstills.
    fn change(&self, change: impl Fn(&mut VecDeque<Standstill>)) {
        let mut kept = VecDeque::clone(&self.kept.load());
        change(&mut kept);
        let last = kept.iter().map(|it| self.after(it.until)).max().unwrap_or_default();
        self.kept.store(kept.into());
        self.last.store(last, Ordering::Release);
    }

    fn after(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.beginning).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// How long a process is waited for: the time in which a fault makes it stand still does not count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    since: Instant,
    limit: Duration,
    due: Instant,
}

impl Patience {
    pub(crate) fn new(since: Instant, limit: Duration) -> Self {
        Self { since, limit, due: since + limit }
    }

    /// When it ends, as far as is known.
    pub(crate) const fn due(&self) -> Instant {
        self.due
    }

    /// Whether it goes on at `now`, when it was due. The process has stood still for so long ([`Standstills::total`]) since it began.
    pub(crate) fn goes_on(&mut self, stood_still: impl FnOnce(Instant, Instant) -> Duration, now: Instant) -> bool {
        let whole = self.limit + stood_still(self.since, now);
        let left = whole.saturating_sub(now.saturating_duration_since(self.since));
        self.due = now + left.max(LOOK);
        !left.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: FaultId = FaultId(1);
    const OTHER: FaultId = FaultId(2);

    /// Which fault touched calls that began and ended then, in seconds.
    #[track_caller]
    fn check(standstills: &Standstills, expected: &[(u64, u64, Option<FaultId>)]) {
        let at = |seconds| standstills.beginning + Duration::from_secs(seconds);
        let found: Vec<_> = expected
            .iter()
            .map(|(began, ended, _)| (*began, *ended, standstills.within(at(*began), at(*ended))))
            .collect();
        assert_eq!(found, expected);
    }

    fn standstills() -> (Standstills, impl Fn(u64) -> Instant) {
        let now = Instant::now();
        (Standstills::new(now), move |seconds| now + Duration::from_secs(seconds))
    }

    #[test]
    fn a_call_is_touched_if_it_was_in_flight_then() {
        let (standstills, at) = standstills();
        check(&standstills, &[(0, 9, None), (1, 9, None)]);
        standstills.begin(ONE, at(10), at(30));
        // It lasts, and may end at any time.
        check(
            &standstills,
            &[(1, 9, None), (1, 11, Some(ONE)), (12, 13, Some(ONE)), (12, 40, Some(ONE)), (31, 40, None)],
        );
        standstills.end(Some(ONE), at(20));
        check(&standstills, &[(1, 9, None), (1, 11, Some(ONE)), (19, 40, Some(ONE)), (21, 22, None), (21, 40, None)]);
        standstills.end(None, at(50));
        check(&standstills, &[(21, 60, None)]);
    }

    #[test]
    fn each_of_two_ends_by_itself() {
        let (standstills, at) = standstills();
        standstills.begin(ONE, at(10), at(30));
        standstills.begin(OTHER, at(12), at(40));
        standstills.end(Some(ONE), at(15));
        check(&standstills, &[(11, 13, Some(ONE)), (16, 17, Some(OTHER)), (32, 33, Some(OTHER)), (41, 42, None)]);
        // The process is gone, whatever it stood still by.
        standstills.end(None, at(20));
        check(&standstills, &[(16, 17, Some(OTHER)), (21, 33, None)]);
    }

    #[test]
    fn those_that_are_remembered_are_bounded() {
        let (standstills, at) = standstills();
        for number in 0..10 * KEPT as u64 {
            standstills.begin(FaultId(number + 1), at(2 * number), at(2 * number + 1));
        }
        assert_eq!(standstills.kept.load().len(), KEPT);
        let newest = 10 * KEPT as u64;
        check(&standstills, &[(0, 1, None), (2 * newest - 2, 2 * newest, Some(FaultId(newest)))]);
    }

    #[test]
    fn time_in_which_several_made_it_stand_still_counts_once() {
        let (standstills, at) = standstills();
        let total = |from, to| standstills.total(at(from), at(to)).as_secs();
        assert_eq!(total(0, 100), 0);
        standstills.begin(ONE, at(10), at(30));
        standstills.begin(OTHER, at(20), at(40));
        standstills.begin(ONE, at(60), at(70));
        assert_eq!((total(0, 100), total(15, 35), total(45, 50), total(65, 66), total(0, 10)), (40, 20, 0, 1, 0));
        standstills.end(None, at(25));
        assert_eq!(total(0, 100), 15);
    }

    #[test]
    fn who_is_kept_from_it_is_not_late() {
        let (standstills, at) = standstills();
        let mut patience = Patience::new(at(0), Duration::from_secs(30));
        let mut goes_on = |now| (patience.goes_on(|from, to| standstills.total(from, to), now), patience.due());
        standstills.begin(ONE, at(20), at(80));
        // Ten seconds of these it has stood still, and it still does.
        assert_eq!(goes_on(at(30)), (true, at(40)));
        assert_eq!(goes_on(at(40)), (true, at(50)));
        standstills.end(Some(ONE), at(45));
        assert_eq!(goes_on(at(50)), (true, at(55)));
        assert!(!goes_on(at(55)).0);
        // Just before its end it is not asked again and again.
        let mut short = Patience::new(at(0), Duration::from_secs(20));
        standstills.begin(ONE, at(20) - Duration::from_nanos(1), at(80));
        assert!(short.goes_on(|from, to| standstills.total(from, to), at(20)));
        assert_eq!(short.due(), at(20) + LOOK);
    }
}
