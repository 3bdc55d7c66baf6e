//! How the export is doing, as others are told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use mcpscope_health::{Observation, Reporter, State};
use mcpscope_hub::Reader;

/// The component that all that observes reports itself as. The hub owns it; what is told here is what is seen of it.
const COMPONENT: &str = "observability";

/// Most messages of collectors that are repeated in the log: one that counts something has always a new one.
const MAX_SAID: usize = 16;

/// Whether each signal arrives.
pub(crate) struct Condition {
    reporter: Reporter,
    reader: Reader,
    /// What is wrong, by signal.
    failing: Mutex<BTreeMap<&'static str, String>>,
    /// What collectors said, as it was repeated.
    said: Mutex<BTreeSet<String>>,
}

impl Condition {
    pub(crate) fn new(reporter: Reporter, reader: Reader) -> Self {
        Self { reporter, reader, failing: Mutex::default(), said: Mutex::default() }
    }

    /// A batch of `signal` arrived at `at`.
    pub(crate) fn works(&self, signal: &'static str, at: &str) {
        self.change(|failing| {
            let failed = failing.remove(signal).is_some();
            if failed {
                tracing::info!("exporting {signal} to {at} works again");
            }
            failed
        });
    }

    /// A batch of `signal` did not arrive at `at`, or not all of it.
    pub(crate) fn fails(&self, signal: &'static str, at: &str, why: &str) {
        self.change(|failing| {
            let message = format!("exporting {signal} to {at} fails: {why}");
            let before = failing.insert(signal, message.clone());
            if before.is_none() {
                tracing::warn!("{message}");
            }
            before.as_ref() != Some(&message)
        });
    }

    /// What the collector at `at` has to say of a batch that it took, if it is anything: told once.
    pub(crate) fn says(&self, at: &str, message: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if message.is_empty() || said.len() == MAX_SAID {
            return;
        }
        let message = format!("the collector at {at} says: {message}");
        if said.insert(message.clone()) {
            tracing::warn!("{message}");
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<&'static str, String>) -> bool) {
        // Each change is a single one: a panic in another holder leaves nothing half done.
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if !change(&mut failing) {
            return;
        }
        let all = failing.values().map(String::as_str).collect::<Vec<_>>().join("; ");
        let (state, message) = match failing.is_empty() {
            true => (State::Healthy, "Observability running".to_owned()),
            false => (State::Warning, format!("Observability failing: {all}")),
        };
        let observation = Observation { state, message, rate: None, count: None };
        self.reporter.observe(COMPONENT, observation, self.reader.timestamp());
    }
}
