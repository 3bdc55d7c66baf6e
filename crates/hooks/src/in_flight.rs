//! A call between its request and its answer.

use std::time::{Duration, Instant};

use mcpscope_chaos::{Message, MessageKind};
use mcpscope_core::{Call, CallEvent, CallRecord, Direction, FaultId, Method, Outcome, Protocol, SpanId, TraceContext};
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
pub struct InFlight(Box<Flight>);

/// What is known of a call: it stays where it is, however often the call is handed on.
#[derive(Debug)]
struct Flight {
    probe: Probe,
    root: Option<Root>,
    /// How long it had waited when its message was seen.
    held_up: Duration,
    /// The span of the call from here on, and when it left.
    forward: Option<(SpanId, Departure)>,
    has_ended: bool,
    /// As it will be recorded, but for its end.
    record: CallRecord,
}

impl InFlight {
    /// A call whose message was seen at `at`, and had waited since `since` for that.
    pub(crate) fn new(probe: &Probe, root: Option<Root>, call: Call, since: Instant, at: Instant) -> Self {
        Self(Box::new(Flight {
            probe: probe.clone(),
            root,
            held_up: at.saturating_duration_since(since),
            forward: None,
            has_ended: false,
            record: record(call, since, root.unwrap_or(NO_TRACE)),
        }))
    }

    /// The call.
    #[must_use]
    pub fn call(&self) -> Option<&Call> {
        (!self.0.has_ended).then_some(&self.0.record.call)
    }

    /// The call, to add what becomes known only with its answer.
    pub fn call_mut(&mut self) -> Option<&mut Call> {
        (!self.0.has_ended).then_some(&mut self.0.record.call)
    }

    /// What faults do to a message of the call, its request or its answer, that travels in this direction and arrived at
    /// `at`. The call is marked as touched if a fault has its hand in.
    pub fn admit(&mut self, link: &Link, direction: Direction, at: Instant) -> Passage {
        let Flight { probe, record, .. } = &mut *self.0;
        if !probe.holds() {
            return Passage::Now;
        }
        let call = &record.call;
        let kind = if direction == call.direction { MessageKind::Request } else { MessageKind::Response };
        let message = message(kind, &call.method, call.target.as_deref(), call.protocol);
        let passage = probe.admit(link, direction, &message, at);
        if let Passage::Touched(touch) = &passage {
            record.injected = touch.injections().first().map(|injection| injection.fault).or(record.injected);
        }
        passage
    }

    /// A fault has its hand in, though in none of its messages.
    pub fn touched_by(&mut self, fault: FaultId) {
        self.0.record.injected.get_or_insert(fault);
    }

    /// When it began.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.0.record.started
    }

    /// The call goes on from here, with the next [`Lane::depart`] of `lane`, as a call of its own: with a span of its own,
    /// whose context is returned for whoever answers. Its sampled flag tells whether anyone will see our spans. Nothing
    /// without a tracer, or where nobody would see or learn of the span.
    pub fn forward(&mut self, lane: &mut Lane) -> Option<TraceContext> {
        let Flight { probe, root, forward, record, .. } = &mut *self.0;
        let root = root.filter(|root| root.is_recorded() || probe.propagates())?;
        let tracer = probe.0.tracer.as_ref()?;
        let parent = tracer.new_span_id();
        *forward = Some((parent, lane.departure(record.started).clone()));
        Some(TraceContext { trace_id: root.trace_id, parent, sampled: tracer.is_sampled(&root) })
    }

    /// Something happened during the call. The first 32 are kept, the others counted.
    pub fn event(&mut self, event: CallEvent) {
        let record = &mut self.0.record;
        if record.events.len() < MAX_EVENTS {
            record.events.push(event);
        } else {
            record.dropped_events = record.dropped_events.saturating_add(1);
        }
    }

    /// Ends the call: its answer, of `response_bytes` bytes, was seen at `at`.
    pub fn finish(mut self, outcome: Outcome, response_bytes: u64, at: Instant) {
        self.end(outcome, response_bytes, at);
    }

    /// Forgets the call: it turned out to be none, or to be answered elsewhere.
    pub fn discard(mut self) {
        self.0.has_ended = true;
    }

    fn end(&mut self, outcome: Outcome, response_bytes: u64, at: Instant) {
        let Flight { probe, root, held_up, forward, has_ended, record } = &mut *self.0;
        *has_ended = true;
        record.duration = at.saturating_duration_since(record.started);
        record.outcome = outcome;
        record.response_bytes = response_bytes;
        // Whatever was answered had been sent.
        let answered = response_bytes > 0;
        record.forwarded =
            forward.as_ref().and_then(|(span_id, departure)| departure.forwarded(*span_id, at, answered));
        if let Some(forwarded) = record.forwarded.as_mut().filter(|_| !held_up.is_zero()) {
            // What it waited before is time in a queue, and none that anybody worked on it.
            forwarded.queued = forwarded.queued.checked_sub(*held_up).unwrap_or(record.started).max(record.started);
        }
        probe.end(record, root.unwrap_or(NO_TRACE));
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
        if !self.0.has_ended {
            self.end(Outcome::Cancelled, 0, Instant::now());
        }
    }
}
