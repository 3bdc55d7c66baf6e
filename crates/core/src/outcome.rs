//! How a call ended.

use std::borrow::Cow;

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A result that is no error.
    Ok,
    /// The server asks for more input before it can answer (`resultType: "input_required"`, since 2026-07-28): a result,
    /// but not the final one.
    InputRequired,
    /// An error.
    Error {
        /// What kind of error.
        kind: ErrorType,
        /// The peer's own words, bounded to 1 KiB; never arguments or results.
        message: Option<Box<str>>,
    },
    /// No answer when the session ended or the call's time was up, or the client gave a timeout as its reason to cancel.
    Timeout,
    /// The caller did not want the answer any more.
    Cancelled,
}

impl Outcome {
    /// The values of the label `outcome`.
    pub const LABELS: [&'static str; 5] = ["ok", "error", "caller_error", "timeout", "cancelled"];

    /// An error without a message.
    #[must_use]
    pub const fn error(kind: ErrorType) -> Self {
        Self::Error { kind, message: None }
    }

    /// The value of the label `outcome`: `ok`, `error`, `caller_error`, `timeout` or `cancelled`.
    ///
    /// `caller_error` keeps the caller's mistakes (see [`ErrorType::is_callers`]) apart from the server's failures.
    #[must_use]
    pub const fn as_label(&self) -> &'static str {
        match self {
            Self::Ok | Self::InputRequired => "ok",
            Self::Error { kind, .. } if kind.is_callers() => "caller_error",
            Self::Error { .. } => "error",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }

    /// The error that counts against the server, if this outcome is one.
    #[must_use]
    pub const fn server_error(&self) -> Option<ErrorType> {
        match self {
            Self::Error { kind, .. } if !kind.is_callers() => Some(*kind),
            Self::Timeout => Some(ErrorType::Timeout),
            _ => None,
        }
    }

    /// The error as whoever asked sees it, if this outcome is one: whoever's mistake it was.
    #[must_use]
    pub const fn any_error(&self) -> Option<ErrorType> {
        match self {
            Self::Error { kind, .. } => Some(*kind),
            Self::Timeout => Some(ErrorType::Timeout),
            Self::Ok | Self::InputRequired | Self::Cancelled => None,
        }
    }

    /// What the peer said went wrong, if it did.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        if let Self::Error { message, .. } = self { message.as_deref() } else { None }
    }

    /// The code of a JSON-RPC error, if this outcome is one.
    #[must_use]
    pub const fn rpc_code(&self) -> Option<i64> {
        match self {
            Self::Error { kind: ErrorType::Rpc(code), .. } => Some(*code),
            _ => None,
        }
    }
}

/// What kind of error a call ended with; `error.type` of the OpenTelemetry MCP conventions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorType {
    /// A JSON-RPC error with this code.
    Rpc(i64),
    /// A tool result with `isError: true`.
    Tool,
    /// No answer in time.
    Timeout,
    /// The server could not be reached.
    UpstreamUnreachable,
    /// The connection broke before the answer was complete.
    ConnectionLost,
    /// The server answered with this HTTP status instead of a JSON-RPC message.
    HttpStatus(u16),
    /// A peer sent something that is no JSON-RPC message.
    InvalidMessage,
    /// The server process ended other than by exit code 0.
    Crash,
}

impl ErrorType {
    /// Whether the mistake is the caller's: -32700, -32600, -32601, -32602 and -32002, or an HTTP status from 400 to 499.
    ///
    /// Such an error does not count against the server (OpenTelemetry semantic conventions for MCP and HTTP, server side).
    #[must_use]
    pub const fn is_callers(self) -> bool {
        matches!(self, Self::Rpc(-32700 | -32600 | -32601 | -32602 | -32002) | Self::HttpStatus(400..=499))
    }

    /// The value of the label `error_type`.
    #[must_use]
    pub fn as_label(self) -> Cow<'static, str> {
        match self {
            Self::Rpc(code) => Cow::Owned(code.to_string()),
            Self::Tool => Cow::Borrowed("tool_error"),
            Self::Timeout => Cow::Borrowed("timeout"),
            Self::UpstreamUnreachable => Cow::Borrowed("upstream_unreachable"),
            Self::ConnectionLost => Cow::Borrowed("connection_lost"),
            Self::HttpStatus(status) => Cow::Owned(status.to_string()),
            Self::InvalidMessage => Cow::Borrowed("invalid_message"),
            Self::Crash => Cow::Borrowed("crash"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_one_of_the_labels() {
        let errors = [ErrorType::Tool, ErrorType::Rpc(-32602)].map(Outcome::error);
        let outcomes =
            [Outcome::Ok, Outcome::InputRequired, Outcome::Timeout, Outcome::Cancelled].into_iter().chain(errors);
        let mut labels: Vec<_> = outcomes.map(|outcome| outcome.as_label()).collect();
        labels.sort_unstable();
        labels.dedup();
        let mut expected = Outcome::LABELS;
        expected.sort_unstable();
        assert_eq!(labels, expected);
    }
}
