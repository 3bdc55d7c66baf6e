//! What waits to go on, one way.

use std::collections::VecDeque;
use std::time::Instant;

use mcpscope_core::{FaultId, Injection};

use crate::touch::{Fate, Passage, Touch};

/// What waits to go on one way: messages that faults hold back, and those that must stay behind them.
///
/// It has no bound of its own: whoever fills it stops when [`Backlog::messages`] or [`Backlog::bytes`] says so.
#[derive(Debug)]
pub struct Backlog<T> {
    waiting: VecDeque<Waiting<T>>,
    bytes: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    passage: Passage,
    bytes: usize,
    item: T,
}

/// What a backlog has to give.
#[derive(Debug, PartialEq)]
pub enum Next<T> {
    /// This goes on, with what faults have done to it.
    Goes(T, Option<Touch>),
    /// This is lost.
    Lost(T),
    /// Nothing, until the faults change, something else comes, or it is this time; nothing at all if there is none.
    Nothing(Option<Instant>),
}

impl<T> Default for Backlog<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), bytes: 0 }
    }
}

impl<T> Backlog<T> {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a message waits that a fault has touched.
    #[must_use]
    pub fn has_touched(&self) -> bool {
        self.waiting.iter().any(|waiting| matches!(waiting.passage, Passage::Touched(_)))
    }

    /// How many messages wait.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.waiting.len()
    }

    /// How many bytes wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The faults that keep messages back, once for each message: those that have touched it and are live.
    pub fn held_by(&self, is_live: impl Fn(&Injection) -> bool) -> Vec<FaultId> {
        let touched = self.waiting.iter().filter_map(|waiting| match &waiting.passage {
            Passage::Touched(touch) => Some(touch),
            Passage::Now | Passage::Never => None,
        });
        let live = touched.flat_map(Touch::waits).filter(|injection| is_live(injection));
        live.map(|injection| injection.fault).collect()
    }

    /// What waits, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter().map(|waiting| &waiting.item)
    }

    /// This comes behind all that waits; it is so many bytes.
    pub fn push(&mut self, item: T, passage: Passage, bytes: usize) {
        self.bytes += bytes;
        self.waiting.push_back(Waiting { passage, bytes, item });
    }

    /// Takes out what is next. `fate` tells of a touched message what becomes of it now; only if one `may_begin` does one
    /// go, and else only the rest of what has begun to go.
    pub fn next(&mut self, may_begin: bool, fate: impl Fn(&Touch, &T) -> Fate) -> Next<T> {
        let mut look: Option<Instant> = None;
        let (mut found, mut goes) = (None, true);
        for (index, waiting) in self.waiting.iter().enumerate() {
            match &waiting.passage {
                Passage::Now => found = Some(index),
                Passage::Never => (found, goes) = (Some(index), false),
                Passage::Touched(touch) => match fate(touch, &waiting.item) {
                    Fate::Goes if may_begin => found = Some(index),
                    Fate::Goes => {}
                    Fate::Lost => (found, goes) = (Some(index), false),
                    Fate::Waits(until) => {
                        look = Some(look.map_or(until, |look| look.min(until)));
                        if touch.keeps_order() {
                            break;
                        }
                    }
                },
            }
            if found.is_some() {
                break;
            }
        }
        let Some(Waiting { passage, bytes, item }) = found.and_then(|index| self.waiting.remove(index)) else {
            return Next::Nothing(look);
        };
        self.bytes -= bytes;
        match passage {
            _ if !goes => Next::Lost(item),
            Passage::Touched(touch) => Next::Goes(item, Some(touch)),
            Passage::Now | Passage::Never => Next::Goes(item, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mcpscope_core::{Effect, FaultId, Injection, OnEnd, Order};

    use super::*;

    struct Bench {
        start: Instant,
        backlog: Backlog<&'static str>,
    }

    impl Bench {
        fn ms(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn delayed(&mut self, name: &'static str, ms: u64, order: Order) {
            let effect = Effect::Delay { by: Duration::from_millis(ms), order, on_end: OnEnd::Deliver };
            let injection = Injection { fault: FaultId(1), effect, ends: self.ms(60_000) };
            self.backlog.push(name, Passage::new(vec![injection], self.start), 1);
        }

        fn plain(&mut self, name: &'static str) {
            self.backlog.push(name, Passage::Now, 1);
        }

        /// All that goes on at a time.
        fn at(&mut self, ms: u64, live: bool) -> Vec<&'static str> {
            let now = self.ms(ms);
            let mut gone = Vec::new();
            while let Next::Goes(name, _) = self.backlog.next(true, |touch, _| touch.fate(now, |_| live, || false)) {
                gone.push(name);
            }
            gone
        }
    }

    fn bench() -> Bench {
        Bench { start: Instant::now(), backlog: Backlog::default() }
    }

    #[test]
    fn what_keeps_its_order_keeps_back_all_that_comes_behind_it() {
        let mut bench = bench();
        bench.delayed("a", 100, Order::Preserve);
        bench.delayed("b", 10, Order::Preserve);
        bench.plain("c");
        assert_eq!(bench.at(99, true), [""; 0]);
        assert_eq!(bench.at(100, true), ["a", "b", "c"]);
    }

    #[test]
    fn what_is_independent_is_overtaken() {
        let mut bench = bench();
        bench.delayed("a", 100, Order::Independent);
        bench.delayed("b", 10, Order::Independent);
        bench.plain("c");
        assert_eq!(bench.at(0, true), ["c"]);
        assert_eq!(bench.at(10, true), ["b"]);
        assert_eq!(bench.at(100, true), ["a"]);
    }

    #[test]
    fn when_its_faults_end_all_goes_in_order() {
        let mut bench = bench();
        for (name, ms) in [("a", 100), ("b", 10), ("c", 50)] {
            bench.delayed(name, ms, Order::Independent);
        }
        assert_eq!((bench.backlog.messages(), bench.backlog.bytes()), (3, 3));
        assert_eq!(bench.at(1, false), ["a", "b", "c"]);
        assert!(bench.backlog.is_empty() && bench.backlog.bytes() == 0);
    }

    #[test]
    fn what_waits_is_held_by_the_live_faults_that_touched_it() {
        let mut bench = bench();
        bench.delayed("a", 100, Order::Preserve);
        bench.delayed("b", 10, Order::Preserve);
        bench.plain("c");
        assert_eq!(bench.backlog.held_by(|_| true), [FaultId(1); 2]);
        assert_eq!(bench.backlog.held_by(|_| false), []);
        assert_eq!(bench.at(1, false).len(), 3);
        assert_eq!(bench.backlog.held_by(|_| true), []);
    }

    #[test]
    fn within_a_message_only_its_rest_goes() {
        let mut bench = bench();
        bench.delayed("a", 0, Order::Independent);
        bench.plain("rest of another");
        let next = bench.backlog.next(false, |_, _| Fate::Goes);
        assert_eq!(next, Next::Goes("rest of another", None));
        assert_eq!(bench.backlog.next(false, |_, _| Fate::Goes), Next::Nothing(None));
        assert!(matches!(bench.backlog.next(true, |_, _| Fate::Goes), Next::Goes("a", Some(_))));
    }
}
