//! What a trace holds.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::{
    CallEvent, CallEventKind, CallRecord, ClockAnchor, Direction, ErrorType, Forwarded, Outcome, SpanId, TraceId,
    bounded,
};

/// Longest attribute or detail value kept, in bytes: message contents never enter, and what does is bounded.
const MAX_VALUE_BYTES: usize = 1024;

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
        [Self::Ok, Self::Error, Self::Timeout, Self::Cancelled].into_iter().find(|status| status.as_str() == text)
    }

    const fn of(outcome: &Outcome) -> Self {
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
    /// The trace of one call, seen from the middle: a server's span to whoever asked and, where the call was sent on, a
    /// client's to whoever answered.
    pub(crate) fn of_call(record: &CallRecord, anchor: &ClockAnchor) -> Self {
        let call = &record.call;
        let status = Status::of(&record.outcome);
        let named = call.target.as_deref().filter(|_| matches!(call.method.as_str(), "tools/call" | "prompts/get"));
        let operation: Box<str> = match named {
            Some(target) => format!("{} {}", call.method, bounded(target, 256)).into(),
            None => call.method.as_str().into(),
        };
        let at = |at: Instant| at.saturating_duration_since(record.started).min(record.duration);
        let root = Span {
            id: record.span_id,
            parent: call.context.map(|context| context.parent),
            name: operation.clone(),
            // An instrumented program that asks is the client itself, and not in the middle.
            kind: match call.direction {
                Direction::ToClient if record.forwarded.is_none() => SpanKind::Client,
                _ => SpanKind::Server,
            },
            start: Duration::ZERO,
            duration: record.duration,
            status,
            message: record.outcome.message().map(|message| bounded(message, MAX_VALUE_BYTES).into()),
            tracestate: call.tracestate.clone(),
            attributes: attributes(record, record.error_type()),
            events: record.events.iter().map(|event| Event::of(event, at(event.at))).collect(),
            dropped_events: 0,
        };
        let forwarded = record.forwarded.map(|forwarded| Span {
            id: forwarded.span_id,
            parent: Some(root.id),
            kind: SpanKind::Client,
            start: at(forwarded.sent),
            duration: record.duration.saturating_sub(at(forwarded.sent)),
            attributes: attributes(record, record.outcome.any_error()),
            events: Vec::new(),
            ..root.clone()
        });
        Self {
            id: record.trace_id,
            timestamp: anchor.wall_at(record.started),
            operation,
            duration: record.duration,
            status,
            details: details(record, &at),
            server: Arc::clone(&call.server),
            method: call.method.as_str().into(),
            tool: call.tool().map(|tool| bounded(tool, 256).into()),
            session: call.session.as_deref().map(|session| bounded(session, 256).into()),
            injected: record.injected.is_some(),
            spans: std::iter::once(root).chain(forwarded).collect(),
        }
    }

    /// About how much memory it takes, in bytes.
    pub(crate) fn weight(&self) -> usize {
        let texts = |pairs: &[Attribute]| {
            let text = |value: &Value| if let Value::Str(text) = value { text.len() } else { 0 };
            pairs.iter().map(|(_, value)| size_of::<Attribute>() + text(value)).sum::<usize>()
        };
        let span = |s: &Span| {
            let events =
                s.events.iter().map(|e| size_of::<Event>() + e.name.len() + texts(&e.attributes)).sum::<usize>();
            let message = s.message.as_ref().map_or(0, |message| message.len());
            size_of::<Span>() + s.name.len() + message + texts(&s.attributes) + events
        };
        let own = self.operation.len() + self.method.len() + self.tool.as_ref().map_or(0, |tool| tool.len());
        size_of::<Self>() + own + texts(&self.details) + self.spans.iter().map(span).sum::<usize>()
    }

    /// Adds the spans of another record of the same trace.
    pub(crate) fn absorb(&mut self, other: &Self) {
        let offset = other.timestamp.duration_since(self.timestamp).unwrap_or_default();
        self.duration = self.duration.max(offset + other.duration);
        if self.status == Status::Ok {
            self.status = other.status;
        }
        self.injected |= other.injected;
        self.spans.extend(other.spans.iter().cloned().map(|mut span| {
            span.start += offset;
            span.events.iter_mut().for_each(|event| event.at += offset);
            span
        }));
    }
}

impl Event {
    fn of(event: &CallEvent, at: Duration) -> Self {
        let (name, attributes) = match event.kind {
            CallEventKind::Progress { progress, total } => {
                let number = |name, number: Option<f64>| Some((Cow::Borrowed(name), Value::Float(number?)));
                ("notifications/progress", [number("progress", progress), number("total", total)].into_iter().flatten())
            }
            CallEventKind::Cancelled => ("notifications/cancelled", [None, None].into_iter().flatten()),
        };
        Self { name: name.into(), at, attributes: attributes.collect() }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "numbers and references alike")]
fn text(value: impl ToString) -> Value {
    Value::Str(bounded(&value.to_string(), MAX_VALUE_BYTES).into())
}

fn number(number: u64) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn details(record: &CallRecord, at: &dyn Fn(Instant) -> Duration) -> Vec<Attribute> {
    let us = |time: Duration| number(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    let mut details = vec![
        ("method", text(&record.call.method)),
        ("request_bytes", number(record.call.request_bytes)),
        ("response_bytes", number(record.response_bytes)),
    ];
    if let Some(Forwarded { queued, sent, .. }) = record.forwarded {
        details.push(("proxy_us", us(at(queued))));
        details.push(("queue_us", us(at(sent).saturating_sub(at(queued)))));
        details.push(("server_us", us(record.duration.saturating_sub(at(sent)))));
    }
    details.extend(record.outcome.any_error().map(|kind| ("error_class", text(kind.as_label()))));
    details.extend(record.outcome.message().map(|message| ("error_message", text(message))));
    details.into_iter().map(|(name, value)| (Cow::Borrowed(name), value)).collect()
}

fn attributes(record: &CallRecord, error: Option<ErrorType>) -> Vec<Attribute> {
    let call = &record.call;
    let mut attributes =
        vec![("mcp.method.name", text(&call.method)), ("network.transport", text(call.transport.network()))];
    attributes.extend(call.id.as_ref().map(|id| ("jsonrpc.request.id", text(id))));
    attributes.extend(call.protocol.map(|protocol| ("mcp.protocol.version", text(protocol))));
    attributes.extend(call.session.as_ref().map(|session| ("mcp.session.id", text(session))));
    let target = call.target.as_ref();
    match call.method.as_str() {
        "tools/call" => {
            attributes.push(("gen_ai.operation.name", text("execute_tool")));
            attributes.extend(target.map(|tool| ("gen_ai.tool.name", text(tool))));
        }
        "prompts/get" => attributes.extend(target.map(|prompt| ("gen_ai.prompt.name", text(prompt)))),
        _ => attributes.extend(target.map(|uri| ("mcp.resource.uri", text(uri)))),
    }
    attributes.extend(record.outcome.rpc_code().map(|code| ("rpc.response.status_code", text(code))));
    attributes.extend(error.map(|kind| ("error.type", text(kind.as_label()))));
    attributes.into_iter().map(|(name, value)| (Cow::Borrowed(name), value)).collect()
}
