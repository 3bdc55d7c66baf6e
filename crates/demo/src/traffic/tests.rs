//! The traffic against real servers.

#![allow(
    clippy::disallowed_methods,
    reason = "tests spawn the parts that they connect; the runtime of a test ends with it"
)]

use std::{convert::Infallible, sync::Arc};

use hyper::{Request, body::Incoming, header::HeaderValue, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::Instant,
};

use super::*;
use crate::{DemoServer, HTTP_PATH, serve_io};

const SEED: u64 = 11;
const LONG: Duration = Duration::from_secs(20);
/// With room for a busy machine, and far less than an answer may take.
const PROMPT: Duration = Duration::from_secs(5);

/// What of a request tells sessions and eras apart: HTTP method, MCP method, protocol version.
#[derive(Debug, PartialEq)]
struct Seen {
    verb: String,
    method: Option<String>,
    version: Option<String>,
}

fn seen(request: &Request<Incoming>) -> Seen {
    let header = |name| {
        let value: Option<&HeaderValue> = request.headers().get(name);
        value.map(|value| value.to_str().unwrap().to_owned())
    };
    Seen { verb: request.method().to_string(), method: header("mcp-method"), version: header("mcp-protocol-version") }
}

/// The demo server, with every request reported before it is handled. Its connections end with it.
async fn watched(listener: TcpListener, report: mpsc::UnboundedSender<Seen>) {
    let server = DemoServer::new(SEED);
    let mcp = StreamableHttpService::new(
        move || Ok(server.clone()),
        Arc::new(LocalSessionManager::default()),
        StreamableHttpServerConfig::default(),
    );
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (mcp, report) = (mcp.clone(), report.clone());
        let service = service_fn(move |request| {
            let _ = report.send(seen(&request));
            let mcp = mcp.clone();
            async move { Ok::<_, Infallible>(mcp.handle(request).await) }
        });
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn until(reports: &mut mpsc::UnboundedReceiver<Seen>, what: &str, expected: impl Fn(&Seen) -> bool) {
    let mut passed = Vec::new();
    timeout(LONG, async {
        loop {
            let seen = reports.recv().await.unwrap();
            if expected(&seen) {
                break;
            }
            passed.push(seen);
        }
    })
    .await
    .unwrap_or_else(|_| panic!("no {what} among {passed:?}"));
}

#[tokio::test]
async fn http_traffic_changes_sessions_and_eras() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}{HTTP_PATH}", listener.local_addr().unwrap());
    let (report, mut reports) = mpsc::unbounded_channel();
    let server = tokio::spawn(watched(listener, report));
    let stop = CancellationToken::new();
    let traffic = {
        let stop = stop.clone();
        tokio::spawn(async move { call_over_http(&url, SEED, 2..=3, &stop).await })
    };

    for _ in 0..2 {
        until(&mut reports, "POST of 2025-11-25", |seen| {
            seen.verb == "POST" && seen.version.as_deref() == Some("2025-11-25")
        })
        .await;
        until(&mut reports, "end of a session", |seen| seen.verb == "DELETE").await;
        until(&mut reports, "server/discover", |seen| {
            seen.method.as_deref() == Some("server/discover") && seen.version.as_deref() == Some("2026-07-28")
        })
        .await;
        until(&mut reports, "stateless call", |seen| {
            seen.method.as_deref() == Some("tools/call") && seen.version.as_deref() == Some("2026-07-28")
        })
        .await;
    }
    // In a session, so that its proper end is seen as well.
    until(&mut reports, "GET of the event stream", |seen| seen.verb == "GET").await;
    stop.cancel();
    timeout(PROMPT, traffic).await.unwrap().unwrap().unwrap();
    until(&mut reports, "end of the session", |seen| seen.verb == "DELETE").await;
    server.abort();
}

#[tokio::test]
async fn http_traffic_outlives_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (report, mut reports) = mpsc::unbounded_channel();
    let server = tokio::spawn(watched(listener, report));
    let stop = CancellationToken::new();
    let url = format!("http://{address}{HTTP_PATH}");
    let traffic = {
        let stop = stop.clone();
        tokio::spawn(async move { call_over_http(&url, SEED, 5..=6, &stop).await })
    };
    until(&mut reports, "session", |seen| seen.verb == "GET").await;

    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    let (report, mut reports) = mpsc::unbounded_channel();
    let listener = TcpListener::bind(address).await.unwrap();
    let server = tokio::spawn(watched(listener, report));
    until(&mut reports, "session after the restart", |seen| seen.verb == "GET").await;
    stop.cancel();
    timeout(PROMPT, traffic).await.unwrap().unwrap().unwrap();
    server.abort();
}

#[tokio::test]
async fn http_traffic_to_nowhere_goes_on_until_the_stop() {
    // Bound and not accepting: a connection is made, an answer never comes.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}{HTTP_PATH}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let traffic = tokio::spawn(traffic_http(url, SEED, stop.clone()));
    let (_connection, _) = timeout(LONG, listener.accept()).await.unwrap().unwrap();
    assert!(!traffic.is_finished());
    stop.cancel();
    timeout(PROMPT, traffic).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn urls_that_cannot_work_are_refused() {
    let stop = CancellationToken::new();
    assert!(matches!(traffic_http("nowhere".to_owned(), SEED, stop.clone()).await, Err(DemoError::Url(_))));
    assert!(matches!(
        traffic_http("https://localhost/mcp".to_owned(), SEED, stop).await,
        Err(DemoError::Scheme(scheme)) if scheme == "https"
    ));
}

/// Copies lines from `from` to `to` and reports each method that is called.
async fn tap(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, report: mpsc::UnboundedSender<Value>) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(mut line)) = lines.next_line().await {
        let _ = report.send(serde_json::from_str(&line).unwrap());
        line.push('\n');
        if to.write_all(line.as_bytes()).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// Traffic to a demo server through streams, and every message on them.
struct Streams {
    stop: CancellationToken,
    traffic: JoinHandle<Result<(), DemoError>>,
    server: JoinHandle<Result<(), DemoError>>,
    /// What the client sent, and the server.
    sent: [mpsc::UnboundedReceiver<Value>; 2],
}

fn streams() -> Streams {
    let (client, client_far) = tokio::io::duplex(64 * 1024);
    let (server, server_far) = tokio::io::duplex(64 * 1024);
    let (read, write) = tokio::io::split(server);
    let server = tokio::spawn(serve_io(read, write, SEED));
    let (client_read, client_write) = tokio::io::split(client_far);
    let (server_read, server_write) = tokio::io::split(server_far);
    let (to_server, by_client) = mpsc::unbounded_channel();
    let (to_client, by_server) = mpsc::unbounded_channel();
    tokio::spawn(tap(client_read, server_write, to_server));
    tokio::spawn(tap(server_read, client_write, to_client));

    let stop = CancellationToken::new();
    let (read, write) = tokio::io::split(client);
    let traffic = tokio::spawn(traffic_io(read, write, SEED, stop.clone()));
    Streams { stop, traffic, server, sent: [by_client, by_server] }
}

#[tokio::test]
async fn stream_traffic_calls_every_tool_and_ends_with_the_input() {
    let Streams { stop, traffic, server, sent: [mut reports, _by_server] } = streams();
    let mut missing: Vec<&str> = MIX
        .iter()
        .filter_map(|(_, step)| match step {
            Step::Tool(name) => Some(*name),
            _ => None,
        })
        .chain(["initialize", "tools/list", "resources/read", "prompts/get"])
        .collect();
    timeout(Duration::from_secs(60), async {
        while !missing.is_empty() {
            let message = reports.recv().await.unwrap();
            let method = message["method"].as_str();
            let tool = message["params"]["name"].as_str();
            missing.retain(|name| Some(*name) != method && Some(*name) != tool);
        }
    })
    .await
    .unwrap_or_else(|_| panic!("never called: {missing:?}"));

    stop.cancel();
    timeout(PROMPT, traffic).await.unwrap().unwrap().unwrap();
    timeout(LONG, server).await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_call_that_is_under_way_at_the_stop_gets_its_answer() {
    for calls in 1..=3 {
        let Streams { stop, traffic, server, sent: [mut by_client, mut by_server] } = streams();
        let mut asked = Vec::new();
        let mut slow = 0;
        while slow < calls {
            let message = by_client.recv().await.unwrap();
            asked.extend(message["method"].as_str().and_then(|_| message["id"].as_u64()));
            slow += u32::from(message["params"]["name"] == "slow");
        }
        let stopped = Instant::now();
        stop.cancel();
        traffic.await.unwrap().unwrap();
        assert!(stopped.elapsed() <= LAST_ANSWER, "{:?}", stopped.elapsed());
        // What it got before it left; what comes later nobody reads.
        let mut answered = Vec::new();
        while let Ok(message) = by_server.try_recv() {
            answered.extend(message.get("result").and(message["id"].as_u64()));
        }
        let missing: Vec<_> = asked.iter().filter(|id| !answered.contains(id)).collect();
        assert!(missing.is_empty(), "no answer to {missing:?} of {asked:?}");
        assert_eq!(by_client.recv().await, None, "and nothing more is asked");
        server.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_does_not_hold_up_the_stop() {
    let (client, far) = tokio::io::duplex(64 * 1024);
    let (read, write) = tokio::io::split(client);
    let stop = CancellationToken::new();
    let traffic = tokio::spawn(traffic_io(read, write, SEED, stop.clone()));
    let (read, mut write) = tokio::io::split(far);
    let mut lines = BufReader::new(read).lines();
    let hello: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    let info = json!({ "name": "mute", "version": "1" });
    let result = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": info });
    let answer = json!({ "jsonrpc": "2.0", "id": hello["id"], "result": result });
    write.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
    while !lines.next_line().await.unwrap().unwrap().contains("tools/list") {}
    let stopped = Instant::now();
    stop.cancel();
    traffic.await.unwrap().unwrap();
    assert_eq!(stopped.elapsed(), LAST_ANSWER);
}

#[tokio::test]
async fn stream_traffic_reports_that_the_server_went_away() {
    let (client, server) = tokio::io::duplex(64 * 1024);
    drop(server);
    let (read, write) = tokio::io::split(client);
    let traffic = traffic_io(read, write, SEED, CancellationToken::new());
    assert!(matches!(timeout(LONG, traffic).await.unwrap(), Err(DemoError::Connect(_))));
}

#[test]
fn the_mix_is_drawn_by_weight() {
    let mut rng = fastrand::Rng::with_seed(SEED);
    let total: u32 = MIX.iter().map(|(weight, _)| weight).sum();
    let echoes = (0..10_000).filter(|_| matches!(pick(&mut rng), Step::Tool("echo"))).count();
    let share = f64::from(u32::try_from(echoes).unwrap()) / 10_000.0;
    assert!((share - f64::from(MIX[0].0) / f64::from(total)).abs() < 0.02, "{share}");
}
