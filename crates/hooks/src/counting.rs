//! What a probe counts, and under which labels.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use mcpscope_core::{Call, CallRecord, Component, Direction, ErrorType, Method, Outcome, Protocol, TraceId, Transport};
use mcpscope_metrics::{Counter, Gauge, Histogram, Metrics, Operation};

use crate::Probe;
use crate::probe::Loss;

/// The series in which the times of calls like one are recorded: found when they are first needed.
#[derive(Debug, Default)]
pub(crate) struct Times {
    operations: Option<Histogram>,
    tool_calls: Option<Histogram>,
}

/// The series of the calls that a connection made last and that ended well: to find them by their labels takes longer than
/// all else that is done to count a call.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<[Option<(Alike, Times)>; RECENT]>);

/// How many different calls an agent makes in turn, roughly.
const RECENT: usize = 4;

/// What calls have in common that are counted in the same series, once they have ended well.
#[derive(Debug)]
struct Alike {
    direction: Direction,
    method: Method,
    target: Option<Box<str>>,
    protocol: Option<Protocol>,
}

impl Alike {
    fn new(call: &Call) -> Self {
        let Call { direction, method, target, protocol, .. } = call;
        Self { direction: *direction, method: method.clone(), target: target.clone(), protocol: *protocol }
    }

    fn is(&self, call: &Call) -> bool {
        self.direction == call.direction
            && self.method == call.method
            && self.target == call.target
            && self.protocol == call.protocol
    }
}

impl Recent {
    /// Calls `with` with the series of calls like this one; with none where somebody else is at it, for whom nobody waits.
    fn with(&self, call: &Call, with: impl FnOnce(&mut Times)) {
        let mut recent = match self.0.try_lock() {
            Ok(recent) => recent,
            Err(TryLockError::Poisoned(recent)) => recent.into_inner(),
            Err(TryLockError::WouldBlock) => return with(&mut Times::default()),
        };
        let found = recent.iter().position(|entry| entry.as_ref().is_some_and(|(alike, _)| alike.is(call)));
        let place = found.unwrap_or(RECENT - 1);
        // The last one used comes first, and the one that was used least lately makes room.
        recent[..=place].rotate_right(1);
        let [first, ..] = &mut *recent;
        if found.is_none() {
            *first = None;
        }
        let (_, times) = first.get_or_insert_with(|| (Alike::new(call), Times::default()));
        with(times);
    }
}

/// What can be resolved before the first message.
#[derive(Debug)]
pub(crate) struct Handles {
    pub(crate) metrics: Metrics,
    operations: [Counter; Component::ALL.len()],
    pub(crate) connections: Gauge,
    pub(crate) queues: [Gauge; 2],
    pub(crate) overheads: [Histogram; 2],
    pub(crate) losses: [Counter; Loss::ALL.len()],
}

impl Handles {
    pub(crate) fn new(metrics: Metrics, server: &Arc<str>, transport: Transport) -> Self {
        metrics.announce_server(server, transport);
        Self {
            operations: Component::ALL.map(|component| metrics.component_operations(component, false)),
            connections: metrics.transport_connections(server, transport),
            queues: Direction::ALL.map(|direction| metrics.queue_depth(server, direction)),
            overheads: Direction::ALL.map(|direction| metrics.proxy_overhead(server, direction)),
            losses: Loss::ALL.map(|loss| metrics.dropped(loss.as_str())),
            metrics,
        }
    }
}

impl Probe {
    /// Counts a call that has ended. Where `trace` is kept, it is given as an example.
    pub(crate) fn count_call(&self, record: &CallRecord, trace: Option<TraceId>) {
        let Some(handles) = &self.0.metrics else { return };
        let (call, at, injected) = (&record.call, record.started + record.duration, record.injected.is_some());
        self.count_times(handles, record, trace);
        // An error in the answer to a server's own request is the client's, and counts against no component.
        let error = record.outcome.server_error().filter(|_| call.direction == Direction::ToServer);
        // A tool that failed was called by JSON-RPC without fault.
        self.count(Component::JsonRpc, error.filter(|kind| *kind != ErrorType::Tool), injected, trace, at);
        if call.direction == Direction::ToClient {
            return;
        }
        if let Some(component) = call.method.component() {
            self.count(component, error, injected, trace, at);
        }
        if call.method.opens_session() && record.outcome == Outcome::Ok && self.counts(Component::SessionManager) {
            let protocol = call.protocol.unwrap_or(Protocol::Other);
            observe(&handles.metrics.session_creation(&call.server, protocol), record, trace);
        }
    }

    /// Records how long a call took: as an operation of MCP, and as a call of a tool if it is one.
    fn count_times(&self, handles: &Handles, record: &CallRecord, trace: Option<TraceId>) {
        let times = |times: &mut Times| {
            self.count_operation(handles, times, record, trace);
            self.count_tool(handles, times, record, trace);
        };
        // Nearly all calls end like this.
        if record.outcome == Outcome::Ok && record.injected.is_none() {
            self.0.recent.with(&record.call, times);
        } else {
            times(&mut Times::default());
        }
    }

    fn count_tool(&self, handles: &Handles, times: &mut Times, record: &CallRecord, trace: Option<TraceId>) {
        let call = &record.call;
        // "To its final result": a result that asks for more input is none.
        let is_counted = call.direction == Direction::ToServer
            && record.outcome != Outcome::InputRequired
            && self.counts(Component::Tools);
        let Some(tool) = call.tool().filter(|_| is_counted) else { return };
        let (outcome, injected) = (record.outcome.as_label(), record.injected.is_some());
        let find = || handles.metrics.tool_calls(&call.server, tool, outcome, injected);
        observe_in(&mut times.tool_calls, find, &[("tool", tool)], record, trace);
    }

    /// Counts a notification. It has no answer, and so no duration but zero.
    pub(crate) fn count_notification(&self, record: &CallRecord, trace: Option<TraceId>) {
        let Some(handles) = &self.0.metrics else { return };
        self.0.recent.with(&record.call, |times| self.count_operation(handles, times, record, trace));
        if let Some(component) = record.call.method.component() {
            self.count(component, None, false, None, record.started);
        }
    }

    /// Counts a request or notification as the OpenTelemetry MCP conventions want it: what the client sends where it is
    /// received, what the server sends where it is sent.
    fn count_operation(&self, handles: &Handles, times: &mut Times, record: &CallRecord, trace: Option<TraceId>) {
        let call = &record.call;
        // A stream that is meant to stay open is a connection, and its duration no latency.
        if call.method.is_long_lived() || !self.counts(Component::JsonRpc) {
            return;
        }
        let wanted = [
            ("mcp_method_name", call.method.as_str()),
            ("gen_ai_tool_name", call.tool().unwrap_or_default()),
            ("gen_ai_prompt_name", call.prompt().unwrap_or_default()),
        ];
        observe_in(&mut times.operations, || operations(handles, record), &wanted, record, trace);
    }

    /// Counts a session that has ended, and how long it lasted if that is known.
    pub(crate) fn count_session(
        &self,
        protocol: Protocol,
        lasted: Option<Duration>,
        error: Option<ErrorType>,
        at: Instant,
    ) {
        self.count(Component::SessionManager, None, false, None, at);
        if let (Some(handles), Some(lasted)) = (&self.0.metrics, lasted)
            && self.counts(Component::SessionManager)
        {
            let error_type = error.map_or(Cow::Borrowed(""), ErrorType::as_label);
            let (server, transport) = (self.server(), self.0.transport);
            handles.metrics.server_sessions(server, protocol, transport, &error_type).record(lasted, at);
        }
    }

    /// Counts an operation of a component, and its error if it had one.
    pub(crate) fn count(
        &self,
        component: Component,
        error: Option<ErrorType>,
        injected: bool,
        trace: Option<TraceId>,
        at: Instant,
    ) {
        let Some(handles) = self.0.metrics.as_ref().filter(|_| self.counts(component)) else { return };
        if injected {
            handles.metrics.component_operations(component, true).increment(at);
        } else {
            handles.operations[component as usize].increment(at);
        }
        if let Some(error) = error {
            let errors = handles.metrics.component_errors(component, &error.as_label(), injected);
            match trace {
                Some(trace) => errors.increment_traced(trace, at),
                None => errors.increment(at),
            }
        }
    }

    pub(crate) fn counts(&self, component: Component) -> bool {
        self.0.instrumentation.as_ref().is_none_or(|instrumentation| instrumentation.is_on(component))
    }

    pub(crate) fn count_registry_operation(&self, call: &Call, at: Instant) {
        if let (Some(handles), Some(operation)) = (&self.0.metrics, call.method.registry_operation())
            && self.counts(Component::Registry)
        {
            handles.metrics.registry_operations(&call.server, operation).increment(at);
        }
    }
}

/// The series of an operation.
fn operations(handles: &Handles, record: &CallRecord) -> Histogram {
    let call = &record.call;
    let error_type = record.error_type().map_or(Cow::Borrowed(""), ErrorType::as_label);
    let status_code = record.outcome.rpc_code().map(|code| code.to_string());
    let operation = Operation {
        server: &call.server,
        method: call.method.as_str(),
        tool: call.tool(),
        prompt: call.prompt(),
        error_type: &error_type,
        status_code: status_code.as_deref().unwrap_or_default(),
        protocol: call.protocol,
        transport: call.transport,
        injected: record.injected.is_some(),
    };
    match call.direction {
        Direction::ToServer => handles.metrics.server_operations(&operation),
        Direction::ToClient => handles.metrics.client_operations(&operation),
    }
}

/// Records how long a call took in this series, or in the one that is found: it is kept if it is the one that was wanted.
/// That of all labels for which there was no place is found, and counted as such, each time.
fn observe_in(
    series: &mut Option<Histogram>,
    find: impl FnOnce() -> Histogram,
    wanted: &[(&str, &str)],
    record: &CallRecord,
    trace: Option<TraceId>,
) {
    match series {
        Some(series) => observe(series, record, trace),
        None => {
            let found = find();
            observe(&found, record, trace);
            let is_wanted = wanted.iter().all(|(name, value)| found.label(name).unwrap_or_default() == *value);
            *series = Some(found).filter(|_| is_wanted);
        }
    }
}

/// Records how long a call took.
fn observe(histogram: &Histogram, record: &CallRecord, trace: Option<TraceId>) {
    let at = record.started + record.duration;
    match trace {
        Some(trace) => histogram.record_traced(record.duration, trace, at),
        None => histogram.record(record.duration, at),
    }
}
