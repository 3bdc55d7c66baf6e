//! Servers that answer before they have all of the request: its call is what they answered.

use mcpscope_core::Transport;
use mcpscope_proxy::http::Config;
use mcpscope_test_support::{BodyReader, Listener, Wire, http};

use crate::common::{Bench, Proxy, dropped, errors, operations, tool_calls};
use crate::sessions::{ENDPOINT, http_sse};
use crate::{Events, JSON, Stage, call, event, json, result};

/// A request of which the server has the first half.
struct Halfway {
    client: Wire,
    server: Wire,
    body: BodyReader,
    rest: Vec<u8>,
}

impl Halfway {
    async fn new(stage: &Stage, target: &str, body: &str) -> Self {
        let (first, rest) = body.as_bytes().split_at(body.len() / 2);
        let length = body.len().to_string();
        let head = http::request_head("POST", target, &[JSON, ("Content-Length", &length)]);
        let mut client = stage.proxy.connect().await;
        client.write(&[&head, first].concat()).await.unwrap();
        let mut server = stage.upstream.accept().await;
        let mut body = BodyReader::of(&server.reader.head().await.unwrap().unwrap());
        let mut passed = Vec::new();
        while passed.len() < first.len() {
            passed.extend(body.part(&mut server.reader).await.unwrap().unwrap());
        }
        assert_eq!(passed, first);
        Self { client, server, body, rest: rest.to_vec() }
    }

    /// Sends the second half, which ends the request.
    async fn complete(&mut self) {
        self.client.write(&self.rest).await.unwrap();
        while self.body.part(&mut self.server.reader).await.unwrap().is_some() {}
    }
}

#[tokio::test]
async fn the_call_ends_as_the_answer_says() {
    let error = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"no"}}"#;
    let answers = [
        (http::answer("500 Internal Server Error", &[], b""), "error", Some("500")),
        (http::answer("401 Unauthorized", &[JSON], error.as_bytes()), "caller_error", Some("401")),
        (http::answer("200 OK", &[("Content-Type", "text/plain")], b"?"), "error", Some("connection_lost")),
        (json(&[], &result(1)), "ok", None),
        (json(&[], &format!("[{}]", result(1))), "ok", None),
    ];
    for (answer, outcome, error) in answers {
        let stage = Stage::new().await;
        let mut halfway = Halfway::new(&stage, "/mcp", &call(1, "echo")).await;
        halfway.server.write(&answer).await.unwrap();
        halfway.client.reader.message().await.unwrap().unwrap();
        assert_eq!(stage.bench.value(&operations("tools")), 0, "nobody knows what it is");
        halfway.complete().await;
        stage.bench.becomes(&tool_calls("echo", outcome), 1).await;
        if let Some(error) = error {
            // What the caller did wrong is no error of the tools.
            let of_tools = i64::from(outcome == "error");
            assert_eq!(stage.bench.value(&errors("tools", error)), of_tools, "{error}");
        }
        drop(halfway);
        stage.bench.becomes(&operations("tools"), 1).await;
        assert_eq!(stage.bench.value(&dropped("unmatched_response")), 0);
        assert_eq!(stage.bench.value(&tool_calls("echo", "cancelled")), 0);
    }
}

#[tokio::test]
async fn a_stream_that_is_ahead_of_its_request_answers_it() {
    for ends_first in [true, false] {
        let stage = Stage::new().await;
        let mut halfway = Halfway::new(&stage, "/mcp", &call(1, "echo")).await;
        halfway.server.write(&[http::stream_head("200 OK", &[]), event(&result(1))].concat()).await.unwrap();
        if ends_first {
            halfway.server.write(http::LAST_CHUNK).await.unwrap();
        }
        let Wire { reader, writer } = halfway.client;
        let (_, mut events) = Events::open(reader).await;
        events.expect(&result(1)).await;
        if ends_first {
            assert_eq!(events.next().await.unwrap(), None);
        }
        halfway.client = Wire { reader: events.from, writer };
        halfway.complete().await;
        stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
        drop(halfway);
        stage.bench.becomes(&operations("tools"), 1).await;
        assert_eq!(stage.bench.value(&dropped("unmatched_response")), 0);
    }
}

#[tokio::test]
async fn a_good_answer_that_is_too_large_to_be_looked_at_is_good_early_too() {
    let (bench, upstream) = (Bench::new(), Listener::bind().await);
    let change = |config: &mut Config| config.limits.max_message = 1000;
    let proxy = Proxy::start_with(upstream.address(), bench.probe(Transport::Http), change).await;
    let stage = Stage { bench, proxy, upstream };
    let mut halfway = Halfway::new(&stage, "/mcp", &call(1, "echo")).await;
    let large = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"text":"{}"}}}}"#, "x".repeat(2000));
    halfway.server.write(&json(&[], &large)).await.unwrap();
    halfway.client.reader.message().await.unwrap().unwrap();
    halfway.complete().await;
    stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
    assert_eq!(stage.bench.value(&dropped("oversized_message")), 1);
}

#[tokio::test]
async fn an_answer_to_a_request_that_never_came_matches_nothing() {
    let stage = Stage::new().await;
    let mut halfway = Halfway::new(&stage, "/mcp", &call(1, "echo")).await;
    halfway.server.write(&json(&[], &result(1))).await.unwrap();
    halfway.client.reader.message().await.unwrap().unwrap();
    drop(halfway);
    stage.bench.becomes(&dropped("unmatched_response"), 1).await;
    assert_eq!(stage.bench.value(&operations("tools")), 0);
}

#[tokio::test]
async fn a_call_that_was_accepted_early_is_answered_on_its_sessions_stream() {
    let stage = Stage::new().await;
    let (mut events, mut server, _writer) = http_sse(&stage, ENDPOINT).await;
    let mut halfway = Halfway::new(&stage, ENDPOINT, &call(1, "echo")).await;
    halfway.server.write(&http::answer("202 Accepted", &[], b"Accepted")).await.unwrap();
    assert_eq!(halfway.client.reader.message().await.unwrap().unwrap().head.status(), 202);
    halfway.complete().await;
    drop(halfway);
    server.write(&event(&result(1))).await.unwrap();
    events.expect(&result(1)).await;
    stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
    assert_eq!(stage.bench.value(&tool_calls("echo", "cancelled")), 0);
}
