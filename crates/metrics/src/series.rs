//! One time series: what it is called, where its numbers are, and examples of what is in it.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use mcpscope_core::{Labels, TraceId};

use crate::schema::{Desc, Kind};
use crate::snapshot::{Exemplar, SeriesSnapshot, Value};
use crate::storage::buckets::Place;
use crate::storage::cells::{CounterCell, HistogramCell};
use crate::storage::slab::Slab;
use crate::text::lines;

/// How long an exemplar stays before a newer one may take its place: with every record, they would cost more than the
/// records themselves.
const EXEMPLAR_AGE: Duration = Duration::from_secs(1);

/// One time series.
#[derive(Debug)]
pub(crate) struct Series {
    /// Never used again by another one of the instance.
    pub(crate) number: u64,
    pub(crate) desc: Arc<Desc>,
    pub(crate) labels: Labels,
    pub(crate) cell: Cell,
    /// Whether its records are among the raw ones.
    pub(crate) logged: bool,
    /// A gauge that is counted up and down by somebody who knows: nobody else may set it.
    pub(crate) counted: AtomicBool,
    exemplars: OnceLock<Box<[Slot]>>,
    /// How many entries of threads' tables of names hold it.
    pub(crate) remembered: AtomicUsize,
}

/// Where the numbers of a series are. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Cell {
    Counter(Place),
    Histogram(Place),
    /// What goes up and down has one value, which all threads share.
    Gauge(Arc<GaugeCell>),
}

#[derive(Debug, Default)]
struct Slot {
    /// When it was filled, in nanoseconds since the start of the instance; 0 before that.
    at_ns: AtomicU64,
    held: Mutex<Option<Exemplar>>,
}

impl Series {
    pub(crate) fn new(number: u64, desc: Arc<Desc>, labels: Labels, cell: Cell) -> Self {
        let logged = desc.logged;
        Self {
            number,
            desc,
            labels,
            cell,
            logged,
            counted: AtomicBool::new(false),
            exemplars: OnceLock::new(),
            remembered: AtomicUsize::new(0),
        }
    }

    /// The line of a counter or a gauge up to its value; the labels of a histogram, which has many lines.
    pub(crate) fn text(&self) -> Arc<str> {
        let labels = self.labels.as_text();
        if self.desc.kind == Kind::Histogram {
            return labels.into();
        }
        let mut start = String::new();
        lines::start(&mut start, &self.desc.prometheus, "", labels);
        start.into()
    }

    /// What all threads saw.
    pub(crate) fn value(&self, slabs: &[Arc<Slab>]) -> Value {
        match &self.cell {
            Cell::Counter(place) => {
                Value::Counter(CounterCell::total(slabs.iter().filter_map(|slab| slab.counter(*place))))
            }
            Cell::Histogram(place) => {
                let cells = slabs.iter().filter_map(|slab| slab.histogram(*place));
                Value::Histogram(Box::new(HistogramCell::snapshot(cells, self.desc.bounds)))
            }
            Cell::Gauge(cell) => Value::Gauge(cell.get()),
        }
    }

    /// Whether others hold it than these many, and the threads that remember it by name.
    pub(crate) fn is_held(self: &Arc<Self>, by_us: usize) -> bool {
        Arc::strong_count(self) > by_us + self.remembered.load(Relaxed)
    }

    /// Whether a thread remembers it by name, and may thus write to it at any time.
    pub(crate) fn is_remembered(&self) -> bool {
        self.remembered.load(Relaxed) > 0
    }

    pub(crate) fn snapshot(&self, value: Value) -> SeriesSnapshot {
        let Self { number, labels, .. } = self;
        SeriesSnapshot { number: *number, labels: labels.clone(), value, exemplars: self.exemplars() }
    }

    /// Lowest and highest value of a window; see [`HistogramCell::extremes`]. For a gauge, since the last call.
    pub(crate) fn extremes(&self, slabs: &[Arc<Slab>], epoch: u64) -> Option<(f64, f64)> {
        match &self.cell {
            Cell::Counter(_) => None,
            Cell::Histogram(place) => {
                let cells = slabs.iter().filter_map(|slab| slab.histogram(*place));
                let (min, max) = HistogramCell::extremes(cells, epoch)?;
                Some((min as f64 / 1e6, max as f64 / 1e6))
            }
            Cell::Gauge(cell) => Some(cell.take_window()),
        }
    }

    /// Keeps an example of a record: `value` is in nanoseconds, or 1 for an event.
    pub(crate) fn exemplify(&self, value: u64, trace_id: TraceId, at_ns: u64, wall: impl FnOnce() -> SystemTime) {
        let (bucket, slots) = match self.desc.kind {
            Kind::Histogram => (self.desc.bounds.bucket(value), self.desc.bounds_ns().len() + 1),
            Kind::Counter => (0, 1),
            Kind::Gauge => return,
        };
        let slots = self.exemplars.get_or_init(|| (0..slots).map(|_| Slot::default()).collect());
        let Some(slot) = slots.get(bucket) else { return };
        let filled = slot.at_ns.load(Relaxed);
        if filled > 0 && at_ns.saturating_sub(filled) < EXEMPLAR_AGE.as_nanos() as u64 {
            return;
        }
        // Whoever finds it taken leaves it to the other: one example is as good as another.
        if let Ok(mut held) = slot.held.try_lock() {
            *held = Some(Exemplar { trace_id, value, at: wall() });
            slot.at_ns.store(at_ns.max(1), Relaxed);
        }
    }

    /// The newest example for each exposed bucket, or of a counter's events; empty if there is none.
    pub(crate) fn exemplars(&self) -> Vec<Option<Exemplar>> {
        let slots = self.exemplars.get().into_iter().flat_map(|slots| slots.iter());
        slots.map(|slot| *slot.held.lock().unwrap_or_else(PoisonError::into_inner)).collect()
    }
}

/// Changes with every record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activity {
    Count(u64),
    Level(f64),
}

impl Activity {
    pub(crate) fn of(value: &Value) -> Self {
        match value {
            Value::Counter(count) => Self::Count(*count),
            Value::Histogram(values) => Self::Count(values.count),
            Value::Gauge(level) => Self::Level(*level),
        }
    }

    /// A gauge that is not at zero says something, however long it stays.
    pub(crate) fn may_retire(self) -> bool {
        matches!(self, Self::Count(_) | Self::Level(0.0))
    }
}

/// A value that goes up and down, with its lowest and highest since the last window.
///
/// Numbers are kept as bits that are in the order of the numbers, so that integers' minimum and maximum do.
#[derive(Debug)]
pub(crate) struct GaugeCell {
    value: AtomicI64,
    min: AtomicI64,
    max: AtomicI64,
}

impl Default for GaugeCell {
    fn default() -> Self {
        // There is no lowest and no highest before the first.
        Self { value: AtomicI64::new(0), min: AtomicI64::new(i64::MAX), max: AtomicI64::new(i64::MIN) }
    }
}

/// As `f64::total_cmp` does it: of a negative number, all bits but the sign are the wrong way round.
const fn ordered(value: f64) -> i64 {
    let bits = value.to_bits() as i64;
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

const fn number(ordered: i64) -> f64 {
    f64::from_bits((ordered ^ (((ordered >> 63) as u64) >> 1) as i64) as u64)
}

impl GaugeCell {
    /// Returns the new value, which is the old one if it would be no finite number.
    pub(crate) fn add(&self, n: f64) -> f64 {
        self.add_if(n, f64::is_finite).unwrap_or_else(|| self.get())
    }

    /// Returns the new value; nothing changes unless it `fits`.
    pub(crate) fn add_if(&self, n: f64, fits: impl Fn(f64) -> bool) -> Option<f64> {
        let mut now = self.value.load(Relaxed);
        loop {
            let level = number(now) + n;
            if !fits(level) {
                return None;
            }
            let next = ordered(level);
            match self.value.compare_exchange_weak(now, next, SeqCst, Relaxed) {
                Ok(_) => {
                    if self.min.load(Relaxed) == i64::MAX {
                        // What is counted up was 0 before.
                        self.seen(now);
                    }
                    self.seen(next);
                    return Some(level);
                }
                Err(other) => now = other,
            }
        }
    }

    /// Returns the new value.
    pub(crate) fn set(&self, n: f64) -> f64 {
        self.value.store(ordered(n), SeqCst);
        self.seen(ordered(n));
        n
    }

    /// Most values are neither: to look costs nothing beside to write what other processors write, too.
    ///
    /// Sequentially consistent with the change of the value before it and with [`GaugeCell::take_window`]: whoever finds
    /// nothing to do because of a window that is being taken has changed the value before that is read for the next one.
    fn seen(&self, now: i64) {
        if now < self.min.load(SeqCst) {
            self.min.fetch_min(now, SeqCst);
        }
        if now > self.max.load(SeqCst) {
            self.max.fetch_max(now, SeqCst);
        }
    }

    pub(crate) fn get(&self) -> f64 {
        number(self.value.load(Relaxed))
    }

    /// Lowest and highest value since the last call.
    fn take_window(&self) -> (f64, f64) {
        let now = self.value.load(Relaxed);
        let (min, max) = (self.min.swap(now, SeqCst).min(now), self.max.swap(now, SeqCst).max(now));
        // What it became meanwhile is of the next window.
        self.seen(self.value.load(SeqCst));
        (number(min), number(max))
    }
}

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_value_is_after_a_window_is_within_the_next_one() {
        const WINDOWS: u32 = 2_000_000;
        let (gauge, done) = (GaugeCell::default(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    gauge.add(1.0);
                    gauge.add(-1.0);
                }
            });
            // Looked at when the other thread has been told to end: it would run for ever behind a panic.
            let mut outside = None;
            for _ in 0..WINDOWS {
                gauge.take_window();
                let value = gauge.get();
                let (lowest, highest) = gauge.take_window();
                if !(lowest..=highest).contains(&value) {
                    outside = Some((lowest, value, highest));
                }
            }
            done.store(true, Relaxed);
            assert_eq!(outside, None, "lowest, value before, highest");
        });
    }

    proptest! {
        #[test]
        fn numbers_keep_their_order_as_bits(a in any::<f64>(), b in any::<f64>()) {
            prop_assert_eq!(ordered(a).cmp(&ordered(b)), a.total_cmp(&b));
            prop_assert_eq!(number(ordered(a)).to_bits(), a.to_bits());
        }
    }

    #[test]
    fn a_gauge_knows_its_lowest_and_highest() {
        let gauge = GaugeCell::default();
        assert_eq!((gauge.add(3.0), gauge.add(-5.5), gauge.add(1.0)), (3.0, -2.5, -1.5));
        assert_eq!(gauge.take_window(), (-2.5, 3.0));
        assert_eq!(gauge.take_window(), (-1.5, -1.5));
        gauge.set(f64::MAX);
        assert_eq!(gauge.add(f64::MAX), f64::MAX);
        gauge.set(-1.5);
        gauge.take_window();
        let new = GaugeCell::default();
        new.set(12.0);
        assert_eq!(new.take_window(), (12.0, 12.0), "it never was 0");
        gauge.set(7.0);
        assert_eq!((gauge.get(), gauge.take_window()), (7.0, (-1.5, 7.0)));
    }
}
