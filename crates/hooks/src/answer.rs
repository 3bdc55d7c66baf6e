//! Answers that faults make up in place of a server's.

use mcpscope_core::{Answer, Era, ErrorType, Outcome, Protocol, RequestId, bounded};
use serde_json::{Value, json};

/// The revision that nobody asks for.
const NO_REVISION: &str = "1970-01-01";
/// The code of an error that goes with an HTTP status: outside of what JSON-RPC and MCP reserve.
const REFUSED: i64 = -31000;
/// `UnsupportedProtocolVersion`.
const UNSUPPORTED: i64 = -32022;

/// Longest revision that is repeated, in bytes.
const MAX_REVISION: usize = 64;

/// What is answered: a request; where the answer is an HTTP status, any message.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its id, if it is a request.
    pub id: Option<&'a RequestId>,
    /// Its method, if it has one.
    pub method: Option<&'a str>,
    /// Its revision, where known.
    pub protocol: Option<Protocol>,
    /// All of it.
    pub message: &'a [u8],
}

/// An answer that a fault makes up.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The status over HTTP.
    pub status: u16,
    /// The field `Retry-After`, in whole seconds.
    pub retry_after: Option<u64>,
    /// The field `WWW-Authenticate`.
    pub challenge: Option<&'static str>,
    /// The JSON-RPC message.
    pub body: Value,
    /// What its call ends with.
    pub outcome: Outcome,
}

impl Reply {
    /// The answer to this.
    #[must_use]
    pub fn new(answer: &Answer, asked: Asked<'_>) -> Self {
        let Asked { id, method, protocol, .. } = asked;
        let result = |mut result: Value, outcome| {
            // Absent, it means `complete`, too; but not in the newest revision.
            if protocol.map(Protocol::era) == Some(Era::Modern) && result.get("resultType").is_none() {
                result["resultType"] = "complete".into();
            }
            Self { status: 200, retry_after: None, challenge: None, body: message(id, "result", result), outcome }
        };
        let error = |status, code: i64, text: &str, data: Value| {
            let error = json!({"code": code, "message": text, "data": data});
            let kind =
                if status != 200 && code == REFUSED { ErrorType::HttpStatus(status) } else { ErrorType::Rpc(code) };
            let outcome = Outcome::Error { kind, message: Some(text.into()) };
            Self { status, retry_after: None, challenge: None, body: message(id, "error", error), outcome }
        };
        let ours = json!({"source": "mcpscope"});
        match answer {
            Answer::RpcError { code, message } => error(200, *code, message, ours),
            Answer::ToolError { message } => result(
                json!({"content": [{"type": "text", "text": &**message}], "isError": true}),
                Outcome::error(ErrorType::Tool),
            ),
            Answer::InputRequired => {
                // The state alone asks for nothing but to be sent again.
                let mut required = json!({"resultType": "input_required", "requestState": "mcpscope"});
                if asked.takes_forms() {
                    let schema = json!({"type": "object", "properties": {}});
                    let params = json!({"mode": "form", "message": "injected by mcpscope", "requestedSchema": schema});
                    required["inputRequests"] = json!({"mcpscope": {"method": "elicitation/create", "params": params}});
                }
                result(required, Outcome::InputRequired)
            }
            Answer::VersionReject if method == Some("initialize") => {
                let server = json!({"name": "mcpscope", "version": "0"});
                result(json!({"protocolVersion": NO_REVISION, "capabilities": {}, "serverInfo": server}), Outcome::Ok)
            }
            Answer::VersionReject => error(
                400,
                UNSUPPORTED,
                "injected by mcpscope: unsupported protocol version",
                json!({"source": "mcpscope", "supported": [NO_REVISION], "requested": asked.revision()}),
            ),
            Answer::HttpStatus { status, retry_after } => {
                let text = format!("injected by mcpscope: HTTP status {status}");
                let retry_after = retry_after.map(|wait| wait.as_millis().div_ceil(1000) as u64);
                // RFC 6750, section 3.1; RFC 9110 wants one with 401.
                let challenge = match status {
                    401 => Some("Bearer error=\"invalid_token\""),
                    403 => Some("Bearer error=\"insufficient_scope\""),
                    _ => None,
                };
                Self { retry_after, challenge, ..error(*status, REFUSED, &text, ours) }
            }
            Answer::StaleSession => error(404, REFUSED, "injected by mcpscope: session not found", ours),
        }
    }
}

impl Asked<'_> {
    /// A member of `_meta`.
    fn meta(&self, name: &str) -> Option<Value> {
        let mut message: Value = serde_json::from_slice(self.message).ok()?;
        message.get_mut("params")?.get_mut("_meta")?.get_mut(name).map(Value::take)
    }

    /// Whether the client can be asked to fill in a form: it says so in each request, and then without saying more (the
    /// specification, 2026-07-28, Elicitation, Capabilities).
    fn takes_forms(&self) -> bool {
        let declared = self.meta("io.modelcontextprotocol/clientCapabilities");
        let modes = declared.as_ref().and_then(|declared| declared.get("elicitation")?.as_object());
        modes.is_some_and(|modes| modes.is_empty() || modes.contains_key("form"))
    }

    /// The revision that the request names.
    fn revision(&self) -> String {
        let named = self.meta("io.modelcontextprotocol/protocolVersion");
        let named = named.as_ref().and_then(Value::as_str).map(|named| bounded(named, MAX_REVISION));
        named.or(self.protocol.map(Protocol::as_str)).unwrap_or_default().to_owned()
    }
}

fn message(id: Option<&RequestId>, name: &str, value: Value) -> Value {
    let mut message = json!({"jsonrpc": "2.0"});
    message[name] = value;
    // An error that belongs to no request has no id; MCP knows no null.
    if let Some(id) = id {
        message["id"] = id_as_json(id);
    }
    message
}

/// An id as it stands in a message.
#[must_use]
pub fn id_as_json(id: &RequestId) -> Value {
    match id {
        RequestId::Integer(number) => Value::from(*number),
        RequestId::Number(text) => serde_json::from_str(text).unwrap_or_default(),
        RequestId::Text(text) => Value::from(&**text),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_answer_is_what_its_name_says() {
        let id = RequestId::Integer(7);
        let (legacy, modern) = (Protocol::V2025_11_25, Protocol::V2026_07_28);
        let reply = |answer: &Answer, method, protocol, message: &str| {
            let (protocol, message) = (Some(protocol), message.as_bytes());
            Reply::new(answer, Asked { id: Some(&id), method: Some(method), protocol, message })
        };
        let rpc = reply(&Answer::RpcError { code: -31000, message: "no".into() }, "tools/call", legacy, "");
        assert_eq!((rpc.status, &rpc.body["id"], &rpc.body["error"]["code"]), (200, &7.into(), &(-31000).into()));
        assert_eq!(rpc.outcome, Outcome::Error { kind: ErrorType::Rpc(-31000), message: Some("no".into()) });
        let tool = reply(&Answer::ToolError { message: "no".into() }, "tools/call", modern, "").body;
        assert_eq!((&tool["result"]["isError"], &tool["result"]["resultType"]), (&true.into(), &"complete".into()));
        let rejected = reply(&Answer::VersionReject, "initialize", legacy, "");
        assert_eq!((rejected.status, &rejected.body["result"]["protocolVersion"]), (200, &NO_REVISION.into()));
        let wait = Some(Duration::from_millis(1500));
        let busy = reply(&Answer::HttpStatus { status: 429, retry_after: wait }, "ping", legacy, "");
        assert_eq!((busy.status, busy.retry_after, busy.challenge), (429, Some(2), None));
        let denied = reply(&Answer::HttpStatus { status: 401, retry_after: None }, "ping", legacy, "");
        assert_eq!(denied.challenge, Some("Bearer error=\"invalid_token\""));
        assert_eq!(reply(&Answer::StaleSession, "ping", legacy, "").status, 404);
    }

    fn modern(answer: &Answer, meta: &Value) -> Reply {
        let message = json!({"params": {"_meta": meta}}).to_string();
        let protocol = Some(Protocol::V2026_07_28);
        Reply::new(answer, Asked { id: None, method: Some("tools/call"), protocol, message: message.as_bytes() })
    }

    #[test]
    fn a_revision_that_is_refused_is_repeated() {
        let rejected =
            modern(&Answer::VersionReject, &json!({"io.modelcontextprotocol/protocolVersion": "2027-01-01"}));
        assert_eq!((rejected.status, &rejected.body["error"]["code"]), (400, &(-32022).into()));
        let data = json!({"source": "mcpscope", "supported": [NO_REVISION], "requested": "2027-01-01"});
        assert_eq!(rejected.body["error"]["data"], data);
        let unnamed = modern(&Answer::VersionReject, &json!({}));
        assert_eq!(unnamed.body["error"]["data"]["requested"], "2026-07-28");
    }

    #[test]
    fn a_client_is_asked_only_for_what_it_can_do() {
        for (declared, is_asked) in [
            (json!({}), false),
            (json!({"sampling": {}}), false),
            (json!({"elicitation": {}}), true),
            (json!({"elicitation": {"form": {}, "url": {}}}), true),
            (json!({"elicitation": {"url": {}}}), false),
        ] {
            let meta = json!({"io.modelcontextprotocol/clientCapabilities": declared});
            let result = &modern(&Answer::InputRequired, &meta).body["result"];
            assert_eq!(
                (&result["resultType"], &result["requestState"]),
                (&"input_required".into(), &"mcpscope".into())
            );
            assert_eq!(result.get("inputRequests").is_some(), is_asked, "{declared}");
        }
    }
}
