#![doc = include_str!("../README.md")]

mod call;
mod component;
mod effect;
mod fault;
mod host;
mod id;
mod labels;
mod method;
mod outcome;
mod protocol;
mod ratio;
mod text;
mod time;

pub use call::{Call, CallEvent, CallEventKind, CallRecord, Direction, Forwarded, Transport};
pub use component::Component;
pub use effect::{Answer, Break, Change, Effect, Injection, OnEnd, Order, Release, ToolsList};
pub use fault::FaultId;
pub use host::{HostPolicy, Origins, Refusal};
pub use id::{RequestId, SpanId, TraceContext, TraceId};
pub use labels::Labels;
pub use method::Method;
pub use outcome::{ErrorType, Outcome};
pub use protocol::{Era, Protocol};
pub use ratio::{InvalidRatio, Ratio};
pub use text::bounded;
pub use time::ClockAnchor;
