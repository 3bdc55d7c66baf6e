//! What a trace holds.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mcpscope_core::{CallRecord, ClockAnchor, Direction, Outcome, SpanId, TraceId, bounded};

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

/// One operation from its beginning to its end.
#[derive(Clone, Debug)]
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
    /// Method, sizes, and on errors class and message.
    pub details: Vec<(&'static str, Box<str>)>,
    /// The MCP server's name.
    pub server: Arc<str>,
    /// The method.
    pub method: Box<str>,
    /// The tool, for a tool call.
    pub tool: Option<Box<str>>,
    /// Whether a fault touched it.
    pub injected: bool,
    /// Its spans, the root first.
    pub spans: Vec<Span>,
}

/// One span of a trace.
#[derive(Clone, Debug)]
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
    /// Attributes of the OpenTelemetry MCP conventions.
    pub attributes: Vec<(&'static str, Box<str>)>,
    /// What happened on the way.
    pub events: Vec<Event>,
}

/// Something that happened during a span.
#[derive(Clone, Debug)]
pub struct Event {
    /// What.
    pub name: Box<str>,
    /// From the beginning of the trace.
    pub at: Duration,
}

impl Trace {
    /// The trace of one call: its root span, seen from the middle, so a server's to the client.
    pub(crate) fn of_call(record: &CallRecord, anchor: &ClockAnchor) -> Self {
        let call = &record.call;
        let status = Status::of(&record.outcome);
        let named = call.target.as_deref().filter(|_| matches!(call.method.as_str(), "tools/call" | "prompts/get"));
        let operation: Box<str> = match named {
            Some(target) => format!("{} {}", call.method, bounded(target, 256)).into(),
            None => call.method.as_str().into(),
        };
        let tool: Option<Box<str>> = call.tool().map(|tool| bounded(tool, 256).into());
        Self {
            id: record.trace_id,
            timestamp: anchor.wall_at(record.started),
            operation: operation.clone(),
            duration: record.duration,
            status,
            details: details(record),
            server: Arc::clone(&call.server),
            method: call.method.as_str().into(),
            tool,
            injected: record.injected.is_some(),
            spans: vec![Span {
                id: record.span_id,
                parent: call.context.map(|context| context.parent),
                name: operation,
                kind: match call.direction {
                    Direction::ToServer => SpanKind::Server,
                    Direction::ToClient => SpanKind::Client,
                },
                start: Duration::ZERO,
                duration: record.duration,
                status,
                attributes: attributes(record),
                events: Vec::new(),
            }],
        }
    }

    /// About how much memory it takes, in bytes.
    pub(crate) fn weight(&self) -> usize {
        let texts = |pairs: &[(&str, Box<str>)]| {
            pairs.iter().map(|(_, v)| size_of::<(&str, Box<str>)>() + v.len()).sum::<usize>()
        };
        let span = |s: &Span| {
            let events = s.events.iter().map(|e| size_of::<Event>() + e.name.len()).sum::<usize>();
            size_of::<Span>() + s.name.len() + texts(&s.attributes) + events
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

#[expect(clippy::needless_pass_by_value, reason = "numbers and references alike")]
fn text(value: impl ToString) -> Box<str> {
    bounded(&value.to_string(), MAX_VALUE_BYTES).into()
}

fn details(record: &CallRecord) -> Vec<(&'static str, Box<str>)> {
    let mut details = vec![
        ("method", text(&record.call.method)),
        ("request_bytes", text(record.call.request_bytes)),
        ("response_bytes", text(record.response_bytes)),
    ];
    if let Outcome::Error { kind, message } = &record.outcome {
        details.push(("error_class", text(kind.as_label())));
        details.extend(message.as_ref().map(|message| ("error_message", text(message))));
    }
    details
}

fn attributes(record: &CallRecord) -> Vec<(&'static str, Box<str>)> {
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
    attributes.extend(record.error_type().map(|kind| ("error.type", text(kind.as_label()))));
    attributes
}
