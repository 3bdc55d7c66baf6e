//! What one client may take of the server, how calls end, and who is not answered.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail")]

mod support;

use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request, Response, StatusCode};
use mcpscope_grpc::proto::*;
use mcpscope_grpc::tonic::Code;
use mcpscope_grpc::{Client, Config, GrpcError, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic_health::pb::HealthCheckRequest;

use self::support::{Bench, Running, listen};

/// Long enough for whatever is to come; a test that waits so long fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// The message without fields, as gRPC frames it.
const EMPTY: [u8; 5] = [0; 5];

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH_SNAPSHOTS: &str = "/mcpscope.v1.DashboardService/WatchSnapshots";
const LIST_TRACES: &str = "/mcpscope.v1.TraceService/ListTraces";
const RECORD_METRICS: &str = "/mcpscope.v1.MetricsService/RecordMetrics";

/// An HTTP/2 connection that does nothing by itself: above all, it takes no more than its streams' first window.
struct Raw {
    send: SendRequest<Bytes>,
    /// The connection's own work, which ends with it.
    _work: JoinSet<Result<(), h2::Error>>,
    authority: String,
}

impl Raw {
    async fn connect(running: &Running<'_>, window: u32) -> Self {
        let stream = TcpStream::connect(running.addr).await.unwrap();
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(1 << 24);
        let (send, connection) = builder.handshake(stream).await.unwrap();
        let mut work = JoinSet::new();
        work.spawn(connection);
        Self { send, _work: work, authority: running.addr.to_string() }
    }

    fn request(&self, path: &str) -> http::request::Builder {
        let uri = format!("http://{}{path}", self.authority);
        Request::post(uri).header("content-type", "application/grpc").header("te", "trailers")
    }

    /// Sends a request whose message has no fields.
    async fn call(&mut self, request: http::request::Builder) -> ResponseFuture {
        let mut send = self.send.clone().ready().await.unwrap();
        let (response, mut body) = send.send_request(request.body(()).unwrap(), false).unwrap();
        body.send_data(Bytes::from_static(&EMPTY), true).unwrap();
        response
    }

    /// The status of a call that ends by itself.
    async fn status(&mut self, request: http::request::Builder) -> (Code, String) {
        let response = timeout(PATIENCE, self.call(request).await).await.unwrap().unwrap();
        ended(response).await
    }
}

/// Reads an answer to its end, taking everything.
async fn ended(response: Response<h2::RecvStream>) -> (Code, String) {
    assert_eq!(response.status(), StatusCode::OK);
    let (head, mut body) = response.into_parts();
    let read = async {
        while let Some(data) = body.data().await {
            let length = data.unwrap().len();
            body.flow_control().release_capacity(length).unwrap();
        }
        body.trailers().await.unwrap()
    };
    let trailers = timeout(PATIENCE, read).await.unwrap();
    grpc_status(&trailers.unwrap_or(head.headers))
}

fn grpc_status(headers: &HeaderMap) -> (Code, String) {
    let code = headers["grpc-status"].to_str().unwrap().parse::<i32>().unwrap();
    let message = headers.get("grpc-message").map_or("", |message| message.to_str().unwrap());
    (Code::from_i32(code), message.to_owned())
}

async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let waited = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn an_answer_that_nobody_takes_is_reset_and_counted() {
    let mut bench = Bench::new();
    bench.config.subscriber_timeout = Duration::from_millis(300);
    let test = async |running: &Running<'_>| {
        (0..64).for_each(|_| running.bench.call("echo"));
        let mut raw = Raw::connect(running, 1000).await;
        for (n, path) in [WATCH_SNAPSHOTS, LIST_TRACES].into_iter().enumerate() {
            let slow = raw.call(raw.request(path)).await.await.unwrap();
            assert_eq!(slow.status(), StatusCode::OK);
            let mut body = slow.into_body();
            let mut taken = 0;
            let error = loop {
                // Taken from the buffer, but the window is not opened again.
                match timeout(PATIENCE, body.data()).await.expect("never reset").expect("it ended well") {
                    Ok(data) => taken += data.len(),
                    Err(error) => break error,
                }
            };
            assert!(error.is_reset() && error.is_remote(), "{path}: {error:?}");
            assert_eq!(taken, 1000, "{path}");
            assert_eq!(running.bench.dropped("grpc_slow"), n as u64 + 1);
            // Other calls on the connection are not touched.
            assert_eq!(raw.status(raw.request(CHECK)).await.0, Code::Ok);
        }
    };
    bench.run(test).await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_from_its_socket_loses_it() {
    let mut bench = Bench::new();
    bench.config.subscriber_timeout = Duration::from_millis(300);
    let test = async |running: &Running<'_>| {
        (0..64).for_each(|n| running.bench.call(&"long".repeat(60 + n % 2)));
        // It opens windows without end by itself, and then does not read.
        let mut stream = TcpStream::connect(running.addr).await.unwrap();
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // SETTINGS_INITIAL_WINDOW_SIZE and the window of the connection, both as large as they can be.
        bytes.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff]);
        bytes.extend([0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0, 0, 0]);
        for n in 0..90_u8 {
            let mut head = vec![0x83, 0x86];
            for (name, value) in
                [(":path", LIST_TRACES), (":authority", "localhost"), ("content-type", "application/grpc")]
            {
                head.push(0);
                head.push(u8::try_from(name.len()).unwrap());
                head.extend(name.bytes());
                head.push(u8::try_from(value.len()).unwrap());
                head.extend(value.bytes());
            }
            let length = u8::try_from(head.len()).unwrap();
            bytes.extend([0, 0, length, 1, 4, 0, 0, 0, 2 * n + 1]);
            bytes.extend(head);
            bytes.extend([0, 0, 5, 0, 1, 0, 0, 0, 2 * n + 1]);
            bytes.extend(EMPTY);
        }
        stream.write_all(&bytes).await.unwrap();
        eventually("the connection is counted as slow", || running.bench.dropped("grpc_slow") > 0).await;
        let closed = async {
            while stream.write_all(&[0; 9]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, closed).await.expect("the connection stays open");
    };
    bench.run(test).await;
}

#[tokio::test]
async fn a_deadline_ends_any_call() {
    let test = async |running: &Running<'_>| {
        let mut raw = Raw::connect(running, 1 << 20).await;
        let passed = |status: (Code, String)| assert_eq!(status.0, Code::DeadlineExceeded, "{}", status.1);
        let request = raw.request(WATCH_SNAPSHOTS).header("grpc-timeout", "200m");
        passed(raw.status(request).await);
        // One that never sends what it says it will.
        for path in [RECORD_METRICS, CHECK] {
            let request = raw.request(path).header("grpc-timeout", "200m");
            let mut send = raw.send.clone().ready().await.unwrap();
            let (response, _body) = send.send_request(request.body(()).unwrap(), false).unwrap();
            passed(grpc_status(timeout(PATIENCE, response).await.unwrap().unwrap().headers()));
        }
        let request = raw.request(CHECK).header("grpc-timeout", "soon");
        assert_eq!(raw.status(request).await.0, Code::InvalidArgument);
    };
    Bench::new().run(test).await;
}

#[tokio::test]
async fn streams_are_limited_and_calls_are_not() {
    let mut bench = Bench::new();
    // An eighth for each connection.
    bench.config.max_streams = 8;
    let test = async |running: &Running<'_>| {
        let mut client = running.client().await;
        let mut snapshots = client.dashboard.watch_snapshots(WatchSnapshotsRequest {}).await.unwrap().into_inner();
        let full = client.health.watch_health(WatchHealthRequest {}).await.unwrap_err();
        assert_eq!(full.code(), Code::ResourceExhausted);
        assert_eq!(full.message(), "this connection has all streams that it may have (1); end one first");
        let mut others = Vec::new();
        for _ in 0..7 {
            let mut other = running.client().await;
            let watched = other.health.watch_health(WatchHealthRequest {}).await.unwrap();
            others.push((other, watched));
        }
        let mut late = running.client().await;
        let full = late.metrics.record_metrics(stream::iter([])).await.unwrap_err();
        assert_eq!(full.code(), Code::ResourceExhausted);
        assert_eq!(full.message(), "all places for streams are taken (8); end one first");
        assert_eq!(running.bench.dropped("grpc_streams"), 2);
        // Whether the instance is well can always be asked, and watched.
        let health = HealthCheckRequest { service: String::new() };
        for client in [&mut client, &mut late] {
            client.grpc_health.check(health.clone()).await.unwrap();
            client.grpc_health.watch(health.clone()).await.unwrap().into_inner().message().await.unwrap().unwrap();
        }
        snapshots.message().await.unwrap().unwrap();
        drop(snapshots);
        let again = async {
            while client.health.watch_health(WatchHealthRequest {}).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, again).await.expect("the place was not given back");
    };
    bench.run(test).await;
}

#[tokio::test]
async fn answers_that_nobody_takes_hold_so_much_and_no_more() {
    let mut bench = Bench::new();
    // An eighth for each connection: less than one answer has.
    bench.config.max_held_bytes = 40 << 10;
    let test = async |running: &Running<'_>| {
        (0..64).for_each(|_| running.bench.call("echo"));
        let answer = running.client().await.traces.list_traces(ListTracesRequest::default()).await.unwrap();
        let size = answer.into_inner().traces.iter().map(|trace| format!("{trace:?}").len()).sum::<usize>();
        assert!(size > 5 << 10, "{size}");
        let mut holders = Vec::new();
        let exhausted = loop {
            let mut holder = Raw::connect(running, 0).await;
            let held = holder.call(holder.request(LIST_TRACES)).await.await.unwrap();
            // Has an end of its own only if it was refused, for not a byte of it is taken.
            let (code, _) = holder.status(holder.request(LIST_TRACES)).await;
            assert_eq!(code, Code::ResourceExhausted);
            assert_eq!(timeout(PATIENCE, health_of(&mut holder)).await.unwrap(), Code::Ok);
            let mut late = Raw::connect(running, 1 << 20).await;
            let (code, message) = late.status(late.request(LIST_TRACES)).await;
            holders.push((holder, held));
            if code == Code::ResourceExhausted {
                break message;
            }
            assert!(holders.len() < 8, "nothing is counted");
        };
        assert!(exhausted.contains("not%20taken"), "{exhausted}");
        assert!(running.bench.dropped("grpc_held") > 1);
        drop(holders);
        let again = async {
            let mut late = Raw::connect(running, 1 << 20).await;
            while late.status(late.request(LIST_TRACES)).await.0 != Code::Ok {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, again).await.expect("nothing was given back");
    };
    bench.run(test).await;
}

/// How a check ends of a client whose windows are shut: with heads only, so without a word where it went well.
async fn health_of(raw: &mut Raw) -> Code {
    let response = raw.call(raw.request(CHECK)).await.await.unwrap();
    response.headers().get("grpc-status").map_or(Code::Ok, |_| grpc_status(response.headers()).0)
}

#[tokio::test]
async fn further_connections_wait_for_a_place() {
    let mut bench = Bench::new();
    bench.config.max_connections = 1;
    let test = async |running: &Running<'_>| {
        let mut first = running.client().await;
        first.health.get_health(GetHealthRequest {}).await.unwrap();
        let mut second = running.client().await;
        let mut waiting = Box::pin(second.health.get_health(GetHealthRequest {}));
        let early = timeout(Duration::from_millis(200), waiting.as_mut()).await;
        assert!(early.is_err(), "{early:?}");
        drop(first);
        timeout(PATIENCE, waiting).await.unwrap().unwrap();
    };
    bench.run(test).await;
}

#[tokio::test]
async fn who_says_nothing_keeps_nobody_out() {
    let mut bench = Bench::new();
    bench.config.max_connections = 8;
    // Longer than the test: it is not this that makes room.
    bench.config.handshake_timeout = 10 * PATIENCE;
    let test = async |running: &Running<'_>| {
        let mut watching = running.client().await;
        let mut watched = watching.health.watch_health(WatchHealthRequest {}).await.unwrap().into_inner();
        watched.message().await.unwrap().unwrap();
        let mut silent = Vec::new();
        for _ in 0..40 {
            silent.push(TcpStream::connect(running.addr).await.unwrap());
        }
        let began = Instant::now();
        let mut client = running.client().await;
        client.health.get_health(GetHealthRequest {}).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        // What is in use stays.
        timeout(PATIENCE, watched.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(running.bench.dropped("grpc_evicted"), 34);
    };
    bench.run(test).await;
}

#[tokio::test]
async fn who_does_not_begin_to_speak_is_cut_off() {
    let mut bench = Bench::new();
    bench.config.handshake_timeout = Duration::from_millis(200);
    bench.config.max_connections = 1;
    let test = async |running: &Running<'_>| {
        for said in ["", "P", "PRI * HTTP/2.0\r\n\r\n", "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
            let mut stream = TcpStream::connect(running.addr).await.unwrap();
            stream.write_all(said.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // The server's settings may come first; what matters is that there is an end.
            let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection stays open");
            assert!(!answer.starts_with(b"HTTP/1.1 2"), "{said}");
        }
        // Who did begin may be silent for longer.
        let mut client = running.client().await;
        let mut watched = client.health.watch_health(WatchHealthRequest {}).await.unwrap().into_inner();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(500) {
            watched.message().await.unwrap().unwrap();
        }
    };
    bench.run(test).await;
}

#[tokio::test]
async fn only_programs_that_ask_for_us_by_name_are_answered() {
    let mut bench = Bench::new();
    bench.config.allowed_hosts = vec!["metrics.internal".into()];
    let test = async |running: &Running<'_>| {
        let mut raw = Raw::connect(running, 1 << 20).await;
        let port = running.addr.port();
        for name in ["127.0.0.1", "localhost", "[::1]", "metrics.internal"] {
            raw.authority = format!("{name}:{port}");
            assert_eq!(raw.status(raw.request(CHECK)).await.0, Code::Ok, "{name}");
        }
        for name in ["evil.example", "localhost.evil.example", "10.0.0.1"] {
            raw.authority = format!("{name}:{port}");
            let (code, message) = raw.status(raw.request(CHECK)).await;
            assert_eq!(code, Code::PermissionDenied, "{name}");
            assert!(message.contains("dashboard.allowed_hosts"), "{message}");
        }
        raw.authority = running.addr.to_string();
        let host = raw.request(CHECK).header("host", "evil.example");
        assert_eq!(raw.status(host).await.0, Code::PermissionDenied);
        for origin in ["http://evil.example", "http://localhost:8080", "null"] {
            let request = raw.request(CHECK).header("origin", origin);
            assert_eq!(raw.status(request).await.0, Code::PermissionDenied, "{origin}");
        }
        let mut http_status = async |method: &str, content_type: &str| {
            let uri = format!("http://{}{CHECK}", running.addr);
            let request = Request::builder().method(method).uri(uri).header("content-type", content_type);
            raw.call(request).await.await.unwrap().status()
        };
        assert_eq!(http_status("POST", "application/json").await, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(http_status("POST", "application/grpc-web").await, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(http_status("GET", "application/grpc").await, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(running.bench.dropped("grpc_refused"), 10);
    };
    bench.run(test).await;
}

#[tokio::test]
async fn large_requests_are_refused() {
    let test = async |running: &Running<'_>| {
        let mut client = running.client().await;
        let name = "x".repeat(100_000);
        let large = client.metrics.get_metric(GetMetricRequest { name: name.clone() }).await.unwrap_err();
        assert_eq!(large.code(), Code::OutOfRange);
        let record = RecordMetricsRequest { name, ..RecordMetricsRequest::default() };
        let large = client.metrics.record_metrics(stream::iter([record])).await.unwrap_err();
        assert_eq!(large.code(), Code::OutOfRange);
        let mut raw = Raw::connect(running, 1 << 20).await;
        let request = raw.request(CHECK).header("x-long", "x".repeat(20_000));
        let answer = raw.call(request).await.await.map(|answer| answer.status());
        assert!(matches!(answer, Ok(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE) | Err(_)), "{answer:?}");
        client.health.get_health(GetHealthRequest {}).await.unwrap();
    };
    Bench::new().run(test).await;
}

#[tokio::test]
async fn at_the_end_streams_are_told_and_calls_may_finish() {
    let test = async |running: &Running<'_>, stop: tokio::sync::oneshot::Sender<()>| {
        let mut client = running.client().await;
        let mut snapshots = client.dashboard.watch_snapshots(WatchSnapshotsRequest {}).await.unwrap().into_inner();
        snapshots.message().await.unwrap().unwrap();
        let (more, records) = channel();
        let record =
            || RecordMetricsRequest { name: "active_sessions_count".into(), value: 1.0, labels: Default::default() };
        let mut metrics = client.metrics.clone();
        let mut recording = Box::pin(metrics.record_metrics(records));
        more.send(record()).unwrap();
        tokio::select! {
            _ = &mut recording => panic!("it ended too soon"),
            () = eventually("the first value is there", || {
                running.bench.reader.raw_records().unwrap().len() == 1
            }) => {}
        }
        stop.send(()).unwrap();
        let ended = loop {
            match snapshots.message().await {
                Ok(message) => assert!(message.is_some(), "the stream ended without a word"),
                Err(status) => break status,
            }
        };
        assert_eq!((ended.code(), ended.message()), (Code::Unavailable, "the instance is stopping"));
        // The port is free.
        TcpListener::bind(running.addr).await.unwrap();
        more.send(record()).unwrap();
        drop(more);
        let recorded = timeout(PATIENCE, recording).await.unwrap().unwrap().into_inner();
        assert_eq!(recorded.accepted, 2);
    };
    Bench::new().run_to_the_end(test).await;
}

/// Values to send, one at a time.
fn channel()
-> (tokio::sync::mpsc::UnboundedSender<RecordMetricsRequest>, impl futures_util::Stream<Item = RecordMetricsRequest>) {
    let (send, receive) = tokio::sync::mpsc::unbounded_channel();
    let records = stream::unfold(receive, |mut receive| async { Some((receive.recv().await?, receive)) });
    (send, records)
}

#[tokio::test]
async fn calls_that_do_not_finish_are_cut_off_after_2_seconds() {
    let test = async |running: &Running<'_>, stop: tokio::sync::oneshot::Sender<()>| {
        let mut client = running.client().await;
        let mut metrics = client.metrics.clone();
        let recording = metrics.record_metrics(stream::pending().boxed());
        let stopping = async {
            // The connection is served by now.
            client.health.get_health(GetHealthRequest {}).await.unwrap();
            let began = Instant::now();
            stop.send(()).unwrap();
            began
        };
        let (recorded, began) = tokio::join!(recording, stopping);
        recorded.unwrap_err();
        let took = began.elapsed();
        assert!((Duration::from_millis(1900)..Duration::from_secs(10)).contains(&took), "{took:?}");
    };
    Bench::new().run_to_the_end(test).await;
}

#[tokio::test]
async fn nothing_is_left_when_the_server_is_dropped() {
    let mut bench = Bench::new();
    let _hub = bench.hub.take().unwrap();
    let (listener, addr) = listen().await;
    let server = serve(vec![listener], bench.reader.clone(), bench.admin.clone(), Config::default(), pending());
    let mut watched = tokio::select! {
        ended = server => panic!("the server ended: {ended:?}"),
        watched = async {
            let mut client = Client::connect(&addr.to_string()).await.unwrap();
            let mut watched = client.dashboard.watch_snapshots(WatchSnapshotsRequest {}).await.unwrap().into_inner();
            watched.message().await.unwrap().unwrap();
            watched
        } => watched,
    };
    timeout(PATIENCE, watched.message()).await.unwrap().unwrap_err();
    TcpListener::bind(addr).await.unwrap();
}

#[tokio::test]
async fn one_server_listens_on_both_loopback_addresses() {
    let bench = Bench::new();
    let (first, second) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("[::1]:0").await.unwrap());
    let addrs = [first.local_addr().unwrap(), second.local_addr().unwrap()];
    let listeners = vec![first, second];
    let server = serve(listeners, bench.reader.clone(), bench.admin.clone(), Config::default(), pending());
    let test = async {
        for addr in addrs {
            let mut client = Client::connect(&addr.to_string()).await.unwrap();
            client.health.get_health(GetHealthRequest {}).await.unwrap();
        }
    };
    tokio::select! {
        ended = server => panic!("the server ended: {ended:?}"),
        () = test => {}
    }
}

#[tokio::test]
async fn without_a_listener_there_is_no_server() {
    let bench = Bench::new();
    let ended = serve(Vec::new(), bench.reader.clone(), bench.admin.clone(), Config::default(), pending()).await;
    assert!(matches!(ended, Err(GrpcError::NoListener)), "{ended:?}");
}
