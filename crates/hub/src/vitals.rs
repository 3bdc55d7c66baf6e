//! Health, worked out from the metrics.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::Component;
use mcpscope_health::rules::{self, Activity};
use mcpscope_health::{Overall, ProcessReading, Report, State};
use mcpscope_metrics::{Gauge, Metrics, Process, Totals};

use crate::Core;

/// What error rates and the registry's rate cover (behaviour A3).
const WINDOW: Duration = Duration::from_secs(60);

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When.
    pub timestamp: SystemTime,
    /// What.
    pub change: Change,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Change {
    /// A component went from one state to another.
    Health {
        /// The component.
        component: String,
        /// Its state before.
        from: State,
        /// Its state now.
        to: State,
        /// What there is to say about it now.
        message: String,
    },
    /// Something happened in the chaos engine.
    Chaos(mcpscope_chaos::Event),
}

/// Remembers the last minute of totals, and the last report.
#[derive(Debug)]
pub(crate) struct Vitals {
    core: Arc<Core>,
    samples: VecDeque<(Instant, Totals)>,
    last: Arc<Report>,
    gauges: BTreeMap<(String, &'static str), Gauge>,
}

/// What a look at health gave.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) report: Arc<Report>,
    /// Whether anything but times and rates differs from the report before.
    pub(crate) news: bool,
    pub(crate) events: Vec<Event>,
}

impl Vitals {
    pub(crate) fn new(core: Arc<Core>, first: Arc<Report>) -> Self {
        Self { core, samples: VecDeque::new(), last: first, gauges: BTreeMap::new() }
    }

    /// Looks at the metrics, reports what follows from them, and reads the whole.
    pub(crate) fn look(&mut self, at: Instant) -> Look {
        let core = Arc::clone(&self.core);
        let sources = &core.sources;
        let wall = sources.anchor.wall_at(at);
        if let Some(metrics) = &sources.metrics {
            self.observe(metrics, at, wall);
        }
        let report = Arc::new(sources.health.report(at, wall));
        if let Some(metrics) = &sources.metrics {
            self.expose(metrics, &report, at);
            if let Some(reading) = sources.health.process() {
                metrics.set_process(&process(&reading), at);
            }
        }
        let last = std::mem::replace(&mut self.last, Arc::clone(&report));
        let events = changes(&last, &report);
        let said = |report: &Report| -> Vec<(String, State, String)> {
            report.components.iter().map(|(name, c)| (name.clone(), c.state, c.message.clone())).collect()
        };
        Look { news: said(&last) != said(&report), report, events }
    }

    fn observe(&mut self, metrics: &Metrics, at: Instant, wall: SystemTime) {
        let core = Arc::clone(&self.core);
        let totals = metrics.totals();
        while self.samples.front().is_some_and(|(then, _)| at.saturating_duration_since(*then) > WINDOW) {
            self.samples.pop_front();
        }
        let oldest = self.samples.front();
        let seconds = oldest.map_or(0.0, |(then, _)| at.saturating_duration_since(*then).as_secs_f64());
        let since = |of: fn(&Totals) -> u64| {
            let before = oldest.map(|(_, before)| of(before));
            of(&totals).saturating_sub(before.unwrap_or_else(|| of(&totals)))
        };
        let component = |component: Component| {
            let of = |totals: &Totals| totals.components.get(component.as_str()).copied().unwrap_or_default();
            // Before the second sample nothing is known of the last minute.
            let (now, then) = (of(&totals), oldest.map_or_else(|| of(&totals), |(_, before)| of(before)));
            (now.operations.saturating_sub(then.operations), now.errors.saturating_sub(then.errors))
        };
        let rate = (seconds > 0.0).then(|| since(|totals| totals.registry_operations) as f64 / seconds);
        let thresholds = &core.config.thresholds;
        let activity = |measured, rate, count| {
            let (operations, errors) = component(measured);
            Activity { rate, count, operations, errors }
        };
        let registry = activity(Component::Registry, rate, None);
        let sessions = activity(Component::SessionManager, None, Some(totals.active_sessions));
        let transports = activity(Component::Transport, None, Some(totals.transport_connections));
        let reporter = &core.sources.reporter;
        reporter.observe("registry", rules::registry(&registry, thresholds), wall);
        reporter.observe("sessions", rules::sessions(&sessions, thresholds), wall);
        reporter.observe("transports", rules::transports(&transports, thresholds), wall);
        self.samples.push_back((at, totals));
    }

    /// Health as metrics: one series for each state, 1 for the one that is.
    fn expose(&mut self, metrics: &Metrics, report: &Report, at: Instant) {
        const STATES: [State; 3] = [State::Healthy, State::Warning, State::Critical];
        const OVERALL: [Overall; 4] = [Overall::Healthy, Overall::Degraded, Overall::Warning, Overall::Critical];
        for ((component, _), gauge) in &self.gauges {
            if component != "overall" && !report.components.contains_key(component) {
                gauge.set(0.0, at);
            }
        }
        let mut set = |component: &str, state: &'static str, is: bool| {
            let key = (component.to_owned(), state);
            self.gauges
                .entry(key)
                .or_insert_with(|| metrics.health_state(component, state))
                .set(f64::from(u8::from(is)), at);
        };
        OVERALL.iter().for_each(|state| set("overall", state.as_str(), *state == report.overall));
        for (name, component) in &report.components {
            STATES.iter().for_each(|state| set(name, state.as_str(), *state == component.state));
        }
    }
}

fn process(reading: &ProcessReading) -> Process {
    let ProcessReading { cpu, resident_bytes, virtual_bytes, started, open_fds, max_fds, threads } = *reading;
    Process { cpu, resident_bytes, virtual_bytes, started, open_fds, max_fds, threads }
}

/// The components whose state is another one than before.
fn changes(before: &Report, now: &Report) -> Vec<Event> {
    let changed = now.components.iter().filter_map(|(name, component)| {
        let from = before.components.get(name).map(|before| before.state).filter(|from| *from != component.state)?;
        let change =
            Change::Health { component: name.clone(), from, to: component.state, message: component.message.clone() };
        Some(Event { timestamp: now.timestamp, change })
    });
    changed.collect()
}
