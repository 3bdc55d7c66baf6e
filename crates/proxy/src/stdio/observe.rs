//! What both directions share to observe the traffic, and to supervise the server.

use std::sync::Arc;
use std::time::Instant;

use mcpscope_core::Direction;
use mcpscope_hooks::{Lane, Loss, Passage};
use tokio::sync::mpsc::UnboundedSender;

use super::ends::Report;
use super::ledger::{Ledger, Noted};
use crate::conversation::{Conversation, Observed, Travel};
use crate::framing::Seen;
use crate::relay::Relay;
use crate::scan::{Message, scan};

#[derive(Debug)]
pub(super) struct Watch {
    pub(super) relay: Arc<Relay>,
    pub(super) conversation: Conversation,
    /// Only where the server is started again after a crash.
    pub(super) supervised: Option<Supervised>,
}

/// What it takes to go on with another server.
#[derive(Debug)]
pub(super) struct Supervised {
    pub(super) ledger: Ledger,
    reports: UnboundedSender<Report>,
}

impl Supervised {
    pub(super) fn new(reports: UnboundedSender<Report>) -> Self {
        Self { ledger: Ledger::default(), reports }
    }

    fn greeted(&self) {
        // Nobody waits any more if the relay has ended.
        let _ = self.reports.send(Report::Greeted);
    }
}

impl Watch {
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        self.relay.probe.guarded(|| {
            self.conversation.expire(self.relay.limits.call_timeout, now);
            self.relay.clients.expire(now);
        });
    }

    /// Whether messages this way must be complete before they go on, because a new server is being told of the session.
    pub(super) fn holds(&self, direction: Direction) -> bool {
        self.supervised.as_ref().is_some_and(|supervised| supervised.ledger.holds(direction))
    }

    pub(super) fn observe(&self, seen: Seen<'_>, direction: Direction, lane: &mut Lane, at: Instant) -> Observed {
        let observe = || match seen {
            Seen::Message(bytes) | Seen::Endpoint(bytes) => {
                let scanned = scan(bytes);
                if !self.is_for_the_other_side(direction, bytes, scanned.as_deref().unwrap_or_default()) {
                    return Observed { passage: Passage::Never, ..Observed::NOTHING };
                }
                let travel = Travel { direction, at, protocol: None, context: None, tracestate: None, is_early: false };
                self.conversation.follow(scanned, bytes.len(), travel, lane)
            }
            Seen::Oversized => {
                if let Some(supervised) = self.supervised.as_ref().filter(|it| it.ledger.overlooked(direction)) {
                    supervised.greeted();
                }
                self.relay.probe.lost(Loss::OversizedMessage, at);
                Observed::NOTHING
            }
        };
        self.relay.probe.guarded(observe).unwrap_or(Observed::NOTHING)
    }

    fn is_for_the_other_side(&self, direction: Direction, bytes: &[u8], messages: &[Message]) -> bool {
        let Some(supervised) = &self.supervised else { return true };
        match supervised.ledger.note(direction, bytes, messages) {
            Noted::Passes => true,
            Noted::Orphan => false,
            Noted::Greeted => {
                supervised.greeted();
                false
            }
        }
    }
}
