//! Faults that lead a conversation's connections through a network.

use std::time::Instant;

use mcpscope_core::{Direction, FaultId, RequestId};
use mcpscope_hooks::Detour;

use super::Conversation;

impl Conversation {
    /// The ways through networks of faults that it takes now.
    pub(crate) fn detours(&self, at: Instant) -> Vec<Detour> {
        self.relay.probe.guarded(|| self.link.detours(at)).unwrap_or_default()
    }

    /// A fault has its hand in these requests, though in none of their messages.
    pub(crate) fn touched_by(&self, fault: FaultId, direction: Direction, requests: &[RequestId]) {
        if requests.is_empty() {
            return;
        }
        let mut state = self.lock();
        for id in requests {
            if let Some(pending) = state.pending.get_mut(direction, id) {
                pending.in_flight.touched_by(fault);
            }
        }
    }
}
