//! Reading messages: never panics, refuses what is no JSON and nothing else, and where a complete JSON parser accepts the
//! message too, both read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcpscope_core::{ErrorType, Method, Outcome, RequestId, bounded};
use mcpscope_proxy::{Message, ScanError, scan};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

/// Longer batches are not looked at.
const MAX_BATCH: usize = 1024;

fuzz_target!(|bytes: &[u8]| {
    let read = scan(bytes);
    let is_json = std::str::from_utf8(bytes).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
    assert_eq!(read != Err(ScanError::Invalid), is_json);
    // A key that serde_json gives a meaning of its own while it makes a value: nothing to compare with.
    if bytes.windows(21).any(|window| window == b"$serde_json::private:") {
        return;
    }
    // It refuses more: deep nesting, numbers beyond all bounds, halves of surrogate pairs.
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    let values = match value {
        Value::Array(values) => values,
        value => vec![value],
    };
    match read {
        Ok(messages) => {
            assert_eq!(messages.len(), values.len());
            messages.iter().zip(&values).for_each(|(message, value)| check(message, value));
        }
        Err(ScanError::TooMany) => assert!(values.len() > MAX_BATCH),
        Err(ScanError::Invalid) => panic!("a complete parser reads more"),
    }
});

fn check(message: &Message, value: &Value) {
    let nothing = Map::new();
    let members = value.as_object().unwrap_or(&nothing);
    let (id, method) = (members.get("id"), members.get("method"));
    let error = members.get("error").filter(|error| !error.is_null());
    match message {
        Message::Request { id: read, method: name, params } => {
            check_id(read.as_ref(), id.expect("a request has an id"));
            assert_eq!(Some(name.as_str()), method.and_then(name_of));
            assert_eq!(params.target.as_deref(), target(members));
        }
        Message::Notification { method: name, params } => {
            assert_eq!(id, None);
            assert_eq!(Some(name.as_str()), method.and_then(name_of));
            assert_eq!(params.target.as_deref(), target(members));
        }
        Message::Response { id: read, outcome, .. } => {
            assert_eq!(method, None);
            check_id(read.as_ref(), id.unwrap_or(&Value::Null));
            match error {
                Some(error) => check_error(outcome, error),
                None => assert_eq!(*outcome, expected(&members["result"])),
            }
        }
        Message::Invalid => match method {
            Some(method) => assert!(!method.is_string()),
            None => assert!(error.is_none() && (id.is_none() || !members.contains_key("result"))),
        },
    }
}

fn name_of(method: &Value) -> Option<&str> {
    method.as_str().map(|name| bounded(name, Method::MAX_BYTES))
}

fn target(members: &Map<String, Value>) -> Option<&str> {
    let params = members.get("params")?.as_object()?;
    let text = |name: &str| params.get(name).and_then(Value::as_str);
    let uri = || text("uri")?.split(['?', '#']).next();
    text("name").or_else(uri).map(|target| bounded(target, 1024))
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

fn check_error(outcome: &Outcome, error: &Value) {
    let code = error["code"].as_f64().filter(|code| code.fract() == 0.0);
    let expected = code.map_or(ErrorType::InvalidMessage, |code| ErrorType::Rpc(code as i64));
    let Outcome::Error { kind, message } = outcome else { panic!("{outcome:?} for {error}") };
    assert_eq!(*kind, expected);
    assert_eq!(message.as_deref(), error["message"].as_str().map(|text| bounded(text, 1024)));
}

fn expected(result: &Value) -> Outcome {
    if result["isError"] == true {
        Outcome::error(ErrorType::Tool)
    } else if result["resultType"] == "input_required" {
        Outcome::InputRequired
    } else {
        Outcome::Ok
    }
}
