//! Reads from a copy of a message what observing needs: kind, method, id, names, and how an answer turned out.
//!
//! Nothing here is written back to the wire; a [`Slot`] only says where a trace context would go.

use std::borrow::Cow;

use mcpscope_core::{ErrorType, Method, Outcome, Protocol, RequestId, bounded};
use smallvec::{SmallVec, smallvec};

use crate::inject::{Seen, Slot};
use crate::json;
use crate::members::{Member, Members, Object, Walk};

/// Longest request id that is followed, in bytes of its text; no client has a reason for longer ones.
const MAX_ID_BYTES: usize = 256;

/// Longest name, URI or session id kept, in bytes.
const MAX_NAME_BYTES: usize = 1024;

/// One JSON-RPC message.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Wants an answer.
    Request {
        /// The id; none if it cannot be followed because it is too long or no valid id.
        id: Option<RequestId>,
        /// The method.
        method: Method,
        /// What its parameters tell.
        params: Params,
    },
    /// Wants none.
    Notification {
        /// The method.
        method: Method,
        /// What its parameters tell.
        params: Params,
    },
    /// Answers a request.
    Response {
        /// The id; none in an error about a message whose id could not be read.
        id: Option<RequestId>,
        /// Result or error.
        outcome: Outcome,
        /// The revision that the result of `initialize` settles on.
        protocol: Option<Protocol>,
    },
    /// JSON, but no JSON-RPC message.
    Invalid,
}

/// What was read at once: nearly always one.
pub(crate) type Messages = SmallVec<[Message; 1]>;

/// What the parameters of a request or notification tell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params {
    /// `name` (a tool or prompt) or `uri` (a resource).
    pub target: Option<Box<str>>,
    /// The revision: `protocolVersion` of `initialize`, or in `_meta` since 2026-07-28.
    pub protocol: Option<Protocol>,
    /// Name and version of the client, where it tells.
    pub client: Option<Box<str>>,
    /// `requestId` of `notifications/cancelled`.
    pub cancels: Option<RequestId>,
    /// Whether the reason for cancelling is a timeout.
    pub timed_out: bool,
    /// `traceparent` in `_meta`, as it came.
    pub traceparent: Option<Box<str>>,
    /// `tracestate` in `_meta`, as it came, unless it is too long to be one.
    pub tracestate: Option<Box<str>>,
    /// Where a trace context is written; nowhere if that cannot be done safely.
    pub slot: Option<Slot>,
    /// `progressToken` in `_meta`: what the progress of a request is to be told by.
    pub progress_token: Option<RequestId>,
    /// What `notifications/progress` tells.
    pub progress: Option<Progress>,
}

/// How far a request has come.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Of which request: the token that it gave.
    pub token: RequestId,
    /// How far, if it is a number.
    pub progress: Option<f64>,
    /// Of how much, where that is a number.
    pub total: Option<f64>,
}

/// Messages looked at in one batch; a longer one is no traffic that a client or server of any revision produces.
const MAX_BATCH: usize = 1024;

/// Why bytes could not be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanError {
    /// They are no JSON.
    Invalid,
    /// They are a batch of more than 1024 messages.
    TooMany,
}

/// Reads one message, or all of a batch; members of a batch that are no messages are [`Message::Invalid`].
///
/// # Errors
/// The bytes are no JSON, or a batch that is too long.
pub fn scan(bytes: &[u8]) -> Result<Messages, ScanError> {
    read(bytes, true)
}

/// The same; [`Params::slot`] is only looked for where somebody wants it.
pub(crate) fn read(bytes: &[u8], wants_slot: bool) -> Result<Messages, ScanError> {
    let text = simdutf8::basic::from_utf8(bytes).map_err(|_| ScanError::Invalid)?;
    let mut messages = Messages::new();
    let mut walk = Walk::new(text, |members: Option<&Members<'_>>| {
        if messages.len() <= MAX_BATCH {
            messages.push(members.and_then(|members| message(members, wants_slot)).unwrap_or(Message::Invalid));
        }
    });
    json::read(text, &mut walk).map_err(|_| ScanError::Invalid)?;
    let is_batch = walk.is_batch();
    match messages.len() {
        // A text that is neither an object nor an array.
        0 if !is_batch => Ok(smallvec![Message::Invalid]),
        0..=MAX_BATCH => Ok(messages),
        _ => Err(ScanError::TooMany),
    }
}

fn message(members: &Members<'_>, wants_slot: bool) -> Option<Message> {
    if members.is_unreadable(Object::Message) {
        return None;
    }
    let id = members.get(Member::Id);
    let request_id = id.and_then(request_id);
    if let Some(method) = members.get(Member::Method) {
        let method = Method::new(&text(method)?);
        let params = read_params(members, &method, wants_slot);
        return Some(match id {
            Some(_) => Message::Request { id: request_id, method, params },
            None => Message::Notification { method, params },
        });
    }
    // Some servers write both members and leave one of them null.
    if members.get(Member::Error).is_some_and(|error| error != "null") {
        return Some(Message::Response { id: request_id, outcome: rpc_error(members), protocol: None });
    }
    if id.is_none() || !members.has(Member::Result) {
        return None;
    }
    let result = |member| members.get(member).filter(|_| !members.is_unreadable(Object::Result));
    let outcome = if result(Member::IsError) == Some("true") {
        Outcome::error(ErrorType::Tool)
    } else if result(Member::ResultType).and_then(text).is_some_and(|kind| kind == "input_required") {
        Outcome::InputRequired
    } else {
        Outcome::Ok
    };
    let protocol = result(Member::ResultProtocol).and_then(text).map(|protocol| Protocol::parse(&protocol));
    Some(Message::Response { id: request_id, outcome, protocol })
}

fn rpc_error(members: &Members<'_>) -> Outcome {
    let error = |member| members.get(member).filter(|_| !members.is_unreadable(Object::Error));
    // JSON has one kind of number: -32603.0 is the same code.
    let code = error(Member::Code).and_then(number).filter(|code| code.fract() == 0.0);
    let kind = code.map_or(ErrorType::InvalidMessage, |code| ErrorType::Rpc(code as i64));
    let message = error(Member::ErrorMessage).and_then(text).map(|message| bounded(&message, 1024).into());
    Outcome::Error { kind, message }
}

fn read_params(members: &Members<'_>, method: &Method, wants_slot: bool) -> Params {
    if members.get(Member::Params).is_some_and(|params| !params.starts_with('{'))
        || members.is_unreadable(Object::Params)
    {
        return Params::default();
    }
    let param = |member| members.get(member);
    let meta = |member| members.get(member).filter(|_| !members.is_unreadable(Object::Meta));
    let (traceparent, tracestate) = (meta(Member::Traceparent).and_then(text), meta(Member::Tracestate));
    let client = if members.has(Member::MetaClient) && !members.is_unreadable(Object::Meta) {
        client_name(members, Object::MetaClient, Member::MetaClientName, Member::MetaClientVersion)
    } else {
        client_name(members, Object::Client, Member::ClientName, Member::ClientVersion)
    };
    let is = |name: &str| method.as_str() == name;
    let cancels = is("notifications/cancelled");
    let target = param(Member::Name).and_then(text).or_else(|| param(Member::Uri).and_then(text).map(without_query));
    let protocol = meta(Member::MetaProtocol).or_else(|| param(Member::Protocol)).and_then(text);
    Params {
        target: target.map(|target| bounded(&target, MAX_NAME_BYTES).into()),
        protocol: protocol.map(|protocol| Protocol::parse(&protocol)),
        client,
        cancels: param(Member::RequestId).filter(|_| cancels).and_then(request_id),
        timed_out: cancels && param(Member::Reason).and_then(text).is_some_and(|reason| tells_of_a_timeout(&reason)),
        slot: if wants_slot && can_take_a_context(members, traceparent.as_deref()) { slot(members) } else { None },
        traceparent: traceparent.map(|text| bounded(&text, MAX_NAME_BYTES).into()),
        tracestate: tracestate.and_then(text).filter(|text| text.len() <= MAX_NAME_BYTES).map(Into::into),
        progress_token: meta(Member::MetaProgressToken).and_then(request_id),
        progress: is("notifications/progress").then(|| read_progress(members)).flatten(),
    }
}

/// Whether nobody can take a request for another once our context is in it.
fn can_take_a_context(members: &Members<'_>, traceparent: Option<&str>) -> bool {
    // What only looks like a request is not ours to change.
    let is_json_rpc =
        members.get(Member::Version).is_some_and(|it| it == "\"2.0\"" || text(it).is_some_and(|it| it == "2.0"));
    let is_answer = members.has(Member::Result) || members.has(Member::Error);
    let is_plain = |object| !members.is_repeated(object) && !members.is_unreadable(object);
    // A `tracestate` of nothing would become that of our context.
    let is_context = || traceparent.is_some_and(|text| mcpscope_hooks::trace_context(text).is_some());
    is_json_rpc
        && !is_answer
        && [Object::Message, Object::Params, Object::Meta].into_iter().all(is_plain)
        && members.get(Member::Meta).is_none_or(|meta| meta.starts_with('{'))
        && (!members.has(Member::Tracestate) || is_context())
}

fn slot(members: &Members<'_>) -> Option<Slot> {
    let seen = Seen {
        request: members.message(),
        params: members.get(Member::Params),
        meta: members.get(Member::Meta),
        traceparent: members.get(Member::Traceparent),
        has_tracestate: members.has(Member::Tracestate),
    };
    Slot::find(members.text().as_bytes(), seen)
}

fn read_progress(members: &Members<'_>) -> Option<Progress> {
    Some(Progress {
        token: members.get(Member::ProgressToken).and_then(request_id)?,
        progress: members.get(Member::Progress).and_then(number),
        total: members.get(Member::Total).and_then(number),
    })
}

/// The query of a URI is where secrets travel; what remains names the resource well enough.
fn without_query(uri: Cow<'_, str>) -> Cow<'_, str> {
    match uri.find(['?', '#']) {
        Some(at) => Cow::Owned(uri[..at].to_owned()),
        None => uri,
    }
}

fn client_name(members: &Members<'_>, client: Object, name: Member, version: Member) -> Option<Box<str>> {
    let member = |member| members.get(member).filter(|_| !members.is_unreadable(client)).and_then(text);
    let name = member(name)?;
    let version = member(version).unwrap_or_default();
    Some(format!("{} {}", bounded(&name, 128), bounded(&version, 64)).into())
}

/// The reason is free text; the official SDKs write "Request timed out" or name a timeout.
fn tells_of_a_timeout(reason: &str) -> bool {
    let reason = bounded(reason, MAX_NAME_BYTES).to_ascii_lowercase();
    reason.contains("timeout") || reason.contains("timed out")
}

/// What a string says; nothing if it is none, or has half of a surrogate pair.
fn text(json: &str) -> Option<Cow<'_, str>> {
    let inside = json.strip_prefix('"')?.strip_suffix('"')?;
    if !has_escape(inside.as_bytes()) {
        return Some(inside.into());
    }
    serde_json::from_str(json).ok().map(Cow::Owned)
}

/// Whether there is a backslash. Most texts are so short that eight bytes at a time are the fastest.
fn has_escape(text: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 0xff;
    let is_in = |bytes: &[u8; 8]| {
        let zero = u64::from_ne_bytes(*bytes) ^ (ONES * u64::from(b'\\'));
        zero.wrapping_sub(ONES) & !zero & (ONES << 7) != 0
    };
    match text.last_chunk() {
        Some(last) => text.as_chunks().0.iter().any(is_in) || is_in(last),
        None => text.contains(&b'\\'),
    }
}

fn number(json: &str) -> Option<f64> {
    serde_json::from_str(json).ok()
}

fn request_id(json: &str) -> Option<RequestId> {
    if json.len() > MAX_ID_BYTES {
        return None;
    }
    match json.as_bytes().first()? {
        b'"' => text(json).map(|text| RequestId::Text(text.into())),
        b'-' | b'0'..=b'9' => Some(match json.parse() {
            Ok(integer) => RequestId::Integer(integer),
            Err(_) => number_id(json),
        }),
        _ => None,
    }
}

/// A peer that reads `1.0` may well answer with `1`: a whole number is the same id however it is written.
fn number_id(json: &str) -> RequestId {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match json.parse::<f64>() {
        Ok(number) if number.fract() == 0.0 && number.abs() <= EXACT => RequestId::Integer(number as i64),
        _ => RequestId::Number(json.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(json: &str) -> Message {
        let mut messages = scan(json.as_bytes()).unwrap();
        assert_eq!(messages.len(), 1);
        messages.remove(0)
    }

    fn request(json: &str) -> (Option<RequestId>, Method, Params) {
        match one(json) {
            Message::Request { id, method, params } => (id, method, params),
            other => panic!("{other:?}"),
        }
    }

    fn outcome(json: &str) -> Outcome {
        match one(json) {
            Message::Response { outcome, .. } => outcome,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_a_tool_call_with_its_id_last() {
        let (id, method, params) = request(
            r#"{"jsonrpc":"2.0","method":"tools/call","params":{"arguments":{"name":"not this","id":3,"method":"x"},"name":"echo","_meta":{"progressToken":1,"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}},"id":"a-1"}"#,
        );
        assert_eq!(id, Some(RequestId::Text("a-1".into())));
        assert_eq!(method.as_str(), "tools/call");
        assert_eq!(params.target.as_deref(), Some("echo"));
        assert_eq!(params.traceparent.as_deref(), Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
    }

    #[test]
    fn reads_both_eras() {
        let (_, _, legacy) = request(
            r#"{"id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","clientInfo":{"name":"c","version":"1"}}}"#,
        );
        assert_eq!((legacy.protocol, legacy.client.as_deref()), (Some(Protocol::V2025_11_25), Some("c 1")));
        let (_, _, modern) = request(
            r#"{"id":0,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"d"}}}}"#,
        );
        assert_eq!((modern.protocol, modern.client.as_deref()), (Some(Protocol::V2026_07_28), Some("d ")));
    }

    #[test]
    fn ids_are_the_same_however_they_are_written() {
        let id = |json: &str| request(&format!(r#"{{"method":"ping","id":{json}}}"#)).0;
        assert_eq!(id("1"), id("1.0"));
        assert_eq!(id("10"), id("1e1"));
        assert_eq!(id(r#""a""#), id(r#""\u0061""#));
        assert_ne!(id("1"), id(r#""1""#));
        assert_eq!(id("9223372036854775807"), Some(RequestId::Integer(i64::MAX)));
        assert_ne!(id("18446744073709551615"), id("18446744073709551614"));
        assert_eq!(id("null"), None);
        assert_eq!(id(&format!("\"{}\"", "x".repeat(1000))), None);
    }

    #[test]
    fn reads_how_an_answer_turned_out() {
        assert_eq!(outcome(r#"{"id":1,"result":{"content":[{"isError":true}]}}"#), Outcome::Ok);
        assert_eq!(outcome(r#"{"result":{"isError":true},"id":1}"#), Outcome::error(ErrorType::Tool));
        assert_eq!(outcome(r#"{"id":1,"result":{"resultType":"input_required"}}"#), Outcome::InputRequired);
        assert_eq!(outcome(r#"{"id":1,"result":[]}"#), Outcome::Ok);
        assert_eq!(
            outcome(r#"{"id":1,"error":{"code":-32603,"message":"no"}}"#),
            Outcome::Error { kind: ErrorType::Rpc(-32603), message: Some("no".into()) }
        );
        assert!(matches!(
            one(r#"{"error":{"code":-32700,"message":"x"},"id":null}"#),
            Message::Response { id: None, .. }
        ));
    }

    #[test]
    fn reads_a_cancellation_and_its_reason() {
        let params = |json: &str| match one(json) {
            Message::Notification { params, .. } => params,
            other => panic!("{other:?}"),
        };
        let cancelled =
            params(r#"{"method":"notifications/cancelled","params":{"requestId":7,"reason":"Request timed out"}}"#);
        assert_eq!((cancelled.cancels, cancelled.timed_out), (Some(RequestId::Integer(7)), true));
        assert!(!params(r#"{"method":"notifications/cancelled","params":{"requestId":7,"reason":"user"}}"#).timed_out);
    }

    #[test]
    fn reads_every_message_of_a_batch() {
        let batch = scan(br#"[{"id":1,"method":"ping"},{"method":"notifications/initialized"},{"id":2,"result":{}}]"#);
        assert_eq!(batch.unwrap().len(), 3);
        let mixed = scan(br#" [{"id":1,"method":"ping"},1,{"id":2,"result":{}}]"#).unwrap();
        assert!(matches!(mixed[..], [Message::Request { .. }, Message::Invalid, Message::Response { .. }]));
        assert_eq!(scan(b"[]"), Ok(Messages::new()));
        assert_eq!(scan(b"[1,]"), Err(ScanError::Invalid));
        assert_eq!(scan(b"[] x"), Err(ScanError::Invalid));
    }

    #[test]
    fn a_batch_without_end_is_given_up_early() {
        let batch = |n: usize| format!("[{}]", vec![r#"{"method":"ping","id":1}"#; n].join(","));
        assert_eq!(scan(batch(1024).as_bytes()).unwrap().len(), 1024);
        assert_eq!(scan(batch(1025).as_bytes()), Err(ScanError::TooMany));
    }

    #[test]
    fn lenient_where_servers_are() {
        assert_eq!(outcome(r#"{"id":1,"result":{},"error":null}"#), Outcome::Ok);
        assert_eq!(outcome(r#"{"id":1,"error":{"code":-32603.0}}"#), Outcome::error(ErrorType::Rpc(-32603)));
        assert_eq!(outcome(r#"{"id":1,"error":{"code":"E1"}}"#), Outcome::error(ErrorType::InvalidMessage));
        assert_eq!(outcome(r#"{"id":1,"error":"no"}"#), Outcome::error(ErrorType::InvalidMessage));
    }

    #[test]
    fn the_query_of_a_resource_is_not_kept() {
        let params = request(r#"{"id":1,"method":"resources/read","params":{"uri":"db://x/y?token=secret"}}"#).2;
        assert_eq!(params.target.as_deref(), Some("db://x/y"));
    }

    #[test]
    fn of_duplicate_members_the_last_counts() {
        assert_eq!(request(r#"{"method":"a","id":1,"method":"b","id":2}"#).1.as_str(), "b");
    }

    #[test]
    fn of_duplicate_objects_only_what_the_last_has_counts() {
        let params = |json: &str| request(&format!(r#"{{"id":1,"method":"tools/call",{json}}}"#)).2;
        let twice = params(
            r#""params":{"name":"a","_meta":{"progressToken":1},"clientInfo":{"name":"c"}}, "p\u0061rams" : {"uri":"b"}"#,
        );
        assert_eq!((twice.target.as_deref(), twice.progress_token, twice.client), (Some("b"), None, None));
        assert_eq!(params(r#""params":{"name":"a"},"params":7"#), Params::default());
        let meta = params(r#""params":{"_meta":{"progressToken":1,"traceparent":"x"},"_meta":{"progressToken":"2"}}"#);
        assert_eq!((meta.progress_token, meta.traceparent), (Some(RequestId::Text("2".into())), None));
        assert_eq!(outcome(r#"{"id":1,"result":{"isError":true},"result":{}}"#), Outcome::Ok);
        // A key that is no text makes what it is in unreadable; another in its place is not.
        assert_eq!(params(r#""params":{"name":"a","\ud800":1}"#), Params::default());
        assert_eq!(params(r#""params":{"\ud800":1},"params":{"name":"a"}"#).target.as_deref(), Some("a"));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let deep = "[".repeat(100_000);
        for bad in ["", "hello", r#"{"method":"a""#, "{\"method\":\"\u{0}\"}", &deep] {
            assert_eq!(scan(bad.as_bytes()), Err(ScanError::Invalid), "{bad:.40}");
        }
        assert_eq!(scan(b"{\"method\":\"\xff\"}"), Err(ScanError::Invalid));
        for bad in ["{}", "1", "null", r#"{"id":1}"#, r#"{"result":1}"#, r#"{"method":1}"#] {
            assert_eq!(one(bad), Message::Invalid, "{bad}");
        }
        let nested = format!(r#"{{"method":"ping","id":1,"params":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(request(&nested).0, Some(RequestId::Integer(1)), "depth costs no stack");
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = scan(&bytes);
        }
    }
}
