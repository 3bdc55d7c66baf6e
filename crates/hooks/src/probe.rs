//! The interception point of one MCP server.

use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mcpscope_chaos::{Endpoint, Injector, Message, Watch};
use mcpscope_core::{
    Call, CallRecord, Component, Direction, ErrorType, FaultId, Injection, Outcome, Protocol, SpanId, TraceId,
    Transport,
};
use mcpscope_metrics::Metrics;
use mcpscope_tracing::{Root, Tracer};

use crate::counting::{Handles, Recent};
use crate::in_flight::InFlight;
use crate::instrumentation::Instrumentation;
use crate::link::Link;
use crate::open::{Connection, Queued, Session};
use crate::touch::{Fate, Passage, Touch};

/// Sees every call that has ended, after it was counted.
pub trait Observer: fmt::Debug + Send + Sync {
    /// Takes a look. It runs on the thread that relays, so it must be quick; a panic in it is caught and counted.
    fn on_call(&self, record: &CallRecord);

    /// A client's request has an id that another request of its session had had before. Told only while an experiment runs.
    fn on_repeated(&self, at: Instant) {
        let _ = at;
    }

    /// A client's request was answered that had been answered before. Told only while an experiment runs.
    fn on_duplicate(&self, at: Instant) {
        let _ = at;
    }
}

/// What was lost: of the observation, while the traffic went on all the same, or of what is no traffic, or not let through.
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
    /// A client's connection, on which no TLS came about.
    Handshake,
    /// A request that the relay refused: for its host or origin, or because it is none that can be passed on.
    RefusedRequest,
}

impl Loss {
    pub(crate) const ALL: [Self; 10] = [
        Self::OversizedMessage,
        Self::EncodedMessage,
        Self::Panic,
        Self::Trace,
        Self::TraceEvicted,
        Self::UntrackedCall,
        Self::UnmatchedResponse,
        Self::UntrackedSession,
        Self::Handshake,
        Self::RefusedRequest,
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
            Self::Handshake => "tls_handshake",
            Self::RefusedRequest => "refused_request",
        }
    }
}

/// The interception point of one MCP server. Cheap to clone; every clone is the same.
///
/// Nothing it does can fail, block or panic into its caller: what goes wrong inside is counted ([`Loss`]).
#[derive(Clone, Debug)]
pub struct Probe(pub(crate) Arc<Local>);

/// A probe as one connection has it: what is cloned, counted by reference and remembered for each message is written by
/// those who handle this connection, and by no other processor.
#[derive(Debug)]
pub(crate) struct Local {
    server: Arc<str>,
    pub(crate) recent: Recent,
    shared: Arc<Inner>,
}

impl Local {
    fn new(shared: Arc<Inner>) -> Self {
        Self { server: (&*shared.server).into(), recent: Recent::default(), shared }
    }
}

impl Deref for Local {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.shared
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    server: Arc<str>,
    pub(crate) transport: Transport,
    pub(crate) metrics: Option<Handles>,
    pub(crate) tracer: Option<Tracer>,
    propagate: bool,
    /// Who decides what faults do, and this server as he knows it.
    chaos: Option<(Injector, Endpoint)>,
    observer: Option<Arc<dyn Observer>>,
    pub(crate) instrumentation: Option<Instrumentation>,
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
    /// Whether requests that go on are to carry our trace context; only with a tracer.
    pub propagate: bool,
    /// Who decides what faults do to messages.
    pub injector: Option<Injector>,
    /// Whether no fault may do anything to this server.
    pub critical: bool,
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
            propagate: false,
            injector: None,
            critical: false,
            observer: None,
            instrumentation: None,
        }
    }
}

impl Probe {
    /// Puts a probe together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { server, transport, metrics, tracer, propagate, injector, critical, observer, instrumentation } =
            parts;
        let metrics = metrics.map(|metrics| Handles::new(metrics, &server, transport));
        let propagate = propagate && tracer.is_some();
        let chaos = injector.map(|injector| {
            let endpoint = injector.endpoint(&server, transport, critical);
            (injector, endpoint)
        });
        let inner = Inner { server, transport, metrics, tracer, propagate, chaos, observer, instrumentation };
        Self(Arc::new(Local::new(Arc::new(inner))))
    }

    /// The same interception point for one more connection: what two of these write for each message does not lie in one
    /// place, for which two processors would have to wait in turn.
    #[must_use]
    pub fn for_connection(&self) -> Self {
        Self(Arc::new(Local::new(Arc::clone(&self.0.shared))))
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
        self.0.metrics.is_some() || self.0.tracer.is_some() || self.0.chaos.is_some() || self.0.observer.is_some()
    }

    /// Whether messages must be held until they are complete, because a fault may want to touch them.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.0.chaos.as_ref().is_some_and(|(injector, _)| injector.is_active())
    }

    /// Whether connections may be led through a network of a fault's.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.0.chaos.as_ref().is_some_and(|(injector, _)| injector.leads())
    }

    /// Whether requests that go on are to carry our trace context, for which they must be held until they are complete.
    #[must_use]
    pub fn propagates(&self) -> bool {
        self.0.propagate
    }

    /// A connection of this server, as faults see it: of this session, if it has a name.
    #[must_use]
    pub fn link(&self, session: Option<&str>) -> Link {
        let endpoint = self.0.chaos.as_ref().map(|(_, endpoint)| endpoint);
        self.guarded(|| Link::new(endpoint, session)).unwrap_or_default()
    }

    /// What faults do to a message that belongs to no call, travels in this direction and arrived at `at`.
    /// [`InFlight::admit`] is for those of a call.
    pub fn admit(&self, link: &Link, direction: Direction, message: &Message<'_>, at: Instant) -> Passage {
        if !self.holds() {
            return Passage::Now;
        }
        let injections = self.guarded(|| link.decide(direction, message, at)).unwrap_or_default();
        Passage::new(injections, at)
    }

    /// What becomes at `now` of a message that faults have touched; `is_cancelled` tells whether the call that it answers was
    /// given up by its caller.
    pub fn fate(&self, touch: &Touch, now: Instant, is_cancelled: impl Fn() -> bool) -> Fate {
        touch.fate(
            now,
            |fault| self.0.chaos.as_ref().is_some_and(|(injector, _)| injector.is_live(fault, now)),
            is_cancelled,
        )
    }

    /// Whether the fault of an injection is still active at `now`.
    #[must_use]
    pub fn is_live(&self, injection: &Injection, now: Instant) -> bool {
        let is_live = |(injector, _): &(Injector, Endpoint)| injector.is_live(injection.fault, now);
        now < injection.ends && self.0.chaos.as_ref().is_some_and(is_live)
    }

    /// These were acted on.
    pub fn acted<'i>(&self, injections: impl IntoIterator<Item = &'i Injection>) {
        if let Some((injector, _)) = &self.0.chaos {
            injections.into_iter().for_each(|injection| injector.acted(injection));
        }
    }

    /// `watcher` is told whenever faults begin or end, as long as it lives; not when one expires, which is told before.
    pub fn watch(&self, watcher: &Arc<dyn Watch>) {
        if let Some((injector, _)) = &self.0.chaos {
            injector.watch(watcher);
        }
    }

    /// Marks the server as critical, or takes the mark away: no fault may do anything to it then.
    pub fn set_critical(&self, critical: bool) {
        if let Some((_, endpoint)) = &self.0.chaos {
            endpoint.set_critical(critical);
        }
    }

    /// Whether faults can be injected here.
    #[must_use]
    pub fn has_faults(&self) -> bool {
        self.0.chaos.is_some()
    }

    /// Begins a call whose message was first seen at `at`.
    pub fn begin(&self, call: Call, at: Instant) -> InFlight {
        self.begin_held_up(call, at, at)
    }

    /// The same of a message that had waited `since` then until it was seen at `at`, because there was nobody to pass it on to:
    /// the call began then, and was in a queue for so long.
    pub fn begin_held_up(&self, call: Call, since: Instant, at: Instant) -> InFlight {
        let root = self.guarded(|| {
            self.count_registry_operation(&call, at);
            self.0.tracer.as_ref().map(|tracer| tracer.start(Component::JsonRpc, call.context))
        });
        InFlight::new(self, root.flatten(), call, since, at)
    }

    /// Takes note of a notification.
    pub fn notify(&self, call: Call, at: Instant) {
        self.guarded(|| {
            self.count_registry_operation(&call, at);
            let root = self.0.tracer.as_ref().map(|tracer| tracer.start(Component::Transport, call.context));
            let root = root.unwrap_or(NO_TRACE);
            let record = record(call, at, root);
            let trace = self.keep_trace(&record, root);
            self.count_notification(&record, trace);
        });
    }

    /// Counts an operation of a component, and its error if it had one.
    pub fn operation(&self, component: Component, error: Option<ErrorType>, at: Instant) {
        self.guarded(|| self.count(component, error, false, None, at));
    }

    /// The experiment that wants to know what becomes of calls; of those that run at the same time, the first. One relaxed load.
    #[must_use]
    pub fn followed_since(&self) -> Option<FaultId> {
        self.0.chaos.as_ref().and_then(|(_, endpoint)| endpoint.followed_since())
    }

    /// A client's request has an id that another request of its session had had before.
    pub fn repeated(&self, at: Instant) {
        self.guarded(|| self.0.observer.iter().for_each(|observer| observer.on_repeated(at)));
    }

    /// A client's request was answered that had been answered before.
    pub fn duplicate(&self, at: Instant) {
        self.guarded(|| self.0.observer.iter().for_each(|observer| observer.on_duplicate(at)));
    }

    /// Counts the end of the server, in an error or not, and by a fault or not.
    pub fn server_ended(&self, error: Option<ErrorType>, fault: Option<FaultId>, at: Instant) {
        self.guarded(|| self.count(Component::Server, error, fault.is_some(), None, at));
    }

    /// Counts that a call got no answer because of its connection, by a fault or not.
    pub fn broke_off(&self, error: ErrorType, fault: Option<FaultId>, at: Instant) {
        self.guarded(|| self.count(Component::Transport, Some(error), fault.is_some(), None, at));
    }

    /// Counts something that the observation lost.
    pub fn lost(&self, loss: Loss, at: Instant) {
        self.guarded(|| {
            if let Some(handles) = &self.0.metrics {
                handles.losses[loss as usize].increment(at);
            }
        });
    }

    /// Counts that the server was started again after a crash.
    pub fn restarted(&self, at: Instant) {
        self.guarded(|| {
            if let Some(handles) = &self.0.metrics {
                handles.metrics.restarts(&self.0.server).increment(at);
            }
        });
    }

    /// A connection or stream is open until the value is dropped.
    pub fn connection(&self, at: Instant) -> Connection {
        Connection::new(self.0.metrics.as_ref().map(|handles| handles.connections.clone()), at)
    }

    /// A session of this revision is open until the value is dropped, or until [`Session::end`]. How long it lasted is
    /// recorded if it is known when it `started`.
    pub fn session(&self, protocol: Protocol, started: Option<Instant>, at: Instant) -> Session {
        let gauge = self.guarded(|| {
            self.0.metrics.as_ref().map(|handles| handles.metrics.active_sessions(&self.0.server, protocol))
        });
        Session::new(self, protocol, gauge.flatten(), started, at)
    }

    /// `messages` messages, the last bytes of which were read at `at`, are in the proxy until the value is dropped.
    pub fn queued(&self, direction: Direction, messages: usize, at: Instant) -> Queued {
        Queued::new(self, direction, messages, at)
    }

    /// Records a call that has ended.
    pub(crate) fn end(&self, record: &CallRecord, root: Root) {
        // The trace first, so that no exemplar leads to one that is not there.
        let trace = self.guarded(|| self.keep_trace(record, root)).flatten();
        self.guarded(|| self.count_call(record, trace));
        if let Some(observer) = &self.0.observer {
            self.guarded(|| observer.on_call(record));
        }
        if let Some((_, endpoint)) = self.0.chaos.as_ref().filter(|(_, endpoint)| endpoint.is_followed()) {
            self.guarded(|| tell(endpoint, record));
        }
    }

    /// Keeps and exports a trace as was decided; returns its id if someone can find it.
    fn keep_trace(&self, record: &CallRecord, root: Root) -> Option<TraceId> {
        let tracer = self.0.tracer.as_ref().filter(|_| root.is_recorded())?;
        match tracer.record_call(record, root) {
            Ok(evicted) => {
                (0..evicted).for_each(|_| self.lost(Loss::TraceEvicted, record.started));
                Some(record.trace_id)
            }
            Err(_) => {
                self.lost(Loss::Trace, record.started);
                None
            }
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

/// Tells whoever waits for a server to be of use again what became of a call of it.
#[cold]
fn tell(endpoint: &Endpoint, record: &CallRecord) {
    let call = &record.call;
    let is_a_clients = call.direction == Direction::ToServer && call.id.is_some() && !call.method.is_long_lived();
    let is_good = match &record.outcome {
        Outcome::Ok | Outcome::InputRequired => true,
        // Told to be the caller's mistake, and yet: a server that has lost a session answers every call in it so, and who can make no
        // other call is not served again.
        Outcome::Error { kind: ErrorType::HttpStatus(_), .. } => false,
        // The caller's mistakes, and what was given up, say nothing of the server.
        _ => return,
    };
    // Nor does what a fault has made of a call.
    if is_a_clients && record.injected.is_none() {
        endpoint.call_ended(is_good, record.started, record.started + record.duration);
    }
}

/// What is recorded of a call that has just begun.
#[inline]
pub(crate) fn record(call: Call, started: Instant, root: Root) -> CallRecord {
    CallRecord {
        call,
        started,
        duration: Duration::ZERO,
        outcome: Outcome::Ok,
        response_bytes: 0,
        injected: None,
        trace_id: root.trace_id,
        span_id: root.span_id,
        forwarded: None,
        events: Vec::new(),
        dropped_events: 0,
    }
}

/// What a call without a tracer carries as its trace; it is never shown.
pub(crate) const NO_TRACE: Root = Root {
    trace_id: TraceId(std::num::NonZeroU128::MIN),
    span_id: SpanId(std::num::NonZeroU64::MIN),
    kept: false,
    exported: false,
};
