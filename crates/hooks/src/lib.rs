#![doc = include_str!("../README.md")]

mod counting;
mod fault;
mod in_flight;
mod instrumentation;
mod open;
mod probe;

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
