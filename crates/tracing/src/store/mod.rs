//! Where traces are: the newest, and a reserve of those that failed or were slow.

mod reserve;
mod shard;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use reserve::Reserve;
use shard::{Budget, Position, Shard};

use crate::packed::Head;

/// Each thread has a ring of its own, as long as there are no more threads than that; who meets a reader or another writer
/// just takes the next.
const SHARDS: usize = 8;

/// The trace was not kept because every part of the store was taken at that moment, or because it is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotStored;

/// A bounded store of the newest records, bounded in number and in bytes.
///
/// Writers never wait: one who finds every shard taken gives up. Readers copy one shard at a time.
#[derive(Debug)]
pub(crate) struct Store {
    shards: [Aligned; SHARDS],
    /// What every shard may take a part of beyond what is its own.
    common: Budget,
    reserve: Option<Reserve>,
    max_records: usize,
    /// Spans that found no place.
    refused_spans: AtomicU64,
}

/// On cache lines of its own, two of them because processors fetch them in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Aligned(Mutex<Shard>);

/// Where a reader of the newest traces stands ([`Tracer::newer`](crate::Tracer::newer)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    positions: [Position; SHARDS],
    refused_spans: u64,
    /// The shard to look at first, so that each has its turn.
    first: usize,
}

/// Copies of records.
#[derive(Debug, Default)]
pub(crate) struct Records {
    bytes: Vec<u8>,
    /// When each ended, and where it is.
    index: Vec<(i64, Range<usize>)>,
}

/// What a reader missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Missed {
    pub(crate) records: u64,
    pub(crate) spans: u64,
}

impl Store {
    /// A store for at most `max_records` of at most `max_bytes` altogether. Of these a quarter is set aside where there is a
    /// reserve.
    pub(crate) fn new(max_records: usize, max_bytes: usize, with_reserve: bool) -> Self {
        let reserved = if with_reserve { max_bytes / 4 } else { 0 };
        let bytes = max_bytes - reserved;
        let own = bytes / 2 / SHARDS;
        Self {
            // All that were kept last may be of one thread. Readers cut off what is too many.
            shards: [(); SHARDS].map(|()| Aligned(Mutex::new(Shard::new(max_records, own)))),
            common: Budget::new(bytes - own * SHARDS),
            reserve: with_reserve.then(|| Reserve::new(max_records, reserved)),
            max_records,
            refused_spans: AtomicU64::new(0),
        }
    }

    /// Keeps a record; the oldest of its shard make room. Returns how many were let go for ever.
    pub(crate) fn push(&self, thread: usize, record: &[u8]) -> Result<usize, NotStored> {
        for offset in 0..SHARDS {
            let Some(mut shard) = try_lock(&self.shards[(thread.wrapping_add(offset)) % SHARDS].0) else { continue };
            let mut gone = 0;
            let pushed = shard.push(record, &self.common, |evicted| {
                let reserved = self.reserve.as_ref().is_some_and(|reserve| reserve.offer(evicted));
                gone += usize::from(!reserved);
            });
            return pushed.map(|()| gone).inspect_err(|_| self.refused(record));
        }
        self.refused(record);
        Err(NotStored)
    }

    #[cold]
    fn refused(&self, record: &[u8]) {
        self.refused_spans.fetch_add(Head::spans(record).into(), Ordering::Relaxed);
    }

    /// Copies of all records.
    pub(crate) fn records(&self) -> Records {
        let (mut records, mut lengths) = (Records::default(), Vec::new());
        for shard in &self.shards {
            lock(&shard.0).copy(Position::default(), u64::MAX, &mut records.bytes, &mut lengths);
        }
        records.add(&lengths);
        records.keep_newest(self.max_records);
        if let Some(reserve) = &self.reserve {
            lengths.clear();
            reserve.copy(&mut records.bytes, &mut lengths);
            records.add(&lengths);
            records.index.sort_by_key(|(ended, _)| *ended);
        }
        records
    }

    /// A cursor behind the newest record.
    pub(crate) fn cursor(&self) -> Cursor {
        let positions = self.shards.each_ref().map(|shard| lock(&shard.0).end());
        Cursor { positions, refused_spans: self.refused_spans.load(Ordering::Relaxed), first: 0 }
    }

    /// Copies of what came since the last call with this cursor, about `max_spans` spans of it and at least one record, and what
    /// was gone already.
    pub(crate) fn newer(&self, cursor: &mut Cursor, max_spans: u64) -> (Records, Missed) {
        let (mut records, mut lengths, mut missed) = (Records::default(), Vec::new(), Missed::default());
        let (mut left, first) = (max_spans, cursor.first);
        for index in (first..SHARDS).chain(0..first) {
            let position = &mut cursor.positions[index];
            let (end, gone) = lock(&self.shards[index].0).copy(*position, left, &mut records.bytes, &mut lengths);
            missed.records += gone.records;
            missed.spans += gone.spans;
            left = left.saturating_sub(end.spans - position.spans - gone.spans);
            *position = end;
            if left == 0 {
                cursor.first = (index + 1) % SHARDS;
                break;
            }
        }
        let refused = self.refused_spans.load(Ordering::Relaxed);
        missed.spans += refused - std::mem::replace(&mut cursor.refused_spans, refused);
        records.add(&lengths);
        (records, missed)
    }

    /// The number of records held, those of the reserve too.
    pub(crate) fn len(&self) -> usize {
        let newest = self.shards.iter().map(|shard| lock(&shard.0).len()).sum::<usize>().min(self.max_records);
        newest + self.reserve.as_ref().map_or(0, Reserve::len)
    }

    /// Forgets all records.
    pub(crate) fn clear(&self) {
        self.shards.iter().for_each(|shard| lock(&shard.0).clear());
        self.reserve.iter().for_each(Reserve::clear);
    }
}

impl Records {
    /// Takes note of records that were appended, and sorts all by when they ended.
    fn add(&mut self, lengths: &[usize]) {
        let mut at = self.index.iter().map(|(_, range)| range.end).max().unwrap_or(0);
        for length in lengths {
            let range = at..at + *length;
            at = range.end;
            let ended = self.bytes.get(range.clone()).and_then(Head::read).map_or(i64::MIN, |head| head.ended_ns());
            self.index.push((ended, range));
        }
        self.index.sort_by_key(|(ended, _)| *ended);
    }

    fn keep_newest(&mut self, most: usize) {
        let too_many = self.index.len().saturating_sub(most);
        self.index.drain(..too_many);
    }

    /// From the one that ended first to the newest.
    pub(crate) fn oldest_first(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.index.iter().filter_map(|(_, range)| self.bytes.get(range.clone()))
    }
}

// A panic while a shard was held cannot leave it in pieces that matter: what is no record is not read. Going on is better than
// losing it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
