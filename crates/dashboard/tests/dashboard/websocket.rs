//! The WebSocket, over real sockets.

use std::io::Read as _;
use std::time::{Duration, Instant, SystemTime};

use futures_util::{SinkExt as _, StreamExt as _};
use mcpscope_core::Outcome;
use mcpscope_dashboard::Config;
use mcpscope_hub::health::State;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::support::{PATIENCE, Running};

type Socket = WebSocketStream<TcpStream>;

async fn open(running: &Running, query: &str) -> Socket {
    let stream = TcpStream::connect(running.addr).await.unwrap();
    client_async(format!("ws://{}/ws{query}", running.addr), stream).await.unwrap().0
}

/// The answer to an upgrade that is refused.
async fn refused(running: &Running, query: &str) -> (u16, Option<String>, Value) {
    let stream = TcpStream::connect(running.addr).await.unwrap();
    match client_async(format!("ws://{}/ws{query}", running.addr), stream).await {
        Err(Error::Http(answer)) => {
            let retry = answer.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
            let body = answer.body().as_deref().unwrap_or_default();
            (answer.status().as_u16(), retry, serde_json::from_slice(body).unwrap_or_default())
        }
        other => panic!("{other:?}"),
    }
}

/// The next message with content; pings are answered on the way.
async fn next(socket: &mut Socket) -> Message {
    loop {
        let message = timeout(PATIENCE, socket.next()).await.expect("a message in time").expect("not the end").unwrap();
        if !message.is_ping() && !message.is_pong() {
            return message;
        }
    }
}

fn json_of(message: &Message) -> Value {
    match message {
        Message::Text(text) => serde_json::from_str(text).unwrap(),
        Message::Binary(bytes) => serde_json::from_reader(flate2::read::GzDecoder::new(&**bytes)).unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn next_json(socket: &mut Socket) -> Value {
    json_of(&next(socket).await)
}

/// The next reply, past whatever is pushed.
async fn ask(socket: &mut Socket, command: &str) -> Value {
    socket.send(Message::text(command)).await.unwrap();
    next_json(socket).await
}

async fn close_code(socket: &mut Socket) -> u16 {
    loop {
        if let Message::Close(frame) = next(socket).await {
            return frame.expect("a code").code.into();
        }
    }
}

#[tokio::test]
async fn the_dashboard_comes_at_once_and_commands_are_answered() {
    let running = Running::start(Config::default()).await;
    let mut socket = open(&running, "").await;
    let first = next_json(&mut socket).await;
    assert_eq!(first["type"], "dashboard");
    assert_eq!(first["data"]["system_health"]["components"], json!({}), "before the first tick");
    for topic in ["dashboard", "health", "metrics"] {
        let reply = ask(&mut socket, &format!(r#"["get_{topic}"]"#)).await;
        assert_eq!((&reply["type"], reply.get("id")), (&topic.into(), None));
        assert!(reply["data"]["timestamp"].is_u64(), "{reply}");
        let reply = ask(&mut socket, &format!(r#"{{"command": "get_{topic}", "id": "a b"}}"#)).await;
        assert_eq!((&reply["type"], &reply["id"]), (&topic.into(), &"a b".into()));
    }
    assert_eq!(ask(&mut socket, r#"["get_chaos"]"#).await, json!({"type": "chaos", "data": null}));
    assert_eq!(ask(&mut socket, "{").await, json!({"error": "Malformed message"}));
    assert_eq!(ask(&mut socket, r#"["reset"]"#).await, json!({"error": "Unknown command"}));
    assert_eq!(
        ask(&mut socket, r#"{"command": "reset", "id": 7}"#).await,
        json!({"error": "Unknown command", "id": 7})
    );
    // Ignored, and the connection lives on.
    socket.send(Message::binary(vec![0; 100])).await.unwrap();
    assert_eq!(ask(&mut socket, r#"["get_chaos"]"#).await["type"], "chaos");
    socket.close(None).await.unwrap();
    assert!(matches!(next(&mut socket).await, Message::Close(_)));
}

#[tokio::test]
async fn each_frame_is_pushed() {
    let mut running = Running::start(Config::default()).await;
    let mut socket = open(&running, "").await;
    assert_eq!(next_json(&mut socket).await["data"]["traces"], json!([]));
    running.tool_call("echo", 0, 12, Outcome::Ok);
    running.make_frames().await;
    let mut last = 0;
    for _ in 0..3 {
        let push = next_json(&mut socket).await;
        assert_eq!((&push["type"], &push["data"]["traces"][0]["tool"]), (&"dashboard".into(), &"echo".into()));
        let timestamp = push["data"]["timestamp"].as_u64().unwrap();
        assert!(timestamp > last);
        last = timestamp;
    }
}

#[tokio::test]
async fn a_change_of_health_is_told_as_it_happens() {
    let mut running = Running::start(Config::default()).await;
    running.reporter.set("child", State::Healthy, "Child running", SystemTime::UNIX_EPOCH);
    let mut socket = open(&running, "").await;
    running.make_frames().await;
    // Seen healthy by the hub, which looks every second, before it fails.
    while next_json(&mut socket).await["data"]["system_health"]["components"]["sessions"].is_null() {}
    running.reporter.set("child", State::Critical, "Child not running", SystemTime::UNIX_EPOCH);
    let event = loop {
        let message = next_json(&mut socket).await;
        if message["type"] == "event" && message["data"]["component"] == "child" {
            break message;
        }
    };
    assert!(event["data"]["timestamp"].as_u64().unwrap() >= 1_800_000_000_000);
    let mut data = event["data"].clone();
    data.as_object_mut().unwrap().remove("timestamp");
    assert_eq!(
        data,
        json!({
            "kind": "health", "component": "child", "from": "healthy", "to": "critical", "message": "Child not running"
        })
    );
    // Who asks then is told the same.
    socket.send(Message::text(r#"["get_health"]"#)).await.unwrap();
    let reply = loop {
        let message = next_json(&mut socket).await;
        if message["type"] == "health" {
            break message;
        }
    };
    assert_eq!(reply["data"]["components"]["child"]["status"], "critical", "{reply}");
}

#[tokio::test]
async fn large_messages_are_compressed_for_those_who_ask() {
    let mut running = Running::start(Config::default()).await;
    running.tool_call("echo", 0, 12, Outcome::Ok);
    running.make_frames().await;
    let mut socket = open(&running, "?encoding=gzip").await;
    let push = next(&mut socket).await;
    assert!(push.is_binary());
    assert_eq!(json_of(&push)["data"]["traces"][0]["tool"], "echo");
    socket.send(Message::text(r#"{"command":"get_dashboard","id":"me"}"#)).await.unwrap();
    let reply = loop {
        let message = next(&mut socket).await;
        assert!(message.is_binary());
        let value = json_of(&message);
        if value.get("id").is_some() {
            break value;
        }
    };
    assert_eq!((&reply["type"], &reply["id"]), (&"dashboard".into(), &"me".into()));
    // What is small stays text.
    socket.send(Message::text(r#"["get_chaos"]"#)).await.unwrap();
    while !next(&mut socket).await.is_text() {}
}

#[tokio::test]
async fn what_is_no_upgrade_is_told_so() {
    let running = Running::start(Config::default()).await;
    let plain = running.get("/ws").await;
    assert!(plain.problem(426).contains("Sec-WebSocket-Version: 13"));
    assert_eq!((plain.header("upgrade"), plain.header("sec-websocket-version")), (Some("websocket"), Some("13")));
    let old = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\nSec-WebSocket-Key: x\r\n";
    running.get_with("/ws", old).await.problem(426);
    let post = "POST /ws HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    running.send(post).await.problem(405);
    for (query, expected) in [
        ("?encoding=br", "parameter encoding: expected gzip; found \"br\""),
        ("?token=x", "unknown parameter \"token\": expected encoding or none"),
    ] {
        let (status, _, problem) = refused(&running, query).await;
        assert_eq!((status, &problem["detail"]), (400, &expected.into()));
    }
}

#[tokio::test]
async fn one_too_many_is_told_when_to_come_again() {
    let running = Running::start(Config { max_websockets: 3, ..Config::default() }).await;
    let mut sockets = Vec::new();
    for _ in 0..3 {
        sockets.push(open(&running, "").await);
    }
    let (status, retry, problem) = refused(&running, "").await;
    assert_eq!((status, retry.as_deref(), &problem["status"]), (503, Some("5"), &503.into()));
    assert_eq!(running.dropped("websocket_refused", 1).await, 1);
    // The others are none the worse for it, and a place that is left is given again.
    assert_eq!(next_json(&mut sockets[0]).await["type"], "dashboard");
    sockets.pop().unwrap().close(None).await.unwrap();
    let again = async {
        loop {
            let stream = TcpStream::connect(running.addr).await.unwrap();
            if let Ok((mut socket, _)) = client_async(format!("ws://{}/ws", running.addr), stream).await {
                break next_json(&mut socket).await;
            }
        }
    };
    assert_eq!(timeout(PATIENCE, again).await.expect("a place")["type"], "dashboard");
}

#[tokio::test]
async fn sockets_take_no_place_of_other_connections() {
    let running = Running::start(Config { max_connections: 2, ..Config::default() }).await;
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(open(&running, "").await);
    }
    for path in ["/healthz", "/metrics", "/"] {
        assert_eq!(running.get(path).await.status, 200, "{path}");
    }
    for socket in &mut sockets {
        assert_eq!(next_json(socket).await["type"], "dashboard");
    }
}

#[tokio::test]
async fn who_does_not_read_is_dropped_while_the_others_go_on() {
    // A stalled write counts as slow as well, and here it is found out sooner.
    let config = Config { header_timeout: Duration::from_secs(2), ..Config::default() };
    let mut running = Running::start(config).await;
    for n in 0..100 {
        running.tool_call(&"x".repeat(200), n, 12, Outcome::Ok);
    }
    let small = TcpSocket::new_v4().unwrap();
    small.set_recv_buffer_size(4096).unwrap();
    let stream = small.connect(running.addr).await.unwrap();
    let (mut slow, _) = client_async(format!("ws://{}/ws", running.addr), stream).await.unwrap();
    let mut other = open(&running, "?encoding=gzip").await;
    running.make_frames().await;
    // More than the kernel holds for it, and none of the replies is read.
    for _ in 0..500 {
        if timeout(Duration::from_millis(200), slow.send(Message::text(r#"["get_dashboard"]"#))).await.is_err() {
            break;
        }
    }
    let start = Instant::now();
    let mut pushes = 0;
    let dropped = running.dropped("websocket_slow", 1);
    let going_on = async {
        loop {
            next_json(&mut other).await;
            pushes += 1;
        }
    };
    tokio::select! {
        count = dropped => assert_eq!(count, 1),
        () = going_on => {}
    }
    assert!(start.elapsed() < Duration::from_secs(10) && pushes > 3, "{:?} {pushes}", start.elapsed());
}

#[tokio::test]
async fn too_large_or_broken_messages_end_with_a_code() {
    let running = Running::start(Config::default()).await;
    for size in [(64 << 10) + 1, 1 << 20] {
        let mut socket = open(&running, "").await;
        let _ = socket.send(Message::text("x".repeat(size))).await;
        assert_eq!(close_code(&mut socket).await, 1009, "{size}");
    }
    let mut socket = open(&running, "").await;
    next(&mut socket).await;
    assert_eq!(ask(&mut socket, &"x".repeat(64 << 10)).await, json!({"error": "Malformed message"}));

    use tokio::io::AsyncWriteExt as _;
    let mut socket = open(&running, "").await;
    // An unmasked frame, which no client may send.
    socket.get_mut().write_all(&[0x81, 0x01, b'x']).await.unwrap();
    assert_eq!(close_code(&mut socket).await, 1002);
}

#[tokio::test]
async fn the_end_closes_sockets_with_1001_and_waits_for_none_that_is_gone() {
    let mut running = Running::start(Config::default()).await;
    let mut sockets = Vec::new();
    for _ in 0..10 {
        let mut socket = open(&running, "").await;
        next(&mut socket).await;
        sockets.push(socket);
    }
    running.stop();
    let start = Instant::now();
    for socket in &mut sockets {
        assert_eq!(close_code(socket).await, 1001);
        // The connection is closed in good order, not reset.
        assert!(timeout(PATIENCE, socket.next()).await.expect("the end").is_none_or(|end| end.is_err()));
        assert_eq!(socket.get_mut().read(&mut [0]).await.unwrap(), 0);
    }
    drop(sockets);
    assert!(running.ended().await.is_ok());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn who_ignores_the_end_is_cut_off() {
    let mut running = Running::start(Config::default()).await;
    let silent = open(&running, "").await;
    let start = Instant::now();
    assert!(running.ended().await.is_ok());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    let mut stream = silent.into_inner();
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("nothing outlives it");
}

#[tokio::test]
async fn an_idle_socket_that_pongs_outlives_the_limits() {
    let short = Duration::from_millis(1500);
    let config = Config { header_timeout: short, subscriber_timeout: short, ..Config::default() };
    let running = Running::start(config).await;
    let mut lively = open(&running, "").await;
    let silent = open(&running, "").await;
    next(&mut lively).await;
    let start = Instant::now();
    // Reading answers pings; nothing else comes, because no frames are made.
    let quiet = timeout(short * 2, next(&mut lively)).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert_eq!(ask(&mut lively, r#"["get_chaos"]"#).await["type"], "chaos");
    assert!(start.elapsed() >= short * 2);
    assert_eq!(running.dropped("websocket_silent", 1).await, 1);
    // Read as bytes, because answering the pings would be too late now.
    let mut bytes = Vec::new();
    timeout(PATIENCE, silent.into_inner().read_to_end(&mut bytes)).await.expect("the end").unwrap();
    let code = 1008_u16.to_be_bytes();
    assert!(bytes.windows(4).any(|frame| frame[0] == 0x88 && frame[2..] == code), "a close frame with 1008");
}

#[tokio::test]
async fn messages_are_whole_in_bytes_too() {
    // One that is compressed is one gzip member and nothing after it: browsers take no more.
    let mut running = Running::start(Config::default()).await;
    running.tool_call("echo", 0, 12, Outcome::Ok);
    running.make_frames().await;
    let mut socket = open(&running, "?encoding=gzip").await;
    let Message::Binary(bytes) = next(&mut socket).await else { panic!("not compressed") };
    let mut decoder = flate2::bufread::GzDecoder::new(&*bytes);
    decoder.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(decoder.into_inner(), b"");
}
