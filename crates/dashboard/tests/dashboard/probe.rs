//! The plain read-only listeners.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mcpscope_dashboard::{Config, DashboardError, PlainConfig, serve_metrics, serve_probe};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{Answer, PATIENCE, Running, nothing};

/// Serves while the client does something.
async fn probing<F: Future<Output = ()>>(config: PlainConfig, client: impl FnOnce(SocketAddr) -> F) {
    let (_hub, reader, _) = nothing();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    // Says what it was asked; `/never` is never answered.
    let grpc = service_fn(|request: Request<Incoming>| async move {
        if request.uri().path() == "/never" {
            std::future::pending::<()>().await;
        }
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(format!("grpc {}", request.uri().path())))))
    });
    serve_probe(vec![listener], reader, grpc, config, client(addr)).await.unwrap();
}

async fn send(addr: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    Answer::read(&mut stream).await
}

async fn http2(addr: SocketAddr, tasks: &mut JoinSet<()>) -> SendRequest<Full<Bytes>> {
    let io = TokioIo::new(TcpStream::connect(addr).await.unwrap());
    let (sender, connection) = handshake(TokioExecutor::new(), io).await.unwrap();
    tasks.spawn(async move { drop(connection.await) });
    sender
}

fn call(path: &str) -> Request<Full<Bytes>> {
    Request::post(format!("http://10.1.2.3:9090{path}")).body(Full::default()).unwrap()
}

#[tokio::test]
async fn only_three_paths_are_there_for_anybody() {
    probing(PlainConfig::default(), |addr| async move {
        let get = async |path: &str, host: &str| {
            send(addr, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
        };
        for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/metrics", 404)] {
            assert_eq!(get(path, "10.1.2.3:9090").await.status, status, "{path}");
        }
        assert_eq!(get("/metrics", "pod").await.problem(404), "metrics are switched off");
        for path in ["/", "/ws", "/static/app.js", "/api/v1/dashboard", "/api/v1/traces", "/api/v1/health"] {
            let detail = get(path, "pod").await.problem(404);
            assert!(detail.contains("there is /metrics, /healthz, /readyz"), "{path}: {detail}");
        }
        let post = "POST /healthz HTTP/1.1\r\nHost: pod\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        send(addr, post).await.problem(405);
        let head = send(addr, "HEAD /healthz HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").await;
        assert_eq!((head.status, head.bytes.len()), (200, 0));
        // A kubelet speaks 1.1; older tools do not name a host.
        assert_eq!(
            send(addr, "GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n").await.status,
            400
        );
        let foreign = "GET /metrics HTTP/1.1\r\nHost: pod\r\nOrigin: http://evil.example\r\nConnection: close\r\n\r\n";
        assert_eq!(send(addr, foreign).await.status, 403);
    })
    .await;
}

#[tokio::test]
async fn the_metrics_listener_has_metrics_for_anybody_and_nothing_else() {
    let mut running = Running::start(Config::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let client = async {
        let ask = async |first_line: &str| send(addr, &format!("{first_line}\r\nHost: 10.1.2.3:9464\r\n\r\n")).await;
        let page = ask("GET /metrics HTTP/1.1").await;
        // Closed after its answer, although the client did not ask for that.
        assert_eq!((page.status, page.header("connection")), (200, Some("close")));
        assert!(page.body.contains("# TYPE mcpscope_dropped_total counter"), "{}", page.body);
        assert!(page.body.contains("{what=\"metrics_panic\"} 0"), "{}", page.body);
        for path in ["/", "/healthz", "/readyz", "//metrics", "/metrics/x", "/api/v1/metrics"] {
            let detail = ask(&format!("GET {path} HTTP/1.1")).await.problem(404);
            assert_eq!(detail, "there is nothing under this path; there is /metrics", "{path}");
        }
        ask("POST /metrics HTTP/1.1\r\nContent-Length: 0").await.problem(405);
        let head = ask("HEAD /metrics HTTP/1.1").await;
        assert_eq!((head.status, head.bytes.len()), (200, 0));
        let foreign = ask("GET /metrics HTTP/1.1\r\nOrigin: http://evil.example").await;
        assert_eq!(foreign.status, 403);
        // There is no HTTP/2: no settings, whatever else.
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").await.unwrap();
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it is closed");
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 400 "), "{rest:?}");
    };
    serve_metrics(vec![listener], running.reader.clone(), PlainConfig::default(), client).await.unwrap();
    running.ended().await.unwrap();
}

#[tokio::test]
async fn http2_is_handed_to_grpc_and_http1_is_not() {
    probing(PlainConfig::default(), |addr| async move {
        let mut tasks = JoinSet::new();
        let mut sender = http2(addr, &mut tasks).await;
        for path in ["/grpc.health.v1.Health/Check", "/healthz"] {
            let answer = sender.send_request(call(path)).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, format!("grpc {path}"));
        }
        // The same path over HTTP/1 is another thing, and so is a request that begins like HTTP/2 and is not.
        let check = "GET /grpc.health.v1.Health/Check HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";
        send(addr, check).await.problem(404);
        let similar = "PROPFIND /healthz HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";
        assert_eq!(send(addr, similar).await.status, 405);
    })
    .await;
}

#[tokio::test]
async fn the_beginning_may_come_in_pieces() {
    probing(PlainConfig::default(), |addr| async move {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00" {
            stream.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut settings = [0; 9];
        timeout(PATIENCE, stream.read_exact(&mut settings)).await.expect("an answer").unwrap();
        assert_eq!(settings[3], 4, "the server's settings");
    })
    .await;
}

#[tokio::test]
async fn who_does_not_begin_is_cut_off() {
    let short = Duration::from_millis(500);
    probing(PlainConfig { header_timeout: short, ..PlainConfig::default() }, |addr| async move {
        let start = Instant::now();
        for beginning in ["", "P", "PRI * HTTP/2.0\r\n", "GET /healthz HTTP/1.1\r\nHost: pod\r\nX-Slow: "] {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.write_all(beginning.as_bytes()).await.unwrap();
            let mut rest = Vec::new();
            let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it is closed");
            assert!(!String::from_utf8_lossy(&rest).contains(" 200 "), "{beginning}");
        }
        assert!(start.elapsed() >= short && start.elapsed() < short * 20, "{:?}", start.elapsed());
    })
    .await;
}

#[tokio::test]
async fn idle_http2_connections_keep_nobody_out() {
    // Longer than the test: it is not this that frees the places.
    let config = PlainConfig { max_connections: 8, header_timeout: Duration::from_secs(60) };
    probing(config, |addr| async move {
        let (mut tasks, mut waiting) = (JoinSet::new(), JoinSet::new());
        let mut watchers = Vec::new();
        for n in 0..12 {
            let mut sender = http2(addr, &mut tasks).await;
            sender.send_request(call("/")).await.unwrap_or_else(|error| panic!("watcher {n}: {error}"));
            watchers.push(sender.clone());
            // Like a watch: open for as long as the client likes.
            waiting.spawn(async move { sender.send_request(call("/never")).await.map(drop) });
        }
        let get = "GET /healthz HTTP/1.1\r\nHost: pod\r\n\r\n";
        for _ in 0..16 {
            assert_eq!(send(addr, get).await.status, 200);
        }
        // The newest half of the places is theirs; the oldest had to make room.
        for _ in 0..8 {
            waiting.join_next().await.unwrap().unwrap().unwrap_err();
        }
        for sender in &mut watchers[8..] {
            assert_eq!(sender.send_request(call("/")).await.unwrap().status(), StatusCode::OK);
        }
        assert!(waiting.try_join_next().is_none(), "the newest are still there");
    })
    .await;
}

#[tokio::test]
async fn who_keeps_http1_connections_open_keeps_nobody_out() {
    let short = Duration::from_millis(1500);
    probing(PlainConfig { max_connections: 8, header_timeout: short }, |addr| async move {
        let get = "GET /healthz HTTP/1.1\r\nHost: pod\r\nConnection: keep-alive\r\n\r\n";
        let mut kept = Vec::new();
        for _ in 0..8 {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.write_all(get.as_bytes()).await.unwrap();
            kept.push(stream);
        }
        // Each has had its answer, and is closed whatever it wishes.
        for stream in &mut kept {
            let answer = Answer::read(stream).await;
            assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
        }
        let mut silent = Vec::new();
        for _ in 0..8 {
            silent.push(TcpStream::connect(addr).await.unwrap());
        }
        let start = Instant::now();
        assert_eq!(send(addr, get).await.status, 200);
        assert!(start.elapsed() < short * 4, "{:?}", start.elapsed());
    })
    .await;
}

#[tokio::test]
async fn streams_and_headers_are_limited() {
    probing(PlainConfig::default(), |addr| async move {
        let mut tasks = JoinSet::new();
        let sender = http2(addr, &mut tasks).await;
        // One that is answered brings the server's settings.
        sender.clone().send_request(call("/")).await.unwrap();
        let mut waiting = JoinSet::new();
        for _ in 0..32 {
            let mut sender = sender.clone();
            waiting.spawn(async move { sender.send_request(call("/never")).await.map(drop) });
        }
        // After those: their turn comes in this order.
        let (mut one_more, mut waiting_too) = (sender.clone(), JoinSet::new());
        waiting_too.spawn(async move { one_more.send_request(call("/")).await.map(drop) });
        let answered = timeout(Duration::from_millis(300), waiting_too.join_next()).await;
        assert!(answered.is_err(), "it waits for a stream: {answered:?}");
        waiting.shutdown().await;
        let mut sender = http2(addr, &mut tasks).await;
        sender.send_request(call("/")).await.unwrap();
        let mut large = call("/");
        large.headers_mut().insert("x-large", "x".repeat(17 << 10).parse().unwrap());
        let answer = sender.send_request(large).await;
        assert!(answer.is_err() || answer.unwrap().status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_never_ends_delays_the_end_by_two_seconds_at_most() {
    let (ended, start) = (Instant::now(), std::cell::Cell::new(Instant::now()));
    let mut tasks = JoinSet::new();
    let mut waiting = JoinSet::new();
    probing(PlainConfig::default(), |addr| {
        let (tasks, waiting, start) = (&mut tasks, &mut waiting, &start);
        async move {
            let mut sender = http2(addr, tasks).await;
            sender.send_request(call("/")).await.unwrap();
            waiting.spawn(async move { sender.send_request(call("/never")).await.map(drop) });
            tokio::task::yield_now().await;
            start.set(Instant::now());
        }
    })
    .await;
    assert!(start.get() > ended && start.get().elapsed() < Duration::from_secs(4), "{:?}", start.get().elapsed());
    let result = timeout(PATIENCE, waiting.join_next()).await.expect("it is cut off").unwrap().unwrap();
    assert!(result.is_err());
}

#[tokio::test]
async fn a_listener_is_needed() {
    let (_hub, reader, _) = nothing();
    let grpc =
        service_fn(|_: Request<Incoming>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
    let none = serve_probe(Vec::new(), reader.clone(), grpc, PlainConfig::default(), std::future::pending()).await;
    assert!(matches!(none, Err(DashboardError::NoListener)));
    let none = serve_metrics(Vec::new(), reader, PlainConfig::default(), std::future::pending()).await;
    assert!(matches!(none, Err(DashboardError::NoListener)));
}
