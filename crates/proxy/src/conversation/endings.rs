//! How calls end that have no answer of their own.

use std::time::{Duration, Instant};

use mcpscope_core::{CallEvent, CallEventKind, Direction, ErrorType, FaultId, Outcome, RequestId};

use mcpscope_hooks::InFlight;

use super::{Conversation, Ending};
use crate::pending::Pending;

impl Conversation {
    /// The session has ended, whoever still holds the conversation: what is pending will not be answered. Returns how many
    /// calls those are.
    pub(crate) fn close(&self, ending: Ending, at: Instant) -> usize {
        self.end_session(ending, at);
        let pending = self.lock().pending.drain();
        let unanswered = pending.len();
        for pending in pending {
            self.finish(pending.in_flight, Outcome::Timeout, 0, at);
        }
        unanswered
    }

    /// The session has ended; what becomes of the calls that are pending is somebody else's to say.
    pub(crate) fn end_session(&self, ending: Ending, at: Instant) {
        let (session, last_seen) = {
            let mut state = self.lock();
            state.has_session = false;
            (state.session.take(), state.last_seen)
        };
        if let Some(session) = session {
            match ending {
                Ending::Well => session.end(None, at),
                Ending::Failed(error) => session.end(Some(error), at),
                Ending::Left => session.end(None, last_seen),
            }
        }
    }

    /// Nobody uses the conversation any more, at least for now; whoever does next has nothing to do with this one.
    pub(crate) fn end_of_use(&self) {
        let is_over = {
            let mut state = self.lock();
            state.protocol = None;
            state.session.is_none() && state.pending.is_empty()
        };
        if !is_over {
            self.close(Ending::Well, Instant::now());
        }
    }

    /// The server is gone, and another will go on with the session: what is pending will not be answered, but for the
    /// client's request with the id `spared`. Its own requests nobody waits for any more. `fault` is what made it go, if one did.
    pub(crate) fn break_off(&self, spared: Option<&RequestId>, message: &str, fault: Option<FaultId>, at: Instant) {
        let pending = {
            let mut state = self.lock();
            let kept = spared.and_then(|id| Some((id, state.pending.remove(Direction::ToServer, id)?)));
            let pending = state.pending.drain();
            if let Some((id, kept)) = kept {
                drop(state.pending.insert(Direction::ToServer, id.clone(), kept));
            }
            pending
        };
        for mut pending in pending {
            fault.into_iter().for_each(|fault| pending.in_flight.touched_by(fault));
            let asked = pending.in_flight.call().map(|call| call.direction);
            let outcome = match asked {
                Some(Direction::ToClient) => Outcome::Timeout,
                _ => Outcome::Error { kind: ErrorType::ConnectionLost, message: Some(message.into()) },
            };
            if let Outcome::Error { .. } = outcome {
                self.relay.probe.broke_off(ErrorType::ConnectionLost, fault, at);
            }
            self.finish(pending.in_flight, outcome, 0, at);
        }
    }

    /// Forgets a call that will be made again elsewhere.
    pub(crate) fn forget(&self, direction: Direction, id: &RequestId) {
        let pending = self.lock().pending.remove(direction, id);
        if let Some(pending) = pending {
            pending.in_flight.discard();
        }
    }

    /// Ends a call that got no answer of its own, but perhaps `bytes` bytes that tell why; one that has ended already is
    /// left alone. Returns whether it ended with this.
    pub(crate) fn end(&self, direction: Direction, id: &RequestId, outcome: Outcome, bytes: u64, at: Instant) -> bool {
        let pending = self.lock().pending.remove(direction, id);
        let ends = pending.is_some();
        if let Some(pending) = pending {
            self.finish(pending.in_flight, outcome, bytes, at);
        }
        ends
    }

    /// Ends a call: touched by a fault, if one has ended the process that it was made to, or has made it stand still meanwhile.
    pub(super) fn finish(&self, mut in_flight: InFlight, outcome: Outcome, bytes: u64, at: Instant) {
        let started = in_flight.started();
        let is_lost =
            matches!(outcome, Outcome::Error { kind: ErrorType::ConnectionLost | ErrorType::UpstreamUnreachable, .. });
        let broken_by = is_lost.then(|| self.relay.broken_by(started)).flatten();
        if let Some(fault) = broken_by.or_else(|| self.relay.held_up_by(started, at)) {
            in_flight.touched_by(fault);
        }
        in_flight.finish(outcome, bytes, at);
    }

    /// Ends all calls of the client, whose connection is lost; returns their ids, in the order in which they began.
    pub(crate) fn lose_all(&self, at: Instant) -> Vec<RequestId> {
        let mut lost = self.lock().pending.asked(Direction::ToServer);
        lost.sort_by_key(|(_, pending)| pending.in_flight.started());
        let end = |(id, pending): (RequestId, Pending)| {
            self.finish(pending.in_flight, Outcome::error(ErrorType::ConnectionLost), 0, at);
            id
        };
        lost.into_iter().map(end).collect()
    }

    /// Ends a call whose answer is not wanted any more.
    pub(super) fn cancel(&self, direction: Direction, id: &RequestId, outcome: Outcome, at: Instant) {
        let pending = self.lock().pending.remove(direction, id);
        if let Some(Pending { mut in_flight, .. }) = pending {
            in_flight.event(CallEvent { at, kind: CallEventKind::Cancelled });
            self.finish(in_flight, outcome, 0, at);
        }
        if self.relay.probe.holds() {
            // Its answer may be held until now.
            self.relay.bell.ring();
        }
    }

    /// Ends the calls that have waited for `timeout`; a stream that is meant to stay open is none of them.
    pub(crate) fn expire(&self, timeout: Duration, now: Instant) {
        let expired = self.lock().pending.expired(timeout, now);
        for pending in expired {
            self.finish(pending.in_flight, Outcome::Timeout, 0, now);
        }
    }
}
