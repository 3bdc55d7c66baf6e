//! Where traces are: the newest, and a reserve of those that failed or were slow.

mod reserve;
mod shard;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use mcpscope_core::SpanId;
use reserve::Reserve;
use shard::{Position, Shard};

use crate::packed::{self, Head};

/// Several small rings instead of one, so that a writer who meets a reader or another writer just takes the next. Each thread
/// goes round all of them, so that they hold equally many whoever wrote them, and the oldest make room.
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
    /// How many of them: not more than there may be records.
    used: usize,
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
    index: Vec<Entry>,
}

/// One of several records.
#[derive(Clone, Debug)]
struct Entry {
    /// When it ended, the how-manieth of its thread it was, and which one it is.
    key: (i64, u32, Option<SpanId>),
    /// Whether it is one of those that are kept longest.
    is_failure: bool,
    /// Whether it is a span that ended after its root.
    is_late: bool,
    place: Range<usize>,
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
        // Rounded up, so that the shards together always hold the newest `max_records`; readers cut the rest off.
        let used = max_records.clamp(1, SHARDS);
        let (records, bytes) = (max_records.div_ceil(used), (max_bytes - reserved) / used);
        Self {
            used,
            shards: [(); SHARDS].map(|()| Aligned(Mutex::new(Shard::new(records, bytes)))),
            reserve: with_reserve.then(|| Reserve::new(max_records, reserved)),
            max_records,
            refused_spans: AtomicU64::new(0),
        }
    }

    /// Keeps a record; the oldest of its shard make room. `turn` goes round the shards. Returns how many were let go for ever.
    pub(crate) fn push(&self, turn: usize, record: &[u8]) -> Result<usize, NotStored> {
        for offset in 0..self.used {
            let Some(mut shard) = try_lock(&self.shards[(turn.wrapping_add(offset)) % self.used].0) else { continue };
            let mut gone = 0;
            let pushed = shard.push(record, |evicted| {
                let reserved = self.reserve.as_ref().is_some_and(|reserve| reserve.offer(evicted));
                gone += usize::from(!reserved);
            });
            return pushed.map(|()| gone).inspect_err(|_| self.refuse(Head::spans(record)));
        }
        self.refuse(Head::spans(record));
        Err(NotStored)
    }

    /// Counts spans that found no place.
    #[cold]
    pub(crate) fn refuse(&self, spans: u16) {
        self.refused_spans.fetch_add(spans.into(), Ordering::Relaxed);
    }

    /// Copies of all records.
    pub(crate) fn records(&self) -> Records {
        let mut records = self.newest();
        self.add_reserve(&mut records);
        records
    }

    fn newest(&self) -> Records {
        let (mut records, mut lengths) = (Records::default(), Vec::new());
        for shard in &self.shards {
            lock(&shard.0).copy(Position::default(), u64::MAX, &mut records.bytes, &mut lengths);
        }
        records.add(&lengths);
        records.keep_newest(self.max_records);
        records
    }

    fn add_reserve(&self, records: &mut Records) {
        let Some(reserve) = &self.reserve else { return };
        let mut lengths = Vec::new();
        reserve.copy(&mut records.bytes, &mut lengths);
        records.add(&lengths);
        // What made room between the two copies is in both.
        records.index.dedup_by_key(|entry| entry.key);
    }

    /// A cursor behind the newest record.
    pub(crate) fn cursor(&self) -> Cursor {
        let positions = self.shards.each_ref().map(|shard| lock(&shard.0).end());
        Cursor { positions, refused_spans: self.refused_spans.load(Ordering::Relaxed), first: 0 }
    }

    /// Copies of what came since the last call with this cursor, about `max_spans` spans of it and at least one record, and what
    /// was gone already. The last tells whether there is more.
    pub(crate) fn newer(&self, cursor: &mut Cursor, max_spans: u64) -> (Records, Missed, bool) {
        let (mut records, mut lengths, mut missed) = (Records::default(), Vec::new(), Missed::default());
        let (mut left, first, mut more) = (max_spans, cursor.first, false);
        for index in (first..SHARDS).chain(0..first) {
            let position = &mut cursor.positions[index];
            let shard = lock(&self.shards[index].0);
            let (end, gone) = shard.copy(*position, left, &mut records.bytes, &mut lengths);
            missed.records += gone.records;
            missed.spans += gone.spans;
            left = left.saturating_sub(end.spans - position.spans - gone.spans);
            more |= end != shard.end();
            *position = end;
        }
        cursor.first = (first + 1) % SHARDS;
        let refused = self.refused_spans.load(Ordering::Relaxed);
        missed.spans += refused - std::mem::replace(&mut cursor.refused_spans, refused);
        records.add(&lengths);
        (records, missed, more)
    }

    /// How many spans [`newer`](Self::newer) would say were gone already, which it then does not say again. Nothing is copied.
    pub(crate) fn lost(&self, cursor: &mut Cursor) -> u64 {
        let mut spans = 0;
        for (shard, position) in self.shards.iter().zip(&mut cursor.positions) {
            let gone = lock(&shard.0).gone();
            if gone.records > position.records {
                spans += gone.spans - position.spans;
                *position = gone;
            }
        }
        let refused = self.refused_spans.load(Ordering::Relaxed);
        spans + (refused - std::mem::replace(&mut cursor.refused_spans, refused))
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
        let mut at = self.bytes.len() - lengths.iter().sum::<usize>();
        for length in lengths {
            let place = at..at + *length;
            at = place.end;
            let Some(record) = self.bytes.get(place.clone()) else { continue };
            let Some(head) = Head::read(record) else { continue };
            let key = (head.ended_ns(), Head::turn(record), packed::root(record));
            self.index.push(Entry { key, is_failure: head.is_failure(), is_late: head.late, place });
        }
        self.index.sort_by_key(|entry| entry.key);
    }

    /// Leaves out the oldest traces of those that are too many, as if they had made room already.
    fn keep_newest(&mut self, most: usize) {
        let traces = self.index.iter().filter(|entry| !entry.is_late).count();
        let mut too_many = traces.saturating_sub(most);
        self.index.retain(|entry| {
            let is_kept = too_many == 0 || entry.is_failure || entry.is_late;
            too_many = too_many.saturating_sub(usize::from(!entry.is_late));
            is_kept
        });
    }

    /// From the one that ended first to the newest.
    pub(crate) fn oldest_first(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.index.iter().filter_map(|entry| self.bytes.get(entry.place.clone()))
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

#[cfg(test)]
mod tests;
