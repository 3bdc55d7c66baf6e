//! What is kept of the records that had to make room: those that failed, and the slowest of each operation.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::FixedState;

use super::shard::{Position, Shard};
use super::{lock, try_lock};
use crate::packed::{self, Head};

/// Slowest records of an operation.
const SLOWEST: usize = 5;
/// Most operations of which the slowest are kept.
const MAX_OPERATIONS: usize = 256;
/// Places for what is known about operations without a lock.
const PLACES: usize = 256;

/// Who writes never waits for it: what finds it taken is let go, but for errors, which have a second place for that.
#[derive(Debug)]
pub(crate) struct Reserve {
    errors: [Mutex<Shard>; 2],
    /// What is known about operations without the lock, by a part of their hash.
    known: [Known; PLACES],
    slowest: Mutex<Slowest>,
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
struct Slowest {
    operations: HashMap<u64, Operation, FixedState>,
    /// Counts records that were kept.
    kept: u64,
    bytes: usize,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Operation {
    /// When one of its records was kept last, counted in records.
    last: u64,
    slowest: Vec<Slow>,
}

#[derive(Debug)]
struct Slow {
    duration_ns: u64,
    record: Box<[u8]>,
}

impl Reserve {
    pub(crate) fn new(max_records: usize, max_bytes: usize) -> Self {
        let errors = || Mutex::new(Shard::new(max_records.div_ceil(8), max_bytes / 4));
        let slowest = Slowest { operations: HashMap::default(), kept: 0, bytes: 0, max_bytes: max_bytes / 2 };
        Self {
            errors: [errors(), errors()],
            known: [(); PLACES].map(|()| Known::default()),
            slowest: Mutex::new(slowest),
        }
    }

    /// Whether it keeps a record that has to make room.
    pub(crate) fn offer(&self, record: &[u8]) -> bool {
        let Some(head) = Head::read(record).filter(|head| !head.late) else { return false };
        if head.is_failure() {
            // Both hold equally many, and a reader has one of them at a time.
            let first = usize::from(head.duration_ns % 2 == 0);
            let errors = [&self.errors[first], &self.errors[1 - first]];
            return errors.into_iter().find_map(try_lock).is_some_and(|mut errors| errors.push(record, |_| {}).is_ok());
        }
        let Some(operation) = packed::operation(record).map(hash) else { return false };
        let known = &self.known[operation as usize % PLACES];
        let is_fast = || head.duration_ns <= known.at_least_ns.load(Ordering::Relaxed);
        if known.operation.load(Ordering::Relaxed) == operation && is_fast() {
            return false;
        }
        let Some(mut slowest) = try_lock(&self.slowest) else { return false };
        let is_kept = slowest.offer(operation, head.duration_ns, record);
        known.operation.store(operation, Ordering::Relaxed);
        known.at_least_ns.store(slowest.at_least(operation), Ordering::Relaxed);
        is_kept
    }

    pub(crate) fn copy(&self, bytes: &mut Vec<u8>, lengths: &mut Vec<usize>) {
        for errors in &self.errors {
            lock(errors).copy(Position::default(), u64::MAX, bytes, lengths);
        }
        for slow in lock(&self.slowest).operations.values().flat_map(|operation| &operation.slowest) {
            bytes.extend_from_slice(&slow.record);
            lengths.push(slow.record.len());
        }
    }

    pub(crate) fn len(&self) -> usize {
        let errors: usize = self.errors.iter().map(|errors| lock(errors).len()).sum();
        errors + lock(&self.slowest).operations.values().map(|operation| operation.slowest.len()).sum::<usize>()
    }

    pub(crate) fn clear(&self) {
        self.errors.iter().for_each(|errors| lock(errors).clear());
        let mut slowest = lock(&self.slowest);
        slowest.operations.clear();
        slowest.bytes = 0;
        self.known.iter().for_each(|known| known.operation.store(0, Ordering::Relaxed));
    }
}

impl Slowest {
    fn offer(&mut self, operation: u64, duration_ns: u64, record: &[u8]) -> bool {
        if record.len() > self.max_bytes {
            return false;
        }
        let found = self.operations.get(&operation).map_or(&[][..], |operation| &operation.slowest);
        let fastest = found.iter().enumerate().min_by_key(|(_, slow)| slow.duration_ns);
        let replaced = match fastest {
            Some((_, slow)) if found.len() >= SLOWEST && slow.duration_ns >= duration_ns => return false,
            Some((at, _)) if found.len() >= SLOWEST => Some(at),
            _ => None,
        };
        self.kept += 1;
        let kept = self.kept;
        let entry = self.operations.entry(operation).or_default();
        entry.last = kept;
        if let Some(at) = replaced {
            self.bytes -= entry.slowest.swap_remove(at).record.len();
        }
        entry.slowest.push(Slow { duration_ns, record: record.into() });
        self.bytes += record.len();
        while self.operations.len() > MAX_OPERATIONS || self.bytes > self.max_bytes {
            self.forget();
        }
        true
    }

    /// Lets go of the operation of which nothing was kept for the longest time: names can be invented.
    #[cold]
    fn forget(&mut self) {
        let Some(oldest) = self.operations.iter().min_by_key(|(_, operation)| operation.last).map(|(hash, _)| *hash)
        else {
            return;
        };
        if let Some(forgotten) = self.operations.remove(&oldest) {
            self.bytes -= forgotten.slowest.iter().map(|slow| slow.record.len()).sum::<usize>();
        }
    }

    /// What a record of an operation has to take longer than.
    fn at_least(&self, operation: u64) -> u64 {
        let slowest = self.operations.get(&operation).map_or(&[][..], |operation| &operation.slowest);
        let fastest = slowest.iter().map(|slow| slow.duration_ns).min();
        fastest.filter(|_| slowest.len() >= SLOWEST).unwrap_or(0)
    }
}

fn hash([server, name]: [&[u8]; 2]) -> u64 {
    let mut hasher = FixedState::default().build_hasher();
    hasher.write(server);
    hasher.write(name);
    hasher.finish()
}
