//! Where recorded numbers are: a slab of cells for each thread, merged when somebody reads.

pub(crate) mod buckets;
pub(crate) mod cells;
pub(crate) mod local;
pub(crate) mod names;
pub(crate) mod ring;
pub(crate) mod scale;
pub(crate) mod slab;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use mcpscope_core::ClockAnchor;

use crate::storage::slab::{Slab, Slabs};

/// Tells instances apart, so that a thread can remember which of them it wrote to last.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// The storage of one instance.
#[derive(Debug)]
pub(crate) struct Store {
    /// Never 0, never used again.
    number: u64,
    anchor: ClockAnchor,
    /// The window that is open.
    epoch: AtomicU64,
    pub(crate) slabs: Arc<Slabs>,
}

impl Store {
    pub(crate) fn new(anchor: ClockAnchor) -> Arc<Self> {
        let number = NUMBERS.fetch_add(1, Relaxed);
        Arc::new(Self { number, anchor, epoch: AtomicU64::new(1), slabs: Arc::default() })
    }

    pub(crate) const fn anchor(&self) -> ClockAnchor {
        self.anchor
    }

    /// Nanoseconds since the start of the instance; 0 before it.
    #[inline]
    pub(crate) fn since_start_ns(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.anchor.mono);
        since.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(since.subsec_nanos()))
    }

    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Relaxed)
    }

    /// Begins a window; returns the one that ends.
    pub(crate) fn next_epoch(&self) -> u64 {
        self.epoch.fetch_add(1, Relaxed)
    }

    /// Writes to the calling thread's slab, or, where it has none, to one that it borrows.
    pub(crate) fn write(self: &Arc<Self>, write: impl FnOnce(&Slab)) {
        match local::slab(self) {
            Some(slab) => write(slab),
            None => self.slabs.lend(write),
        }
    }

    #[cfg(test)]
    #[cfg(not(mcpscope_loom))]
    pub(crate) fn for_tests() -> Arc<Self> {
        Self::new(ClockAnchor { mono: Instant::now(), wall: std::time::SystemTime::UNIX_EPOCH })
    }
}
