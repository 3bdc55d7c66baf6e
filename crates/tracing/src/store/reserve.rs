//! What is kept of the records that had to make room: those that failed, and the slowest of each operation.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::FixedState;

use super::shard::{Budget, Position, Shard};
use super::{lock, try_lock};
use crate::packed::{self, Head};
use crate::record::Status;

/// Slowest records of an operation.
const SLOWEST: usize = 5;
/// Most operations of which the slowest are kept: those that come first.
const MAX_OPERATIONS: usize = 256;
/// Places for what is known about operations without a lock.
const PLACES: usize = 256;

/// Who writes never waits for it: what finds it taken is let go.
#[derive(Debug)]
pub(crate) struct Reserve {
    /// What is known about operations without the lock, by a part of their hash.
    known: [Known; PLACES],
    kept: Mutex<Kept>,
}

/// The operation that came last of those that share the place. The two are not read as one: that costs a record its place, or
/// a look at what is kept, where two operations meet.
#[derive(Debug, Default)]
struct Known {
    operation: AtomicU64,
    /// A record that took no longer than this is none of the slowest.
    at_least_ns: AtomicU64,
}

#[derive(Debug)]
struct Kept {
    errors: Shard,
    slowest: HashMap<u64, Vec<Slow>, FixedState>,
    slowest_bytes: usize,
    max_slowest_bytes: usize,
}

#[derive(Debug)]
struct Slow {
    duration_ns: u64,
    record: Box<[u8]>,
}

impl Reserve {
    pub(crate) fn new(max_records: usize, max_bytes: usize) -> Self {
        let half = max_bytes / 2;
        Self {
            known: [(); PLACES].map(|()| Known::default()),
            kept: Mutex::new(Kept {
                errors: Shard::new(max_records.div_ceil(4), half),
                slowest: HashMap::with_hasher(FixedState::default()),
                slowest_bytes: 0,
                max_slowest_bytes: half,
            }),
        }
    }

    /// Whether it keeps a record that has to make room.
    pub(crate) fn offer(&self, record: &[u8]) -> bool {
        let Some(head) = Head::read(record).filter(|head| !head.late) else { return false };
        if matches!(head.status, Status::Error | Status::Timeout) {
            return try_lock(&self.kept)
                .is_some_and(|mut kept| kept.errors.push(record, &Budget::new(0), |_| {}).is_ok());
        }
        let Some(operation) = packed::operation(record).map(hash) else { return false };
        let known = &self.known[operation as usize % PLACES];
        let is_fast = || head.duration_ns <= known.at_least_ns.load(Ordering::Relaxed);
        if known.operation.load(Ordering::Relaxed) == operation && is_fast() {
            return false;
        }
        let Some(mut kept) = try_lock(&self.kept) else { return false };
        let is_kept = kept.offer_slow(operation, head.duration_ns, record);
        known.operation.store(operation, Ordering::Relaxed);
        known.at_least_ns.store(kept.slower_than(operation), Ordering::Relaxed);
        is_kept
    }

    pub(crate) fn copy(&self, bytes: &mut Vec<u8>, lengths: &mut Vec<usize>) {
        let kept = lock(&self.kept);
        kept.errors.copy(Position::default(), u64::MAX, bytes, lengths);
        for slow in kept.slowest.values().flatten() {
            bytes.extend_from_slice(&slow.record);
            lengths.push(slow.record.len());
        }
    }

    pub(crate) fn len(&self) -> usize {
        let kept = lock(&self.kept);
        kept.errors.len() + kept.slowest.values().map(Vec::len).sum::<usize>()
    }

    pub(crate) fn clear(&self) {
        let mut kept = lock(&self.kept);
        kept.errors.clear();
        kept.slowest.clear();
        kept.slowest_bytes = 0;
        self.known.iter().for_each(|known| known.operation.store(0, Ordering::Relaxed));
    }
}

impl Kept {
    fn offer_slow(&mut self, operation: u64, duration_ns: u64, record: &[u8]) -> bool {
        let is_known = self.slowest.contains_key(&operation);
        if !is_known && self.slowest.len() >= MAX_OPERATIONS {
            return false;
        }
        let slowest = self.slowest.entry(operation).or_default();
        let fastest = slowest.iter().enumerate().min_by_key(|(_, slow)| slow.duration_ns);
        let replaced = match fastest {
            Some((at, slow)) if slowest.len() >= SLOWEST => {
                if slow.duration_ns >= duration_ns {
                    return false;
                }
                Some((at, slow.record.len()))
            }
            _ => None,
        };
        let bytes = self.slowest_bytes - replaced.map_or(0, |(_, length)| length) + record.len();
        if bytes > self.max_slowest_bytes {
            return false;
        }
        self.slowest_bytes = bytes;
        let slow = Slow { duration_ns, record: record.into() };
        match replaced.and_then(|(at, _)| slowest.get_mut(at)) {
            Some(place) => *place = slow,
            None => slowest.push(slow),
        }
        true
    }

    /// What a record of an operation has to take longer than; no record takes long enough where there is no room.
    fn slower_than(&self, operation: u64) -> u64 {
        match self.slowest.get(&operation) {
            Some(slowest) if slowest.len() < SLOWEST => 0,
            Some(slowest) => slowest.iter().map(|slow| slow.duration_ns).min().unwrap_or(0),
            None => u64::MAX,
        }
    }
}

fn hash([server, name]: [&[u8]; 2]) -> u64 {
    let mut hasher = FixedState::default().build_hasher();
    hasher.write(server);
    hasher.write(name);
    hasher.finish()
}
