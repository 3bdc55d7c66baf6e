//! Trace context over HTTP: ours in the requests that go on, with heads that fit, and everything else as it came.

use mcpscope_core::{SpanId, TraceId, Transport};
use mcpscope_hooks::{Parts, Probe};
use mcpscope_test_support::http::{self, LAST_CHUNK, chunk};
use mcpscope_test_support::{BodyReader, EchoServer, Head, Message};
use mcpscope_tracing::SpanKind;
use serde_json::{Value, json};

use crate::common::{Bench, Proxied, Proxy, THEIRS, TRACE, dropped, holds, proxied};
use crate::{Events, JSON, Stage, call, event, json as answer, post, result};

const OTHER_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const IN_HEADER: (&str, &str) = ("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");

impl Stage {
    async fn propagating() -> Self {
        let bench = Bench::new();
        let probe = Probe::new(Parts { propagate: true, ..bench.parts(Transport::Http) });
        let upstream = mcpscope_test_support::Listener::bind().await;
        let proxy = Proxy::start(upstream.address(), probe).await;
        Self { bench, proxy, upstream }
    }

    /// What the server sees of a request; it is answered.
    async fn seen(&self, request: &[u8]) -> Message {
        let (mut client, mut server, seen) = self.asked(request).await;
        server.write(&answer(&[], &result(1))).await.unwrap();
        assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
        seen
    }

    fn spans(&self, trace: &str) -> Vec<(SpanKind, SpanId, Option<SpanId>)> {
        let trace = self.bench.tracer.trace(TraceId::parse(trace).unwrap()).expect("the trace");
        trace.spans.iter().map(|span| (span.kind, span.id, span.parent)).collect()
    }
}

fn with_meta(meta: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "_meta": meta}}).to_string()
}

fn body(message: &Message) -> String {
    String::from_utf8(message.body.clone()).unwrap()
}

fn traceparent(message: &str) -> String {
    let message: Value = serde_json::from_str(message).unwrap();
    message["params"]["_meta"]["traceparent"].as_str().expect("our context").to_owned()
}

/// The head without the fields that may change.
fn rest(head: &Head) -> Vec<(Vec<u8>, Vec<u8>)> {
    let changes =
        |name: &[u8]| ["content-length", "traceparent"].iter().any(|n| name.eq_ignore_ascii_case(n.as_bytes()));
    head.headers().into_iter().filter(|(name, _)| !changes(name)).collect()
}

#[tokio::test]
async fn a_request_goes_on_as_a_child_of_ours() {
    let stage = Stage::propagating().await;
    let sent = with_meta(&json!({"traceparent": THEIRS, "tracestate": "a=1", "baggage": "k=v"}));
    let span_of_http = format!("00-{TRACE}-b7ad6b7169203331-01");
    let headers = [("Traceparent", span_of_http.as_str()), ("tracestate", "b=2"), ("X-Other", "y")];
    let request = post(&headers, &sent);
    let seen = stage.seen(&request).await;
    let spans = stage.spans(TRACE);
    let [(SpanKind::Server, server, Some(caller)), (SpanKind::Client, client, Some(parent))] = spans[..] else {
        panic!("{spans:?}")
    };
    assert_eq!((caller, parent), (SpanId::parse("1234567890123456").unwrap(), server));
    let ours = format!("00-{TRACE}-{client}-01");
    assert_eq!(body(&seen), sent.replace(THEIRS, &ours), "`_meta` goes before the header");
    assert_eq!(seen.head.values("traceparent"), [ours.into_bytes()]);
    assert!(String::from_utf8_lossy(&seen.head.raw).contains("Traceparent: "), "written as it was");
    let asked = Head { raw: request[..request.len() - sent.len()].to_vec() };
    assert_eq!(rest(&seen.head), rest(&asked));
    assert_eq!(seen.head.value("content-length").unwrap(), seen.body.len().to_string());
}

#[tokio::test]
async fn a_context_in_the_header_goes_into_the_message_with_its_tracestate() {
    let stage = Stage::propagating().await;
    let headers = [IN_HEADER, ("tracestate", "a=1"), ("Tracestate", "b=\"2")];
    let sent = call(1, "echo");
    let seen = stage.seen(&post(&headers, &sent)).await;
    let spans = stage.spans(OTHER_TRACE);
    let ours = format!("00-{OTHER_TRACE}-{}-01", spans[1].1);
    let after: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(after["params"]["_meta"], json!({"traceparent": ours, "tracestate": "a=1,b=\"2"}));
    assert_eq!(seen.head.values("traceparent"), [ours.into_bytes()]);
    assert_eq!(seen.head.values("tracestate").len(), 2);
    assert_eq!(seen.head.value("content-length").unwrap(), seen.body.len().to_string());
}

#[tokio::test]
async fn a_header_that_was_not_sent_is_not_made_up() {
    let stage = Stage::propagating().await;
    let seen = stage.seen(&post(&[("tracestate", "a=1")], &call(1, "echo"))).await;
    assert_eq!(seen.head.values("traceparent"), Vec::<Vec<u8>>::new());
    let after: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(after["params"]["_meta"].as_object().unwrap().len(), 1, "a tracestate alone means nothing");
}

/// The `tracestate` beside it is that of the other trace, too.
#[tokio::test]
async fn a_header_of_another_trace_stays_as_it_is() {
    let stage = Stage::propagating().await;
    let sent = with_meta(&json!({"traceparent": THEIRS}));
    let seen = stage.seen(&post(&[IN_HEADER, ("tracestate", "b=2")], &sent)).await;
    assert_eq!(proxied(&sent, &body(&seen)), Proxied::WithContext);
    assert!(traceparent(&body(&seen)).contains(TRACE));
    assert_eq!(seen.head.values("traceparent"), [IN_HEADER.1.as_bytes()]);
    assert_eq!(seen.head.value("tracestate").as_deref(), Some("b=2"));
}

#[tokio::test]
async fn a_tracestate_of_nothing_is_not_put_beside_our_context() {
    let stage = Stage::propagating().await;
    let sent = with_meta(&json!({"tracestate": "orphan=1"}));
    let seen = stage.seen(&post(&[IN_HEADER, ("tracestate", "b=2")], &sent)).await;
    assert_eq!(body(&seen), sent);
    let ours = seen.head.value("traceparent").unwrap();
    assert!(ours.contains(OTHER_TRACE) && ours != IN_HEADER.1, "{ours}");
}

#[tokio::test]
async fn two_headers_are_no_context() {
    let stage = Stage::propagating().await;
    let headers = [IN_HEADER, ("traceparent", THEIRS)];
    let seen = stage.seen(&post(&headers, &call(1, "echo"))).await;
    let ours = traceparent(&body(&seen));
    assert!(!ours.contains(TRACE) && !ours.contains(OTHER_TRACE), "{ours}");
    assert_eq!(
        seen.head.values("traceparent"),
        headers.map(|(_, value)| value.as_bytes()),
        "nor are they ours to change"
    );
}

#[tokio::test]
async fn a_chunked_body_stays_chunked() {
    let stage = Stage::propagating().await;
    let sent = with_meta(&json!({"traceparent": THEIRS}));
    let head = http::request_head("POST", "/mcp", &[JSON, ("Transfer-Encoding", "chunked")]);
    let chunks: Vec<u8> = sent.as_bytes().chunks(30).flat_map(chunk).collect();
    let seen = stage.seen(&[head, chunks, LAST_CHUNK.to_vec()].concat()).await;
    assert_eq!(proxied(&sent, &body(&seen)), Proxied::WithContext);
    assert_eq!(seen.head.value("transfer-encoding").as_deref(), Some("chunked"));
    assert_eq!(seen.head.value("content-length"), None);
}

/// One connection, requests in a row or all at once, large and small, in pieces of any size: each is answered with what the
/// server got.
#[tokio::test]
async fn every_request_of_a_connection_is_changed_and_answered_in_turn() {
    let echo = EchoServer::start().await;
    let bench = Bench::new();
    let probe = Probe::new(Parts { propagate: true, ..bench.parts(Transport::Http) });
    let proxy = Proxy::start(echo.address(), probe).await;
    let filler =
        |size: usize| json!({"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"a": "y".repeat(size)}}).to_string();
    let bodies = [
        (call(1, "echo"), true),
        (filler(3 << 20), true),
        (r#"{"jsonrpc":"2.0","method":"notifications/a","params":{}}"#.to_owned(), false),
        (with_meta(&json!({"traceparent": THEIRS})), true),
        (r#"{"jsonrpc":"2.0","id":7,"result":{}}"#.to_owned(), false),
        (r#"{"jsonrpc":"2.0","id":1,"method":"x","params":[]}"#.to_owned(), false),
        ("garbage".to_owned(), false),
        (String::new(), false),
        (filler(100_000), true),
    ];
    let requests: Vec<_> = bodies.iter().map(|(body, _)| post(&[], body)).collect();
    let check = |answer: &Message, (before, changes): &(String, bool)| {
        let expected = if *changes { Proxied::WithContext } else { Proxied::AsItWas };
        assert_eq!(proxied(before, &body(answer)), expected, "{before:.80}");
    };
    for size in [100_000, 1 << 22] {
        let mut client = proxy.connect().await;
        for (request, expected) in requests.iter().zip(&bodies) {
            let answer = client.exchange_parts(request.chunks(size.min(request.len() / 9 + 1))).await.unwrap();
            check(&answer, expected);
        }
    }
    // Pipelined: the small ones, so that the answers have room until they are read.
    let small: Vec<_> = requests.iter().zip(&bodies).filter(|(request, _)| request.len() < 1000).collect();
    let mut client = proxy.connect().await;
    client.write(&small.iter().flat_map(|(request, _)| request.to_vec()).collect::<Vec<_>>()).await.unwrap();
    for (_, expected) in &small {
        check(&client.reader.message().await.unwrap().unwrap(), expected);
    }
    assert_eq!(echo.connections(), 3, "one for each of the client's");
}

#[tokio::test]
async fn every_request_of_a_batch_gets_it_and_the_header_stays() {
    let stage = Stage::propagating().await;
    let sent = format!("[{},{}]", call(1, "a"), call(2, "b"));
    let (_client, _server, seen) = stage.asked(&post(&[IN_HEADER], &sent)).await;
    let after: Vec<Value> = serde_json::from_slice(&seen.body).unwrap();
    let contexts: Vec<_> = after.iter().map(|request| traceparent(&request.to_string())).collect();
    assert!(contexts.iter().all(|context| context.contains(OTHER_TRACE)) && contexts[0] != contexts[1], "{contexts:?}");
    assert_eq!(seen.head.value("traceparent").as_deref(), Some(IN_HEADER.1), "it cannot be that of both");
    // Nor where only one of them can be followed.
    let sent = format!("[{},{}]", call(1, "a"), call(2, "b").replace("2,", &format!("\"{}\",", "x".repeat(1000))));
    assert_eq!(serde_json::from_str::<Value>(&sent).unwrap()[1]["id"].as_str().unwrap().len(), 1000);
    let (_client, _server, seen) = stage.asked(&post(&[IN_HEADER], &sent)).await;
    assert_ne!(body(&seen), sent);
    assert_eq!(seen.head.value("traceparent").as_deref(), Some(IN_HEADER.1));
}

#[tokio::test]
async fn what_cannot_be_changed_safely_passes_as_it_is() {
    let sent = with_meta(&json!({"traceparent": THEIRS}));
    for header in [
        ("Content-Encoding", "gzip"),
        ("Content-Digest", "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"),
        ("Signature", "sig1=:a:"),
        ("Authorization", "AWS4-HMAC-SHA256 Credential=a"),
        ("Content-Type", "text/plain"),
    ] {
        let headers = [header, JSON, IN_HEADER];
        let headers = if header.0 == "Content-Type" { &headers[..1] } else { &headers[..] };
        let stage = Stage::propagating().await;
        let (_client, _server, seen) = stage.asked(&http::request("POST", "/mcp", headers, sent.as_bytes())).await;
        assert_eq!(body(&seen), sent, "{header:?}");
        let expected = headers.contains(&IN_HEADER).then_some(IN_HEADER.1);
        assert_eq!(seen.head.value("traceparent").as_deref(), expected, "{header:?}");
    }
}

#[tokio::test]
async fn a_digest_may_be_in_the_trailers() {
    let stage = Stage::propagating().await;
    let sent = with_meta(&json!({"traceparent": THEIRS}));
    let fields = [JSON, ("Transfer-Encoding", "chunked"), ("Trailer", "Content-Digest")];
    let head = http::request_head("POST", "/mcp", &fields);
    let end = b"0\r\nContent-Digest: sha-256=:abc=:\r\n\r\n";
    let (_client, _server, seen) = stage.asked(&[head, chunk(sent.as_bytes()), end.to_vec()].concat()).await;
    assert_eq!(body(&seen), sent);
}

#[tokio::test]
async fn what_only_looks_like_a_request_is_not_changed() {
    let stage = Stage::propagating().await;
    let sent = r#"{"id": 7, "method": "card", "amount": 5}"#;
    let (_client, _server, seen) = stage.asked(&http::request("POST", "/payments", &[JSON], sent.as_bytes())).await;
    assert_eq!(body(&seen), sent);
}

/// The server may want to refuse it, or answer before it is complete.
#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_goes_on_as_it_is() {
    let stage = Stage::propagating().await;
    let sent = with_meta(&json!({"traceparent": THEIRS}));
    let request = post(&[IN_HEADER], &sent);
    let (beginning, end) = request.split_at(request.len() - 3);
    let mut client = stage.proxy.connect().await;
    client.write(beginning).await.unwrap();
    let mut server = stage.upstream.accept().await;
    let head = server.reader.head().await.unwrap().unwrap();
    assert_eq!(head.value("content-length").unwrap(), sent.len().to_string());
    assert_eq!(head.value("traceparent").as_deref(), Some(IN_HEADER.1));
    let mut reader = BodyReader::of(&head);
    let mut seen = Vec::new();
    while seen.len() < sent.len() - 3 {
        seen.extend(reader.part(&mut server.reader).await.unwrap().unwrap());
    }
    client.write(end).await.unwrap();
    while let Some(part) = reader.part(&mut server.reader).await.unwrap() {
        seen.extend(part);
    }
    assert_eq!(String::from_utf8(seen).unwrap(), sent);
    server.write(&answer(&[], &result(1))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
    assert_eq!(stage.spans(TRACE).len(), 2, "it is followed all the same");
}

#[tokio::test]
async fn what_is_larger_than_is_held_streams_through_as_it_is() {
    for chunked in [false, true] {
        let bench = Bench::new();
        let probe = Probe::new(Parts { propagate: true, ..bench.parts(Transport::Http) });
        let upstream = mcpscope_test_support::Listener::bind().await;
        let limit = |config: &mut mcpscope_proxy::http::Config| config.limits.max_message = 1000;
        let proxy = Proxy::start_with(upstream.address(), probe, limit).await;
        let sent = with_meta(&json!({"x": "y".repeat(5000)}));
        // Of a length that was told it is known at once that it is not held.
        let (first, second) = sent.as_bytes().split_at(if chunked { 3000 } else { 500 });
        let length = sent.len().to_string();
        let size = if chunked { ("Transfer-Encoding", "chunked") } else { ("Content-Length", length.as_str()) };
        let framed = |part: &[u8]| if chunked { chunk(part) } else { part.to_vec() };
        let mut client = proxy.connect().await;
        client.write(&[http::request_head("POST", "/mcp", &[JSON, size]), framed(first)].concat()).await.unwrap();
        // Its beginning is with the server before its end is written.
        let mut server = upstream.accept().await;
        let head = server.reader.head().await.unwrap().unwrap();
        let mut reader = BodyReader::of(&head);
        let mut seen = Vec::new();
        while seen.len() < first.len().min(1000) {
            seen.extend(reader.part(&mut server.reader).await.unwrap().unwrap());
        }
        client.write(&framed(second)).await.unwrap();
        if chunked {
            client.write(LAST_CHUNK).await.unwrap();
        }
        while let Some(part) = reader.part(&mut server.reader).await.unwrap() {
            seen.extend(part);
        }
        assert!(seen == sent.as_bytes(), "{chunked}");
    }
}

#[tokio::test]
async fn a_servers_own_request_gets_our_context_too() {
    let stage = Stage::propagating().await;
    let (client, mut server, _) = stage.asked(&post(&[], &with_meta(&json!({"traceparent": THEIRS})))).await;
    let asks = json!({"jsonrpc": "2.0", "id": 9, "method": "sampling/createMessage", "params": {"_meta": {"traceparent": IN_HEADER.1}}}).to_string();
    let two_lines = "{\"jsonrpc\":\"2.0\",\"id\":10,\ndata: \"method\":\"ping\"}";
    let head = http::stream_head("200 OK", &[]);
    server
        .write(&[head, event(&asks), event(two_lines), event(&result(1)), LAST_CHUNK.to_vec()].concat())
        .await
        .unwrap();
    let (_, mut events) = Events::open(client.reader).await;
    let first = events.next().await.unwrap().unwrap();
    let first = first.strip_prefix("data: ").unwrap().trim_end();
    assert_eq!(proxied(&asks, first), Proxied::WithContext);
    events.expect(two_lines).await;
    events.expect(&result(1)).await;
    // The client's answer is a request of its own on the wire, and belongs to another exchange: this one ends without it.
    assert_eq!(events.next().await.unwrap(), None);
    assert!(traceparent(first).contains(OTHER_TRACE));
}

#[tokio::test]
async fn a_comment_that_keeps_a_stream_alive_does_not_wait() {
    let stage = Stage::propagating().await;
    let (client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
    server.write(&[http::stream_head("200 OK", &[]), chunk(b":\r\n")].concat()).await.unwrap();
    let (_, mut events) = Events::open(client.reader).await;
    assert_eq!(events.body.part(&mut events.from).await.unwrap().as_deref(), Some(b":\r\n".as_slice()));
    server.write(&[event(&result(1)), LAST_CHUNK.to_vec()].concat()).await.unwrap();
    events.expect(&result(1)).await;
}

#[tokio::test]
async fn a_stream_whose_length_was_told_keeps_it() {
    let stage = Stage::propagating().await;
    let (mut client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
    let stream = format!("data: {}\n\ndata: {}\n\n", r#"{"jsonrpc":"2.0","id":9,"method":"ping"}"#, result(1));
    server.write(&http::answer("200 OK", &[("Content-Type", "text/event-stream")], stream.as_bytes())).await.unwrap();
    assert_eq!(body(&client.reader.message().await.unwrap().unwrap()), stream);
}

#[tokio::test]
async fn a_fault_and_our_context_go_together() {
    let bench = Bench::new();
    let probe = holds(Parts { propagate: true, ..bench.parts(Transport::Http) });
    let echo = EchoServer::start().await;
    let proxy = Proxy::start(echo.address(), probe).await;
    let sent = with_meta(&json!({"traceparent": THEIRS}));
    let answer = proxy.connect().await.exchange(&post(&[], &sent)).await.unwrap();
    assert_eq!(proxied(&sent, &body(&answer)), Proxied::WithContext);
}

#[tokio::test]
async fn a_request_that_never_reached_the_server_has_one_span() {
    let mut stage = Stage::propagating().await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let probe = Probe::new(Parts { propagate: true, ..stage.bench.parts(Transport::Http) });
    stage.proxy = Proxy::start(gone, probe).await;
    let request = post(&[], &with_meta(&json!({"traceparent": THEIRS})));
    let answer = stage.proxy.connect().await.exchange(&request).await.unwrap();
    assert_eq!(answer.head.status(), 502);
    assert_eq!(serde_json::from_slice::<Value>(&answer.body).unwrap()["id"], 1, "the answer knows which call it is to");
    let spans = stage.spans(TRACE);
    assert!(matches!(spans[..], [(SpanKind::Server, ..)]), "{spans:?}");
}

#[tokio::test]
async fn a_request_that_the_client_does_not_finish_is_not_begun() {
    let stage = Stage::propagating().await;
    let request = post(&[], &call(1, "echo"));
    let mut client = stage.proxy.connect().await;
    client.write(&request[..request.len() - 3]).await.unwrap();
    drop(client);
    // The next one is the first that the server hears of, whatever connections there are before.
    let mut client = stage.proxy.connect().await;
    client.write(&post(&[], &call(2, "other"))).await.unwrap();
    let seen = loop {
        let mut server = stage.upstream.accept().await;
        if let Some(seen) = server.reader.message().await.unwrap() {
            break seen;
        }
    };
    assert_eq!(proxied(&call(2, "other"), &body(&seen)), Proxied::WithContext);
}

#[tokio::test]
async fn progress_on_the_stream_of_a_call_and_the_time_it_was_sent_are_in_its_trace() {
    let bench = Bench::new();
    let upstream = mcpscope_test_support::Listener::bind().await;
    let proxy = Proxy::start(upstream.address(), bench.probe(Transport::Http)).await;
    let mut client = proxy.connect().await;
    let sent = with_meta(&json!({"traceparent": THEIRS, "progressToken": "t"}));
    client.write(&post(&[], &sent)).await.unwrap();
    let mut server = upstream.accept().await;
    assert_eq!(body(&server.reader.message().await.unwrap().unwrap()), sent, "nothing is propagated here");
    const WORK: std::time::Duration = std::time::Duration::from_millis(50);
    tokio::time::sleep(WORK).await;
    let progress = r#"{"method":"notifications/progress","params":{"progressToken":"t","progress":1}}"#;
    let stream = [http::stream_head("200 OK", &[]), event(progress), event(&result(1)), LAST_CHUNK.to_vec()];
    server.write(&stream.concat()).await.unwrap();
    client.reader.message().await.unwrap().unwrap();
    let trace = bench.tracer.trace(TraceId::parse(TRACE).unwrap()).unwrap();
    let [root, onward] = &trace.spans[..] else { panic!("{trace:?}") };
    assert_eq!(root.events.len(), 1);
    assert!(onward.duration >= WORK && onward.start > std::time::Duration::ZERO, "{trace:?}");
    assert_eq!(onward.parent, Some(root.id));
}

/// What is never sent gives back what it took from the memory for copies.
#[tokio::test]
async fn a_server_that_is_gone_uses_nothing_up() {
    for propagate in [false, true] {
        let bench = Bench::new();
        let probe = Probe::new(Parts { propagate, ..bench.parts(Transport::Http) });
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let proxy = Proxy::start_with(gone, probe, |config| config.limits.queue_bytes = 1000).await;
        let mut client = proxy.connect().await;
        for _ in 0..20 {
            let answer = client.exchange(&post(&[], &with_meta(&json!({"traceparent": THEIRS})))).await.unwrap();
            assert_eq!(answer.head.status(), 502);
        }
        let answer = proxy.connect().await.exchange(&post(&[], &call(7, "echo"))).await.unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&answer.body).unwrap()["id"], 7);
        assert_eq!(bench.value(&dropped("oversized_message")), 0, "{propagate}");
    }
}
