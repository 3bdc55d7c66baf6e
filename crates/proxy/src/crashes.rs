//! What faults have made of the processes of one server.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mcpscope_chaos::Outage;
use mcpscope_core::FaultId;

/// The crashes of one server's processes, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Crashes(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Who wants to hear what becomes of it.
    outages: Vec<Arc<Outage>>,
    /// The last process that ended by a fault: by which, and when.
    last: Option<(FaultId, Instant)>,
}

impl Crashes {
    /// Somebody wants to hear of the process that is made to end now, and of the one in its place.
    pub(crate) fn follow(&self, outage: Option<&Arc<Outage>>) {
        self.lock().outages.extend(outage.cloned());
    }

    /// The process has ended, by a fault or by itself.
    pub(crate) fn ended(&self, fault: Option<FaultId>, at: Instant) {
        let mut inner = self.lock();
        match fault {
            Some(fault) => {
                inner.last = Some((fault, at));
                inner.outages.iter().for_each(|outage| outage.ended(at));
            }
            // It had outlived what it was to end by.
            None => inner.outages.clear(),
        }
    }

    /// Another one was started.
    pub(crate) fn restarted(&self, at: Instant) {
        self.lock().outages.iter().for_each(|outage| outage.restarted(at));
    }

    /// It can be called.
    pub(crate) fn ready(&self, at: Instant) {
        std::mem::take(&mut self.lock().outages).iter().for_each(|outage| outage.ready(at));
    }

    /// The fault that ended the last process that a fault ended, if it did so since then.
    pub(crate) fn since(&self, since: Instant) -> Option<FaultId> {
        self.lock().last.filter(|(_, at)| *at >= since).map(|(fault, _)| fault)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
