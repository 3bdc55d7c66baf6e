//! One instance of all metrics.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mcpscope_core::{ClockAnchor, Component, Direction, Era, Labels, Method, Protocol, Transport};

use crate::family::{Family, Found, Limits, MAX_OVERFLOW};
use crate::general::General;
use crate::handle::{Counter, Gauge, Handle, Histogram, Sites};
use crate::members::Shown;
use crate::places::Places;
use crate::schema::{Desc, KNOWN_ERRORS, Kind, desc};
use crate::series::Series;
use crate::snapshot::Snapshot;
use crate::storage::Store;
use crate::storage::buckets::Place;
use crate::storage::slab::Slab;
use crate::window::{Extremes, Window, Windows};

/// How metrics are kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long closed windows are kept. Default: [`Config::DEFAULT_RETENTION`].
    pub retention: Duration,
    /// Distinct values per label and metric, further ones become `other`. Default: [`Config::DEFAULT_MAX_LABEL_VALUES`].
    pub max_label_values: usize,
    /// Series per metric; beyond, labels with many values become `other`. Default: [`Config::DEFAULT_MAX_SERIES`].
    pub max_series: usize,
    /// How long a series is shown in which nothing is recorded. Default: [`Config::DEFAULT_IDLE_TIMEOUT`].
    pub idle_timeout: Duration,
    /// The share, 0 to 1, of the records by names that are not critical which are passed on to `general`. Default:
    /// [`Config::DEFAULT_SAMPLING_RATE`].
    pub sampling_rate: f64,
    /// Who keeps what is recorded by other names. Default: nobody.
    pub general: Option<Arc<dyn General>>,
}

impl Config {
    /// 60 minutes.
    pub const DEFAULT_RETENTION: Duration = Duration::from_secs(60 * 60);
    /// 256.
    pub const DEFAULT_MAX_LABEL_VALUES: usize = 256;
    /// 10,000.
    pub const DEFAULT_MAX_SERIES: usize = 10_000;
    /// More are not made, whatever is asked for: 14,000.
    pub const MAX_SERIES: usize = 14_000;
    /// One hour.
    pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(60 * 60);
    /// One in ten.
    pub const DEFAULT_SAMPLING_RATE: f64 = 0.1;
}

impl Default for Config {
    fn default() -> Self {
        Self {
            retention: Self::DEFAULT_RETENTION,
            max_label_values: Self::DEFAULT_MAX_LABEL_VALUES,
            max_series: Self::DEFAULT_MAX_SERIES,
            idle_timeout: Self::DEFAULT_IDLE_TIMEOUT,
            sampling_rate: Self::DEFAULT_SAMPLING_RATE,
            general: None,
        }
    }
}

/// All metrics of one instance. Cheap to clone; every clone is the same instance.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) store: Arc<Store>,
    /// In the order in which they are shown. The first ones are [`BUILT_IN`].
    families: ArcSwap<Vec<Arc<Family>>>,
    /// Held while a family is added.
    adding: Mutex<()>,
    places: Arc<Places>,
    limits: Limits,
    idle_timeout: Duration,
    /// Of the numbers below 2^64: a random one that is lower is a sample.
    pub(crate) sampled_below: u64,
    pub(crate) sampling_rate: f64,
    pub(crate) general: Option<Arc<dyn General>>,
    pub(crate) sites: Sites,
    windows: Mutex<Windows>,
    /// When idle series were last looked for.
    retired: Mutex<Instant>,
    /// The servers whose gauges somebody counts up and down.
    announced: Mutex<BTreeSet<Box<str>>>,
    /// Series that are shown from the start, and stay.
    kept: Mutex<Vec<Arc<Series>>>,
    /// What label values that become `other`, and those that are too long, are counted as.
    replaced: OnceLock<Counter>,
    cut: OnceLock<Counter>,
}

/// The families that are always there. Errors come before operations: a rate that is read in between can then only be too
/// low, never above 1.
static BUILT_IN: [&Desc; 29] = [
    &desc::REGISTRY_OPERATIONS,
    &desc::SESSION_CREATION,
    &desc::TRANSPORT_CONNECTIONS,
    &desc::TOOL_CALLS,
    &desc::COMPONENT_ERRORS,
    &desc::COMPONENT_OPERATIONS,
    &desc::ACTIVE_SESSIONS,
    &desc::QUEUE_DEPTH,
    &desc::SERVER_OPERATIONS,
    &desc::CLIENT_OPERATIONS,
    &desc::SERVER_SESSIONS,
    &desc::PROXY_OVERHEAD,
    &desc::RESTARTS,
    &desc::HEALTH_STATE,
    &desc::CHAOS_ACTIVE,
    &desc::CHAOS_STARTED,
    &desc::CHAOS_COMPLETED,
    &desc::CHAOS_FAILED,
    &desc::CHAOS_INJECTED,
    &desc::DROPPED,
    &desc::SAMPLING_RATE,
    &desc::BUILD_INFO,
    &desc::PROCESS_CPU,
    &desc::PROCESS_RESIDENT,
    &desc::PROCESS_VIRTUAL,
    &desc::PROCESS_START,
    &desc::PROCESS_OPEN_FDS,
    &desc::PROCESS_MAX_FDS,
    &desc::PROCESS_THREADS,
];

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
/// What a label value is counted as that is too long.
const CUT_LABEL_VALUE: &str = "cut_label_value";
/// Families there can be besides the built-in ones.
const MAX_DECLARED: usize = 256;
/// There is a place for every series of every family.
const _: () = assert!(
    cfg!(mcpscope_loom)
        || (BUILT_IN.len() + MAX_DECLARED) * (Config::MAX_SERIES + MAX_OVERFLOW + 1) < Place::CAPACITY as usize
);

impl Metrics {
    /// Creates an instance; `anchor` is its start. Critical metrics besides the seven are [declared](Metrics::declare) next.
    #[must_use]
    pub fn new(config: &Config, anchor: ClockAnchor) -> Self {
        let store = Store::new(anchor);
        let limits =
            Limits { label_values: config.max_label_values, series: config.max_series.min(Config::MAX_SERIES) };
        let places = Arc::<Places>::default();
        let families = BUILT_IN.iter().map(|desc| Family::new((*desc).clone(), limits, Arc::clone(&places)));
        // What is no number samples nothing: it must not be shown.
        let sampling_rate = config.sampling_rate.clamp(0.0, 1.0).max(0.0);
        let nowhere = |kind| {
            let desc = Desc::nowhere(kind);
            let series = Family::new(desc, limits, Arc::clone(&places)).with(&[]).series;
            Handle { store: Arc::clone(&store), series }
        };
        let sites = Sites::new(nowhere);
        let metrics = Self(Arc::new(Inner {
            families: ArcSwap::from_pointee(families.map(Arc::new).collect()),
            adding: Mutex::default(),
            limits,
            idle_timeout: config.idle_timeout,
            // As many as all of them is one too few, which is as good as none.
            sampled_below: (sampling_rate * u64::MAX as f64) as u64,
            sampling_rate,
            general: config.general.clone(),
            sites,
            windows: Mutex::new(Windows::new(anchor, config.retention)),
            retired: Mutex::new(anchor.mono),
            announced: Mutex::default(),
            kept: Mutex::default(),
            replaced: OnceLock::new(),
            cut: OnceLock::new(),
            places,
            store,
        }));
        let _ = metrics.0.replaced.set(metrics.dropped(LABEL_VALUE));
        let _ = metrics.0.cut.set(metrics.dropped(CUT_LABEL_VALUE));
        for component in Component::ALL {
            let _ = metrics.component_operations(component, false);
        }
        for (component, errors) in KNOWN_ERRORS {
            errors.iter().for_each(|error| drop(metrics.component_errors(component, error, false)));
        }
        metrics.built_in_gauge(&desc::BUILD_INFO, [("version", env!("CARGO_PKG_VERSION"))]).set(1.0, anchor.mono);
        if config.general.is_some() {
            metrics.built_in_gauge(&desc::SAMPLING_RATE, []).set(sampling_rate, anchor.mono);
        }
        metrics.each_series(|series| metrics.keep(series));
        metrics
    }

    /// A series that somebody holds is never retired.
    fn keep(&self, series: &Arc<Series>) {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(series));
    }

    /// Makes the families whose labels are known beforehand appear as zero for this server. Its gauges belong to whoever
    /// calls this: they cannot be set by name.
    pub fn announce_server(&self, server: &str, transport: Transport) {
        if !self.announced().insert(server.into()) {
            return;
        }
        // Resolving a handle is what makes its series exist.
        let counted = |gauge: &Gauge| {
            gauge.0.series.counted.store(true, Relaxed);
            self.keep(&gauge.0.series);
        };
        // Also those that others made by name before.
        self.each_series(|series| {
            if series.desc.kind == Kind::Gauge
                && series.desc.labels.is_some()
                && series.labels.get("server") == Some(server)
            {
                series.counted.store(true, Relaxed);
            }
        });
        counted(&self.transport_connections(server, transport));
        for operation in Method::REGISTRY_OPERATIONS {
            self.keep(&self.registry_operations(server, operation).0.series);
        }
        self.keep(&self.restarts(server).0.series);
        Direction::ALL.iter().for_each(|direction| counted(&self.queue_depth(server, *direction)));
        for protocol in Protocol::KNOWN {
            counted(&self.active_sessions(server, protocol));
            self.keep(&self.session_creation(server, protocol).0.series);
            if protocol.era() == Era::Legacy {
                self.keep(&self.server_sessions(server, protocol, transport, "").0.series);
            }
        }
    }

    /// Whether [`Metrics::announce_server`] was called for this server.
    pub(crate) fn is_announced(&self, server: &str) -> bool {
        self.announced().contains(server)
    }

    fn announced(&self) -> MutexGuard<'_, BTreeSet<Box<str>>> {
        self.0.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn built_in_counter<const N: usize>(&self, desc: &Desc, labels: [(&str, &str); N]) -> Counter {
        Counter(self.built_in(desc, &labels))
    }

    pub(crate) fn built_in_gauge<const N: usize>(&self, desc: &Desc, labels: [(&str, &str); N]) -> Gauge {
        Gauge(self.built_in(desc, &labels))
    }

    pub(crate) fn built_in_histogram<const N: usize>(&self, desc: &Desc, labels: [(&str, &str); N]) -> Histogram {
        Histogram(self.built_in(desc, &labels))
    }

    fn built_in(&self, desc: &Desc, labels: &[(&str, &str)]) -> Handle {
        let families = self.0.families.load();
        // Descriptions of ours are statics: where one is tells it from the others.
        let at = BUILT_IN.iter().position(|known| std::ptr::eq(*known, desc));
        let series = match at.and_then(|at| families.get(at)) {
            Some(family) => self.resolve(family, labels).series,
            // Cannot be: every description of ours is among the built-in ones.
            None => Arc::clone(&self.0.sites.nowhere(desc.kind).series),
        };
        Handle { store: Arc::clone(&self.0.store), series }
    }

    /// A series of a family; counts it if it is not quite the one that was asked for.
    pub(crate) fn resolve(&self, family: &Family, labels: &[(&str, &str)]) -> Found {
        let found = family.with(labels);
        let count = |counter: &OnceLock<Counter>| {
            if let Some(counter) = counter.get() {
                counter.increment(self.0.store.anchor().mono);
            }
        };
        if found.replaced {
            count(&self.0.replaced);
        }
        if found.cut {
            count(&self.0.cut);
        }
        found
    }

    /// The first family of which this holds.
    pub(crate) fn family(&self, is: impl Fn(&Desc) -> bool) -> Option<Arc<Family>> {
        self.0.families.load().iter().find(|family| is(&family.desc)).cloned()
    }

    /// How many families there are: never fewer than before.
    pub(crate) fn families(&self) -> usize {
        self.0.families.load().len()
    }

    /// Adds a family unless there is one that says no, or too many.
    pub(crate) fn add_family<E>(
        &self,
        desc: Desc,
        may_be_beside: impl Fn(&Desc) -> Result<(), E>,
    ) -> Result<Option<Arc<Family>>, E> {
        let _adding = self.0.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let families = self.0.families.load();
        if let Some(family) = families.iter().find(|family| *family.desc == desc && family.desc.kind == desc.kind) {
            return Ok(Some(Arc::clone(family)));
        }
        families.iter().try_for_each(|family| may_be_beside(&family.desc))?;
        if families.len() >= BUILT_IN.len() + MAX_DECLARED {
            return Ok(None);
        }
        let family = Arc::new(Family::new(desc, self.0.limits, Arc::clone(&self.0.places)));
        let mut more = families.to_vec();
        more.push(Arc::clone(&family));
        self.0.families.store(Arc::new(more));
        Ok(Some(family))
    }

    /// All families now, which is `at`. Changes nothing.
    #[must_use]
    pub fn snapshot(&self, at: Instant) -> Snapshot {
        let mut families = Vec::new();
        self.each_family(at, |family, slabs| families.push(family.snapshot(slabs, at)));
        Snapshot { at, families }
    }

    /// Calls `with` with each family as it is now, which is `at`, and where its numbers are.
    pub(crate) fn each_family(&self, at: Instant, mut with: impl FnMut(&Family, &[Arc<Slab>])) {
        self.count_dropped(at);
        let slabs = self.0.store.slabs.all();
        self.0.families.load().iter().for_each(|family| with(family, &slabs));
    }

    /// A few sums, read without a snapshot: cheap enough for every second.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let slabs = self.0.store.slabs.all();
        let read = |desc: &Desc, with: &mut dyn FnMut(&Labels, u64)| {
            if let Some(family) = self.family(|found| *found == *desc) {
                let at = self.0.store.anchor().mono;
                let shown = family.shown(&slabs, at);
                shown.iter().for_each(|shown| with(&shown.series.labels, shown.series.value(&slabs).whole()));
            }
        };
        let sum = |desc: &Desc| {
            let mut sum = 0_u64;
            read(desc, &mut |_, value| sum = sum.saturating_add(value));
            sum
        };
        let mut components: BTreeMap<Box<str>, ComponentTotals> = BTreeMap::new();
        let mut add = |desc: &Desc, to: fn(&mut ComponentTotals) -> &mut u64| {
            read(desc, &mut |labels, value| {
                if let (Some(component), Some("false")) = (labels.get("component"), labels.get("injected")) {
                    let total = to(components.entry(component.into()).or_default());
                    *total = total.saturating_add(value);
                }
            });
        };
        // Errors before operations, as in a snapshot.
        add(&desc::COMPONENT_ERRORS, |totals| &mut totals.errors);
        add(&desc::COMPONENT_OPERATIONS, |totals| &mut totals.operations);
        Totals {
            registry_operations: sum(&desc::REGISTRY_OPERATIONS),
            active_sessions: sum(&desc::ACTIVE_SESSIONS),
            transport_connections: sum(&desc::TRANSPORT_CONNECTIONS),
            components,
        }
    }

    /// Closes the window that is open: from the last call, or the start, to `at`. The owner calls it every aggregation
    /// interval (10 s by default).
    ///
    /// A record made meanwhile is in this window or in the next, never in both or neither: windows are differences of
    /// snapshots, so that their counts and sums add up to the total exactly.
    pub fn close_window(&self, at: Instant) -> Arc<Window> {
        // Held from before the snapshot: two callers at once must not close overlapping windows.
        let mut windows = self.windows();
        let snapshot = self.snapshot(at);
        let extremes = self.extremes(at);
        let window = windows.close(snapshot, &extremes);
        drop(windows);
        self.retire(at);
        window
    }

    /// Lowest and highest values of the open window, which this ends.
    fn extremes(&self, at: Instant) -> Extremes {
        let epoch = self.0.store.next_epoch();
        let slabs = self.0.store.slabs.all();
        let mut extremes = Extremes::new();
        for family in self.0.families.load().iter().filter(|family| family.desc.kind != Kind::Counter) {
            family.shown(&slabs, at).iter().for_each(|Shown { series, .. }| {
                if let Some(found) = series.extremes(&slabs, epoch) {
                    extremes.insert(series.number, found);
                }
            });
        }
        extremes
    }

    /// Looks for idle series, a few times in the time after which they are.
    fn retire(&self, at: Instant) {
        let mut retired = self.0.retired.lock().unwrap_or_else(PoisonError::into_inner);
        if at.saturating_duration_since(*retired) < self.0.idle_timeout / 16 {
            return;
        }
        *retired = at;
        let slabs = &self.0.store.slabs;
        self.0.families.load().iter().for_each(|family| family.retire(slabs, at, self.0.idle_timeout));
        // Held from before the list is made: what is born meanwhile must not be forgotten.
        let mut windows = self.windows();
        let mut kept = HashSet::new();
        self.each_series(|series| {
            kept.insert(series.number);
        });
        windows.keep(|number| kept.contains(&number));
    }

    /// The closed windows that are kept, oldest first.
    #[must_use]
    pub fn closed_windows(&self) -> Vec<Arc<Window>> {
        self.windows().closed()
    }

    pub(crate) fn windows(&self) -> MutexGuard<'_, Windows> {
        self.0.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn anchor(&self) -> ClockAnchor {
        self.0.store.anchor()
    }

    /// Forgets raw records, windows and the summary's counters. The cumulative values stay: a scraper needs them to grow.
    pub fn reset(&self, at: Instant) {
        let mut windows = self.windows();
        windows.reset(&self.snapshot(at));
        self.0.store.slabs.all().iter().filter_map(|slab| slab.raw()).for_each(|ring| ring.clear());
        if let Some(general) = &self.0.general {
            general.reset();
        }
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    /// The series by number, of which there may still be raw records.
    pub(crate) fn each_series(&self, mut with: impl FnMut(&Arc<Series>)) {
        self.0.families.load().iter().for_each(|family| family.all(&mut with));
    }

    /// The families of critical metrics, for the views: the seven, then the declared ones.
    pub(crate) fn critical_families(&self) -> Vec<Arc<Desc>> {
        let families = self.0.families.load();
        // Errors stand for operations and errors.
        let is_shown = |desc: &Desc| desc.critical.is_some() && *desc != desc::COMPONENT_OPERATIONS;
        families.iter().map(|family| &family.desc).filter(|desc| is_shown(desc)).cloned().collect()
    }
}

/// A sum that stops at the highest number. What is recorded by name can be anything.
pub(crate) fn saturating(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}
