//! What all conversations of one relay share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mcpscope_hooks::{Loss, Probe};

use crate::Limits;
use crate::clients::Clients;
use crate::framing::{Budget, Framing, Tap};

/// Requests in flight that are followed, in all conversations together; a bound against peers that never answer.
pub(crate) const MAX_PENDING: usize = 16_384;

/// What all conversations of one relay share.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) probe: Probe,
    pub(crate) limits: Limits,
    pub(crate) clients: Clients,
    budget: Arc<Budget>,
    pending: AtomicUsize,
}

impl Relay {
    pub(crate) fn new(probe: Probe, limits: Limits) -> Arc<Self> {
        let budget = Arc::new(Budget::new(limits.max_copies));
        Arc::new(Self { probe, limits, clients: Clients::default(), budget, pending: AtomicUsize::new(0) })
    }

    /// A tap within the limits of this relay.
    pub(crate) fn tap(&self, framing: Framing) -> Tap {
        Tap::new(framing, self.limits.max_message, Arc::clone(&self.budget))
    }

    /// A place for one more request in flight; counts the loss if there is none.
    pub(crate) fn place(self: &Arc<Self>, at: Instant) -> Option<Place> {
        let taken = self.pending.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(self));
        if taken >= MAX_PENDING {
            self.probe.lost(Loss::UntrackedCall, at);
            return None;
        }
        Some(place)
    }
}

/// A request in flight has a place as long as this lives.
#[derive(Debug)]
pub(crate) struct Place(Arc<Relay>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}
