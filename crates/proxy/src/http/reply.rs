//! The relay's own answers: to requests it refuses, and for a server that it cannot reach.

use mcpscope_core::{Refusal, RequestId};

use crate::{INTERNAL_ERROR, answer};

/// An answer of our own.
#[derive(Debug)]
pub(super) struct Reply {
    status: u16,
    body: String,
    /// In whole seconds.
    retry_after: Option<u64>,
    challenge: Option<&'static str>,
    /// Whether the connection is closed behind it.
    pub(super) closes: bool,
}

impl Reply {
    /// An answer with a JSON-RPC error as its body. `code` is JSON-RPC's own: -32600 for the caller's mistake, -32603 for ours.
    fn new(status: u16, code: i64, id: Option<&RequestId>, message: &str) -> Self {
        let body = answer::error(code, id, message).to_string();
        Self { status, body, retry_after: None, challenge: None, closes: false }
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

    /// 502: the server gave no answer to the requests with these ids, each of which gets an error.
    pub(super) fn bad_gateway(ids: &[RequestId], message: &str) -> Self {
        let message = format!("mcpscope: {message}");
        match ids {
            [] | [_] => Self::new(502, INTERNAL_ERROR, ids.first(), &message),
            batch => {
                let error = |id| answer::error(INTERNAL_ERROR, Some(id), &message);
                let body = serde_json::Value::from_iter(batch.iter().map(error)).to_string();
                Self { status: 502, body, retry_after: None, challenge: None, closes: false }
            }
        }
    }

    /// What a fault answers in the server's place.
    pub(super) fn of_fault(reply: &mcpscope_hooks::Reply) -> Self {
        let mcpscope_hooks::Reply { status, retry_after, challenge, ref body, .. } = *reply;
        Self { status, body: body.to_string(), retry_after, challenge, closes: false }
    }

    /// 202: the answer comes on another stream.
    pub(super) fn accepted() -> Self {
        Self { status: 202, body: String::new(), retry_after: None, challenge: None, closes: false }
    }

    /// The answer as it is sent; to `HEAD` without its body.
    pub(super) fn to_bytes(&self, to_head: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            202 => "Accepted",
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            429 => "Too Many Requests",
            431 => "Request Header Fields Too Large",
            500 => "Internal Server Error",
            502 => "Bad Gateway",
            503 => "Service Unavailable",
            504 => "Gateway Timeout",
            // The phrase may be anything (RFC 9112, section 4).
            _ => "Error",
        };
        // RFC 9110 wants it with 405.
        let allow = if self.status == 405 { "allow: DELETE, GET, HEAD, OPTIONS, POST\r\n" } else { "" };
        let close = if self.closes { "connection: close\r\n" } else { "" };
        let retry = self.retry_after.map_or_else(String::new, |seconds| format!("retry-after: {seconds}\r\n"));
        let challenge = self.challenge.map_or_else(String::new, |value| format!("www-authenticate: {value}\r\n"));
        let length = self.body.len();
        let kind = if length > 0 { "content-type: application/json\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {} {reason}\r\n{kind}content-length: {length}\r\n{allow}{challenge}{retry}{close}\r\n",
            self.status
        );
        let body = if to_head { "" } else { &self.body };
        [head.as_bytes(), body.as_bytes()].concat()
    }
}
