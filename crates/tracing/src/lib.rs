#![doc = include_str!("../README.md")]

mod buffer;
mod call;
mod context;
mod filter;
mod ids;
#[cfg(feature = "layer")]
mod layer;
mod packed;
mod read;
mod record;
mod sampling;
mod span;
mod store;
mod tracer;
mod tracestate;
mod value;

pub use context::{parse_traceparent, traceparent};
pub use filter::Filter;
#[cfg(feature = "layer")]
pub use layer::layer;
pub use record::{Attribute, Event, Span, SpanKind, Status, Trace, Value};
pub use sampling::{Export, Root, Sampler};
pub use span::SpanGuard;
pub use store::{Cursor, NotStored};
pub use tracer::{Config, Exports, Taken, Tracer};
pub use tracestate::Tracestate;
pub use value::ValueRef;
