//! One experiment from its acceptance to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mcpscope_core::{ClockAnchor, FaultId};

use crate::audit::{self, Audit, LeakAudit, Others};
use crate::directory::Server;
use crate::experiment::Experiment;
use crate::fault::Fault;
use crate::lease::{Lease, Shared};
use crate::network::Packets;
use crate::outage::{Judged, Outage};
use crate::outlook::millis;
use crate::report::{Injected, RecoveryReport, Report, Slot};
use crate::series::Series;
use crate::state::Crashes;
use crate::status::{Details, StartedBy, Status, Test};
use crate::steady::{Check, Recovered, Recovery, SECOND, Sample, SteadyState, Window, broken, met};
use crate::target::{Achieved, ChaosTarget, Ended, Victim, guarded};
use crate::{Impact, Scenario};

/// How long before a fault the watched system is looked at.
const BEFORE: Duration = Duration::from_secs(10);
const SECOND_MS: i64 = 1000;
/// What ends so soon after the fault is counted to its time: what it held, and what ended as it did. Whoever counts
/// ([`SteadyState`]) may do so in slices that long.
const EDGE: Duration = Duration::from_millis(100);

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
    /// In whose control group it is.
    pub(crate) victims: Vec<Victim>,
    /// Crashes that are still to come.
    pub(crate) crashes: Option<Crashes>,
    /// The processes that it ended.
    pub(crate) outages: Vec<Arc<Outage>>,
    pub(crate) steady_state: Vec<Check>,
    fault_end: Option<Instant>,
    ended: Option<Instant>,
    pub(crate) next_sample: Instant,
    recovery: Option<Recovery>,
    recovered: Option<Recovered>,
    detected: Option<Duration>,
    /// The check of `abort_when` that ended it.
    guard: Option<Check>,
    before: Option<Slot>,
    during: Option<Slot>,
    after: Option<Slot>,
    series: Series,
    pub(crate) leak: Option<String>,
    pub(crate) audit: Audit,
    /// What a fault outside of messages has come to.
    achieved: Option<Achieved>,
    /// What has become of the packets of a network.
    packets: Option<Packets>,
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
    pub(crate) victims: Vec<Victim>,
    pub(crate) steady_state: Vec<Check>,
}

impl Run {
    pub(crate) fn new(new: NewRun, now: Instant) -> Self {
        let NewRun { id, experiment, seed, by, targets, victims, steady_state } = new;
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
            victims,
            crashes: None,
            outages: Vec::new(),
            steady_state,
            fault_end: None,
            ended: None,
            next_sample: now + SECOND,
            recovery: None,
            recovered: None,
            detected: None,
            guard: None,
            before: None,
            during: None,
            after: None,
            series: Series::default(),
            leak: None,
            audit: Audit::default(),
            achieved: None,
            packets: None,
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

    /// Whether it is done to the messages of this server.
    pub(crate) fn is_about(&self, server: &Server) -> bool {
        !self.scenario().is_out_of_process() && self.experiment.matcher.takes_server(&server.name, server.transport)
    }

    /// When the fault began; before that, when it was accepted.
    pub(crate) fn started(&self) -> Instant {
        self.lease.as_ref().map_or(self.accepted, |lease| lease.started)
    }

    /// The calls that ended in this time. What other experiments touched is neither touched nor untouched.
    fn window(&self, from: Instant, until: Instant, began_since: Option<Instant>) -> Window {
        Window { from, until, began_since, touched_by: Some(FaultId(self.id)) }
    }

    /// Those of the second before `now`.
    fn second(&self, now: Instant, began_since: Option<Instant>) -> Window {
        self.window(now.checked_sub(SECOND).unwrap_or(now), now, began_since)
    }

    fn slot(steady: &dyn SteadyState, window: &Window, lasted: Duration) -> Slot {
        let sample = steady.sample(window);
        Slot { duration: millis(lasted), error_rate: sample.error_rate(), sample }
    }

    /// The time of the fault.
    fn time_of_fault(&self, steady: &dyn SteadyState, started: Instant, end: Instant) -> Slot {
        Self::slot(steady, &self.window(started, end + EDGE, None), end.saturating_duration_since(started))
    }

    /// The time from its end on.
    fn time_after(&self, steady: &dyn SteadyState, end: Instant, now: Instant) -> Slot {
        Self::slot(steady, &self.window(end + EDGE, now, Some(end)), now.saturating_duration_since(end))
    }

    /// Looks at the watched system before anything is done to it: the check that does not hold.
    pub(crate) fn look_before(&mut self, steady: Option<&dyn SteadyState>, now: Instant) -> Option<Check> {
        let steady = steady?;
        // Nobody has looked at ids until now.
        let without_ids = |sample| Sample { repeated: None, duplicates: None, ..sample };
        let before = Self::slot(steady, &self.window(now.checked_sub(BEFORE).unwrap_or(now), now, None), BEFORE);
        self.before = Some(Slot { sample: without_ids(before.sample), ..before });
        let mut last = Sample::default();
        for seconds in (0..BEFORE.as_secs()).rev() {
            let Some(until) = now.checked_sub(SECOND * u32::try_from(seconds).unwrap_or(0)) else { continue };
            last = without_ids(steady.sample(&self.second(until, None)));
            self.series.push(-SECOND_MS * i64::try_from(seconds).unwrap_or(0), last);
        }
        broken(&self.steady_state, &last).copied()
    }

    /// Looks for what the fault has left: whether it is decided. What is there may be gone soon, and nothing is told of it
    /// until then.
    pub(crate) fn look_for_leaks(
        &mut self,
        shared: &Shared,
        observer: Option<&dyn LeakAudit>,
        others: Others,
        now: Instant,
    ) -> bool {
        let Some(fault) = self.lease.as_ref().map(|lease| lease.id) else { return true };
        let mut left = Vec::new();
        let mut looked_at = vec!["fault table"];
        if shared.table().iter().any(|lease| lease.id == fault) {
            left.push("it is still in the fault table".to_owned());
        }
        if let Some(held) = shared.held(fault) {
            looked_at.push("queues");
            left.extend((held > 0).then(|| format!("{held} messages are still held back")));
        }
        for target in &self.carriers {
            left.extend(target.left_over(fault).map(|what| format!("{}: {what}", target.name())));
            // The last that it counted it told after it was undone.
            self.packets = target.progress(fault).packets.or(self.packets);
        }
        looked_at.extend((!self.carriers.is_empty()).then_some("targets"));
        let mut after = None;
        if let (Some(observer), Some(before)) = (observer, &self.audit.before) {
            let seen = after.insert(observer.observe());
            left.extend(audit::left_over(fault, before, seen, others));
            looked_at.extend(audit::seen(before, seen));
        }
        if !left.is_empty() && self.ended.is_none_or(|ended| now < ended + audit::GRACE) {
            return false;
        }
        self.audit.after = after;
        self.audit.looked_at = looked_at.into_iter().map(str::to_owned).collect();
        self.leak = (!left.is_empty()).then(|| left.join("; "));
        true
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
            if let Err(error) = guarded(|| target.undo(fault)) {
                failed.push(format!("{} could not be undone: {error}", target.name()));
            }
            let progress = target.progress(fault);
            self.achieved = progress.achieved.or(self.achieved.take());
            self.packets = progress.packets.or(self.packets);
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

    /// Ends it with the instance, if it has not ended.
    pub(crate) fn shut_down(&mut self, steady: Option<&dyn SteadyState>, now: Instant) {
        let reason = "the instance is stopping".to_owned();
        match (self.status, self.fault_end) {
            (status, _) if status.is_final() => {}
            // Its fault is over and taken back.
            (Status::Recovering, Some(end)) => {
                self.after = steady.map(|steady| self.time_after(steady, end, now));
                self.set(Status::Aborted, Some(reason), now);
            }
            _ => self.abort(reason, now),
        }
    }

    /// Goes on with what time has brought.
    pub(crate) fn advance(&mut self, steady: Option<&dyn SteadyState>, now: Instant) {
        if self.status == Status::Running {
            self.follow(now);
        }
        match (self.status, &self.lease) {
            (Status::Running, Some(lease)) if now >= lease.expires_at => self.expire(steady, lease.expires_at, now),
            (Status::Running, Some(lease)) => {
                let started = lease.started;
                // Also if nobody watches: who drives the controller is told when it is due.
                let is_due = self.is_due(now);
                if let Some(steady) = steady.filter(|_| is_due) {
                    self.guard(steady, started, now);
                }
            }
            (Status::Recovering, _) => {
                let is_due = self.is_due(now);
                match (steady.filter(|_| is_due), self.recovered) {
                    (_, Some(recovered)) => self.conclude(recovered, now),
                    (Some(steady), None) => self.watch_recovery(steady, now),
                    (None, None) => {}
                }
            }
            _ => {}
        }
    }

    /// Looks at how the targets do. The fault is over when one of them has ended by itself.
    fn follow(&mut self, now: Instant) {
        let Some(fault) = self.lease.as_ref().map(|lease| lease.id) else { return };
        let mut ended = None;
        for target in &self.carriers {
            let progress = target.progress(fault);
            self.achieved = progress.achieved.or(self.achieved.take());
            self.packets = progress.packets.or(self.packets);
            ended = ended.or_else(|| Some((target.name().to_owned(), progress.ended?)));
        }
        match ended {
            Some((name, Ended::LetGo(why))) => self.abort(format!("{name} let go: {why}"), now),
            Some((name, Ended::Failed(why))) => self.fail(&format!("{name}: {why}"), now),
            None => {}
        }
    }

    /// Ends a fault that could not be carried out.
    pub(crate) fn fail(&mut self, reason: &str, now: Instant) {
        let undone = self.end_fault(now).err().map(|error| format!("; {error}")).unwrap_or_default();
        self.set(Status::Failed, Some(format!("{reason}{undone}")), now);
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
        let sample = self.look(steady, started, now);
        if let Some(check) = met(&self.experiment.abort_when, &sample).copied() {
            self.guard = Some(check);
            self.abort(format!("abort_when: {check}"), now);
        }
    }

    /// Takes the sample of the second before `at`, during the fault.
    fn look(&mut self, steady: &dyn SteadyState, started: Instant, at: Instant) -> Sample {
        let sample = steady.sample(&self.second(at, None));
        if broken(&self.steady_state, &sample).is_some() {
            self.detected.get_or_insert(at - started);
        }
        self.series.push(since(started, at), sample);
        sample
    }

    /// Sums up the time of the fault, once. Where there is a time after it, in that: a call that ends right after the fault belongs to
    /// one of the two, and may not have been counted when the fault ends.
    pub(crate) fn look_back(&mut self, steady: Option<&dyn SteadyState>) {
        if let (Some(steady), Some(lease), Some(end), None) = (steady, &self.lease, self.fault_end, self.during) {
            self.during = Some(self.time_of_fault(steady, lease.started, end));
        }
    }

    fn expire(&mut self, steady: Option<&dyn SteadyState>, end: Instant, now: Instant) {
        let started = self.started();
        // The fault's last second, if nobody has looked at it.
        if let Some(steady) = steady.filter(|_| self.next_sample <= end) {
            self.look(steady, started, end);
        }
        if let Err(error) = self.end_fault(end) {
            return self.set(Status::Failed, Some(error), now);
        }
        self.set(Status::Recovering, None, end);
        match steady.filter(|_| !self.steady_state.is_empty()) {
            Some(steady) => {
                self.recovery = Some(Recovery::new(end, self.experiment.recovery_time));
                self.next_sample = end + SECOND;
                if now >= self.next_sample {
                    self.advance(Some(steady), now);
                }
            }
            None => {
                self.recovered = Some(Recovered::NotObserved);
                self.next_sample = now + SECOND;
                self.conclude(Recovered::NotObserved, now);
            }
        }
    }

    fn watch_recovery(&mut self, steady: &dyn SteadyState, now: Instant) {
        self.look_back(Some(steady));
        let (started, second) = (self.started(), self.second(now, self.fault_end));
        let (Some(recovery), Some(end)) = (&mut self.recovery, self.fault_end) else { return };
        let sample = steady.sample(&second);
        self.series.push(since(started, now), sample);
        let Some(recovered) = recovery.take(&self.steady_state, &sample, now) else { return };
        self.recovered = Some(recovered);
        self.after = Some(self.time_after(steady, end, now));
        self.conclude(recovered, now);
    }

    /// Ends it, once it is known what became of the processes that it ended, too.
    fn conclude(&mut self, recovered: Recovered, now: Instant) {
        let limit = self.experiment.recovery_time;
        let judged: Vec<_> = self.outages.iter().map(|outage| outage.judged(limit, now)).collect();
        let too_long =
            judged.iter().find_map(|judged| if let Judged::TooLong(why) = judged { Some(why) } else { None });
        if recovered == Recovered::TooLate {
            let limit = humantime::format_duration(limit);
            self.set(Status::Failed, Some(format!("not well again within {limit}")), now);
        } else if let Some(why) = too_long {
            self.recovered = Some(Recovered::TooLate);
            self.set(Status::Failed, Some(why.clone()), now);
        } else if !judged.contains(&Judged::Open) {
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
        if let Some(rate) = self.experiment.crash_rate {
            injected.requested_intensity = rate.get();
        }
        if let Fault::Partition(partition) = &self.experiment.fault {
            injected.requested_intensity = partition.intensity.get();
            injected.achieved_intensity = share(injected.connections_chosen, injected.connections);
        } else {
            injected.achieved_intensity = share(injected.injected, injected.matched);
        }
        if let Fault::Network(netem) = &self.experiment.fault {
            injected.achieved_intensity = netem.achieved(self.packets.unwrap_or_default());
            injected.packets = self.packets;
        }
        if let Some(achieved) = &self.achieved {
            injected.requested_intensity = achieved.requested_share();
            injected.achieved_intensity = Some(achieved.share());
            injected.resource = Some(achieved.clone());
        }
        injected
    }

    /// How long after the end of the fault all was well again: the steady state held from then on, and of each process that was
    /// ended, and whose server was called, a call had ended well.
    fn well_again(&self) -> Option<Duration> {
        let (Some(Recovered::After(held)), Some(end)) = (self.recovered, self.fault_end) else { return None };
        Some(self.outages.iter().filter_map(|outage| outage.over_after(end)).fold(held, Duration::max))
    }

    pub(crate) fn report(&self, clock: &ClockAnchor) -> Report {
        let injection = self.injection();
        // What becomes of a packet the kernel draws.
        let is_drawn = !matches!(self.experiment.fault, Fault::Network(_));
        let can_be_replayed = self.lease.is_some() && injection.unjournalled == 0 && is_drawn;
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
            steady_state: self.steady_state.iter().map(Check::to_string).collect(),
            guard: self.guard.map(|check| check.to_string()),
            before: self.before,
            during: self.during,
            after: self.after,
            injection,
            time_to_detect: self.detected.map(millis),
            recovery: RecoveryReport {
                limit: millis(self.experiment.recovery_time),
                time: self.well_again().map(millis),
                observed: matches!(self.recovered, Some(Recovered::After(_) | Recovered::TooLate)),
            },
            outages: self.outages.iter().filter_map(|outage| outage.report(self.started())).collect(),
            leak: self.leak.clone(),
            audit: self.audit.clone(),
            replay: can_be_replayed.then(|| format!("mcpscope chaos replay {} --start", self.id)),
            samples: self.series.points().to_vec(),
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
                // Once it is decided what it has left over, and the run is over.
                report: None,
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

/// From the fault's beginning, in ms.
fn since(started: Instant, at: Instant) -> i64 {
    i64::try_from(millis(at.saturating_duration_since(started))).unwrap_or(i64::MAX)
}

pub(crate) fn wall_ms(clock: &ClockAnchor, at: Instant) -> u64 {
    let since = clock.wall_at(at).duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.map_or(0, millis)
}
