//! What faults and broken instrumentation do to the traffic: what they say, and nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mcpscope_core::{Direction, FaultId, Transport, Verdict};
use mcpscope_hooks::{MessageFacts, Parts, Probe};
use mcpscope_metrics::desc;
use mcpscope_test_support::{EchoServer, Listener, eventually, http};

use crate::common::{Bench, Faults, Panics, Proxy, dropped, way};
use crate::{Events, JSON, call, event, json, post, result};

const DELAY: Duration = Duration::from_millis(150);

async fn faulty(bench: &Bench, fault: fn(&MessageFacts<'_>) -> Verdict) -> (Proxy, Listener) {
    let upstream = Listener::bind().await;
    let parts = Parts { injector: Some(Arc::new(Faults(fault))), ..bench.parts(Transport::Http) };
    (Proxy::start(upstream.address(), Probe::new(parts)).await, upstream)
}

fn delay(message: &MessageFacts<'_>, direction: Direction) -> Verdict {
    let delayed = message.direction == direction && message.method == Some("tools/call");
    if delayed { Verdict::Delay { fault: FaultId(1), by: DELAY } } else { Verdict::Pass }
}

#[tokio::test]
async fn a_delayed_request_reaches_the_server_late() {
    let bench = Bench::new();
    let (proxy, upstream) = faulty(&bench, |message| delay(message, Direction::ToServer)).await;
    let mut client = proxy.connect().await;
    let sent = Instant::now();
    client.write(&post(&[], &call(1, "echo"))).await.unwrap();
    let mut server = upstream.accept().await;
    assert_eq!(server.reader.message().await.unwrap().unwrap().body, call(1, "echo").as_bytes());
    assert!(sent.elapsed() >= DELAY, "{:?}", sent.elapsed());
    server.write(&json(&[], &result(1))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
    let injected =
        "mcpscope_tool_call_duration_seconds_count{server=\"s\",tool=\"echo\",outcome=\"ok\",injected=\"true\"}";
    bench.becomes(injected, 1).await;
}

#[tokio::test]
async fn a_delayed_answer_reaches_the_client_late_and_in_order() {
    let bench = Bench::new();
    let (proxy, upstream) = faulty(&bench, |message| delay(message, Direction::ToClient)).await;
    let mut client = proxy.connect().await;
    client.write(&post(&[], &call(1, "echo"))).await.unwrap();
    let mut server = upstream.accept().await;
    server.reader.message().await.unwrap().unwrap();
    let progress = r#"{"jsonrpc":"2.0","method":"notifications/progress"}"#;
    let sent = Instant::now();
    let (asks, last) = (call(5, "ask"), result(1));
    let stream = [http::stream_head("200 OK", &[]), event(&asks), event(progress), event(&last)].concat();
    server.write(&[stream, http::LAST_CHUNK.to_vec()].concat()).await.unwrap();
    let (_, mut events) = Events::open(client.reader).await;
    events.expect(&asks).await;
    assert!(sent.elapsed() >= DELAY, "{:?}", sent.elapsed());
    events.expect(progress).await;
    events.expect(&last).await;
    assert_eq!(events.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_dropped_event_never_arrives_and_the_next_ones_do() {
    let bench = Bench::new();
    let (proxy, upstream) = faulty(&bench, |message| match message.method {
        Some("notifications/progress") => Verdict::Drop { fault: FaultId(1) },
        _ => Verdict::Pass,
    })
    .await;
    let mut client = proxy.connect().await;
    client.write(&post(&[], &call(1, "echo"))).await.unwrap();
    let mut server = upstream.accept().await;
    server.reader.message().await.unwrap().unwrap();
    let progress = r#"{"jsonrpc":"2.0","method":"notifications/progress"}"#;
    let stream = [http::stream_head("200 OK", &[]), event(progress), event(&result(1)), event(progress)].concat();
    server.write(&[stream, http::LAST_CHUNK.to_vec()].concat()).await.unwrap();
    let (_, mut events) = Events::open(client.reader).await;
    events.expect(&result(1)).await;
    assert_eq!(events.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_dropped_request_hangs_until_its_client_gives_up() {
    let bench = Bench::new();
    let (proxy, upstream) = faulty(&bench, |message| match message.method {
        Some("tools/call") => Verdict::Drop { fault: FaultId(1) },
        _ => Verdict::Pass,
    })
    .await;
    let mut client = proxy.connect().await;
    client.write(&post(&[], &call(1, "echo"))).await.unwrap();
    let cancelled =
        "mcpscope_tool_call_duration_seconds_count{server=\"s\",tool=\"echo\",outcome=\"cancelled\",injected=\"true\"}";
    let mut server = upstream.accept().await;
    server.reader.head().await.unwrap().unwrap();
    drop(client);
    assert_eq!(server.reader.closed().await.unwrap(), b"", "not a byte of the message");
    bench.becomes(cancelled, 1).await;
}

#[tokio::test]
async fn what_a_fault_delays_took_the_proxy_no_time() {
    const DELAY: Duration = Duration::from_secs(1);
    let bench = Bench::new();
    let fault = |_: &MessageFacts<'_>| Verdict::Delay { fault: FaultId(1), by: DELAY };
    let (proxy, upstream) = faulty(&bench, fault).await;
    let mut client = proxy.connect().await;
    let sent = Instant::now();
    client.write(&post(&[], &call(1, "echo"))).await.unwrap();
    let mut server = upstream.accept().await;
    server.reader.message().await.unwrap().unwrap();
    // Complete with the end of the body, which comes after its last bytes.
    let head = http::answer_head("200 OK", &[JSON, ("Transfer-Encoding", "chunked")]);
    server.write(&[head, http::chunk(result(1).as_bytes())].concat()).await.unwrap();
    server.write(http::LAST_CHUNK).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
    for direction in Direction::ALL {
        let took = bench.records(&desc::PROXY_OVERHEAD, &way(direction), 1).await;
        assert!(sent.elapsed() >= 2 * DELAY && took < DELAY.as_secs_f64(), "{took}");
    }
}

#[tokio::test]
async fn a_panic_inside_recording_leaves_the_traffic_alone_and_is_counted() {
    let (bench, echo, broken) = (Bench::new(), EchoServer::start().await, Arc::new(Panics));
    let parts = Parts { injector: Some(broken.clone()), observer: Some(broken), ..bench.parts(Transport::Http) };
    let proxy = Proxy::start(echo.address(), Probe::new(parts)).await;
    let mut client = proxy.connect().await;
    for number in 1..4 {
        let answer = client.exchange(&post(&[], &call(number, "echo"))).await.unwrap();
        assert_eq!((answer.head.status(), answer.body.as_slice()), (200, call(number, "echo").as_bytes()));
    }
    eventually(|| if bench.value(&dropped("panic")) >= 6 { Ok(()) } else { Err(bench.counts()) }).await;
}
