//! Whatever passes comes out as it went in: random lines, bodies, event streams and headers through both relays, in
//! both directions at once, in front of peers that know nothing of mcpscope.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy does not take the helpers of an integration test for tests"
)]

mod common;
#[path = "exactness/strategies.rs"]
mod strategies;

use std::process::Command;
use std::sync::Arc;

use common::{Bench, Panics, Proxy, holds};
use futures_util::future::join_all;
use mcpscope_core::Transport;
use mcpscope_hooks::{Parts, Probe};
use mcpscope_proxy::Limits;
use mcpscope_proxy::http::Config;
use mcpscope_proxy::stdio::{ClientEnd, spawn};
use mcpscope_test_support::{EchoServer, Listener, Message, StdioClient, http, within};
use proptest::prelude::*;
use strategies::{Exchange, Head, body, event_stream, exchange, header_fields, lines, pieces, sorted, status_line};
use tokio::runtime::{Builder, Runtime};

/// How the relay observes what passes.
#[derive(Clone, Copy, Debug)]
enum Watching {
    /// Not at all.
    Off,
    /// As usual.
    On,
    /// With messages held until they are complete, as while a fault is active.
    Holding,
    /// With our trace context in every request that can take it: taken out again, every byte is what it was.
    Propagating,
    /// With instrumentation that panics all the time.
    Broken,
}

fn watching() -> impl Strategy<Value = Watching> {
    prop_oneof![
        1 => Just(Watching::Off),
        3 => Just(Watching::On),
        3 => Just(Watching::Holding),
        3 => Just(Watching::Propagating),
        1 => Just(Watching::Broken),
    ]
}

fn probe(watching: Watching, transport: Transport) -> Probe {
    let parts = Bench::new().parts(transport);
    Probe::new(match watching {
        Watching::Off => Parts::new("s", transport),
        Watching::On => parts,
        Watching::Holding => return holds(parts),
        Watching::Propagating => Parts { propagate: true, ..parts },
        Watching::Broken => Parts { observer: Some(Arc::new(Panics)), ..parts },
    })
}

/// What passed, without the contexts that the relay put into it: nothing here has one of its own, and `params` of a request
/// always have another member.
fn without_context(watching: Watching, bytes: &[u8]) -> Vec<u8> {
    const BEFORE: &[u8] = br#""_meta":{"traceparent":"00-"#;
    const AFTER: &[u8] = br#"12345678901234567890123456789012-1234567890123456-01"},"#;
    let mut left = Vec::new();
    let mut rest = bytes;
    while let Some(at) = memchr::memmem::find(rest, BEFORE).filter(|_| matches!(watching, Watching::Propagating)) {
        left.extend_from_slice(&rest[..at]);
        rest = &rest[at + BEFORE.len() + AFTER.len()..];
    }
    [&left, rest].concat()
}

/// From limits that almost every message exceeds to one that none does.
fn max_message() -> impl Strategy<Value = usize> {
    prop_oneof![1_usize..200, Just(64 * 1024), Just(16 << 20)]
}

fn limits(max_message: usize) -> Limits {
    Limits { max_message, ..Limits::default() }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn cases(cases: u32) -> ProptestConfig {
    // Nothing is written beside the sources; the values that failed are printed.
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() }
}

/// Where two texts differ; said instead of the texts, which may be megabytes.
fn difference(found: &[u8], expected: &[u8]) -> Option<String> {
    if found == expected {
        return None;
    }
    let at = found.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(found.len().min(expected.len()));
    let around = |bytes: &[u8]| {
        let part = bytes.get(at.saturating_sub(20)..(at + 20).min(bytes.len())).unwrap_or_default();
        part.escape_ascii().to_string()
    };
    let (left, right) = (around(found), around(expected));
    Some(format!("{} bytes instead of {}, from {at} on: {left:?} instead of {right:?}", found.len(), expected.len()))
}

macro_rules! prop_assert_same {
    ($found:expr, $expected:expr) => {
        if let Some(difference) = difference(&$found, &$expected) {
            prop_assert!(false, "{}", difference);
        }
    };
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn stdio_passes_every_byte_both_ways(
        input in lines(), sizes in pieces(), watching in watching(), max in max_message(),
    ) {
        runtime().block_on(async {
            let (client, read, written) = StdioClient::new();
            let ends = ClientEnd { input: read, output: written };
            let relay = spawn(Command::new("cat"), ends, &probe(watching, Transport::Stdio), limits(max)).unwrap();
            let parts = strategies::split(&input, &sizes);
            let (output, status) = tokio::join!(
                async { within(tokio::task::spawn_blocking(move || client.converse(parts))).await.unwrap() },
                within(relay.wait()),
            );
            prop_assert!(status.unwrap().success());
            prop_assert_same!(without_context(watching, &output), input);
            Ok(())
        })?;
    }
}

/// One connection's requests in a row: each is answered with its own bytes, and the server saw just these.
async fn converse(proxy: &Proxy, exchanges: &[Exchange]) -> Vec<Message> {
    let mut client = proxy.connect().await;
    let mut answers = Vec::new();
    for (number, exchange) in exchanges.iter().enumerate() {
        let answer = client.exchange_parts(exchange.request()).await;
        answers.push(answer.unwrap_or_else(|error| panic!("request {number}: {error}")));
    }
    answers
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn http_passes_every_byte_both_ways(
        connections in prop::collection::vec(prop::collection::vec(exchange(), 1..4), 1..4),
        watching in watching(), max in max_message(),
    ) {
        runtime().block_on(async {
            let echo = EchoServer::start().await;
            let change = |config: &mut Config| config.limits = limits(max);
            let proxy = Proxy::start_with(echo.address(), probe(watching, Transport::Http), change).await;
            let answers = within(join_all(connections.iter().map(|exchanges| converse(&proxy, exchanges)))).await;
            for (answers, exchanges) in answers.iter().zip(&connections) {
                for (at, (answer, exchange)) in answers.iter().zip(exchanges).enumerate() {
                    prop_assert_eq!(answer.head.status(), 200);
                    prop_assert_eq!(answer.head.value("echo-number").unwrap(), (at + 1).to_string(), "one upstream connection");
                    prop_assert_eq!(answer.head.value("transfer-encoding").is_some(), exchange.chunked);
                    prop_assert_same!(without_context(watching, &answer.body), exchange.body);
                }
            }
            let mut seen: Vec<Vec<u8>> = echo.seen().iter().map(|seen| without_context(watching, &seen.body)).collect();
            let mut sent: Vec<Vec<u8>> = connections.iter().flatten().map(|exchange| exchange.body.clone()).collect();
            seen.sort_unstable();
            sent.sort_unstable();
            prop_assert!(seen == sent, "the server saw every body once, as it was sent");
            prop_assert_eq!(echo.connections(), connections.len());
            Ok(())
        })?;
    }

    #[test]
    fn event_streams_pass_every_byte(
        stream in event_stream(), sizes in pieces(), chunked in any::<bool>(), watching in watching(), max in max_message(),
    ) {
        runtime().block_on(async {
            let listener = Listener::bind().await;
            let change = |config: &mut Config| config.limits = limits(max);
            let proxy = Proxy::start_with(listener.address(), probe(watching, Transport::Http), change).await;
            let client = async {
                let call = br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"}}"#;
                proxy.connect().await.exchange(&http::request("POST", "/mcp", &[], call)).await.unwrap()
            };
            let server = async {
                let mut server = listener.accept().await;
                server.reader.message().await.unwrap().unwrap();
                let media = ("Content-Type", "text/event-stream; charset=utf-8");
                let head = if chunked {
                    http::answer_head("200 OK", &[media, ("Transfer-Encoding", "chunked")])
                } else {
                    http::answer_head("200 OK", &[media, ("Connection", "close")])
                };
                server.write(&head).await.unwrap();
                for part in strategies::split(&stream, &sizes) {
                    server.write(&if chunked { http::chunk(&part) } else { part }).await.unwrap();
                }
                if chunked {
                    server.write(http::LAST_CHUNK).await.unwrap();
                }
            };
            let (answer, ()) = within(async { tokio::join!(client, server) }).await;
            prop_assert_eq!(answer.head.value("content-type").unwrap(), "text/event-stream; charset=utf-8");
            prop_assert_same!(without_context(watching, &answer.body), stream);
            Ok(())
        })?;
    }

    #[test]
    fn heads_pass_as_they_are(
        asked in header_fields(), answered in header_fields(), status in status_line(), question in body(),
        reply in body(), watching in watching(),
    ) {
        runtime().block_on(async {
            let listener = Listener::bind().await;
            let proxy = Proxy::start(listener.address(), probe(watching, Transport::Http)).await;
            let request = Head::new("PUT /mcp?a=%20b&c=d//..;e HTTP/1.1", &asked)
                .and("hOST", "localhost:8080")
                .and("content-length", &question.len().to_string());
            let answer = Head::new(&format!("HTTP/1.1 {} {}", status.code, status.reason), &answered);
            let (answer, reply) = match status.code {
                204 | 304 => (answer, Vec::new()),
                _ => (answer.and("CONTENT-length", &reply.len().to_string()), reply),
            };
            let client = async { proxy.connect().await.exchange(&request.before(&question)).await.unwrap() };
            let server = async {
                let mut server = listener.accept().await;
                let seen = server.reader.message().await.unwrap().unwrap();
                server.write(&answer.before(&reply)).await.unwrap();
                seen
            };
            let (got, seen) = within(async { tokio::join!(client, server) }).await;
            prop_assert_eq!(seen.head.start_line(), request.start.clone());
            prop_assert_eq!(got.head.start_line(), answer.start.clone());
            prop_assert_eq!(sorted(seen.head.headers()), request.sorted());
            prop_assert_eq!(sorted(got.head.headers()), answer.sorted());
            prop_assert_same!(seen.body, question);
            prop_assert_same!(got.body, reply);
            Ok(())
        })?;
    }
}
