//! What faults have made of the processes of one server.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mcpscope_chaos::Outage;
use mcpscope_core::FaultId;

/// The crashes of one server's processes, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Crashes(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Of the process that runs, which is still to end.
    to_come: Vec<Arc<Outage>>,
    /// Whose process has ended, while there is none in its place.
    down: Vec<Arc<Outage>>,
    /// In whose place there is a process that cannot be called yet.
    restarted: Vec<Arc<Outage>>,
    /// The last process that ended by a fault: by which, and when.
    last: Option<(FaultId, Instant)>,
}

impl Crashes {
    /// Somebody wants to hear of the process that is made to end now, and of the one in its place.
    pub(crate) fn follow(&self, outage: Option<&Arc<Outage>>) {
        self.lock().to_come.extend(outage.cloned());
    }

    /// The process has ended, by a fault or by itself.
    pub(crate) fn ended(&self, fault: Option<FaultId>, at: Instant) {
        let inner = &mut *self.lock();
        // Those go on with the next one: the process in their place is gone before it could be called.
        inner.down.append(&mut inner.restarted);
        match fault {
            Some(fault) => {
                inner.last = Some((fault, at));
                inner.to_come.iter().for_each(|outage| outage.ended(at));
                inner.down.append(&mut inner.to_come);
            }
            // It had outlived what it was to end by.
            None => inner.to_come.clear(),
        }
    }

    /// Another one was started.
    pub(crate) fn restarted(&self, at: Instant) {
        let inner = &mut *self.lock();
        inner.down.iter().for_each(|outage| outage.restarted(at));
        inner.restarted.append(&mut inner.down);
    }

    /// It can be called.
    pub(crate) fn ready(&self, at: Instant) {
        self.lock().restarted.drain(..).for_each(|outage| outage.ready(at));
    }

    /// The fault that ended the last process that a fault ended, if it did so since then.
    pub(crate) fn since(&self, since: Instant) -> Option<FaultId> {
        self.lock().last.filter(|(_, at)| *at >= since).map(|(fault, _)| fault)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FAULT: FaultId = FaultId(3);

    /// A moment, in seconds.
    fn moments() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |seconds| start + Duration::from_secs(seconds)
    }

    /// When it ended, and how long after that another one was started, and could be called; in seconds.
    #[track_caller]
    fn check(outage: &Outage, start: Instant, expected: Option<(u64, Option<u64>, Option<u64>)>) {
        let seconds = |millis: u64| millis / 1000;
        let found = outage
            .report(start)
            .map(|report| (seconds(report.at), report.restarted_after.map(seconds), report.ready_after.map(seconds)));
        assert_eq!(found, expected);
    }

    #[test]
    fn an_outage_goes_on_when_the_process_that_was_started_again_dies_by_itself() {
        let (at, crashes, outage) = (moments(), Crashes::default(), Arc::new(Outage::new("demo")));
        crashes.follow(Some(&outage));
        crashes.ended(Some(FAULT), at(1));
        crashes.restarted(at(2));
        crashes.ended(None, at(3));
        crashes.ready(at(4));
        check(&outage, at(0), Some((1, Some(1), None)));
        crashes.restarted(at(5));
        crashes.ready(at(6));
        check(&outage, at(0), Some((1, Some(1), Some(5))));
    }

    #[test]
    fn a_process_that_is_to_end_can_be_called_before_that() {
        let (at, crashes) = (moments(), Crashes::default());
        let [first, second] = [(); 2].map(|()| Arc::new(Outage::new("demo")));
        crashes.follow(Some(&first));
        crashes.ended(Some(FAULT), at(1));
        crashes.restarted(at(2));
        crashes.follow(Some(&second));
        crashes.ready(at(3));
        check(&first, at(0), Some((1, Some(1), Some(2))));
        check(&second, at(0), None);
        crashes.ended(Some(FAULT), at(4));
        crashes.restarted(at(5));
        crashes.ready(at(7));
        check(&second, at(0), Some((4, Some(1), Some(3))));
        check(&first, at(0), Some((1, Some(1), Some(2))));
    }

    #[test]
    fn of_a_process_that_outlived_its_fault_there_is_no_outage() {
        let (at, crashes, outage) = (moments(), Crashes::default(), Arc::new(Outage::new("demo")));
        crashes.follow(Some(&outage));
        crashes.ended(None, at(1));
        crashes.restarted(at(2));
        crashes.ended(Some(FAULT), at(3));
        check(&outage, at(0), None);
    }
}
