//! What the controller keeps, and how it changes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use mcpscope_core::{ClockAnchor, FaultId, Ratio};

use crate::controller::Parts;
use crate::draw::{Key, experiment_seed};
use crate::experiment::{Experiment, Request};
use crate::journal::{Header, Hit, Journal, Record, VERSION, micros};
use crate::lease::{Lease, Shared, Stop, Terms};
use crate::matcher::Pattern;
use crate::outlook::{Outlook, Traffic, millis, outlook};
use crate::parameter::ParameterError;
use crate::plan::{Mode, Plan, Rearm};
use crate::refusal::{NotRunning, RearmError, Refusal};
use crate::report::Report;
use crate::run::{NewRun, Run, test_of, wall_ms};
use crate::scheduler::Scheduler;
use crate::status::{Cause, ChaosStatus, Event, Happened, StartedBy, Status, Test, names};
use crate::steady::{SteadyState, Window, is_healthy_enough};
use crate::target::{ChaosTarget, Order};
use crate::{Impact, Scenario};

/// How often hits are written down while there may be some.
const DRAIN: Duration = Duration::from_millis(100);
/// How long nothing can happen that the caller does not cause.
const IDLE: Duration = Duration::from_secs(1);
const MAX_EVENTS: usize = 1000;
const RECENT_FAILURES: usize = 10;
const HOUR: Duration = Duration::from_secs(60 * 60);

#[derive(Debug)]
pub(crate) struct State {
    plan: Plan,
    seed: u64,
    clock: ClockAnchor,
    journal: Journal,
    steady: Option<Arc<dyn SteadyState>>,
    hits: Receiver<Hit>,
    /// Those that have not ended, and those whose end is not written down yet.
    runs: Vec<Run>,
    next_id: u64,
    /// Experiments so far in this run of the engine.
    ordinal: u64,
    failures: u32,
    stopped: Option<Stopped>,
    scheduler: Option<Scheduler>,
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

/// An experiment that may be started.
#[derive(Debug)]
struct Admitted {
    experiment: Experiment,
    targets: Vec<String>,
    carriers: Vec<Arc<dyn ChaosTarget>>,
    scope: Ratio,
}

impl Admitted {
    /// The share of the connections that it is about.
    fn share(&self) -> Ratio {
        let own = self.experiment.fault.connections();
        if own < self.scope { own } else { self.scope }
    }
}

impl State {
    pub(crate) fn new(parts: Parts, hits: Receiver<Hit>) -> Self {
        let Parts { plan, seed, clock, journal, steady_state } = parts;
        let first = clock.mono + plan.scheduler_delay;
        let scheduler = (plan.mode == Mode::Scheduled).then(|| Scheduler::new(seed, first, plan.scheduler_interval));
        let swept = journal.swept().ids.clone();
        let mut state = Self {
            next_id: journal.newest() + 1,
            plan,
            seed,
            clock,
            journal,
            steady: steady_state,
            hits,
            runs: Vec::new(),
            ordinal: 0,
            failures: 0,
            stopped: None,
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
        self.targets.push(target);
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

    /// Everything that has to be right for an experiment to start; nothing is changed.
    fn admit(&self, shared: &Shared, request: &Request, by: StartedBy, now: Instant) -> Result<Admitted, Refusal> {
        let experiment = self.plan.experiment(request)?;
        let scenario = experiment.scenario;
        if self.plan.mode == Mode::Off {
            return Err(Refusal::Off);
        }
        if let Some(stopped) = &self.stopped {
            let wait_ms = millis(stopped.until.saturating_duration_since(now));
            return Err(Refusal::Stopped { by: stopped.cause.to_string(), wait_ms });
        }
        let (running, most) = (self.unfinished().count(), self.plan.max_concurrent_tests);
        if running >= most {
            return Err(Refusal::TooMany { running, most });
        }
        let limits = &self.plan.blast_radius;
        if let Some(steady) = &self.steady {
            let sample = steady.sample(&Window::second(now, None));
            if !is_healthy_enough(&sample, limits.min_healthy) {
                let healthy = sample.healthy.unwrap_or(1.0) * 100.0;
                return Err(Refusal::Unhealthy { healthy, least: limits.min_healthy.get() * 100.0 });
            }
        }
        let (targets, carriers) = if scenario.is_out_of_process() {
            let carriers = self.carriers(shared, &experiment)?;
            let kills = self.kills.iter().filter(|at| now.saturating_duration_since(**at) < HOUR).count();
            if scenario == Scenario::ProcessCrash && kills >= limits.max_kills_per_hour {
                return Err(Refusal::TooManyKills { most: limits.max_kills_per_hour });
            }
            (carriers.iter().map(|target| target.name().to_owned()).collect(), carriers)
        } else {
            (servers(shared, &experiment)?, Vec::new())
        };
        let untouched = Ratio::new(1.0 - experiment.control.get()).unwrap_or(Ratio::ONE);
        let scope = match by {
            StartedBy::Scheduler if limits.max_sessions < untouched => limits.max_sessions,
            _ => untouched,
        };
        Ok(Admitted { experiment, targets, carriers, scope })
    }

    /// Who carries out a fault that is not done to messages.
    fn carriers(&self, shared: &Shared, experiment: &Experiment) -> Result<Vec<Arc<dyn ChaosTarget>>, Refusal> {
        let scenario = experiment.scenario;
        let able: Vec<_> = self.targets.iter().filter(|target| target.carries(scenario)).collect();
        if able.is_empty() {
            return Err(Refusal::NotAvailable { scenario });
        }
        let wanted = experiment.parameters.0.get("target_processes").and_then(|value| value.as_str()).map(Pattern::new);
        let there = || able.iter().map(|target| target.name().to_owned()).collect();
        let directory = shared.directory();
        let is_free = |target: &dyn ChaosTarget| !target.is_critical() && !directory.is_protected(target.name());
        let named: Vec<_> = able
            .iter()
            .copied()
            .filter(|target| wanted.as_ref().is_none_or(|name| name.matches(target.name())))
            .collect();
        if named.is_empty() {
            let reason = "no target of that name";
            return Err(Refusal::NothingMatched { scenario, reason, there: there() });
        }
        let free: Vec<_> = named.into_iter().map(Arc::clone).filter(|target| is_free(&**target)).collect();
        if free.is_empty() {
            let reason = "all that match are critical or protected";
            return Err(Refusal::NothingMatched { scenario, reason, there: there() });
        }
        Ok(free)
    }

    pub(crate) fn plan(
        &mut self,
        shared: &Shared,
        request: &Request,
        traffic: &[Traffic],
        now: Instant,
    ) -> Result<Outlook, Refusal> {
        let admitted = self.admit(shared, request, StartedBy::Person, now)?;
        let share = admitted.share().get();
        let directory = shared.directory();
        Ok(outlook(&admitted.experiment, admitted.targets, share, &directory, traffic))
    }

    pub(crate) fn start(
        &mut self,
        shared: &Shared,
        request: &Request,
        by: StartedBy,
        now: Instant,
    ) -> Result<FaultId, Refusal> {
        // Before anything is checked: whatever is stopped from here on makes the lease void.
        let epoch = shared.epoch();
        self.hear_of_stop(shared, now);
        let started =
            self.admit(shared, request, by, now).and_then(|admitted| self.begin(shared, admitted, by, epoch, now));
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
        let Admitted { experiment, targets, mut carriers, scope } = admitted;
        let (id, experiment) = (self.next_id, Arc::new(experiment));
        let seed = experiment.seed.unwrap_or_else(|| experiment_seed(self.seed, self.ordinal));
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
        let new = NewRun { id, experiment: experiment.clone(), seed, by, targets, steady_state };
        let mut run = Run::new(new, now);
        let steady = self.steady.clone();
        if let Some(check) = run.look_before(steady.as_deref(), now) {
            run.set(Status::NotStarted, Some(format!("steady state: {check} does not hold")), now);
            self.runs.push(run);
            return Ok(FaultId(id));
        }
        let terms = Terms { id: FaultId(id), experiment: experiment.clone(), seed, scope };
        let lease = Arc::new(Lease::new(shared, terms, epoch, now));
        if experiment.scenario == Scenario::ProcessCrash {
            // One of them, unless each is to have its own chance.
            if !experiment.parameters.0.contains_key("crash_rate") {
                let chosen = Key::connections(seed).block(0).below(carriers.len());
                carriers = vec![carriers.swap_remove(chosen)];
            }
            self.kills.retain(|at| now.saturating_duration_since(*at) < HOUR);
            self.kills.push_back(now);
        }
        run.begin(lease.clone(), now);
        self.carry_out(&mut run, carriers, &lease, now);
        self.runs.push(run);
        self.publish(shared);
        Ok(FaultId(id))
    }

    /// Does what is not done to messages: written down and synced first.
    fn carry_out(&mut self, run: &mut Run, carriers: Vec<Arc<dyn ChaosTarget>>, lease: &Lease, now: Instant) {
        for target in carriers {
            let intent = Record::Intent { t_us: 0, target: target.name().to_owned() };
            let order = Order {
                fault: lease.id,
                scenario: run.scenario(),
                parameters: &run.experiment.parameters,
                seed: lease.seed,
                expires_at: lease.expires_at,
            };
            let applied = self.journal.write_ahead(run.id, &intent).map_err(|error| reasons(&error));
            let applied = applied.and_then(|()| target.apply(&order).map_err(|error| error.to_string()));
            let name = target.name().to_owned();
            run.carriers.push(target);
            match applied {
                Ok(()) => {
                    lease.counters.injected.fetch_add(1, Ordering::Relaxed);
                    lease.counters.observed.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    let undone = run.end_fault(now).err().map(|error| format!("; {error}")).unwrap_or_default();
                    return run.set(Status::Failed, Some(format!("{name}: {error}{undone}")), now);
                }
            }
        }
    }

    pub(crate) fn stop(&mut self, shared: &Shared, id: u64, now: Instant) -> Result<(), NotRunning> {
        let steady = self.steady.clone();
        self.runs.iter_mut().for_each(|run| run.advance(steady.as_deref(), now));
        let running = self.unfinished().map(|run| run.id).collect();
        let run = self.runs.iter_mut().find(|run| run.id == id && !run.status.is_final());
        let stopped = run.map(|run| run.abort("stopped by a person".to_owned(), now));
        self.publish(shared);
        self.tell_changes();
        stopped.ok_or(NotRunning { id, running })
    }

    /// Puts the leases of what is running into the table.
    fn publish(&self, shared: &Shared) {
        let running = self
            .runs
            .iter()
            .filter(|run| run.status == Status::Running && !run.experiment.scenario.is_out_of_process());
        shared.publish(running.filter_map(|run| run.lease.clone()).collect());
    }

    // === the passage of time ===

    pub(crate) fn drive(&mut self, shared: &Shared, now: Instant) -> Instant {
        self.write_hits();
        let steady = self.steady.clone();
        let leases = |state: &Self| state.runs.iter().filter(|run| run.status == Status::Running).count();
        let before = leases(self);
        self.runs.iter_mut().for_each(|run| run.advance(steady.as_deref(), now));
        if leases(self) != before || shared.is_active() != (leases(self) > 0) {
            self.publish(shared);
        }
        self.tell_changes();
        self.finish(shared, now);
        if let Some(stopped) = &self.stopped
            && self.plan.rearm == Rearm::Auto
            && !stopped.by_person
            && now >= stopped.until
        {
            self.arm(true, now);
        }
        let wanted = self.scheduler.as_mut().and_then(|scheduler| scheduler.due(&self.plan.scenarios, now));
        if let Some(scenario) = wanted
            && self.stopped.is_none()
        {
            // A refusal is in the journal, and the next tick comes.
            drop(self.start(shared, &Request::new(scenario.as_str()), StartedBy::Scheduler, now));
        }
        self.tell();
        self.journal.flush();
        self.next(now)
    }

    fn write_hits(&mut self) {
        while let Ok(hit) = self.hits.try_recv() {
            let id = hit.experiment.0;
            if !self.journal.write(id, &Record::Hit(hit.into()))
                && let Some(lease) = self.runs.iter().find(|run| run.id == id).and_then(|run| run.lease.as_ref())
            {
                lease.counters.unjournalled.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Tells journal and listeners where experiments have been.
    fn tell_changes(&mut self) {
        let mut all = Vec::new();
        for run in &mut self.runs {
            let (id, scenario, started) = (run.id, run.scenario(), run.started());
            for (at, status, reason) in run.changes.drain(..) {
                let t_us = micros(at.saturating_duration_since(started));
                let record = Record::State { t_us, status, reason: reason.clone() };
                self.journal.write(id, &record);
                if status == Status::Recovering || status.is_final() {
                    for target in &run.carriers {
                        let target = target.name().to_owned();
                        self.journal.write(id, &Record::Undone { t_us, target });
                    }
                }
                all.push((at, Happened::Changed { id, scenario: scenario.to_string(), status, reason }));
            }
        }
        all.into_iter().for_each(|(at, what)| self.happened(what, at));
    }

    /// Closes the journals of experiments that have ended and from which nothing more can come.
    fn finish(&mut self, shared: &Shared, now: Instant) {
        let is_over = |run: &Run| run.status.is_final() && run.lease.as_ref().is_none_or(|lease| lease.is_quiet());
        let over: Vec<_> = self.runs.iter().filter(|run| is_over(run)).map(|run| run.id).collect();
        // Whatever was decided until they were quiet is waiting.
        self.write_hits();
        for id in over {
            let Some(at) = self.runs.iter().position(|run| run.id == id) else { continue };
            let run = self.runs.remove(at);
            self.journal.end(run.report(&self.clock));
            match run.status {
                Status::Completed => self.failures = 0,
                Status::Failed => self.failures = self.failures.saturating_add(1),
                _ => {}
            }
            if let Some(leak) = run.leak {
                self.stop_by_itself(shared, Cause::Leak(leak), now);
            }
            if self.failures >= self.plan.emergency_threshold && self.stopped.is_none() {
                self.stop_by_itself(shared, Cause::Threshold, now);
            }
        }
    }

    fn next(&self, now: Instant) -> Instant {
        let mut next = now + IDLE;
        let mut at = |time: Instant| next = next.min(time);
        for run in &self.runs {
            match (&run.lease, run.status) {
                (Some(lease), Status::Running) => {
                    at(lease.expires_at);
                    at(now + DRAIN);
                    at(run.next_sample);
                }
                (_, status) if status.is_final() => at(now + DRAIN),
                _ => at(run.next_sample),
            }
        }
        if let Some(scheduler) = &self.scheduler {
            at(scheduler.next());
        }
        if let Some(stopped) = &self.stopped
            && self.plan.rearm == Rearm::Auto
            && !stopped.by_person
        {
            at(stopped.until);
        }
        next
    }

    // === what there is to see ===

    fn test(&self, run: &Run) -> Test {
        run.test(self.plan.impact(run.scenario()), &self.clock)
    }

    fn ended_test(&self, report: &Report) -> Test {
        let impact = report.scenario.parse().map_or(Impact::Medium, |scenario| self.plan.impact(scenario));
        test_of(report.clone(), impact)
    }

    pub(crate) fn status(&self, now: Instant) -> ChaosStatus {
        let active: Vec<_> = self.unfinished().map(|run| self.test(run)).collect();
        let failures = self.journal.reports().filter(|report| report.status == Status::Failed);
        let available = Scenario::ALL.into_iter().filter(|scenario| {
            !scenario.is_out_of_process() || self.targets.iter().any(|target| target.carries(*scenario))
        });
        let stopped = self.stopped.as_ref();
        ChaosStatus {
            timestamp: wall_ms(&self.clock, now),
            active_tests: active.len(),
            emergency_stop: stopped.is_some(),
            stopped_by: stopped.map(|stopped| stopped.cause.to_string()),
            rearm_at: stopped.filter(|stopped| stopped.until > now).map(|stopped| wall_ms(&self.clock, stopped.until)),
            total_history: self.journal.ended(),
            available_scenarios: names(available),
            active_tests_details: active,
            recent_failures: failures.take(RECENT_FAILURES).map(|report| self.ended_test(report)).collect(),
            journal_errors: self.journal.errors(),
        }
    }

    pub(crate) fn history(&self, most: usize) -> Vec<Test> {
        self.journal.reports().take(most).map(|report| self.ended_test(report)).collect()
    }

    pub(crate) fn experiment(&self, id: u64) -> Option<Test> {
        let running = self.runs.iter().find(|run| run.id == id).map(|run| self.test(run));
        running.or_else(|| self.journal.report(id).map(|report| self.ended_test(&report)))
    }

    pub(crate) fn report(&self, id: u64) -> Option<Report> {
        let ended = self.runs.iter().find(|run| run.id == id && run.status.is_final());
        ended.map(|run| run.report(&self.clock)).or_else(|| self.journal.report(id))
    }

    pub(crate) fn journal_text(&self, id: u64) -> Option<String> {
        self.journal.text(id)
    }

    pub(crate) fn events_since(&self, sequence: u64) -> Vec<Event> {
        self.events.iter().filter(|event| event.sequence > sequence).cloned().collect()
    }
}

/// The servers that a fault of messages is about.
fn servers(shared: &Shared, experiment: &Experiment) -> Result<Vec<String>, Refusal> {
    let (scenario, matcher) = (experiment.scenario, &experiment.matcher);
    let directory = shared.directory();
    let there = || directory.servers().map(|server| format!("{} ({})", server.name, server.transport)).collect();
    let nothing = |reason| Refusal::NothingMatched { scenario, reason, there: there() };
    let named: Vec<_> =
        directory.servers().filter(|server| matcher.takes_server(&server.name, server.transport)).collect();
    if named.is_empty() {
        return Err(nothing("no server of that name and transport, where the fault means something"));
    }
    let speaks = |server: &crate::directory::Server| {
        let mut eras = server.eras().peekable();
        eras.peek().is_none() || eras.any(|era| matcher.takes_place(server.transport, era))
    };
    if !named.iter().any(|server| speaks(server)) {
        let place = named.first().map(|server| format!("{}, as {} speaks it", server.transport, server.name));
        return Err(ParameterError::Meaningless { scenario, place: place.unwrap_or_default() }.into());
    }
    let free: Vec<_> = named.into_iter().filter(|server| !server.protected && speaks(server)).collect();
    if free.is_empty() {
        return Err(nothing("all servers that match are critical or protected"));
    }
    let mut names: Vec<_> = free.into_iter().map(|server| server.name.to_string()).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// An error with its causes.
fn reasons(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
