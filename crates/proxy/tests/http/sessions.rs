//! Sessions of every revision, from their beginning to their end, and what is matched in them.

use mcpscope_core::{Direction, Transport};
use mcpscope_metrics::desc;
use mcpscope_test_support::{Wire, WireWriter, http};

use crate::common::{connections, dropped, ended, errors, operations, sessions, tool_calls, way};
use crate::{Events, Stage, call, event, json, post, result};

const SESSION: (&str, &str) = ("Mcp-Session-Id", "abc");

pub(crate) const INITIALIZE: &str =
    r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#;
pub(crate) const INITIALIZED: &str = r#"{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-06-18"}}"#;

/// A session `abc` of 2025-06-18.
async fn opened() -> Stage {
    let stage = Stage::new().await;
    let answer = stage.exchange(&post(&[], INITIALIZE), &json(&[SESSION], INITIALIZED)).await;
    assert_eq!(answer.head.value("mcp-session-id").unwrap(), "abc");
    stage.bench.becomes(&sessions("2025-06-18"), 1).await;
    stage
}

#[tokio::test]
async fn a_session_lasts_from_initialize_to_delete() {
    let stage = opened().await;
    let created = "mcpscope_session_creation_seconds_count{server=\"s\",protocol=\"2025-06-18\"}";
    assert_eq!(stage.bench.value(created), 1);
    let accepted = http::answer("202 Accepted", &[], b"");
    stage.exchange(&post(&[SESSION], r#"{"method":"notifications/initialized"}"#), &accepted).await;
    stage.exchange(&post(&[SESSION], &call(1, "echo")), &json(&[], &result(1))).await;
    stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
    assert_eq!(stage.bench.value(&sessions("2025-06-18")), 1);
    let delete = http::request("DELETE", "/mcp", &[SESSION], b"");
    stage.exchange(&delete, &http::answer("204 No Content", &[], b"")).await;
    stage.bench.becomes(&sessions("2025-06-18"), 0).await;
    assert_eq!(stage.bench.value(&operations("session_manager")), 2, "created and destroyed");
    stage.bench.records(&desc::SERVER_SESSIONS, &ended("2025-06-18", "tcp", ""), 1).await;
    assert_eq!(stage.bench.sessions_ended(), 1);
    for (direction, messages) in [(Direction::ToServer, 3), (Direction::ToClient, 2)] {
        stage.bench.records(&desc::PROXY_OVERHEAD, &way(direction), messages).await;
    }
}

#[tokio::test]
async fn the_traces_of_a_session_begin_with_the_call_that_opened_it() {
    let stage = opened().await;
    stage.exchange(&post(&[SESSION], &call(1, "echo")), &json(&[], &result(1))).await;
    stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
    let filter = mcpscope_tracing::Filter { session: Some("abc".into()), ..Default::default() };
    let traces = stage.bench.tracer.traces(&filter);
    assert_eq!(traces.iter().rev().map(|trace| &*trace.method).collect::<Vec<_>>(), ["initialize", "tools/call"]);
}

#[tokio::test]
async fn the_first_call_that_shows_a_session_belongs_to_it() {
    let stage = Stage::new().await;
    stage.exchange(&post(&[SESSION], &call(1, "echo")), &json(&[], &result(1))).await;
    stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
    let traces = stage.bench.tracer.traces(&mcpscope_tracing::Filter::default());
    assert_eq!(traces[0].session.as_deref(), Some("abc"));
}

#[tokio::test]
async fn a_delete_that_the_server_refuses_ends_nothing() {
    let stage = opened().await;
    let delete = http::request("DELETE", "/mcp", &[SESSION], b"");
    let answer = stage.exchange(&delete, &http::answer("405 Method Not Allowed", &[], b"")).await;
    assert_eq!(answer.head.status(), 405);
    // Still the same session: another one would be adopted under the default revision.
    stage.exchange(&post(&[SESSION], &call(1, "echo")), &json(&[], &result(1))).await;
    stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
    assert_eq!(stage.bench.value(&sessions("2025-06-18")), 1);
    assert_eq!(stage.bench.value(&sessions("2025-03-26")), 0);
}

#[tokio::test]
async fn a_deleted_session_has_ended_though_its_stream_is_still_open() {
    let stage = opened().await;
    let (client, mut server, _) = stage.asked(&http::request("GET", "/mcp", &[SESSION], b"")).await;
    server.write(&http::stream_head("200 OK", &[])).await.unwrap();
    let (_, mut events) = Events::open(client.reader).await;
    stage.exchange(&post(&[SESSION], &call(1, "late")), &http::answer("202 Accepted", &[], b"")).await;
    let delete = http::request("DELETE", "/mcp", &[SESSION], b"");
    stage.exchange(&delete, &http::answer("200 OK", &[], b"")).await;
    stage.bench.becomes(&sessions("2025-06-18"), 0).await;
    stage.bench.becomes(&tool_calls("late", "timeout"), 1).await;
    server.write(&event("{}")).await.unwrap();
    events.expect("{}").await;
}

#[tokio::test]
async fn a_session_that_the_server_does_not_know_any_more_has_ended() {
    let stage = opened().await;
    let gone = http::answer("404 Not Found", &[("Content-Type", "application/json")], b"{\"error\":\"gone\"}");
    assert_eq!(stage.exchange(&post(&[SESSION], &call(1, "echo")), &gone).await.head.status(), 404);
    stage.bench.becomes(&sessions("2025-06-18"), 0).await;
    stage.bench.records(&desc::SERVER_SESSIONS, &ended("2025-06-18", "tcp", ""), 1).await;
    stage.bench.becomes(&tool_calls("echo", "caller_error"), 1).await;
}

#[tokio::test]
async fn a_session_without_an_answer_to_initialize_is_none() {
    let stage = Stage::new().await;
    let error = r#"{"jsonrpc":"2.0","id":0,"error":{"code":-32602,"message":"no"}}"#;
    stage.exchange(&post(&[], INITIALIZE), &json(&[SESSION], error)).await;
    stage.bench.becomes(&operations("session_manager"), 1).await;
    assert_eq!(stage.bench.value(&sessions("2025-11-25")), 0);
}

#[tokio::test]
async fn a_session_opened_before_mcpscope_came_is_adopted() {
    let stage = Stage::new().await;
    let headers = [SESSION, ("MCP-Protocol-Version", "2025-06-18")];
    stage.exchange(&post(&headers, &call(1, "echo")), &json(&[], &result(1))).await;
    stage.bench.becomes(&sessions("2025-06-18"), 1).await;
    stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
    // The header came with 2025-06-18.
    stage.exchange(&post(&[("Mcp-Session-Id", "old")], &call(1, "echo")), &json(&[], &result(1))).await;
    stage.bench.becomes(&sessions("2025-03-26"), 1).await;
    // One that the server does not know is none.
    let gone = http::answer("404 Not Found", &[], b"");
    stage.exchange(&post(&[("Mcp-Session-Id", "never")], &call(1, "x")), &gone).await;
    stage.bench.becomes(&tool_calls("x", "caller_error"), 1).await;
    assert_eq!(stage.bench.value(&sessions("2025-03-26")), 1);
}

#[tokio::test]
async fn a_session_found_by_two_requests_at_once_is_adopted_once() {
    let stage = Stage::new().await;
    let (client, mut server, _) = stage.asked(&http::request("GET", "/mcp", &[SESSION], b"")).await;
    let (mut caller, mut called, _) = stage.asked(&post(&[SESSION], &call(1, "echo"))).await;
    server.write(&http::stream_head("200 OK", &[])).await.unwrap();
    let (_, mut events) = Events::open(client.reader).await;
    called.write(&json(&[], &result(1))).await.unwrap();
    assert_eq!(caller.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
    stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
    assert_eq!(stage.bench.value(&sessions("2025-03-26")), 1);
    let delete = http::request("DELETE", "/mcp", &[SESSION], b"");
    stage.exchange(&delete, &http::answer("200 OK", &[], b"")).await;
    stage.bench.becomes(&sessions("2025-03-26"), 0).await;
    server.write(&event("{}")).await.unwrap();
    events.expect("{}").await;
    assert_eq!(stage.bench.sessions_ended(), 0, "nobody saw when it began");
}

#[tokio::test]
async fn an_answer_on_another_stream_of_the_session_is_matched() {
    let stage = opened().await;
    let (client, mut server, _) = stage.asked(&http::request("GET", "/mcp", &[SESSION], b"")).await;
    server.write(&http::stream_head("200 OK", &[])).await.unwrap();
    let (_, mut events) = Events::open(client.reader).await;
    // The stream of the call ends before its answer.
    let empty = [http::stream_head("200 OK", &[]), http::LAST_CHUNK.to_vec()].concat();
    stage.exchange(&post(&[SESSION], &call(1, "echo")), &empty).await;
    server.write(&event(&result(1))).await.unwrap();
    events.expect(&result(1)).await;
    assert_eq!(stage.bench.value(&tool_calls("echo", "ok")), 1);
    assert_eq!(stage.bench.value(&errors("tools", "connection_lost")), 0);
}

#[tokio::test]
async fn a_request_of_the_server_is_answered_by_a_post() {
    let stage = opened().await;
    let before = stage.bench.value(&operations("json_rpc"));
    let (client, mut server, _) = stage.asked(&post(&[SESSION], &call(1, "ask"))).await;
    server.write(&http::stream_head("200 OK", &[])).await.unwrap();
    let asks = r#"{"jsonrpc":"2.0","id":1,"method":"elicitation/create","params":{}}"#;
    server.write(&event(asks)).await.unwrap();
    let (_, mut events) = Events::open(client.reader).await;
    events.expect(asks).await;
    // The same id as the client's own call, in the other direction.
    stage.exchange(&post(&[SESSION], &result(1)), &http::answer("202 Accepted", &[], b"")).await;
    stage.bench.becomes(&operations("json_rpc"), before + 1).await;
    assert_eq!(stage.bench.value(&tool_calls("ask", "ok")), 0);
    server.write(&event(&result(1))).await.unwrap();
    events.expect(&result(1)).await;
    assert_eq!(stage.bench.value(&tool_calls("ask", "ok")), 1);
    assert_eq!(stage.bench.value(&dropped("unmatched_response")), 0);
}

#[tokio::test]
async fn a_client_of_a_session_may_leave_and_come_back_for_its_answer() {
    let stage = opened().await;
    let (client, mut server, _) = stage.asked(&post(&[SESSION], &call(1, "echo"))).await;
    server.write(&http::stream_head("200 OK", &[])).await.unwrap();
    server.write(&http::chunk(b"id: 7\ndata:\n\n")).await.unwrap();
    let (_, mut events) = Events::open(client.reader).await;
    assert_eq!(events.next().await.unwrap().as_deref(), Some("id: 7\ndata:\n\n"));
    drop((events, client.writer));
    assert_eq!(server.reader.closed().await.unwrap(), b"");
    let resume = http::request("GET", "/mcp", &[SESSION, ("Last-Event-ID", "7")], b"");
    let rest = [http::stream_head("200 OK", &[]), event(&result(1)), http::LAST_CHUNK.to_vec()].concat();
    stage.exchange(&resume, &rest).await;
    stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
    assert_eq!(stage.bench.value(&tool_calls("echo", "cancelled")), 0);
}

pub(crate) const ENDPOINT: &str = "/messages/?session_id=5f";

/// Opens a session of the HTTP+SSE transport; returns the client's stream, the server's end of it, and what has to live
/// as long as the client does.
pub(crate) async fn http_sse(stage: &Stage, endpoint: &str) -> (Events, Wire, WireWriter) {
    let (client, mut server, _) = stage.asked(&http::request("GET", "/sse", &[], b"")).await;
    server.write(&http::stream_head("200 OK", &[])).await.unwrap();
    let announced = format!("event: endpoint\r\ndata: {endpoint}\r\n\r\n");
    server.write(&http::chunk(announced.as_bytes())).await.unwrap();
    let (_, mut events) = Events::open(client.reader).await;
    while events.pending.len() < announced.len() {
        let part = events.body.part(&mut events.from).await.unwrap().unwrap();
        events.pending.extend_from_slice(&part);
    }
    assert_eq!(events.pending, announced.as_bytes());
    events.pending.clear();
    (events, server, client.writer)
}

pub(crate) async fn post_to(stage: &Stage, target: &str, body: &str) {
    let request = http::request("POST", target, &[crate::JSON], body.as_bytes());
    let answer = stage.exchange(&request, &http::answer("202 Accepted", &[], b"Accepted")).await;
    assert_eq!(answer.head.status(), 202);
}

#[tokio::test]
async fn http_with_sse_of_2024_is_a_session_as_long_as_its_stream() {
    let ways = [ENDPOINT.to_owned(), format!("http://localhost:1{ENDPOINT}"), ENDPOINT.replacen('/', "", 1)];
    for endpoint in ways {
        let stage = Stage::new().await;
        let (mut events, mut server, _writer) = http_sse(&stage, &endpoint).await;
        post_to(&stage, ENDPOINT, &INITIALIZE.replace("2025-11-25", "2024-11-05")).await;
        let initialized = INITIALIZED.replace("2025-06-18", "2024-11-05");
        server.write(&event(&initialized)).await.unwrap();
        events.expect(&initialized).await;
        assert_eq!(stage.bench.value(&sessions("2024-11-05")), 1);
        post_to(&stage, ENDPOINT, &call(1, "echo")).await;
        server.write(&event(&result(1))).await.unwrap();
        events.expect(&result(1)).await;
        assert_eq!(stage.bench.value(&tool_calls("echo", "ok")), 1);
        post_to(&stage, ENDPOINT, &call(2, "late")).await;
        server.write(http::LAST_CHUNK).await.unwrap();
        assert_eq!(events.next().await.unwrap(), None);
        stage.bench.becomes(&sessions("2024-11-05"), 0).await;
        stage.bench.records(&desc::SERVER_SESSIONS, &ended("2024-11-05", "tcp", ""), 1).await;
        stage.bench.becomes(&tool_calls("late", "timeout"), 1).await;
        assert_eq!(stage.bench.value(&errors("transport", "invalid_message")), 0);
        assert_eq!(stage.bench.value(&dropped("unmatched_response")), 0);
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_takes_its_session_with_it() {
    let stage = Stage::new().await;
    let (mut events, mut server, _writer) = http_sse(&stage, ENDPOINT).await;
    post_to(&stage, ENDPOINT, &INITIALIZE.replace("2025-11-25", "2024-11-05")).await;
    let initialized = INITIALIZED.replace("2025-06-18", "2024-11-05");
    server.write(&event(&initialized)).await.unwrap();
    events.expect(&initialized).await;
    drop(server);
    stage.bench.records(&desc::SERVER_SESSIONS, &ended("2024-11-05", "tcp", "connection_lost"), 1).await;
    assert_eq!((stage.bench.value(&sessions("2024-11-05")), stage.bench.sessions_ended()), (0, 1));
}

#[tokio::test]
async fn sessions_of_http_with_sse_are_told_apart() {
    let stage = Stage::new().await;
    let (mut one, mut server_of_one, _writer_of_one) = http_sse(&stage, "/m?s=1").await;
    let (mut two, mut server_of_two, _writer_of_two) = http_sse(&stage, "/m?s=2").await;
    post_to(&stage, "/m?s=1", &call(1, "one")).await;
    post_to(&stage, "/m?s=2", &call(1, "two")).await;
    server_of_two.write(&event(&result(1))).await.unwrap();
    two.expect(&result(1)).await;
    assert_eq!((stage.bench.value(&tool_calls("one", "ok")), stage.bench.value(&tool_calls("two", "ok"))), (0, 1));
    server_of_one.write(&event(&result(1))).await.unwrap();
    one.expect(&result(1)).await;
    assert_eq!(stage.bench.value(&tool_calls("one", "ok")), 1);
}

fn modern(id: u32, tool: &str) -> String {
    let meta = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"c","version":"1"}}"#;
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{tool}",{meta}}}}}"#)
}

#[tokio::test]
async fn stateless_clients_count_once_however_many_connections_they_use() {
    let stage = Stage::new().await;
    for id in 1..4 {
        stage.exchange(&post(&[], &modern(1, "echo")), &json(&[], &result(1))).await;
        stage.bench.becomes(&tool_calls("echo", "ok"), i64::from(id)).await;
    }
    assert_eq!(stage.bench.value(&sessions("2026-07-28")), 1);
    let Stage { bench, proxy, .. } = stage;
    proxy.ended().await;
    bench.becomes(&sessions("2026-07-28"), 0).await;
    assert_eq!(bench.sessions_ended(), 0, "a client is no session");
}

#[tokio::test]
async fn stateless_calls_of_the_same_id_are_told_apart_by_their_exchange() {
    let stage = Stage::new().await;
    let (mut one, mut server_of_one, _) = stage.asked(&post(&[], &modern(1, "one"))).await;
    let (two, server_of_two, _) = stage.asked(&post(&[], &modern(1, "two"))).await;
    drop(two);
    assert_eq!(server_of_two.reader.closed().await.unwrap(), b"");
    stage.bench.becomes(&tool_calls("two", "cancelled"), 1).await;
    server_of_one.write(&json(&[], &result(1))).await.unwrap();
    assert_eq!(one.reader.message().await.unwrap().unwrap().body, result(1).as_bytes());
    stage.bench.becomes(&tool_calls("one", "ok"), 1).await;
    drop(one);
    stage.bench.becomes(&connections(Transport::Http), 0).await;
}

#[tokio::test]
async fn an_error_with_an_http_status_is_the_json_rpc_error() {
    let stage = Stage::new().await;
    let error = br#"{"jsonrpc":"2.0","id":1,"error":{"code":-32021,"message":"no"}}"#;
    let answer = http::answer("400 Bad Request", &[crate::JSON], error);
    assert_eq!(stage.exchange(&post(&[], &modern(1, "echo")), &answer).await.body, error);
    stage.bench.becomes(&errors("tools", "-32021"), 1).await;
    assert_eq!(stage.bench.value(&tool_calls("echo", "error")), 1);
    assert_eq!(stage.bench.value(&tool_calls("echo", "caller_error")), 0);
}

/// Behind a proxy of their own, many clients may share a connection.
#[tokio::test]
async fn what_one_exchange_settled_says_nothing_of_the_next_on_its_connection() {
    let stage = Stage::new().await;
    let (mut client, mut server, _) = stage.asked(&post(&[], INITIALIZE)).await;
    server.write(&json(&[], INITIALIZED)).await.unwrap();
    client.reader.message().await.unwrap().unwrap();
    // Its server asks something of its own on a stream, and nobody answers.
    client.write(&post(&[], &call(1, "ask"))).await.unwrap();
    server.reader.message().await.unwrap().unwrap();
    let asks = r#"{"jsonrpc":"2.0","id":1,"method":"roots/list"}"#;
    let both = [event(asks), event(&result(1)), b"0\r\n\r\n".to_vec()].concat();
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    server.write(&[head, both].concat()).await.unwrap();
    client.reader.message().await.unwrap().unwrap();
    stage.bench.becomes(&tool_calls("ask", "ok"), 1).await;
    stage.bench.records(&desc::CLIENT_OPERATIONS, &[("mcp_method_name", "roots/list")], 1).await;
    let traces = stage.bench.tracer.traces(&mcpscope_tracing::Filter::default());
    let of = |method: &str| traces.iter().find(|trace| &*trace.method == method).unwrap();
    let asked = format!("{:?}", of("tools/call").spans[0].attributes);
    assert!(!asked.contains("2025-06-18"), "{asked}");
    assert_eq!(
        of("roots/list").status,
        mcpscope_tracing::Status::Timeout,
        "with its exchange, and not with the connection"
    );
    client.write(&post(&[], &call(2, "echo"))).await.unwrap();
    server.reader.message().await.unwrap().unwrap();
    server.write(&json(&[], &result(2))).await.unwrap();
    client.reader.message().await.unwrap().unwrap();
    stage.bench.becomes(&tool_calls("echo", "ok"), 1).await;
}
