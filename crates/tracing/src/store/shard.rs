//! The newest records, one behind the other in one block of memory.

use std::collections::VecDeque;
use std::ops::Range;

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
    /// Records of whole traces.
    traces: usize,
    max_traces: usize,
    max_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    at: u32,
    length: u32,
    spans: u16,
    /// Of a span that ended late: no trace of its own.
    late: bool,
}

impl Place {
    const fn range(self) -> Range<usize> {
        self.at as usize..self.at as usize + self.length as usize
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
    pub(crate) fn new(max_traces: usize, max_bytes: usize) -> Self {
        Self {
            block: Vec::new(),
            places: VecDeque::new(),
            bytes: 0,
            spans: 0,
            traces: 0,
            gone: Position::default(),
            max_traces,
            // Places have 32 bits.
            max_bytes: max_bytes.min(u32::MAX as usize),
        }
    }

    /// Keeps a record; `evicted` sees each that makes room for it.
    pub(crate) fn push(&mut self, record: &[u8], mut evicted: impl FnMut(&[u8])) -> Result<(), NotStored> {
        let Some(head) = Head::read(record) else { return Err(NotStored) };
        if record.len() > self.max_bytes || self.max_traces == 0 {
            return Err(NotStored);
        }
        while !head.late && self.traces >= self.max_traces {
            self.evict(&mut evicted);
        }
        let at = loop {
            match self.find(record.len()) {
                Some(at) => break at,
                None if self.block.len() < self.max_bytes => self.grow(record.len()),
                None => self.evict(&mut evicted),
            }
        };
        let Some(place) = self.block.get_mut(at..at + record.len()) else { return Err(NotStored) };
        place.copy_from_slice(record);
        let Head { spans, late, .. } = head;
        // Both are below the limit.
        self.places.push_back(Place { at: at as u32, length: record.len() as u32, spans, late });
        self.bytes += record.len();
        self.spans += u64::from(spans);
        self.traces += usize::from(!late);
        Ok(())
    }

    /// Where there is room for so many bytes.
    fn find(&self, bytes: usize) -> Option<usize> {
        let (Some(oldest), Some(newest)) = (self.places.front(), self.places.back()) else {
            return (bytes <= self.block.len()).then_some(0);
        };
        let (first, next) = (oldest.at as usize, newest.range().end);
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
        self.bytes -= oldest.length as usize;
        self.spans -= u64::from(oldest.spans);
        self.traces -= usize::from(!oldest.late);
        self.gone = Position { records: self.gone.records + 1, spans: self.gone.spans + u64::from(oldest.spans) };
    }

    /// Moves everything to a block that is a little larger, with room for so many bytes more if it may be that large. A little,
    /// because the number of records is what limits most blocks in the end, and this one stays.
    #[cold]
    fn grow(&mut self, bytes: usize) {
        const LEAST: usize = 4 << 10;
        let wanted = (self.block.len() + self.block.len() / 16).max(self.bytes + bytes).max(LEAST).min(self.max_bytes);
        let mut block = Vec::with_capacity(wanted);
        for place in &mut self.places {
            let at = block.len() as u32;
            block.extend_from_slice(self.block.get(place.range()).unwrap_or_default());
            place.at = at;
        }
        block.resize(wanted, 0);
        self.block = block;
    }

    /// The position of the oldest record: behind all that is gone.
    pub(crate) const fn gone(&self) -> Position {
        self.gone
    }

    /// The position behind the newest record.
    pub(crate) fn end(&self) -> Position {
        let Position { records, spans } = self.gone;
        Position { records: records + self.places.len() as u64, spans: spans + self.spans }
    }

    /// The number of traces; spans that ended late belong to one.
    pub(crate) fn len(&self) -> usize {
        self.traces
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
            lengths.push(place.length as usize);
        }
        (end, missed)
    }

    pub(crate) fn clear(&mut self) {
        self.gone = self.end();
        (self.bytes, self.spans, self.traces) = (0, 0, 0);
        self.places.clear();
    }
}
