//! What the faults of the protocol, and partitions, do over HTTP.

use std::time::{Duration, Instant};

use mcpscope_core::FaultId;
use mcpscope_test_support::{Message, Wire, WireWriter, eventually, http};
use serde_json::{Value, json};

use crate::faults::Faulty;
use crate::sessions::{INITIALIZE, INITIALIZED};
use crate::{Events, JSON, call, event, json, post, result};

const MODERN: (&str, &str) = ("MCP-Protocol-Version", "2026-07-28");
const LEGACY: (&str, &str) = ("MCP-Protocol-Version", "2025-11-25");

/// What the client is answered that asks for a tool on a connection of its own; the server sees nothing.
async fn answered(stage: &Faulty, revision: (&str, &str)) -> Message {
    let mut client = stage.proxy.connect().await;
    let answer = client.exchange(&post(&[revision], &call(1, "echo"))).await.unwrap();
    // The connection is still good.
    let next = client.exchange(&post(&[revision], &call(1, "echo"))).await.unwrap();
    assert_eq!((next.head.status(), &next.body), (answer.head.status(), &answer.body));
    stage.upstream.expect_no_more().await;
    answer
}

fn body(message: &Message) -> Value {
    serde_json::from_slice(&message.body).unwrap()
}

#[tokio::test]
async fn answers_that_are_made_up_come_in_place_of_the_servers() {
    let check = async |scenario: &str, parameters: &[&str], revision, status: u16, pointer: &str, value: Value| {
        let (stage, fault) = Faulty::with(scenario, parameters).await;
        let answer = answered(&stage, revision).await;
        assert_eq!(answer.head.status(), status, "{scenario}");
        assert_eq!((&body(&answer)["id"], body(&answer).pointer(pointer)), (&json!(1), Some(&value)), "{scenario}");
        assert_eq!(stage.chaos.stop(fault).await, (2, 2), "{scenario}");
        answer
    };
    check("rpc_error", &["code=-31007"], LEGACY, 200, "/error/code", json!(-31007)).await;
    check("tool_error", &[], LEGACY, 200, "/result/isError", json!(true)).await;
    check("input_required_loop", &[], MODERN, 200, "/result/resultType", json!("input_required")).await;
    check("version_reject", &[], MODERN, 400, "/error/code", json!(-32022)).await;
    check("version_reject", &[], MODERN, 400, "/error/data/requested", json!("2026-07-28")).await;
    let denied = check("http_status", &["status=401"], LEGACY, 401, "/error/code", json!(-31000)).await;
    assert_eq!(denied.head.value("www-authenticate").as_deref(), Some("Bearer error=\"invalid_token\""));
    let busy = ["status=429", "retry_after=1500ms"];
    let answer = check("http_status", &busy, MODERN, 429, "/error/code", json!(-31000)).await;
    assert_eq!(answer.head.value("retry-after").as_deref(), Some("2"));
}

/// Opens a session of this name on a connection of its own; returns that and the server's.
async fn session(stage: &Faulty, name: &str) -> (Wire, Wire) {
    let (mut client, mut server) = stage.asked(INITIALIZE).await;
    server.write(&json(&[("Mcp-Session-Id", name)], INITIALIZED)).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 200);
    (client, server)
}

#[tokio::test]
async fn a_session_that_was_there_is_stale_and_a_new_one_is_not() {
    let stage = Faulty::new().await;
    let (mut client, _server) = session(&stage, "old").await;
    let fault = stage.chaos.start("stale_session", &[]);
    let answer = r#"{"jsonrpc":"2.0","id":9,"result":{}}"#;
    for message in [&*call(1, "echo"), &*note("notifications/initialized"), answer] {
        let stale = client.exchange(&post(&[("Mcp-Session-Id", "old")], message)).await.unwrap();
        assert_eq!((stale.head.status(), &body(&stale)["error"]["code"]), (404, &json!(-31000)), "{message}");
    }
    let (mut client, mut server) = session(&stage, "new").await;
    client.write(&post(&[("Mcp-Session-Id", "new")], &call(1, "echo"))).await.unwrap();
    server.reader.message().await.unwrap().unwrap();
    server.write(&json(&[], &result(1))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
    assert_eq!(stage.chaos.stop(fault).await, (3, 3));
}

#[tokio::test]
async fn a_made_up_answer_comes_on_the_stream_where_the_client_looks_for_it_there() {
    const ENDPOINT: &str = "/messages?s=1";
    let stage = Faulty::new().await;
    let mut client = stage.proxy.connect().await;
    client.write(&http::request("GET", "/sse", &[], b"")).await.unwrap();
    let mut server = stage.upstream.accept().await;
    server.reader.message().await.unwrap().unwrap();
    let announced = format!("event: endpoint\ndata: {ENDPOINT}\n\n");
    server.write(&[http::stream_head("200 OK", &[]), http::chunk(announced.as_bytes())].concat()).await.unwrap();
    let (_, mut events) = Events::open(client.reader).await;
    assert_eq!(events.next().await.unwrap(), Some(announced));
    // An error of JSON-RPC is a message; a status is none, and belongs to the request that was posted.
    let errors = stage.chaos.start("rpc_error", &["tool=rpc"]);
    let statuses = stage.chaos.start("http_status", &["tool=http"]);
    let ask = async |id, tool| {
        let request = http::request("POST", ENDPOINT, &[JSON, LEGACY], call(id, tool).as_bytes());
        stage.proxy.connect().await.exchange(&request).await.unwrap()
    };
    for id in 1..3 {
        let accepted = ask(id, "rpc").await;
        assert_eq!((accepted.head.status(), &*accepted.body), (202, &b""[..]));
        let told = events.next().await.unwrap().unwrap();
        let told = told.strip_prefix("event: message\ndata: ").unwrap();
        let told: Value = serde_json::from_str(told).unwrap();
        assert_eq!((&told["id"], &told["error"]["code"]), (&json!(id), &json!(-31000)));
        // The stream goes on with what the server sends.
        server.write(&event(&note("n/a"))).await.unwrap();
        events.expect(&note("n/a")).await;
    }
    let refused = ask(3, "http").await;
    assert_eq!((refused.head.status(), &body(&refused)["id"]), (503, &json!(3)));
    assert_eq!((stage.chaos.stop(errors).await, stage.chaos.stop(statuses).await), ((2, 2), (1, 1)));
    server.write(http::LAST_CHUNK).await.unwrap();
    assert_eq!(events.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_made_up_answer_is_an_injected_outcome() {
    let (stage, _) = Faulty::with("http_status", &["status=503"]).await;
    answered(&stage, LEGACY).await;
    let failed =
        "mcpscope_tool_call_duration_seconds_count{server=\"s\",tool=\"echo\",outcome=\"error\",injected=\"true\"}";
    stage.bench.becomes(failed, 2).await;
}

/// What the client gets of this answer while the fault is active.
async fn changed(scenario: &str, parameters: &[&str], answer: &str) -> Vec<u8> {
    let (stage, fault) = Faulty::with(scenario, parameters).await;
    let (mut client, mut server) = stage.asked(&call(1, "echo")).await;
    server.write(&json(&[], answer)).await.unwrap();
    let got = client.reader.message().await.unwrap().unwrap();
    assert_eq!(stage.chaos.stop(fault).await, (1, 1), "{scenario}");
    // Its length was told as it is by now: the connection is still good.
    client.write(&post(&[], &call(2, "echo"))).await.unwrap();
    server.reader.message().await.unwrap().unwrap();
    server.write(&json(&[], &result(2))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(2).as_bytes());
    got.body
}

#[tokio::test]
async fn answers_are_changed_as_the_names_of_the_faults_say() {
    let answer = r#"{"jsonrpc":"2.0","id":1,"result":{"structuredContent":{"n":1}}}"#;
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes);
    let id = read(&changed("wrong_id", &[], answer).await).unwrap()["id"].clone();
    assert!(id.is_u64() && id != 1, "{id}");
    assert!(read(&changed("malformed_json", &[], answer).await).is_err());
    let half = changed("truncated", &["keep=0.5"], answer).await;
    assert_eq!(half, &answer.as_bytes()[..answer.len() / 2]);
    let large = changed("oversize", &["bytes=100KiB"], answer).await;
    assert!(large.len() == 100 << 10 && read(&large).unwrap()["id"] == 1);
    let wrong = changed("schema_violation", &[], answer).await;
    assert!(read(&wrong).unwrap()["result"]["structuredContent"]["n"].is_string());
    let began = Instant::now();
    assert_eq!(changed("slow_stream", &["bytes_per_second=200"], answer).await, answer.as_bytes());
    assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
}

#[tokio::test]
async fn headers_are_made_to_contradict_the_body() {
    let (stage, fault) = Faulty::with("header_mismatch", &[]).await;
    let mut client = stage.proxy.connect().await;
    client.write(&post(&[MODERN, ("Mcp-Method", "tools/call")], &call(1, "echo"))).await.unwrap();
    let mut server = stage.upstream.accept().await;
    let seen = server.reader.message().await.unwrap().unwrap();
    assert_eq!(seen.body, call(1, "echo").as_bytes());
    assert_ne!(seen.head.value("mcp-method").as_deref(), Some("tools/call"));
    assert_eq!(stage.chaos.stop(fault).await, (1, 1));
}

/// A stream under way, as client and server have it, and what else the client has.
async fn streaming(stage: &Faulty) -> (Events, Wire, WireWriter) {
    let (client, mut server) = stage.asked(&call(1, "echo")).await;
    server.write(&http::stream_head("200 OK", &[])).await.unwrap();
    let Wire { reader, writer, .. } = client;
    (Events::open(reader).await.1, server, writer)
}

fn note(name: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"{name}"}}"#)
}

#[tokio::test]
async fn a_delayed_event_lets_others_pass_unless_they_are_to_keep_their_order() {
    for (order, expected) in [("preserve", ["slow", "a", "b"]), ("independent", ["a", "b", "slow"])] {
        let order = format!("order={order}");
        let late = ["delay=300ms", "method=slow", "direction=to_client", &order];
        let (stage, fault) = Faulty::with("latency_injection", &late).await;
        let (mut events, mut server, _open) = streaming(&stage).await;
        // Each when the one before has been read.
        for name in ["slow", "a", "b"] {
            server.write(&event(&note(name))).await.unwrap();
        }
        for name in expected {
            events.expect(&note(name)).await;
        }
        server.write(http::LAST_CHUNK).await.unwrap();
        assert_eq!(events.next().await.unwrap(), None);
        assert_eq!(stage.chaos.stop(fault).await, (1, 1));
    }
}

#[tokio::test]
async fn an_emergency_stop_lets_go_of_all_that_is_delayed_at_once_and_in_order() {
    let late = ["min=5m", "max=10m", "direction=to_client", "order=independent"];
    let (stage, fault) = Faulty::with("latency_injection", &late).await;
    let (mut events, mut server, _open) = streaming(&stage).await;
    let names: Vec<_> = (0..50).map(|number| note(&format!("n/{number}"))).collect();
    for name in &names {
        server.write(&event(name)).await.unwrap();
    }
    hits(&stage, fault, 50).await;
    stage.chaos.controller.emergency_stop(mcpscope_chaos::Cause::Person, Instant::now());
    for name in &names {
        events.expect(name).await;
    }
}

async fn hits(stage: &Faulty, fault: FaultId, count: u64) {
    eventually(|| {
        let hits = stage.chaos.controller.experiment(fault.0, Instant::now()).unwrap().details.injected;
        if hits == count { Ok(()) } else { Err(hits) }
    })
    .await;
}

#[tokio::test]
async fn a_stream_breaks_in_the_place_of_a_message() {
    let (stage, fault) = Faulty::with("stream_break", &["method=b"]).await;
    let (mut events, mut server, _open) = streaming(&stage).await;
    server.write(&[event(&note("a")), event(&note("b")), event(&note("c"))].concat()).await.unwrap();
    events.expect(&note("a")).await;
    let end = events.next().await;
    assert!(end.is_err(), "it is no end as it should be: {end:?}");
    assert_eq!(stage.chaos.stop(fault).await, (1, 1));
}

#[tokio::test]
async fn an_event_arrives_twice() {
    let (stage, fault) = Faulty::with("duplicate_response", &[]).await;
    let (mut events, mut server, _open) = streaming(&stage).await;
    server.write(&[event(&result(1)), http::LAST_CHUNK.to_vec()].concat()).await.unwrap();
    events.expect(&result(1)).await;
    events.expect(&result(1)).await;
    assert_eq!(events.next().await.unwrap(), None);
    assert_eq!(stage.chaos.stop(fault).await, (1, 1));
}

#[tokio::test]
async fn an_answer_that_hangs_comes_when_the_fault_is_over() {
    let (stage, fault) = Faulty::with("hang", &[]).await;
    let (mut client, mut server) = stage.asked(&call(1, "echo")).await;
    server.write(&json(&[], &result(1))).await.unwrap();
    hits(&stage, fault, 1).await;
    assert_eq!(stage.chaos.stop(fault).await, (1, 1));
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
}

#[tokio::test]
async fn a_lost_answer_hangs_until_its_client_gives_up() {
    let (stage, fault) = Faulty::with("lost_response", &[]).await;
    let (client, mut server) = stage.asked(&call(1, "echo")).await;
    server.write(&json(&[], &result(1))).await.unwrap();
    hits(&stage, fault, 1).await;
    drop(client);
    let cancelled =
        "mcpscope_tool_call_duration_seconds_count{server=\"s\",tool=\"echo\",outcome=\"cancelled\",injected=\"true\"}";
    stage.bench.becomes(cancelled, 1).await;
    assert_eq!(stage.chaos.stop(fault).await, (1, 1));
}

#[tokio::test]
async fn a_silent_partition_carries_nothing_until_it_heals() {
    let (stage, fault) = Faulty::with("network_partition", &["intensity=1"]).await;
    let mut client = stage.proxy.connect().await;
    client.write(&post(&[], &call(1, "echo"))).await.unwrap();
    hits(&stage, fault, 1).await;
    assert_eq!(stage.chaos.stop(fault).await, (1, 1));
    let mut server = stage.upstream.accept().await;
    assert_eq!(server.reader.message().await.unwrap().unwrap().body, call(1, "echo").as_bytes());
    server.write(&json(&[], &result(1))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
}

#[tokio::test]
async fn new_connections_are_refused_and_those_that_are_there_hang() {
    let stage = Faulty::new().await;
    let (mut old, mut server) = stage.asked(&call(1, "echo")).await;
    let fault = stage.chaos.start("network_partition", &["intensity=1", "mode=refuse_new"]);
    let mut new = stage.proxy.connect().await;
    let _ = new.write(&post(&[], &call(2, "echo"))).await;
    assert!(new.reader.message().await.is_err(), "it is reset");
    server.write(&json(&[], &result(1))).await.unwrap();
    hits(&stage, fault, 2).await;
    stage.chaos.stop(fault).await;
    assert_eq!(old.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
}

#[tokio::test]
async fn connections_are_reset_on_both_sides() {
    let stage = Faulty::new().await;
    let (mut client, mut server) = stage.asked(&call(1, "echo")).await;
    let fault = stage.chaos.start("network_partition", &["intensity=1", "mode=reset"]);
    assert!(client.reader.message().await.is_err());
    assert!(server.reader.message().await.is_err());
    let (injected, observed) = stage.chaos.stop(fault).await;
    assert_eq!((injected, observed), (1, 1));
}

#[tokio::test]
async fn half_open_is_closed_to_the_server_and_open_to_the_client() {
    let stage = Faulty::new().await;
    let (mut client, server) = stage.asked(&call(1, "echo")).await;
    let fault = stage.chaos.start("network_partition", &["intensity=1", "mode=half_open"]);
    assert_eq!(server.reader.closed().await.unwrap(), b"");
    let open = tokio::time::timeout(Duration::from_millis(200), client.reader.message()).await;
    assert!(open.is_err(), "nothing comes, and no end: {open:?}");
    assert_eq!(stage.chaos.stop(fault).await, (1, 1));
    assert!(!matches!(client.reader.message().await, Ok(Some(_))), "of use to nobody any more");
}
