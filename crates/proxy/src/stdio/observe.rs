//! What both directions share to observe the traffic, and to supervise the server.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mcpscope_core::Direction;
use mcpscope_hooks::{Departure, Lane, Loss, Passage};
use tokio::sync::mpsc::UnboundedSender;

use super::ends::Report;
use super::ledger::{Ledger, Noted};
use super::unseen::Unseen;
use crate::conversation::{Arrival, Conversation, Observed, Travel};
use crate::framing::Seen;
use crate::relay::Relay;
use crate::scan::{self, Message};

#[derive(Debug)]
pub(super) struct Watch {
    pub(super) relay: Arc<Relay>,
    pub(super) conversation: Conversation,
    /// Only where the server is started again after a crash.
    pub(super) supervised: Option<Supervised>,
    /// Lines of our own, by the way that they go: answers that faults make up.
    posts: [Posts; 2],
    /// What went on to the server before it was looked at.
    unseen: Unseen,
}

/// Lines of our own that go one way.
#[derive(Debug, Default)]
struct Posts {
    /// How many there are: that there is none is read for every message.
    count: AtomicUsize,
    lines: Mutex<VecDeque<Vec<u8>>>,
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

impl Posts {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    pub(super) fn new(relay: Arc<Relay>, conversation: Conversation, supervised: Option<Supervised>) -> Self {
        Self { relay, conversation, supervised, posts: Default::default(), unseen: Unseen::default() }
    }

    /// A line of our own goes this way as soon as it can.
    pub(super) fn post(&self, direction: Direction, line: Vec<u8>) {
        let posts = self.posts(direction);
        posts.lock().push_back(line);
        posts.count.fetch_add(1, Ordering::SeqCst);
        self.relay.bell.ring();
    }

    /// The next line of our own that goes this way.
    pub(super) fn posted(&self, direction: Direction) -> Option<Vec<u8>> {
        let posts = self.posts(direction);
        if posts.count.load(Ordering::SeqCst) == 0 {
            return None;
        }
        posts.count.fetch_sub(1, Ordering::SeqCst);
        posts.lock().pop_front()
    }

    /// Whether no more of them can wait to go this way.
    pub(super) fn is_full(&self, direction: Direction) -> bool {
        self.posts(direction).count.load(Ordering::Relaxed) >= self.relay.limits.queue_messages
    }

    fn posts(&self, direction: Direction) -> &Posts {
        let [to_server, to_client] = &self.posts;
        match direction {
            Direction::ToServer => to_server,
            Direction::ToClient => to_client,
        }
    }

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

    /// Looks at a message; `is_held` says whether a fault can touch it.
    pub(super) fn observe(
        &self,
        (seen, is_held): (Seen<'_>, bool),
        direction: Direction,
        lane: &mut Lane,
        came: Arrival,
    ) -> Observed {
        let observe = || match seen {
            Seen::Message(bytes) | Seen::Endpoint(bytes) => {
                let scanned = scan::read(bytes, self.relay.probe.propagates());
                if !self.is_for_the_other_side(direction, bytes, scanned.as_deref().unwrap_or_default()) {
                    return Observed { passage: Passage::Never, ..Observed::NOTHING };
                }
                let travel = Travel { is_held, ..Travel::new(direction, came) };
                self.conversation.follow(scanned, bytes.len(), travel, lane)
            }
            Seen::Oversized => {
                if let Some(supervised) = self.supervised.as_ref().filter(|it| it.ledger.overlooked(direction)) {
                    supervised.greeted();
                }
                self.relay.probe.lost(Loss::OversizedMessage, came.at);
                Observed::NOTHING
            }
        };
        self.relay.probe.guarded(observe).unwrap_or(Observed::NOTHING)
    }

    /// These lines go on to the server, and are looked at only then.
    pub(super) fn goes_unseen(&self, lines: &[u8], came: Arrival, now: Instant) {
        self.unseen.put(lines, came, now);
    }

    /// They have gone: looks at them, unless the answer was faster. Returns the departure of the calls among them.
    pub(super) fn has_gone(&self) -> Option<Departure> {
        self.unseen.gone(|line, lane, came| self.look(line, lane, came))
    }

    /// Looks at what went on to the server and nobody has looked at: before anything that may follow from it.
    pub(super) fn look_back(&self) {
        self.unseen.see(|line, lane, came| self.look(line, lane, came));
    }

    fn look(&self, line: &[u8], lane: &mut Lane, came: Arrival) {
        // What comes of it is for what is held.
        let _ = self.observe((Seen::Message(line), false), Direction::ToServer, lane, came);
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
