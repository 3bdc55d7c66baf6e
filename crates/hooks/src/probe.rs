//! The interception point of one MCP server.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use mcpscope_core::{
    Call, CallRecord, Component, Direction, ErrorType, Outcome, Protocol, SpanId, TraceId, Transport, Verdict,
};
use mcpscope_metrics::{Counter, Gauge, Metrics};
use mcpscope_tracing::{Root, Tracer};

use crate::fault::{Injector, Lane, MessageFacts, Passage};
use crate::in_flight::InFlight;
use crate::instrumentation::Instrumentation;

/// Sees every call that has ended, after it was counted.
pub trait Observer: fmt::Debug + Send + Sync {
    /// Takes a look. It runs on the thread that relays, so it must be quick; a panic in it is caught and counted.
    fn on_call(&self, record: &CallRecord);
}

/// What the observation lost; the traffic went on all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A message that is too large, or a batch of too many: relayed, not looked at.
    OversizedMessage,
    /// An answer in a content encoding: relayed, not looked at.
    EncodedMessage,
    /// A panic inside the instrumentation.
    Panic,
    /// A trace that found no place.
    Trace,
    /// A trace that made room for a newer one.
    TraceEvicted,
    /// A call not followed to its end: too many were in flight, or its id is too long.
    UntrackedCall,
    /// An answer to no request that was seen.
    UnmatchedResponse,
    /// A session not followed: too many were open.
    UntrackedSession,
}

impl Loss {
    const ALL: [Self; 8] = [
        Self::OversizedMessage,
        Self::EncodedMessage,
        Self::Panic,
        Self::Trace,
        Self::TraceEvicted,
        Self::UntrackedCall,
        Self::UnmatchedResponse,
        Self::UntrackedSession,
    ];

    /// The value of the label `what`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OversizedMessage => "oversized_message",
            Self::EncodedMessage => "encoded_message",
            Self::Panic => "panic",
            Self::Trace => "trace",
            Self::TraceEvicted => "trace_evicted",
            Self::UntrackedCall => "untracked_call",
            Self::UnmatchedResponse => "unmatched_response",
            Self::UntrackedSession => "untracked_session",
        }
    }
}

/// The interception point of one MCP server. Cheap to clone; every clone is the same.
///
/// Nothing it does can fail, block or panic into its caller: what goes wrong inside is counted ([`Loss`]).
#[derive(Clone, Debug)]
pub struct Probe(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    server: Arc<str>,
    transport: Transport,
    metrics: Option<Handles>,
    tracer: Option<Tracer>,
    injector: Option<Arc<dyn Injector>>,
    observer: Option<Arc<dyn Observer>>,
    instrumentation: Option<Instrumentation>,
}

/// What a probe is made of. What is left out is not done.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The MCP server's name in every label.
    pub server: Arc<str>,
    /// How its messages travel.
    pub transport: Transport,
    /// Where calls are counted.
    pub metrics: Option<Metrics>,
    /// Where traces are kept.
    pub tracer: Option<Tracer>,
    /// Who is asked for a verdict on every message.
    pub injector: Option<Arc<dyn Injector>>,
    /// Who sees every call that has ended.
    pub observer: Option<Arc<dyn Observer>>,
    /// Which components are counted; without one, all are.
    pub instrumentation: Option<Instrumentation>,
}

impl Parts {
    /// A probe that does nothing yet.
    #[must_use]
    pub fn new(server: &str, transport: Transport) -> Self {
        Self {
            server: server.into(),
            transport,
            metrics: None,
            tracer: None,
            injector: None,
            observer: None,
            instrumentation: None,
        }
    }
}

/// What can be resolved before the first message.
#[derive(Debug)]
struct Handles {
    metrics: Metrics,
    operations: [Counter; Component::ALL.len()],
    connections: Gauge,
    queues: [Gauge; 2],
    losses: [Counter; Loss::ALL.len()],
}

impl Probe {
    /// Puts a probe together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { server, transport, metrics, tracer, injector, observer, instrumentation } = parts;
        let metrics = metrics.map(|metrics| {
            metrics.announce_server(&server, transport);
            Handles {
                operations: Component::ALL.map(|component| metrics.component_operations(component, false)),
                connections: metrics.transport_connections(&server, transport),
                queues: Direction::ALL.map(|direction| metrics.queue_depth(&server, direction)),
                losses: Loss::ALL.map(|loss| metrics.dropped(loss.as_str())),
                metrics,
            }
        });
        Self(Arc::new(Inner { server, transport, metrics, tracer, injector, observer, instrumentation }))
    }

    /// The server's name.
    #[must_use]
    pub fn server(&self) -> &Arc<str> {
        &self.0.server
    }

    /// How messages travel.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.0.transport
    }

    /// Whether anything is recorded or decided at all; if not, a relay need not look at its messages.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.metrics.is_some() || self.0.tracer.is_some() || self.0.injector.is_some() || self.0.observer.is_some()
    }

    /// Whether messages must be held until they are complete, because a fault may want to touch them.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.0.injector.as_ref().is_some_and(|injector| self.guarded(|| injector.is_active()).unwrap_or(false))
    }

    /// Asks for a verdict on a message that arrived at `at`, and says when its bytes may go on. The call that the message
    /// belongs to, if any, is marked as touched.
    pub fn admit(
        &self,
        facts: &MessageFacts<'_>,
        call: Option<&mut InFlight>,
        lane: &mut Lane,
        at: Instant,
    ) -> Passage {
        let verdict = match &self.0.injector {
            Some(injector) => self
                .guarded(|| if injector.is_active() { injector.verdict(facts, at) } else { Verdict::Pass })
                .unwrap_or(Verdict::Pass),
            None => Verdict::Pass,
        };
        if let (Some(fault), Some(call)) = (verdict.fault(), call) {
            call.injected = Some(fault);
        }
        lane.pass(verdict, at)
    }

    /// Begins a call whose message was first seen at `at`.
    pub fn begin(&self, call: Call, at: Instant) -> InFlight {
        let root = self.guarded(|| {
            self.count_registry_operation(&call, at);
            self.0.tracer.as_ref().map(|tracer| tracer.start(Component::JsonRpc, call.context))
        });
        InFlight { probe: self.clone(), root: root.flatten(), started: at, injected: None, call: Some(call) }
    }

    /// Takes note of a notification.
    pub fn notify(&self, call: Call, at: Instant) {
        self.guarded(|| {
            self.count_registry_operation(&call, at);
            if let Some(component) = call.method.component() {
                self.count(component, None, false, at);
            }
            let Some(tracer) = &self.0.tracer else { return };
            let root = tracer.start(Component::Transport, call.context);
            if root.sampled {
                self.keep_trace(tracer, &record(call, at, at, root, Outcome::Ok, 0));
            }
        });
    }

    /// Counts an operation of a component, and its error if it had one.
    pub fn operation(&self, component: Component, error: Option<ErrorType>, at: Instant) {
        self.guarded(|| self.count(component, error, false, at));
    }

    /// Counts something that the observation lost.
    pub fn lost(&self, loss: Loss, at: Instant) {
        self.guarded(|| {
            if let Some(handles) = &self.0.metrics {
                handles.losses[loss as usize].increment(at);
            }
        });
    }

    /// A connection or stream is open until the value is dropped.
    pub fn connection(&self, at: Instant) -> Connection {
        Connection(Raised::new(self.0.metrics.as_ref().map(|handles| handles.connections.clone()), 1, at))
    }

    /// A session of this revision is open until the value is dropped.
    pub fn session(&self, protocol: Protocol, at: Instant) -> Session {
        let gauge = self.guarded(|| {
            self.0.metrics.as_ref().map(|handles| handles.metrics.active_sessions(&self.0.server, protocol))
        });
        Session { _open: Raised::new(gauge.flatten(), 1, at), probe: self.clone() }
    }

    /// `messages` messages are accepted and not yet written on until the value is dropped.
    pub fn queued(&self, direction: Direction, messages: usize, at: Instant) -> Queued {
        let gauge = self.0.metrics.as_ref().map(|handles| handles.queues[direction as usize].clone());
        Queued { _raised: Raised::new(gauge, i64::try_from(messages).unwrap_or(i64::MAX), at) }
    }

    /// Records a call that has ended.
    pub(crate) fn end(&self, record: &CallRecord, sampled: bool) {
        self.guarded(|| {
            self.count_call(record);
            if let Some(tracer) = self.0.tracer.as_ref().filter(|_| sampled) {
                self.keep_trace(tracer, record);
            }
        });
        if let Some(observer) = &self.0.observer {
            self.guarded(|| observer.on_call(record));
        }
    }

    fn count_call(&self, record: &CallRecord) {
        let Some(handles) = &self.0.metrics else { return };
        let (call, at, injected) = (&record.call, record.started + record.duration, record.injected.is_some());
        // An error in the answer to a server's own request is the client's, and counts against no component.
        let error = record.outcome.server_error().filter(|_| call.direction == Direction::ToServer);
        // A tool that failed was called by JSON-RPC without fault.
        self.count(Component::JsonRpc, error.filter(|kind| *kind != ErrorType::Tool), injected, at);
        if call.direction == Direction::ToClient {
            return;
        }
        if let Some(component) = call.method.component() {
            self.count(component, error, injected, at);
        }
        if call.method.opens_session() && record.outcome == Outcome::Ok && self.counts(Component::SessionManager) {
            let protocol = call.protocol.unwrap_or(Protocol::Other);
            handles.metrics.session_creation(&call.server, protocol).record(record.duration, at);
        }
        // "To its final result": a result that asks for more input is none.
        let is_final = record.outcome != Outcome::InputRequired;
        if let Some(tool) = call.tool().filter(|_| is_final && self.counts(Component::Tools)) {
            let outcome = record.outcome.as_label();
            handles.metrics.tool_calls(&call.server, tool, outcome, injected).record(record.duration, at);
        }
    }

    fn count(&self, component: Component, error: Option<ErrorType>, injected: bool, at: Instant) {
        let Some(handles) = self.0.metrics.as_ref().filter(|_| self.counts(component)) else { return };
        if injected {
            handles.metrics.component_operations(component, true).increment(at);
        } else {
            handles.operations[component as usize].increment(at);
        }
        if let Some(error) = error {
            handles.metrics.component_errors(component, &error.as_label(), injected).increment(at);
        }
    }

    fn counts(&self, component: Component) -> bool {
        self.0.instrumentation.as_ref().is_none_or(|instrumentation| instrumentation.is_on(component))
    }

    fn count_registry_operation(&self, call: &Call, at: Instant) {
        if let (Some(handles), Some(operation)) = (&self.0.metrics, call.method.registry_operation())
            && self.counts(Component::Registry)
        {
            handles.metrics.registry_operations(&call.server, operation).increment(at);
        }
    }

    fn keep_trace(&self, tracer: &Tracer, record: &CallRecord) {
        match tracer.record_call(record) {
            Ok(evicted) => (0..evicted).for_each(|_| self.lost(Loss::TraceEvicted, record.started)),
            Err(_) => self.lost(Loss::Trace, record.started),
        }
    }

    /// Runs instrumentation so that a panic in it ends here.
    pub fn guarded<T>(&self, instrumentation: impl FnOnce() -> T) -> Option<T> {
        // What a panic may leave behind is a missing count; every shared value stays usable.
        let result = catch_unwind(AssertUnwindSafe(instrumentation)).ok();
        if result.is_none()
            && let Some(handles) = &self.0.metrics
        {
            handles.losses[Loss::Panic as usize].increment(Instant::now());
        }
        result
    }
}

pub(crate) fn record(
    call: Call,
    started: Instant,
    ended: Instant,
    root: Root,
    outcome: Outcome,
    response_bytes: u64,
) -> CallRecord {
    CallRecord {
        call,
        started,
        duration: ended.saturating_duration_since(started),
        outcome,
        response_bytes,
        injected: None,
        trace_id: root.trace_id,
        span_id: root.span_id,
    }
}

/// What a call without a tracer carries as its trace; it is never shown.
pub(crate) const NO_TRACE: Root =
    Root { trace_id: TraceId(std::num::NonZeroU128::MIN), span_id: SpanId(std::num::NonZeroU64::MIN), sampled: false };

/// A gauge that is higher while this lives.
#[derive(Debug)]
struct Raised {
    gauge: Option<Gauge>,
    by: i64,
}

impl Raised {
    fn new(gauge: Option<Gauge>, by: i64, at: Instant) -> Self {
        if let Some(gauge) = &gauge {
            gauge.add(by, at);
        }
        Self { gauge, by }
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(gauge) = &self.gauge {
            gauge.add(-self.by, Instant::now());
        }
    }
}

/// An open connection or stream.
#[derive(Debug)]
#[must_use = "dropping it closes the connection"]
pub struct Connection(#[expect(dead_code, reason = "counts as long as it lives")] Raised);

/// Messages on their way.
#[derive(Debug)]
#[must_use = "dropping it takes the messages out of the queue"]
pub struct Queued {
    _raised: Raised,
}

/// An open session.
#[derive(Debug)]
#[must_use = "dropping it ends the session"]
pub struct Session {
    _open: Raised,
    probe: Probe,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.probe.operation(Component::SessionManager, None, Instant::now());
    }
}
