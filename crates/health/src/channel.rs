//! Writers on one side, readers on the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::readiness::{Condition, Missing, NOT_YET, Readiness, Requirement};
use crate::report::{ComponentReport, Report, State};
use crate::usage::{Usage, UsageMeter};

/// The two ends of an instance's health; `started` is when the instance began.
#[must_use]
pub fn channel(started: Instant) -> (Reporter, View) {
    let shared = Arc::new(Shared { started, usage: UsageMeter::new(started), states: Mutex::new(States::default()) });
    (Reporter(Arc::clone(&shared)), View(shared))
}

#[derive(Debug)]
pub(crate) struct Shared {
    started: Instant,
    usage: UsageMeter,
    states: Mutex<States>,
}

#[derive(Debug, Default)]
pub(crate) struct States {
    components: BTreeMap<String, ComponentReport>,
    pub(crate) conditions: Vec<Condition>,
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
    /// Says how a component is at `at`. The first time registers it.
    pub fn set(&self, component: &str, state: State, message: impl Into<String>, at: SystemTime) {
        let message = message.into();
        let mut states = self.0.lock();
        match states.components.get_mut(component) {
            Some(known) => {
                if known.state != state {
                    known.since = at;
                }
                known.state = state;
                known.message = message;
            }
            None => {
                states.components.insert(component.to_owned(), ComponentReport { state, message, since: at });
            }
        }
    }

    /// Takes a component out of the report, if it is in it.
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
}

/// Reads states, conditions and the process's use of the machine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct View(Arc<Shared>);

impl View {
    /// How the instance is at `now`, which is `wall` on the wall clock.
    #[must_use]
    pub fn report(&self, now: Instant, wall: SystemTime) -> Report {
        let components = self.0.lock().components.clone();
        Report::new(components, self.uptime(now), wall)
    }

    /// How long the instance has been running at `now`.
    #[must_use]
    pub fn uptime(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.0.started)
    }

    /// What this process takes of the machine at `now`.
    #[must_use]
    pub fn usage(&self, now: Instant) -> Usage {
        self.0.usage.read(now)
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
