//! What faults and broken instrumentation do to the traffic: what they say, and nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mcpscope_core::{Direction, FaultId, Transport};
use mcpscope_hooks::{Observer, Parts, Probe};
use mcpscope_metrics::desc;
use mcpscope_test_support::{EchoServer, Listener, Wire, eventually, http};

use crate::common::{Again, Bench, Chaos, Panics, Proxy, dropped, way};
use crate::sessions::{INITIALIZE, INITIALIZED};
use crate::{Events, JSON, call, event, json, post, result};

const DELAY: Duration = Duration::from_millis(150);

/// A relay in front of a server that the test plays, with an engine that faults come from.
pub(crate) struct Faulty {
    pub(crate) bench: Bench,
    pub(crate) chaos: Chaos,
    pub(crate) proxy: Proxy,
    pub(crate) upstream: Listener,
}

impl Faulty {
    pub(crate) async fn new() -> Self {
        Self::observed(None).await
    }

    async fn observed(observer: Option<Arc<dyn Observer>>) -> Self {
        let (bench, upstream) = (Bench::new(), Listener::bind().await);
        let chaos = Chaos::new(Parts { observer, ..bench.parts(Transport::Http) });
        let proxy = Proxy::start(upstream.address(), chaos.probe.clone()).await;
        Self { bench, chaos, proxy, upstream }
    }

    /// With this fault.
    pub(crate) async fn with(scenario: &str, parameters: &[&str]) -> (Self, FaultId) {
        let stage = Self::new().await;
        let fault = stage.chaos.start(scenario, parameters);
        (stage, fault)
    }

    /// A client's connection on which this was sent, and the server's on which it has arrived.
    pub(crate) async fn asked(&self, body: &str) -> (Wire, Wire) {
        let mut client = self.proxy.connect().await;
        client.write(&post(&[], body)).await.unwrap();
        let mut server = self.upstream.accept().await;
        assert_eq!(server.reader.message().await.unwrap().unwrap().body, body.as_bytes());
        (client, server)
    }
}

#[tokio::test]
async fn a_delayed_request_reaches_the_server_late() {
    let (stage, fault) = Faulty::with("latency_injection", &["delay=150ms", "direction=to_server"]).await;
    let sent = Instant::now();
    let (mut client, mut server) = stage.asked(&call(1, "echo")).await;
    assert!(sent.elapsed() >= DELAY, "{:?}", sent.elapsed());
    server.write(&json(&[], &result(1))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
    let injected =
        "mcpscope_tool_call_duration_seconds_count{server=\"s\",tool=\"echo\",outcome=\"ok\",injected=\"true\"}";
    stage.bench.becomes(injected, 1).await;
    assert_eq!(stage.chaos.stop(fault).await, (1, 1));
}

#[tokio::test]
async fn a_delayed_answer_reaches_the_client_late_and_in_order() {
    let late = ["delay=150ms", "direction=to_client", "method=tools/call"];
    let (stage, fault) = Faulty::with("latency_injection", &late).await;
    let (client, mut server) = stage.asked(&call(1, "echo")).await;
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
    assert_eq!(stage.chaos.stop(fault).await, (2, 2));
}

#[tokio::test]
async fn what_goes_on_after_an_emergency_stop_is_what_came() {
    let of_a_stream = [http::stream_head("200 OK", &[]), event(&result(1)), http::LAST_CHUNK.to_vec()].concat();
    for (answer, body) in [(of_a_stream, format!("data: {}\n\n", result(1))), (json(&[], &result(1)), result(1))] {
        let (stage, fault) = Faulty::with("oversize", &["bytes=1MiB"]).await;
        let delay = stage.chaos.start("latency_injection", &["delay=10m", "direction=to_client"]);
        let (mut client, mut server) = stage.asked(&call(1, "echo")).await;
        server.write(&answer).await.unwrap();
        stage.chaos.hits(fault, 1).await;
        stage.chaos.controller.emergency_stop(mcpscope_chaos::Cause::Person, Instant::now());
        let message = client.reader.message().await.unwrap().unwrap();
        assert_eq!(String::from_utf8(message.body).unwrap(), body);
        assert_eq!((stage.chaos.ended(fault).await, stage.chaos.ended(delay).await), ((1, 0), (1, 1)));
    }
}

#[tokio::test]
async fn an_id_that_is_used_again_is_seen_from_the_handshake_on() {
    let seen = Arc::new(Again::default());
    let stage = Faulty::observed(Some(seen.clone())).await;
    stage.chaos.start("hang", &["tool=none"]);
    let session = ("Mcp-Session-Id", "abc");
    let exchanges = [
        (vec![], INITIALIZE.to_owned(), json(&[session], INITIALIZED), 0),
        (vec![session], call(1, "echo"), json(&[], &result(1)), 0),
        (vec![session], call(0, "echo"), json(&[], &result(0)), 1),
    ];
    for (headers, request, answer, repeated) in exchanges {
        let mut client = stage.proxy.connect().await;
        client.write(&post(&headers, &request)).await.unwrap();
        let mut server = stage.upstream.accept().await;
        server.reader.message().await.unwrap().unwrap();
        server.write(&answer).await.unwrap();
        client.reader.message().await.unwrap().unwrap();
        assert_eq!(seen.repeated.load(Ordering::Relaxed), repeated, "{request}");
    }
}

#[tokio::test]
async fn what_a_fault_keeps_back_is_noticed_until_it_goes_on() {
    for direction in Direction::ALL {
        let parameters = ["distribution=constant", "delay=1m", &format!("direction={}", direction.as_str())];
        let (stage, fault) = Faulty::with("latency_injection", &parameters).await;
        let mut client = stage.proxy.connect().await;
        client.write(&post(&[], &call(1, "echo"))).await.unwrap();
        let mut server = None;
        if direction == Direction::ToClient {
            let asked = server.insert(stage.upstream.accept().await);
            asked.reader.message().await.unwrap().unwrap();
            asked.write(&json(&[], &result(1))).await.unwrap();
        }
        stage.chaos.hits(fault, 1).await;
        let other = stage.chaos.start("hang", &["tool=none"]);
        // The relay is on this thread, and has no time to let go until the test waits for something.
        let now = Instant::now();
        stage.chaos.controller.emergency_stop(mcpscope_chaos::Cause::Person, now);
        assert_eq!(stage.chaos.left_over(fault, now), None, "{direction:?}: there is time left");
        let later = now + Duration::from_secs(3);
        let (leak, looked_at) = stage.chaos.left_over(fault, later).unwrap();
        assert_eq!(leak.as_deref(), Some("1 messages are still held back"), "{direction:?}");
        assert!(looked_at.iter().any(|place| place == "queues"), "{looked_at:?}");
        assert_eq!(stage.chaos.left_over(other, later).unwrap().0, None, "{direction:?}: the other keeps nothing back");
    }
}

#[tokio::test]
async fn what_a_fault_kept_back_goes_on_in_time() {
    let (stage, fault) = Faulty::with("latency_injection", &["distribution=constant", "delay=1m"]).await;
    let mut client = stage.proxy.connect().await;
    client.write(&post(&[], &call(1, "echo"))).await.unwrap();
    stage.chaos.hits(fault, 1).await;
    stage.chaos.controller.stop(fault.0, Instant::now()).unwrap();
    stage.chaos.lets_go(fault).await;
}

#[tokio::test]
async fn a_dropped_event_never_arrives_and_the_next_ones_do() {
    let (stage, fault) = Faulty::with("packet_loss", &["intensity=1", "what=notification"]).await;
    let (client, mut server) = stage.asked(&call(1, "echo")).await;
    let progress = r#"{"jsonrpc":"2.0","method":"notifications/progress"}"#;
    let stream = [http::stream_head("200 OK", &[]), event(progress), event(&result(1)), event(progress)].concat();
    server.write(&[stream, http::LAST_CHUNK.to_vec()].concat()).await.unwrap();
    let (_, mut events) = Events::open(client.reader).await;
    events.expect(&result(1)).await;
    assert_eq!(events.next().await.unwrap(), None);
    assert_eq!(stage.chaos.stop(fault).await, (2, 2));
}

#[tokio::test]
async fn a_dropped_request_hangs_until_its_client_gives_up() {
    let (stage, fault) = Faulty::with("lost_request", &[]).await;
    let mut client = stage.proxy.connect().await;
    client.write(&post(&[], &call(1, "echo"))).await.unwrap();
    let cancelled =
        "mcpscope_tool_call_duration_seconds_count{server=\"s\",tool=\"echo\",outcome=\"cancelled\",injected=\"true\"}";
    stage.bench.becomes("mcpscope_message_queue_depth{server=\"s\",direction=\"to_server\"}", 0).await;
    drop(client);
    stage.bench.becomes(cancelled, 1).await;
    stage.upstream.expect_no_more().await;
    assert_eq!(stage.chaos.stop(fault).await, (1, 1));
}

#[tokio::test]
async fn what_a_fault_delays_took_the_proxy_no_time() {
    const DELAY: Duration = Duration::from_secs(1);
    let (stage, _) = Faulty::with("latency_injection", &["delay=1s"]).await;
    let sent = Instant::now();
    let (mut client, mut server) = stage.asked(&call(1, "echo")).await;
    // Complete with the end of the body, which comes after its last bytes.
    let head = http::answer_head("200 OK", &[JSON, ("Transfer-Encoding", "chunked")]);
    server.write(&[head, http::chunk(result(1).as_bytes())].concat()).await.unwrap();
    server.write(http::LAST_CHUNK).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
    for direction in Direction::ALL {
        let took = stage.bench.records(&desc::PROXY_OVERHEAD, &way(direction), 1).await;
        assert!(sent.elapsed() >= 2 * DELAY && took < DELAY.as_secs_f64(), "{took}");
    }
}

#[tokio::test]
async fn a_panic_inside_recording_leaves_the_traffic_alone_and_is_counted() {
    let (bench, echo, broken) = (Bench::new(), EchoServer::start().await, Arc::new(Panics));
    let parts = Parts { observer: Some(broken), ..bench.parts(Transport::Http) };
    let proxy = Proxy::start(echo.address(), Probe::new(parts)).await;
    let mut client = proxy.connect().await;
    for number in 1..4 {
        let answer = client.exchange(&post(&[], &call(number, "echo"))).await.unwrap();
        assert_eq!((answer.head.status(), answer.body.as_slice()), (200, call(number, "echo").as_bytes()));
    }
    eventually(|| if bench.value(&dropped("panic")) >= 3 { Ok(()) } else { Err(bench.counts()) }).await;
}
