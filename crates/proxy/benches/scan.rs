//! Reading method, id and tool name out of a request, and how it turned out of an answer: id last, as the official SDKs write
//! it, and id first.
//!
//! Ours is the whole scan as the relays do it: it also finds trace context, progress token and client, says where a context
//! would go, and owns what it found. The peers read what is asked for into a struct that borrows, or with what they offer for
//! reading parts; all of them but `get_many` of sonic-rs, which stops when it has what it wants, see to it that all is JSON.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark may fail")]

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::hint::black_box;

use jiter::{Jiter, JiterResult, NumberInt};
use mcpscope_core::{Outcome, RequestId};
use mcpscope_proxy::{Message, scan};
use mcpscope_test_support::bench::{self, Race, Report};
use serde::Deserialize;
use serde_json::value::RawValue;
use sonic_rs::PointerTree;

/// What a program would write that wants just these.
#[derive(Debug, Default, Deserialize, PartialEq)]
struct Wanted<'a> {
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    id: u64,
    #[serde(borrow)]
    params: Option<Params<'a>>,
    result: Option<Outcomes>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Params<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Outcomes {
    is_error: bool,
}

/// The same with an id that may be a number or a string, as it may in JSON-RPC: in serde_json's way to leave that open.
#[derive(Deserialize)]
#[expect(dead_code, reason = "reading it is what is measured")]
struct WithRawId<'a> {
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow)]
    params: Option<Params<'a>>,
    result: Option<Outcomes>,
}

fn main() -> std::io::Result<()> {
    if !bench::wanted() {
        return Ok(());
    }
    let mut report = Report::new("scan");
    for bytes in [300, 4_000, 100_000] {
        report.add(reading(&format!("request of {bytes} bytes, id last"), &request(bytes, false)));
        report.add(reading(&format!("request of {bytes} bytes, id first"), &request(bytes, true)));
        report.add(reading(&format!("answer of {bytes} bytes, id last"), &answer(bytes, false)));
        report.add(reading(&format!("answer of {bytes} bytes, id first"), &answer(bytes, true)));
    }
    report.finish(env!("CARGO_TARGET_TMPDIR"))
}

fn reading(title: &str, message: &str) -> bench::Table {
    let message = message.as_bytes();
    let mut tree = PointerTree::new();
    for path in [&["method"][..], &["id"], &["params", "name"], &["result", "isError"]] {
        tree.add_path(path);
    }
    check(message, &tree);
    Race::new(title, 1)
        .case("mcpscope scan", || scan(black_box(message)))
        .case("serde_json, borrowed struct", || serde_json::from_slice::<Wanted<'_>>(black_box(message)))
        .case("serde_json, borrowed struct, id raw", || serde_json::from_slice::<WithRawId<'_>>(black_box(message)))
        .case("sonic-rs, borrowed struct", || sonic_rs::from_slice::<Wanted<'_>>(black_box(message)))
        .case("sonic-rs, get_many", || sonic_rs::get_many(black_box(message), &tree))
        .case("simd-json, borrowed struct, of a copy", || {
            in_place(black_box(message), |wanted| _ = black_box(wanted));
        })
        .case("jiter", || by_jiter(black_box(message), |found| _ = black_box(found)))
        .case("floor: from_utf8", || std::str::from_utf8(black_box(message)))
        .run()
}

thread_local! {
    /// simd-json changes what it reads; the copy and its buffers are used again and again.
    static SIMD_JSON: RefCell<(Vec<u8>, simd_json::Buffers)> = RefCell::new((Vec::new(), simd_json::Buffers::new(0)));
}

fn in_place(message: &[u8], then: impl FnOnce(Wanted<'_>)) {
    SIMD_JSON.with_borrow_mut(|(copy, buffers)| {
        copy.clear();
        copy.extend_from_slice(message);
        then(simd_json::serde::from_slice_with_buffers(copy, buffers).expect("JSON"));
    });
}

/// What was read last.
#[derive(Debug, PartialEq)]
enum Found<'a> {
    Method(&'a str),
    Id(i64),
    Name(&'a str),
    IsError(bool),
}

/// jiter lends what it reads until it reads on.
fn by_jiter(message: &[u8], mut found: impl FnMut(Found<'_>)) -> JiterResult<()> {
    let mut json = Jiter::new(message);
    let mut key = json.next_object()?.map(Key::of);
    while let Some(member) = key {
        match member {
            Key::Method => found(Found::Method(json.next_str()?)),
            Key::Id => {
                let NumberInt::Int(id) = json.next_int()?;
                found(Found::Id(id));
            }
            Key::Object => {
                let mut key = json.next_object()?.map(Key::of);
                while let Some(member) = key {
                    match member {
                        Key::Name => found(Found::Name(json.next_str()?)),
                        Key::IsError => found(Found::IsError(json.next_bool()?)),
                        _ => json.next_skip()?,
                    }
                    key = json.next_key()?.map(Key::of);
                }
            }
            _ => json.next_skip()?,
        }
        key = json.next_key()?.map(Key::of);
    }
    json.finish()
}

#[derive(Clone, Copy)]
enum Key {
    Method,
    Id,
    Object,
    Name,
    IsError,
    Other,
}

impl Key {
    fn of(key: &str) -> Self {
        match key {
            "method" => Self::Method,
            "id" => Self::Id,
            "params" | "result" => Self::Object,
            "name" => Self::Name,
            "isError" => Self::IsError,
            _ => Self::Other,
        }
    }
}

/// A call with search results as its argument, of exactly so many bytes.
fn request(bytes: usize, id_first: bool) -> String {
    let trace =
        r#""_meta":{"progressToken":7,"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;
    let head = r#""method":"tools/call","params":{"name":"summarize","arguments":{"files":["#;
    filled(bytes, id_first, head, &format!("}},{trace}}}"))
}

/// Its answer, with structured content.
fn answer(bytes: usize, id_first: bool) -> String {
    let head = r#""result":{"content":[{"type":"text","text":"done"}],"structuredContent":{"files":["#;
    filled(bytes, id_first, head, r#"},"isError":false}"#)
}

/// With as many entries of a list between these as there is room for, and a text that fills the rest.
fn filled(bytes: usize, id_first: bool, head: &str, tail: &str) -> String {
    let (before, behind) = if id_first { (r#""id":1234567,"#, "") } else { ("", r#","id":1234567"#) };
    let mut message = format!(r#"{{"jsonrpc":"2.0",{before}{head}"#);
    let tail = |filler: &str| format!(r#"],"note":"{filler}"{tail}{behind}}}"#);
    let (mut separator, mut n) = ("", 0);
    loop {
        let before = message.len();
        let _ = write!(message, r#"{separator}{{"path":"src/file_{n}.rs","line":{n},"text":"let x = \"{n}\";\n"}}"#);
        if message.len() + tail("").len() > bytes {
            message.truncate(before);
            break;
        }
        (separator, n) = (",", n + 1);
    }
    let missing = bytes - message.len() - tail("").len();
    message.push_str(&tail(&"x".repeat(missing)));
    assert_eq!(message.len(), bytes);
    message
}

/// All of them must read the same.
fn check(message: &[u8], tree: &PointerTree) {
    let wanted: Wanted<'_> = serde_json::from_slice(message).unwrap();
    let name = wanted.params.as_ref().map(|params| &*params.name);
    assert_eq!(wanted.id, 1_234_567);
    match &scan(message).unwrap()[..] {
        [Message::Request { id: Some(RequestId::Integer(1_234_567)), method, params }] => {
            assert_eq!((Some(method.as_str()), params.target.as_deref()), (wanted.method.as_deref(), name));
            assert_eq!((method.as_str(), name), ("tools/call", Some("summarize")));
        }
        [Message::Response { id: Some(RequestId::Integer(1_234_567)), outcome: Outcome::Ok, .. }] => {
            assert_eq!(wanted.result, Some(Outcomes { is_error: false }));
        }
        other => unreachable!("{other:?}"),
    }
    assert_eq!(sonic_rs::from_slice::<Wanted<'_>>(message).unwrap(), wanted);
    in_place(message, |read| assert_eq!(read, wanted));
    let many = sonic_rs::get_many(message, tree).unwrap();
    let many: Vec<_> =
        many.iter().map(|value| value.as_ref().map(|value| value.as_raw_str().trim_matches('"'))).collect();
    let is_error = wanted.result.as_ref().map(|_| "false");
    assert_eq!(many, [wanted.method.as_deref(), Some("1234567"), name, is_error]);
    let mut found = 0;
    let is_wanted = |read: Found<'_>| {
        found += 1;
        match read {
            Found::Method(method) => assert_eq!(Some(method), wanted.method.as_deref()),
            Found::Id(id) => assert_eq!(id, 1_234_567),
            Found::Name(read) => assert_eq!(Some(read), name),
            Found::IsError(is_error) => assert!(!is_error),
        }
    };
    by_jiter(message, is_wanted).unwrap();
    assert_eq!(found, if name.is_some() { 3 } else { 2 });
}
