//! Servers that are down, break off or are slow.

use std::sync::Arc;
use std::time::Instant;

use mcpscope_core::Transport;
use mcpscope_proxy::Traffic;
use mcpscope_test_support::{EchoServer, Listener, eventually, http};

use crate::common::{Bench, Proxy, dropped, errors, operations, tool_calls};
use crate::{Events, Stage, call, event, json, post, result};

/// The JSON-RPC error in an answer of the relay's own.
fn error_of(body: &[u8]) -> serde_json::Value {
    serde_json::from_slice(body).unwrap()
}

#[tokio::test]
async fn an_upstream_that_is_down_is_told_with_the_requests_id() {
    let bench = Bench::new();
    let down = Listener::bind().await.address();
    let proxy = Proxy::start(down, bench.probe(Transport::Http)).await;
    for (id, body) in [
        ("7", call(7, "echo")),
        (r#""a\"b""#, call(0, "echo").replace(":0,", r#":"a\"b","#)),
        ("18446744073709551615", call(0, "echo").replace(":0,", ":18446744073709551615,")),
    ] {
        let answer = proxy.connect().await.exchange(&post(&[], &body)).await.unwrap();
        assert_eq!(answer.head.start_line(), "HTTP/1.1 502 Bad Gateway");
        assert_eq!(answer.head.value("content-type").unwrap(), "application/json");
        let error = error_of(&answer.body);
        assert_eq!(error["jsonrpc"], "2.0");
        assert_eq!(error["id"].to_string(), id);
        assert_eq!(error["error"]["code"], -32603);
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(&down.to_string()) && message.contains("cannot connect"), "{message}");
    }
    bench.becomes(&tool_calls("echo", "error"), 3).await;
    assert_eq!(bench.value(&errors("transport", "upstream_unreachable")), 3);
    assert_eq!(bench.value(&errors("tools", "upstream_unreachable")), 3);
    let traces = bench.tracer.traces(&mcpscope_tracing::Filter::default());
    let told = traces[0].details.iter().find(|(name, _)| *name == "error_message").unwrap().1.to_string();
    assert!(told.contains(&down.to_string()) && told.contains("Connection refused"), "{told}");
}

#[tokio::test]
async fn a_server_that_breaks_every_connection_does_not_work_until_it_answers() {
    let (reporter, health) = mcpscope_health::channel(Instant::now());
    let upstream = Listener::bind().await;
    let proxy = Proxy::start_with(upstream.address(), Bench::new().probe(Transport::Http), |config| {
        config.traffic = Some(Arc::new(Traffic::new(reporter)));
    })
    .await;
    let mut client = proxy.connect().await;
    // It is there, as the relay sees by itself.
    drop(upstream.accept().await);
    for id in 0..3 {
        assert!(health.is_ready(), "it may be what was asked");
        client.write(&post(&[], &call(id, "echo"))).await.unwrap();
        drop(upstream.accept().await);
        assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 502);
    }
    assert!(health.readiness().missing[0].reason.contains("gave no answer: the connection broke"));
    // From here on nobody asks but the relay, and to be there is not enough.
    for answer in [&b"220 mail.example ESMTP\r\n\r\n"[..], &http::answer("405 Method Not Allowed", &[], b"")] {
        let mut server = upstream.accept().await;
        assert_eq!(server.reader.head().await.unwrap().unwrap().start_line(), "OPTIONS /mcp HTTP/1.1");
        assert!(!health.is_ready());
        server.write(answer).await.unwrap();
        assert_eq!(server.reader.closed().await.unwrap(), b"");
    }
    eventually(|| health.is_ready().then_some(()).ok_or("not ready")).await;
}

#[tokio::test]
async fn a_request_without_an_id_gets_an_error_without_one() {
    let down = Listener::bind().await.address();
    let proxy = Proxy::start(down, Bench::new().probe(Transport::Http)).await;
    let mut client = proxy.connect().await;
    let answer = client.exchange(&http::request("GET", "/mcp", &[], b"")).await.unwrap();
    assert_eq!(answer.head.status(), 502);
    assert_eq!(error_of(&answer.body).get("id"), None);
    // The connection lives on.
    assert_eq!(client.exchange(&post(&[], "garbage")).await.unwrap().head.status(), 502);
}

#[tokio::test]
async fn a_server_that_closes_before_its_answer_is_told_and_not_asked_again() {
    let stage = Stage::new().await;
    let (mut client, server, _) = stage.asked(&post(&[], &call(7, "echo"))).await;
    drop(server);
    let answer = client.reader.message().await.unwrap().unwrap();
    assert_eq!((answer.head.status(), &error_of(&answer.body)["id"]), (502, &7.into()));
    stage.upstream.expect_no_more().await;
    stage.bench.becomes(&tool_calls("echo", "error"), 1).await;
    assert_eq!(stage.bench.value(&errors("transport", "connection_lost")), 1);
    assert_eq!(stage.bench.value(&errors("tools", "connection_lost")), 1);
    // The client's connection lives on, with a new one behind it.
    client.write(&post(&[], &call(8, "echo"))).await.unwrap();
    let mut server = stage.upstream.accept().await;
    server.reader.message().await.unwrap().unwrap();
    server.write(&json(&[], &result(8))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(8).as_bytes());
}

#[tokio::test]
async fn each_request_of_a_batch_gets_its_error() {
    let stage = Stage::new().await;
    let batch = format!("[{},{}]", call(7, "echo"), call(8, "echo"));
    let (mut client, server, _) = stage.asked(&post(&[], &batch)).await;
    drop(server);
    let answer = client.reader.message().await.unwrap().unwrap();
    let errors = error_of(&answer.body);
    let ids: Vec<_> = errors.as_array().unwrap().iter().map(|error| &error["id"]).collect();
    assert_eq!((answer.head.status(), ids), (502, vec![&7.into(), &8.into()]));
    assert!(errors.as_array().unwrap().iter().all(|error| error["error"]["data"]["source"] == "mcpscope"), "{errors}");
    stage.bench.becomes(&tool_calls("echo", "error"), 2).await;
}

#[tokio::test]
async fn a_server_that_closes_at_once_is_not_asked_again() {
    let stage = Stage::new().await;
    let mut client = stage.proxy.connect().await;
    client.write(&post(&[], &call(7, "echo"))).await.unwrap();
    drop(stage.upstream.accept().await);
    assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 502);
    stage.upstream.expect_no_more().await;
}

#[tokio::test]
async fn a_connection_that_the_server_closed_between_requests_is_replaced() {
    let stage = Stage::new().await;
    let (mut client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
    server.write(&json(&[], &result(1))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 200);
    let old = server;
    // A server that ends an idle connection: its end of stream first, then nothing is read any more.
    drop(old.writer);
    assert_eq!(old.reader.closed().await.unwrap(), b"", "the relay closes its side, and has sent nothing more");
    client.write(&post(&[], &call(2, "echo"))).await.unwrap();
    let mut server = stage.upstream.accept().await;
    assert_eq!(server.reader.message().await.unwrap().unwrap().body, call(2, "echo").as_bytes());
    server.write(&json(&[], &result(2))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(2).as_bytes());
    stage.upstream.expect_no_more().await;
    drop(client);
    assert_eq!(server.reader.closed().await.unwrap(), b"", "the server saw it once");
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_comes_at_once() {
    let stage = Stage::new().await;
    let mut client = stage.proxy.connect().await;
    client.write(&http::request_head("POST", "/mcp", &[("Content-Length", "1000000")])).await.unwrap();
    client.write(b"{").await.unwrap();
    let mut server = stage.upstream.accept().await;
    server.reader.head().await.unwrap().unwrap();
    server.write(&http::answer("413 Payload Too Large", &[], b"too large")).await.unwrap();
    let answer = client.reader.message().await.unwrap().unwrap();
    assert_eq!((answer.head.status(), answer.body.as_slice()), (413, b"too large".as_slice()));
}

#[tokio::test]
async fn an_answer_that_is_broken_off_reaches_the_client_broken_off() {
    let stage = Stage::new().await;
    let (mut client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
    server.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{").await.unwrap();
    drop(server);
    let error = client.reader.message().await.unwrap_err();
    assert!(error.kind() != std::io::ErrorKind::TimedOut, "{error}");
    stage.bench.becomes(&errors("tools", "connection_lost"), 1).await;
}

#[tokio::test]
async fn a_stream_that_is_broken_off_reaches_the_client_broken_off() {
    let stage = Stage::new().await;
    let (client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
    server.write(&http::stream_head("200 OK", &[])).await.unwrap();
    server.write(&event("1")).await.unwrap();
    let (_, mut events) = Events::open(client.reader).await;
    events.expect("1").await;
    drop(server);
    let error = events.next().await.unwrap_err();
    assert!(error.kind() != std::io::ErrorKind::TimedOut, "{error}");
    stage.bench.becomes(&errors("tools", "connection_lost"), 1).await;
}

#[tokio::test]
async fn what_is_too_large_passes_and_is_counted() {
    let (bench, echo) = (Bench::new(), EchoServer::start().await);
    let change = |config: &mut mcpscope_proxy::http::Config| config.limits.max_message = 1000;
    let proxy = Proxy::start_with(echo.address(), bench.probe(Transport::Http), change).await;
    let body = call(1, &"x".repeat(3 << 20));
    let answer = proxy.connect().await.exchange(&post(&[], &body)).await.unwrap();
    assert!(answer.body == body.as_bytes() && echo.seen()[0].body == body.as_bytes());
    bench.becomes(&dropped("oversized_message"), 2).await;
    assert_eq!(bench.value(&operations("transport")), 0);
}

#[tokio::test]
async fn garbage_passes_and_is_counted() {
    let stage = Stage::new().await;
    let answer = stage.exchange(&post(&[], "{not json"), &json(&[], "\u{1}[nor this")).await;
    assert_eq!(answer.body, b"\x01[nor this");
    stage.bench.becomes(&errors("transport", "invalid_message"), 2).await;
}

#[tokio::test]
async fn bodies_that_are_no_messages_count_for_nothing() {
    let stage = Stage::new().await;
    // What the Python SDK answers to a message of the HTTP+SSE transport.
    let answer = stage.exchange(&post(&[], &result(1)), &http::answer("202 Accepted", &[], b"Accepted")).await;
    assert_eq!((answer.head.status(), answer.body.as_slice()), (202, b"Accepted".as_slice()));
    // A token request of OAuth, and an error page.
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let token = http::request("POST", "/token", &form, b"grant_type=authorization_code");
    let page = http::answer("500 Internal Server Error", &[("Content-Type", "text/html")], b"<h1>oops</h1>");
    assert_eq!(stage.exchange(&token, &page).await.body, b"<h1>oops</h1>");
    // Metadata of the authorization server.
    let metadata = http::request("GET", "/.well-known/oauth-protected-resource", &[], b"");
    assert_eq!(stage.exchange(&metadata, &json(&[], r#"{"resource":"x"}"#)).await.body, br#"{"resource":"x"}"#);
    // Everything before this is counted by the time that this call is.
    stage.exchange(&post(&[], &call(9, "echo")), &json(&[], &result(9))).await;
    stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
    assert_eq!(stage.bench.value(&errors("transport", "invalid_message")), 0, "{:#?}", stage.bench.counts());
}

#[tokio::test]
async fn an_http_error_counts_against_the_call() {
    let stage = Stage::new().await;
    for (status, outcome) in [("503 Service Unavailable", "error"), ("401 Unauthorized", "caller_error")] {
        let plain = [("Content-Type", "text/plain"), ("WWW-Authenticate", "Bearer")];
        let answer = stage.exchange(&post(&[], &call(1, outcome)), &http::answer(status, &plain, b"no")).await;
        assert_eq!(answer.head.start_line(), format!("HTTP/1.1 {status}"));
        assert_eq!(answer.head.value("www-authenticate").unwrap(), "Bearer");
        stage.bench.becomes(&tool_calls(outcome, outcome), 1).await;
    }
    assert_eq!(stage.bench.value(&errors("tools", "503")), 1);
    assert_eq!(stage.bench.value(&errors("tools", "401")), 0);
}

#[tokio::test]
async fn an_error_that_names_no_request_is_that_of_the_request() {
    let stage = Stage::new().await;
    let body = br#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"not initialized"},"id":null}"#;
    let refused = http::answer("400 Bad Request", &[("Content-Type", "application/json")], body);
    stage.exchange(&post(&[], &call(1, "echo")), &refused).await;
    stage.bench.becomes(&tool_calls("echo", "caller_error"), 1).await;
    assert_eq!(stage.bench.value(&dropped("unmatched_response")), 0);
    let traces = stage.bench.tracer.traces(&mcpscope_tracing::Filter::default());
    let detail = |name| traces[0].details.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
    assert_eq!(detail("error_class").as_deref(), Some("400"));
    assert_eq!(detail("error_message").as_deref(), Some("not initialized"));
    assert_eq!(detail("response_bytes"), Some(body.len().to_string()));
}

#[tokio::test]
async fn many_headers_pass_both_ways() {
    let stage = Stage::new().await;
    let names: Vec<String> = (0..300).map(|n| format!("X-{n}")).collect();
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
    let (mut client, mut server, seen) = stage.asked(&post(&headers, &call(1, "echo"))).await;
    server.write(&json(&headers, &result(1))).await.unwrap();
    let head = client.reader.head().await.unwrap().unwrap();
    for name in &names {
        assert!(seen.head.value(name).is_some() && head.value(name).is_some(), "{name}");
    }
}

#[tokio::test]
async fn an_answer_to_head_has_the_length_of_what_is_not_sent() {
    let stage = Stage::new().await;
    let (mut client, mut server, seen) = stage.asked(&http::request("HEAD", "/mcp", &[], b"")).await;
    assert_eq!(seen.head.start_line(), "HEAD /mcp HTTP/1.1");
    server.write(&http::answer_head("200 OK", &[("Content-Length", "1234")])).await.unwrap();
    let head = client.reader.head().await.unwrap().unwrap();
    assert_eq!((head.status(), head.value("content-length").as_deref()), (200, Some("1234")));
}

#[tokio::test]
async fn an_encoded_answer_passes_and_is_counted_as_unseen() {
    let stage = Stage::new().await;
    let body = "\u{1f}\u{8b}\u{8}not really";
    let answer = stage.exchange(&post(&[], &call(1, "echo")), &json(&[("Content-Encoding", "gzip")], body)).await;
    assert_eq!(answer.body, body.as_bytes());
    stage.bench.becomes(&dropped("encoded_message"), 1).await;
    assert_eq!(stage.bench.value(&errors("transport", "invalid_message")), 0);
    assert_eq!(stage.bench.value(&errors("tools", "connection_lost")), 0);
}

#[tokio::test]
async fn a_redirection_passes_and_its_call_counts_where_it_is_made_again() {
    let stage = Stage::new().await;
    let elsewhere = http::answer("307 Temporary Redirect", &[("Location", "/mcp/")], b"");
    let answer = stage.exchange(&post(&[], &call(1, "echo")), &elsewhere).await;
    assert_eq!((answer.head.status(), answer.head.value("location").as_deref()), (307, Some("/mcp/")));
    stage.exchange(&post(&[], &call(1, "echo")), &json(&[], &result(1))).await;
    stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
    assert_eq!(stage.bench.value(&operations("tools")), 1);
}

/// Nobody has looked at it, but it is there, and its status tells that it is good.
#[tokio::test]
async fn a_good_answer_that_is_too_large_to_be_looked_at_is_no_failure() {
    let (bench, upstream) = (Bench::new(), Listener::bind().await);
    let change = |config: &mut mcpscope_proxy::http::Config| config.limits.max_message = 1000;
    let proxy = Proxy::start_with(upstream.address(), bench.probe(Transport::Http), change).await;
    let stage = Stage { bench, proxy, upstream };
    let large = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"text":"{}"}}}}"#, "x".repeat(2000));
    stage.exchange(&post(&[], &call(1, "whole")), &json(&[], &large)).await;
    stage.bench.becomes(&tool_calls("whole", "ok"), 1).await;
    let stream = http::answer("200 OK", &[("Content-Type", "text/event-stream")], &event_bytes(&large));
    stage.exchange(&post(&[("Mcp-Session-Id", "abc")], &call(1, "event")), &stream).await;
    stage.bench.becomes(&tool_calls("event", "ok"), 1).await;
    assert_eq!(stage.bench.value(&dropped("oversized_message")), 2);
    assert_eq!(stage.bench.value(&errors("tools", "connection_lost")), 0);
}

fn event_bytes(data: &str) -> Vec<u8> {
    format!("data: {data}\n\n").into_bytes()
}
