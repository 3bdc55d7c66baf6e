//! Handles of others' metrics, which outlive what the exporter has of a series that was idle.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use ::metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key};
use arc_swap::ArcSwap;

use crate::prometheus::names::Shown;
use crate::prometheus::{Kept, Shared, Use};

/// The time, as of the last upkeep: what reads it on every record must not cost more than that.
#[derive(Debug)]
pub(super) struct Pulse {
    pub(super) now_ms: AtomicU64,
    /// The exporter has every series that was written within this time. Half of the time after which it may drop one, so
    /// that a record may take its time.
    pub(super) fresh_ms: u64,
    /// Values that are no numbers, or infinite.
    pub(super) bad_values: AtomicU64,
    /// Held to write by who makes the exporter take over the records of histograms: it would lose those that are made
    /// meanwhile.
    pub(super) taking_over: RwLock<()>,
}

/// One series, as those who write it hold it.
///
/// The exporter drops series that are idle, and whoever still holds its handle of one would write into nowhere.
#[derive(Debug)]
pub(super) struct Slot<H> {
    pulse: Arc<Pulse>,
    shared: Weak<Shared>,
    /// How the library calls it.
    pub(super) key: Key,
    pub(super) shown: Shown,
    pub(super) kind: Use,
    /// When it was last written.
    used_ms: AtomicU64,
    exporters: ArcSwap<H>,
    /// Itself.
    slot: Weak<Self>,
}

impl<H> Slot<H> {
    pub(super) fn new(shared: &Arc<Shared>, key: Key, shown: Shown, kind: Use, exporters: H) -> Arc<Self> {
        let (pulse, shared) = (Arc::clone(&shared.pulse), Arc::downgrade(shared));
        let used_ms = AtomicU64::new(pulse.now_ms.load(Relaxed));
        let exporters = ArcSwap::from_pointee(exporters);
        Arc::new_cyclic(|slot| Self { pulse, shared, key, shown, kind, used_ms, exporters, slot: slot.clone() })
    }

    pub(super) fn used_ms(&self) -> u64 {
        self.used_ms.load(Relaxed)
    }
}

impl<H: Kept> Slot<H> {
    #[inline]
    fn write(&self, write: impl FnOnce(&H)) {
        let (now, used) = (self.pulse.now_ms.load(Relaxed), self.used_ms.load(Relaxed));
        if now.saturating_sub(used) > self.pulse.fresh_ms {
            return self.come_back(write);
        }
        if now != used {
            self.used_ms.store(now, Relaxed);
        }
        write(&self.exporters.load());
    }

    /// The exporter may have dropped it.
    #[cold]
    fn come_back(&self, write: impl FnOnce(&H)) {
        let (Some(shared), Some(slot)) = (self.shared.upgrade(), self.slot.upgrade()) else { return };
        shared.come_back(&slot, |slot| {
            write(&slot.exporters.load());
            slot.used_ms.store(slot.pulse.now_ms.load(Relaxed), Relaxed);
        });
    }

    pub(super) fn set_exporters(&self, handle: H) {
        self.exporters.store(Arc::new(handle));
    }

    fn write_number(&self, value: f64, is_taken: bool, write: impl FnOnce(&H)) {
        if value.is_finite() && is_taken {
            self.write(write);
        } else {
            self.pulse.bad_values.fetch_add(1, Relaxed);
        }
    }
}

impl CounterFn for Slot<Counter> {
    fn increment(&self, value: u64) {
        self.write(|counter| counter.increment(value));
    }

    fn absolute(&self, value: u64) {
        self.write(|counter| counter.absolute(value));
    }
}

impl GaugeFn for Slot<Gauge> {
    fn increment(&self, value: f64) {
        self.write_number(value, true, |gauge| gauge.increment(value));
    }

    fn decrement(&self, value: f64) {
        self.write_number(value, true, |gauge| gauge.decrement(value));
    }

    fn set(&self, value: f64) {
        self.write_number(value, true, |gauge| gauge.set(value));
    }
}

impl HistogramFn for Slot<Histogram> {
    fn record(&self, value: f64) {
        let may = || self.pulse.taking_over.read().unwrap_or_else(PoisonError::into_inner);
        // The sum of a histogram never falls.
        self.write_number(value, value >= 0.0, |histogram| {
            let _may = may();
            histogram.record(value);
        });
    }
}
