//! The relay's own answers: to requests it refuses, and for a server that it cannot reach.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use mcpscope_core::{Refusal, RequestId};

use super::body::Body;

/// An answer with a JSON-RPC error as its body. `code` is JSON-RPC's own: -32600 for the caller's mistake, -32603 for ours.
fn json_rpc_error(status: StatusCode, code: i64, id: Option<&RequestId>, message: &str) -> Response<Body> {
    let error = serde_json::json!({"code": code, "message": message, "data": {"source": "mcpscope"}});
    let mut body = serde_json::json!({"jsonrpc": "2.0", "error": error});
    // An error that belongs to no request has no id; MCP knows no null.
    if let Some(id) = id {
        body["id"] = match id {
            RequestId::Integer(number) => serde_json::Value::from(*number),
            RequestId::Number(text) => serde_json::from_str(text).unwrap_or_default(),
            RequestId::Text(text) => serde_json::Value::from(&**text),
        };
    }
    let body = body.to_string();
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response
}

/// 400 or 403: the listener does not answer to this host or origin.
pub(super) fn refused(refusal: &Refusal) -> Response<Body> {
    let status = match refusal {
        Refusal::HostCount(_) => StatusCode::BAD_REQUEST,
        Refusal::Host(_) | Refusal::Origin(..) => StatusCode::FORBIDDEN,
    };
    json_rpc_error(status, -32600, None, &format!("mcpscope: {refusal}"))
}

/// 502: the server gave no answer to the request with this id.
pub(super) fn bad_gateway(id: Option<&RequestId>, message: &str) -> Response<Body> {
    json_rpc_error(StatusCode::BAD_GATEWAY, -32603, id, &format!("mcpscope: {message}"))
}
