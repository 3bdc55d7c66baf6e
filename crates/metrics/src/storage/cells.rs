//! What recording writes and snapshots read: atomics with a single writer each, so that adding is a load and a store.

use std::sync::OnceLock;

use crate::snapshot::HistogramSnapshot;
use crate::storage::scale::{Bounds, CELLS, CHUNKS};
use crate::sync::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

/// Adds to a cell that only this thread writes. Stops at the highest number.
#[inline]
fn add(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Relaxed).saturating_add(n), Relaxed);
}

/// Events of one series, seen by one thread.
#[derive(Debug, Default)]
pub(crate) struct CounterCell(AtomicU64);

impl CounterCell {
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        add(&self.0, n);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Nobody else may use the cell meanwhile.
    pub(crate) fn clear(&self) {
        self.0.store(0, Relaxed);
    }
}

/// Lowest and highest value of one window.
#[derive(Debug, Default)]
struct Extremes {
    /// The window that they belong to.
    epoch: AtomicU64,
    min_ns: AtomicU64,
    max_ns: AtomicU64,
}

impl Extremes {
    #[inline]
    fn add(&self, epoch: u64, value_ns: u64) {
        if self.epoch.load(Relaxed) != epoch {
            self.min_ns.store(value_ns, Relaxed);
            self.max_ns.store(value_ns, Relaxed);
            self.epoch.store(epoch, Release);
            return;
        }
        if value_ns < self.min_ns.load(Relaxed) {
            self.min_ns.store(value_ns, Relaxed);
        }
        if value_ns > self.max_ns.load(Relaxed) {
            self.max_ns.store(value_ns, Relaxed);
        }
    }

    fn of(&self, epoch: u64) -> Option<(u64, u64)> {
        (self.epoch.load(Acquire) == epoch).then(|| (self.min_ns.load(Relaxed), self.max_ns.load(Relaxed)))
    }
}

type Chunk = Box<[AtomicU64; CELLS]>;

/// The values of one series, seen by one thread.
#[derive(Debug)]
pub(crate) struct HistogramCell {
    sum_ns: AtomicU64,
    last_ns: AtomicU64,
    /// When the last value was recorded, since the start of the instance.
    last_at_ns: AtomicU64,
    /// One more than the lowest value; 0 before the first.
    min_ns_and_1: AtomicU64,
    max_ns: AtomicU64,
    /// Of the window that is open and of the one before it.
    windows: [Extremes; 2],
    /// Each made when a value first falls into it.
    chunks: [OnceLock<Chunk>; CHUNKS],
}

impl Default for HistogramCell {
    fn default() -> Self {
        let [sum_ns, last_ns, last_at_ns, min_ns_and_1, max_ns] = Default::default();
        let chunks = std::array::from_fn(|_| OnceLock::new());
        Self { sum_ns, last_ns, last_at_ns, min_ns_and_1, max_ns, windows: Default::default(), chunks }
    }
}

impl HistogramCell {
    #[inline]
    pub(crate) fn record(&self, bounds: &Bounds, value_ns: u64, at_ns: u64, epoch: u64) {
        add(&self.sum_ns, value_ns);
        self.last_ns.store(value_ns, Relaxed);
        self.last_at_ns.store(at_ns, Relaxed);
        // 0 becomes the highest number: whatever comes first is lower.
        if value_ns < self.min_ns_and_1.load(Relaxed).wrapping_sub(1) {
            self.min_ns_and_1.store(value_ns.saturating_add(1), Relaxed);
        }
        if value_ns > self.max_ns.load(Relaxed) {
            self.max_ns.store(value_ns, Relaxed);
        }
        if let Some(window) = self.windows.get(epoch as usize & 1) {
            window.add(epoch, value_ns);
        }
        let (chunk, cell) = bounds.cell(value_ns);
        let chunk = self.chunks.get(chunk).map(|chunk| match chunk.get() {
            Some(cells) => cells,
            None => Self::grow(chunk),
        });
        if let Some(cell) = chunk.and_then(|cells| cells.get(cell)) {
            // Last, so that whoever sees the count sees all that was counted.
            cell.store(cell.load(Relaxed) + 1, Release);
        }
    }

    #[cold]
    fn grow(chunk: &OnceLock<Chunk>) -> &Chunk {
        chunk.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))))
    }

    /// Adds up what all threads saw.
    pub(crate) fn snapshot<'a>(cells: impl Iterator<Item = &'a Self> + Clone, bounds: &Bounds) -> HistogramSnapshot {
        let mut buckets = vec![0; bounds.as_ns().len() + 1];
        let mut scale = Vec::new();
        for chunk in 0..CHUNKS {
            let mut found = cells.clone().filter_map(|cell| cell.chunks.get(chunk)?.get()).peekable();
            if found.peek().is_none() {
                continue;
            }
            let mut counts = [0_u64; CELLS];
            for cells in found {
                counts.iter_mut().zip(&**cells).for_each(|(count, cell)| *count += cell.load(Acquire));
            }
            bounds.read(chunk, &counts, &mut scale);
            bounds.add(chunk, &counts, |count| *count, &mut buckets);
        }
        let mut snapshot = HistogramSnapshot {
            count: buckets.iter().sum(),
            bounds_ns: bounds.as_ns(),
            bounds: buckets,
            scale,
            ..HistogramSnapshot::default()
        };
        if snapshot.count == 0 {
            return snapshot;
        }
        snapshot.min_ns = u64::MAX;
        let mut newest = 0;
        for cell in cells {
            snapshot.sum_ns = snapshot.sum_ns.saturating_add(cell.sum_ns.load(Relaxed));
            snapshot.min_ns = snapshot.min_ns.min(cell.min_ns_and_1.load(Relaxed).wrapping_sub(1));
            snapshot.max_ns = snapshot.max_ns.max(cell.max_ns.load(Relaxed));
            let (last, at) = (cell.last_ns.load(Relaxed), cell.last_at_ns.load(Relaxed) + 1);
            // A cell without a record is of the time 0, and has a 0 for its last.
            if at > newest && cell.min_ns_and_1.load(Relaxed) > 0 {
                (snapshot.last_ns, newest) = (last, at);
            }
        }
        snapshot
    }

    /// As [`HistogramCell::snapshot`], but only count, sum and values per exposed bound.
    pub(crate) fn exposed<'a>(cells: impl Iterator<Item = &'a Self> + Clone, bounds: &Bounds) -> HistogramSnapshot {
        let mut buckets = vec![0; bounds.as_ns().len() + 1];
        for cell in cells.clone() {
            for (chunk, counts) in cell.chunks.iter().enumerate() {
                if let Some(counts) = counts.get() {
                    bounds.add(chunk, counts, |count| count.load(Acquire), &mut buckets);
                }
            }
        }
        let count = buckets.iter().sum();
        let sum_ns = cells.fold(0, |sum: u64, cell| sum.saturating_add(cell.sum_ns.load(Relaxed)));
        let sum_ns = if count == 0 { 0 } else { sum_ns };
        HistogramSnapshot { count, sum_ns, bounds_ns: bounds.as_ns(), bounds: buckets, ..HistogramSnapshot::default() }
    }

    /// Lowest and highest value that all threads saw in one window, which is the newest or the one before; nothing if
    /// there was none.
    pub(crate) fn extremes<'a>(cells: impl Iterator<Item = &'a Self>, epoch: u64) -> Option<(u64, u64)> {
        cells
            .filter_map(|cell| cell.windows.get(epoch as usize & 1)?.of(epoch))
            .reduce(|(low, high), (min, max)| (low.min(min), high.max(max)))
    }

    /// Nobody else may use the cell meanwhile.
    pub(crate) fn clear(&self) {
        let alone = [&self.sum_ns, &self.last_ns, &self.last_at_ns, &self.min_ns_and_1, &self.max_ns];
        let windows = self.windows.iter().map(|window| &window.epoch);
        let chunks = self.chunks.iter().filter_map(OnceLock::get).flat_map(|cells| cells.iter());
        alone.into_iter().chain(windows).chain(chunks).for_each(|cell| cell.store(0, Relaxed));
    }
}
