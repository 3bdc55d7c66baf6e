//! Who hears when of the end of whom, and that nothing is kept waiting.

use mcpscope_core::Transport;
use mcpscope_test_support::http;

use crate::common::{connections, operations, queued, tool_calls};
use crate::{Events, Stage, call, event, json, post, result};

#[tokio::test]
async fn events_pass_one_by_one() {
    let stage = Stage::new().await;
    let (client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
    server.write(&http::stream_head("200 OK", &[])).await.unwrap();
    // The head comes before any event does.
    let (head, mut events) = Events::open(client.reader).await;
    assert_eq!(head.value("content-type").unwrap(), "text/event-stream");
    for number in 0..5 {
        server.write(&event(&number.to_string())).await.unwrap();
        events.expect(&number.to_string()).await;
    }
    // Half an event is not kept back either.
    server.write(&http::chunk(b"data: ha")).await.unwrap();
    while events.pending != b"data: ha" {
        let part = events.body.part(&mut events.from).await.unwrap().unwrap();
        events.pending.extend_from_slice(&part);
    }
    server.write(&http::chunk(b"lf\n\n")).await.unwrap();
    events.expect("half").await;
    server.write(&event(&result(1))).await.unwrap();
    events.expect(&result(1)).await;
    assert_eq!(stage.bench.value(&tool_calls("echo", "ok")), 1, "counted before its client sees it");
    server.write(http::LAST_CHUNK).await.unwrap();
    assert_eq!(events.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_request_passes_piece_by_piece() {
    let stage = Stage::new().await;
    let mut client = stage.proxy.connect().await;
    let head = http::request_head("POST", "/mcp", &[("Transfer-Encoding", "chunked")]);
    client.write(&head).await.unwrap();
    let mut server = stage.upstream.accept().await;
    let head = server.reader.head().await.unwrap().unwrap();
    let mut body = mcpscope_test_support::BodyReader::of(&head);
    for part in [b"{\"id\"".as_slice(), b":1", b"}"] {
        client.write(&http::chunk(part)).await.unwrap();
        assert_eq!(body.part(&mut server.reader).await.unwrap().as_deref(), Some(part));
    }
    client.write(http::LAST_CHUNK).await.unwrap();
    assert_eq!(body.part(&mut server.reader).await.unwrap(), None);
}

#[tokio::test]
async fn a_client_that_leaves_a_quiet_stream_is_told_to_the_server() {
    let stage = Stage::new().await;
    let (client, mut server, _) = stage.asked(&post(&[], &call(1, "slow"))).await;
    server.write(&http::stream_head("200 OK", &[])).await.unwrap();
    server.write(&event("1")).await.unwrap();
    let (_, mut events) = Events::open(client.reader).await;
    events.expect("1").await;
    stage.bench.becomes(&connections(Transport::Http), 2).await;
    drop((events, client.writer));
    assert_eq!(server.reader.closed().await.unwrap(), b"");
    stage.bench.becomes(&tool_calls("slow", "cancelled"), 1).await;
    stage.bench.becomes(&connections(Transport::Http), 0).await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_is_told_to_the_server() {
    let stage = Stage::new().await;
    let (client, server, _) = stage.asked(&post(&[], &call(1, "slow"))).await;
    drop(client);
    assert_eq!(server.reader.closed().await.unwrap(), b"");
    stage.bench.becomes(&tool_calls("slow", "cancelled"), 1).await;
}

#[tokio::test]
async fn a_client_that_breaks_off_its_request_breaks_it_off_at_the_server() {
    let stage = Stage::new().await;
    let mut client = stage.proxy.connect().await;
    client.write(&http::request_head("POST", "/mcp", &[("Content-Length", "100")])).await.unwrap();
    client.write(b"{").await.unwrap();
    let mut server = stage.upstream.accept().await;
    server.reader.head().await.unwrap().unwrap();
    drop(client);
    assert!(server.reader.closed().await.unwrap().len() < 100, "half a message is not passed off as one");
}

#[tokio::test]
async fn gauges_return_to_zero() {
    let stage = Stage::new().await;
    for id in 1..4 {
        stage.exchange(&post(&[], &call(id, "echo")), &json(&[], &result(id))).await;
    }
    let stream = [http::stream_head("200 OK", &[]), event(&result(9)), http::LAST_CHUNK.to_vec()].concat();
    stage.exchange(&post(&[], &call(9, "echo")), &stream).await;
    stage.bench.becomes(&tool_calls("echo", "ok"), 4).await;
    stage.bench.becomes(&connections(Transport::Http), 0).await;
    stage.bench.becomes(&queued("to_server"), 0).await;
    stage.bench.becomes(&queued("to_client"), 0).await;
    assert_eq!(stage.bench.value(&operations("transport")), 8);
}

#[tokio::test]
async fn a_graceful_stop_lets_an_exchange_end() {
    let Stage { bench, mut proxy, upstream } = Stage::new().await;
    let address = proxy.address;
    let mut client = proxy.connect().await;
    client.write(&post(&[], &call(1, "echo"))).await.unwrap();
    let mut server = upstream.accept().await;
    server.reader.message().await.unwrap().unwrap();
    let mut idle = proxy.connect().await;
    idle.write(&post(&[], &call(2, "echo"))).await.unwrap();
    let mut other = upstream.accept().await;
    other.reader.message().await.unwrap().unwrap();
    other.write(&json(&[], &result(2))).await.unwrap();
    idle.reader.message().await.unwrap().unwrap();
    bench.becomes(&connections(Transport::Http), 2).await;
    proxy.stop();
    assert_eq!(idle.reader.closed().await.unwrap(), b"", "a connection without an exchange ends at once");
    assert!(mcpscope_test_support::Wire::connect(address).await.is_err(), "no new connections");
    server.write(&json(&[], &result(1))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
    proxy.ended().await;
    assert_eq!(client.reader.closed().await.unwrap(), b"");
    bench.becomes(&tool_calls("echo", "ok"), 2).await;
    assert_eq!(bench.value(&connections(Transport::Http)), 0);
}

#[tokio::test]
async fn who_was_let_in_before_a_graceful_stop_is_answered() {
    let Stage { bench, mut proxy, upstream } = Stage::new().await;
    let mut silent = proxy.connect().await;
    let mut begun = proxy.connect().await;
    let request = post(&[], &call(1, "echo"));
    begun.write(&request[..10]).await.unwrap();
    bench.becomes(&connections(Transport::Http), 2).await;
    let address = proxy.address;
    proxy.stop();
    // The listener is closed once the relay knows of its end.
    while mcpscope_test_support::Wire::connect(address).await.is_ok() {}
    begun.write(&request[10..]).await.unwrap();
    silent.write(&request).await.unwrap();
    for _ in 0..2 {
        let mut server = upstream.accept().await;
        server.reader.message().await.unwrap().unwrap();
        server.write(&json(&[], &result(1))).await.unwrap();
    }
    for mut client in [begun, silent] {
        assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
        assert_eq!(client.reader.closed().await.unwrap(), b"", "it is asked for no more");
    }
    proxy.ended().await;
}

#[tokio::test]
async fn a_graceful_stop_does_not_wait_for_ever() {
    let (bench, upstream) = (crate::Bench::new(), mcpscope_test_support::Listener::bind().await);
    let change = |config: &mut mcpscope_proxy::http::Config| config.grace = std::time::Duration::ZERO;
    let proxy = crate::Proxy::start_with(upstream.address(), bench.probe(Transport::Http), change).await;
    let mut client = proxy.connect().await;
    client.write(&post(&[], &call(1, "slow"))).await.unwrap();
    let mut server = upstream.accept().await;
    server.reader.message().await.unwrap().unwrap();
    proxy.ended().await;
    assert_eq!(client.reader.closed().await.unwrap(), b"");
    assert_eq!(server.reader.closed().await.unwrap(), b"");
}
