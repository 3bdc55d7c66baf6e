#![doc = include_str!("../README.md")]

mod alter;
mod answer;
mod backlog;
mod counting;
mod departure;
mod in_flight;
mod instrumentation;
mod link;
mod open;
mod probe;
mod touch;

pub use alter::{Altered, Instead, Place};
pub use answer::{Asked, Reply, id_as_json};
pub use backlog::{Backlog, Next};
pub use departure::{Departure, Lane};
pub use in_flight::InFlight;
pub use instrumentation::{DEFAULT_COMPONENTS, InstrumentError, Instrumentation};
pub use link::Link;
pub use mcpscope_chaos::{Detour, Message, MessageKind, Watch};
pub use open::{Connection, Queued, Session};
pub use probe::{Loss, Observer, Parts, Probe};
pub use touch::{Fate, Passage, Touch};

/// Reads the trace context that a message carries as `traceparent`; nothing if it is not valid.
#[must_use]
pub fn trace_context(traceparent: &str) -> Option<mcpscope_core::TraceContext> {
    mcpscope_tracing::parse_traceparent(traceparent)
}

/// Writes a trace context as `traceparent`.
#[must_use]
pub fn traceparent(context: &mcpscope_core::TraceContext) -> String {
    mcpscope_tracing::traceparent(context)
}

/// Reads a `tracestate`, of which several headers are joined by commas; nothing if it is not valid.
#[must_use]
pub fn tracestate(text: &str) -> Option<Box<str>> {
    mcpscope_tracing::Tracestate::parse(text).map(Into::into)
}
