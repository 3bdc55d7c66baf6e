//! Outages: from the end of a process to the first call that ends well again.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::outlook::millis;
use crate::report::OutageReport;

/// A process that a fault has ended, until all is well again. The target says how the process is
/// ([`Order::outage`](crate::Order::outage)), and whoever sees the calls of its server what becomes of them.
///
/// Each of its times is kept as it is said first.
#[derive(Debug)]
pub struct Outage {
    target: String,
    times: Mutex<Times>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Times {
    ended: Option<Instant>,
    restarted: Option<Instant>,
    ready: Option<Instant>,
    /// The first call that ended well in the process that was started again: when it began, and when it ended.
    good: Option<(Instant, Instant)>,
    /// When the first call ended badly that had begun after the end of the process.
    bad: Option<Instant>,
    /// Its target crashed again before any call had ended well.
    is_superseded: bool,
}

impl Times {
    /// Whether what becomes of calls makes a difference.
    fn is_open(&self) -> bool {
        self.good.is_none() && !self.is_superseded
    }
}

/// What is to be made of an outage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// It is not known yet.
    Open,
    /// Nothing speaks against it: it was over in time, or nobody called.
    Well,
    /// It took too long, for this reason.
    TooLong(String),
}

impl Outage {
    /// One of the target of this name, whose process has not ended yet.
    #[must_use]
    pub fn new(target: &str) -> Self {
        Self { target: target.to_owned(), times: Mutex::default() }
    }

    /// The process has ended.
    pub fn ended(&self, at: Instant) {
        self.times().ended.get_or_insert(at);
    }

    /// Another one was started in its place. It may have to be told of the session before it is of use.
    pub fn restarted(&self, at: Instant) {
        let mut times = self.times();
        if times.ended.is_some() {
            times.restarted.get_or_insert(at);
        }
    }

    /// That one can be called: it knows of the session, or it accepts connections. Who says [`Outage::restarted`] says this, too.
    pub fn ready(&self, at: Instant) {
        let mut times = self.times();
        if times.restarted.is_some() {
            times.ready.get_or_insert(at);
        }
    }

    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// A call of its server has ended, well or badly. It waits for nobody: what cannot be said at once, the next call says.
    pub(crate) fn saw(&self, is_good: bool, began: Instant, ended: Instant) {
        let mut times = match self.times.try_lock() {
            Ok(times) => times,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if !times.is_open() {
            return;
        }
        let since = |time: Option<Instant>, of: Instant| time.is_some_and(|time| of >= time);
        match is_good {
            // Before that it was answered by the process that is gone.
            true if since(times.restarted, ended) => {
                times.good.get_or_insert((began, ended));
            }
            // What was in flight when the process ended is lost with it, and says nothing of what came afterwards.
            false if since(times.ended, began) => {
                times.bad.get_or_insert(ended);
            }
            _ => {}
        }
    }

    /// Whether it matters what becomes of calls.
    pub(crate) fn is_open(&self) -> bool {
        self.times().is_open()
    }

    /// Its target crashes once more.
    pub(crate) fn supersede(&self) {
        let mut times = self.times();
        times.is_superseded |= times.good.is_none();
    }

    /// Whether it was over within this time from its beginning, going by what is known `now`.
    pub(crate) fn judged(&self, limit: Duration, now: Instant) -> Judged {
        let Times { ended, restarted, ready, good, bad, is_superseded } = *self.times();
        let Some(ended) = ended.filter(|_| !is_superseded) else { return Judged::Well };
        let by = ended + limit;
        if good.is_some_and(|(_, at)| at <= by) {
            return Judged::Well;
        }
        if good.is_none() && now < by {
            return Judged::Open;
        }
        let in_time = |time: Option<Instant>| time.is_some_and(|time| time <= by);
        let (target, within) = (&self.target, humantime::format_duration(limit));
        let why = match good {
            _ if !in_time(restarted) => format!("{target} was not started again within {within}"),
            _ if !in_time(ready) => format!("{target} was started again, but could not be called within {within}"),
            Some((began, at)) if began <= by => {
                let after = humantime::format_duration(Duration::from_millis(millis(at - ended)));
                format!("the first call of {target} that ended well did so {after} after its crash (limit {within})")
            }
            None if in_time(bad) => format!("no call of {target} ended well within {within} of its crash"),
            // Nobody called in time.
            _ => return Judged::Well,
        };
        Judged::TooLong(why)
    }

    /// How long after the end of the fault, or of the process if that came later, a call first ended well again. Nothing if none did.
    pub(crate) fn over_after(&self, fault_end: Instant) -> Option<Duration> {
        let Times { ended, good, .. } = *self.times();
        let (ended, (_, good)) = (ended?, good?);
        Some(good.saturating_duration_since(ended.max(fault_end)))
    }

    /// As a report has it; nothing if the process has not ended. `started` is when the fault began.
    #[must_use]
    pub fn report(&self, started: Instant) -> Option<OutageReport> {
        let Times { ended, restarted, ready, good, .. } = *self.times();
        let ended = ended?;
        let after = |time: Option<Instant>| time.map(|time| millis(time.saturating_duration_since(ended)));
        Some(OutageReport {
            target: self.target.clone(),
            at: millis(ended.saturating_duration_since(started)),
            restarted_after: after(restarted),
            ready_after: after(ready),
            first_good_call_after: after(good.map(|(_, at)| at)),
        })
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// One that began at 1 s, and what happened then, in seconds.
    struct Case {
        restarted: Option<u64>,
        ready: Option<u64>,
        /// Whether it ended well, when it began and when it ended.
        calls: &'static [(bool, u64, u64)],
    }

    #[track_caller]
    fn check(case: &Case, now: u64, expected: &str) {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let outage = Outage::new("demo");
        outage.ended(at(1));
        case.restarted.into_iter().for_each(|seconds| outage.restarted(at(seconds)));
        case.ready.into_iter().for_each(|seconds| outage.ready(at(seconds)));
        case.calls.iter().for_each(|(is_good, began, ended)| outage.saw(*is_good, at(*began), at(*ended)));
        let judged = match outage.judged(LIMIT, at(now)) {
            Judged::Open => "open".to_owned(),
            Judged::Well => "well".to_owned(),
            Judged::TooLong(why) => why,
        };
        assert_eq!(judged, expected);
    }

    #[test]
    fn it_is_over_with_the_first_call_that_ends_well_in_the_new_process() {
        let case = |calls| Case { restarted: Some(2), ready: Some(3), calls };
        check(&case(&[]), 5, "open");
        check(&case(&[(true, 3, 4)]), 4, "well");
        check(&case(&[(true, 0, 1)]), 4, "open");
        check(&case(&[(false, 2, 3), (true, 5, 6)]), 6, "well");
        check(&case(&[(true, 5, 7)]), 7, "the first call of demo that ended well did so 6s after its crash (limit 5s)");
        check(&case(&[(false, 2, 3)]), 6, "no call of demo ended well within 5s of its crash");
    }

    #[test]
    fn what_nobody_asked_for_is_not_missed() {
        let case = |calls| Case { restarted: Some(2), ready: Some(3), calls };
        check(&case(&[]), 6, "well");
        check(&case(&[(true, 7, 8)]), 8, "well");
        check(&case(&[(false, 0, 1)]), 6, "well");
        check(&case(&[(false, 5, 7)]), 7, "well");
    }

    #[test]
    fn what_is_not_there_in_time_needs_no_calls_to_be_too_late() {
        let gone = Case { restarted: None, ready: None, calls: &[] };
        check(&gone, 5, "open");
        check(&gone, 6, "demo was not started again within 5s");
        let late = Case { restarted: Some(7), ready: Some(7), calls: &[(true, 7, 8)] };
        check(&late, 8, "demo was not started again within 5s");
        let mute = Case { restarted: Some(2), ready: None, calls: &[] };
        check(&mute, 6, "demo was started again, but could not be called within 5s");
    }

    #[test]
    fn one_that_another_crash_went_over_is_not_judged() {
        let (start, outage) = (Instant::now(), Outage::new("demo"));
        assert_eq!(outage.report(start), None);
        outage.ended(start);
        outage.supersede();
        outage.restarted(start);
        outage.saw(true, start, start);
        assert_eq!(outage.judged(LIMIT, start + LIMIT * 2), Judged::Well);
        assert_eq!(outage.report(start).unwrap().first_good_call_after, None);
    }

    #[test]
    fn a_call_waits_for_nobody_to_tell_it() {
        let (outage, at) = (std::sync::Arc::new(Outage::new("demo")), Instant::now());
        let (sender, told) = std::sync::mpsc::channel();
        let held = outage.times();
        let theirs = std::sync::Arc::clone(&outage);
        std::thread::spawn(move || {
            theirs.saw(true, at, at);
            sender.send(())
        });
        let told = told.recv_timeout(Duration::from_secs(10));
        drop(held);
        told.expect("it does not wait for whoever holds the lock");
    }
}
