//! The cells of one thread, and how threads come by theirs.

use std::sync::Arc;

use once_cell::race::OnceBox;

use crate::storage::buckets::{Buckets, Place};
use crate::storage::cells::{CounterCell, HistogramCell};
use crate::storage::ring::{Raw, Ring};
use crate::storage::scale::Bounds;
use crate::sync::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};

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
/// is moved, nobody waits, and there are never more slabs than there were threads at one time.
#[derive(Debug, Default)]
pub(crate) struct Slabs {
    lots: Buckets<Lot>,
    /// How many of them there are.
    number: AtomicU64,
}

/// A slab and whether some thread has it.
#[derive(Debug, Default)]
struct Lot {
    is_taken: AtomicBool,
    slab: OnceBox<Arc<Slab>>,
}

/// What a thread has for itself, until it gives it back.
#[derive(Debug)]
pub(crate) struct Loan {
    lot: Place,
    pub(crate) slab: Arc<Slab>,
}

impl Slabs {
    /// A slab for the calling thread alone; none only if millions of threads have one.
    pub(crate) fn adopt(&self) -> Option<Loan> {
        let mut next = 0;
        loop {
            while next < self.number.load(Acquire) {
                let place = Place::of(next as u32);
                let lot = self.lots.get_or_grow(place)?;
                // As its owner left it.
                if !lot.is_taken.swap(true, AcqRel) {
                    return Some(Loan { lot: place, slab: Arc::clone(lot.slab.get_or_init(Box::default)) });
                }
                next += 1;
            }
            // Somebody else may be faster at taking the new one.
            self.number.fetch_add(1, AcqRel);
        }
    }

    /// The thread has ended, or was only passing.
    pub(crate) fn give_back(&self, loan: &Loan) {
        if let Some(lot) = self.lots.get(loan.lot) {
            lot.is_taken.store(false, Release);
        }
    }

    /// Writes where the calling thread has nothing of its own.
    #[cold]
    #[inline(never)]
    pub(crate) fn lend(&self, write: impl FnOnce(&Slab)) {
        if let Some(loan) = self.adopt() {
            write(&loan.slab);
            self.give_back(&loan);
        }
    }

    /// All slabs there are. One that is made later holds only what is recorded later.
    pub(crate) fn all(&self) -> Vec<Arc<Slab>> {
        let lots = (0..self.number.load(Acquire)).filter_map(|number| self.lots.get(Place::of(number as u32)));
        lots.filter_map(|lot| lot.slab.get().map(Arc::clone)).collect()
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
        let loan = slabs.adopt().unwrap();
        (1..times).for_each(|_| loan.slab.count(PLACE, 1));
        slabs.give_back(&loan);
        slabs.lend(|slab| slab.count(PLACE, 1));
    }

    /// Two threads that may follow each other in one slab, or have one each; and windows closed meanwhile.
    #[test]
    fn loom_windows_add_up_to_the_total() {
        loom::model(|| {
            let slabs = LoomArc::new(Slabs::default());
            // Loom does not know what `OnceBox` orders, and would take what is new in it for a race.
            (0..4).for_each(|number| _ = slabs.lots.get_or_grow(Place::of(number)));
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
            assert_eq!(windows, 4);
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
            let thread = thread::spawn(move || (1..=3).for_each(|n| _ = writer.observe(PLACE, &BOUNDS, 5 + n, n)));
            let read = HistogramCell::snapshot(slab.histogram(PLACE).into_iter(), &BOUNDS);
            assert!(read.sum_ns >= 6 * read.count && read.bounds == [read.count, 0]);
            assert!(read.count == 0 || (read.min_ns == 6 && read.max_ns >= 5 + read.count));
            thread.join().unwrap();
            let read = HistogramCell::snapshot(slab.histogram(PLACE).into_iter(), &BOUNDS);
            assert_eq!((read.count, read.sum_ns, read.min_ns, read.max_ns), (3, 21, 6, 8));
        });
    }
}
