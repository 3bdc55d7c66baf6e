//! One instance of all metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mcpscope_core::{ClockAnchor, Component, Direction, Labels, Method, Protocol, Transport};

use crate::cell::{CounterCell, GaugeCell, HistogramCell};
use crate::family::{Counter, Family, Found, Gauge, Histogram, Target};
use crate::raw::{RawLog, RawRecord};
use crate::schema::{Desc, KNOWN_ERRORS, desc};
use crate::snapshot::{Snapshot, Value};
use crate::window::{Extremes, Window, Windows};

/// How metrics are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long closed windows are kept. Default: [`Config::DEFAULT_RETENTION`].
    pub retention: Duration,
    /// Distinct values per label and metric, further ones become `other`. Default: [`Config::DEFAULT_MAX_LABEL_VALUES`].
    pub max_label_values: usize,
}

impl Config {
    /// 60 minutes.
    pub const DEFAULT_RETENTION: Duration = Duration::from_secs(60 * 60);
    /// 256.
    pub const DEFAULT_MAX_LABEL_VALUES: usize = 256;
}

impl Default for Config {
    fn default() -> Self {
        Self { retention: Self::DEFAULT_RETENTION, max_label_values: Self::DEFAULT_MAX_LABEL_VALUES }
    }
}

/// All metrics of one instance. Cheap to clone; every clone is the same instance.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    anchor: ClockAnchor,
    pub(crate) registry_operations: Family<CounterCell, 2>,
    pub(crate) session_creation: Family<HistogramCell, 2>,
    pub(crate) transport_connections: Family<GaugeCell, 2>,
    pub(crate) tool_calls: Family<HistogramCell, 4>,
    pub(crate) component_operations: Family<CounterCell, 2>,
    pub(crate) component_errors: Family<CounterCell, 3>,
    pub(crate) active_sessions: Family<GaugeCell, 2>,
    pub(crate) queue_depth: Family<GaugeCell, 2>,
    health_state: Family<GaugeCell, 2>,
    dropped: Family<CounterCell, 1>,
    build_info: Family<GaugeCell, 1>,
    raw: Arc<RawLog>,
    windows: Mutex<Windows>,
    /// The servers whose gauges somebody counts up and down.
    announced: Mutex<BTreeSet<Box<str>>>,
}

/// Sums over all series since the start of the instance, or now for what goes up and down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Registry operations.
    pub registry_operations: u64,
    /// Sessions that are open.
    pub active_sessions: u64,
    /// Connections and streams that are open.
    pub transport_connections: u64,
    /// By component, without what was injected.
    pub components: BTreeMap<Box<str>, ComponentTotals>,
}

/// What one component did since the start of the instance, without what was injected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ComponentTotals {
    /// Operations.
    pub operations: u64,
    /// Operations that failed.
    pub errors: u64,
}

/// What a label value over the limit is counted as.
const LABEL_VALUE: &str = "label_value";
/// What a raw record that found no place is counted as.
const RAW_RECORD: &str = "raw_record";

impl Metrics {
    /// Creates an instance; `anchor` is its start.
    #[must_use]
    pub fn new(config: &Config, anchor: ClockAnchor) -> Self {
        let max = config.max_label_values;
        let dropped: Family<CounterCell, 1> = Family::new(&desc::DROPPED, ["what"], max);
        dropped.with([LABEL_VALUE]);
        let raw = Arc::new(RawLog::new(anchor, dropped.with([RAW_RECORD]).series));
        let metrics = Self(Arc::new(Inner {
            anchor,
            registry_operations: Family::new(&desc::REGISTRY_OPERATIONS, ["server", "operation"], max),
            session_creation: Family::new(&desc::SESSION_CREATION, ["server", "protocol"], max),
            transport_connections: Family::new(&desc::TRANSPORT_CONNECTIONS, ["server", "transport"], max),
            tool_calls: Family::new(&desc::TOOL_CALLS, ["server", "tool", "outcome", "injected"], max),
            component_operations: Family::new(&desc::COMPONENT_OPERATIONS, ["component", "injected"], max),
            component_errors: Family::new(&desc::COMPONENT_ERRORS, ["component", "error_type", "injected"], max),
            active_sessions: Family::new(&desc::ACTIVE_SESSIONS, ["server", "protocol"], max),
            queue_depth: Family::new(&desc::QUEUE_DEPTH, ["server", "direction"], max),
            health_state: Family::new(&desc::HEALTH_STATE, ["component", "state"], max),
            dropped,
            build_info: Family::new(&desc::BUILD_INFO, ["version"], max),
            raw,
            windows: Mutex::new(Windows::new(anchor, config.retention)),
            announced: Mutex::default(),
        }));
        for component in Component::ALL {
            let _ = metrics.component_operations(component, false);
        }
        for (component, errors) in KNOWN_ERRORS {
            errors.iter().for_each(|error| drop(metrics.component_errors(component, error, false)));
        }
        metrics.0.build_info.with([env!("CARGO_PKG_VERSION")]).series.cell.add(1);
        metrics
    }

    /// Makes the families whose labels are known beforehand appear as zero for this server.
    pub fn announce_server(&self, server: &str, transport: Transport) {
        self.announced().insert(server.into());
        // Resolving a handle is what makes its series exist.
        let _ = self.transport_connections(server, transport);
        Method::REGISTRY_OPERATIONS.iter().for_each(|operation| drop(self.registry_operations(server, operation)));
        Direction::ALL.iter().for_each(|direction| drop(self.queue_depth(server, *direction)));
        for protocol in Protocol::KNOWN {
            let _ = (self.active_sessions(server, protocol), self.session_creation(server, protocol));
        }
    }

    /// Whether [`Metrics::announce_server`] was called for this server.
    pub(crate) fn is_announced(&self, server: &str) -> bool {
        self.announced().contains(server)
    }

    fn announced(&self) -> MutexGuard<'_, BTreeSet<Box<str>>> {
        self.0.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registry operations of a server; `operation` is one of [`Method::REGISTRY_OPERATIONS`].
    #[must_use]
    pub fn registry_operations(&self, server: &str, operation: &str) -> Counter {
        Counter(self.critical(&self.0.registry_operations, [server, operation]))
    }

    /// Durations of session creation.
    #[must_use]
    pub fn session_creation(&self, server: &str, protocol: Protocol) -> Histogram {
        Histogram(self.critical(&self.0.session_creation, [server, protocol.as_str()]))
    }

    /// Open connections and streams.
    #[must_use]
    pub fn transport_connections(&self, server: &str, transport: Transport) -> Gauge {
        Gauge(self.critical(&self.0.transport_connections, [server, transport.as_str()]))
    }

    /// Durations of calls of one tool that had this outcome ([`mcpscope_core::Outcome::as_label`]).
    #[must_use]
    pub fn tool_calls(&self, server: &str, tool: &str, outcome: &str, injected: bool) -> Histogram {
        Histogram(self.critical(&self.0.tool_calls, [server, tool, outcome, flag(injected)]))
    }

    /// Operations of a component. Not among the raw records: there are several for every message.
    #[must_use]
    pub fn component_operations(&self, component: Component, injected: bool) -> Counter {
        Counter(self.quiet(&self.0.component_operations, [component.as_str(), flag(injected)]))
    }

    /// Errors of a component; `error_type` as of [`mcpscope_core::ErrorType::as_label`].
    #[must_use]
    pub fn component_errors(&self, component: Component, error_type: &str, injected: bool) -> Counter {
        Counter(self.critical(&self.0.component_errors, [component.as_str(), error_type, flag(injected)]))
    }

    /// Sessions that are open.
    #[must_use]
    pub fn active_sessions(&self, server: &str, protocol: Protocol) -> Gauge {
        Gauge(self.critical(&self.0.active_sessions, [server, protocol.as_str()]))
    }

    /// Messages accepted and not yet written on. Not among the raw records: it changes twice with every message.
    #[must_use]
    pub fn queue_depth(&self, server: &str, direction: Direction) -> Gauge {
        Gauge(self.quiet(&self.0.queue_depth, [server, direction.as_str()]))
    }

    /// Whether a component is in a state: 1 or 0.
    #[must_use]
    pub fn health_state(&self, component: &str, state: &str) -> Gauge {
        Gauge(self.quiet(&self.0.health_state, [component, state]))
    }

    /// What was dropped or left unobserved.
    #[must_use]
    pub fn dropped(&self, what: &str) -> Counter {
        Counter(self.quiet(&self.0.dropped, [what]))
    }

    /// All families now, which is `at`. Changes nothing.
    #[must_use]
    pub fn snapshot(&self, at: Instant) -> Snapshot {
        let counter = |cell: &CounterCell| Value::Counter(cell.get());
        let gauge = |cell: &GaugeCell| Value::Gauge(cell.get());
        let histogram = |cell: &HistogramCell| Value::Histogram(cell.snapshot());
        let m = &*self.0;
        Snapshot {
            at,
            families: vec![
                m.registry_operations.snapshot(counter),
                m.session_creation.snapshot(histogram),
                m.transport_connections.snapshot(gauge),
                m.tool_calls.snapshot(histogram),
                // Errors before operations: a rate read in between can then only be too low, never above 1.
                m.component_errors.snapshot(counter),
                m.component_operations.snapshot(counter),
                m.active_sessions.snapshot(gauge),
                m.queue_depth.snapshot(gauge),
                m.health_state.snapshot(gauge),
                m.dropped.snapshot(counter),
                m.build_info.snapshot(gauge),
            ],
        }
    }

    /// A few sums, read without a snapshot: cheap enough for every second.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let m = &*self.0;
        let gauges = |family: &Family<GaugeCell, 2>| -> u64 {
            saturating(family.series().iter().map(|series| u64::try_from(series.cell.get()).unwrap_or(0)))
        };
        let mut components: BTreeMap<Box<str>, ComponentTotals> = BTreeMap::new();
        let mut add = |labels: &Labels, count: u64, to: fn(&mut ComponentTotals) -> &mut u64| {
            if let (Some(component), Some("false")) = (labels.get("component"), labels.get("injected")) {
                let total = to(components.entry(component.into()).or_default());
                *total = total.saturating_add(count);
            }
        };
        // Errors before operations, as in a snapshot.
        m.component_errors.series().iter().for_each(|s| add(&s.labels, s.cell.get(), |totals| &mut totals.errors));
        m.component_operations
            .series()
            .iter()
            .for_each(|s| add(&s.labels, s.cell.get(), |totals| &mut totals.operations));
        Totals {
            registry_operations: saturating(m.registry_operations.series().iter().map(|series| series.cell.get())),
            active_sessions: gauges(&m.active_sessions),
            transport_connections: gauges(&m.transport_connections),
            components,
        }
    }

    /// Closes the window that is open: from the last call, or the start, to `at`. The owner calls it every aggregation
    /// interval (10 s by default). A record made meanwhile is in this window or in the next, never in both or neither.
    pub fn close_window(&self, at: Instant) -> Arc<Window> {
        // Held from before the snapshot: two callers at once must not close overlapping windows.
        let mut windows = self.windows();
        let snapshot = self.snapshot(at);
        let extremes = self.extremes();
        windows.close(&snapshot, &extremes)
    }

    /// Lowest and highest values of the open window, which this ends.
    fn extremes(&self) -> Extremes {
        fn histograms<const N: usize>(family: &Family<HistogramCell, N>, into: &mut Extremes) {
            for series in family.series() {
                if let Some((min, max)) = series.cell.take_window() {
                    into.insert((family.desc.prometheus, series.labels.clone()), (min as f64 / 1e6, max as f64 / 1e6));
                }
            }
        }
        fn gauges<const N: usize>(family: &Family<GaugeCell, N>, into: &mut Extremes) {
            for series in family.series() {
                let (min, max) = series.cell.take_window();
                into.insert((family.desc.prometheus, series.labels.clone()), (min as f64, max as f64));
            }
        }
        let mut extremes = Extremes::new();
        histograms(&self.0.session_creation, &mut extremes);
        histograms(&self.0.tool_calls, &mut extremes);
        gauges(&self.0.transport_connections, &mut extremes);
        gauges(&self.0.active_sessions, &mut extremes);
        gauges(&self.0.queue_depth, &mut extremes);
        extremes
    }

    /// The closed windows that are kept, oldest first.
    #[must_use]
    pub fn closed_windows(&self) -> Vec<Arc<Window>> {
        self.windows().closed()
    }

    /// The newest raw records of the critical metrics, newest first; at most 1000.
    #[must_use]
    pub fn critical_metrics(&self) -> Vec<RawRecord> {
        self.0.raw.newest_first()
    }

    pub(crate) fn raw_len(&self) -> usize {
        self.0.raw.len()
    }

    pub(crate) fn windows(&self) -> MutexGuard<'_, Windows> {
        self.0.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn anchor(&self) -> ClockAnchor {
        self.0.anchor
    }

    /// Forgets raw records, windows and the summary's counters. The cumulative values stay: a scraper needs them to grow.
    pub fn reset(&self, at: Instant) {
        let mut windows = self.windows();
        windows.reset(&self.snapshot(at));
        self.0.raw.clear();
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    pub(crate) fn critical<C: Default, const N: usize>(&self, family: &Family<C, N>, values: [&str; N]) -> Target<C> {
        let raw = family.desc.critical.map(|name| (Arc::clone(&self.0.raw), name));
        Target { raw, ..self.quiet(family, values) }
    }

    pub(crate) fn quiet<C: Default, const N: usize>(&self, family: &Family<C, N>, values: [&str; N]) -> Target<C> {
        let Found { series, replaced } = family.with(values);
        if replaced {
            self.0.dropped.with([LABEL_VALUE]).series.cell.add(1);
        }
        Target { series, raw: None }
    }

    /// The critical families, for the views.
    pub(crate) const CRITICAL: [&'static Desc; 7] = [
        &desc::REGISTRY_OPERATIONS,
        &desc::SESSION_CREATION,
        &desc::TRANSPORT_CONNECTIONS,
        &desc::TOOL_CALLS,
        &desc::COMPONENT_ERRORS,
        &desc::ACTIVE_SESSIONS,
        &desc::QUEUE_DEPTH,
    ];
}

/// A sum that stops at the highest number. What is recorded by name can be anything.
pub(crate) fn saturating(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

const fn flag(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}
