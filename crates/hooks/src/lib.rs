#![doc = include_str!("../README.md")]

mod counting;
mod departure;
mod fault;
mod in_flight;
mod instrumentation;
mod open;
mod probe;

pub use departure::Departure;
pub use fault::{Injector, Lane, MessageFacts, Passage};
pub use in_flight::InFlight;
pub use instrumentation::{DEFAULT_COMPONENTS, InstrumentError, Instrumentation};
pub use open::{Connection, Queued, Session};
pub use probe::{Loss, Observer, Parts, Probe};

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
