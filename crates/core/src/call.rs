//! What is known of a call, when it begins and when it has ended.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{ErrorType, FaultId, Method, Outcome, Protocol, RequestId, SpanId, TraceContext, TraceId};

/// The way a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

impl Direction {
    /// Both ways.
    pub const ALL: [Self; 2] = [Self::ToServer, Self::ToClient];

    /// The value of the label `direction`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ToServer => "to_server",
            Self::ToClient => "to_client",
        }
    }

    /// The way an answer travels.
    #[must_use]
    pub const fn reverse(self) -> Self {
        match self {
            Self::ToServer => Self::ToClient,
            Self::ToClient => Self::ToServer,
        }
    }
}

/// How messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Lines on standard input and output.
    Stdio,
    /// Streamable HTTP, and its predecessor HTTP+SSE.
    Http,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Stdio, Self::Http];

    /// The value of the label `transport`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdio => "stdio",
            Self::Http => "http",
        }
    }

    /// `network.transport` of the OpenTelemetry conventions.
    #[must_use]
    pub const fn network(self) -> &'static str {
        match self {
            Self::Stdio => "pipe",
            Self::Http => "tcp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A request or notification as it begins.
#[derive(Clone, Debug)]
pub struct Call {
    /// The MCP server's name in every label.
    pub server: Arc<str>,
    /// How it travels.
    pub transport: Transport,
    /// Which way it travels.
    pub direction: Direction,
    /// The revision it belongs to, where known yet.
    pub protocol: Option<Protocol>,
    /// The method.
    pub method: Method,
    /// Its id; none for a notification.
    pub id: Option<RequestId>,
    /// The tool's or prompt's name, or the resource's URI.
    pub target: Option<Box<str>>,
    /// The session it belongs to, where the revision has sessions.
    pub session: Option<Arc<str>>,
    /// Size of the whole message, in bytes.
    pub request_bytes: u64,
    /// The trace context it carries.
    pub context: Option<TraceContext>,
    /// The `tracestate` that came with it, valid, where there is one.
    pub tracestate: Option<Box<str>>,
}

impl Call {
    /// The tool's name, if this is a tool call.
    #[must_use]
    pub fn tool(&self) -> Option<&str> {
        if self.method.as_str() == "tools/call" { self.target.as_deref() } else { None }
    }

    /// The prompt's name, if a prompt is asked for.
    #[must_use]
    pub fn prompt(&self) -> Option<&str> {
        if self.method.as_str() == "prompts/get" { self.target.as_deref() } else { None }
    }
}

/// A call that has ended.
#[derive(Clone, Debug)]
pub struct CallRecord {
    /// The call.
    pub call: Call,
    /// When its message was first seen, or began to wait to be because there was no server for it.
    pub started: Instant,
    /// From then until its answer was seen; zero for a notification.
    pub duration: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// Size of the answer's whole message, in bytes; 0 without one.
    pub response_bytes: u64,
    /// The fault that touched it, if any.
    pub injected: Option<FaultId>,
    /// The trace it belongs to.
    pub trace_id: TraceId,
    /// Its span in that trace.
    pub span_id: SpanId,
    /// How it was sent on, where it was.
    pub forwarded: Option<Forwarded>,
    /// What happened on the way, oldest first.
    pub events: Vec<CallEvent>,
    /// Later ones that found no place.
    pub dropped_events: u32,
}

/// A call as the one in the middle sends it on, and so a client's to whoever answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The span of the call from there on.
    pub span_id: SpanId,
    /// When everything that had to be done with it was done, and it began to wait for its turn to be written.
    pub queued: Instant,
    /// When its last byte was written, and whoever answers could begin.
    pub sent: Instant,
}

/// Something that happened during a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CallEvent {
    /// When.
    pub at: Instant,
    /// What.
    pub kind: CallEventKind,
}

/// What can happen during a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CallEventKind {
    /// The answering side told how far it has come (`notifications/progress`), in a unit of its own.
    Progress {
        /// How far, if it was a number.
        progress: Option<f64>,
        /// Of how much, where known.
        total: Option<f64>,
    },
    /// The calling side did not want the answer any more (`notifications/cancelled`).
    Cancelled,
}

impl CallRecord {
    /// `error.type` of the OpenTelemetry MCP conventions. What the client sends is seen from the server's side, where the
    /// caller's mistakes are no errors; what the server sends is seen from its own, where all errors are.
    #[must_use]
    pub const fn error_type(&self) -> Option<ErrorType> {
        match self.call.direction {
            Direction::ToServer => self.outcome.server_error(),
            Direction::ToClient => self.outcome.any_error(),
        }
    }
}
