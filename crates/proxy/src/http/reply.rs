//! The relay's own answers: to requests it refuses, and for a server that it cannot reach.

use mcpscope_core::{Refusal, RequestId};

use crate::{INTERNAL_ERROR, answer};

/// An answer of our own.
#[derive(Debug)]
pub(super) struct Reply {
    status: u16,
    body: String,
    /// Whether the connection is closed behind it.
    pub(super) closes: bool,
}

impl Reply {
    /// An answer with a JSON-RPC error as its body. `code` is JSON-RPC's own: -32600 for the caller's mistake, -32603 for ours.
    fn new(status: u16, code: i64, id: Option<&RequestId>, message: &str) -> Self {
        Self { status, body: answer::error(code, id, message).to_string(), closes: false }
    }

    /// 400 or 403: the listener does not answer to this host or origin.
    pub(super) fn refused(refusal: &Refusal) -> Self {
        let status = match refusal {
            Refusal::HostCount(_) => 400,
            Refusal::Host(_) | Refusal::Origin(..) => 403,
        };
        Self::new(status, -32600, None, &format!("mcpscope: {}", refusal.told("proxy")))
    }

    /// The request is none that can be passed on; nobody knows where it ends.
    pub(super) fn bad_request(status: u16, why: &dyn std::fmt::Display) -> Self {
        Self { closes: true, ..Self::new(status, -32600, None, &format!("mcpscope: {why}")) }
    }

    /// 502: the server gave no answer to the request with this id.
    pub(super) fn bad_gateway(id: Option<&RequestId>, message: &str) -> Self {
        Self::new(502, INTERNAL_ERROR, id, &format!("mcpscope: {message}"))
    }

    /// The answer as it is sent; to `HEAD` without its body.
    pub(super) fn to_bytes(&self, to_head: bool) -> Vec<u8> {
        let reason = match self.status {
            400 => "Bad Request",
            403 => "Forbidden",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            431 => "Request Header Fields Too Large",
            _ => "Bad Gateway",
        };
        // RFC 9110 wants it with 405.
        let allow = if self.status == 405 { "allow: DELETE, GET, HEAD, OPTIONS, POST\r\n" } else { "" };
        let close = if self.closes { "connection: close\r\n" } else { "" };
        let length = self.body.len();
        let head = format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{allow}{close}\r\n",
            self.status
        );
        let body = if to_head { "" } else { &self.body };
        [head.as_bytes(), body.as_bytes()].concat()
    }
}
