//! Answers of our own: to requests that a relay refuses, and for a server that gives none.

use mcpscope_core::RequestId;
use serde_json::{Value, json};

/// A JSON-RPC error that says it is ours. `code` is JSON-RPC's own: -32600 for the caller's mistake, -32603 for ours.
pub(crate) fn error(code: i64, id: Option<&RequestId>, message: &str) -> Value {
    let error = json!({"code": code, "message": message, "data": {"source": "mcpscope"}});
    let mut answer = json!({"jsonrpc": "2.0", "error": error});
    // An error that belongs to no request has no id; MCP knows no null.
    if let Some(id) = id {
        answer["id"] = mcpscope_hooks::id_as_json(id);
    }
    answer
}
