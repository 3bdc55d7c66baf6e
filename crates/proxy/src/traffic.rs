//! Whether the traffic path can carry traffic, told to health.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use mcpscope_health::{Reporter, Requirement, State};

/// The components that the traffic path carries.
const COMPONENTS: [&str; 3] = ["registry", "sessions", "transports"];

/// Reports whether the traffic path works: as the components `registry`, `sessions` and `transports`, none of which has
/// anything to do without it, and as a condition of readiness.
#[derive(Debug)]
pub struct Traffic {
    reporter: Reporter,
    ready: Requirement,
    works: AtomicBool,
    /// Held while the components are told, so that all of them are told the same.
    telling: Mutex<()>,
}

impl Traffic {
    /// A path that does not carry traffic yet.
    #[must_use]
    pub fn new(reporter: Reporter) -> Self {
        let ready = reporter.require("traffic");
        Self { reporter, ready, works: AtomicBool::new(false), telling: Mutex::new(()) }
    }

    /// It works.
    pub fn works(&self) {
        // Once for every message: only a change is worth a lock.
        if self.is_working() {
            return;
        }
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.works.swap(true, Ordering::Relaxed) {
            self.set(State::Healthy, ["Registry running", "Sessions running", "Transports running"]);
            self.ready.met();
        }
    }

    /// It does not work, for this reason.
    pub fn fails(&self, reason: &str) {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        if self.works.swap(false, Ordering::Relaxed) {
            tracing::warn!(reason, "the traffic path does not work");
        }
        self.set(State::Critical, ["Registry not running", "Session manager not running", reason]);
        self.ready.unmet(reason);
    }

    fn set(&self, state: State, messages: [&str; 3]) {
        let at = SystemTime::now();
        for (component, message) in COMPONENTS.into_iter().zip(messages) {
            self.reporter.set(component, state, message, at);
        }
    }

    pub(crate) fn is_working(&self) -> bool {
        self.works.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use mcpscope_health::View;

    use super::*;

    fn components(view: &View) -> Vec<(String, State, String)> {
        let report = view.report(Instant::now(), SystemTime::now());
        report.components.into_iter().map(|(name, component)| (name, component.state, component.message)).collect()
    }

    fn expected(state: State, messages: [&str; 3]) -> Vec<(String, State, String)> {
        let component = |(name, message): (&str, &str)| (name.to_owned(), state, message.to_owned());
        COMPONENTS.into_iter().zip(messages).map(component).collect()
    }

    #[test]
    fn what_it_carries_is_as_it_is() {
        let (reporter, view) = mcpscope_health::channel(Instant::now());
        let traffic = Traffic::new(reporter);
        assert_eq!((components(&view), view.readiness().ready), (Vec::new(), false), "nothing is known yet");
        traffic.works();
        let running = ["Registry running", "Sessions running", "Transports running"];
        assert_eq!((components(&view), view.readiness().ready), (expected(State::Healthy, running), true));
        traffic.fails("connection refused");
        let gone = ["Registry not running", "Session manager not running", "connection refused"];
        assert_eq!((components(&view), view.readiness().ready), (expected(State::Critical, gone), false));
        assert_eq!(view.readiness().missing[0].reason, "connection refused");
        traffic.works();
        assert_eq!((components(&view), view.readiness().ready), (expected(State::Healthy, running), true));
    }
}
