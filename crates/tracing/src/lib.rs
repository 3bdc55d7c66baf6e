#![doc = include_str!("../README.md")]

mod context;
mod record;
mod tracer;

pub use context::{parse_traceparent, traceparent};
pub use record::{Attribute, Event, Span, SpanKind, Status, Trace, Value};
pub use tracer::{Config, Export, Exports, Filter, Root, Sampler, Taken, Tracer};
