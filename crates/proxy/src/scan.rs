//! Reads from a copy of a message what observing needs: kind, method, id, names, and how an answer turned out.
//!
//! Nothing here is written back to the wire; a [`Slot`] only says where a trace context would go.

use std::borrow::Cow;
use std::fmt;

use mcpscope_core::{ErrorType, Method, Outcome, Protocol, RequestId, bounded};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::inject::{Seen, Slot};

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
        params: Box<Params>,
    },
    /// Wants none.
    Notification {
        /// The method.
        method: Method,
        /// What its parameters tell.
        params: Box<Params>,
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
pub fn scan(bytes: &[u8]) -> Result<Vec<Message>, ScanError> {
    // What an array begins with decides; JSON allows these four bytes before it.
    let start = bytes.iter().find(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
    if start == Some(&b'[') {
        let mut messages = Vec::new();
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let read =
            deserializer.deserialize_seq(Batch { bytes, messages: &mut messages }).and_then(|()| deserializer.end());
        return match read {
            Ok(()) => Ok(messages),
            Err(_) if messages.len() > MAX_BATCH => Err(ScanError::TooMany),
            Err(_) => Err(ScanError::Invalid),
        };
    }
    let raw: &RawValue = serde_json::from_slice(bytes).map_err(|_| ScanError::Invalid)?;
    Ok(vec![message(bytes, raw).unwrap_or(Message::Invalid)])
}

/// Reads the members of a batch one by one, and gives up on too many.
struct Batch<'m> {
    /// All of it.
    bytes: &'m [u8],
    messages: &'m mut Vec<Message>,
}

impl<'de> Visitor<'de> for Batch<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a batch of at most {MAX_BATCH} messages")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(raw) = members.next_element::<&RawValue>()? {
            self.messages.push(message(self.bytes, raw).unwrap_or(Message::Invalid));
            if self.messages.len() > MAX_BATCH {
                return Err(serde::de::Error::custom("too many"));
            }
        }
        Ok(())
    }
}

fn message(bytes: &[u8], raw: &RawValue) -> Option<Message> {
    let picked = pick(raw, ["jsonrpc", "method", "id", "params", "result", "error"])?;
    let [version, method, id, params, result, error] = picked.values;
    let request_id = id.and_then(request_id);
    if let Some(method) = method {
        let method = Method::new(&text(method)?);
        let mut params = read_params(bytes, raw, &method, params);
        // What only looks like a request is not ours to change.
        let is_json_rpc = version.and_then(text).is_some_and(|version| version == "2.0");
        if picked.repeated || !is_json_rpc || result.is_some() || error.is_some() {
            params.slot = None;
        }
        let params = Box::new(params);
        return Some(match id {
            Some(_) => Message::Request { id: request_id, method, params },
            None => Message::Notification { method, params },
        });
    }
    // Some servers write both members and leave one of them null.
    if let Some(error) = error.filter(|error| error.get() != "null") {
        return Some(Message::Response { id: request_id, outcome: rpc_error(error), protocol: None });
    }
    let result = result.filter(|_| id.is_some())?;
    let [is_error, result_type, protocol] =
        pick(result, ["isError", "resultType", "protocolVersion"]).unwrap_or_default().values;
    let outcome = if is_error.is_some_and(|flag| flag.get() == "true") {
        Outcome::error(ErrorType::Tool)
    } else if result_type.and_then(text).is_some_and(|kind| kind == "input_required") {
        Outcome::InputRequired
    } else {
        Outcome::Ok
    };
    Some(Message::Response { id: request_id, outcome, protocol: protocol.and_then(text).map(|p| Protocol::parse(&p)) })
}

fn rpc_error(error: &RawValue) -> Outcome {
    let [code, message] = pick(error, ["code", "message"]).unwrap_or_default().values;
    // JSON has one kind of number: -32603.0 is the same code.
    let code = code.and_then(|code| serde_json::from_str::<f64>(code.get()).ok()).filter(|code| code.fract() == 0.0);
    let kind = code.map_or(ErrorType::InvalidMessage, |code| ErrorType::Rpc(code as i64));
    Outcome::Error { kind, message: message.and_then(text).map(|message| bounded(&message, 1024).into()) }
}

fn read_params(bytes: &[u8], request: &RawValue, method: &Method, params: Option<&RawValue>) -> Params {
    let Some(params) = params else {
        let seen = Seen { request, params: None, meta: None, traceparent: None, has_tracestate: false };
        return Params { slot: Slot::find(bytes, seen), ..Params::default() };
    };
    let wanted = ["name", "uri", "protocolVersion", "clientInfo", "requestId", "reason", "_meta"];
    let Some(picked) = pick(params, wanted) else { return Params::default() };
    let [name, uri, protocol, client, cancelled, reason, meta] = picked.values;
    let wanted = [
        "io.modelcontextprotocol/protocolVersion",
        "io.modelcontextprotocol/clientInfo",
        "progressToken",
        "traceparent",
        "tracestate",
    ];
    let in_meta = meta.map(|meta| pick(meta, wanted));
    // A `_meta` that is no object, or that cannot be read whole.
    let is_odd = matches!(in_meta, Some(None | Some(Picked { repeated: true, .. })));
    let [meta_protocol, meta_client, token, traceparent, tracestate] = in_meta.flatten().unwrap_or_default().values;
    // A `tracestate` of nothing would become that of our context.
    let is_context = || traceparent.and_then(text).is_some_and(|text| mcpscope_hooks::trace_context(&text).is_some());
    let is_odd = is_odd || (tracestate.is_some() && !is_context());
    let seen = Seen { request, params: Some(params), meta, traceparent, has_tracestate: tracestate.is_some() };
    let cancels = method.as_str() == "notifications/cancelled";
    Params {
        target: name
            .and_then(text)
            .or(uri.and_then(text).map(without_query))
            .map(|t| bounded(&t, MAX_NAME_BYTES).into()),
        protocol: meta_protocol.or(protocol).and_then(text).map(|p| Protocol::parse(&p)),
        client: meta_client.or(client).and_then(client_name),
        cancels: cancelled.filter(|_| cancels).and_then(request_id),
        timed_out: cancels && reason.and_then(text).is_some_and(|reason| tells_of_a_timeout(&reason)),
        traceparent: traceparent.and_then(text).map(|text| bounded(&text, MAX_NAME_BYTES).into()),
        tracestate: tracestate.and_then(text).filter(|text| text.len() <= MAX_NAME_BYTES).map(Into::into),
        slot: if is_odd || picked.repeated { None } else { Slot::find(bytes, seen) },
        progress_token: token.and_then(request_id),
        progress: (method.as_str() == "notifications/progress").then(|| read_progress(params)).flatten(),
    }
}

fn read_progress(params: &RawValue) -> Option<Progress> {
    let [token, progress, total] = pick(params, ["progressToken", "progress", "total"])?.values;
    let number = |raw: &RawValue| serde_json::from_str(raw.get()).ok();
    Some(Progress {
        token: token.and_then(request_id)?,
        progress: progress.and_then(number),
        total: total.and_then(number),
    })
}

/// The query of a URI is where secrets travel; what remains names the resource well enough.
fn without_query(uri: Cow<'_, str>) -> Cow<'_, str> {
    match uri.find(['?', '#']) {
        Some(at) => Cow::Owned(uri[..at].to_owned()),
        None => uri,
    }
}

fn client_name(raw: &RawValue) -> Option<Box<str>> {
    let [name, version] = pick(raw, ["name", "version"])?.values;
    let name = text(name?)?;
    let version = version.and_then(text).unwrap_or_default();
    Some(format!("{} {}", bounded(&name, 128), bounded(&version, 64)).into())
}

/// The reason is free text; the official SDKs write "Request timed out" or name a timeout.
fn tells_of_a_timeout(reason: &str) -> bool {
    let reason = bounded(reason, MAX_NAME_BYTES).to_ascii_lowercase();
    reason.contains("timeout") || reason.contains("timed out")
}

fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(serde::Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'_>>(raw.get()).ok().map(|text| text.0)
}

fn request_id(raw: &RawValue) -> Option<RequestId> {
    let json = raw.get();
    if json.len() > MAX_ID_BYTES {
        return None;
    }
    match json.as_bytes().first()? {
        b'"' => text(raw).map(|text| RequestId::Text(text.into())),
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

/// The wanted members of an object.
#[derive(Clone, Copy)]
struct Picked<'a, const N: usize> {
    /// Of duplicates the last one, like every JSON parser that MCP SDKs use.
    values: [Option<&'a RawValue>; N],
    /// Whether there are any.
    repeated: bool,
}

impl<const N: usize> Default for Picked<'_, N> {
    fn default() -> Self {
        Self { values: [None; N], repeated: false }
    }
}

/// The values of the wanted members of an object; nothing if it is no object.
fn pick<'a, const N: usize>(raw: &'a RawValue, wanted: [&str; N]) -> Option<Picked<'a, N>> {
    serde_json::Deserializer::from_str(raw.get()).deserialize_map(Pick(wanted)).ok()
}

struct Pick<'w, const N: usize>([&'w str; N]);

impl<'de, const N: usize> Visitor<'de> for Pick<'_, N> {
    type Value = Picked<'de, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Picked::default();
        while let Some(at) = map.next_key_seed(Key(&self.0))? {
            match at.and_then(|at| found.values.get_mut(at)) {
                Some(slot) => found.repeated |= slot.replace(map.next_value()?).is_some(),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }
}

/// Finds a key among the wanted ones without copying it.
struct Key<'w>(&'w [&'w str]);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|wanted| *wanted == key))
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
            Message::Request { id, method, params } => (id, method, *params),
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
            Message::Notification { params, .. } => *params,
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
        assert_eq!(scan(b"[]"), Ok(vec![]));
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
