//! Whether the traffic path can carry traffic, told to health.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use mcpscope_health::{Reporter, Requirement, State};

/// The component that relays report as.
const COMPONENT: &str = "transports";

/// Reports whether the traffic path works: as the component `transports`, and as a condition of readiness.
#[derive(Debug)]
pub struct Traffic {
    reporter: Reporter,
    ready: Requirement,
    works: AtomicBool,
}

impl Traffic {
    /// A path that does not carry traffic yet.
    #[must_use]
    pub fn new(reporter: Reporter) -> Self {
        let ready = reporter.require("traffic");
        Self { reporter, ready, works: AtomicBool::new(false) }
    }

    /// It works.
    pub fn works(&self) {
        // Once for every message: only a change is worth a lock.
        if !self.works.swap(true, Ordering::Relaxed) {
            self.reporter.set(COMPONENT, State::Healthy, "Transports running", SystemTime::now());
            self.ready.met();
        }
    }

    /// It does not work, for this reason.
    pub fn fails(&self, reason: &str) {
        if self.works.swap(false, Ordering::Relaxed) {
            tracing::warn!(reason, "the traffic path does not work");
        }
        self.reporter.set(COMPONENT, State::Critical, reason, SystemTime::now());
        self.ready.unmet(reason);
    }

    pub(crate) fn is_working(&self) -> bool {
        self.works.load(Ordering::Relaxed)
    }
}
