//! When messages left: told by who writes them to the calls among them, which may have ended by then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mcpscope_core::{Forwarded, SpanId};

/// When the messages that go on together began to wait and were written. Cheap to clone; every clone is the same.
#[derive(Clone, Debug)]
pub struct Departure(Arc<Times>);

#[derive(Debug)]
struct Times {
    arrived: Instant,
    /// Both in nanoseconds after that.
    queued: AtomicU64,
    sent: AtomicU64,
}

const NOT_YET: u64 = u64::MAX;

impl Departure {
    /// Of messages the last bytes of which were read at `arrived`.
    #[must_use]
    pub fn new(arrived: Instant) -> Self {
        Self(Arc::new(Times { arrived, queued: AtomicU64::new(NOT_YET), sent: AtomicU64::new(NOT_YET) }))
    }

    /// All that had to be done with them was done: they wait for their turn to be written.
    pub fn queued(&self, at: Instant) {
        self.0.queued.store(self.after(at), Ordering::Relaxed);
    }

    /// The last of their bytes was written.
    pub fn sent(&self, at: Instant) {
        self.0.sent.store(self.after(at), Ordering::Relaxed);
    }

    fn after(&self, at: Instant) -> u64 {
        let after = at.saturating_duration_since(self.0.arrived).as_nanos();
        u64::try_from(after).unwrap_or(NOT_YET).min(NOT_YET - 1)
    }

    /// What is known when the call has ended; nothing if it did not go on.
    pub(crate) fn forwarded(&self, span_id: SpanId, ended: Instant, answered: bool) -> Option<Forwarded> {
        let time = |cell: &AtomicU64| match cell.load(Ordering::Relaxed) {
            NOT_YET => None,
            after => Some(self.0.arrived + Duration::from_nanos(after)),
        };
        let (queued, sent) = (time(&self.0.queued)?, time(&self.0.sent));
        let sent = match sent {
            Some(sent) if sent <= ended => sent,
            // The answer was here before the writer came back from writing: it was written between the two.
            _ if answered => queued,
            Some(_) => ended,
            None => return None,
        };
        Some(Forwarded { span_id, queued, sent })
    }
}

/// One direction of one connection, on which calls leave.
#[derive(Debug, Default)]
pub struct Lane {
    /// That of the calls that are to go on together next.
    departure: Option<Departure>,
    /// Since when those wait to be written, where that is known before.
    queued: Option<Instant>,
}

impl Lane {
    /// The departure of the calls since [`Lane::depart`], the first of which arrived at `at`.
    pub(crate) fn departure(&mut self, at: Instant) -> &Departure {
        self.departure.get_or_insert_with(|| {
            let departure = Departure::new(at);
            self.queued.iter().for_each(|at| departure.queued(*at));
            departure
        })
    }

    /// The calls until the next [`Lane::depart`] wait to be written since `at`, and are told of only now or later: their answers
    /// may be here before that.
    pub fn queued(&mut self, at: Instant) {
        self.queued = Some(at);
    }

    /// The calls until now go on together; nothing if there is none among them that wants to know when.
    pub fn depart(&mut self) -> Option<Departure> {
        self.queued = None;
        self.departure.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_known_with_its_times() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let span_id = SpanId(std::num::NonZeroU64::MIN);
        let departure = Departure::new(start);
        assert_eq!(departure.forwarded(span_id, ms(9), true), None, "it is not on its way yet");
        departure.queued(ms(1));
        assert_eq!(departure.forwarded(span_id, ms(9), false), None, "it waited, and never left");
        let forwarded = |queued, sent| Some(Forwarded { span_id, queued: ms(queued), sent: ms(sent) });
        assert_eq!(departure.forwarded(span_id, ms(9), true), forwarded(1, 1), "its answer was faster than its writer");
        departure.sent(ms(3));
        assert_eq!(departure.forwarded(span_id, ms(9), true), forwarded(1, 3));
        assert_eq!(departure.forwarded(span_id, ms(2), true), forwarded(1, 1), "likewise");
        assert_eq!(departure.forwarded(span_id, ms(2), false), forwarded(1, 2));
    }
    #[test]
    fn calls_that_are_told_of_late_have_waited_since_before() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let span_id = SpanId(std::num::NonZeroU64::MIN);
        let mut lane = Lane::default();
        lane.queued(ms(1));
        let departure = lane.departure(start).clone();
        let forwarded = Some(Forwarded { span_id, queued: ms(1), sent: ms(1) });
        assert_eq!(departure.forwarded(span_id, ms(9), true), forwarded, "its answer is here before anybody was told");
        drop(lane.depart());
        assert_eq!(lane.departure(ms(2)).forwarded(span_id, ms(9), true), None, "those behind it wait for themselves");
    }
}
