//! What a probe counts, and under which labels.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mcpscope_core::{Call, CallRecord, Component, Direction, ErrorType, Outcome, Protocol, TraceId, Transport};
use mcpscope_metrics::{Counter, Gauge, Histogram, Metrics, Operation};

use crate::Probe;
use crate::probe::Loss;

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
        self.count_operation(handles, record, trace);
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
        // "To its final result": a result that asks for more input is none.
        let is_final = record.outcome != Outcome::InputRequired;
        if let Some(tool) = call.tool().filter(|_| is_final && self.counts(Component::Tools)) {
            let outcome = record.outcome.as_label();
            observe(&handles.metrics.tool_calls(&call.server, tool, outcome, injected), record, trace);
        }
    }

    /// Counts a notification. It has no answer, and so no duration but zero.
    pub(crate) fn count_notification(&self, record: &CallRecord, trace: Option<TraceId>) {
        let Some(handles) = &self.0.metrics else { return };
        self.count_operation(handles, record, trace);
        if let Some(component) = record.call.method.component() {
            self.count(component, None, false, None, record.started);
        }
    }

    /// Counts a request or notification as the OpenTelemetry MCP conventions want it: what the client sends where it is
    /// received, what the server sends where it is sent.
    fn count_operation(&self, handles: &Handles, record: &CallRecord, trace: Option<TraceId>) {
        let call = &record.call;
        // A stream that is meant to stay open is a connection, and its duration no latency.
        if call.method.is_long_lived() || !self.counts(Component::JsonRpc) {
            return;
        }
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
        let histogram = match call.direction {
            Direction::ToServer => handles.metrics.server_operations(&operation),
            Direction::ToClient => handles.metrics.client_operations(&operation),
        };
        observe(&histogram, record, trace);
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
            let (server, transport) = (&self.0.server, self.0.transport);
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

/// Records how long a call took.
fn observe(histogram: &Histogram, record: &CallRecord, trace: Option<TraceId>) {
    let at = record.started + record.duration;
    match trace {
        Some(trace) => histogram.record_traced(record.duration, trace, at),
        None => histogram.record(record.duration, at),
    }
}
