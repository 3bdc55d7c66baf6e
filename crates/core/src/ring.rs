//! The newest N of something, written by many threads without waiting.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// Several small rings instead of one, so that a writer who meets a reader or another writer just takes the next.
const SHARDS: usize = 8;

/// A bounded store of the newest items, bounded in number and in weight.
///
/// Writers never wait: one who finds every shard taken gives up. Readers copy one shard at a time.
#[derive(Debug)]
pub struct Ring<T> {
    shards: Vec<Mutex<Shard<T>>>,
    next: AtomicU64,
    max_items: usize,
}

#[derive(Debug)]
struct Shard<T> {
    items: VecDeque<Item<T>>,
    weight: usize,
    max_items: usize,
    max_weight: usize,
}

#[derive(Debug)]
struct Item<T> {
    sequence: u64,
    weight: usize,
    value: T,
}

/// Where a reader of [`Ring::newer`] stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Everything before was given out.
    seen: u64,
    /// Everything before was numbered when the reader last looked.
    settled: u64,
}

/// The item was not stored because every shard was taken at that moment, or its weight alone is over the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotStored;

impl<T: Clone> Ring<T> {
    /// A ring for at most `max_items` items whose weights add up to at most `max_weight`.
    #[must_use]
    pub fn new(max_items: usize, max_weight: usize) -> Self {
        let shards = max_items.clamp(1, SHARDS);
        let shard = || {
            Mutex::new(Shard {
                items: VecDeque::new(),
                weight: 0,
                // Rounded up, so that the shards together always hold the newest `max_items`; readers cut the rest off.
                max_items: max_items.div_ceil(shards),
                max_weight: max_weight / shards,
            })
        };
        Self { shards: (0..shards).map(|_| shard()).collect(), next: AtomicU64::new(0), max_items }
    }

    /// Stores an item; the oldest of its shard make room. Returns how many those were.
    ///
    /// # Errors
    /// [`NotStored`]: the caller counts the loss.
    pub fn push(&self, value: T, weight: usize) -> Result<usize, NotStored> {
        let sequence = self.next.fetch_add(1, Ordering::AcqRel);
        for offset in 0..self.shards.len() as u64 {
            let index = (sequence + offset) % self.shards.len() as u64;
            let Some(mut shard) = self.shards.get(index as usize).and_then(try_lock) else { continue };
            if weight > shard.max_weight || shard.max_items == 0 {
                return Err(NotStored);
            }
            let mut evicted = 0;
            while shard.items.len() >= shard.max_items || shard.weight + weight > shard.max_weight {
                let Some(oldest) = shard.items.pop_front() else { break };
                shard.weight -= oldest.weight;
                evicted += 1;
            }
            shard.weight += weight;
            shard.items.push_back(Item { sequence, weight, value });
            return Ok(evicted);
        }
        Err(NotStored)
    }

    /// Copies of all items, newest first.
    #[must_use]
    pub fn newest_first(&self) -> Vec<T> {
        let mut items = Vec::new();
        for shard in &self.shards {
            items.extend(lock(shard).items.iter().map(|item| (item.sequence, item.value.clone())));
        }
        items.sort_unstable_by_key(|(sequence, _)| std::cmp::Reverse(*sequence));
        items.into_iter().take(self.max_items).map(|(_, value)| value).collect()
    }

    /// Where a reader stands who wants what comes from now on.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        let next = self.next.load(Ordering::Acquire);
        Cursor { seen: next, settled: next }
    }

    /// What came since the last call with this cursor, oldest first, and how many were gone already.
    ///
    /// An item is given out by the second call after it was pushed: one whose push was still under way at the first has had
    /// the time between the two to arrive. One that takes longer counts as missed; none is given twice.
    pub fn newer(&self, cursor: &mut Cursor) -> (Vec<T>, u64) {
        let range = cursor.seen..cursor.settled;
        *cursor = Cursor { seen: cursor.settled, settled: self.next.load(Ordering::Acquire) };
        if range.is_empty() {
            return (Vec::new(), 0);
        }
        let mut items = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            let wanted = shard.items.iter().filter(|item| range.contains(&item.sequence));
            items.extend(wanted.map(|item| (item.sequence, item.value.clone())));
        }
        items.sort_unstable_by_key(|(sequence, _)| *sequence);
        let missed = (range.end - range.start).saturating_sub(items.len() as u64);
        (items.into_iter().map(|(_, value)| value).collect(), missed)
    }

    /// The number of items held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).items.len()).sum::<usize>().min(self.max_items)
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all items.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.items.clear();
            shard.weight = 0;
        }
    }
}

// A panic while a shard was held cannot leave it inconsistent beyond a wrong weight: going on is better than losing it.
fn lock<T>(shard: &Mutex<Shard<T>>) -> MutexGuard<'_, Shard<T>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn try_lock<T>(shard: &Mutex<Shard<T>>) -> Option<MutexGuard<'_, Shard<T>>> {
    match shard.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_exactly_the_newest() {
        for capacity in [1, 3, 8, 10, 1000] {
            let ring = Ring::new(capacity, usize::MAX);
            for n in 0..2500 {
                ring.push(n, 1).unwrap();
            }
            assert_eq!(ring.len(), capacity);
            assert_eq!(ring.newest_first(), (2500 - capacity..2500).rev().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_reader_gets_each_item_once_and_knows_what_it_missed() {
        let ring = Ring::new(10, usize::MAX);
        ring.push(0, 1).unwrap();
        let mut cursor = ring.cursor();
        for n in 1..=3 {
            ring.push(n, 1).unwrap();
        }
        assert_eq!(ring.newer(&mut cursor), (vec![], 0), "they may still be under way");
        ring.push(4, 1).unwrap();
        assert_eq!(ring.newer(&mut cursor), (vec![1, 2, 3], 0));
        assert_eq!(ring.newer(&mut cursor), (vec![4], 0));
        for n in 5..25 {
            ring.push(n, 1).unwrap();
        }
        assert_eq!(ring.newer(&mut cursor), (vec![], 0));
        let (items, missed) = ring.newer(&mut cursor);
        // The shards hold a few more than the newest ten.
        assert_eq!(items.len() as u64 + missed, 20);
        assert_eq!(items, (25 - items.len()..25).collect::<Vec<_>>());
    }

    #[test]
    fn a_reader_beside_writers_accounts_for_every_item() {
        let ring = Ring::new(100_000, usize::MAX);
        let mut cursor = ring.cursor();
        let mut read: Vec<u64> = Vec::new();
        let mut missed = 0;
        let mut look = |cursor: &mut Cursor| {
            let (items, lost) = ring.newer(cursor);
            read.extend(items);
            missed += lost;
        };
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4_u64)
                .map(|writer| {
                    let ring = &ring;
                    scope.spawn(move || (0..5_000).filter(|n| ring.push(writer * 5_000 + n, 1).is_err()).count())
                })
                .collect();
            while !writers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                look(&mut cursor);
            }
        });
        look(&mut cursor);
        look(&mut cursor);
        assert_eq!(read.len() as u64 + missed, 20_000);
        read.sort_unstable();
        read.dedup();
        assert_eq!(read.len() as u64 + missed, 20_000, "none twice");
    }

    #[test]
    fn is_bounded_in_weight() {
        let ring = Ring::new(1000, 800);
        for n in 0..100 {
            ring.push(n, 50).unwrap();
        }
        assert_eq!(ring.len(), 16);
        assert_eq!(ring.push(0, 101), Err(NotStored));
        ring.clear();
        assert!(ring.is_empty());
        assert_eq!(ring.push(0, 100), Ok(0));
    }

    #[test]
    fn a_reader_that_holds_one_shard_stops_no_writer() {
        let ring = Ring::new(80, usize::MAX);
        let _reader = ring.shards[0].lock().unwrap();
        for n in 0..8 {
            assert_eq!(ring.push(n, 1), Ok(0));
        }
    }

    #[test]
    fn a_writer_that_finds_all_taken_gives_up() {
        let ring = Ring::new(80, usize::MAX);
        let _all: Vec<_> = ring.shards.iter().map(|shard| shard.lock().unwrap()).collect();
        assert_eq!(ring.push(1, 1), Err(NotStored));
    }
}
