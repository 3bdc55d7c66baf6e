//! Where a fault verdict is asked for, and what it means for a message's bytes.

use std::fmt;
use std::time::Instant;

use mcpscope_core::{Direction, RequestId, Verdict};

use crate::departure::Departure;

/// Decides which messages a fault touches. Decides only: the interception point acts.
pub trait Injector: fmt::Debug + Send + Sync {
    /// Whether any fault is active. While none is, messages pass without being held until they are complete and
    /// [`Injector::verdict`] is not called; so this must cost next to nothing.
    fn is_active(&self) -> bool;

    /// What is to be done with this message, which arrived at `at`.
    fn verdict(&self, message: &MessageFacts<'_>, at: Instant) -> Verdict;
}

/// What a decision can depend on.
#[derive(Clone, Copy, Debug)]
pub struct MessageFacts<'a> {
    /// The MCP server's name.
    pub server: &'a str,
    /// The way the message travels.
    pub direction: Direction,
    /// The method of a request or notification; none for an answer.
    pub method: Option<&'a str>,
    /// The tool's or prompt's name, or the resource's URI.
    pub target: Option<&'a str>,
    /// The id of a request or answer.
    pub id: Option<&'a RequestId>,
}

/// When the bytes of a message may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// At once.
    Now,
    /// At this time.
    At(Instant),
    /// Never.
    Never,
}

/// One direction of one connection, whose messages keep their order whatever is delayed.
#[derive(Debug, Default)]
pub struct Lane {
    /// When the last delayed message is due.
    due: Option<Instant>,
    /// That of the calls that are to go on together next.
    departure: Option<Departure>,
}

impl Lane {
    /// The departure of the calls since [`Lane::depart`], the first of which arrived at `at`.
    pub(crate) fn departure(&mut self, at: Instant) -> &Departure {
        self.departure.get_or_insert_with(|| Departure::new(at))
    }

    /// The calls until now go on together; nothing if there is none among them that wants to know when.
    pub fn depart(&mut self) -> Option<Departure> {
        self.departure.take()
    }

    /// When a message with this verdict, which arrived at `at`, may go on.
    pub fn pass(&mut self, verdict: Verdict, at: Instant) -> Passage {
        // What was due before this message arrived delays it no more.
        self.due = self.due.filter(|due| *due > at);
        match verdict {
            Verdict::Drop { .. } => Passage::Never,
            Verdict::Delay { by, .. } => {
                let due = self.due.map_or(at + by, |before| before.max(at + by));
                self.due = Some(due);
                Passage::At(due)
            }
            Verdict::Pass => self.due.map_or(Passage::Now, Passage::At),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mcpscope_core::FaultId;

    use super::*;

    #[test]
    fn a_delay_keeps_the_order() {
        let (start, fault) = (Instant::now(), FaultId(1));
        let ms = |n| start + Duration::from_millis(n);
        let delay = |n| Verdict::Delay { fault, by: Duration::from_millis(n) };
        let mut lane = Lane::default();
        assert_eq!(lane.pass(Verdict::Pass, start), Passage::Now);
        assert_eq!(lane.pass(delay(100), start), Passage::At(ms(100)));
        assert_eq!(lane.pass(delay(10), ms(10)), Passage::At(ms(100)), "not before the one in front of it");
        assert_eq!(lane.pass(Verdict::Pass, ms(20)), Passage::At(ms(100)));
        assert_eq!(lane.pass(Verdict::Drop { fault }, ms(30)), Passage::Never);
        assert_eq!(lane.pass(delay(100), ms(40)), Passage::At(ms(140)));
        assert_eq!(lane.pass(Verdict::Pass, ms(140)), Passage::Now);
    }
}
