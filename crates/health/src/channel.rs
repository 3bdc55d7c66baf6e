//! Writers on one side, readers on the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::children::{ChildUsage, Children, WatchedProcess};
use crate::component::{Component, Observation};
use crate::machine::Machine;
use crate::process::ProcessReading;
use crate::readiness::{Condition, Missing, NOT_YET, Readiness, Requirement};
use crate::report::{Overall, Report, State};
use crate::usage::{Usage, UsageMeter};

/// The two ends of an instance's health; `started` is when the instance began.
#[must_use]
pub fn channel(started: Instant) -> (Reporter, View) {
    let machine = Machine::new();
    let usage = UsageMeter::new(&machine, started);
    let states = Mutex::new(States::default());
    let shared = Arc::new(Shared { started, machine, usage, children: Children::default(), states });
    (Reporter(Arc::clone(&shared)), View(shared))
}

#[derive(Debug)]
pub(crate) struct Shared {
    started: Instant,
    machine: Machine,
    usage: UsageMeter,
    pub(crate) children: Children,
    states: Mutex<States>,
}

#[derive(Debug, Default)]
pub(crate) struct States {
    components: BTreeMap<String, Component>,
    pub(crate) conditions: Vec<Condition>,
}

impl States {
    fn update(&mut self, component: &str, at: SystemTime, change: impl FnOnce(&mut Component)) {
        // Every second for most: the name is only copied for a new one.
        match self.components.get_mut(component) {
            Some(known) => change(known),
            None => change(self.components.entry(component.to_owned()).or_insert_with(|| Component::new(at))),
        }
    }
}

impl Shared {
    // Every change is a single assignment or insertion: a panic in another holder leaves nothing half done.
    pub(crate) fn lock(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes states and conditions. Cheap to clone; every clone writes to the same instance.
#[derive(Clone, Debug)]
pub struct Reporter(Arc<Shared>);

impl Reporter {
    /// Says how a component is at `at`, as its owner. The first time registers it.
    ///
    /// Stays as it is until the owner says something else: whether it also looks like that is for
    /// [`observe`](Self::observe) to tell, and the worse of both is reported.
    pub fn set(&self, component: &str, state: State, message: impl Into<String>, at: SystemTime) {
        let message = message.into();
        self.0.lock().update(component, at, |known| known.say(state, message, at));
    }

    /// Tells how a component was seen to be at `at`, in place of what was seen before. The first time registers it.
    pub fn observe(&self, component: &str, observation: Observation, at: SystemTime) {
        self.0.lock().update(component, at, |known| known.see(observation, at));
    }

    /// Takes a component out of the report, if it is in it: what its owner said and what was seen.
    pub fn remove(&self, component: &str) {
        self.0.lock().components.remove(component);
    }

    /// Makes readiness depend on one more condition, which is not met yet. Two of the same name are two conditions.
    pub fn require(&self, name: &str) -> Requirement {
        let mut states = self.0.lock();
        let index = states.conditions.len();
        states.conditions.push(Condition { name: name.into(), unmet: Some(NOT_YET.into()) });
        Requirement { shared: Arc::clone(&self.0), index }
    }

    /// Has what a supervised process takes of the machine read along, until the guard is dropped.
    ///
    /// `pid` leads a process group of its own, all of which counts as `name`. Nothing is read before the next
    /// [`View::children`].
    pub fn watch_process(&self, name: &str, pid: u32) -> WatchedProcess {
        let id = self.0.children.watch(name, pid);
        WatchedProcess { shared: Arc::clone(&self.0), id }
    }
}

/// Reads states, conditions and the process's use of the machine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct View(Arc<Shared>);

impl View {
    /// How the instance is at `now`, which is `wall` on the wall clock.
    #[must_use]
    pub fn report(&self, now: Instant, wall: SystemTime) -> Report {
        let report = |(name, component): (&String, &Component)| (name.clone(), component.report());
        let components = self.0.lock().components.iter().map(report).collect();
        Report::new(components, self.uptime(now), wall)
    }

    /// How one component is now, without a report; none if there is no such component.
    #[must_use]
    pub fn state(&self, component: &str) -> Option<State> {
        self.0.lock().components.get(component).map(Component::known_state)
    }

    /// How the whole is now, without a report.
    #[must_use]
    pub fn overall(&self) -> Overall {
        let states = self.0.lock();
        let healthy = states.components.values().filter(|component| component.known_state() == State::Healthy);
        Overall::of(healthy.count(), states.components.len())
    }

    /// Whether the instance can serve.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.lock().conditions.iter().all(|condition| condition.unmet.is_none())
    }

    /// How long the instance has been running at `now`.
    #[must_use]
    pub fn uptime(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.0.started)
    }

    /// What this process takes of the machine at `now`.
    #[must_use]
    pub fn usage(&self, now: Instant) -> Usage {
        self.0.usage.read(&self.0.machine, now)
    }

    /// This process in absolute figures, read anew; nothing where the system does not tell them.
    #[must_use]
    pub fn process(&self) -> Option<ProcessReading> {
        self.0.machine.system.this_process()
    }

    /// What the watched processes take of the machine at `now`, in the order in which they were first watched.
    #[must_use]
    pub fn children(&self, now: Instant) -> Vec<ChildUsage> {
        self.0.children.read(&self.0.machine, now)
    }

    /// Whether the instance can serve, and if not, what is missing.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let states = self.0.lock();
        let missing: Vec<Missing> = states
            .conditions
            .iter()
            .filter_map(|condition| {
                let reason = condition.unmet.as_deref()?;
                Some(Missing { name: condition.name.to_string(), reason: reason.to_owned() })
            })
            .collect();
        Readiness { ready: missing.is_empty(), missing }
    }
}
