//! A call between its request and its answer.

use std::time::Instant;

use mcpscope_chaos::{Message, MessageKind};
use mcpscope_core::{Call, CallEvent, Direction, FaultId, Method, Outcome, Protocol, SpanId, TraceContext};
use mcpscope_tracing::Root;

use crate::Probe;
use crate::departure::{Departure, Lane};
use crate::link::Link;
use crate::probe::{NO_TRACE, record};
use crate::touch::Passage;

/// Events kept of one call.
const MAX_EVENTS: usize = 32;

/// A call that has begun. Dropping it unfinished records it as cancelled.
#[derive(Debug)]
#[must_use = "dropping it records the call as cancelled"]
pub struct InFlight {
    pub(crate) probe: Probe,
    pub(crate) root: Option<Root>,
    pub(crate) started: Instant,
    pub(crate) injected: Option<FaultId>,
    /// The span of the call from here on, and when it left.
    pub(crate) forward: Option<(SpanId, Departure)>,
    pub(crate) events: Vec<CallEvent>,
    pub(crate) dropped_events: u32,
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

    /// What faults do to a message of the call, its request or its answer, that travels in this direction and arrived at
    /// `at`. The call is marked as touched if a fault has its hand in.
    pub fn admit(&mut self, link: &Link, direction: Direction, at: Instant) -> Passage {
        let Some(call) = self.call.as_ref().filter(|_| self.probe.holds()) else { return Passage::Now };
        let kind = if direction == call.direction { MessageKind::Request } else { MessageKind::Response };
        let message = message(kind, &call.method, call.target.as_deref(), call.protocol);
        let passage = self.probe.admit(link, direction, &message, at);
        if let Passage::Touched(touch) = &passage {
            self.injected = touch.injections().first().map(|injection| injection.fault).or(self.injected);
        }
        passage
    }

    /// A fault has its hand in, though in none of its messages.
    pub fn touched_by(&mut self, fault: FaultId) {
        self.injected.get_or_insert(fault);
    }

    /// When it began.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The call goes on from here, with the next [`Lane::depart`] of `lane`, as a call of its own: with a span of its own,
    /// whose context is returned for whoever answers. Its sampled flag tells whether anyone will see our spans. Nothing
    /// without a tracer, or where nobody would see or learn of the span.
    pub fn forward(&mut self, lane: &mut Lane) -> Option<TraceContext> {
        let root = self.root.filter(|root| root.is_recorded() || self.probe.propagates())?;
        let parent = self.probe.0.tracer.as_ref()?.new_span_id();
        self.forward = Some((parent, lane.departure(self.started).clone()));
        Some(TraceContext { trace_id: root.trace_id, parent, sampled: self.probe.0.tracer.as_ref()?.is_sampled(&root) })
    }

    /// Something happened during the call. The first 32 are kept, the others counted.
    pub fn event(&mut self, event: CallEvent) {
        if self.events.len() < MAX_EVENTS {
            self.events.push(event);
        } else {
            self.dropped_events = self.dropped_events.saturating_add(1);
        }
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
        // Whatever was answered had been sent.
        let answered = response_bytes > 0;
        let forwarded = |(span_id, departure): (SpanId, Departure)| departure.forwarded(span_id, at, answered);
        record.forwarded = self.forward.take().and_then(forwarded);
        record.events = std::mem::take(&mut self.events);
        record.dropped_events = self.dropped_events;
        self.probe.end(&record, root);
    }
}

/// A message as a decision about it sees it.
fn message<'a>(
    kind: MessageKind,
    method: &'a Method,
    target: Option<&'a str>,
    protocol: Option<Protocol>,
) -> Message<'a> {
    let method = method.as_str();
    Message { kind, method: Some(method), tool: target.filter(|_| method == "tools/call"), protocol }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.call.is_some() {
            self.end(Outcome::Cancelled, 0, Instant::now());
        }
    }
}
