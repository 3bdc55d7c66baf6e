//! What passes just as it came, and what does not pass at all.

use std::time::Duration;

use mcpscope_core::Transport;
use mcpscope_proxy::http::Config;
use mcpscope_test_support::{Listener, Wire, WireReader, http, within};

use crate::common::{Bench, Chaos, Proxy, dropped, errors, holds, operations, tool_calls};
use crate::{Stage, call, event, json, post, result};

/// So many bytes, as they come.
async fn bytes(from: &mut WireReader, count: usize) -> Vec<u8> {
    let mut body = mcpscope_test_support::BodyReader::Length(count);
    let mut all = Vec::new();
    while let Some(part) = body.part(from).await.unwrap() {
        all.extend_from_slice(&part);
    }
    all
}

/// A client's connection and the server's, after these bytes were passed on, which they were just as they are.
async fn passed(stage: &Stage, request: &[u8]) -> (Wire, Wire) {
    let mut client = stage.proxy.connect().await;
    client.write(request).await.unwrap();
    let mut server = stage.upstream.accept().await;
    assert_eq!(String::from_utf8(bytes(&mut server.reader, request.len()).await), String::from_utf8(request.to_vec()));
    (client, server)
}

#[tokio::test]
async fn an_exchange_passes_byte_by_byte_in_both_directions() {
    let body = call(1, "echo");
    let (first, second) = body.split_at(10);
    let request = format!(
        "POST /mcp?a=%20 HTTP/1.1\r\nhOsT:localhost\r\ntransfer-encoding:  chunked\r\nTE: trailers\r\nKeep-Alive: timeout=5\r\n\
         Trailer: x-sum\r\n\r\n00A;ext=\"q\"\r\n{first}\r\n{:X}\r\n{second}\r\n000\r\nX-Sum: 1\r\nx-two:2\r\n\r\n",
        second.len()
    );
    let stage = Stage::new().await;
    let (mut client, mut server) = passed(&stage, request.as_bytes()).await;
    let body = result(1);
    let (first, second) = body.split_at(20);
    let answer = format!(
        "HTTP/1.1 200 \r\nContent-Type:application/json\r\nTRANSFER-ENCODING: chunked\r\nProxy-Authenticate: x\r\n\r\n\
         14;a\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\nx-sum: 2\r\n\r\n",
        second.len()
    );
    server.write(answer.as_bytes()).await.unwrap();
    assert_eq!(
        String::from_utf8(bytes(&mut client.reader, answer.len()).await),
        String::from_utf8(answer.into_bytes())
    );
    stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
    // Both connections live on.
    client.write(&post(&[], &call(2, "echo"))).await.unwrap();
    assert_eq!(server.reader.message().await.unwrap().unwrap().body, call(2, "echo").as_bytes());
}

#[tokio::test]
async fn trailers_and_ends_of_chunks_pass_while_messages_are_held() {
    let (bench, upstream) = (Bench::new(), Listener::bind().await);
    let proxy = Proxy::start(upstream.address(), holds(bench.parts(Transport::Http))).await;
    let mut client = proxy.connect().await;
    let head = http::request_head("POST", "/mcp", &[("Transfer-Encoding", "chunked")]);
    let body = call(1, "echo");
    let (first, second) = body.as_bytes().split_at(10);
    let request = [&head, &http::chunk(first)[..], &http::chunk(second), b"0\r\nX-Sum: 1\r\n\r\n"].concat();
    client.write(&request).await.unwrap();
    let mut server = upstream.accept().await;
    let whole = [&head, &http::chunk(body.as_bytes())[..], b"0\r\nX-Sum: 1\r\n\r\n"].concat();
    assert_eq!(
        String::from_utf8(bytes(&mut server.reader, whole.len()).await),
        String::from_utf8(whole),
        "one message, one chunk"
    );
    server.write(&json(&[], &result(1))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
}

#[tokio::test]
async fn a_request_whose_end_is_in_doubt_is_refused_and_the_connection_closed() {
    let stage = Stage::new().await;
    let smuggled = "GET /admin HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (fields, body) in [
        ("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nX"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        ("X: y\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Content-Length: 0\r\nContent-Length: 44\r\n", ""),
        ("Content-Length: +0\r\n", ""),
        ("Content-Length: 0\r\n X: 1\r\n", ""),
    ] {
        let mut client = stage.proxy.connect().await;
        client
            .write(format!("POST /mcp HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n{body}{smuggled}").as_bytes())
            .await
            .unwrap();
        let answer = client.reader.message().await.unwrap().unwrap();
        assert_eq!(
            (answer.head.status(), answer.head.value("connection").as_deref()),
            (400, Some("close")),
            "{fields:?}"
        );
        assert_eq!(client.reader.closed().await.unwrap(), b"", "what follows is not answered: {fields:?}");
    }
    let mut client = stage.proxy.connect().await;
    client.write(b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost:1\r\n\r\n").await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 405);
    stage.upstream.expect_no_more().await;
}

#[tokio::test]
async fn a_body_that_is_none_is_refused_and_not_completed() {
    let stage = Stage::new().await;
    for bad in ["5 \r\n", "5\n", "x\r\n", "3\r\nabcd\r\n"] {
        let mut client = stage.proxy.connect().await;
        client.write(&http::request_head("POST", "/mcp", &[("Transfer-Encoding", "chunked")])).await.unwrap();
        let mut server = stage.upstream.accept().await;
        server.reader.head().await.unwrap().unwrap();
        client.write(format!("{bad}GET /admin HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
        assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 400, "{bad:?}");
        assert_eq!(server.reader.closed().await.unwrap(), b"", "{bad:?}");
    }
}

#[tokio::test]
async fn requests_sent_ahead_are_answered_one_after_the_other() {
    let stage = Stage::new().await;
    let mut client = stage.proxy.connect().await;
    client.write(&[1, 2, 3].map(|id| post(&[], &call(id, "echo"))).concat()).await.unwrap();
    let mut server = stage.upstream.accept().await;
    for id in 1..4 {
        assert_eq!(server.reader.message().await.unwrap().unwrap().body, call(id, "echo").as_bytes());
        server.write(&json(&[], &result(id))).await.unwrap();
        assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(id).as_bytes());
    }
    stage.bench.becomes(&tool_calls("echo", "ok"), 3).await;
}

#[tokio::test]
async fn a_client_that_waits_for_leave_to_send_gets_it_from_the_server() {
    let stage = Stage::new().await;
    let mut client = stage.proxy.connect().await;
    let body = call(1, "echo");
    let length = body.len().to_string();
    let fields = [crate::JSON, ("Content-Length", length.as_str()), ("Expect", "100-continue")];
    client.write(&http::request_head("POST", "/mcp", &fields)).await.unwrap();
    let mut server = stage.upstream.accept().await;
    assert_eq!(server.reader.head().await.unwrap().unwrap().value("expect").as_deref(), Some("100-continue"));
    for interim in ["100 Continue", "103 Early Hints"] {
        server.write(&http::answer_head(interim, &[("Link", "</x>")])).await.unwrap();
        assert_eq!(client.reader.head().await.unwrap().unwrap().start_line(), format!("HTTP/1.1 {interim}"));
    }
    client.write(body.as_bytes()).await.unwrap();
    assert_eq!(bytes(&mut server.reader, body.len()).await, body.as_bytes());
    server.write(&json(&[], &result(1))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
    stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
    // A server that does not want the body says so.
    client.write(&http::request_head("POST", "/mcp", &fields)).await.unwrap();
    server.reader.head().await.unwrap().unwrap();
    server.write(&http::answer("417 Expectation Failed", &[], b"")).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 417);
}

#[tokio::test]
async fn http_1_0_passes_with_its_ends() {
    let stage = Stage::new().await;
    let request = b"GET /mcp HTTP/1.0\r\nHost: localhost\r\n\r\n";
    let (client, mut server) = passed(&stage, request).await;
    server
        .write(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end")
        .await
        .unwrap();
    drop(server);
    let answer = String::from_utf8(client.reader.closed().await.unwrap()).unwrap();
    assert_eq!(answer, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end", "no interim answer");
    // One that wants to ask again may.
    let request = b"GET /mcp HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n";
    let (mut client, mut server) = passed(&stage, request).await;
    server.write(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, b"ok");
    client.write(request).await.unwrap();
    server.reader.head().await.unwrap().unwrap();
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_and_is_reset_is_reset() {
    let stage = Stage::new().await;
    let (mut client, mut server) = passed(&stage, b"GET /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    server.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n").await.unwrap();
    let head = client.reader.head().await.unwrap().unwrap();
    let mut body = mcpscope_test_support::BodyReader::of(&head);
    assert_eq!(body.part(&mut client.reader).await.unwrap().unwrap(), b"data: 1\n\n");
    server.reset();
    let error = body.part(&mut client.reader).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "an end would say that it is complete");
}

#[tokio::test]
async fn a_server_that_speaks_unasked_is_not_believed() {
    let stage = Stage::new().await;
    let (mut client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
    // A second answer, which would be taken for that to the next request.
    server
        .write(&[json(&[], &result(1)), json(&[], r#"{"jsonrpc":"2.0","id":2,"result":{"poison":1}}"#)].concat())
        .await
        .unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
    client.write(&post(&[], &call(2, "echo"))).await.unwrap();
    let mut server = stage.upstream.accept().await;
    server.reader.message().await.unwrap().unwrap();
    server.write(&json(&[], &result(2))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(2).as_bytes());
}

#[tokio::test]
async fn an_answer_that_is_none_is_told_and_not_passed_on() {
    for (answer, why) in [
        (&b"HTTP/2 200\r\n\r\n"[..], "what it sent is no answer"),
        (b"garbage\r\n\r\n", "what it sent is no answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12", "what it sent is no answer"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", "switches to another protocol"),
    ] {
        let stage = Stage::new().await;
        let (mut client, mut server, _) = stage.asked(&post(&[], &call(7, "echo"))).await;
        server.write(answer).await.unwrap();
        let told = client.reader.message().await.unwrap().unwrap();
        let error: serde_json::Value = serde_json::from_slice(&told.body).unwrap();
        assert_eq!((told.head.status(), &error["id"]), (502, &7.into()));
        assert!(error["error"]["message"].as_str().unwrap().contains(why), "{error}");
        stage.bench.becomes(&errors("tools", "connection_lost"), 1).await;
    }
}

#[tokio::test]
async fn an_answer_in_chunks_with_a_length_loses_the_length() {
    let stage = Stage::new().await;
    let (mut client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
    let head = http::answer_head("200 OK", &[crate::JSON, ("Content-Length", "3"), ("Transfer-Encoding", "chunked")]);
    server.write(&[&head, &http::chunk(result(1).as_bytes())[..], http::LAST_CHUNK].concat()).await.unwrap();
    let answer = client.reader.message().await.unwrap().unwrap();
    assert_eq!((answer.head.value("content-length"), answer.body), (None, result(1).into_bytes()));
}

#[tokio::test]
async fn an_answer_that_tells_the_same_length_again_tells_it_once() {
    let stage = Stage::new().await;
    let body = result(1);
    let length = body.len().to_string();
    let twice = format!("{length}, {length}");
    for fields in [&[("Content-Length", length.as_str()); 2][..], &[("Content-Length", twice.as_str())]] {
        let head = http::answer_head("200 OK", &[&[crate::JSON], fields].concat());
        let answer = stage.exchange(&post(&[], &call(1, "echo")), &[&head, body.as_bytes()].concat()).await;
        let once = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        assert_eq!(answer.head.raw, once.as_bytes());
        assert_eq!(answer.body, body.as_bytes());
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let stage = Stage::new().await;
    let large = "x".repeat(200 << 10);
    let fields: String = (0..600).map(|n| format!("X-{n}: v\r\n")).collect();
    for request in [format!("GET /mcp HTTP/1.1\r\nX: {large}"), format!("GET /mcp HTTP/1.1\r\n{fields}\r\n")] {
        let mut client = stage.proxy.connect().await;
        // The rest may find nobody who reads it.
        let _ = client.write(request.as_bytes()).await;
        assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 431);
        client.reader.closed().await.unwrap();
    }
    stage.bench.becomes(&dropped("refused_request"), 2).await;
    stage.upstream.expect_no_more().await;
}

/// A relay that waits for heads only so long.
async fn impatient(header_timeout: Duration) -> Stage {
    let (bench, upstream) = (Bench::new(), Listener::bind().await);
    let change = |config: &mut Config| config.header_timeout = header_timeout;
    let proxy = Proxy::start_with(upstream.address(), bench.probe(Transport::Http), change).await;
    Stage { bench, proxy, upstream }
}

#[tokio::test]
async fn a_head_that_does_not_come_to_its_end_is_not_waited_for() {
    let stage = impatient(Duration::from_secs(1)).await;
    let silent = stage.proxy.connect().await;
    let mut slow = stage.proxy.connect().await;
    slow.write(b"GET /mcp HTTP/1.1\r\nHost: localhost\r\n").await.unwrap();
    assert_eq!(slow.reader.message().await.unwrap().unwrap().head.status(), 408);
    assert_eq!(silent.reader.closed().await.unwrap(), b"", "there is nothing to answer");
    stage.bench.becomes(&errors("transport", "timeout"), 1).await;
    stage.upstream.expect_no_more().await;
}

#[tokio::test]
async fn a_connection_between_two_requests_may_be_idle_for_longer() {
    let stage = impatient(Duration::from_secs(1)).await;
    let (mut client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
    server.write(&json(&[], &result(1))).await.unwrap();
    client.reader.message().await.unwrap().unwrap();
    let idle = tokio::time::timeout(Duration::from_millis(1500), client.reader.head()).await;
    assert!(idle.is_err(), "it is neither answered nor closed: {idle:?}");
    client.write(&post(&[], &call(2, "echo"))).await.unwrap();
    assert_eq!(server.reader.message().await.unwrap().unwrap().body, call(2, "echo").as_bytes());
}

#[tokio::test]
async fn half_a_client_is_none() {
    let stage = Stage::new().await;
    let (client, server, _) = stage.asked(&post(&[], &call(1, "slow"))).await;
    drop(client.writer);
    assert_eq!(server.reader.closed().await.unwrap(), b"", "a stream that nobody reads must not stay open");
    stage.bench.becomes(&tool_calls("slow", "cancelled"), 1).await;
    client.reader.closed().await.unwrap();
}

#[tokio::test]
async fn a_fault_that_begins_within_a_stream_finds_its_next_event() {
    let (bench, upstream) = (Bench::new(), Listener::bind().await);
    let chaos = Chaos::new(bench.parts(Transport::Http));
    let proxy = Proxy::start(upstream.address(), chaos.probe.clone()).await;
    let stage = Stage { bench, proxy, upstream };
    let (client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
    server.write(&http::stream_head("200 OK", &[])).await.unwrap();
    server.write(&event(r#"{"jsonrpc":"2.0","method":"a"}"#)).await.unwrap();
    let (_, mut events) = crate::Events::open(client.reader).await;
    events.expect(r#"{"jsonrpc":"2.0","method":"a"}"#).await;
    // Half a chunk has passed when the fault begins: it passes to its end, and so does the event that began before.
    let next = event(r#"{"jsonrpc":"2.0","method":"b"}"#);
    let (first, rest) = next.split_at(12);
    server.write(first).await.unwrap();
    while events.pending.is_empty() {
        let part = events.body.part(&mut events.from).await.unwrap().unwrap();
        events.pending.extend_from_slice(&part);
    }
    let fault = chaos.start("packet_loss", &["intensity=1", "direction=to_client"]);
    server.write(&[rest, &event(r#"{"jsonrpc":"2.0","method":"c"}"#)].concat()).await.unwrap();
    events.expect(r#"{"jsonrpc":"2.0","method":"b"}"#).await;
    stage.bench.becomes(&operations("transport"), 4).await;
    assert_eq!(chaos.stop(fault).await, (1, 1));
    server.write(&event(r#"{"jsonrpc":"2.0","method":"d"}"#)).await.unwrap();
    events.expect(r#"{"jsonrpc":"2.0","method":"d"}"#).await;
    server.write(http::LAST_CHUNK).await.unwrap();
    assert_eq!(within(events.next()).await.unwrap(), None);
}
