#![doc = include_str!("../README.md")]

mod context;
mod record;
mod tracer;

pub use context::{parse_traceparent, traceparent};
pub use record::{Event, Span, SpanKind, Status, Trace};
pub use tracer::{Config, Filter, Root, Tracer};
