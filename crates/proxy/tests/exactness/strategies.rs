//! What the wild sends, and worse.
//!
//! Strategies that are parts of others are boxed: their value trees would not fit on the stack of a test.

use mcpscope_test_support::http::{self, LAST_CHUNK, chunk};
use proptest::collection::vec;
use proptest::prelude::*;

/// The largest body, in bytes.
const HUGE: usize = 3 << 20;

/// The most pieces that something is split into: each of them costs a system call or two.
const MOST_PIECES: usize = 500;

fn id() -> BoxedStrategy<String> {
    prop_oneof![
        any::<i64>().prop_map(|id| id.to_string()),
        any::<u64>().prop_map(|id| id.to_string()),
        Just("1.0".to_owned()),
        Just("1e0".to_owned()),
        Just("0.30000000000000004".to_owned()),
        Just("-0".to_owned()),
        Just("18446744073709551616".to_owned()),
        Just("null".to_owned()),
        Just(r#""\u0061\/\ud83d\ude00""#.to_owned()),
        "\"[a-zé😀 ]{0,20}\"".prop_map(|id| id),
    ]
    .boxed()
}

fn value() -> BoxedStrategy<String> {
    prop_oneof![
        id(),
        Just("[1.0, 1,1e400,{ }]".to_owned()),
        Just(r#"{"b":1,"a":2,"b":3}"#.to_owned()),
        "[a-z]{0,40}".prop_map(|text| format!("{{\"text\" : \"{text}\\n\"}}")),
        (1_usize..200).prop_map(|depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth))),
    ]
    .boxed()
}

/// Messages of every kind, written in every way.
fn message() -> BoxedStrategy<String> {
    let method = prop_oneof![
        Just("initialize"),
        Just("ping"),
        Just("tools/call"),
        Just("tools/list"),
        Just("notifications/cancelled"),
        Just("server/discover"),
        Just("sampling/createMessage"),
        Just("notifications/tools/list_changed"),
    ];
    let blank = prop_oneof![Just(""), Just(" "), Just("\t")];
    prop_oneof![
        (id(), method.clone(), value(), value(), blank).prop_map(|(id, method, params, unknown, blank)| format!(
            "{{\"jsonrpc\":{blank}\"2.0\",\"x-future\":{unknown},\"id\":{id}{blank},\"method\":\"{method}\",\"params\":{{\"name\":\"echo\",\"arguments\":{params},\"vendor/é\":{unknown}}}}}"
        )),
        (method, value()).prop_map(|(method, params)| format!("{{\"method\":\"{method}\",\"params\":{params}}}")),
        (id(), value(), any::<bool>()).prop_map(|(id, result, failed)| format!(
            "{{\"result\":{{\"isError\":{failed},\"content\":[{result}]}},\"id\":{id}}}"
        )),
        (id(), any::<i32>()).prop_map(|(id, code)| format!("{{\"error\":{{\"code\":{code},\"message\":\"no\"}},\"id\":{id}}}")),
    ]
    .boxed()
}

fn huge() -> impl Strategy<Value = Vec<u8>> {
    (HUGE / 30..HUGE, any::<u8>(), any::<bool>()).prop_map(|(length, seed, json)| {
        let filling = |at: usize| (at.wrapping_mul(31) as u8) ^ seed;
        if json {
            let text: String = (0..length).map(|at| char::from(b'a' + filling(at) % 26)).collect();
            return format!("{{\"id\":1,\"result\":{{\"text\":\"{text}\"}}}}").into_bytes();
        }
        (0..length).map(filling).filter(|byte| *byte != b'\n').collect()
    })
}

/// A body, or a line without its end: valid, almost valid, or nothing of the kind.
pub(crate) fn body() -> BoxedStrategy<Vec<u8>> {
    prop_oneof![
        8 => message().prop_map(String::into_bytes),
        2 => vec(message(), 0..5).prop_map(|batch| format!("[{}]", batch.join(" , ")).into_bytes()),
        2 => (message(), any::<prop::sample::Index>()).prop_map(|(message, at)| {
            let mut bytes = message.into_bytes();
            bytes.truncate(at.index(bytes.len()));
            bytes
        }),
        2 => vec(any::<u8>().prop_filter("no line end", |byte| *byte != b'\n'), 0..300),
        1 => Just(b"{\"id\":1,\"method\":\"\xff\xfe\"}".to_vec()),
        1 => Just(Vec::new()),
        1 => huge(),
    ]
    .boxed()
}

/// Lines for a stdio server, the last of which may have no end.
pub(crate) fn lines() -> impl Strategy<Value = Vec<u8>> {
    let end = prop_oneof![4 => Just("\n"), 2 => Just("\r\n"), 1 => Just("\n\n"), 1 => Just("\r\r\n")];
    (vec((body(), end), 0..12), any::<bool>()).prop_map(|(lines, ended)| {
        let mut text: Vec<u8> =
            lines.into_iter().flat_map(|(line, end)| [line, end.as_bytes().to_vec()].concat()).collect();
        if !ended {
            while text.pop_if(|byte| *byte == b'\n').is_some() {}
        }
        text
    })
}

/// Sizes of pieces, to be repeated.
pub(crate) fn pieces() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![3 => 1_usize..8, 3 => 1_usize..300, 1 => 1_usize..200_000], 1..6)
}

/// Splits into pieces of these sizes, or larger ones if they would be too many.
pub(crate) fn split(bytes: &[u8], sizes: &[usize]) -> Vec<Vec<u8>> {
    let least = bytes.len() / MOST_PIECES;
    let mut rest = bytes;
    let mut parts = Vec::new();
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let size = sizes.next().map_or(rest.len(), |size| (*size).max(least).min(rest.len()));
        let (part, after) = rest.split_at(size);
        parts.push(part.to_vec());
        rest = after;
    }
    parts
}

/// A request with a body, to be echoed.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) body: Vec<u8>,
    pub(crate) chunked: bool,
    media: &'static str,
    session: bool,
    sizes: Vec<usize>,
    echo_sizes: Vec<usize>,
}

pub(crate) fn exchange() -> impl Strategy<Value = Exchange> {
    let media = prop_oneof![4 => Just("application/json"), 2 => Just("text/event-stream"), 1 => Just("text/plain")];
    (body(), any::<bool>(), media, any::<bool>(), pieces(), pieces()).prop_map(
        |(body, chunked, media, session, sizes, echo_sizes)| Exchange {
            body,
            chunked,
            media,
            session,
            sizes,
            echo_sizes,
        },
    )
}

impl Exchange {
    /// The request, piece by piece.
    pub(crate) fn request(&self) -> Vec<Vec<u8>> {
        let least = self.body.len() / MOST_PIECES + 1;
        let sizes: Vec<String> = self.echo_sizes.iter().map(|size| (*size).max(least).to_string()).collect();
        let (length, split_as) = (self.body.len().to_string(), sizes.join(","));
        let mut headers = vec![("Content-Type", self.media), ("Echo-Split", &split_as)];
        headers.push(if self.chunked { ("Transfer-Encoding", "chunked") } else { ("Content-Length", &length) });
        if self.session {
            headers.push(("Mcp-Session-Id", "a"));
        }
        let mut parts = vec![http::request_head("POST", "/mcp", &headers)];
        let body = split(&self.body, &self.sizes);
        if self.chunked {
            parts.extend(body.iter().map(|part| chunk(part)));
            parts.push(LAST_CHUNK.to_vec());
        } else {
            parts.extend(body);
        }
        parts
    }
}

/// An event stream with every kind of line and line end.
pub(crate) fn event_stream() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        4 => body().prop_map(|data| [b"data: ".as_slice(), &data].concat()),
        2 => message().prop_map(|data| format!("data:{data}").into_bytes()),
        1 => Just(b"data".to_vec()),
        1 => Just(b": keep-alive".to_vec()),
        1 => "id: [0-9a-z]{0,9}".prop_map(String::into_bytes),
        1 => Just(b"retry: 3000".to_vec()),
        1 => Just(b"event: message".to_vec()),
        1 => Just(b"event: endpoint".to_vec()),
        1 => Just(b"data: /messages/?session_id=1".to_vec()),
        1 => Just(b"\xef\xbb\xbf".to_vec()),
        6 => Just(Vec::new()),
    ];
    let end = prop_oneof![3 => Just("\n"), 2 => Just("\r\n"), 1 => Just("\r")];
    vec((line, end), 0..40)
        .prop_map(|lines| lines.into_iter().flat_map(|(line, end)| [line, end.as_bytes().to_vec()].concat()).collect())
}

/// Code and reason of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) code: u16,
    pub(crate) reason: String,
}

pub(crate) fn status_line() -> impl Strategy<Value = Status> {
    let code = prop_oneof![Just(200_u16), Just(202), Just(204), Just(304), Just(404), 200_u16..600, 600_u16..1000];
    (code, prop_oneof!["[A-Za-z' -]{0,20}", Just("OK".to_owned()), Just(String::new())])
        // Blanks at the ends of a reason are not told from its separator.
        .prop_map(|(code, reason)| Status { code, reason: reason.trim().to_owned() })
}

/// Header fields in their order.
pub(crate) fn header_fields() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let name = prop_oneof![
        Just("Mcp-Session-Id".to_owned()),
        Just("MCP-PROTOCOL-VERSION".to_owned()),
        Just("mcp-method".to_owned()),
        Just("Last-Event-ID".to_owned()),
        Just("WWW-Authenticate".to_owned()),
        Just("Set-Cookie".to_owned()),
        Just("set-cookie".to_owned()),
        Just("Content-Type".to_owned()),
        Just("Date".to_owned()),
        Just("X-Accel-Buffering".to_owned()),
        "[Xx]-[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}",
    ];
    let byte = prop_oneof![6 => 0x20_u8..0x7f, 2 => 0x80_u8..=0xff, 1 => Just(b'\t')];
    let value = prop_oneof![
        4 => vec(byte, 0..40).prop_map(|value| value.trim_ascii().to_vec()),
        1 => Just(b"text/event-stream".to_vec()),
        1 => Just(b"application/json".to_vec()),
        1 => Just(b"2025-06-18".to_vec()),
        1 => Just(vec![b'v'; 5000]),
    ];
    vec((name, value), 0..30)
}

/// A head to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) start: String,
    pub(crate) fields: Vec<(String, Vec<u8>)>,
}

impl Head {
    pub(crate) fn new(start: &str, fields: &[(String, Vec<u8>)]) -> Self {
        Self { start: start.to_owned(), fields: fields.to_vec() }
    }

    /// With one more field.
    pub(crate) fn and(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.as_bytes().to_vec()));
        self
    }

    /// As bytes, with a body after it.
    pub(crate) fn before(&self, body: &[u8]) -> Vec<u8> {
        let mut bytes = format!("{}\r\n", self.start).into_bytes();
        for (name, value) in &self.fields {
            bytes.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        [bytes.as_slice(), b"\r\n", body].concat()
    }

    /// The fields as they have to arrive.
    pub(crate) fn sorted(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        sorted(self.fields.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone())).collect())
    }
}

/// Fields by name, those of one name in their order: all that HTTP promises of an order.
pub(crate) fn sorted(mut fields: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    fields.sort_by_key(|(name, _)| name.to_ascii_lowercase());
    fields
}
