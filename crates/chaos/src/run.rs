//! One experiment from its acceptance to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mcpscope_core::ClockAnchor;

use crate::experiment::Experiment;
use crate::fault::Fault;
use crate::lease::Lease;
use crate::outlook::millis;
use crate::report::{Injected, RecoveryReport, Report, Slot};
use crate::status::{Details, StartedBy, Status, Test};
use crate::steady::{Check, Recovered, Recovery, SECOND, SteadyState, Window, broken, met};
use crate::target::ChaosTarget;
use crate::{Impact, Scenario};

/// How long before a fault the watched system is looked at.
const BEFORE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) id: u64,
    pub(crate) experiment: Arc<Experiment>,
    pub(crate) seed: u64,
    pub(crate) by: StartedBy,
    pub(crate) targets: Vec<String>,
    pub(crate) status: Status,
    pub(crate) reason: Option<String>,
    pub(crate) accepted: Instant,
    pub(crate) lease: Option<Arc<Lease>>,
    /// Where the fault is carried out, for one that is not done to messages.
    pub(crate) carriers: Vec<Arc<dyn ChaosTarget>>,
    pub(crate) steady_state: Vec<Check>,
    fault_end: Option<Instant>,
    ended: Option<Instant>,
    pub(crate) next_sample: Instant,
    recovery: Option<Recovery>,
    recovered: Option<Recovered>,
    detected: Option<Duration>,
    before: Option<Slot>,
    during: Option<Slot>,
    after: Option<Slot>,
    pub(crate) leak: Option<String>,
    /// Where it has been since the journal was last told.
    pub(crate) changes: Vec<(Instant, Status, Option<String>)>,
}

/// What a run is of.
#[derive(Debug)]
pub(crate) struct NewRun {
    pub(crate) id: u64,
    pub(crate) experiment: Arc<Experiment>,
    pub(crate) seed: u64,
    pub(crate) by: StartedBy,
    pub(crate) targets: Vec<String>,
    pub(crate) steady_state: Vec<Check>,
}

impl Run {
    pub(crate) fn new(new: NewRun, now: Instant) -> Self {
        let NewRun { id, experiment, seed, by, targets, steady_state } = new;
        let mut run = Self {
            id,
            experiment,
            seed,
            by,
            targets,
            status: Status::Planned,
            reason: None,
            accepted: now,
            lease: None,
            carriers: Vec::new(),
            steady_state,
            fault_end: None,
            ended: None,
            next_sample: now + SECOND,
            recovery: None,
            recovered: None,
            detected: None,
            before: None,
            during: None,
            after: None,
            leak: None,
            changes: Vec::new(),
        };
        run.set(Status::Planned, None, now);
        run
    }

    pub(crate) fn scenario(&self) -> Scenario {
        self.experiment.scenario
    }

    pub(crate) fn set(&mut self, status: Status, reason: Option<String>, now: Instant) {
        self.status = status;
        self.reason = reason.clone().or(self.reason.take());
        if status.is_final() {
            self.ended = Some(now);
        }
        self.changes.push((now, status, reason));
    }

    /// When the fault began; before that, when it was accepted.
    pub(crate) fn started(&self) -> Instant {
        self.lease.as_ref().map_or(self.accepted, |lease| lease.started)
    }

    /// Looks at the watched system before anything is done to it: the check that does not hold.
    pub(crate) fn look_before(&mut self, steady: Option<&dyn SteadyState>, now: Instant) -> Option<Check> {
        let steady = steady?;
        self.before = Some(slot(steady, now.checked_sub(BEFORE).unwrap_or(now), now, None));
        broken(&self.steady_state, &steady.sample(&Window::second(now, None))).copied()
    }

    pub(crate) fn begin(&mut self, lease: Arc<Lease>, now: Instant) {
        self.lease = Some(lease);
        self.next_sample = now + SECOND;
        self.set(Status::Running, None, now);
    }

    /// Ends the fault. What is applied outside of the process is taken back; what could not be is told.
    pub(crate) fn end_fault(&mut self, at: Instant) -> Result<(), String> {
        let Some(lease) = &self.lease else { return Ok(()) };
        lease.end();
        // If nobody looked in time, it was over all the same.
        self.fault_end.get_or_insert(at.min(lease.expires_at));
        let fault = lease.id;
        let mut failed = Vec::new();
        for target in &self.carriers {
            if let Err(error) = target.undo(fault) {
                failed.push(format!("{} could not be undone: {error}", target.name()));
            } else if let Some(left) = target.left_over(fault) {
                self.leak = Some(format!("{}: {left}", target.name()));
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    /// Ends the fault before its time.
    pub(crate) fn abort(&mut self, reason: String, now: Instant) {
        match self.end_fault(now) {
            Ok(()) => self.set(Status::Aborted, Some(reason), now),
            Err(error) => self.set(Status::Failed, Some(format!("{reason}; {error}")), now),
        }
    }

    /// Goes on with what time has brought.
    pub(crate) fn advance(&mut self, steady: Option<&dyn SteadyState>, now: Instant) {
        match (self.status, &self.lease) {
            (Status::Running, Some(lease)) if now >= lease.expires_at => self.expire(steady, lease.expires_at, now),
            (Status::Running, Some(lease)) => {
                let started = lease.started;
                if let Some(steady) = steady.filter(|_| self.is_due(now)) {
                    self.guard(steady, started, now);
                }
            }
            (Status::Recovering, _) => {
                if let Some(steady) = steady.filter(|_| self.is_due(now)) {
                    self.watch_recovery(steady, now);
                }
            }
            _ => {}
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = now >= self.next_sample;
        if is_due {
            let next = self.next_sample + SECOND;
            // Samples that were missed are: each is of the second before it was taken.
            self.next_sample = if next > now { next } else { now + SECOND };
        }
        is_due
    }

    fn guard(&mut self, steady: &dyn SteadyState, started: Instant, now: Instant) {
        let sample = steady.sample(&Window::second(now, None));
        if broken(&self.steady_state, &sample).is_some() {
            self.detected.get_or_insert(now - started);
        }
        if let Some(check) = met(&self.experiment.abort_when, &sample).copied() {
            self.during = Some(slot(steady, started, now, None));
            self.abort(format!("abort_when: {check}"), now);
        }
    }

    fn expire(&mut self, steady: Option<&dyn SteadyState>, end: Instant, now: Instant) {
        let started = self.started();
        if let Err(error) = self.end_fault(end) {
            return self.set(Status::Failed, Some(error), now);
        }
        self.set(Status::Recovering, None, end);
        match steady.filter(|_| !self.steady_state.is_empty()) {
            Some(steady) => {
                self.during = Some(slot(steady, started, end, None));
                self.recovery = Some(Recovery::new(end, self.experiment.recovery_time));
                self.next_sample = end + SECOND;
                if now >= self.next_sample {
                    self.advance(Some(steady), now);
                }
            }
            None => {
                self.recovered = Some(Recovered::NotObserved);
                self.set(Status::Completed, None, now);
            }
        }
    }

    fn watch_recovery(&mut self, steady: &dyn SteadyState, now: Instant) {
        let (Some(recovery), Some(end)) = (&mut self.recovery, self.fault_end) else { return };
        let sample = steady.sample(&Window::second(now, Some(end)));
        let Some(recovered) = recovery.take(&self.steady_state, &sample, now) else { return };
        self.recovered = Some(recovered);
        self.after = Some(slot(steady, end, now, Some(end)));
        if recovered == Recovered::TooLate {
            let limit = humantime::format_duration(self.experiment.recovery_time);
            self.set(Status::Failed, Some(format!("not well again within {limit}")), now);
        } else {
            self.set(Status::Completed, None, now);
        }
    }

    fn injection(&self) -> Injected {
        let mut injected =
            Injected { requested_intensity: self.experiment.fault.intensity().get(), ..Injected::default() };
        let Some(lease) = &self.lease else { return injected };
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &lease.counters;
        injected.connections = load(&counters.connections);
        injected.connections_chosen = load(&counters.chosen);
        injected.matched = load(&counters.matched);
        injected.injected = load(&counters.injected);
        injected.observed = load(&counters.observed);
        injected.unjournalled = load(&counters.unjournalled);
        let share = |part: u64, all: u64| (all > 0).then(|| part as f64 / all as f64);
        if let Fault::Partition(partition) = &self.experiment.fault {
            injected.requested_intensity = partition.intensity.get();
            injected.achieved_intensity = share(injected.connections_chosen, injected.connections);
        } else {
            injected.achieved_intensity = share(injected.injected, injected.matched);
        }
        injected
    }

    pub(crate) fn report(&self, clock: &ClockAnchor) -> Report {
        let time = match self.recovered {
            Some(Recovered::After(time)) => Some(millis(time)),
            _ => None,
        };
        Report {
            id: self.id,
            scenario: self.scenario().to_string(),
            status: self.status,
            error: self.reason.clone(),
            started_by: self.by,
            parameters: self.experiment.parameters.clone(),
            seed: self.seed,
            targets: self.targets.clone(),
            start_time: wall_ms(clock, self.started()),
            end_time: wall_ms(clock, self.fault_end.or(self.ended).unwrap_or(self.accepted)),
            before: self.before,
            during: self.during,
            after: self.after,
            injection: self.injection(),
            time_to_detect: self.detected.map(millis),
            recovery: RecoveryReport {
                limit: millis(self.experiment.recovery_time),
                time,
                observed: matches!(self.recovered, Some(Recovered::After(_) | Recovered::TooLate)),
            },
            leak: self.leak.clone(),
        }
    }

    pub(crate) fn test(&self, impact: Impact, clock: &ClockAnchor) -> Test {
        let ends = self.lease.as_ref().map_or(self.accepted + self.experiment.duration, |lease| lease.expires_at);
        Test {
            id: self.id,
            name: self.scenario().to_string(),
            start_time: wall_ms(clock, self.started()),
            end_time: wall_ms(clock, self.ended.unwrap_or(ends)),
            status: self.status,
            impact: impact.as_str().to_owned(),
            recovery_time: millis(self.experiment.recovery_time),
            details: Details {
                parameters: self.experiment.parameters.clone(),
                targets: self.targets.clone(),
                seed: self.seed,
                injected: self.injection().injected,
                error: self.reason.clone(),
                report: self.status.is_final().then(|| self.report(clock)),
            },
        }
    }
}

/// An experiment that has ended, as lists have it.
pub(crate) fn test_of(report: Report, impact: Impact) -> Test {
    Test {
        id: report.id,
        name: report.scenario.clone(),
        start_time: report.start_time,
        end_time: report.end_time,
        status: report.status,
        impact: impact.as_str().to_owned(),
        recovery_time: report.recovery.limit,
        details: Details {
            parameters: report.parameters.clone(),
            targets: report.targets.clone(),
            seed: report.seed,
            injected: report.injection.injected,
            error: report.error.clone(),
            report: Some(report),
        },
    }
}

fn slot(steady: &dyn SteadyState, from: Instant, until: Instant, began_since: Option<Instant>) -> Slot {
    let sample = steady.sample(&Window { from, until, began_since });
    Slot { duration: millis(until.saturating_duration_since(from)), error_rate: sample.error_rate(), sample }
}

pub(crate) fn wall_ms(clock: &ClockAnchor, at: Instant) -> u64 {
    let since = clock.wall_at(at).duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.map_or(0, millis)
}
