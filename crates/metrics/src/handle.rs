//! Handles: resolved once, written through as often as one likes.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::LocalKey;
use std::time::{Duration, Instant};

use mcpscope_core::TraceId;

use crate::error::RecordError;
use crate::family::Pairs;
use crate::metrics::Metrics;
use crate::schema::Kind;
use crate::series::{Cell, GaugeCell, Series};
use crate::storage::Store;
use crate::storage::buckets::{Buckets, Place};
use crate::storage::local::{CachedCell, slab};
use crate::storage::ring::Raw;
use crate::storage::slab::Slab;

/// Durations as the storage has them; longer than 584 years is as long as that.
#[inline]
fn nanoseconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(duration.subsec_nanos()))
}

impl Series {
    /// Counts events in the slab of a thread.
    #[inline(always)]
    pub(crate) fn count(&self, store: &Store, slab: &Slab, n: u64, at: Instant) {
        if let Cell::Counter(place) = self.cell {
            slab.count(place, n);
            if self.logged {
                self.log(store, slab, n, at);
            }
        }
    }

    /// Records a duration in the slab of a thread.
    #[inline(always)]
    pub(crate) fn observe(&self, store: &Store, slab: &Slab, value_ns: u64, at: Instant) {
        if let Cell::Histogram(place) = self.cell
            && let Some(cell) = slab.observe(place, self.desc.bounds, value_ns, store.epoch())
            && self.logged
        {
            cell.was_last(value_ns, self.log(store, slab, value_ns, at));
        }
    }

    /// Takes note of what a gauge has become.
    pub(crate) fn became(&self, store: &Store, slab: &Slab, level: f64, at: Instant) {
        if self.logged {
            self.log(store, slab, level.to_bits(), at);
        }
    }

    /// Keeps the record itself; returns when it was, in nanoseconds since the start of the instance.
    #[inline(always)]
    fn log(&self, store: &Store, slab: &Slab, value: u64, at: Instant) -> u64 {
        let at_ns = store.since_start_ns(at);
        slab.log(Raw { series: self.number, value, at_ns });
        at_ns
    }
}

/// A series of one instance.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub(crate) store: Arc<Store>,
    pub(crate) series: Arc<Series>,
}

impl Handle {
    fn exemplify(&self, value: u64, trace_id: TraceId, at: Instant) {
        let wall = || self.store.anchor().wall_at(at);
        self.series.exemplify(value, trace_id, self.store.since_start_ns(at), wall);
    }
}

/// Writes one counter series. Cheap to clone.
///
/// Recording waits for nobody, and loses nothing. A thread allocates where it first writes to some series.
#[derive(Clone, Debug)]
pub struct Counter(pub(crate) Handle);

impl Counter {
    /// Counts one event that happened at `at`.
    #[inline]
    pub fn increment(&self, at: Instant) {
        self.add(1, at);
    }

    /// Counts `n` events that happened at `at`. The total stops at the highest number there is.
    #[inline]
    pub fn add(&self, n: u64, at: Instant) {
        let Handle { store, series } = &self.0;
        match slab(store) {
            Some(slab) => series.count(store, slab, n, at),
            None => store.slabs.lend(move |slab| series.count(store, slab, n, at)),
        }
    }

    /// All that it counted so far, on every thread.
    pub(crate) fn total(&self) -> u64 {
        self.0.series.value(&self.0.store.slabs.all()).whole()
    }

    /// Counts one event that happened at `at`, of which `trace_id` tells more: an exemplar, if there is no recent one.
    pub fn increment_traced(&self, trace_id: TraceId, at: Instant) {
        self.increment(at);
        self.0.exemplify(1, trace_id, at);
    }
}

/// Writes one gauge series. Cheap to clone; recording waits for nobody, and the value is never lost.
#[derive(Clone, Debug)]
pub struct Gauge(pub(crate) Handle);

impl Gauge {
    /// Changes the value by `n` at the time `at`. Nothing changes if `n` is no number.
    pub fn add(&self, n: f64, at: Instant) {
        if n.is_finite() {
            self.change(|gauge| gauge.add(n), at);
        }
    }

    /// Makes the value `n` at the time `at`. Nothing changes if `n` is no number.
    pub fn set(&self, n: f64, at: Instant) {
        if n.is_finite() {
            self.change(|gauge| gauge.set(n), at);
        }
    }

    fn change(&self, change: impl FnOnce(&GaugeCell) -> f64, at: Instant) {
        let Handle { store, series } = &self.0;
        if let Cell::Gauge(cell) = &series.cell {
            let level = change(cell);
            // Whatever becomes of the raw record, the level is right.
            if series.logged {
                store.write(|slab| series.became(store, slab, level, at));
            }
        }
    }
}

/// Writes one histogram series. Cheap to clone.
///
/// Recording waits for nobody, as that of a [`Counter`]. A thread allocates also where a duration of a series is the first
/// of its order of magnitude.
#[derive(Clone, Debug)]
pub struct Histogram(pub(crate) Handle);

impl Histogram {
    /// What the series has for a label: what was asked for, unless there was no place for it.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.0.series.labels.get(name)
    }

    /// Records a duration that ended at `at`.
    #[inline]
    pub fn record(&self, duration: Duration, at: Instant) {
        let Handle { store, series } = &self.0;
        let value_ns = nanoseconds(duration);
        match slab(store) {
            Some(slab) => series.observe(store, slab, value_ns, at),
            None => store.slabs.lend(move |slab| series.observe(store, slab, value_ns, at)),
        }
    }

    /// Records a duration that ended at `at`, of which `trace_id` tells more: an exemplar, if there is no recent one of
    /// about this duration.
    pub fn record_traced(&self, duration: Duration, trace_id: TraceId, at: Instant) {
        self.record(duration, at);
        self.0.exemplify(nanoseconds(duration), trace_id, at);
    }
}

/// The counter of one place in a program: what [`crate::counter!`] expands to.
#[derive(Clone, Copy, Debug)]
pub struct SiteCounter<'a> {
    metrics: &'a Metrics,
    site: &'static CallSite,
    /// The cell of the calling thread.
    cached: &'static LocalKey<CachedCell>,
    name: &'static str,
    labels: &'static Pairs<'static>,
}

impl<'a> SiteCounter<'a> {
    /// The counter of the place that has this `site`, and in each thread this cell.
    #[doc(hidden)]
    #[inline(always)]
    #[must_use]
    pub const fn new(
        metrics: &'a Metrics,
        site: &'static CallSite,
        cached: &'static LocalKey<CachedCell>,
        name: &'static str,
        labels: &'static Pairs<'static>,
    ) -> Self {
        Self { metrics, site, cached, name, labels }
    }

    /// Counts one event that happened at `at`.
    #[inline(always)]
    pub fn increment(self, at: Instant) {
        self.add(1, at);
    }

    /// Counts `n` events that happened at `at`. The total stops at the highest number there is.
    #[inline(always)]
    pub fn add(self, n: u64, at: Instant) {
        let store = &self.metrics.inner().store;
        if self.cached.try_with(|cached| cached.count(store, n)).ok().flatten().is_none() {
            self.find_and_add(n, at);
        }
    }

    /// Counts one event that happened at `at`, of which `trace_id` tells more: an exemplar, if there is no recent one.
    pub fn increment_traced(self, trace_id: TraceId, at: Instant) {
        self.counter().increment_traced(trace_id, at);
    }

    /// Its handle.
    #[must_use]
    pub fn counter(self) -> &'a Counter {
        self.site.counter(self.metrics, self.name, self.labels)
    }

    #[cold]
    #[inline(never)]
    fn find_and_add(self, n: u64, at: Instant) {
        let counter = self.counter();
        counter.add(n, at);
        let Handle { store, series } = &counter.0;
        // One whose records are kept needs more than a cell.
        if let (Cell::Counter(place), false) = (&series.cell, series.logged) {
            let _ = self.cached.try_with(|cached| cached.set(store, *place));
        }
    }
}

/// One place in a program that records, with literal name and labels. What [`crate::counter!`] and its like expand to.
#[derive(Debug)]
pub struct CallSite {
    /// Numbers the places of the program, from 1; 0 until it is first used.
    number: AtomicU32,
}

/// Of the program's call sites. Which series they mean is each instance's own business.
static CALL_SITES: AtomicU32 = AtomicU32::new(1);

impl CallSite {
    /// A place that was not used yet.
    #[expect(clippy::new_without_default, reason = "only ever a static")]
    #[must_use]
    pub const fn new() -> Self {
        Self { number: AtomicU32::new(0) }
    }

    /// The counter of this place.
    #[inline]
    pub fn counter<'a>(&self, metrics: &'a Metrics, name: &str, labels: &Pairs<'_>) -> &'a Counter {
        let sites = &metrics.inner().sites;
        sites.counters.at(self.place(), &sites.no_counter, Metrics::counter, metrics, name, labels)
    }

    /// The gauge of this place.
    #[inline]
    pub fn gauge<'a>(&self, metrics: &'a Metrics, name: &str, labels: &Pairs<'_>) -> &'a Gauge {
        let sites = &metrics.inner().sites;
        sites.gauges.at(self.place(), &sites.no_gauge, Metrics::gauge, metrics, name, labels)
    }

    /// The histogram of this place.
    #[inline]
    pub fn histogram<'a>(&self, metrics: &'a Metrics, name: &str, labels: &Pairs<'_>) -> &'a Histogram {
        let sites = &metrics.inner().sites;
        sites.histograms.at(self.place(), &sites.no_histogram, Metrics::histogram, metrics, name, labels)
    }

    #[inline]
    fn place(&self) -> Place {
        match self.number.load(Relaxed) {
            0 => self.first_use(),
            number => Place::of(number),
        }
    }

    #[cold]
    fn first_use(&self) -> Place {
        let new = CALL_SITES.fetch_add(1, Relaxed);
        // Another thread may have been first.
        let number = self.number.compare_exchange(0, new, Relaxed, Relaxed).map_or_else(|theirs| theirs, |_| new);
        Place::of(number)
    }
}

/// What the program's call sites mean in one instance.
#[derive(Debug)]
pub(crate) struct Sites {
    counters: Resolved<Counter>,
    gauges: Resolved<Gauge>,
    histograms: Resolved<Histogram>,
    /// Handles that lead nowhere, for names that are refused.
    no_counter: Counter,
    no_gauge: Gauge,
    no_histogram: Histogram,
}

impl Sites {
    pub(crate) fn new(nowhere: impl Fn(Kind) -> Handle) -> Self {
        Self {
            counters: Resolved(Buckets::default()),
            gauges: Resolved(Buckets::default()),
            histograms: Resolved(Buckets::default()),
            no_counter: Counter(nowhere(Kind::Counter)),
            no_gauge: Gauge(nowhere(Kind::Gauge)),
            no_histogram: Histogram(nowhere(Kind::Histogram)),
        }
    }
}

impl Sites {
    /// A handle that leads nowhere.
    pub(crate) const fn nowhere(&self, kind: Kind) -> &Handle {
        match kind {
            Kind::Counter => &self.no_counter.0,
            Kind::Gauge => &self.no_gauge.0,
            Kind::Histogram => &self.no_histogram.0,
        }
    }
}

#[derive(Debug)]
struct Resolved<H>(Buckets<OnceLock<H>>);

/// How a handle is found by name and labels.
type Resolve<H> = fn(&Metrics, &str, &Pairs<'_>) -> Result<H, RecordError>;

impl<H: Clone> Resolved<H> {
    /// The arguments of `resolve` one by one: a closure would have to be made for nothing each time.
    #[inline]
    fn at<'a>(
        &'a self,
        place: Place,
        nothing: &'a H,
        resolve: Resolve<H>,
        metrics: &Metrics,
        name: &str,
        labels: &Pairs<'_>,
    ) -> &'a H {
        match self.0.get(place).and_then(OnceLock::get) {
            Some(handle) => handle,
            None => self.resolve(place, nothing, resolve, metrics, name, labels),
        }
    }

    #[cold]
    #[inline(never)]
    fn resolve<'a>(
        &'a self,
        place: Place,
        nothing: &'a H,
        resolve: Resolve<H>,
        metrics: &Metrics,
        name: &str,
        labels: &Pairs<'_>,
    ) -> &'a H {
        let handle = || resolve(metrics, name, labels).unwrap_or_else(|_| nothing.clone());
        self.0.get_or_grow(place).map_or(nothing, |site| site.get_or_init(handle))
    }
}

/// The counter with this name and these labels, all literals, of an instance: found once, then as cheap as a handle.
///
/// A name that is new makes a metric. One that is refused counts nothing; [`Metrics::counter`](crate::Metrics::counter)
/// says which.
///
/// ```
/// # use std::time::{Instant, SystemTime};
/// # let now = Instant::now();
/// # let anchor = mcpscope_core::ClockAnchor { mono: now, wall: SystemTime::now() };
/// # let metrics = mcpscope_metrics::Metrics::new(&mcpscope_metrics::Config::default(), anchor);
/// mcpscope_metrics::counter!(metrics, "jobs_total", "queue" => "mail").increment(now);
/// assert!(metrics.snapshot(now).to_prometheus().contains("jobs_total{queue=\"mail\"} 1"));
/// ```
#[macro_export]
macro_rules! counter {
    ($metrics:expr, $name:literal $(, $label:literal => $value:literal)* $(,)?) => {
        match &$metrics {
            metrics => {
                static __MCPSCOPE_SITE: $crate::CallSite = $crate::CallSite::new();
                ::std::thread_local!(static __MCPSCOPE_CELL: $crate::CachedCell = const { $crate::CachedCell::new() });
                let labels = &[$(($label, $value)),*];
                $crate::SiteCounter::new(metrics, &__MCPSCOPE_SITE, &__MCPSCOPE_CELL, $name, labels)
            }
        }
    };
}

/// The gauge with this name and these labels; see [`counter!`].
#[macro_export]
macro_rules! gauge {
    ($metrics:expr, $name:literal $(, $label:literal => $value:literal)* $(,)?) => {
        match &$metrics {
            metrics => {
                static __MCPSCOPE_SITE: $crate::CallSite = $crate::CallSite::new();
                __MCPSCOPE_SITE.gauge(metrics, $name, &[$(($label, $value)),*])
            }
        }
    };
}

/// The histogram of durations with this name and these labels; see [`counter!`].
#[macro_export]
macro_rules! histogram {
    ($metrics:expr, $name:literal $(, $label:literal => $value:literal)* $(,)?) => {
        match &$metrics {
            metrics => {
                static __MCPSCOPE_SITE: $crate::CallSite = $crate::CallSite::new();
                __MCPSCOPE_SITE.histogram(metrics, $name, &[$(($label, $value)),*])
            }
        }
    };
}
