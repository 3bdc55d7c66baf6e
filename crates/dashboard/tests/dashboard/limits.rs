//! Clients that are slow, silent, many or in the way.

use std::time::{Duration, Instant};

use mcpscope_dashboard::{Config, DashboardError, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::support::{Answer, PATIENCE, Running, nothing};

/// The header timeout of these tests; long enough that a busy machine does not run into it by itself.
const SHORT: Duration = Duration::from_millis(1500);

const SCRAPE: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Asks for the metrics over and over and never reads an answer: the dashboard is left with bytes it cannot write.
async fn hanging_scrape(running: &Running) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(running.addr).await.unwrap();
    // More than the kernel buffers on both sides together, about 4 MB here.
    let pages = 10_000_000 / running.metrics.snapshot(running.anchor.mono).to_prometheus().len();
    stream.write_all(SCRAPE.repeat(pages).as_bytes()).await.unwrap();
    stream
}

/// Enough tools that a page is large and few of them fill the buffers.
async fn with_a_large_page(config: Config) -> Running {
    let running = Running::start(config).await;
    for n in 0..200 {
        running
            .metrics
            .tool_calls("everything", &format!("tool{n}"), "ok", false)
            .record(Duration::ZERO, running.anchor.mono);
    }
    running
}

async fn closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // A reset is as good an end as any.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the connection is closed");
}

#[tokio::test]
async fn a_slow_header_is_cut_off() {
    let running = Running::start(Config { header_timeout: SHORT, ..Config::default() }).await;
    let mut stream = TcpStream::connect(running.addr).await.unwrap();
    let start = Instant::now();
    let (mut read, mut write) = stream.split();
    let drip = async {
        for byte in "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".bytes().chain(std::iter::repeat(b'x')) {
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        () = drip => {}
        result = timeout(PATIENCE, read.read_to_end(&mut answer)) => drop(result.expect("it is closed")),
    }
    let took = start.elapsed();
    assert!(took >= SHORT - Duration::from_millis(50) && took < SHORT * 4, "{took:?}");
    assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
}

#[tokio::test]
async fn a_silent_connection_is_cut_off() {
    let running = Running::start(Config { header_timeout: SHORT, ..Config::default() }).await;
    let mut silent = TcpStream::connect(running.addr).await.unwrap();
    let mut idle = TcpStream::connect(running.addr).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let start = Instant::now();
    closed(&mut silent).await;
    closed(&mut idle).await;
    assert!(start.elapsed() < SHORT * 4);
}

#[tokio::test]
async fn an_endless_header_is_refused() {
    let running = Running::start(Config::default()).await;
    let mut stream = TcpStream::connect(running.addr).await.unwrap();
    let request = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: {}", "x".repeat(1 << 20));
    // The answer comes before all of it is taken.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = [0; 32];
    let _ = timeout(PATIENCE, stream.read(&mut answer)).await.expect("refused in time");
    assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
    assert_eq!(running.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn scrapes_that_hang_stop_no_other_up_to_the_limit() {
    let config = Config { max_connections: 16, ..Config::default() };
    let running = with_a_large_page(config).await;
    let mut hanging = Vec::new();
    for _ in 0..15 {
        hanging.push(hanging_scrape(&running).await);
    }
    for path in ["/metrics", "/healthz", "/api/v1/metrics"] {
        let start = Instant::now();
        assert_eq!(running.get(path).await.status, 200);
        // They hold their places for 10 seconds: this one did not wait for them.
        assert!(start.elapsed() < Duration::from_secs(5), "{path} took {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn connections_over_the_limit_wait_until_the_hanging_ones_are_cut_off() {
    let config = Config { max_connections: 4, header_timeout: SHORT, ..Config::default() };
    let running = with_a_large_page(config).await;
    let start = Instant::now();
    let mut hanging = Vec::new();
    for _ in 0..4 {
        hanging.push(hanging_scrape(&running).await);
    }
    let answer = running.get("/healthz").await;
    assert_eq!(answer.status, 200);
    assert!(start.elapsed() >= SHORT / 2, "there was no place for it before, yet it took {:?}", start.elapsed());
    for stream in &mut hanging {
        closed(stream).await;
    }
    // Every place is free again.
    for _ in 0..8 {
        assert_eq!(running.get("/metrics").await.status, 200);
    }
}

#[tokio::test]
async fn who_says_nothing_keeps_nobody_out() {
    // Longer than the test: it is not this that makes room.
    let config = Config { max_connections: 8, header_timeout: 10 * PATIENCE, ..Config::default() };
    let running = Running::start(config).await;
    let mut page = TcpStream::connect(running.addr).await.unwrap();
    let mut first = [0; 12];
    page.write_all(SCRAPE.as_bytes()).await.unwrap();
    page.read_exact(&mut first).await.unwrap();
    let (socket, mut silent) = (TcpSocket::new_v4().unwrap(), Vec::new());
    let mut half = socket.connect(running.addr).await.unwrap();
    half.write_all(b"GET /metrics HT").await.unwrap();
    for _ in 0..40 {
        silent.push(TcpStream::connect(running.addr).await.unwrap());
    }
    let start = Instant::now();
    assert_eq!(running.get("/healthz").await.status, 200);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    // Those who were there first and asked for nothing are gone, and counted; who was answered is not.
    closed(&mut half).await;
    closed(&mut silent[0]).await;
    let gone = 1 + silent.len() as u64 + 2 - 8;
    running.dropped("dashboard_evicted", gone).await;
    page.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, page.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&rest).matches("HTTP/1.1 200").count(), 1, "of the second request");
}

#[tokio::test]
async fn many_clients_are_all_answered() {
    let running = Running::start(Config { max_connections: 8, ..Config::default() }).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(running.addr).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        streams.push(stream);
    }
    for stream in &mut streams {
        assert_eq!(Answer::read(stream).await.status, 200);
    }
}

#[tokio::test]
async fn an_idle_end_is_at_once_and_frees_the_port() {
    let mut running = Running::start(Config::default()).await;
    let mut idle = TcpStream::connect(running.addr).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut first = [0; 1];
    idle.read_exact(&mut first).await.unwrap();
    let start = Instant::now();
    assert!(running.ended().await.is_ok());
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    closed(&mut idle).await;
    assert!(TcpListener::bind(running.addr).await.is_ok());
}

#[tokio::test]
async fn what_hangs_delays_the_end_by_two_seconds_at_most() {
    let mut running = with_a_large_page(Config::default()).await;
    let _hanging = hanging_scrape(&running).await;
    let _half = {
        let mut stream = TcpStream::connect(running.addr).await.unwrap();
        stream.write_all(b"GET /healthz HT").await.unwrap();
        stream
    };
    assert_eq!(running.get("/healthz").await.status, 200);
    let start = Instant::now();
    assert!(running.ended().await.is_ok());
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(1900) && took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn a_request_in_flight_is_answered_before_the_end() {
    let mut running = Running::start(Config::default()).await;
    let mut stream = TcpStream::connect(running.addr).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n").await.unwrap();
    // Seen and taken by the dashboard before it is told to stop.
    assert_eq!(running.get("/healthz").await.status, 200);
    running.stop();
    sleep(Duration::from_millis(200)).await;
    stream.write_all(b"\r\n").await.unwrap();
    assert_eq!(Answer::read(&mut stream).await.status, 200);
    assert!(running.ended().await.is_ok());
}

#[tokio::test]
async fn several_listeners_are_served_alike() {
    let (_hub, reader, admin) = nothing();
    let (a, b) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let addresses = [a.local_addr().unwrap(), b.local_addr().unwrap()];
    let clients = async {
        for addr in addresses.into_iter().cycle().take(6) {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
            assert_eq!(Answer::read(&mut stream).await.status, 200);
        }
    };
    assert!(serve(vec![a, b], reader.clone(), admin.clone(), Config::default(), clients).await.is_ok());
    let none = serve(Vec::new(), reader, admin, Config::default(), std::future::pending()).await;
    assert!(matches!(none, Err(DashboardError::NoListener)));
}
