//! Identifiers, drawn by each thread on its own, so that spans of different threads share nothing.

use std::cell::Cell;
use std::num::{NonZeroU64, NonZeroU128};
use std::sync::atomic::{AtomicU64, Ordering};

use mcpscope_core::{SpanId, TraceId};

/// Where the identifiers of one tracer come from, and in which order its threads go round the store.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// No other one ever has it.
    number: u64,
    seed: u64,
    /// Blocks of numbers that threads have taken.
    blocks: AtomicU64,
}

/// A number that only one span has, from which its ids follow: to know them takes longer than to draw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drawn(u64);

/// The numbers of all sequences.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// What this thread has of the sequence that it used last.
#[derive(Clone, Copy)]
struct Last {
    /// 0 is none.
    sequence: u64,
    /// What it draws from comes next.
    next: u64,
    /// One for each store.
    turns: [usize; 2],
}

thread_local! {
    static LAST: Cell<Last> = const { Cell::new(Last { sequence: 0, next: 0, turns: [0; 2] }) };
}

/// How many a thread takes for itself at once: so many that this is rare, and so few that there are as many blocks.
const BLOCK_BITS: u32 = 32;

impl Sequence {
    pub(crate) fn new(seed: u64) -> Self {
        Self { number: NUMBERS.fetch_add(1, Ordering::Relaxed), seed, blocks: AtomicU64::new(0) }
    }

    /// The number of a span that is new.
    #[inline]
    pub(crate) fn draw(&self) -> Drawn {
        Drawn(self.take(1))
    }

    /// The number of a root that is new, and of the trace that begins with it.
    #[inline]
    pub(crate) fn draw_root(&self) -> Drawn {
        Drawn(self.take(3))
    }

    /// The id of a span.
    #[inline]
    pub(crate) fn span_id(&self, drawn: Drawn) -> SpanId {
        SpanId(self.mix(drawn.0))
    }

    /// The id of the trace that begins with a root.
    #[inline]
    pub(crate) fn trace_id(&self, root: Drawn) -> TraceId {
        let high = u128::from(self.mix(root.0 + 2).get()) << 64;
        TraceId(NonZeroU128::from(self.mix(root.0 + 1)) | high)
    }

    /// The lower half of [`Sequence::trace_id`].
    #[inline]
    pub(crate) fn trace_id_low(&self, root: Drawn) -> u64 {
        self.mix(root.0 + 1).get()
    }

    /// Counts the traces that this thread gives to a store, from another number in each thread. A span that comes late is none,
    /// so that no store gets more of them here than there.
    pub(crate) fn turn(&self, store: usize, is_trace: bool) -> usize {
        let mut last = self.last(0);
        let Some(turn) = last.turns.get_mut(store) else { return 0 };
        *turn = turn.wrapping_add(usize::from(is_trace));
        let turn = *turn;
        LAST.set(last);
        turn
    }

    /// Takes `count` numbers that nobody else gets; returns the first.
    #[inline]
    fn take(&self, count: u64) -> u64 {
        let mut last = self.last(count);
        let first = last.next;
        last.next += count;
        LAST.set(last);
        first
    }

    /// What this thread has, with `count` numbers left at least.
    #[inline]
    fn last(&self, count: u64) -> Last {
        let last = LAST.get();
        let is_enough = last.next >> BLOCK_BITS == (last.next + count) >> BLOCK_BITS;
        if last.sequence == self.number && is_enough { last } else { self.adopt() }
    }

    /// Takes a new block: for a thread that is new or comes back from another sequence, or has used up the one that it had.
    #[cold]
    fn adopt(&self) -> Last {
        let block = self.blocks.fetch_add(1, Ordering::Relaxed);
        let last = Last { sequence: self.number, next: block << BLOCK_BITS, turns: [block as usize * 3; 2] };
        LAST.set(last);
        last
    }

    /// Number `n` of a splitmix64 sequence (Steele, Lea and Flood, 2014), which is as good as random and needs no state but `n`.
    /// Each `n` has a number of its own; the one that has 0 gets another.
    #[inline]
    fn mix(&self, n: u64) -> NonZeroU64 {
        let mut z = self.seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        NonZeroU64::new(z ^ (z >> 31)).unwrap_or(NonZeroU64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_number_is_drawn_twice_by_threads_that_change_between_sequences() {
        let sequences = [Sequence::new(7), Sequence::new(7)];
        let draw = || {
            let drawn = |n: usize| (n % 2, sequences[n % 2].span_id(sequences[n % 2].draw_root()));
            (0..3000).map(drawn).collect::<Vec<_>>()
        };
        let all: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(draw)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    }

    #[test]
    fn a_thread_takes_a_new_block_when_one_is_used_up() {
        let sequence = Sequence::new(7);
        assert_eq!((sequence.turn(0, true), sequence.draw(), sequence.turn(0, true)), (1, Drawn(0), 2));
        assert_eq!((sequence.turn(1, true), sequence.turn(1, false)), (1, 1));
        sequence.take((1 << BLOCK_BITS) - 3);
        assert_eq!(sequence.draw_root(), Drawn(1 << BLOCK_BITS), "two are left, three are wanted");
        assert_eq!(std::thread::scope(|scope| scope.spawn(|| sequence.draw()).join().unwrap()), Drawn(2 << BLOCK_BITS));
    }
}
