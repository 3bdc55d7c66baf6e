//! Trace context in requests: after it was injected the JSON is what it was but for the injected members, or the bytes are
//! what they were; no object has a key twice that had it once.
//!
//! The first byte of an input says whether there is a `tracestate` to go along; the rest is the message.
#![no_main]

use std::fmt;

use libfuzzer_sys::fuzz_target;
use mcpscope_core::TraceContext;
use mcpscope_proxy::fuzzing::Tap;
use mcpscope_tracing::parse_traceparent;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

const OURS: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const STATE: &str = "a=\"1\\,b=2";

fuzz_target!(|input: &[u8]| {
    let [with_state, message @ ..] = input else { return };
    let context: TraceContext = parse_traceparent(OURS).expect("it is valid");
    let tracestate = (*with_state == b'+').then_some(STATE);
    let after = Tap::body(usize::MAX).inject(message, &context, tracestate);
    if after == message {
        return;
    }
    // It is the same message wherever in a stream it is.
    if !message.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        for (tap, before, behind) in [
            (Tap::lines(usize::MAX), "\n \t", " \r\n"),
            (Tap::events(usize::MAX), ": hi\r\nid: 1\r\ndata: ", "\r\n\r\n"),
        ] {
            let framed = |message: &[u8]| [before.as_bytes(), message, behind.as_bytes()].concat();
            assert_eq!(tap.inject(&framed(message), &context, tracestate), framed(&after));
        }
    }
    // It refuses more than the scan: deep nesting, numbers beyond all bounds, halves of surrogate pairs.
    let Ok(before) = serde_json::from_slice::<Json>(message) else { return };
    let after: Json = serde_json::from_slice(&after).expect("JSON stays JSON");
    match (before, after) {
        (Json::List(before), Json::List(after)) => {
            assert_eq!(before.len(), after.len());
            before.into_iter().zip(after).for_each(|(before, after)| check(before, after, tracestate));
        }
        (before, after) => check(before, after, tracestate),
    }
});

/// One message, before and after.
fn check(before: Json, after: Json, tracestate: Option<&str>) {
    if before == after {
        return;
    }
    let (Json::Object(mut before), Json::Object(mut after)) = (before, after) else { panic!("no request was changed") };
    let has = |name| before.iter().any(|(key, _)| key == name);
    assert!(has("id") && has("method") && !has("result") && !has("error"));
    assert!(before.contains(&("jsonrpc".to_owned(), Json::Text("2.0".to_owned()))));
    let (old_params, new_params) = (take(&mut before, "params"), take(&mut after, "params"));
    assert_eq!(before, after, "beside params");
    let (mut old_params, mut new_params) = (old_params.unwrap_or_default(), new_params.expect("params"));
    let (old_meta, new_meta) = (take(&mut old_params, "_meta"), take(&mut new_params, "_meta"));
    assert_eq!(old_params, new_params, "beside _meta");
    let (mut old_meta, mut new_meta) = (old_meta.unwrap_or_default(), new_meta.expect("_meta"));
    let ours = take_any(&mut new_meta, "traceparent");
    assert_eq!(ours, Some(Json::Text(OURS.to_owned())));
    let theirs = take_any(&mut old_meta, "traceparent");
    if old_meta.iter().all(|(key, _)| key != "tracestate") {
        let state = take_any(&mut new_meta, "tracestate");
        assert_eq!(state, tracestate.map(|text| Json::Text(text.to_owned())));
    } else {
        let Some(Json::Text(theirs)) = theirs else { panic!("a tracestate of nothing became ours") };
        assert!(parse_traceparent(&theirs).is_some(), "{theirs}");
    }
    assert_eq!(old_meta, new_meta, "beside the context");
}

type Members = Vec<(String, Json)>;

/// The only member of this name, an object; none if there is no such member.
fn take(members: &mut Members, name: &str) -> Option<Members> {
    take_any(members, name).map(|value| match value {
        Json::Object(members) => members,
        other => panic!("{name} is {other:?}, and was changed"),
    })
}

fn take_any(members: &mut Members, name: &str) -> Option<Json> {
    assert!(members.iter().filter(|(key, _)| key == name).count() <= 1, "{name} is there twice");
    let at = members.iter().position(|(key, _)| key == name)?;
    Some(members.remove(at).1)
}

/// JSON with its members in their order, duplicates included.
#[derive(Debug, PartialEq)]
enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Integer(i128),
    Text(String),
    List(Vec<Json>),
    Object(Members),
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            list.push(element);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }
}
