//! What the heads of requests and answers say, but for the lengths of their bodies.

use mcpscope_core::{Protocol, TraceContext};

use super::head::{Answer, Edits, Fields, Request, Told, as_text, is_json, is_media};

const SESSION_ID: &str = "mcp-session-id";
const PROTOCOL_VERSION: &str = "mcp-protocol-version";
pub(super) const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const CONTENT_TYPE: &str = "content-type";
const CONTENT_ENCODING: &str = "content-encoding";

/// Longest session name followed, in bytes.
pub(super) const MAX_SESSION_BYTES: usize = 1024;

/// What the methods of HTTP mean to MCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Post,
    Delete,
    Other,
}

/// What the head of a request says.
#[derive(Debug)]
pub(super) struct RequestFacts {
    pub(super) kind: Kind,
    /// Path and query.
    pub(super) target: Box<str>,
    /// The session that it names.
    pub(super) named: Option<Box<str>>,
    /// Revision and trace.
    pub(super) protocol: Option<Protocol>,
    pub(super) context: Option<TraceContext>,
    pub(super) tracestate: Option<Box<str>>,
    /// Whether its body is a message that is not encoded.
    pub(super) is_message: bool,
    pub(super) is_signed: bool,
    /// Whether the client waits for leave to send the body.
    pub(super) waits_for_leave: bool,
    pub(super) keeps_alive: bool,
    pub(super) version: u8,
    pub(super) to_head: bool,
    /// What is changed in it before it goes on, whatever its body is.
    pub(super) edits: Edits,
}

impl RequestFacts {
    pub(super) fn new(request: &Request<'_>, edits: Edits) -> Self {
        let fields = request.fields;
        let kind = match request.method {
            "POST" => Kind::Post,
            "DELETE" => Kind::Delete,
            _ => Kind::Other,
        };
        let (context, tracestate) = trace_context(fields);
        let is_message = kind == Kind::Post && fields.first(CONTENT_TYPE).is_none_or(is_json) && !is_encoded(fields);
        Self {
            kind,
            target: request.target.into(),
            named: session(fields),
            protocol: fields.text(PROTOCOL_VERSION).map(Protocol::parse),
            context,
            tracestate,
            is_message,
            is_signed: is_signed(fields),
            waits_for_leave: fields.contains("expect"),
            keeps_alive: request.keeps_alive,
            version: request.version,
            to_head: request.method == "HEAD",
            edits,
        }
    }
}

/// What the head of an answer says.
#[derive(Debug)]
pub(super) struct AnswerFacts {
    pub(super) status: u16,
    pub(super) is_json: bool,
    pub(super) is_stream: bool,
    pub(super) is_encoded: bool,
    pub(super) is_signed: bool,
    /// The session that it opens.
    pub(super) named: Option<Box<str>>,
    pub(super) told: Told,
    pub(super) keeps_alive: bool,
}

impl AnswerFacts {
    pub(super) fn new(answer: &Answer<'_>) -> Self {
        let fields = answer.fields;
        let media = fields.first(CONTENT_TYPE).unwrap_or_default();
        let is_json = is_json(media);
        Self {
            status: answer.status,
            is_json,
            is_stream: !is_json && is_media(media, b"text/event-stream"),
            is_encoded: is_encoded(fields),
            is_signed: is_signed(fields),
            named: session(fields),
            told: answer.told,
            keeps_alive: answer.keeps_alive,
        }
    }

    /// Whether the answer proper is still to come.
    pub(super) const fn is_interim(&self) -> bool {
        self.status < 200
    }
}

fn session(fields: Fields<'_>) -> Option<Box<str>> {
    fields.text(SESSION_ID).filter(|name| name.len() <= MAX_SESSION_BYTES).map(Into::into)
}

fn is_encoded(fields: Fields<'_>) -> bool {
    fields.first(CONTENT_ENCODING).is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"identity"))
}

/// What the head says of the trace: a context is there once or not at all, and a `tracestate` only beside it.
fn trace_context(fields: Fields<'_>) -> (Option<TraceContext>, Option<Box<str>>) {
    let mut contexts = fields.all(TRACEPARENT);
    let context = match (contexts.next(), contexts.next()) {
        (Some(only), None) => as_text(only).and_then(mcpscope_hooks::trace_context),
        _ => None,
    };
    if context.is_none() || !fields.contains(TRACESTATE) {
        return (context, None);
    }
    let lists: Option<Vec<_>> = fields.all(TRACESTATE).map(as_text).collect();
    (context, lists.and_then(|lists| mcpscope_hooks::tracestate(&lists.join(","))))
}

/// Whether the head vouches for the body, or a signature for the head: neither may be changed then.
fn is_signed(fields: Fields<'_>) -> bool {
    // A digest may also come as a trailer, which is announced or nobody would look for it.
    const VOUCHING: [&str; 7] =
        ["content-digest", "repr-digest", "digest", "content-md5", "signature", "x-amz-content-sha256", "trailer"];
    VOUCHING.iter().any(|name| fields.contains(name))
        || fields.first("authorization").is_some_and(|value| value.starts_with(b"AWS4-"))
}
