//! How the HTTP relay behaves when one side fails, ends or is slow, and what it makes of sessions.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy does not take the helpers of an integration test for tests"
)]
#![allow(clippy::disallowed_methods, reason = "tests spawn the parts that they connect")]

#[path = "../common/mod.rs"]
mod common;
mod early;
mod ends;
mod failures;
mod faults;
mod guard;
mod hostile;
mod led;
mod process;
mod propagation;
mod protocol_faults;
mod relay;
mod sessions;
mod slow;
mod tls;

use common::{Bench, Proxy};
use mcpscope_core::Transport;
use mcpscope_test_support::{BodyReader, Head, Listener, Message, Wire, WireReader, http};

/// A relay in front of a server that the test plays.
struct Stage {
    bench: Bench,
    proxy: Proxy,
    upstream: Listener,
}

impl Stage {
    async fn new() -> Self {
        let (bench, upstream) = (Bench::new(), Listener::bind().await);
        let proxy = Proxy::start(upstream.address(), bench.probe(Transport::Http)).await;
        Self { bench, proxy, upstream }
    }

    /// A client's connection and the server's, after a request was passed on.
    async fn asked(&self, request: &[u8]) -> (Wire, Wire, Message) {
        let mut client = self.proxy.connect().await;
        client.write(request).await.unwrap();
        loop {
            let mut server = self.upstream.accept().await;
            // Who only looks whether a server that was started listens asks it nothing.
            if let Some(seen) = server.reader.message().await.unwrap() {
                return (client, server, seen);
            }
        }
    }

    /// Relays one exchange on connections of its own.
    async fn exchange(&self, request: &[u8], answer: &[u8]) -> Message {
        let (mut client, mut server, _) = self.asked(request).await;
        server.write(answer).await.unwrap();
        client.reader.message().await.unwrap().unwrap()
    }
}

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn post(headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    http::request("POST", "/mcp", &[&[JSON], headers].concat(), body.as_bytes())
}

fn call(id: u32, tool: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{tool}"}}}}"#)
}

fn result(id: u32) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#)
}

fn json(headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    http::answer("200 OK", &[&[JSON], headers].concat(), body.as_bytes())
}

/// A chunk with one event.
fn event(data: &str) -> Vec<u8> {
    http::chunk(format!("data: {data}\n\n").as_bytes())
}

/// An event stream as its client sees it.
struct Events {
    from: WireReader,
    body: BodyReader,
    pending: Vec<u8>,
}

impl Events {
    /// The head of the answer, and what follows.
    async fn open(mut from: WireReader) -> (Head, Self) {
        let head = from.head().await.unwrap().unwrap();
        let body = BodyReader::of(&head);
        (head, Self { from, body, pending: Vec::new() })
    }

    /// The next event with its end; none at the end of the stream.
    async fn next(&mut self) -> std::io::Result<Option<String>> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|window| window == b"\n\n") {
                return Ok(Some(String::from_utf8(self.pending.drain(..end + 2).collect()).unwrap()));
            }
            match self.body.part(&mut self.from).await? {
                Some(part) => self.pending.extend_from_slice(&part),
                None => return Ok(None),
            }
        }
    }

    async fn expect(&mut self, data: &str) {
        assert_eq!(self.next().await.unwrap().as_deref(), Some(format!("data: {data}\n\n").as_str()));
    }
}
