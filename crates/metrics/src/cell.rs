//! The cells that recording writes and snapshots read: atomics only, no lock, no loss.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::scale::{self, OCTAVES, Position, SUB_BUCKETS};
use crate::schema::BOUNDS_NS;
use crate::snapshot::HistogramSnapshot;

#[derive(Debug, Default)]
pub(crate) struct CounterCell(AtomicU64);

impl CounterCell {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[derive(Debug, Default)]
pub(crate) struct GaugeCell {
    value: AtomicI64,
    window: MinMax<AtomicI64>,
}

impl GaugeCell {
    pub(crate) fn add(&self, n: i64) {
        self.seen(self.value.fetch_add(n, Relaxed) + n);
    }

    pub(crate) fn set(&self, n: i64) {
        self.value.store(n, Relaxed);
        self.seen(n);
    }

    fn seen(&self, now: i64) {
        self.window.min.fetch_min(now, Relaxed);
        self.window.max.fetch_max(now, Relaxed);
    }

    pub(crate) fn get(&self) -> i64 {
        self.value.load(Relaxed)
    }

    /// Lowest and highest value since the last call.
    pub(crate) fn take_window(&self) -> (i64, i64) {
        let now = self.get();
        (self.window.min.swap(now, Relaxed).min(now), self.window.max.swap(now, Relaxed).max(now))
    }
}

#[derive(Debug)]
struct MinMax<A> {
    min: A,
    max: A,
}

impl Default for MinMax<AtomicI64> {
    fn default() -> Self {
        Self { min: AtomicI64::new(0), max: AtomicI64::new(0) }
    }
}

impl Default for MinMax<AtomicU64> {
    fn default() -> Self {
        Self { min: AtomicU64::new(u64::MAX), max: AtomicU64::new(0) }
    }
}

impl MinMax<AtomicU64> {
    fn add(&self, value: u64) {
        self.min.fetch_min(value, Relaxed);
        self.max.fetch_max(value, Relaxed);
    }
}

type Octave = Box<[AtomicU64; SUB_BUCKETS]>;

/// Exact bounds and a log-linear scale side by side: the first for Prometheus, the second for percentiles.
#[derive(Debug, Default)]
pub(crate) struct HistogramCell {
    /// One cell per exposed bound and one above them; their sum is the count.
    bounds: [AtomicU64; BOUNDS_NS.len() + 1],
    under: AtomicU64,
    over: AtomicU64,
    /// Allocated when a value first falls into the octave.
    octaves: [OnceLock<Octave>; OCTAVES],
    sum_ns: AtomicU64,
    last_ns: AtomicU64,
    total: MinMax<AtomicU64>,
    window: MinMax<AtomicU64>,
}

impl HistogramCell {
    pub(crate) fn record(&self, value: Duration) {
        let value_ns = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        let cell = match scale::position(value_ns) {
            Position::Under => Some(&self.under),
            Position::Over => Some(&self.over),
            Position::In { octave, sub } => {
                self.octaves.get(octave).and_then(|octave| octave.get_or_init(Octave::default).get(sub))
            }
        };
        if let Some(cell) = cell {
            cell.fetch_add(1, Relaxed);
        }
        self.sum_ns.fetch_add(value_ns, Relaxed);
        self.last_ns.store(value_ns, Relaxed);
        self.total.add(value_ns);
        self.window.add(value_ns);
        // Last, so that a snapshot's count never runs ahead of its sum by more than the records under way.
        let bound = BOUNDS_NS.partition_point(|bound| *bound < value_ns);
        if let Some(cell) = self.bounds.get(bound) {
            cell.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn snapshot(&self) -> HistogramSnapshot {
        let bounds: Vec<u64> = self.bounds.iter().map(|cell| cell.load(Relaxed)).collect();
        let count: u64 = bounds.iter().sum();
        let nonzero = |index: u16, cell: &AtomicU64| Some((index, cell.load(Relaxed))).filter(|(_, n)| *n > 0);
        let mut scale_counts = Vec::new();
        scale_counts.extend(nonzero(scale::index(Position::Under), &self.under));
        for (octave, cells) in self.octaves.iter().enumerate() {
            let cells = cells.get().into_iter().flat_map(|cells| cells.iter().enumerate());
            scale_counts
                .extend(cells.filter_map(|(sub, cell)| nonzero(scale::index(Position::In { octave, sub }), cell)));
        }
        scale_counts.extend(nonzero(scale::index(Position::Over), &self.over));
        HistogramSnapshot {
            count,
            sum_ns: self.sum_ns.load(Relaxed),
            min_ns: if count == 0 { 0 } else { self.total.min.load(Relaxed) },
            max_ns: self.total.max.load(Relaxed),
            last_ns: self.last_ns.load(Relaxed),
            bounds,
            scale: scale_counts,
        }
    }

    /// Lowest and highest value since the last call, in nanoseconds; nothing if there was none.
    pub(crate) fn take_window(&self) -> Option<(u64, u64)> {
        let min = self.window.min.swap(u64::MAX, Relaxed);
        let max = self.window.max.swap(0, Relaxed);
        (min <= max).then_some((min, max))
    }
}
