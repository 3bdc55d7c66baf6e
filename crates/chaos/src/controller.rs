//! The commands: what starts, ends and shows experiments.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread;
use std::time::Instant;

use mcpscope_core::{ClockAnchor, FaultId};

use crate::audit::LeakAudit;
use crate::directory::Directory;
use crate::experiment::Request;
use crate::injector::Injector;
use crate::journal::Journal;
use crate::lease::{Shared, Stop};
use crate::outlook::{Outlook, Traffic};
use crate::plan::{Plan, PlanError};
use crate::refusal::{NotRunning, RearmError, Refusal};
use crate::report::Report;
use crate::state::State;
use crate::status::{Cause, ChaosStatus, Event, StartedBy, Test};
use crate::steady::SteadyState;
use crate::target::{ChaosTarget, TargetError, guarded};

/// What an engine is made of.
#[derive(Debug)]
pub struct Parts {
    /// What is allowed.
    pub plan: Plan,
    /// What every draw comes from.
    pub seed: u64,
    /// When the engine begins, on both clocks: what the scheduler counts from.
    pub clock: ClockAnchor,
    /// Where experiments are written down.
    pub journal: Journal,
    /// Who tells how the watched system is doing. Without one, recovery is not observed.
    pub steady_state: Option<Arc<dyn SteadyState>>,
    /// Who sees what a fault could leave behind in this program. Without one, the fault table, queues and targets are looked at.
    pub leak_audit: Option<Arc<dyn LeakAudit>>,
}

impl Parts {
    /// An engine that keeps its journal in memory and does not see the watched system.
    #[must_use]
    pub fn new(plan: Plan, seed: u64, clock: ClockAnchor) -> Self {
        Self { plan, seed, clock, journal: Journal::in_memory(), steady_state: None, leak_audit: None }
    }
}

/// Hits that wait to be journalled; what comes while it is full is counted.
const WAITING: usize = 16 * 1024;

/// Puts an engine together: the half that commands and the half that decides.
///
/// Neither does anything by itself: the controller wants to be driven ([`Controller::drive`]), the injector to be asked.
///
/// # Errors
/// The plan has a value that is out of range.
pub fn new(parts: Parts) -> Result<(Controller, Injector), PlanError> {
    parts.plan.check()?;
    let (sender, hits) = sync_channel(WAITING);
    let shared = Arc::new(Shared::new(sender, Directory::new(&parts.plan.blast_radius.protected)));
    let automatic_stop = AtomicBool::new(parts.plan.automatic_stop);
    let state = Mutex::new(State::new(parts, hits));
    Ok((Controller(Arc::new(Inner { shared: shared.clone(), automatic_stop, state })), Injector(shared)))
}

/// Starts, ends and shows experiments. Cheap to clone; every clone is the same.
#[derive(Clone, Debug)]
pub struct Controller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    /// Whether anything but a person may cause an emergency stop.
    automatic_stop: AtomicBool,
    /// Never locked by the data path.
    state: Mutex<State>,
}

/// Whether there can be a network.
struct Probed {
    /// Who was asked; nobody if none is wanted.
    prober: Option<Arc<dyn ChaosTarget>>,
    result: Result<(), TargetError>,
    /// When that was known.
    now: Instant,
}

impl Controller {
    /// Runs a command. Nothing that holds the state comes after an emergency stop without having heard of it, and if one
    /// comes meanwhile, it is heard of right after.
    fn with<T>(&self, now: Instant, command: impl FnOnce(&mut State, &Shared) -> T) -> T {
        let shared = &*self.0.shared;
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.hear_of_stop(shared, now);
        let result = command(&mut state, shared);
        drop(state);
        self.hear_of_stop(now);
        result
    }

    /// Hears of an emergency stop, unless somebody holds the state, who will when done with it.
    fn hear_of_stop(&self, now: Instant) {
        while self.0.shared.stop.load().is_some() {
            match self.0.state.try_lock() {
                Ok(mut state) => state.hear_of_stop(&self.0.shared, now),
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().hear_of_stop(&self.0.shared, now),
                Err(TryLockError::WouldBlock) => return,
            }
        }
    }

    /// Finds out whether there can be a network for an experiment, if it wants one. That may take seconds: nothing is locked.
    fn probe(&self, request: &Request, by: StartedBy, now: Instant) -> Probed {
        match self.with(now, |state, shared| state.prober(shared, request, by, now)) {
            None => Probed { prober: None, result: Ok(()), now },
            Some((target, experiment)) => {
                let began = Instant::now();
                let result = guarded(|| target.probe(experiment.scenario, &experiment.parameters));
                Probed { prober: Some(target), result, now: now + began.elapsed() }
            }
        }
    }

    /// What an experiment would do now: all the checks of a start, and nothing started. `traffic` is what passed lately. With
    /// `backend=netem` it may take seconds, in which other commands are heard.
    ///
    /// # Errors
    /// It would be refused.
    pub fn plan(&self, request: &Request, traffic: &[Traffic], now: Instant) -> Result<Outlook, Refusal> {
        let Probed { result, now, .. } = self.probe(request, StartedBy::Person, now);
        self.with(now, |state, shared| state.plan(shared, request, traffic, result, now))
    }

    /// Starts an experiment that a person wants. If the steady state does not hold it is over at once: `not_started`. With
    /// `backend=netem` it may take seconds, in which other commands are heard.
    ///
    /// # Errors
    /// It makes no sense, or is not allowed now. Nothing was started.
    pub fn start(&self, request: &Request, now: Instant) -> Result<FaultId, Refusal> {
        self.start_as(StartedBy::Person, request, now)
    }

    /// Starts an experiment that somebody else wants. What the scheduler wants is bounded by
    /// [`BlastRadius::max_sessions`](crate::BlastRadius::max_sessions).
    ///
    /// # Errors
    /// Those of [`Controller::start`].
    pub fn start_as(&self, by: StartedBy, request: &Request, now: Instant) -> Result<FaultId, Refusal> {
        let Probed { prober, result, now } = self.probe(request, by, now);
        let id = self.with(now, |state, shared| state.start(shared, request, by, result, now))?;
        if let Some(target) = prober {
            let began = Instant::now();
            // Whoever panics there has failed to make one, too.
            let _ = guarded(|| {
                target.wait_until_begun(id);
                Ok(())
            });
            let now = now + began.elapsed();
            self.with(now, |state, shared| state.has_begun(shared, id, now));
        }
        Ok(id)
    }

    /// Ends an experiment.
    ///
    /// # Errors
    /// It is not running.
    pub fn stop(&self, id: u64, now: Instant) -> Result<(), NotRunning> {
        self.with(now, |state, shared| state.stop(shared, id, now))
    }

    /// Ends every fault, and refuses new ones until [`Controller::rearm`]. When this returns no new decision can come from
    /// any of them. It waits for nothing: what is to be written down is, when the controller is driven next.
    ///
    /// A person can always do it; whether anything else can, the plan says ([`Plan::automatic_stop`]). Returns whether it
    /// was done.
    pub fn emergency_stop(&self, cause: Cause, now: Instant) -> bool {
        if cause != Cause::Person && !self.0.automatic_stop.load(Ordering::Relaxed) {
            return false;
        }
        self.0.shared.end_all(Stop { cause, at: now });
        self.hear_of_stop(now);
        true
    }

    /// Allows experiments again: a person wants it.
    ///
    /// # Errors
    /// Nothing was stopped, or the cooldown has not passed.
    pub fn rearm(&self, now: Instant) -> Result<(), RearmError> {
        self.with(now, |state, _| state.rearm(now))
    }

    /// Goes on with whatever time has brought, and writes down what was decided: it may touch the disk. To be called again
    /// at the time that it returns, or earlier; also after [`Controller::start`], to hear when that is.
    pub fn drive(&self, now: Instant) -> Instant {
        let (next, wanted) = self.with(now, |state, shared| state.drive(shared, now));
        if let Some(request) = wanted {
            let controller = self.clone();
            // A refusal is in the journal, and the next tick comes.
            let start = move || drop(controller.start_as(StartedBy::Scheduler, &request, now));
            drop(thread::Builder::new().name("mcpscope-start".into()).spawn(start));
        }
        next
    }

    /// Goes on under another plan. Limits, scheduler and scenarios are the new ones from now on; experiments that are
    /// running keep the terms that they were started with. Two things end them: the mode [`Off`](crate::Mode::Off) ends all,
    /// and a name that is protected now those that could touch it. The scheduler ticks on; its draws are those that it would
    /// have had.
    ///
    /// # Errors
    /// The plan has a value that is out of range. Nothing has changed.
    pub fn replace_plan(&self, plan: Plan, now: Instant) -> Result<(), PlanError> {
        plan.check()?;
        self.with(now, |state, shared| {
            self.0.automatic_stop.store(plan.automatic_stop, Ordering::Relaxed);
            state.replace_plan(shared, plan, now);
        });
        Ok(())
    }

    /// Something that faults outside of messages can be done to.
    pub fn register(&self, target: Arc<dyn ChaosTarget>, now: Instant) {
        self.with(now, |state, _| state.register(target));
    }

    /// It is not there any more: no experiment begins to do anything to it.
    pub fn unregister(&self, target: &Arc<dyn ChaosTarget>, now: Instant) {
        self.with(now, |state, _| state.unregister(target));
    }

    /// Ends with the instance: what has not ended is aborted, targets are undone, journals closed with what is known, and
    /// nothing can be started any more. When this returns, all of it is written. It waits for nothing, so it is not looked
    /// for what was left over.
    pub fn shut_down(&self, now: Instant) {
        self.with(now, |state, shared| state.shut_down(shared, now));
    }

    /// The state of everything.
    #[must_use]
    pub fn status(&self, now: Instant) -> ChaosStatus {
        self.with(now, |state, _| state.status(now))
    }

    /// The newest experiments that have ended, newest first, at most so many. Of the very newest it may not be decided yet
    /// what they have left over: they have no report.
    #[must_use]
    pub fn history(&self, most: usize, now: Instant) -> Vec<Test> {
        self.with(now, |state, _| state.history(most))
    }

    /// An experiment, running or ended.
    #[must_use]
    pub fn experiment(&self, id: u64, now: Instant) -> Option<Test> {
        self.with(now, |state, _| state.experiment(id))
    }

    /// What became of an experiment that has ended: none until it is decided what it has left over, which takes a moment, or two
    /// seconds if there is something.
    #[must_use]
    pub fn report(&self, id: u64, now: Instant) -> Option<Report> {
        self.with(now, |state, _| state.report(id))
    }

    /// The journal of an experiment that has ended, for [`Recording::parse`](crate::Recording::parse).
    #[must_use]
    pub fn journal(&self, id: u64, now: Instant) -> Option<String> {
        self.with(now, |state, _| state.journal_text(id))
    }

    /// What has happened since the event with this number, which is 0 for all that is kept; the oldest first. Of more than
    /// a thousand the oldest are gone, which the numbers show.
    #[must_use]
    pub fn events_since(&self, sequence: u64, now: Instant) -> Vec<Event> {
        self.with(now, |state, _| state.events_since(sequence))
    }
}
