//! What a decision can depend on.

use mcpscope_core::Protocol;

/// What sort of message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// It asks for an answer.
    Request,
    /// It is one.
    Response,
    /// It asks for none.
    Notification,
}

impl MessageKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Request, Self::Response, Self::Notification];

    /// `request`, `response` or `notification`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
            Self::Notification => "notification",
        }
    }
}

/// A message, as far as a decision can depend on it. What belongs to its connection is known there.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// What sort of message it is.
    pub kind: MessageKind,
    /// Its method; an answer's is that of the request that it answers, where known.
    pub method: Option<&'a str>,
    /// The tool's name in a `tools/call`; likewise.
    pub tool: Option<&'a str>,
    /// The revision it belongs to, where known. Faults of one era leave alone what they cannot place.
    pub protocol: Option<Protocol>,
}
