//! What all conversations of one relay share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mcpscope_hooks::{Loss, Probe};

use crate::Limits;
use crate::clients::Clients;
use crate::framing::{Budget, Framing, Tap};
use crate::queue::Queue;

/// Requests in flight that are followed, in all conversations together, besides one in each; a bound against peers that
/// never answer.
pub(crate) const MAX_PENDING: usize = 16_384;

/// What all conversations of one relay share, as one connection has it: what is written for each message, if only to count
/// who refers to it, is here and not with what all of them have.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) probe: Probe,
    pub(crate) limits: Limits,
    pub(crate) clients: Arc<Clients>,
    pub(crate) queue: Arc<Queue>,
    budget: Arc<Budget>,
    pending: Arc<AtomicUsize>,
}

impl Relay {
    pub(crate) fn new(probe: Probe, limits: Limits) -> Arc<Self> {
        let budget = Arc::new(Budget::new(limits.queue_bytes));
        let queue = Arc::new(Queue::new(&limits));
        Arc::new(Self { probe, limits, clients: Arc::default(), queue, budget, pending: Arc::default() })
    }

    /// The same relay for one more connection.
    pub(crate) fn for_connection(&self) -> Arc<Self> {
        Arc::new(Self {
            probe: self.probe.for_connection(),
            limits: self.limits,
            clients: Arc::clone(&self.clients),
            queue: Arc::clone(&self.queue),
            budget: Arc::new(self.budget.for_connection()),
            pending: Arc::clone(&self.pending),
        })
    }

    /// A tap within the limits of this relay.
    pub(crate) fn tap(&self, framing: Framing) -> Tap {
        Tap::new(framing, self.limits.max_message, Arc::clone(&self.budget))
    }

    /// A place for one more request in flight; counts the loss if there is none.
    pub(crate) fn place(&self, at: Instant) -> Option<Place> {
        let taken = self.pending.fetch_add(1, Ordering::Relaxed);
        let place = Place(Some(Arc::clone(&self.pending)));
        if taken >= MAX_PENDING {
            self.probe.lost(Loss::UntrackedCall, at);
            return None;
        }
        Some(place)
    }
}

/// A request in flight has a place as long as this lives.
#[derive(Debug)]
pub(crate) struct Place(Option<Arc<AtomicUsize>>);

impl Place {
    /// That of the only request of its conversation, which nobody counts: there are never more than conversations.
    pub(crate) const fn of_the_only_one() -> Self {
        Self(None)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(pending) = &self.0 {
            pending.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
