//! The chaos engine over HTTP and the WebSocket.

use std::time::{Duration, Instant};

use expect_test::expect;
use futures_util::{SinkExt as _, StreamExt as _};
use mcpscope_core::{Direction, Transport};
use mcpscope_dashboard::Config;
use mcpscope_hub::ChaosToken;
use mcpscope_hub::chaos::{Message, MessageKind};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::{client_async, tungstenite};

use crate::support::{Answer, Observe, PATIENCE, Running};

const MEANT: &str = "Content-Type: application/json\r\nX-Mcpscope-Request: 1\r\n";
const WITH_TOKEN: &str =
    "Content-Type: application/json\r\nX-Mcpscope-Request: 1\r\nAuthorization: Bearer correct horse\r\n";
const EXPERIMENTS: &str = "/api/v1/chaos/experiments";
const LATENCY: &str = r#"{"scenario": "latency_injection", "parameters": {"duration": "60s", "delay": "5ms"}}"#;

/// With one server that clients are connected to, and a token.
async fn with_server() -> Running {
    let config = Config { chaos_token: ChaosToken::new("correct horse"), ..Config::default() };
    let mut running = Running::with(config, Observe::EverythingAndChaos).await;
    running.serves("demo");
    running
}

fn value(answer: &Answer, status: u16) -> Value {
    assert_eq!((answer.status, answer.header("content-type")), (status, Some("application/json")), "{}", answer.body);
    serde_json::from_str(&answer.body).unwrap()
}

async fn get(running: &Running, path: &str) -> Value {
    value(&running.get(path).await, 200)
}

async fn started(running: &Running) -> u64 {
    value(&running.ask("POST", EXPERIMENTS, WITH_TOKEN, LATENCY).await, 202)["id"].as_u64().unwrap()
}

/// The experiment, once it is in this state.
async fn once(running: &Running, id: u64, status: &str) -> Value {
    let reached = async {
        loop {
            let test = get(running, &format!("{EXPERIMENTS}/{id}")).await;
            if test["status"] == status {
                return test;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{id} is not {status}"))
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn the_status_has_the_shape_of_the_interface() {
    let running = with_server().await;
    let mut status = get(&running, "/api/v1/chaos").await;
    let available = status["available_scenarios"].take();
    assert!(available.as_array().unwrap().contains(&"latency_injection".into()), "{available}");
    assert!(status["timestamp"].take().as_u64().unwrap() >= 1_800_000_000_000);
    expect![[r#"
        {
          "active_tests": 0,
          "active_tests_details": [],
          "available_scenarios": null,
          "emergency_stop": false,
          "journal_errors": 0,
          "mode": "manual",
          "rearm_at": null,
          "recent_failures": [],
          "stopped_by": null,
          "timestamp": null,
          "total_history": 0
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&status).unwrap());
    assert_eq!(running.ask("HEAD", "/api/v1/chaos", "", "").await.status, 200);
}

#[tokio::test]
async fn scenarios_say_what_they_are_and_how_they_are_asked_for() {
    let running = with_server().await;
    let scenarios = get(&running, "/api/v1/chaos/scenarios").await;
    let scenarios = scenarios.as_array().unwrap();
    let named = |name: &str| scenarios.iter().find(|scenario| scenario["name"] == name).unwrap();
    let mut stale = named("stale_session").clone();
    stale["parameters"].as_array_mut().unwrap().retain(|parameter| parameter["name"] == "control");
    expect![[r#"
        {
          "applies_to": "HTTP up to 2025-11-25",
          "description": "Answer with 404 as if the session were unknown",
          "duration": 10000,
          "impact": "high",
          "name": "stale_session",
          "parameters": [
            {
              "about": "Share of the connections that is left untouched",
              "default": "0",
              "expected": "a share from 0 to 1",
              "kind": "share",
              "least": 0.0,
              "most": 1.0,
              "name": "control"
            }
          ],
          "recovery_time": 5000
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&stale).unwrap());
    // Every default is in its range, and every range is there for a form to show.
    for parameter in scenarios.iter().flat_map(|scenario| scenario["parameters"].as_array().unwrap()) {
        let kind = parameter["kind"].as_str().unwrap();
        let words = parameter["words"].as_array();
        match kind {
            "choice" => assert!(parameter["default"].is_null() || words.unwrap().contains(&parameter["default"])),
            "text" => assert!(words.is_none()),
            _ => assert!(parameter["least"].as_f64() <= parameter["most"].as_f64(), "{parameter}"),
        }
    }
    let delay = named("latency_injection")["parameters"].as_array().unwrap().iter().find(|one| one["name"] == "delay");
    assert_eq!((&delay.unwrap()["kind"], &delay.unwrap()["most"]), (&"duration".into(), &600_000.into()));
}

#[tokio::test]
async fn an_experiment_is_planned_started_shown_stopped_and_kept() {
    let running = with_server().await;
    let outlook = value(&running.ask("POST", "/api/v1/chaos/plan", MEANT, LATENCY).await, 200);
    assert_eq!(
        keys(&outlook),
        [
            "connection_share",
            "connections",
            "duration",
            "expected_hits",
            "hits",
            "recovery_time",
            "scenario",
            "steady_state",
            "targets"
        ]
    );
    assert_eq!((&outlook["targets"], &outlook["duration"]), (&json!(["demo"]), &60_000.into()));
    assert_eq!(get(&running, "/api/v1/chaos").await["active_tests"], 0, "nothing is started by a plan");

    let answer = running.ask("POST", EXPERIMENTS, WITH_TOKEN, LATENCY).await;
    let id = value(&answer, 202)["id"].as_u64().unwrap();
    let path = format!("{EXPERIMENTS}/{id}");
    assert_eq!(answer.header("location"), Some(&*path));
    let mut test = once(&running, id, "running").await;
    assert_eq!(test["end_time"].as_u64().unwrap() - test["start_time"].as_u64().unwrap(), 60_000);
    for clock in ["start_time", "end_time", "id"] {
        test[clock].take();
    }
    test["details"]["seed"].take();
    expect![[r#"
        {
          "details": {
            "injected": 0,
            "parameters": {
              "delay": "5ms",
              "duration": "60s"
            },
            "seed": null,
            "targets": [
              "demo"
            ]
          },
          "end_time": null,
          "id": null,
          "impact": "low",
          "name": "latency_injection",
          "recovery_time": 1000,
          "start_time": null,
          "status": "running"
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&test).unwrap());
    assert_eq!(get(&running, "/api/v1/chaos").await["active_tests_details"][0]["id"], id);
    let detail = running.get(&format!("{path}?format=html")).await.problem(409);
    assert_eq!(detail, format!("experiment {id} has not ended: there is a report once it has"));

    let stopped = value(&running.ask("DELETE", &path, "X-Mcpscope-Request: 1\r\n", "").await, 200);
    assert_eq!((&stopped["id"], &stopped["name"]), (&id.into(), &"latency_injection".into()));
    let ended = once(&running, id, "aborted").await;
    let report = &ended["details"]["report"];
    assert_eq!((&report["id"], &report["status"]), (&id.into(), &"aborted".into()));
    expect![[r#"
        [
            "after",
            "audit",
            "before",
            "during",
            "end_time",
            "error",
            "id",
            "injection",
            "leak",
            "parameters",
            "recovery",
            "replay",
            "scenario",
            "seed",
            "start_time",
            "started_by",
            "status",
            "steady_state",
            "targets",
            "time_to_detect",
        ]
    "#]]
    .assert_debug_eq(&keys(report));
    for answer in
        [running.get(&format!("{path}?format=html")).await, running.get_with(&path, "Accept: text/html\r\n").await]
    {
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/html; charset=utf-8")));
        assert!(answer.header("content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'")));
        assert!(answer.body.contains(&format!("latency_injection #{id}")), "{}", answer.body);
    }
    let json = running.get_with(&format!("{path}?format=json"), "Accept: text/html\r\n").await;
    assert_eq!(value(&json, 200)["id"], id);
    let again = running.ask("DELETE", &path, "X-Mcpscope-Request: 1\r\n", "").await;
    assert_eq!(again.problem(409), format!("experiment {id} is not running: none is"));

    let second = started(&running).await;
    running.ask("DELETE", &format!("{EXPERIMENTS}/{second}"), MEANT, "{}").await;
    once(&running, second, "aborted").await;
    let ids = async |query: &str| -> Vec<Value> {
        let history = get(&running, &format!("/api/v1/chaos/history{query}")).await;
        history.as_array().unwrap().iter().map(|test| test["id"].clone()).collect()
    };
    assert_eq!(ids("").await, [second, id], "newest first");
    assert_eq!(ids("?limit=1").await, [second]);
    assert_eq!(get(&running, "/api/v1/chaos").await["total_history"], 2);
}

#[tokio::test]
async fn an_emergency_stop_needs_no_token_and_ends_all_until_it_is_armed_again() {
    let running = with_server().await;
    let (first, second) = (started(&running).await, started(&running).await);
    let stopped = value(&running.ask("POST", "/api/v1/chaos/emergency-stop", MEANT, "").await, 200);
    assert_eq!(stopped, json!({"emergency_stop": true}));
    let status = get(&running, "/api/v1/chaos").await;
    assert_eq!((&status["emergency_stop"], &status["stopped_by"]), (&true.into(), &"a person".into()));
    for id in [first, second] {
        once(&running, id, "aborted").await;
    }
    let detail = running.ask("POST", EXPERIMENTS, WITH_TOKEN, LATENCY).await.problem(409);
    assert_eq!(detail, "everything was stopped by a person: expected it to be armed again");
    running.ask("POST", "/api/v1/chaos/rearm", MEANT, "").await.problem(401);
    let armed = value(&running.ask("POST", "/api/v1/chaos/rearm", WITH_TOKEN, "{}").await, 200);
    assert_eq!(armed, json!({"emergency_stop": false}));
    let detail = running.ask("POST", "/api/v1/chaos/rearm", WITH_TOKEN, "{}").await.problem(409);
    assert_eq!(detail, "nothing was stopped: there is nothing to arm again");
    started(&running).await;
}

/// On a runtime whose only thread for work is taken, as it is while something large is made for another reader.
#[test]
fn an_emergency_stop_waits_for_no_work() {
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let running = with_server().await;
        started(&running).await;
        let injector = running.injector.as_ref().unwrap();
        let mut lane = injector.endpoint("demo", Transport::Http, false).connect(None).lane(Direction::ToServer);
        let call = Message { kind: MessageKind::Request, method: Some("tools/call"), tool: None, protocol: None };
        assert_eq!(lane.decide(&call, Instant::now()).len(), 1);
        let (go_on, held) = std::sync::mpsc::channel::<()>();
        let work = tokio::task::spawn_blocking(move || held.recv().is_err());
        value(&running.ask("POST", "/api/v1/chaos/emergency-stop", MEANT, "no JSON at all").await, 200);
        assert_eq!(lane.decide(&call, Instant::now()).len(), 0);
        drop(go_on);
        assert!(work.await.unwrap(), "it was at work all the time");
    });
}

#[tokio::test]
async fn to_start_needs_the_token() {
    let running = with_server().await;
    for (authorization, expected) in [
        ("", "this needs the chaos token"),
        ("Authorization: Bearer battery staple\r\n", "this chaos token is not the right one"),
        ("Authorization: Basic correct horse\r\n", "this chaos token is not the right one"),
        ("Authorization: Bearer correct horse\r\nAuthorization: Bearer x\r\n", "this chaos token is not the right one"),
    ] {
        for path in [EXPERIMENTS, "/api/v1/chaos/rearm"] {
            // Before the body is looked at.
            let answer = running.ask("POST", path, &format!("{MEANT}{authorization}"), "{").await;
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            assert_eq!(answer.problem(401), format!("{expected}: expected the header Authorization: Bearer TOKEN"));
        }
    }
    let nobody = Running::with(Config::default(), Observe::EverythingAndChaos).await;
    nobody.ask("POST", EXPERIMENTS, WITH_TOKEN, LATENCY).await.problem(401);
    nobody.ask("POST", EXPERIMENTS, &format!("{MEANT}Authorization: Bearer \r\n"), LATENCY).await.problem(401);
    let config = Config { chaos_token: ChaosToken::not_needed(), ..Config::default() };
    let mut anybody = Running::with(config, Observe::EverythingAndChaos).await;
    anybody.serves("demo");
    value(&anybody.ask("POST", EXPERIMENTS, MEANT, LATENCY).await, 202);
}

#[tokio::test]
async fn what_changes_something_must_be_meant() {
    let running = with_server().await;
    let id = started(&running).await;
    let one = format!("{EXPERIMENTS}/{id}");
    let all = [
        ("POST", EXPERIMENTS),
        ("POST", "/api/v1/chaos/plan"),
        ("POST", "/api/v1/chaos/emergency-stop"),
        ("POST", "/api/v1/chaos/rearm"),
        ("DELETE", &one),
    ];
    let token = "Authorization: Bearer correct horse\r\n";
    for (method, path) in all {
        for (headers, status) in [
            ("Content-Type: application/json\r\n", 403),
            ("Content-Type: application/json\r\nX-Mcpscope-Request: 0\r\n", 403),
            ("Content-Type: application/json\r\nX-Mcpscope-Request: 1\r\nX-Mcpscope-Request: 1\r\n", 403),
            ("X-Mcpscope-Request: 1\r\n", 415),
            ("X-Mcpscope-Request: 1\r\nContent-Type: text/plain\r\n", 415),
            ("X-Mcpscope-Request: 1\r\nContent-Type: application/json\r\nContent-Type: text/plain\r\n", 415),
            // Foreign pages come no further, whatever else they send.
            ("X-Mcpscope-Request: 1\r\nContent-Type: application/json\r\nOrigin: http://evil.example\r\n", 403),
        ] {
            running.ask(method, path, &format!("{headers}{token}"), LATENCY).await.problem(status);
        }
    }
    let status = get(&running, "/api/v1/chaos").await;
    assert_eq!((&status["active_tests"], &status["emergency_stop"]), (&1.into(), &false.into()), "nothing was done");
    let charset = "Content-Type: Application/JSON; charset=utf-8\r\nX-Mcpscope-Request: 1\r\n";
    value(&running.ask("POST", "/api/v1/chaos/plan", charset, LATENCY).await, 200);
}

#[tokio::test]
async fn mistakes_are_told_with_what_is_right() {
    let running = with_server().await;
    for (body, expected) in [
        ("", "the body is no experiment: EOF while parsing"),
        ("[]", "the body is no experiment: invalid length 0"),
        (r#"{"parameters": {}}"#, "missing field `scenario`"),
        (r#"{"scenario": "hang", "x": 1}"#, "unknown field `x`, expected `scenario` or `parameters`"),
        (r#"{"scenario": "latency"}"#, "there is no scenario `latency`: expected one of latency_injection,"),
        (r#"{"scenario": "packet_loss", "parameters": {"delay": 3}}"#, "packet_loss has no parameter `delay`"),
        (r#"{"scenario": "packet_loss", "parameters": {"intensity": 2}}"#, "expected a share from 0 to 1"),
        (r#"{"scenario": "packet_loss", "parameters": {"duration": "61s"}}"#, "at most 1m"),
    ] {
        for path in [EXPERIMENTS, "/api/v1/chaos/plan"] {
            let detail = running.ask("POST", path, WITH_TOKEN, body).await.problem(400);
            assert!(detail.contains(expected), "{detail}");
        }
    }
    let nowhere = r#"{"scenario": "packet_loss", "parameters": {"server": "other"}}"#;
    let detail = running.ask("POST", EXPERIMENTS, WITH_TOKEN, nowhere).await.problem(409);
    assert!(detail.contains("matches nothing") && detail.contains("demo"), "{detail}");
    let detail = running.ask("POST", EXPERIMENTS, WITH_TOKEN, &" ".repeat((64 << 10) + 1)).await.problem(413);
    assert_eq!(detail, "the body is too large: expected at most 64 KiB");
    for _ in 0..3 {
        started(&running).await;
    }
    let detail = running.ask("POST", EXPERIMENTS, WITH_TOKEN, LATENCY).await.problem(409);
    assert!(detail.contains("expected fewer than 3 (max_concurrent_tests)"), "{detail}");
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_not_there() {
    let running = with_server().await;
    for method in ["GET", "DELETE"] {
        let detail = running.ask(method, &format!("{EXPERIMENTS}/77"), MEANT, "").await.problem(404);
        assert_eq!(detail, "there is no experiment 77: it is unknown, or newer ones took its place");
        let detail = running.ask(method, &format!("{EXPERIMENTS}/first"), MEANT, "").await.problem(400);
        assert_eq!(detail, "\"first\" is no experiment: expected its id, a whole number");
    }
    assert!(running.get("/api/v1/chaos/x").await.problem(404).contains("/emergency-stop"));
    running.get("/api/v1/chaos/history/1").await.problem(404);
    running.get("/api/v1/chaos?x=1").await.problem(400);
    for (method, path, allowed) in [
        ("POST", "/api/v1/chaos", "GET, HEAD"),
        ("GET", "/api/v1/chaos/plan", "POST"),
        ("GET", EXPERIMENTS, "POST"),
        ("HEAD", "/api/v1/chaos/emergency-stop", "POST"),
        ("PUT", "/api/v1/chaos/experiments/1", "GET, HEAD, DELETE"),
    ] {
        let answer = running.ask(method, path, WITH_TOKEN, "").await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allowed)), "{method} {path}");
    }
}

#[tokio::test]
async fn without_an_engine_chaos_is_off() {
    let running = Running::start(Config::default()).await;
    for (method, path) in [
        ("GET", "/api/v1/chaos"),
        ("GET", "/api/v1/chaos/scenarios"),
        ("GET", "/api/v1/chaos/history"),
        ("GET", "/api/v1/chaos/experiments/1"),
        ("DELETE", "/api/v1/chaos/experiments/1"),
        ("POST", "/api/v1/chaos/plan"),
        ("POST", EXPERIMENTS),
        ("POST", "/api/v1/chaos/emergency-stop"),
        ("POST", "/api/v1/chaos/rearm"),
    ] {
        assert_eq!(running.ask(method, path, MEANT, LATENCY).await.problem(404), "chaos is switched off");
    }
}

#[tokio::test]
async fn a_socket_is_asked_and_told() {
    let mut running = with_server().await;
    let stream = TcpStream::connect(running.addr).await.unwrap();
    let mut socket = client_async(format!("ws://{}/ws", running.addr), stream).await.unwrap().0;
    let id = started(&running).await;
    let mut statuses = Vec::new();
    let next = async |socket: &mut tokio_tungstenite::WebSocketStream<TcpStream>| -> Value {
        loop {
            match timeout(PATIENCE, socket.next()).await.expect("a message in time").unwrap().unwrap() {
                tungstenite::Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                other => assert!(other.is_ping(), "{other:?}"),
            }
        }
    };
    while statuses.len() < 2 {
        let message = next(&mut socket).await;
        let data = &message["data"];
        if message["type"] == "event" && data["kind"] == "chaos" {
            assert_eq!(keys(data), ["event", "id", "kind", "scenario", "sequence", "status", "timestamp"]);
            assert_eq!((&data["event"], &data["id"]), (&"changed".into(), &id.into()));
            assert!(data["timestamp"].as_u64().unwrap() >= 1_800_000_000_000);
            statuses.push(data["status"].clone());
        }
    }
    assert_eq!(statuses, ["planned", "running"]);
    // As of now; the newest frame is from before the start.
    socket.send(tungstenite::Message::text(r#"["get_chaos"]"#)).await.unwrap();
    let reply = loop {
        let message = next(&mut socket).await;
        if message["type"] == "chaos" {
            break message;
        }
    };
    assert_eq!(reply["data"]["active_tests_details"][0]["id"], id);
    assert_eq!(get(&running, "/api/v1/dashboard").await["chaos_status"], Value::Null, "before the first tick");
    running.make_frames().await;
    let framed = get(&running, "/api/v1/dashboard").await;
    assert_eq!(keys(&framed["chaos_status"]), keys(&reply["data"]));
    running.ask("POST", "/api/v1/chaos/emergency-stop", MEANT, "").await;
    loop {
        let message = next(&mut socket).await;
        if message["type"] == "event" && message["data"]["event"] == "emergency_stop" {
            assert_eq!(message["data"]["cause"], "person");
            break;
        }
    }
}

#[tokio::test]
async fn a_connection_goes_on_after_a_post_that_was_refused_unread() {
    let running = with_server().await;
    let mut stream = TcpStream::connect(running.addr).await.unwrap();
    // More than is read at once.
    let body = " ".repeat(60 << 10);
    for (path, headers, status) in [
        (EXPERIMENTS, MEANT, "401"),
        (EXPERIMENTS, "", "403"),
        ("/api/v1/chaos/nothing", MEANT, "404"),
        ("/api/v1/chaos/history", MEANT, "405"),
        ("/api/v1/chaos/emergency-stop", MEANT, "200"),
    ] {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        let answer = head_of(&mut stream).await;
        assert!(answer.starts_with(&format!("http/1.1 {status}")) && !answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn a_body_that_nobody_waits_for_ends_its_connection_with_a_word() {
    let running = with_server().await;
    // One that does not come, one that is too much, one that cannot be.
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 10, "x".repeat(1 << 10));
    for rest in
        ["Content-Length: 10\r\n\r\n".to_owned(), format!("Transfer-Encoding: chunked\r\n\r\n{}", chunk.repeat(65))]
    {
        let mut stream = TcpStream::connect(running.addr).await.unwrap();
        let head = format!("POST {EXPERIMENTS} HTTP/1.1\r\nHost: localhost\r\n{MEANT}{rest}");
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = head_of(&mut stream).await;
        assert!(answer.starts_with("http/1.1 401") && answer.contains("connection: close"), "{answer}");
    }
}

/// The head of the next answer, in lower case; its body is read.
async fn head_of(stream: &mut TcpStream) -> String {
    let mut read = async |until: &dyn Fn(&[u8]) -> bool| {
        let mut bytes = Vec::new();
        while !until(&bytes) {
            bytes.push(timeout(PATIENCE, stream.read_u8()).await.expect("an answer in time").expect("an answer"));
        }
        bytes
    };
    let head = read(&|bytes| bytes.ends_with(b"\r\n\r\n")).await;
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let length: usize = length.parse().unwrap();
    read(&|bytes| bytes.len() == length).await;
    head
}
