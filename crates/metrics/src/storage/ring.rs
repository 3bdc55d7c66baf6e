//! The newest raw records of one thread: written without a lock, read without stopping the writer.

use crate::sync::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release, fence};

/// How many records a thread keeps; at least as many as are shown.
#[cfg(not(mcpscope_loom))]
const SLOTS: usize = 1024;
#[cfg(mcpscope_loom)]
const SLOTS: usize = 2;

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Raw {
    /// The series' number.
    pub(crate) series: u64,
    /// The value as the series' kind has it.
    pub(crate) value: u64,
    /// When, in nanoseconds since the start of the instance.
    pub(crate) at_ns: u64,
}

#[derive(Debug, Default)]
struct Slot {
    series: AtomicU64,
    value: AtomicU64,
    at_ns: AtomicU64,
}

/// A ring with one writer and any number of readers.
///
/// Alone in its cache lines, of which processors fetch two at a time: two rings side by side would make their writers wait
/// for each other at every record.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Ring {
    /// Records ever written.
    head: AtomicU64,
    /// Records that readers have forgotten.
    cleared: AtomicU64,
    slots: Box<[Slot; SLOTS]>,
}

impl Default for Ring {
    fn default() -> Self {
        let slots = Box::new(std::array::from_fn(|_| Slot::default()));
        Self { head: AtomicU64::new(0), cleared: AtomicU64::new(0), slots }
    }
}

impl Ring {
    /// Writes a record over the oldest.
    #[inline]
    pub(crate) fn push(&self, raw: Raw) {
        let head = self.head.load(Relaxed);
        // Whoever sees what is written below sees also that the slot is being written over: `head` was stored before.
        fence(Release);
        if let Some(slot) = self.slots.get(head as usize % SLOTS) {
            slot.series.store(raw.series, Relaxed);
            slot.value.store(raw.value, Relaxed);
            slot.at_ns.store(raw.at_ns, Relaxed);
        }
        self.head.store(head + 1, Release);
    }

    /// The records that were complete, oldest first. Those that the writer reached meanwhile are left out.
    pub(crate) fn read(&self) -> Vec<Raw> {
        let end = self.head.load(Acquire);
        let start = end.saturating_sub(SLOTS as u64).max(self.cleared.load(Relaxed));
        let mut read: Vec<Raw> = Vec::with_capacity(end.saturating_sub(start) as usize);
        for number in start..end {
            if let Some(slot) = self.slots.get(number as usize % SLOTS) {
                let (series, value) = (slot.series.load(Relaxed), slot.value.load(Relaxed));
                read.push(Raw { series, value, at_ns: slot.at_ns.load(Relaxed) });
            }
        }
        fence(Acquire);
        // The record with this number may be half written, over the one that had its slot before.
        let writing = self.head.load(Relaxed);
        let overwritten = (writing + 1).saturating_sub(SLOTS as u64).saturating_sub(start);
        read.drain(..(overwritten as usize).min(read.len()));
        read
    }

    /// How many records there are to read.
    pub(crate) fn len(&self) -> usize {
        let (head, cleared) = (self.head.load(Relaxed), self.cleared.load(Relaxed));
        head.saturating_sub(cleared).min(SLOTS as u64 - 1) as usize
    }

    /// Forgets what was written so far.
    pub(crate) fn clear(&self) {
        self.cleared.store(self.head.load(Relaxed), Relaxed);
    }
}

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests {
    use super::*;

    fn raw(n: u64) -> Raw {
        Raw { series: n, value: n, at_ns: n }
    }

    #[test]
    fn the_newest_are_kept_in_order() {
        let ring = Ring::default();
        assert!(ring.read().is_empty());
        (0..5000).for_each(|n| ring.push(raw(n)));
        let read = ring.read();
        // One less than there are slots: the oldest might be being written over.
        assert_eq!(read.len(), SLOTS - 1);
        assert_eq!((read.first(), read.last()), (Some(&raw(5001 - SLOTS as u64)), Some(&raw(4999))));
        ring.clear();
        assert!(ring.read().is_empty());
        ring.push(raw(7));
        assert_eq!(ring.read(), [raw(7)]);
    }
}

#[cfg(test)]
#[cfg(mcpscope_loom)]
mod loom_tests {
    use loom::sync::Arc;

    use super::*;

    #[test]
    fn loom_no_record_is_read_that_was_not_written() {
        loom::model(|| {
            let ring = Arc::new(Ring::default());
            let writer = Arc::clone(&ring);
            let thread = loom::thread::spawn(move || {
                for n in 1..=4 {
                    writer.push(Raw { series: n, value: n, at_ns: n });
                }
            });
            let read = ring.read();
            assert!(read.iter().all(|raw| raw.series == raw.value && raw.value == raw.at_ns && raw.series > 0));
            assert!(read.windows(2).all(|pair| pair[0].series + 1 == pair[1].series));
            thread.join().unwrap();
        });
    }
}
