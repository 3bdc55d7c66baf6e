//! Peers that are slow, stop, or take nothing: what they may hold up, what ends them, and what is counted.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mcpscope_core::Transport;
use mcpscope_health::State;
use mcpscope_proxy::Traffic;
use mcpscope_proxy::http::Config;
use mcpscope_test_support::{BodyReader, Listener, Wire, eventually, http};
use tokio::time::timeout;

use crate::common::{Bench, Chaos, Frozen, Proxy, connections, errors, queued, tool_calls};
use crate::{Events, JSON, Stage, call, event, json, post, result};

/// After so long without progress a writer is taken to be stuck; if it only is slow, a test sees less than it could.
pub(crate) const STUCK: Duration = Duration::from_millis(500);

static PIECE: [u8; 64 << 10] = [b'x'; 64 << 10];

/// Writes until nobody takes any more; returns how much.
async fn write_until_stuck(to: &mut Wire) -> usize {
    let mut pieces = 0;
    while let Ok(written) = timeout(STUCK, to.writer.write(&PIECE)).await {
        written.unwrap();
        pieces += 1;
    }
    pieces * PIECE.len()
}

async fn with(change: impl FnOnce(&mut Config)) -> Stage {
    let (bench, upstream) = (Bench::new(), Listener::bind().await);
    let proxy = Proxy::start_with(upstream.address(), bench.probe(Transport::Http), change).await;
    Stage { bench, proxy, upstream }
}

#[tokio::test]
async fn a_client_that_resets_while_the_server_reads_nothing_is_gone_at_once() {
    let stage = Stage::new().await;
    let mut client = stage.proxy.connect().await;
    client.write(&http::request_head("POST", "/mcp", &[JSON, ("Content-Length", "1000000000")])).await.unwrap();
    let server = stage.upstream.accept().await;
    write_until_stuck(&mut client).await;
    assert_eq!(stage.bench.value(&connections(Transport::Http)), 1);
    client.reset();
    stage.bench.becomes(&connections(Transport::Http), 0).await;
    server.reader.closed().await.unwrap();
}

#[tokio::test]
async fn a_client_that_has_sent_ahead_and_leaves_a_quiet_stream_is_gone_at_once() {
    let stage = Stage::new().await;
    let (mut client, mut server, _) = stage.asked(&post(&[], &call(1, "slow"))).await;
    server.write(&http::stream_head("200 OK", &[])).await.unwrap();
    // More than is read ahead, and less than the system holds for us.
    client.write(&[b'G'; 100 << 10]).await.unwrap();
    let (_, events) = Events::open(client.reader).await;
    drop((events, client.writer));
    assert_eq!(server.reader.closed().await.unwrap(), b"");
    stage.bench.becomes(&tool_calls("slow", "cancelled"), 1).await;
    stage.bench.becomes(&connections(Transport::Http), 0).await;
}

#[tokio::test]
async fn an_upload_goes_on_behind_an_early_answer() {
    const HALF: usize = 500_000;
    let stage = Stage::new().await;
    let mut client = stage.proxy.connect().await;
    let length = (2 * HALF).to_string();
    client.write(&http::request_head("POST", "/mcp", &[("Content-Length", &length)])).await.unwrap();
    let mut server = stage.upstream.accept().await;
    let head = server.reader.head().await.unwrap().unwrap();
    server.write(&http::answer("202 Accepted", &[], b"")).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 202, "at once");
    let mut body = BodyReader::of(&head);
    for half in [vec![b'a'; HALF], vec![b'b'; HALF]] {
        let reading = async {
            let mut read = 0;
            while read < HALF {
                read += body.part(&mut server.reader).await.unwrap().unwrap().len();
            }
            read
        };
        let (written, read) = tokio::join!(client.writer.write(&half), reading);
        assert_eq!((written.unwrap(), read), ((), HALF));
    }
    // Both connections are good for more.
    client.write(&post(&[], &call(2, "echo"))).await.unwrap();
    assert_eq!(server.reader.message().await.unwrap().unwrap().body, call(2, "echo").as_bytes());
    server.write(&json(&[], &result(2))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(2).as_bytes());
}

#[tokio::test]
async fn an_upload_ends_with_a_server_that_answers_and_closes() {
    let stage = Stage::new().await;
    let mut client = stage.proxy.connect().await;
    client.write(&http::request_head("POST", "/mcp", &[("Content-Length", "1000000000")])).await.unwrap();
    let mut server = stage.upstream.accept().await;
    server.reader.head().await.unwrap().unwrap();
    write_until_stuck(&mut client).await;
    let refusal = http::answer("413 Payload Too Large", &[("Connection", "close")], b"too large");
    server.write(&refusal).await.unwrap();
    drop(server);
    let answer = client.reader.message().await.unwrap().unwrap();
    assert_eq!((answer.head.status(), answer.body.as_slice()), (413, b"too large".as_slice()));
    client.reader.closed().await.unwrap();
    stage.bench.becomes(&connections(Transport::Http), 0).await;
}

#[tokio::test]
async fn a_server_that_stops_anywhere_costs_its_call_a_timeout_and_its_client_nothing() {
    let body = result(1);
    let length = body.len().to_string();
    let head = http::answer_head("200 OK", &[JSON, ("Content-Length", &length)]);
    let whole = [&head, body.as_bytes()].concat();
    // Before the answer, within its head, behind it, within its body.
    for stop in [0, 10, head.len(), head.len() + 5] {
        let stage = with(|config| config.limits.call_timeout = Duration::from_millis(100)).await;
        let (mut client, mut server, _) = stage.asked(&post(&[], &call(1, "slow"))).await;
        server.write(&whole[..stop]).await.unwrap();
        stage.bench.becomes(&tool_calls("slow", "timeout"), 1).await;
        // How long to wait is the client's to say.
        server.write(&whole[stop..]).await.unwrap();
        assert_eq!(client.reader.message().await.unwrap().unwrap().body, body.as_bytes(), "{stop}");
        drop(client);
        server.reader.closed().await.unwrap();
    }
}

#[tokio::test]
async fn an_answer_that_comes_byte_by_byte_passes_byte_by_byte() {
    let stage = Stage::new().await;
    let (client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
    for byte in http::stream_head("200 OK", &[]) {
        server.write(&[byte]).await.unwrap();
    }
    let (_, mut events) = Events::open(client.reader).await;
    let stream = format!("data: {}\n\n", result(1));
    for byte in stream.bytes() {
        server.write(&http::chunk(&[byte])).await.unwrap();
        assert_eq!(events.body.part(&mut events.from).await.unwrap().unwrap(), [byte]);
    }
    stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
}

#[tokio::test]
async fn a_body_that_comes_slowly_is_the_servers_to_refuse() {
    let stage = Stage::new().await;
    // A machine that stalls is not taken for a client that does.
    let _frozen = Frozen::clock();
    let mut client = stage.proxy.connect().await;
    client.write(&http::request_head("POST", "/mcp", &[JSON, ("Content-Length", "1000")])).await.unwrap();
    let mut server = stage.upstream.accept().await;
    let head = server.reader.head().await.unwrap().unwrap();
    let mut body = BodyReader::of(&head);
    for _ in 0..5 {
        client.write(b" ").await.unwrap();
        assert_eq!(body.part(&mut server.reader).await.unwrap().unwrap(), b" ");
        // All of them longer than a head may take.
        tokio::time::advance(Config::DEFAULT_HEADER_TIMEOUT / 2).await;
    }
    server.write(&http::answer("408 Request Timeout", &[("Connection", "close")], b"")).await.unwrap();
    drop(server);
    assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 408);
    assert_eq!(client.reader.closed().await.unwrap(), b"");
}

#[tokio::test]
async fn half_a_server_is_none() {
    let begun = [&http::answer_head("200 OK", &[JSON, ("Content-Length", "100")]), &b"{"[..]].concat();
    for answer in [b"".as_slice(), b"HTTP/1.1 200 OK\r\nContent-", &begun] {
        let stage = Stage::new().await;
        let (mut client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
        server.write(answer).await.unwrap();
        drop(server.writer);
        match client.reader.message().await {
            Ok(told) => assert_eq!(told.unwrap().head.status(), 502),
            Err(error) => assert!(answer == begun && error.kind() != std::io::ErrorKind::TimedOut, "{error}"),
        }
        assert_eq!(server.reader.closed().await.unwrap(), b"", "it is left, though it still reads");
        stage.bench.becomes(&errors("tools", "connection_lost"), 1).await;
    }
}

#[tokio::test]
async fn an_answer_whose_head_has_no_end_is_none() {
    let stage = Stage::new().await;
    let (mut client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
    server.write(b"HTTP/1.1 200 OK\r\nX: ").await.unwrap();
    // It may be told that nobody reads any more.
    let _ = server.write(&[b'x'; 256 << 10]).await;
    assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 502);
    server.reader.closed().await.unwrap();
    stage.bench.becomes(&errors("transport", "connection_lost"), 1).await;
}

/// A relay whose health can be seen.
fn healthy(config: &mut Config) -> mcpscope_health::View {
    let (reporter, view) = mcpscope_health::channel(Instant::now());
    config.traffic = Some(Arc::new(Traffic::new(reporter)));
    view
}

async fn transports_become(view: &mcpscope_health::View, expected: State) -> String {
    eventually(|| {
        let mut report = view.report(Instant::now(), std::time::SystemTime::now());
        let found = report.components.remove("transports").ok_or("no component")?;
        if found.state == expected { Ok(found.message) } else { Err(found.message) }
    })
    .await
}

#[tokio::test]
async fn a_queue_that_is_full_is_told_of_and_stops_nobody_else() {
    let (bench, upstream) = (Bench::new(), Listener::bind().await);
    // Calls of one tool never arrive, and wait.
    let late = ["delay=10m", "tool=slow", "direction=to_server"];
    let probe = Chaos::with(bench.parts(Transport::Http), "latency_injection", &late);
    let mut view = None;
    let proxy = Proxy::start_with(upstream.address(), probe, |config| {
        config.limits.queue_messages = 5;
        view = Some(healthy(config));
    })
    .await;
    let view = view.unwrap();
    transports_become(&view, State::Healthy).await;
    let stage = Stage { bench, proxy, upstream };
    // The relay tries whether the server is there.
    drop(stage.upstream.accept().await);
    let mut waiting = Vec::new();
    for id in 0..6 {
        let mut client = stage.proxy.connect().await;
        client.write(&post(&[], &call(id, "slow"))).await.unwrap();
        waiting.push(client);
    }
    stage.bench.becomes(&queued("to_server"), 6).await;
    let reason = transports_become(&view, State::Warning).await;
    assert!(reason.starts_with("6 of 5 messages"), "{reason}");
    // Others still pass, in both directions and whatever their size.
    let large = format!(r#"{{"jsonrpc":"2.0","id":9,"result":{{"x":"{}"}}}}"#, "x".repeat(300_000));
    let mut client = stage.proxy.connect().await;
    let (request, answer) = (post(&[], &large), json(&[], &large));
    let answering = async {
        let mut server = stage.upstream.accept().await;
        assert_eq!(server.reader.message().await.unwrap().unwrap().body, large.as_bytes());
        server.write(&answer).await.unwrap();
    };
    let (answered, ()) = tokio::join!(client.exchange(&request), answering);
    assert_eq!(answered.unwrap().body, large.as_bytes());
    // It is they who leave, and not the server.
    drop(waiting);
    stage.bench.becomes(&queued("to_server"), 0).await;
    assert_eq!(transports_become(&view, State::Healthy).await, "Transports running");
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_up_no_more_than_one_piece() {
    let mut view = None;
    let stage = with(|config| {
        config.limits.queue_bytes = 1 << 10;
        view = Some(healthy(config));
    })
    .await;
    let view = view.unwrap();
    drop(stage.upstream.accept().await);
    let (client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
    // Four times what is read at once, with all that is around it.
    let data = "x".repeat((4 << 10) - "ff9\r\ndata: \n\n\r\n".len());
    let (is_told, written) = (Cell::new(false), Cell::new(0));
    server.write(&http::stream_head("200 OK", &[])).await.unwrap();
    let (_, mut events) = Events::open(client.reader).await;
    let writing = async {
        // However much the system holds for all of us.
        while !is_told.get() {
            server.write(&event(&data)).await.unwrap();
            written.set(written.get() + 1);
        }
        server.write(http::LAST_CHUNK).await.unwrap();
    };
    let reading = async {
        let reason = transports_become(&view, State::Warning).await;
        assert!(reason.contains("1024 of 1024 bytes wait"), "{reason}");
        is_told.set(true);
        let mut read = 0;
        while let Some(event) = events.next().await.unwrap() {
            assert_eq!(event.len(), data.len() + "data: \n\n".len());
            read += 1;
        }
        read
    };
    let ((), read) = tokio::join!(writing, reading);
    assert_eq!(read, written.get(), "all of them came");
    transports_become(&view, State::Healthy).await;
}
