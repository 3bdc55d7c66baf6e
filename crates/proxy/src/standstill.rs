//! Times in which faults made the processes of one server stand still.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mcpscope_core::FaultId;

/// Standstills that are remembered: no call lasts longer than so many.
const KEPT: usize = 64;

/// The standstills of one server's processes, those of several faults perhaps at the same time.
#[derive(Debug)]
pub(crate) struct Standstills {
    /// No moment that matters is before that.
    beginning: Instant,
    /// A call that began later was touched by none: in nanoseconds after the beginning. What calls cost while all are over.
    last: AtomicU64,
    kept: Mutex<VecDeque<Standstill>>,
}

#[derive(Debug)]
struct Standstill {
    fault: FaultId,
    from: Instant,
    /// Whatever else fails, the process goes on then.
    until: Instant,
}

impl Standstills {
    /// None, of a server that has no process yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self { beginning: now, last: AtomicU64::new(0), kept: Mutex::default() }
    }

    /// The process stands still by this fault, unless it goes on before `until`.
    pub(crate) fn begin(&self, fault: FaultId, from: Instant, until: Instant) {
        let mut kept = self.lock();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Standstill { fault, from, until });
        self.publish(&kept);
    }

    /// As far as this fault goes it goes on; or whatever made it stand still, if none is given.
    pub(crate) fn end(&self, fault: Option<FaultId>, at: Instant) {
        let mut kept = self.lock();
        for standstill in kept.iter_mut().filter(|it| fault.is_none_or(|fault| it.fault == fault)) {
            standstill.until = standstill.until.min(at);
        }
        self.publish(&kept);
    }

    /// The fault that made the process stand still at some time between the beginning of a call and its end.
    pub(crate) fn within(&self, began: Instant, ended: Instant) -> Option<FaultId> {
        if self.after(began) > self.last.load(Ordering::Relaxed) {
            return None;
        }
        let kept = self.lock();
        kept.iter().find(|it| it.from <= ended && began <= it.until).map(|it| it.fault)
    }

    fn publish(&self, kept: &VecDeque<Standstill>) {
        let last = kept.iter().map(|it| self.after(it.until)).max().unwrap_or_default();
        self.last.store(last, Ordering::Relaxed);
    }

    fn after(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.beginning).as_nanos()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Standstill>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        assert_eq!(standstills.lock().len(), KEPT);
        let newest = 10 * KEPT as u64;
        check(&standstills, &[(0, 1, None), (2 * newest - 2, 2 * newest, Some(FaultId(newest)))]);
    }
}
