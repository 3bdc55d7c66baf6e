//! A call between its request and its answer.

use std::time::Instant;

use mcpscope_core::{Call, FaultId, Outcome};
use mcpscope_tracing::Root;

use crate::Probe;
use crate::probe::{NO_TRACE, record};

/// A call that has begun. Dropping it unfinished records it as cancelled.
#[derive(Debug)]
#[must_use = "dropping it records the call as cancelled"]
pub struct InFlight {
    pub(crate) probe: Probe,
    pub(crate) root: Option<Root>,
    pub(crate) started: Instant,
    pub(crate) injected: Option<FaultId>,
    /// Taken when the call ends.
    pub(crate) call: Option<Call>,
}

impl InFlight {
    /// The call.
    #[must_use]
    pub fn call(&self) -> Option<&Call> {
        self.call.as_ref()
    }

    /// The call, to add what becomes known only with its answer.
    pub fn call_mut(&mut self) -> Option<&mut Call> {
        self.call.as_mut()
    }

    /// When it began.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Ends the call: its answer, of `response_bytes` bytes, was seen at `at`.
    pub fn finish(mut self, outcome: Outcome, response_bytes: u64, at: Instant) {
        self.end(outcome, response_bytes, at);
    }

    /// Forgets the call: it turned out to be none, or to be answered elsewhere.
    pub fn discard(mut self) {
        self.call = None;
    }

    fn end(&mut self, outcome: Outcome, response_bytes: u64, at: Instant) {
        let Some(call) = self.call.take() else { return };
        let root = self.root.unwrap_or(NO_TRACE);
        let mut record = record(call, self.started, at, root, outcome, response_bytes);
        record.injected = self.injected;
        self.probe.end(&record, root);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled, 0, Instant::now());
    }
}
