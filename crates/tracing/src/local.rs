//! What a thread has of its own, so that spans of different threads share nothing.

use std::cell::Cell;
use std::num::{NonZeroU64, NonZeroU128};
use std::sync::atomic::{AtomicU64, Ordering};

use mcpscope_core::{SpanId, TraceId};

/// Where the identifiers of one tracer come from, and the numbers of its threads.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// No other one ever has it.
    number: u64,
    seed: u64,
    threads: AtomicU64,
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
}

thread_local! {
    static LAST: Cell<Last> = const { Cell::new(Last { sequence: 0, next: 0 }) };
}

/// How many a thread can draw before it comes to those of the next thread: 35 years of a million each second.
const DRAWS_BITS: u32 = 50;

impl Sequence {
    pub(crate) fn new(seed: u64) -> Self {
        Self { number: NUMBERS.fetch_add(1, Ordering::Relaxed), seed, threads: AtomicU64::new(0) }
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

    /// The number of this thread; one that comes back from another sequence gets a new one.
    pub(crate) fn thread(&self) -> usize {
        (self.last().next >> DRAWS_BITS) as usize
    }

    /// Takes `count` numbers that nobody else gets; returns the first.
    #[inline]
    fn take(&self, count: u64) -> u64 {
        let mut last = self.last();
        let first = last.next;
        last.next += count;
        LAST.set(last);
        first
    }

    #[inline]
    fn last(&self) -> Last {
        let last = LAST.get();
        if last.sequence == self.number { last } else { self.adopt() }
    }

    /// A thread that comes back from another sequence gets new numbers.
    #[cold]
    fn adopt(&self) -> Last {
        let thread = self.threads.fetch_add(1, Ordering::Relaxed);
        Last { sequence: self.number, next: thread << DRAWS_BITS }
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
