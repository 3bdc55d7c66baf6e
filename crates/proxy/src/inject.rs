//! Our trace context in a request that goes on: spliced in at a position that the scan found, every other byte as it came.
//!
//! [`scan`](crate::scan) finds the position on its way through the message, so a request is read once, whether it is
//! changed or not. Where the result would not surely be the same request with our context, there is no position: a key is
//! there twice (however it is spelled), `params` or `_meta` are no objects, there is a `tracestate` without its `traceparent`,
//! or it is no request of JSON-RPC 2.0.

use std::ops::Range;

use mcpscope_core::TraceContext;

/// Where in a request its trace context is written, in bytes from the beginning of what was scanned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    place: Place,
    /// Whether `tracestate` has a value already.
    has_tracestate: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// In place of the value of `traceparent`.
    Value(Range<usize>),
    /// As the first member of `_meta`.
    Meta(First),
    /// As the first member of `params`, in a `_meta` of its own.
    Params(First),
    /// As the first member of the request, in `params` of its own.
    Request(First),
}

/// Behind the opening brace of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct First {
    at: usize,
    is_empty: bool,
}

/// What the scan saw of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) request: &'a str,
    pub(crate) params: Option<&'a str>,
    pub(crate) meta: Option<&'a str>,
    pub(crate) traceparent: Option<&'a str>,
    pub(crate) has_tracestate: bool,
}

impl Slot {
    /// Where the context goes in a request that is a part of `message`, and has no key twice.
    pub(crate) fn find(message: &[u8], seen: Seen<'_>) -> Option<Self> {
        let place = match seen {
            Seen { traceparent: Some(value), .. } => Place::Value(range(message, value)?),
            Seen { meta: Some(meta), .. } => Place::Meta(First::of(message, meta)?),
            Seen { params: Some(params), .. } => Place::Params(First::of(message, params)?),
            Seen { request, .. } => Place::Request(First::of(message, request)?),
        };
        Some(Self { place, has_tracestate: seen.has_tracestate })
    }

    /// Writes `context` there, and `tracestate` with it unless there is one.
    pub(crate) fn splice(&self, context: &TraceContext, tracestate: Option<&str>) -> Splice {
        let mut text = String::with_capacity(96);
        let (at, first) = match &self.place {
            Place::Value(range) => (range.clone(), None),
            Place::Meta(first) | Place::Params(first) | Place::Request(first) => (first.at..first.at, Some(first)),
        };
        let (before, after) = match self.place {
            Place::Value(_) => ("", ""),
            Place::Meta(_) => (r#""traceparent":"#, ""),
            Place::Params(_) => (r#""_meta":{"traceparent":"#, "}"),
            Place::Request(_) => (r#""params":{"_meta":{"traceparent":"#, "}}"),
        };
        text.push_str(before);
        text.push('"');
        text.push_str(&mcpscope_hooks::traceparent(context));
        text.push('"');
        if let Some(tracestate) = tracestate.filter(|_| !self.has_tracestate) {
            text.push_str(r#","tracestate":"#);
            push_string(&mut text, tracestate);
        }
        text.push_str(after);
        if first.is_some_and(|first| !first.is_empty) {
            text.push(',');
        }
        Splice { at, text }
    }
}

impl First {
    fn of(message: &[u8], object: &str) -> Option<Self> {
        let inside = object.strip_prefix('{')?;
        let is_empty = inside.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('}');
        Some(Self { at: range(message, object)?.start + 1, is_empty })
    }
}

/// Where in `message` a part of it lies.
fn range(message: &[u8], part: &str) -> Option<Range<usize>> {
    let start = part.as_ptr().addr().checked_sub(message.as_ptr().addr())?;
    let range = start..start + part.len();
    message.get(range.clone()).map(|_| range)
}

/// Printable ASCII, as a `tracestate` is, as a JSON string.
fn push_string(text: &mut String, value: &str) {
    text.push('"');
    for character in value.chars() {
        if matches!(character, '"' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text.push('"');
}

/// A change to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Splice {
    /// What is replaced, in bytes from the beginning of the message.
    at: Range<usize>,
    /// By what.
    text: String,
}

/// The bytes with these changes to the message that begins `offset` bytes into them; changes are in the order of their
/// places.
pub(crate) fn spliced(bytes: &[u8], offset: usize, splices: &[Splice]) -> Vec<u8> {
    let mut changed = Vec::with_capacity(bytes.len() + splices.iter().map(|splice| splice.text.len()).sum::<usize>());
    let mut done = 0;
    for Splice { at, text } in splices {
        changed.extend_from_slice(bytes.get(done..offset + at.start).unwrap_or_default());
        changed.extend_from_slice(text.as_bytes());
        done = offset + at.end;
    }
    changed.extend_from_slice(bytes.get(done..).unwrap_or_default());
    changed
}

#[cfg(test)]
mod tests {
    use mcpscope_core::{SpanId, TraceId};
    use proptest::prelude::*;
    use serde_json::value::RawValue;
    use serde_json::{Value, json};

    use super::*;
    use crate::{Message, scan};

    const OURS: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const THEIRS: &str = "00-12345678901234567890123456789012-1234567890123456-00";

    fn context() -> TraceContext {
        let trace_id = TraceId::parse("0af7651916cd43dd8448eb211c80319c").unwrap();
        TraceContext { trace_id, parent: SpanId::parse("b7ad6b7169203331").unwrap(), sampled: true }
    }

    /// What a relay makes of a message.
    fn inject(message: &str, tracestate: Option<&str>) -> String {
        let requests = scan(message.as_bytes()).into_iter().flatten().filter_map(|message| match message {
            Message::Request { params, .. } => params.slot,
            _ => None,
        });
        let splices: Vec<_> = requests.map(|slot| slot.splice(&context(), tracestate)).collect();
        String::from_utf8(spliced(message.as_bytes(), 0, &splices)).unwrap()
    }

    #[track_caller]
    fn becomes(message: &str, expected: &str) {
        assert_eq!(inject(message, None), expected.replace("OURS", &format!("\"{OURS}\"")));
    }

    #[track_caller]
    fn stays(message: &str) {
        assert_eq!(inject(message, Some("a=1")), message);
    }

    #[test]
    fn a_value_is_replaced_and_nothing_else() {
        becomes(
            &format!(
                r#"{{ "jsonrpc": "2.0","id" : 1.0,"method":"x", "params":{{"_meta" : {{"a":[],"traceparent" : "{THEIRS}" ,"b":1}}}} , "id2":1e400}}"#
            ),
            r#"{ "jsonrpc": "2.0","id" : 1.0,"method":"x", "params":{"_meta" : {"a":[],"traceparent" : OURS ,"b":1}} , "id2":1e400}"#,
        );
        for odd in ["null", "7", "[1]", "{}", r#""""#] {
            becomes(
                &format!(r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"_meta":{{"traceparent":{odd}}}}}}}"#),
                r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"traceparent":OURS}}}"#,
            );
        }
    }

    #[test]
    fn what_is_missing_is_inserted() {
        becomes(
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"progressToken":1}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"traceparent":OURS,"progressToken":1}}}"#,
        );
        becomes(
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{  }}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"traceparent":OURS  }}}"#,
        );
        becomes(
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{ "name":"y"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"traceparent":OURS}, "name":"y"}}"#,
        );
        becomes(
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"traceparent":OURS}}}"#,
        );
        becomes(
            "\t {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"x\"}",
            "\t {\"params\":{\"_meta\":{\"traceparent\":OURS}},\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"x\"}",
        );
    }

    #[test]
    fn a_key_is_known_however_it_is_spelled() {
        becomes(
            &format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"x","p\u0061rams":{{"_met\u0061":{{"\u0074raceparent":"{THEIRS}"}}}}}}"#
            ),
            r#"{"jsonrpc":"2.0","id":1,"method":"x","p\u0061rams":{"_met\u0061":{"\u0074raceparent":OURS}}}"#,
        );
    }

    #[test]
    fn what_cannot_be_changed_safely_stays_as_it_is() {
        for message in [
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":[]}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":null}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":null}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":[]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{},"params":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{},"par\u0061ms":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{},"_meta":{}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{},"\u005fmeta":{}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"traceparent":1,"traceparent":2}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"tracestate":"a=1","tracestate":"a=1"}}}"#,
            // A key that no parser agrees on.
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"\ud800":1}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"\ud800":1}}"#,
            // It would be that of our context.
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"tracestate":"c=3"}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"traceparent":"bad","tracestate":"c=3"}}}"#,
            // No requests, or not of this protocol.
            r#"{"id": 7, "method": "card", "amount": 5}"#,
            r#"{"jsonrpc":"1.0","id":1,"method":"x","params":{}}"#,
            r#"{"jsonrpc":2.0,"id":1,"method":"x","params":{}}"#,
            r#"{"jsonrpc":"2.0","jsonrpc":"2.0","id":1,"method":"x","params":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","error":null}"#,
            r#"{"jsonrpc":"2.0","method":"x","params":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            "{",
            "garbage",
            "",
        ] {
            stays(message);
        }
    }

    #[test]
    fn every_request_of_a_batch_gets_it() {
        becomes(
            r#" [{"jsonrpc":"2.0","id":1,"method":"x","params":{}} , {"jsonrpc":"2.0","method":"n"},{"jsonrpc":"2.0","id":2,"method":"y","params":[]},{"jsonrpc":"2.0","id":3,"method":"z"}]"#,
            r#" [{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"traceparent":OURS}}} , {"jsonrpc":"2.0","method":"n"},{"jsonrpc":"2.0","id":2,"method":"y","params":[]},{"params":{"_meta":{"traceparent":OURS}},"jsonrpc":"2.0","id":3,"method":"z"}]"#,
        );
    }

    #[test]
    fn a_tracestate_goes_along_unless_there_is_one() {
        let meta = |message: &str| {
            let after: Value = serde_json::from_str(&inject(message, Some("a=\"1\\,b=2"))).unwrap();
            after["params"]["_meta"].clone()
        };
        let both = json!({"traceparent": OURS, "tracestate": "a=\"1\\,b=2"});
        assert_eq!(meta(r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#), both);
        assert_eq!(meta(r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"traceparent":"bad"}}}"#), both);
        let theirs = json!({"traceparent": OURS, "tracestate": "c=3"});
        let has_both = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"_meta":{{"traceparent":"{THEIRS}","tracestate":"c=3"}}}}}}"#
        );
        assert_eq!(meta(&has_both), theirs);
    }

    fn blank() -> impl Strategy<Value = &'static str> {
        prop_oneof![4 => Just(""), 1 => Just(" "), 1 => Just("\n\t ")]
    }

    /// Members in any order, with any blanks.
    fn object(members: Vec<(String, String)>) -> BoxedStrategy<String> {
        let count = members.len();
        (Just(members).prop_shuffle(), prop::collection::vec(blank(), 4 * count + 1))
            .prop_map(|(members, blanks)| {
                let mut blanks = blanks.into_iter();
                let mut next = || blanks.next().unwrap_or_default();
                let mut text = format!("{{{}", next());
                for (at, (key, value)) in members.iter().enumerate() {
                    let comma = if at == 0 { "" } else { "," };
                    text += &format!("{comma}{}{key}{}:{}{value}{}", next(), next(), next(), next());
                }
                text + "}"
            })
            .boxed()
    }

    fn key(name: &'static str) -> impl Strategy<Value = String> {
        let (first, rest) = name.split_at(1);
        let escaped = format!("\"\\u{:04x}{rest}\"", u32::from(first.as_bytes()[0]));
        prop_oneof![3 => Just(format!("\"{name}\"")), 1 => Just(escaped)]
    }

    fn value() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("1.0".to_owned()),
            Just("null".to_owned()),
            Just(r#"{"params":{"_meta":{"traceparent":"no"}}}"#.to_owned()),
            Just(r#"["traceparent","_meta",{}]"#.to_owned()),
            "\"[a-z{}\\[\\]:, é]{0,9}\"".prop_map(|text| text),
        ]
    }

    /// An object with some of these members, perhaps one of them twice, and others.
    fn some_of(members: Vec<BoxedStrategy<(String, String)>>) -> BoxedStrategy<String> {
        let other = ("\"[a-z]{0,3}\"", value()).boxed();
        let count = members.len();
        let chosen = prop::collection::vec(prop_oneof![4 => Just(0_usize), 6 => Just(1), 1 => Just(2)], count);
        (chosen, prop::collection::vec(other, 0..3))
            .prop_flat_map(move |(chosen, others)| {
                let own: Vec<_> = members
                    .iter()
                    .zip(chosen)
                    .flat_map(|(member, times)| std::iter::repeat_n(member.clone(), times))
                    .collect();
                (own, Just(others))
            })
            .prop_flat_map(|(own, others)| object([own, others].concat()))
            .boxed()
    }

    fn request() -> BoxedStrategy<String> {
        let member = |name, value: BoxedStrategy<String>| (key(name), value).boxed();
        let meta = some_of(vec![
            member("traceparent", prop_oneof![Just(format!("\"{THEIRS}\"")), value()].boxed()),
            member("tracestate", prop_oneof![Just("\"a=1\"".to_owned()), value()].boxed()),
            member("progressToken", Just("7".to_owned()).boxed()),
        ]);
        let params = some_of(vec![
            member("_meta", prop_oneof![6 => meta, 1 => value()].boxed()),
            member("name", Just("\"tool\"".to_owned()).boxed()),
        ]);
        let members = vec![
            member("params", prop_oneof![6 => params, 1 => value()].boxed()),
            member("jsonrpc", Just("\"2.0\"".to_owned()).boxed()),
            member("method", Just("\"tools/call\"".to_owned()).boxed()),
            member("id", prop_oneof![Just("1".to_owned()), Just("\"\\u0061\"".to_owned())].boxed()),
        ];
        some_of(members)
    }

    /// How often each of the keys that matter is in an object, however it is spelled.
    fn repeats(message: &str) -> bool {
        #[derive(Default)]
        struct Keys(Vec<String>);
        impl<'de> serde::Deserialize<'de> for Keys {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct All;
                impl<'de> serde::de::Visitor<'de> for All {
                    type Value = Keys;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }
                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                        let mut keys = Keys::default();
                        while let Some(key) = map.next_key::<String>()? {
                            keys.0.push(key);
                            map.next_value::<serde::de::IgnoredAny>()?;
                        }
                        Ok(keys)
                    }
                }
                deserializer.deserialize_map(All)
            }
        }
        let twice = |object: &str, name: &str| {
            let keys: Keys = serde_json::from_str(object).unwrap_or_default();
            keys.0.iter().filter(|key| *key == name).count() > 1
        };
        // Of an object that is there once, what was written is what the values are; so from the outside in.
        let raw = |object: &str, name: &str| {
            let members: Option<std::collections::HashMap<String, Box<RawValue>>> = serde_json::from_str(object).ok();
            members.and_then(|members| members.get(name).map(|value| value.get().to_owned())).unwrap_or_default()
        };
        let params = raw(message, "params");
        let meta = raw(&params, "_meta");
        ["jsonrpc", "params", "method", "id", "result", "error"].iter().any(|name| twice(message, name))
            || ["_meta", "name", "uri", "reason"].iter().any(|name| twice(&params, name))
            || ["traceparent", "tracestate", "progressToken"].iter().any(|name| twice(&meta, name))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_request_is_the_same_but_for_what_is_injected(message in request(), with_state in any::<bool>()) {
            let tracestate = with_state.then_some("z=26");
            let injected = inject(&message, tracestate);
            let before: Value = serde_json::from_str(&message).unwrap();
            let after: Value = serde_json::from_str(&injected).unwrap();
            let is_request =
                before["jsonrpc"] == "2.0" && before["method"].is_string() && before.get("id").is_some();
            let params_fit = before.get("params").is_none_or(Value::is_object);
            let meta_fits = before["params"].get("_meta").is_none_or(Value::is_object);
            let meta = &before["params"]["_meta"];
            let state_fits = meta.get("tracestate").is_none() || meta["traceparent"] == THEIRS;
            if repeats(&message) || !is_request || !params_fit || !meta_fits || !state_fits {
                prop_assert_eq!(injected, message);
                return Ok(());
            }
            let mut expected = before;
            if expected.get("params").is_none() {
                expected["params"] = json!({});
            }
            if expected["params"].get("_meta").is_none() {
                expected["params"]["_meta"] = json!({});
            }
            let meta = &mut expected["params"]["_meta"];
            meta["traceparent"] = OURS.into();
            if let Some(tracestate) = tracestate.filter(|_| meta.get("tracestate").is_none()) {
                meta["tracestate"] = tracestate.into();
            }
            prop_assert_eq!(after, expected);
            // One place was changed: what is before and behind it is what was there.
            let front = injected.bytes().zip(message.bytes()).take_while(|(a, b)| a == b).count();
            let back = injected.bytes().rev().zip(message.bytes().rev()).take_while(|(a, b)| a == b).count();
            let old_value = serde_json::from_str::<Value>(&message).unwrap()["params"]["_meta"]
                .get("traceparent").is_some();
            prop_assert!(old_value || front + back >= message.len(), "{injected}");
        }
    }
}
