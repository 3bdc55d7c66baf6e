//! What the stdio relay makes of trace context: spans on both sides of it, events between them, and our context in the
//! requests that go on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy does not take the helpers of an integration test for tests"
)]

mod common;

use std::process::Command;
use std::time::Duration;

use common::{Bench, Proxied, THEIRS, TRACE, holds, proxied};
use mcpscope_core::{SpanId, TraceId, Transport};
use mcpscope_hooks::{Parts, Probe};
use mcpscope_proxy::Limits;
use mcpscope_proxy::stdio::{ClientEnd, spawn};
use mcpscope_test_support::{StdioClient, within};
use mcpscope_tracing::{SpanKind, Status, Value};
use serde_json::{Value as Json, json};

fn probe(bench: &Bench, propagate: bool) -> Probe {
    Probe::new(Parts { propagate, ..bench.parts(Transport::Stdio) })
}

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// What the client reads while it writes these pieces.
async fn converse(command: Command, probe: &Probe, limits: Limits, pieces: Vec<Vec<u8>>) -> String {
    let (client, input, output) = StdioClient::new();
    let relay = spawn(command, ClientEnd { input, output }, probe, limits).unwrap();
    let output = tokio::task::spawn_blocking(move || client.converse(pieces));
    within(relay.wait()).await.unwrap();
    String::from_utf8(within(output).await.unwrap()).unwrap()
}

async fn line(command: Command, probe: &Probe, line: &str) -> String {
    converse(command, probe, Limits::default(), vec![format!("{line}\n").into_bytes()]).await
}

fn call(id: u32, meta: &Json) -> String {
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "echo", "_meta": meta}}).to_string()
}

fn parent_of(message: &str) -> SpanId {
    let message: Json = serde_json::from_str(message).unwrap();
    let text = message["params"]["_meta"]["traceparent"].as_str().unwrap();
    let (head, flags) = text.rsplit_once('-').unwrap();
    assert_eq!((head.get(..36).unwrap(), flags), (format!("00-{TRACE}-").as_str(), "01"));
    SpanId::parse(head.get(36..).unwrap()).unwrap()
}

/// `cat` sends the client's request back as one of its own, with our context in it.
#[tokio::test]
async fn a_request_goes_on_as_a_child_of_ours_in_both_directions() {
    let bench = Bench::new();
    let sent = call(1, &json!({"traceparent": THEIRS, "tracestate": "a=1", "baggage": "k=v"}));
    let came_back = line(Command::new("cat"), &probe(&bench, true), &sent).await;
    let trace = bench.tracer.trace(TraceId::parse(TRACE).unwrap()).unwrap();
    let kinds: Vec<_> = trace.spans.iter().map(|span| (span.kind, span.tracestate.as_deref())).collect();
    assert_eq!(kinds, [(SpanKind::Server, Some("a=1")), (SpanKind::Client, Some("a=1"))].repeat(2));
    let ids: Vec<_> = trace.spans.iter().map(|span| span.id).collect();
    let parents: Vec<_> = trace.spans.iter().map(|span| span.parent.unwrap()).collect();
    let theirs = SpanId::parse("1234567890123456").unwrap();
    assert_eq!(parents, [theirs, ids[0], ids[1], ids[2]], "each is the child of the one before");
    assert_eq!(parent_of(&came_back), ids[3]);
    let ours = format!("00-{TRACE}-{}-01", ids[3]);
    assert_eq!(came_back, format!("{}\n", sent.replace(THEIRS, &ours)), "nothing else was changed");
}

#[tokio::test]
async fn without_propagation_not_a_byte_is_changed_and_the_spans_are_there_all_the_same() {
    let bench = Bench::new();
    let sent = call(1, &json!({"traceparent": THEIRS}));
    assert_eq!(line(Command::new("cat"), &probe(&bench, false), &sent).await, format!("{sent}\n"));
    let trace = bench.tracer.trace(TraceId::parse(TRACE).unwrap()).unwrap();
    assert_eq!(trace.spans.iter().filter(|span| span.kind == SpanKind::Client).count(), 2);
}

#[tokio::test]
async fn without_a_tracer_there_is_nothing_to_propagate() {
    let sent = call(1, &json!({}));
    let probe = Probe::new(Parts { tracer: None, propagate: true, ..Bench::new().parts(Transport::Stdio) });
    assert_eq!(line(Command::new("cat"), &probe, &sent).await, format!("{sent}\n"));
}

#[tokio::test]
async fn messages_are_told_apart_however_they_are_written() {
    let large =
        json!({"jsonrpc": "2.0", "id": "large", "method": "x", "params": {"a": "y".repeat(1 << 20)}}).to_string();
    let notification = r#"{"method":"notifications/a","params":{"_meta":{"traceparent":"mine"}}}"#;
    let lines = [
        call(1, &json!({})),
        notification.to_owned(),
        "garbage".to_owned(),
        r#"{"jsonrpc":"2.0","id":2,"method":"x","params":[]}"#.to_owned(),
        large,
        "\r".to_owned(),
        r#"{"id":3,"result":{}}"#.to_owned(),
        // The last one has no line feed.
        r#" {"jsonrpc":"2.0","id":4, "method":"ping"}"#.to_owned(),
    ];
    let text = lines.join("\n");
    for size in [7, 100, 64 * 1024, text.len()] {
        let least = size.max(text.len() / 5000);
        let pieces = text.as_bytes().chunks(least).map(<[u8]>::to_vec).collect();
        let output = converse(Command::new("cat"), &probe(&Bench::new(), true), Limits::default(), pieces).await;
        let came_back: Vec<_> = output.split('\n').collect();
        assert_eq!(came_back.len(), lines.len());
        let changed =
            came_back.iter().zip(&lines).map(|(after, before)| proxied(before, after) == Proxied::WithContext);
        assert_eq!(changed.collect::<Vec<_>>(), [true, false, false, false, true, false, false, true], "{size}");
    }
}

#[tokio::test]
async fn what_is_larger_than_is_held_passes_as_it_is() {
    let limits = Limits { max_message: 1000, ..Limits::default() };
    let large = call(1, &json!({"x": "y".repeat(3000)}));
    let small = call(2, &json!({}));
    let input = format!("{large}\n{small}\n");
    let output = converse(Command::new("cat"), &probe(&Bench::new(), true), limits, vec![input.into_bytes()]).await;
    let (first, second) = output.split_once('\n').unwrap();
    assert!(first == large);
    assert_eq!(proxied(&small, second.trim_end()), Proxied::WithContext);
}

#[tokio::test]
async fn it_is_the_same_while_a_fault_is_active() {
    let bench = Bench::new();
    let probe = holds(Parts { propagate: true, ..bench.parts(Transport::Stdio) });
    let sent = call(1, &json!({"traceparent": THEIRS}));
    let came_back = line(Command::new("cat"), &probe, &sent).await;
    assert_eq!(proxied(&sent, came_back.trim_end()), Proxied::WithContext);
    assert_eq!(bench.tracer.trace(TraceId::parse(TRACE).unwrap()).unwrap().spans.len(), 4);
}

fn number(trace: &mcpscope_tracing::Trace, name: &str) -> i64 {
    match trace.details.iter().find(|(detail, _)| detail == name) {
        Some((_, Value::Int(number))) => *number,
        other => panic!("{name}: {other:?}"),
    }
}

#[tokio::test]
async fn a_trace_says_where_the_time_went_and_what_happened() {
    let bench = Bench::new();
    let progress = |token: &str, rest: &str| {
        format!(r#"{{"method":"notifications/progress","params":{{"progressToken":{token},"progress":{rest}}}}}"#)
    };
    // A token of its own, one that is no call's, and the id of the call.
    let told = [
        progress(r#""t""#, r#"1,"total":2.5"#),
        progress(r#""other""#, "1"),
        progress("1", "1"),
        progress("\"t\"", "2"),
    ];
    let answer = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
    let script = format!("read -r line; sleep 0.06; printf '%s\\n' '{}' '{answer}'; cat >/dev/null", told.join("' '"));
    let sent = call(1, &json!({"traceparent": THEIRS, "progressToken": "t"}));
    line(sh(&script), &probe(&bench, false), &sent).await;
    let trace = bench.tracer.trace(TraceId::parse(TRACE).unwrap()).unwrap();
    let [server, client] = &trace.spans[..] else { panic!("{:?}", trace.spans) };
    let events: Vec<_> = server.events.iter().map(|event| (&*event.name, event.attributes.clone())).collect();
    let numbers = |progress, total: Option<f64>| {
        let total = total.map(|total| ("total".into(), Value::Float(total)));
        [("progress".into(), Value::Float(progress))].into_iter().chain(total).collect::<Vec<_>>()
    };
    let expected =
        [("notifications/progress", numbers(1.0, Some(2.5))), ("notifications/progress", numbers(2.0, None))];
    assert_eq!(events, expected);
    assert!(server.events.iter().all(|event| event.at >= Duration::from_millis(60)));
    assert_eq!(client.events, []);
    let parts: i64 = ["proxy_us", "queue_us", "server_us"].iter().map(|name| number(&trace, name)).sum();
    let total = i64::try_from(trace.duration.as_micros()).unwrap();
    assert!((total - 3..=total).contains(&parts), "{parts} of {total}: each is rounded down");
    assert!(number(&trace, "server_us") >= 60_000, "{trace:?}");
    assert_eq!(client.start + client.duration, trace.duration);
}

#[tokio::test]
async fn a_cancelled_call_says_so_and_only_so_many_events_are_kept() {
    let bench = Bench::new();
    let progress = r#"{"method":"notifications/progress","params":{"progressToken":1,"progress":0.5}}"#;
    let script =
        format!("read -r line; i=0; while [ $i -lt 40 ]; do echo '{progress}'; i=$((i+1)); done; cat >/dev/null");
    let (client, input, output) = StdioClient::new();
    let ends = ClientEnd { input, output };
    let relay = spawn(sh(&script), ends, &probe(&bench, false), Limits::default()).unwrap();
    let talk = tokio::task::spawn_blocking(move || {
        use std::io::{BufRead as _, Write as _};
        let (mut writer, mut lines) = (client.writer, std::io::BufReader::new(client.reader).lines());
        writeln!(writer, "{}", call(1, &json!({"traceparent": THEIRS, "progressToken": 1}))).unwrap();
        assert_eq!(lines.by_ref().take(40).count(), 40);
        writeln!(writer, r#"{{"method":"notifications/cancelled","params":{{"requestId":1}}}}"#).unwrap();
        drop(writer);
        assert_eq!(lines.count(), 0);
    });
    within(relay.wait()).await.unwrap();
    within(talk).await.unwrap();
    let trace = bench.tracer.trace(TraceId::parse(TRACE).unwrap()).unwrap();
    assert_eq!(trace.status, Status::Cancelled);
    assert_eq!((trace.spans[0].events.len(), trace.spans[0].dropped_events), (32, 9), "40 of progress, and the end");

    let bench = Bench::new();
    let input = [
        call(1, &json!({"traceparent": THEIRS})),
        r#"{"method":"notifications/cancelled","params":{"requestId":1,"reason":"no"}}"#.to_owned(),
    ];
    line(sh("cat >/dev/null"), &probe(&bench, false), &input.join("\n")).await;
    let trace = bench.tracer.trace(TraceId::parse(TRACE).unwrap()).unwrap();
    let names: Vec<_> = trace.spans[0].events.iter().map(|event| &*event.name).collect();
    assert_eq!(names, ["notifications/cancelled"]);
}

/// As a program writes that asks for a name, or one of another protocol.
#[tokio::test]
async fn an_unfinished_line_does_not_wait_for_ever() {
    let (client, input, output) = StdioClient::new();
    let ends = ClientEnd { input, output };
    let script = "printf 'Content-Length: 2\\r\\n\\r\\n{}'; read -r answer; printf '%s' \"$answer\"";
    let relay = spawn(sh(script), ends, &probe(&Bench::new(), true), Limits::default()).unwrap();
    let talk = tokio::task::spawn_blocking(move || {
        use std::io::{Read as _, Write as _};
        let (mut writer, mut reader) = (client.writer, client.reader);
        let mut asked = [0; 23];
        reader.read_exact(&mut asked).unwrap();
        assert_eq!(asked, *b"Content-Length: 2\r\n\r\n{}");
        writer.write_all(b"me\n").unwrap();
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "me");
    });
    within(talk).await.unwrap();
    within(relay.wait()).await.unwrap();
}
