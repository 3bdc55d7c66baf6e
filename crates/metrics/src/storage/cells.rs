//! What recording writes and snapshots read: atomics with a single writer each, so that adding is a load and a store.

use once_cell::race::OnceBox;

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

    /// Adds up what all threads saw.
    #[inline]
    pub(crate) fn total<'a>(cells: impl Iterator<Item = &'a Self>) -> u64 {
        cells.map(Self::get).fold(0, u64::saturating_add)
    }

    /// Nobody else may use the cell meanwhile.
    pub(crate) fn clear(&self) {
        self.0.store(0, Relaxed);
    }
}

/// Lowest and highest value of one window.
#[derive(Debug, Default)]
struct Extremes {
    /// The window that they belong to; 0 if there was none.
    epoch: AtomicU64,
    min_ns: AtomicU64,
    max_ns: AtomicU64,
}

impl Extremes {
    #[inline]
    fn add(&self, value_ns: u64) {
        if value_ns < self.min_ns.load(Relaxed) {
            self.min_ns.store(value_ns, Release);
        }
        if value_ns > self.max_ns.load(Relaxed) {
            self.max_ns.store(value_ns, Release);
        }
    }

    /// Begins another window.
    fn begin(&self, epoch: u64, value_ns: u64) {
        self.min_ns.store(value_ns, Release);
        self.max_ns.store(value_ns, Release);
        self.epoch.store(epoch, Release);
    }

    fn get(&self) -> (u64, u64) {
        (self.min_ns.load(Acquire), self.max_ns.load(Acquire))
    }

    fn of(&self, epoch: u64) -> Option<(u64, u64)> {
        (self.epoch.load(Acquire) == epoch).then(|| self.get())
    }
}

type Chunk = OnceBox<[AtomicU64; CELLS]>;

/// The values of one series, seen by one thread.
#[derive(Debug)]
pub(crate) struct HistogramCell {
    sum_ns: AtomicU64,
    /// Of the window that is open and of the one before it.
    windows: [Extremes; 2],
    /// Lowest value, as what it is below the highest number there is, and highest value of the windows before those.
    past_below_ns: AtomicU64,
    past_max_ns: AtomicU64,
    last_ns: AtomicU64,
    /// When that was, since the start of the instance, and 1; 0 if there was none.
    last_at_ns_and_1: AtomicU64,
    /// Each made when a value first falls into it.
    chunks: [Chunk; CHUNKS],
}

impl Default for HistogramCell {
    fn default() -> Self {
        let [sum_ns, past_below_ns, past_max_ns, last_ns, last_at_ns_and_1] = Default::default();
        let chunks = std::array::from_fn(|_| OnceBox::new());
        Self { sum_ns, windows: Default::default(), past_below_ns, past_max_ns, last_ns, last_at_ns_and_1, chunks }
    }
}

impl HistogramCell {
    #[inline]
    pub(crate) fn record(&self, bounds: &Bounds, value_ns: u64, epoch: u64) {
        add(&self.sum_ns, value_ns);
        let [even, odd] = &self.windows;
        let window = if epoch & 1 == 0 { even } else { odd };
        if window.epoch.load(Relaxed) == epoch {
            window.add(value_ns);
        } else {
            self.begin(window, epoch, value_ns);
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

    /// Begins a window where the one before the last was.
    #[cold]
    fn begin(&self, window: &Extremes, epoch: u64, value_ns: u64) {
        if window.epoch.load(Relaxed) > 0 {
            // First into the past: whoever finds it gone from the window finds it there.
            let (min, max) = window.get();
            self.past_below_ns.store(self.past_below_ns.load(Relaxed).max(u64::MAX - min), Relaxed);
            self.past_max_ns.store(self.past_max_ns.load(Relaxed).max(max), Relaxed);
        }
        window.begin(epoch, value_ns);
    }

    #[cold]
    fn grow(chunk: &Chunk) -> &[AtomicU64; CELLS] {
        chunk.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))))
    }

    /// Takes note of the value recorded last.
    #[inline]
    pub(crate) fn was_last(&self, value_ns: u64, at_ns: u64) {
        self.last_ns.store(value_ns, Relaxed);
        self.last_at_ns_and_1.store(at_ns.saturating_add(1), Relaxed);
    }

    /// Lowest and highest value there ever were.
    fn ends_ns(&self) -> (u64, u64) {
        // The past after the windows: see `begin`.
        let windows = self.windows.each_ref().map(|window| (window.epoch.load(Acquire) > 0).then(|| window.get()));
        let past = (u64::MAX - self.past_below_ns.load(Relaxed), self.past_max_ns.load(Relaxed));
        windows.into_iter().flatten().fold(past, |(low, high), (min, max)| (low.min(min), high.max(max)))
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
                counts.iter_mut().zip(cells).for_each(|(count, cell)| *count += cell.load(Acquire));
            }
            bounds.read(chunk, &counts, &mut scale);
            bounds.add(chunk, &counts, |count| *count, &mut buckets);
        }
        let mut snapshot = HistogramSnapshot {
            count: buckets.iter().sum(),
            bounds_ns: bounds.as_ns(),
            bounds: buckets,
            scale: scale.into_iter().collect(),
            ..HistogramSnapshot::default()
        };
        if snapshot.count == 0 {
            return snapshot;
        }
        snapshot.min_ns = u64::MAX;
        let mut newest = 0;
        for cell in cells {
            snapshot.sum_ns = snapshot.sum_ns.saturating_add(cell.sum_ns.load(Relaxed));
            let (min, max) = cell.ends_ns();
            (snapshot.min_ns, snapshot.max_ns) = (snapshot.min_ns.min(min), snapshot.max_ns.max(max));
            let (last, at) = (cell.last_ns.load(Relaxed), cell.last_at_ns_and_1.load(Relaxed));
            if at > newest {
                (snapshot.last_ns, newest) = (last, at);
            }
        }
        snapshot
    }

    /// Makes `counts` the values per exposed bound, the last one above all bounds; returns the sum in nanoseconds.
    pub(crate) fn exposed<'a>(
        cells: impl Iterator<Item = &'a Self> + Clone,
        bounds: &Bounds,
        counts: &mut Vec<u64>,
    ) -> u64 {
        counts.clear();
        counts.resize(bounds.as_ns().len() + 1, 0);
        for cell in cells.clone() {
            for (chunk, values) in cell.chunks.iter().enumerate() {
                if let Some(values) = values.get() {
                    bounds.add(chunk, values, |count| count.load(Acquire), counts);
                }
            }
        }
        if counts.iter().all(|count| *count == 0) {
            return 0;
        }
        cells.fold(0, |sum: u64, cell| sum.saturating_add(cell.sum_ns.load(Relaxed)))
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
        let Self { sum_ns, past_below_ns, past_max_ns, last_ns, last_at_ns_and_1, .. } = self;
        let alone = [sum_ns, past_below_ns, past_max_ns, last_ns, last_at_ns_and_1];
        let windows = self.windows.iter().map(|window| &window.epoch);
        let chunks = self.chunks.iter().filter_map(OnceBox::get).flat_map(|cells| cells.iter());
        alone.into_iter().chain(windows).chain(chunks).for_each(|cell| cell.store(0, Relaxed));
    }
}
