//! What all conversations of one relay share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mcpscope_core::FaultId;
use mcpscope_hooks::{Backlog, Loss, Probe, Watch};

use crate::Limits;
use crate::alarm::Alarm;
use crate::bell::{Bell, Ear, Held, Rung};
use crate::child::ChildHandle;
use crate::clients::Clients;
use crate::framing::{Budget, Framing, Tap};
use crate::item::Item;
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
    /// Rings when faults begin or end.
    pub(crate) bell: Arc<Bell>,
    pub(crate) alarm: Arc<Alarm>,
    /// Hears the bell, where faults can be injected.
    pub(crate) ear: Arc<Ear>,
    /// The process of a server that we start.
    child: Option<ChildHandle>,
    budget: Arc<Budget>,
    pending: Arc<AtomicUsize>,
}

impl Relay {
    pub(crate) fn new(probe: Probe, limits: Limits, child: Option<ChildHandle>) -> Arc<Self> {
        let budget = Arc::new(Budget::new(limits.queue_bytes));
        let queue = Arc::new(Queue::new(&limits));
        let bell = Arc::new(Bell::default());
        let watch: Arc<dyn Watch> = bell.clone();
        probe.watch(&watch);
        Arc::new(Self {
            probe,
            limits,
            clients: Arc::default(),
            queue,
            bell,
            alarm: Arc::default(),
            ear: Arc::default(),
            child,
            budget,
            pending: Arc::default(),
        })
    }

    /// The same relay for one more connection.
    pub(crate) fn for_connection(&self) -> Arc<Self> {
        Arc::new(Self {
            probe: self.probe.for_connection(),
            limits: self.limits,
            clients: Arc::clone(&self.clients),
            queue: Arc::clone(&self.queue),
            bell: Arc::clone(&self.bell),
            alarm: Arc::clone(&self.alarm),
            ear: if self.probe.has_faults() { self.bell.ear() } else { Arc::default() },
            child: self.child.clone(),
            budget: Arc::new(self.budget.for_connection()),
            pending: Arc::clone(&self.pending),
        })
    }

    /// Waits until the bell rings for this connection, which is one task.
    pub(crate) fn rung(&self) -> Rung<'_> {
        Rung::new(&self.bell, &self.ear)
    }

    /// What faults keep back of a backlog counts as held, as long as what is returned lives: while nothing but the bell and the clock
    /// can let it go on.
    pub(crate) fn hold(&self, backlog: &Backlog<Item>) -> Held<'_> {
        let now = Instant::now();
        self.bell.hold(backlog.held_by(|injection| self.probe.is_live(injection, now)))
    }

    /// The fault that ended the server's process, if it did so while a call was in flight that began at `since`.
    pub(crate) fn broken_by(&self, since: Instant) -> Option<FaultId> {
        self.child.as_ref()?.broken_by(since)
    }

    /// The fault that made the server's process stand still while a call was in flight, or while what was asked waited.
    pub(crate) fn held_up_by(&self, began: Instant, ended: Instant) -> Option<FaultId> {
        self.child.as_ref()?.held_up_by(began, ended)
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
