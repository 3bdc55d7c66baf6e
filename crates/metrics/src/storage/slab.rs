//! The cells of one thread, and how threads come by theirs.

use std::sync::Arc;

use once_cell::race::OnceBox;

use crate::storage::buckets::{Buckets, Place};
use crate::storage::cells::{CounterCell, HistogramCell};
use crate::storage::ring::{Raw, Ring};
use crate::storage::scale::Bounds;
use crate::sync::{AtomicU64, Mutex, Ordering::Relaxed, lock, try_lock};

/// The cells of one thread. Whoever holds it as its own is its only writer.
#[derive(Debug, Default)]
pub(crate) struct Slab {
    counters: Buckets<CounterCell>,
    histograms: Buckets<HistogramCell>,
    raw: OnceBox<Ring>,
}

impl Slab {
    #[inline(always)]
    pub(crate) fn count(&self, place: Place, n: u64) {
        if let Some(cell) = self.counters.get_or_grow(place) {
            cell.add(n);
        }
    }

    /// Returns the cell that the value is in.
    #[inline]
    pub(crate) fn observe(&self, place: Place, bounds: &Bounds, value_ns: u64, epoch: u64) -> Option<&HistogramCell> {
        let cell = self.histograms.get_or_grow(place)?;
        cell.record(bounds, value_ns, epoch);
        Some(cell)
    }

    #[inline]
    pub(crate) fn log(&self, raw: Raw) {
        self.raw.get_or_init(Box::default).push(raw);
    }

    pub(crate) fn counter(&self, place: Place) -> Option<&CounterCell> {
        self.counters.get(place)
    }

    pub(crate) fn histogram(&self, place: Place) -> Option<&HistogramCell> {
        self.histograms.get(place)
    }

    pub(crate) fn raw(&self) -> Option<&Ring> {
        self.raw.get()
    }
}

/// All slabs of one instance.
///
/// The slab of a thread that has ended goes to the next one that comes, with all that is in it: nothing is lost, nothing
/// is moved, and there are never more slabs than there were threads at one time.
#[derive(Debug, Default)]
pub(crate) struct Slabs {
    all: Mutex<Vec<Arc<Slab>>>,
    free: Mutex<Vec<Arc<Slab>>>,
    /// For threads that have none of their own: one at a time.
    shared: Mutex<Option<Arc<Slab>>>,
    /// Records that found no slab.
    lost: AtomicU64,
}

impl Slabs {
    /// A slab for the calling thread alone, until it gives it back; none while others are busy with theirs.
    pub(crate) fn adopt(&self) -> Option<Arc<Slab>> {
        if let Some(slab) = try_lock(&self.free)?.pop() {
            return Some(slab);
        }
        let slab = Arc::new(Slab::default());
        try_lock(&self.all)?.push(Arc::clone(&slab));
        Some(slab)
    }

    /// The thread has ended.
    pub(crate) fn give_back(&self, slab: Arc<Slab>) {
        lock(&self.free).push(slab);
    }

    /// Writes without a slab of one's own.
    #[cold]
    pub(crate) fn share(&self, write: impl FnOnce(&Slab)) {
        let written = try_lock(&self.shared).and_then(|mut shared| {
            if shared.is_none() {
                let slab = Arc::new(Slab::default());
                try_lock(&self.all)?.push(Arc::clone(&slab));
                *shared = Some(slab);
            }
            shared.as_deref().map(write)
        });
        if written.is_none() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// All slabs there are. One that is made later holds only what is recorded later.
    pub(crate) fn all(&self) -> Vec<Arc<Slab>> {
        lock(&self.all).clone()
    }

    /// Records lost since the last call.
    pub(crate) fn take_lost(&self) -> u64 {
        self.lost.swap(0, Relaxed)
    }
}

#[cfg(test)]
#[cfg(mcpscope_loom)]
mod loom_tests {
    use loom::sync::Arc as LoomArc;
    use loom::thread;

    use super::*;

    const PLACE: Place = Place::of(0);

    fn total(slabs: &Slabs) -> u64 {
        slabs.all().iter().filter_map(|slab| slab.counter(PLACE)).map(CounterCell::get).sum()
    }

    fn count(slabs: &Slabs, times: u64) {
        let Some(slab) = slabs.adopt() else {
            return (0..times).for_each(|_| slabs.share(|slab| slab.count(PLACE, 1)));
        };
        (0..times).for_each(|_| slab.count(PLACE, 1));
        slabs.give_back(slab);
    }

    /// Two threads that may follow each other in one slab, or have one each, or none; and windows closed meanwhile.
    #[test]
    fn loom_windows_add_up_to_the_total() {
        loom::model(|| {
            let slabs = LoomArc::new(Slabs::default());
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let slabs = LoomArc::clone(&slabs);
                    thread::spawn(move || count(&slabs, 2))
                })
                .collect();
            let (mut last, mut windows) = (0, 0);
            for _ in 0..2 {
                let now = total(&slabs);
                assert!(now >= last, "a window that takes back what another counted");
                windows += now - last;
                last = now;
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            windows += total(&slabs) - last;
            assert_eq!(windows + slabs.take_lost(), 4);
        });
    }

    /// Neither the sum nor lowest and highest value lack what the count has.
    #[test]
    fn loom_what_is_counted_is_in_the_sum() {
        static BOUNDS: Bounds = Bounds::new(&[1_000_000]);
        loom::model(|| {
            let slab = LoomArc::new(Slab::default());
            let writer = LoomArc::clone(&slab);
            // Each in a window of its own, of which the cell keeps two.
            let thread = thread::spawn(move || (1..=3).for_each(|n| drop(writer.observe(PLACE, &BOUNDS, 5 + n, n))));
            let read = HistogramCell::snapshot(slab.histogram(PLACE).into_iter(), &BOUNDS);
            assert!(read.sum_ns >= 6 * read.count && read.bounds == [read.count, 0]);
            assert!(read.count == 0 || (read.min_ns == 6 && read.max_ns >= 5 + read.count));
            thread.join().unwrap();
            let read = HistogramCell::snapshot(slab.histogram(PLACE).into_iter(), &BOUNDS);
            assert_eq!((read.count, read.sum_ns, read.min_ns, read.max_ns), (3, 21, 6, 8));
        });
    }
}
