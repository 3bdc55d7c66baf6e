//! The newest records, one behind the other in one block of memory.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use super::NotStored;
use crate::packed::Head;

/// Records of bytes, the oldest first, bounded in number and in bytes.
///
/// They stand in a block that grows to its limit and stays: to keep a record is to copy it, and allocates nothing. One that does
/// not fit before the end of the block stands at its beginning.
#[derive(Debug)]
pub(crate) struct Shard {
    block: Vec<u8>,
    /// Where each record stands, the oldest first.
    places: VecDeque<Place>,
    /// Bytes of all records.
    bytes: usize,
    /// Spans of all records.
    spans: u64,
    /// All that was ever let go: the position of the oldest.
    gone: Position,
    max_records: usize,
    /// How large the block may be; grows by what it gets of a common budget.
    max_bytes: usize,
}

/// Bytes that several shards share: who needs them first has them for good.
#[derive(Debug)]
pub(crate) struct Budget(AtomicUsize);

impl Budget {
    pub(crate) const fn new(bytes: usize) -> Self {
        Self(AtomicUsize::new(bytes))
    }

    /// Takes as many as there are, but no more than that.
    fn take(&self, most: usize) -> usize {
        let taken = self.0.try_update(Relaxed, Relaxed, |left| Some(left - left.min(most)));
        taken.map_or(0, |before| before.min(most))
    }
}

#[derive(Clone, Copy, Debug)]
struct Place {
    at: usize,
    length: usize,
    spans: u16,
}

impl Place {
    const fn range(self) -> Range<usize> {
        self.at..self.at + self.length
    }
}

/// A place in the sequence of all records of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Records before it.
    pub(crate) records: u64,
    /// Spans before it.
    pub(crate) spans: u64,
}

impl Shard {
    pub(crate) fn new(max_records: usize, max_bytes: usize) -> Self {
        Self {
            block: Vec::new(),
            places: VecDeque::new(),
            bytes: 0,
            spans: 0,
            gone: Position::default(),
            max_records,
            max_bytes,
        }
    }

    /// Keeps a record; `evicted` sees each that makes room for it.
    pub(crate) fn push(
        &mut self,
        record: &[u8],
        common: &Budget,
        mut evicted: impl FnMut(&[u8]),
    ) -> Result<(), NotStored> {
        if self.max_records == 0 {
            return Err(NotStored);
        }
        if self.places.len() >= self.max_records {
            self.evict(&mut evicted);
        }
        let at = loop {
            match self.find(record.len()) {
                Some(at) => break at,
                None if self.grow(record.len(), common) => {}
                None if self.places.is_empty() => return Err(NotStored),
                None => self.evict(&mut evicted),
            }
        };
        let Some(place) = self.block.get_mut(at..at + record.len()) else { return Err(NotStored) };
        place.copy_from_slice(record);
        let spans = Head::spans(record);
        self.places.push_back(Place { at, length: record.len(), spans });
        self.bytes += record.len();
        self.spans += u64::from(spans);
        Ok(())
    }

    /// Where there is room for so many bytes.
    fn find(&self, bytes: usize) -> Option<usize> {
        let (Some(oldest), Some(newest)) = (self.places.front(), self.places.back()) else {
            return (bytes <= self.block.len()).then_some(0);
        };
        let (first, next) = (oldest.at, newest.range().end);
        if newest.at < oldest.at {
            // The newest are at the beginning, and the oldest behind them.
            (next + bytes <= first).then_some(next)
        } else if next + bytes <= self.block.len() {
            Some(next)
        } else {
            (bytes <= first).then_some(0)
        }
    }

    fn evict(&mut self, evicted: &mut impl FnMut(&[u8])) {
        let Some(oldest) = self.places.pop_front() else { return };
        if let Some(record) = self.block.get(oldest.range()) {
            evicted(record);
        }
        self.bytes -= oldest.length;
        self.spans -= u64::from(oldest.spans);
        self.gone = Position { records: self.gone.records + 1, spans: self.gone.spans + u64::from(oldest.spans) };
    }

    /// Moves everything to a block that is larger by a quarter, with room for so many bytes more; or not, if there is no more.
    fn grow(&mut self, bytes: usize, common: &Budget) -> bool {
        const LEAST: usize = 16 << 10;
        let wanted = (self.block.len() + self.block.len() / 4).max(self.bytes + bytes).max(LEAST);
        self.max_bytes += common.take(wanted.saturating_sub(self.max_bytes));
        let wanted = wanted.min(self.max_bytes);
        if wanted <= self.block.len() {
            return false;
        }
        let mut block = Vec::with_capacity(wanted);
        for place in &mut self.places {
            let at = block.len();
            block.extend_from_slice(self.block.get(place.range()).unwrap_or_default());
            place.at = at;
        }
        block.resize(wanted, 0);
        self.block = block;
        true
    }

    /// The position behind the newest record.
    pub(crate) fn end(&self) -> Position {
        let Position { records, spans } = self.gone;
        Position { records: records + self.places.len() as u64, spans: spans + self.spans }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Appends the records from `from` on, and how long each is, as long as they have no more spans than that; the first one
    /// whatever it has if `bytes` is empty. Returns the position behind the last of them, and what was gone before the first.
    pub(crate) fn copy(
        &self,
        from: Position,
        max_spans: u64,
        bytes: &mut Vec<u8>,
        lengths: &mut Vec<usize>,
    ) -> (Position, Position) {
        let missed = Position {
            records: self.gone.records.saturating_sub(from.records),
            spans: self.gone.spans.saturating_sub(from.spans),
        };
        let begin = if missed.records > 0 { self.gone } else { from };
        // A position before what is gone is at the oldest.
        let skipped = usize::try_from(from.records.saturating_sub(self.gone.records)).unwrap_or(usize::MAX);
        let mut end = begin;
        for place in self.places.iter().skip(skipped) {
            let spans = end.spans + u64::from(place.spans);
            if spans - begin.spans > max_spans && !bytes.is_empty() {
                break;
            }
            end = Position { records: end.records + 1, spans };
            bytes.extend_from_slice(self.block.get(place.range()).unwrap_or_default());
            lengths.push(place.length);
        }
        (end, missed)
    }

    pub(crate) fn clear(&mut self) {
        self.gone = self.end();
        (self.bytes, self.spans) = (0, 0);
        self.places.clear();
    }
}
