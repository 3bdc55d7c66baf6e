//! What the controller keeps, and how it changes.

mod admission;
mod carriers;
mod course;
mod foresight;
mod view;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use mcpscope_core::{ClockAnchor, FaultId};

use crate::Scenario;
use crate::audit::LeakAudit;
use crate::controller::Parts;
use crate::draw::{Key, experiment_seed};
use crate::experiment::Request;
use crate::journal::{Header, Hit, Journal, VERSION};
use crate::lease::{Lease, Shared, Stop, Terms};
use crate::outlook::{Outlook, Traffic, millis, outlook};
use crate::plan::{Mode, Plan};
use crate::refusal::{NotRunning, RearmError, Refusal};
use crate::run::{NewRun, Run, wall_ms};
use crate::scheduler::Scheduler;
use crate::status::{Cause, Event, Happened, StartedBy, Status};
use crate::steady::{Check, SteadyState};
use crate::target::{ChaosTarget, TargetError};
use admission::Admitted;
pub(crate) use carriers::Crashes;

const MAX_EVENTS: usize = 1000;

#[derive(Debug)]
pub(crate) struct State {
    plan: Plan,
    seed: u64,
    clock: ClockAnchor,
    journal: Journal,
    steady: Option<Arc<dyn SteadyState>>,
    leak_audit: Option<Arc<dyn LeakAudit>>,
    hits: Receiver<Hit>,
    /// Those that have not ended, and those whose end is not written down yet.
    runs: Vec<Run>,
    next_id: u64,
    /// Experiments so far in this run of the engine.
    ordinal: u64,
    failures: u32,
    stopped: Option<Stopped>,
    /// Nothing is started any more.
    is_stopping: bool,
    /// Nothing is asked of it unless the mode is scheduled.
    scheduler: Scheduler,
    events: VecDeque<Event>,
    /// Events of which the engine's journal has not heard.
    untold: usize,
    sequence: u64,
    targets: Vec<Arc<dyn ChaosTarget>>,
    kills: VecDeque<Instant>,
}

/// An emergency stop that holds.
#[derive(Debug)]
struct Stopped {
    cause: Cause,
    /// From when it can be armed again.
    until: Instant,
    /// A person wanted it, too: it does not arm itself.
    by_person: bool,
}

impl State {
    pub(crate) fn new(parts: Parts, hits: Receiver<Hit>) -> Self {
        let Parts { plan, seed, clock, journal, steady_state, leak_audit } = parts;
        let scheduler = Scheduler::new(seed, &plan, clock.mono);
        let swept = journal.swept().ids.clone();
        let mut state = Self {
            next_id: journal.newest() + 1,
            plan,
            seed,
            clock,
            journal,
            steady: steady_state,
            leak_audit,
            hits,
            runs: Vec::new(),
            ordinal: 0,
            failures: 0,
            stopped: None,
            is_stopping: false,
            scheduler,
            events: VecDeque::new(),
            untold: 0,
            sequence: 0,
            targets: Vec::new(),
            kills: VecDeque::new(),
        };
        if !swept.is_empty() {
            state.happened(Happened::Swept { ids: swept }, clock.mono);
        }
        state
    }

    pub(crate) fn register(&mut self, target: Arc<dyn ChaosTarget>) {
        // What a run before this one had done to it and not taken back; the target says itself what cannot be.
        for (id, _) in self.journal.swept().intents.iter().filter(|(_, name)| name == target.name()) {
            drop(target.undo(FaultId(*id)));
        }
        for (id, _, process) in self.journal.swept().processes.iter().filter(|(_, name, _)| name == target.name()) {
            drop(target.sweep(FaultId(*id), *process));
        }
        self.targets.push(target);
    }

    pub(crate) fn unregister(&mut self, target: &Arc<dyn ChaosTarget>) {
        self.targets.retain(|known| !Arc::ptr_eq(known, target));
    }

    fn happened(&mut self, what: Happened, now: Instant) {
        self.sequence += 1;
        self.events.push_back(Event { sequence: self.sequence, time: wall_ms(&self.clock, now), what });
        self.untold += 1;
        if self.events.len() > MAX_EVENTS {
            self.tell();
            self.events.pop_front();
        }
    }

    /// Tells the engine's journal of what it has not heard.
    fn tell(&mut self) {
        let heard = self.events.len() - self.untold.min(self.events.len());
        self.events.iter().skip(heard).for_each(|event| self.journal.note(event));
        self.untold = 0;
    }

    fn unfinished(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(|run| !run.status.is_final())
    }

    // === emergency stop ===

    pub(crate) fn hear_of_stop(&mut self, shared: &Shared, now: Instant) {
        let Some(stop) = shared.stop.swap(None) else { return };
        let Stop { cause, at } = &*stop;
        let reason = format!("emergency stop by {cause}");
        for run in self.runs.iter_mut().filter(|run| matches!(run.status, Status::Planned | Status::Running)) {
            // An experiment that was over before is not one that was stopped.
            match &run.lease {
                Some(lease) if lease.expires_at <= *at => {}
                _ => run.abort(reason.clone(), (*at).max(run.accepted)),
            }
        }
        let by_person = *cause == Cause::Person;
        match &mut self.stopped {
            Some(stopped) => stopped.by_person |= by_person,
            None => {
                let until = if by_person { *at } else { *at + self.plan.cooldown };
                self.stopped = Some(Stopped { cause: cause.clone(), until, by_person });
            }
        }
        self.happened(Happened::EmergencyStop { cause: cause.clone() }, (*at).min(now));
        self.tell_changes();
    }

    fn stop_by_itself(&mut self, shared: &Shared, cause: Cause, now: Instant) {
        if self.plan.automatic_stop {
            shared.end_all(Stop { cause, at: now });
            self.hear_of_stop(shared, now);
        }
    }

    pub(crate) fn rearm(&mut self, now: Instant) -> Result<(), RearmError> {
        let Some(stopped) = &self.stopped else { return Err(RearmError::NotStopped) };
        let wait = stopped.until.saturating_duration_since(now);
        if !wait.is_zero() {
            return Err(RearmError::Cooldown { by: stopped.cause.to_string(), wait_ms: millis(wait).max(1) });
        }
        self.arm(false, now);
        Ok(())
    }

    fn arm(&mut self, automatically: bool, now: Instant) {
        self.stopped = None;
        self.failures = 0;
        self.happened(Happened::Rearmed { automatically }, now);
    }

    // === start and stop ===

    pub(crate) fn plan(
        &mut self,
        shared: &Shared,
        request: &Request,
        traffic: &[Traffic],
        probed: Result<(), TargetError>,
        now: Instant,
    ) -> Result<Outlook, Refusal> {
        let admitted = self.admit(shared, request, StartedBy::Person, now)?;
        probed?;
        let (crash, resource) = self.foresee(&admitted, now);
        let checks = admitted.experiment.steady_state.as_ref().unwrap_or(&self.plan.steady_state);
        let steady_state = checks.iter().map(Check::to_string).collect();
        let share = admitted.share().get();
        let directory = shared.directory();
        let outlook = outlook(&admitted.experiment, admitted.targets, share, &directory, traffic);
        Ok(Outlook { steady_state, crash, resource, ..outlook })
    }

    pub(crate) fn start(
        &mut self,
        shared: &Shared,
        request: &Request,
        by: StartedBy,
        probed: Result<(), TargetError>,
        now: Instant,
    ) -> Result<FaultId, Refusal> {
        // Before anything is checked: whatever is stopped from here on makes the lease void.
        let epoch = shared.epoch();
        self.hear_of_stop(shared, now);
        // Who was marked before is none of its business.
        if self.spare_critical(shared, now) {
            self.publish(shared);
        }
        let admitted =
            self.admit(shared, request, by, now).and_then(|admitted| probed.map(|()| admitted).map_err(Into::into));
        let started = admitted.and_then(|admitted| self.begin(shared, admitted, by, epoch, now));
        if let Err(refusal) = &started {
            let (scenario, parameters) = (crate::parameter::excerpt(&request.scenario), request.parameters.excerpt());
            self.happened(Happened::Refused { scenario, parameters, by, reason: reasons(refusal) }, now);
        }
        self.tell_changes();
        started
    }

    fn begin(
        &mut self,
        shared: &Shared,
        admitted: Admitted,
        by: StartedBy,
        epoch: u64,
        now: Instant,
    ) -> Result<FaultId, Refusal> {
        let Admitted { experiment, mut targets, mut carriers, victims, scope } = admitted;
        let (id, experiment) = (self.next_id, Arc::new(experiment));
        let seed = experiment.seed.unwrap_or_else(|| experiment_seed(self.seed, self.ordinal));
        if experiment.scenario == Scenario::ProcessCrash && experiment.crash_rate.is_none() {
            // One of them, which is told before anything is done to it.
            let chosen = Key::connections(seed).block(0).below(carriers.len());
            carriers = vec![carriers.swap_remove(chosen)];
            targets = vec![targets.swap_remove(chosen)];
        }
        self.journal.begin(Header {
            version: VERSION,
            id,
            time: wall_ms(&self.clock, now),
            scenario: experiment.scenario.to_string(),
            parameters: experiment.parameters.clone(),
            seed,
            started_by: by,
            targets: targets.clone(),
        })?;
        self.next_id += 1;
        self.ordinal += 1;
        let steady_state = experiment.steady_state.clone().unwrap_or_else(|| self.plan.steady_state.clone());
        let new = NewRun { id, experiment: experiment.clone(), seed, by, targets, victims, steady_state };
        let mut run = Run::new(new, now);
        let steady = self.steady.clone();
        if let Some(check) = run.look_before(steady.as_deref(), now) {
            run.set(Status::NotStarted, Some(format!("steady state: {check} does not hold")), now);
            self.runs.push(run);
            return Ok(FaultId(id));
        }
        run.audit.before = self.leak_audit.as_ref().map(|observer| observer.observe());
        let terms = Terms { id: FaultId(id), experiment: experiment.clone(), seed, scope };
        let lease = Arc::new(Lease::new(shared, terms, epoch, now));
        shared.follow(FaultId(id), self.runs.iter().all(|run| run.status.is_final()));
        run.begin(lease, now);
        if let Some(rate) = experiment.crash_rate {
            run.crashes = Some(Crashes::new(rate, seed, &carriers, now));
            run.carriers = carriers;
            self.crash(shared, &mut run, now);
        } else {
            self.carry_out(shared, &mut run, carriers, now);
        }
        self.runs.push(run);
        self.publish(shared);
        Ok(FaultId(id))
    }

    /// Looks whether what was applied for an experiment is there.
    pub(crate) fn has_begun(&mut self, shared: &Shared, id: FaultId, now: Instant) {
        let steady = self.steady.clone();
        self.runs.iter_mut().filter(|run| run.id == id.0).for_each(|run| run.advance(steady.as_deref(), now));
        self.publish(shared);
        self.tell_changes();
    }

    pub(crate) fn stop(&mut self, shared: &Shared, id: u64, now: Instant) -> Result<(), NotRunning> {
        let steady = self.steady.clone();
        self.runs.iter_mut().for_each(|run| run.advance(steady.as_deref(), now));
        let running = self.unfinished().map(|run| run.id).collect();
        let run = self.runs.iter_mut().find(|run| run.id == id && !run.status.is_final());
        let stopped = run.map(|run| run.abort("stopped by a person".to_owned(), now));
        self.publish(shared);
        self.tell_changes();
        self.finish(shared, now);
        stopped.ok_or(NotRunning { id, running })
    }

    /// Goes on under another plan, which was checked. What is running keeps the terms it was started with, unless there
    /// is something in it that must not be touched any more.
    pub(crate) fn replace_plan(&mut self, shared: &Shared, plan: Plan, now: Instant) {
        let steady = self.steady.clone();
        // What was over before is not ended by the plan.
        self.runs.iter_mut().for_each(|run| run.advance(steady.as_deref(), now));
        let off = (plan.mode == Mode::Off).then(|| plan.why_off());
        let forbidden = self.forbidden(shared, &plan);
        let ended = forbidden.iter().map(|(id, _)| *id).collect();
        for run in &mut self.runs {
            if let Some((_, why)) = forbidden.iter().find(|(id, _)| *id == run.id) {
                run.abort(format!("the plan has changed: {why}"), now);
            }
        }
        self.publish(shared);
        self.scheduler.follow(&plan, now);
        self.happened(Happened::PlanReplaced { mode: plan.mode, off, ended }, now);
        self.plan = plan;
        self.tell_changes();
    }

    /// Puts the leases of what is running into the table.
    fn publish(&self, shared: &Shared) {
        let running = self
            .runs
            .iter()
            .filter(|run| run.status == Status::Running && !run.experiment.scenario.is_out_of_process());
        shared.publish(running.filter_map(|run| run.lease.clone()).collect());
    }
}

/// An error with its causes.
fn reasons(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
