//! Chaos as metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use mcpscope_chaos::{ChaosStatus, Event, Happened, Scenario, Status, Test};
use mcpscope_metrics::{Counter, Metrics};

/// Counts what becomes of experiments.
#[derive(Debug)]
pub(super) struct Meters {
    metrics: Metrics,
    /// What is shown, also as 0.
    scenarios: BTreeSet<String>,
    /// Of experiments that have not ended: how many of their hits are counted.
    counted: BTreeMap<u64, u64>,
    lost: Counter,
    counted_lost: u64,
}

impl Meters {
    /// What calls are dropped as that found no place in the steady state.
    const LOST: &'static str = "steady_state_sample";

    pub(super) fn new(metrics: Metrics, at: Instant) -> Self {
        let lost = metrics.dropped(Self::LOST);
        let mut meters = Self { metrics, scenarios: BTreeSet::new(), counted: BTreeMap::new(), lost, counted_lost: 0 };
        Scenario::SCHEDULED.iter().for_each(|scenario| meters.show(scenario.as_str(), at));
        meters
    }

    /// Shows all there is of a scenario.
    fn show(&mut self, scenario: &str, at: Instant) {
        if self.scenarios.insert(scenario.to_owned()) {
            self.metrics.chaos_active(scenario).set(0.0, at);
            let counters =
                [Metrics::chaos_started, Metrics::chaos_completed, Metrics::chaos_failed, Metrics::chaos_injected];
            counters.iter().for_each(|counter| drop(counter(&self.metrics, scenario)));
        }
    }

    /// What has happened.
    pub(super) fn saw(&mut self, event: &Event, at: Instant) {
        let Happened::Changed { id, scenario, status, .. } = &event.what else { return };
        self.counted.entry(*id).or_default();
        self.show(scenario, at);
        match status {
            Status::Running => self.metrics.chaos_started(scenario).increment(at),
            Status::Completed => self.metrics.chaos_completed(scenario).increment(at),
            Status::Failed => self.metrics.chaos_failed(scenario).increment(at),
            Status::Planned | Status::Recovering | Status::Aborted | Status::NotStarted => {}
        }
    }

    /// How things are, and those experiments that have ended and were not seen as such yet.
    pub(super) fn set(&mut self, status: &ChaosStatus, ended: impl Fn(u64) -> Option<Test>, lost: u64, at: Instant) {
        let running = &status.active_tests_details;
        for scenario in &self.scenarios {
            let active = running.iter().filter(|test| test.status == Status::Running && test.name == *scenario).count();
            self.metrics.chaos_active(scenario).set(active as f64, at);
        }
        let over: Vec<u64> =
            self.counted.keys().copied().filter(|id| running.iter().all(|test| test.id != *id)).collect();
        let over_tests: Vec<Test> = over.iter().filter_map(|id| ended(*id)).collect();
        for test in running.iter().chain(&over_tests) {
            let counted = self.counted.entry(test.id).or_default();
            let new = test.details.injected.saturating_sub(std::mem::replace(counted, test.details.injected));
            if new > 0 {
                self.metrics.chaos_injected(&test.name).add(new, at);
            }
        }
        self.counted.retain(|id, _| !over.contains(id));
        let new = lost.saturating_sub(std::mem::replace(&mut self.counted_lost, lost));
        if new > 0 {
            self.lost.add(new, at);
        }
    }
}
