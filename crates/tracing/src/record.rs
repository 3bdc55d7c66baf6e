//! What a trace holds.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mcpscope_core::{Outcome, SpanId, TraceId};

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// With a result.
    Ok,
    /// With an error, the caller's own ones included.
    Error,
    /// Without an answer in time.
    Timeout,
    /// The caller did not want the answer any more.
    Cancelled,
}

impl Status {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 4] = [Self::Ok, Self::Error, Self::Timeout, Self::Cancelled];

    /// `ok`, `error`, `timeout` or `cancelled`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads what [`Status::as_str`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    pub(crate) const fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Ok | Outcome::InputRequired => Self::Ok,
            Outcome::Error { .. } => Self::Error,
            Outcome::Timeout => Self::Timeout,
            Outcome::Cancelled => Self::Cancelled,
        }
    }
}

/// Which side of a call a span stands for (OpenTelemetry span kind).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// The receiver of the request.
    Server,
    /// The sender of the request.
    Client,
    /// Neither.
    Internal,
}

impl SpanKind {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 3] = [Self::Server, Self::Client, Self::Internal];

    /// `server`, `client` or `internal`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Internal => "internal",
        }
    }
}

/// The value of an attribute or detail.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text.
    Str(Box<str>),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// Yes or no.
    Bool(bool),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Str(text) => f.write_str(text),
            Self::Int(number) => number.fmt(f),
            Self::Float(number) => number.fmt(f),
            Self::Bool(yes) => yes.fmt(f),
        }
    }
}

/// A name and what it stands for.
pub type Attribute = (Cow<'static, str>, Value);

/// One operation from its beginning to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The W3C trace id.
    pub id: TraceId,
    /// When it began.
    pub timestamp: SystemTime,
    /// `{method} {tool or prompt}`, as the OpenTelemetry MCP conventions name the span.
    pub operation: Box<str>,
    /// How long it took.
    pub duration: Duration,
    /// How it ended.
    pub status: Status,
    /// Method, sizes, where the time went, and on errors class and message.
    pub details: Vec<Attribute>,
    /// The MCP server's name.
    pub server: Arc<str>,
    /// The method.
    pub method: Box<str>,
    /// The tool, for a tool call.
    pub tool: Option<Box<str>>,
    /// The session it belongs to, where it has one.
    pub session: Option<Box<str>>,
    /// Whether a fault touched it.
    pub injected: bool,
    /// Whether it is no whole trace, but a span that ended later than the root of its trace; only exporters see these alone.
    pub late: bool,
    /// Its spans, the root first.
    pub spans: Vec<Span>,
}

/// One span of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The span id.
    pub id: SpanId,
    /// The span it belongs under; for the root that of the caller, if it told.
    pub parent: Option<SpanId>,
    /// The name.
    pub name: Box<str>,
    /// Which side it stands for.
    pub kind: SpanKind,
    /// From the beginning of the trace until the span's.
    pub start: Duration,
    /// How long it took.
    pub duration: Duration,
    /// How it ended.
    pub status: Status,
    /// What went wrong, in words, where something did.
    pub message: Option<Box<str>>,
    /// `tracestate` of the context it belongs to, valid, where there is one.
    pub tracestate: Option<Box<str>>,
    /// Those of the OpenTelemetry MCP conventions, where they apply.
    pub attributes: Vec<Attribute>,
    /// What happened on the way.
    pub events: Vec<Event>,
    /// Events that found no place.
    pub dropped_events: u32,
}

/// Something that happened during a span.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What.
    pub name: Box<str>,
    /// From the beginning of the trace.
    pub at: Duration,
    /// What is known about it.
    pub attributes: Vec<Attribute>,
}

impl Trace {
    /// Adds the spans of another record of the same trace.
    pub(crate) fn absorb(&mut self, other: Self) {
        let offset = other.timestamp.duration_since(self.timestamp).unwrap_or_default();
        self.duration = self.duration.max(offset + other.duration);
        if self.status == Status::Ok {
            self.status = other.status;
        }
        self.injected |= other.injected;
        self.spans.extend(other.spans.into_iter().map(|mut span| {
            span.start += offset;
            span.events.iter_mut().for_each(|event| event.at += offset);
            span
        }));
    }
}
