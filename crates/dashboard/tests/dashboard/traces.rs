//! The traces, listed and one by one.

use std::num::NonZeroU64;
use std::time::Duration;

use expect_test::expect;
use mcpscope_core::{CallEvent, CallEventKind, ErrorType, Forwarded, Outcome, SpanId};
use mcpscope_dashboard::Config;
use mcpscope_hub::tracing::Filter;

use crate::support::{Running, json, with_two_calls};

#[tokio::test]
async fn traces_newest_first() {
    expect![[r#"
        [
          {
            "details": {
              "error_class": "tool_error",
              "method": "tools/call",
              "request_bytes": "100",
              "response_bytes": "200"
            },
            "duration_ms": 30.0,
            "id": "3fdabe86cbbeaa1173d33b666a1e21da",
            "injected": false,
            "method": "tools/call",
            "operation": "tools/call add",
            "server": "everything",
            "session": null,
            "spans": [
              {
                "attributes": {
                  "error.type": "tool_error",
                  "gen_ai.operation.name": "execute_tool",
                  "gen_ai.tool.name": "add",
                  "jsonrpc.request.id": "1",
                  "mcp.method.name": "tools/call",
                  "mcp.protocol.version": "2025-11-25",
                  "network.transport": "pipe"
                },
                "dropped_events": 0,
                "duration_us": 30000,
                "events": [],
                "id": "953aeb70673e29cb",
                "kind": "server",
                "message": null,
                "name": "tools/call add",
                "parent": null,
                "start_us": 0,
                "status": "error"
              }
            ],
            "status": "error",
            "timestamp": 1800000002000,
            "tool": "add"
          },
          {
            "details": {
              "method": "tools/call",
              "request_bytes": "100",
              "response_bytes": "200"
            },
            "duration_ms": 12.0,
            "id": "e6984080bab12a02044c3cd7f43c661c",
            "injected": false,
            "method": "tools/call",
            "operation": "tools/call echo",
            "server": "everything",
            "session": null,
            "spans": [
              {
                "attributes": {
                  "gen_ai.operation.name": "execute_tool",
                  "gen_ai.tool.name": "echo",
                  "jsonrpc.request.id": "1",
                  "mcp.method.name": "tools/call",
                  "mcp.protocol.version": "2025-11-25",
                  "network.transport": "pipe"
                },
                "dropped_events": 0,
                "duration_us": 12000,
                "events": [],
                "id": "63cbe1e459320dd7",
                "kind": "server",
                "message": null,
                "name": "tools/call echo",
                "parent": null,
                "start_us": 0,
                "status": "ok"
              }
            ],
            "status": "ok",
            "timestamp": 1800000001000,
            "tool": "echo"
          }
        ]
    "#]]
    .assert_eq(&json(&with_two_calls().await, "/api/v1/traces").await);
}

#[tokio::test]
async fn traces_by_every_parameter() {
    let running = Running::start(Config::default()).await;
    running.tool_call_with("echo", 1000, 12, Outcome::Ok, |record| record.call.session = Some("of echo".into()));
    running.tool_call("add", 2000, 30, Outcome::error(ErrorType::Tool));
    let tools = async |query: &str| {
        let answer = running.get(&format!("/api/v1/traces?{query}")).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.body);
        let value: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        let tools = value.as_array().unwrap().iter().map(|t| t["tool"].as_str().unwrap().to_owned());
        tools.collect::<Vec<_>>().join(" ")
    };
    for (query, expected) in [
        ("", "add echo"),
        ("operation=tools/call%20echo", "echo"),
        ("method=tools%2Fcall", "add echo"),
        ("method=ping", ""),
        ("status=error", "add"),
        ("tool=echo", "echo"),
        ("server=everything", "add echo"),
        ("server=other", ""),
        ("session=of%20echo", "echo"),
        ("session=of", ""),
        ("text=OF", "echo"),
        ("text=call%20add", "add"),
        ("injected=false", "add echo"),
        ("injected=true", ""),
        ("min_duration=12", "add echo"),
        ("min_duration=12.5", "add"),
        ("min_duration=30ms", "add"),
        ("min_duration=1s", ""),
        ("since=1800000002000", "add"),
        ("until=1800000002000", "echo"),
        ("limit=1", "add"),
        ("tool=echo&status=ok&limit=5", "echo"),
    ] {
        assert_eq!(tools(query).await, expected, "{query}");
    }
}

#[tokio::test]
async fn a_hundred_traces_unless_asked_otherwise() {
    let running = Running::start(Config::default()).await;
    for n in 0..150 {
        running.tool_call("echo", n, 1, Outcome::Ok);
    }
    let count = async |path: &str| running.get(path).await.body.matches("\"operation\":").count();
    assert_eq!(count("/api/v1/traces").await, 100);
    assert_eq!(count("/api/v1/traces?limit=1000").await, 150);
}

/// A call that was sent on, with everything that a trace can hold.
#[tokio::test]
async fn one_trace() {
    let running = Running::start(Config::default()).await;
    let failed = Outcome::Error { kind: ErrorType::Tool, message: Some("it broke".into()) };
    running.tool_call_with("add", 2000, 30, failed, |record| {
        let at = |ms| record.started + Duration::from_millis(ms);
        record.forwarded = Some(Forwarded { span_id: SpanId(NonZeroU64::new(7).unwrap()), queued: at(1), sent: at(3) });
        let progress = CallEventKind::Progress { progress: Some(0.5), total: None };
        record.events =
            vec![CallEvent { at: at(10), kind: progress }, CallEvent { at: at(20), kind: CallEventKind::Cancelled }];
        record.call.session = Some("1".into());
    });
    let id = running.tracer.traces(&Filter::default())[0].id;
    let answer = running.get(&format!("/api/v1/traces/{id}")).await;
    assert_eq!(answer.status, 200);
    // Its timestamp is the trace's own, and the one in the list.
    assert!(answer.body.contains("\"timestamp\":1800000002000"), "{}", answer.body);
    expect![[r#"
        {
          "details": {
            "error_class": "tool_error",
            "error_message": "it broke",
            "method": "tools/call",
            "proxy_us": "1000",
            "queue_us": "2000",
            "request_bytes": "100",
            "response_bytes": "200",
            "server_us": "27000"
          },
          "duration_ms": 30.0,
          "id": "e6984080bab12a02044c3cd7f43c661c",
          "injected": false,
          "method": "tools/call",
          "operation": "tools/call add",
          "server": "everything",
          "session": "1",
          "spans": [
            {
              "attributes": {
                "error.type": "tool_error",
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": "add",
                "jsonrpc.request.id": "1",
                "mcp.method.name": "tools/call",
                "mcp.protocol.version": "2025-11-25",
                "mcp.session.id": "1",
                "network.transport": "pipe"
              },
              "dropped_events": 0,
              "duration_us": 30000,
              "events": [
                {
                  "at_us": 10000,
                  "attributes": {
                    "progress": "0.5"
                  },
                  "name": "notifications/progress"
                },
                {
                  "at_us": 20000,
                  "attributes": {},
                  "name": "notifications/cancelled"
                }
              ],
              "id": "63cbe1e459320dd7",
              "kind": "server",
              "message": "it broke",
              "name": "tools/call add",
              "parent": null,
              "start_us": 0,
              "status": "error"
            },
            {
              "attributes": {
                "error.type": "tool_error",
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": "add",
                "jsonrpc.request.id": "1",
                "mcp.method.name": "tools/call",
                "mcp.protocol.version": "2025-11-25",
                "mcp.session.id": "1",
                "network.transport": "pipe"
              },
              "dropped_events": 0,
              "duration_us": 27000,
              "events": [],
              "id": "0000000000000007",
              "kind": "client",
              "message": "it broke",
              "name": "tools/call add",
              "parent": "63cbe1e459320dd7",
              "start_us": 3000,
              "status": "error"
            }
          ],
          "status": "error",
          "timestamp": "<timestamp>",
          "tool": "add"
        }
    "#]]
    .assert_eq(&answer.json());
}
