//! Everything that a fault can do to a message or a connection.
//!
//! Whoever acts on these matches them without a wildcard, so that a new one cannot be passed over in silence.

use std::time::{Duration, Instant};

use crate::{FaultId, Ratio};

/// What one fault does to one message, or to a connection as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Injection {
    /// The fault that asks for it.
    pub fault: FaultId,
    /// What it does.
    pub effect: Effect,
    /// When the fault is over at the latest. What it holds back then goes on, whatever else has failed.
    pub ends: Instant,
}

/// What a fault does.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Arrives later by this much, counted from its arrival; when the fault ends, at once or never.
    Delay {
        /// How much later.
        by: Duration,
        /// What becomes of the messages behind it.
        order: Order,
        /// What becomes of it if the fault ends before that.
        on_end: OnEnd,
    },
    /// Stays where it is until something happens, or until the fault's end.
    Hold {
        /// What lets it go on.
        until: Release,
        /// What becomes of it at the fault's end.
        on_end: OnEnd,
    },
    /// Never arrives.
    Drop,
    /// Arrives twice.
    Duplicate,
    /// A request goes no further: its sender gets this answer.
    Answer(Answer),
    /// Arrives changed.
    Change(Change),
    /// Arrives so many bytes at a time, each second.
    Slow {
        /// At least 1.
        bytes_per_second: u32,
    },
    /// The bytes of a connection take the way through a network that delays and loses packets.
    Network,
    /// Something breaks beneath the messages.
    Break(Break),
}

/// What a delayed message means to those behind it in the same direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// They stay behind it.
    Preserve,
    /// They may overtake it.
    Independent,
}

/// What ends a hold before the fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Release {
    /// Nothing.
    FaultEnd,
    /// The caller cancels the call that the message answers.
    Cancelled,
}

/// What becomes of what is held when a fault ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnEnd {
    /// It goes on at once, in order.
    Deliver,
    /// It is lost.
    Drop,
}

/// An answer made up in place of the server's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A JSON-RPC error.
    RpcError {
        /// Its code.
        code: i64,
        /// Its message.
        message: Box<str>,
    },
    /// A tool's result with `isError: true`.
    ToolError {
        /// The text of its content.
        message: Box<str>,
    },
    /// A result that asks for input (`resultType: "input_required"`), since 2026-07-28.
    InputRequired,
    /// The revision is not supported: HTTP 400 and -32022 since 2026-07-28, before that an answer to `initialize` with
    /// a revision that nobody asked for.
    VersionReject,
    /// An HTTP status instead of a JSON-RPC message.
    HttpStatus {
        /// The status.
        status: u16,
        /// The field `Retry-After`, in whole seconds on the wire.
        retry_after: Option<Duration>,
    },
    /// The session is unknown: HTTP 404, up to 2025-11-25.
    StaleSession,
}

/// A change to a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// An id that no request of the connection has.
    WrongId,
    /// Bytes that are no JSON, framed as before.
    MalformedJson,
    /// Only this share of its bytes, rounded down, framed as a whole message.
    Truncate {
        /// The share that is left.
        keep: Ratio,
    },
    /// A line in front of it that is no message.
    Noise,
    /// So large, by a member that nobody asked for.
    Oversize {
        /// Size of the whole message, in bytes; one that is larger already stays as it is.
        bytes: u64,
    },
    /// A structured result that does not follow its schema.
    Schema,
    /// A list of tools that is not the one of before.
    ToolsList(ToolsList),
    /// HTTP headers that contradict the body.
    HeaderMismatch,
}

/// What is different in a list of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToolsList {
    /// The first tool is missing.
    Drop,
    /// The first tool has another name.
    Rename,
    /// The order is reversed.
    Reorder,
}

/// What breaks beneath the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Break {
    /// A new connection is refused.
    Refuse,
    /// The connection is reset on both sides.
    Reset,
    /// The connection to the server is closed; the client's stays open and carries nothing.
    HalfOpen,
    /// The stream that the message is on ends in its place.
    Stream,
}

impl Effect {
    /// The effect's name in journals and metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Delay { .. } => "delay",
            Self::Hold { .. } => "hold",
            Self::Drop => "drop",
            Self::Duplicate => "duplicate",
            Self::Answer(answer) => answer.as_str(),
            Self::Change(change) => change.as_str(),
            Self::Slow { .. } => "slow",
            Self::Network => "network",
            Self::Break(Break::Refuse) => "refuse",
            Self::Break(Break::Reset) => "reset",
            Self::Break(Break::HalfOpen) => "half_open",
            Self::Break(Break::Stream) => "stream_break",
        }
    }

    /// Whether the message goes no further, so that no other fault gets to see it.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Hold { .. } | Self::Drop | Self::Answer(_) | Self::Break(_) => true,
            Self::Delay { .. } | Self::Duplicate | Self::Change(_) | Self::Slow { .. } | Self::Network => false,
        }
    }
}

impl Answer {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::RpcError { .. } => "rpc_error",
            Self::ToolError { .. } => "tool_error",
            Self::InputRequired => "input_required",
            Self::VersionReject => "version_reject",
            Self::HttpStatus { .. } => "http_status",
            Self::StaleSession => "stale_session",
        }
    }
}

impl Change {
    const fn as_str(self) -> &'static str {
        match self {
            Self::WrongId => "wrong_id",
            Self::MalformedJson => "malformed_json",
            Self::Truncate { .. } => "truncate",
            Self::Noise => "noise",
            Self::Oversize { .. } => "oversize",
            Self::Schema => "schema",
            Self::ToolsList(_) => "tools_list",
            Self::HeaderMismatch => "header_mismatch",
        }
    }
}
