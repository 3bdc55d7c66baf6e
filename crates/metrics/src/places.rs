//! Which places in the slabs are whose.

use std::sync::{Arc, Mutex, PoisonError};

use crate::schema::Kind;
use crate::series::Cell;
use crate::storage::buckets::Place;
use crate::storage::slab::Slab;

/// Hands out places in the slabs, and numbers of series.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<Free>);

#[derive(Debug, Default)]
struct Free {
    series: u64,
    counters: Numbers,
    histograms: Numbers,
}

#[derive(Debug, Default)]
struct Numbers {
    next: u32,
    free: Vec<Place>,
}

impl Numbers {
    fn take(&mut self) -> Place {
        self.free.pop().unwrap_or_else(|| {
            let place = Place::of(self.next);
            // Never the last: families are limited in number, and each in series.
            self.next = (self.next + 1).min(Place::CAPACITY - 1);
            place
        })
    }
}

impl Places {
    pub(crate) fn take(&self, kind: Kind) -> (u64, Cell) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.series += 1;
        let cell = match kind {
            Kind::Counter => Cell::Counter(free.counters.take()),
            Kind::Histogram => Cell::Histogram(free.histograms.take()),
            Kind::Gauge => Cell::Gauge(Arc::default()),
        };
        (free.series, cell)
    }

    /// Places of counters that were ever taken.
    #[cfg(test)]
    #[cfg(not(mcpscope_loom))]
    pub(crate) fn counters(&self) -> u32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).counters.next
    }

    /// The place of a series that nobody else holds: no thread writes there until it is taken again.
    pub(crate) fn give_back(&self, cell: &Cell, slabs: &[Arc<Slab>]) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match cell {
            Cell::Counter(place) => {
                slabs.iter().filter_map(|slab| slab.counter(*place)).for_each(|cell| cell.clear());
                free.counters.free.push(*place);
            }
            Cell::Histogram(place) => {
                slabs.iter().filter_map(|slab| slab.histogram(*place)).for_each(|cell| cell.clear());
                free.histograms.free.push(*place);
            }
            Cell::Gauge(_) => {}
        }
    }
}
