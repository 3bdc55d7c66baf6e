//! Reading messages: never panics, and where a complete JSON parser accepts the message too, both read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcpscope_core::{ErrorType, Method, Outcome, RequestId, bounded};
use mcpscope_proxy::{Message, scan};
use serde_json::{Map, Value};

fuzz_target!(|bytes: &[u8]| {
    let read = scan(bytes);
    // A key that serde_json gives a meaning of its own while it makes a value: nothing to compare with.
    if bytes.windows(21).any(|window| window == b"$serde_json::private:") {
        return;
    }
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    let values = match value {
        Value::Array(values) => values,
        value => vec![value],
    };
    let members: Option<Vec<&Map<String, Value>>> = values.iter().map(Value::as_object).collect();
    match (read, members) {
        (Ok(messages), Some(members)) => {
            assert_eq!(messages.len(), members.len());
            messages.iter().zip(members).for_each(|(message, members)| check(message, members));
        }
        (Ok(_), None) => panic!("what is no object was read as a message"),
        (Err(_), Some(members)) => assert!(!members.into_iter().all(is_message), "a message was refused"),
        (Err(_), None) => {}
    }
});

/// Whether this is a message beyond doubt.
fn is_message(members: &Map<String, Value>) -> bool {
    match (members.get("method"), members.get("error")) {
        (Some(method), _) => method.is_string(),
        (None, Some(error)) => error["code"].is_i64(),
        (None, None) => members.contains_key("id") && members.contains_key("result"),
    }
}

fn check(message: &Message, members: &Map<String, Value>) {
    match message {
        Message::Request { id, method, params } => {
            check_id(id.as_ref(), &members["id"]);
            check_method(method, members);
            assert_eq!(params.target.as_deref(), target(members));
        }
        Message::Notification { method, params } => {
            assert!(!members.contains_key("id"));
            check_method(method, members);
            assert_eq!(params.target.as_deref(), target(members));
        }
        Message::Response { id, outcome, .. } => {
            assert!(!members.contains_key("method"));
            check_id(id.as_ref(), members.get("id").unwrap_or(&Value::Null));
            check_outcome(outcome, members);
        }
    }
}

fn check_method(method: &Method, members: &Map<String, Value>) {
    assert_eq!(Some(method.as_str()), members["method"].as_str().map(|name| bounded(name, Method::MAX_BYTES)));
}

fn target(members: &Map<String, Value>) -> Option<&str> {
    let params = members.get("params")?.as_object()?;
    params.get("name").or(params.get("uri"))?.as_str().map(|target| bounded(target, 1024))
}

fn check_id(id: Option<&RequestId>, value: &Value) {
    match (id, value) {
        (Some(RequestId::Text(text)), Value::String(expected)) => assert_eq!(**text, **expected),
        (Some(RequestId::Integer(integer)), Value::Number(expected)) => match expected.as_i64() {
            Some(expected) => assert_eq!(*integer, expected),
            None => assert_eq!(Some(*integer as f64), expected.as_f64()),
        },
        (Some(RequestId::Number(_)), Value::Number(expected)) => assert!(!expected.is_i64()),
        // Too long to be followed; as written, with escapes, it is up to six times as long, and a number has no limit.
        (None, Value::String(text)) => assert!(6 * text.len() + 2 > 256),
        (None, Value::Number(_) | Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) => {}
        (id, value) => panic!("{id:?} for {value}"),
    }
}

fn check_outcome(outcome: &Outcome, members: &Map<String, Value>) {
    if let Some(error) = members.get("error") {
        let Outcome::Error { kind: ErrorType::Rpc(code), .. } = outcome else { panic!("{outcome:?} for {error}") };
        assert_eq!(Some(*code), error["code"].as_i64());
        return;
    }
    let result = &members["result"];
    let expected = if result["isError"] == true {
        Outcome::error(ErrorType::Tool)
    } else if result["resultType"] == "input_required" {
        Outcome::InputRequired
    } else {
        Outcome::Ok
    };
    assert_eq!(*outcome, expected);
}
