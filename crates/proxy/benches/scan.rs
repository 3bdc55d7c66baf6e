//! Reading method, id and tool name out of a message whose id comes last, as the official SDKs write it.

#![allow(clippy::expect_used, reason = "a benchmark may fail")]

use std::borrow::Cow;
use std::fmt::Write as _;
use std::hint::black_box;

use mcpscope_core::RequestId;
use mcpscope_proxy::{Message, scan};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use mcpscope_test_support::bench::{self, Race, Report};

/// What a program would write that wants just these.
#[derive(Deserialize)]
struct Borrowed<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow)]
    params: Params<'a>,
}

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

fn main() -> std::io::Result<()> {
    if !bench::wanted() {
        return Ok(());
    }
    let mut report = Report::new("scan");
    for bytes in [300, 4_000, 100_000] {
        report.add(scanning(bytes));
    }
    report.finish(env!("CARGO_TARGET_TMPDIR"))
}

fn scanning(bytes: usize) -> bench::Table {
    let message = message(bytes);
    let message = message.as_bytes();
    check(message);
    Race::new(&format!("tools/call of {bytes} bytes, id last"), 1)
        .case("mcpscope scan", || scan(black_box(message)))
        .case("serde_json, borrowed struct", || serde_json::from_slice::<Borrowed<'_>>(black_box(message)))
        .case("serde_json::Value", || serde_json::from_slice::<Value>(black_box(message)))
        .case("floor: from_utf8", || std::str::from_utf8(black_box(message)))
        .run()
}

/// A call with search results as its argument, of exactly so many bytes.
fn message(bytes: usize) -> String {
    let head = r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"summarize","arguments":{"files":["#;
    let tail = |filler: &str| {
        let trace =
            r#""_meta":{"progressToken":7,"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;
        format!(r#"],"note":"{filler}"}},{trace}}},"id":1234567}}"#)
    };
    let mut message = head.to_owned();
    let (mut separator, mut n) = ("", 0);
    loop {
        let before = message.len();
        let item = format!(r#"{{"path":"src/file_{n}.rs","line":{n},"text":"let x = \"{n}\";\n"}}"#);
        let _ = write!(message, "{separator}{item}");
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
fn check(message: &[u8]) {
    let scanned = scan(message).expect("a message");
    let [Message::Request { id: Some(RequestId::Integer(1_234_567)), method, params }] = &scanned[..] else {
        unreachable!("{scanned:?}")
    };
    let borrowed: Borrowed<'_> = serde_json::from_slice(message).expect("a message");
    let value: Value = serde_json::from_slice(message).expect("JSON");
    assert_eq!((method.as_str(), params.target.as_deref()), ("tools/call", Some("summarize")));
    assert_eq!((&*borrowed.method, &*borrowed.params.name, borrowed.id.get()), ("tools/call", "summarize", "1234567"));
    assert_eq!((&value["method"], &value["id"]), (&"tools/call".into(), &1_234_567.into()));
}
