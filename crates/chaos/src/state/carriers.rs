//! What is not done to messages: who carries it out, and when.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mcpscope_core::Ratio;

use super::{State, reasons};
use crate::Scenario;
use crate::draw::Key;
use crate::experiment::Experiment;
use crate::journal::{Record, micros};
use crate::lease::Shared;
use crate::matcher::Pattern;
use crate::outage::Outage;
use crate::refusal::Refusal;
use crate::run::Run;
use crate::status::{Happened, Status};
use crate::steady::SECOND;
use crate::target::{ChaosTarget, Crash, Order, Victim, guarded};

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Outages that an experiment keeps.
const MOST_OUTAGES: usize = 100;

/// Crashes by chance: each target has its own, every second from the start on.
#[derive(Debug)]
pub(crate) struct Crashes {
    rate: Ratio,
    seed: u64,
    targets: Vec<Arc<dyn ChaosTarget>>,
    second: u64,
    next: Instant,
    /// One did not happen because there were enough in this hour, and that was said.
    has_refused: bool,
}

impl Crashes {
    pub(super) fn new(rate: Ratio, seed: u64, targets: &[Arc<dyn ChaosTarget>], now: Instant) -> Self {
        Self { rate, seed, targets: targets.to_vec(), second: 0, next: now, has_refused: false }
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Who crashes now, and of how many. Seconds that were missed are over.
    fn due(&mut self, now: Instant) -> (Vec<Arc<dyn ChaosTarget>>, usize) {
        if now < self.next {
            return (Vec::new(), 0);
        }
        while self.next + SECOND <= now {
            self.second += 1;
            self.next += SECOND;
        }
        let crashes = |target: u64| Key::crashes(self.seed, target).block(self.second).unit() < self.rate.get();
        let numbered = (0..).zip(&self.targets);
        let due = numbered.filter(|(number, _)| crashes(*number)).map(|(_, target)| target.clone()).collect();
        self.second += 1;
        self.next += SECOND;
        (due, self.targets.len())
    }
}

impl State {
    /// Who carries out a fault that is not done to messages.
    pub(super) fn carriers(
        &self,
        shared: &Shared,
        experiment: &Experiment,
    ) -> Result<Vec<Arc<dyn ChaosTarget>>, Refusal> {
        let scenario = experiment.scenario;
        let able: Vec<_> = self.targets.iter().filter(|target| target.carries(scenario)).collect();
        if able.is_empty() {
            return Err(Refusal::NotAvailable { scenario });
        }
        // With a control group it says whose, and not who does it.
        let wanted = experiment.target_processes().filter(|_| !experiment.aims_at_target);
        chosen(shared, scenario, &able, wanted.as_ref())
    }

    /// In whose control group it is done, for one that is done in another's.
    pub(super) fn victims(&self, shared: &Shared, experiment: &Experiment) -> Result<Vec<Victim>, Refusal> {
        if !experiment.aims_at_target {
            return Ok(Vec::new());
        }
        let scenario = experiment.scenario;
        let nothing = |reason| {
            let (there, place, parameter) = (Vec::new(), None, Some("cgroup"));
            Refusal::NothingMatched { scenario, reason, there, place, parameter }
        };
        let able: Vec<_> = self.targets.iter().filter(|target| target.carries(Scenario::ProcessCrash)).collect();
        if able.is_empty() {
            return Err(nothing("cgroup=target needs a server that mcpscope starts, and starts again when it crashes"));
        }
        let chosen = chosen(shared, scenario, &able, experiment.target_processes().as_ref())?;
        let victim =
            |target: &Arc<dyn ChaosTarget>| Some(Victim { name: target.name().to_owned(), process: target.process()? });
        let victims: Vec<_> = chosen.iter().filter_map(victim).collect();
        if victims.is_empty() { Err(nothing("none of those that match is a process")) } else { Ok(victims) }
    }

    /// Whether there may be one more crash in this hour.
    pub(super) fn may_kill(&self, now: Instant) -> Result<(), Refusal> {
        let most = self.plan.blast_radius.max_kills_per_hour;
        if self.kills_left(now) > 0 { Ok(()) } else { Err(Refusal::TooManyKills { most }) }
    }

    /// How many crashes there may still be in this hour.
    pub(super) fn kills_left(&self, now: Instant) -> usize {
        let kills = self.kills.iter().filter(|at| now.saturating_duration_since(**at) < HOUR).count();
        self.plan.blast_radius.max_kills_per_hour.saturating_sub(kills)
    }

    /// Does what is not done to messages, at once.
    pub(super) fn carry_out(
        &mut self,
        shared: &Shared,
        run: &mut Run,
        carriers: Vec<Arc<dyn ChaosTarget>>,
        now: Instant,
    ) {
        for target in carriers {
            run.carriers.push(target.clone());
            if let Err(error) = self.apply(shared, run, &*target, now) {
                return fail(run, &*target, &error, now);
            }
        }
    }

    /// The crashes by chance of all experiments.
    pub(super) fn crash_all(&mut self, shared: &Shared, now: Instant) {
        let mut runs = std::mem::take(&mut self.runs);
        for run in runs.iter_mut().filter(|run| run.status == Status::Running) {
            self.crash(shared, run, now);
        }
        self.runs = runs;
    }

    /// The crashes by chance that are due.
    pub(super) fn crash(&mut self, shared: &Shared, run: &mut Run, now: Instant) {
        let (due, all) = run.crashes.as_mut().map_or_else(Default::default, |crashes| crashes.due(now));
        if let Some(lease) = &run.lease {
            lease.counters.matched.fetch_add(all as u64, Ordering::Relaxed);
        }
        for target in due {
            // What has become of it since the experiment began counts, too.
            let is_meant = target.is_there() && is_free(shared, &*target);
            if !is_meant || shared.stop.load().is_some() {
                continue;
            }
            if let Err(refusal) = self.may_kill(now) {
                self.refuse(run, &refusal, now);
                continue;
            }
            if let Err(error) = self.apply(shared, run, &*target, now)
                && target.is_there()
            {
                return fail(run, &*target, &error, now);
            }
        }
    }

    /// Says, once, that an experiment cannot do what it wants to.
    fn refuse(&mut self, run: &mut Run, refusal: &Refusal, now: Instant) {
        let is_known = run.crashes.as_mut().is_some_and(|crashes| std::mem::replace(&mut crashes.has_refused, true));
        if !is_known {
            let (scenario, parameters) = (run.scenario().to_string(), run.experiment.parameters.excerpt());
            self.happened(Happened::Refused { scenario, parameters, by: run.by, reason: reasons(refusal) }, now);
        }
    }

    /// Does it to one target: written down and synced first.
    fn apply(&mut self, shared: &Shared, run: &mut Run, target: &dyn ChaosTarget, now: Instant) -> Result<(), String> {
        let Some(lease) = run.lease.clone() else { return Ok(()) };
        let t_us = micros(now.saturating_duration_since(lease.started));
        let (experiment, victims) = (run.experiment.clone(), run.victims.clone());
        let intent = Record::Intent { t_us, target: target.name().to_owned() };
        let protected = shared.directory().protected().clone();
        let mut order = Order {
            fault: lease.id,
            scenario: run.scenario(),
            parameters: &experiment.parameters,
            victims: &victims,
            seed: lease.seed,
            now,
            expires_at: lease.expires_at,
            protected: &protected,
            outage: None,
        };
        self.journal.write_ahead(run.id, &intent).map_err(|error| reasons(&error))?;
        if run.scenario() == Scenario::ProcessCrash {
            // Before it is known whether it succeeds: the limit is one of attempts.
            self.kills.retain(|at| now.saturating_duration_since(*at) < HOUR);
            self.kills.push_back(now);
        }
        // What stands still for a time has not ended.
        let ends = run.scenario() == Scenario::ProcessCrash && order.crash() != Crash::Stop;
        let outage = (ends && run.outages.len() < MOST_OUTAGES).then(|| Arc::new(Outage::new(target.name())));
        if let Some(outage) = &outage {
            shared.add_outage(outage);
            run.outages.push(Arc::clone(outage));
        }
        order.outage = outage.as_ref();
        guarded(|| target.apply(&order)).map_err(|error| error.to_string())?;
        if let Some(network) = target.network(lease.id) {
            // There is one helper, and so one network, for each fault.
            let _ = lease.network.set(network);
        }
        if let Some(process) = target.progress(lease.id).process {
            let started = Record::Process { t_us, target: target.name().to_owned(), process };
            self.journal.write_ahead(run.id, &started).map_err(|error| reasons(&error))?;
        }
        if run.scenario().is_out_of_process() {
            lease.counters.injected.fetch_add(1, Ordering::Relaxed);
            lease.counters.observed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Those of the targets that are meant by name, may be touched, and are there.
fn chosen(
    shared: &Shared,
    scenario: Scenario,
    able: &[&Arc<dyn ChaosTarget>],
    wanted: Option<&Pattern>,
) -> Result<Vec<Arc<dyn ChaosTarget>>, Refusal> {
    let there = || able.iter().map(|target| target.name().to_owned()).collect();
    let nothing = |reason, parameter| {
        let (there, place) = (there(), None);
        Refusal::NothingMatched { scenario, reason, there, place, parameter }
    };
    let is_called = |target: &dyn ChaosTarget, name: &Pattern| names(target).any(|called| name.matches(called));
    let named: Vec<_> =
        able.iter().copied().filter(|target| wanted.is_none_or(|name| is_called(&***target, name))).collect();
    if named.is_empty() {
        return Err(nothing("no target of that name", Some("target_processes")));
    }
    let free: Vec<_> = named.into_iter().filter(|target| is_free(shared, &***target)).collect();
    if free.is_empty() {
        return Err(nothing("all that match are critical or protected", None));
    }
    let up: Vec<_> = free.into_iter().filter(|target| target.is_there()).map(Arc::clone).collect();
    if up.is_empty() {
        return Err(nothing("none of those that match runs now", None));
    }
    Ok(up)
}

/// What a target is called.
fn names(target: &dyn ChaosTarget) -> impl Iterator<Item = &str> {
    std::iter::once(target.name()).chain(target.components().iter().map(|component| component.as_str()))
}

/// Whether something may be done to a target.
fn is_free(shared: &Shared, target: &dyn ChaosTarget) -> bool {
    let directory = shared.directory();
    !target.is_critical() && !directory.protected().covers(target.name())
}

/// An experiment fails because something could not be done to a target.
fn fail(run: &mut Run, target: &dyn ChaosTarget, error: &str, now: Instant) {
    run.fail(&format!("{}: {error}", target.name()), now);
}
