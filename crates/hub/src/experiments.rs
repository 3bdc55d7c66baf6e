//! The chaos engine, as those who show it and command it have it.

mod calls;
mod later;
mod meters;
mod traffic;

use std::future::pending;
use std::panic::resume_unwind;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mcpscope_chaos::{
    Cause, ChaosStatus, Controller, NotRunning, Outlook, Plan, PlanError, RearmError, Refusal, Report, Request,
    StartedBy, Test,
};
use mcpscope_core::FaultId;
use mcpscope_health::{Observation, State};
use tokio::runtime::Handle;
use tokio::sync::broadcast;
use tokio::time::{sleep, sleep_until};

pub use calls::Calls;

use crate::vitals::{Change, Event};
use crate::{Core, now};
use later::Later;
use meters::Meters;
use traffic::traffic;

/// How long a report is waited for: leaks are decided on after two seconds.
const DECIDED_WITHIN: Duration = Duration::from_secs(5);
/// How soon it is looked for again. By then it was mostly there when it was looked for first.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The engine and what it judges by: what the hub is made with.
#[derive(Clone, Debug)]
pub struct ChaosSource {
    /// The engine.
    pub controller: Controller,
    /// What it samples.
    pub calls: Arc<Calls>,
    later: Later,
}

impl ChaosSource {
    /// This engine, which samples these calls.
    #[must_use]
    pub fn new(controller: Controller, calls: Arc<Calls>) -> Self {
        Self { controller, calls, later: Later::default() }
    }

    /// Has this done with the engine by whoever drives it, after all that was posted before: for those who must not wait, as the
    /// engine's commands do for its journal.
    pub fn post(&self, command: impl FnOnce(&Controller, Instant) + Send + 'static) {
        self.later.post(Box::new(move |controller| command(controller, now())));
    }
}

/// The chaos engine: its commands, and what it knows. Cheap to clone.
///
/// What may touch the disk is done on a blocking thread of the runtime that [`Chaos::run`] is on, so that it waits for no
/// reader's work; an emergency stop is done at once, and waits for nothing.
#[derive(Clone, Debug)]
pub struct Chaos(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    core: Arc<Core>,
    source: ChaosSource,
    /// Where it is run.
    runtime: OnceLock<Handle>,
    events: broadcast::WeakSender<Arc<Event>>,
}

impl Chaos {
    pub(crate) fn new(core: Arc<Core>, source: ChaosSource, events: broadcast::WeakSender<Arc<Event>>) -> Self {
        Self(Arc::new(Inner { core, source, runtime: OnceLock::new(), events }))
    }

    /// Drives the engine, tells what happens there and counts it, until the hub ends. It touches the disk: to be run on a
    /// runtime of its own.
    pub async fn run(self) {
        let Inner { core, source: ChaosSource { controller, calls, later }, runtime, events } = &*self.0;
        // Run again elsewhere, it is still where the commands are done.
        drop(runtime.set(Handle::current()));
        let mut meters = core.sources.metrics.clone().map(|metrics| Meters::new(metrics, now()));
        let mut seen = 0;
        while let Some(events) = events.upgrade() {
            let at = now();
            calls.gather();
            later.work(controller);
            let next = controller.drive(at);
            for event in controller.events_since(seen, at) {
                seen = event.sequence;
                if let Some(meters) = &mut meters {
                    meters.saw(&event, at);
                }
                let timestamp = std::time::UNIX_EPOCH + Duration::from_millis(event.time);
                drop(events.send(Arc::new(Event { timestamp, change: Change::Chaos(event) })));
            }
            let status = controller.status(at);
            core.sources.reporter.observe("chaos", health(&status), core.sources.anchor.wall_at(at));
            if let Some(meters) = &mut meters {
                meters.set(&status, |id| controller.experiment(id, at), calls.lost(), at);
            }
            drop(events);
            tokio::select! {
                () = sleep_until(next.into()) => {}
                () = later.woken() => {}
            }
        }
    }

    /// Works with the engine where it may wait, and has it driven afterwards. A panic is passed on.
    async fn command<T: Send + 'static>(&self, command: impl FnOnce(&Controller, Instant) -> T + Send + 'static) -> T {
        let controller = self.0.source.controller.clone();
        let runtime = self.0.runtime.get().cloned().unwrap_or_else(Handle::current);
        let done = runtime.spawn_blocking(move || command(&controller, now())).await;
        self.0.source.later.wake();
        match done.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(done) => done,
            Err(Ok(panic)) => resume_unwind(panic),
            // The runtime is ending, and with it whoever asked.
            Err(Err(_)) => pending().await,
        }
    }

    /// What an experiment would do now, going by the traffic of the last minute; see [`Controller::plan`].
    ///
    /// # Errors
    /// It would be refused.
    pub async fn plan(&self, request: Request) -> Result<Outlook, Refusal> {
        let core = Arc::clone(&self.0.core);
        self.command(move |controller, now| controller.plan(&request, &traffic(&core), now)).await
    }

    /// Starts an experiment that a person wants; see [`Controller::start`].
    ///
    /// # Errors
    /// It makes no sense, or is not allowed now. Nothing was started.
    pub async fn start(&self, request: Request) -> Result<FaultId, Refusal> {
        self.start_as(StartedBy::Person, request).await
    }

    /// Starts an experiment that somebody else wants; see [`Controller::start_as`].
    ///
    /// # Errors
    /// Those of [`Chaos::start`].
    pub async fn start_as(&self, by: StartedBy, request: Request) -> Result<FaultId, Refusal> {
        self.command(move |controller, now| controller.start_as(by, &request, now)).await
    }

    /// Ends an experiment.
    ///
    /// # Errors
    /// It is not running.
    pub async fn stop(&self, id: u64) -> Result<(), NotRunning> {
        self.command(move |controller, now| controller.stop(id, now)).await
    }

    /// Ends every fault now, and refuses new ones until [`Chaos::rearm`]. Returns whether it was done: a person can always do it.
    pub fn emergency_stop(&self, cause: Cause) -> bool {
        let done = self.0.source.controller.emergency_stop(cause, now());
        self.0.source.later.wake();
        done
    }

    /// Ends all experiments with the instance, and writes down how they ended; see [`Controller::shut_down`]. It may touch the disk.
    pub fn shut_down(&self) {
        self.0.source.controller.shut_down(now());
    }

    /// Allows experiments again: a person wants it.
    ///
    /// # Errors
    /// Nothing was stopped, or the cooldown has not passed.
    pub async fn rearm(&self) -> Result<(), RearmError> {
        self.command(Controller::rearm).await
    }

    /// Has another plan followed while experiments are running, of those given the last one; see [`Controller::replace_plan`].
    /// `told` hears what came of it, on the engine's thread.
    pub fn replace_plan(&self, plan: Plan, told: impl FnOnce(Result<(), PlanError>) + Send + 'static) {
        self.0.source.post(move |controller, now| told(controller.replace_plan(plan, now)));
    }

    /// The state of everything.
    pub async fn status(&self) -> ChaosStatus {
        self.command(Controller::status).await
    }

    /// The newest experiments that have ended, newest first, at most so many.
    pub async fn history(&self, most: usize) -> Vec<Test> {
        self.command(move |controller, now| controller.history(most, now)).await
    }

    /// An experiment, running or ended.
    pub async fn experiment(&self, id: u64) -> Option<Test> {
        self.command(move |controller, now| controller.experiment(id, now)).await
    }

    /// What became of an experiment. If it has ended, and it is not decided yet what it has left over, that is waited for, for at
    /// most 5 seconds.
    pub async fn report(&self, id: u64) -> Option<Report> {
        let until = tokio::time::Instant::now() + DECIDED_WITHIN;
        loop {
            let (report, test) =
                self.command(move |controller, now| (controller.report(id, now), controller.experiment(id, now))).await;
            let is_closing = || test.is_some_and(|test| test.status.is_final());
            if report.is_some() || tokio::time::Instant::now() >= until || !is_closing() {
                return report;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// The journal of an experiment that has ended, as JSON lines.
    pub async fn journal(&self, id: u64) -> Option<String> {
        self.command(move |controller, now| controller.journal(id, now)).await
    }

    /// What has happened since the event with this number, which is 0 for all that is kept; the oldest first. What comes
    /// later is among [`Reader::events`](crate::Reader::events).
    pub async fn events_since(&self, sequence: u64) -> Vec<mcpscope_chaos::Event> {
        self.command(move |controller, now| controller.events_since(sequence, now)).await
    }
}

/// The engine as a component of the instance. That everything was stopped is a state that a person has to end, and no fault.
fn health(status: &ChaosStatus) -> Observation {
    let (state, message) = match (status.journal_errors, &status.stopped_by, status.active_tests) {
        (1.., ..) => (State::Warning, format!("Chaos running; {} journal entries lost", status.journal_errors)),
        (0, Some(by), _) => (State::Healthy, format!("Emergency stop by {by}")),
        (0, None, 0) => (State::Healthy, "No experiment running".to_owned()),
        (0, None, 1) => (State::Healthy, "1 experiment running".to_owned()),
        (0, None, running) => (State::Healthy, format!("{running} experiments running")),
    };
    Observation { state, message, rate: None, count: None }
}
