//! What every endpoint answers.

use std::time::{Duration, SystemTime};

use expect_test::expect;
use mcpscope_core::Transport;
use mcpscope_dashboard::{Config, DashboardError, check_loopback};
use mcpscope_hub::health::{Observation, State};

use crate::support::{Observe, Running, json, with_two_calls};

#[tokio::test]
async fn a_scrape_is_prometheus_text() {
    let running = with_two_calls().await;
    running.metrics.announce_server("everything", Transport::Stdio);
    let answer = running.get("/metrics?collect[]=ignored").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for line in [
        "# TYPE mcpscope_tool_call_duration_seconds histogram",
        "mcpscope_tool_call_duration_seconds_count{server=\"everything\",tool=\"echo\",outcome=\"ok\",injected=\"false\"} 1",
        "mcpscope_component_errors_total{component=\"tools\",error_type=\"tool_error\",injected=\"false\"} 1",
        "mcpscope_transport_connections{server=\"everything\",transport=\"stdio\"} 0",
        "mcpscope_dropped_total{what=\"dashboard_panic\"} 0",
        "mcpscope_dropped_total{what=\"websocket_slow\"} 0",
        "mcpscope_dropped_total{what=\"websocket_silent\"} 0",
        "mcpscope_dropped_total{what=\"websocket_refused\"} 0",
    ] {
        assert!(answer.body.lines().any(|l| l == line), "{line}\n{}", answer.body);
    }
}

#[tokio::test]
async fn metrics_by_critical_name() {
    let running = with_two_calls().await;
    let answer = running.get("/api/v1/metrics").await;
    let value: serde_json::Value = serde_json::from_str(&answer.json()).unwrap();
    expect![[r#"
        {
          "kind": "histogram",
          "series": [
            {
              "labels": {
                "injected": "false",
                "outcome": "error",
                "server": "everything",
                "tool": "add"
              },
              "value": 30.0,
              "window": {
                "avg": 30.0,
                "count": 1,
                "max": 30.0,
                "min": 30.0,
                "p50": 30.0,
                "p90": 30.0,
                "p95": 30.0,
                "p99": 30.0,
                "rate": 0.1,
                "sum": 30.0
              }
            },
            {
              "labels": {
                "injected": "false",
                "outcome": "ok",
                "server": "everything",
                "tool": "echo"
              },
              "value": 12.0,
              "window": {
                "avg": 12.0,
                "count": 1,
                "max": 12.0,
                "min": 12.0,
                "p50": 12.0,
                "p90": 12.0,
                "p95": 12.0,
                "p99": 12.0,
                "rate": 0.1,
                "sum": 12.0
              }
            }
          ],
          "unit": "ms"
        }
    "#]]
    .assert_eq(&(serde_json::to_string_pretty(&value["tool_call_duration_ms"]).unwrap() + "\n"));
    expect![[r#"
        {
          "kind": "rate",
          "series": [
            {
              "labels": {
                "operation": "list",
                "server": "everything"
              },
              "value": 0.1,
              "window": {
                "avg": 1.0,
                "count": 1,
                "max": 1.0,
                "min": 1.0,
                "p50": 1.0,
                "p90": 1.0,
                "p95": 1.0,
                "p99": 1.0,
                "rate": 0.1,
                "sum": 1.0
              }
            }
          ],
          "unit": "1/s"
        }
    "#]]
    .assert_eq(&(serde_json::to_string_pretty(&value["registry_operations_per_second"]).unwrap() + "\n"));
    let tools = value["error_rates_by_component"]["series"].as_array().unwrap().iter();
    let tools = tools.filter(|s| s["labels"]["component"] == "tools").collect::<Vec<_>>();
    assert_eq!(
        (tools.len(), &tools[0]["value"], &tools[0]["labels"]["error_type"]),
        (1, &0.5.into(), &"tool_error".into())
    );
    let keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
    expect![[r#"
        [
            "active_sessions_count",
            "cpu_usage",
            "error_rates_by_component",
            "memory_usage",
            "message_queue_depth",
            "registry_operations_per_second",
            "session_creation_latency_ms",
            "system_uptime",
            "timestamp",
            "tool_call_duration_ms",
            "transport_connection_count",
        ]
    "#]]
    .assert_debug_eq(&keys);
}

#[tokio::test]
async fn the_summary() {
    let running = with_two_calls().await;
    running.metrics.announce_server("everything", Transport::Stdio);
    expect![[r#"
        {
          "aggregates": {
            "error_rates_by_component": {
              "avg": 0.5,
              "count": 2,
              "max": 0.5,
              "min": 0.5,
              "sum": 1.0
            },
            "registry_operations_per_second": {
              "avg": 1.0,
              "count": 1,
              "max": 1.0,
              "min": 1.0,
              "sum": 1.0
            },
            "tool_call_duration_ms": {
              "avg": 21.0,
              "count": 2,
              "max": 30.0,
              "min": 12.0,
              "sum": 42.0
            }
          },
          "counters": {
            "error_rates_by_component": 1,
            "registry_operations_per_second": 1,
            "session_creation_latency_ms": 0,
            "tool_call_duration_ms": 2
          },
          "critical_metrics": 4,
          "timestamp": "<timestamp>",
          "total_metrics": 4
        }
    "#]]
    .assert_eq(&json(&running, "/api/v1/metrics/summary").await);
}

#[tokio::test]
async fn raw_records_newest_first() {
    expect![[r#"
        [
          {
            "labels": {
              "operation": "list",
              "server": "everything"
            },
            "name": "registry_operations_per_second",
            "timestamp": 1800000003000,
            "value": 1.0
          },
          {
            "labels": {
              "component": "tools",
              "error_type": "tool_error",
              "injected": "false"
            },
            "name": "error_rates_by_component",
            "timestamp": 1800000002030,
            "value": 1.0
          },
          {
            "labels": {
              "injected": "false",
              "outcome": "error",
              "server": "everything",
              "tool": "add"
            },
            "name": "tool_call_duration_ms",
            "timestamp": 1800000002030,
            "value": 30.0
          },
          {
            "labels": {
              "injected": "false",
              "outcome": "ok",
              "server": "everything",
              "tool": "echo"
            },
            "name": "tool_call_duration_ms",
            "timestamp": 1800000001012,
            "value": 12.0
          }
        ]
    "#]]
    .assert_eq(&json(&with_two_calls().await, "/api/v1/metrics/raw").await);
}

#[tokio::test]
async fn health_by_component() {
    let running = Running::start(Config::default()).await;
    let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    running.reporter.set("registry", State::Healthy, "Registry idle", since);
    running.reporter.set("sessions", State::Critical, "Session manager not running", since + Duration::from_millis(5));
    expect![[r#"
        {
          "components": {
            "registry": {
              "message": "Registry idle",
              "since": 1800000000000,
              "status": "healthy"
            },
            "sessions": {
              "message": "Session manager not running",
              "since": 1800000000005,
              "status": "critical"
            }
          },
          "health_percentage": 0.5,
          "overall": "warning",
          "timestamp": "<timestamp>",
          "uptime": "<uptime>"
        }
    "#]]
    .assert_eq(&json(&running, "/api/v1/health").await);
}

#[tokio::test]
async fn a_component_may_have_figures() {
    let running = Running::start(Config::default()).await;
    let (state, message) = (State::Healthy, "Registry active".to_owned());
    let seen = Observation { state, message, rate: Some(2.5), count: Some(3) };
    running.reporter.observe("registry", seen, SystemTime::UNIX_EPOCH);
    let value: serde_json::Value = serde_json::from_str(&running.get("/api/v1/health").await.body).unwrap();
    assert_eq!(
        value["components"]["registry"],
        serde_json::json!({"status": "healthy", "message": "Registry active", "since": 0, "rate": 2.5, "count": 3})
    );
}

#[tokio::test]
async fn what_is_instrumented() {
    let running = with_two_calls().await;
    let value: serde_json::Value = serde_json::from_str(&running.get("/api/v1/instrumentation").await.body).unwrap();
    assert_eq!((&value["instrumented_components"], &value["auto_instrument"]), (&6.into(), &true.into()));
    let tools = value["components"].as_array().unwrap().iter().find(|c| c["component"] == "tools").unwrap();
    assert_eq!(tools, &serde_json::json!({"component": "tools", "functions": ["call_tool"], "calls": 2, "errors": 1}));
}

#[tokio::test]
async fn alive_whatever_else_is_wrong() {
    let running = Running::start(Config::default()).await;
    running.reporter.set("registry", State::Critical, "Registry not running", SystemTime::UNIX_EPOCH);
    let _never_met = running.reporter.require("listener");
    expect![[r#"
        {
          "status": "ok",
          "timestamp": "<timestamp>",
          "uptime": "<uptime>"
        }
    "#]]
    .assert_eq(&json(&running, "/healthz").await);
}

#[tokio::test]
async fn ready_when_every_condition_is_met() {
    let running = Running::start(Config::default()).await;
    let listener = running.reporter.require("listener demo");
    let child = running.reporter.require("server demo");
    listener.met();
    child.unmet("restarting");
    let answer = running.get("/readyz").await;
    assert_eq!((answer.status, answer.header("content-type")), (503, Some("application/json")));
    expect![[r#"
        {
          "missing": [
            {
              "name": "server demo",
              "reason": "restarting"
            }
          ],
          "ready": false,
          "timestamp": "<timestamp>"
        }
    "#]]
    .assert_eq(&answer.json());
    child.met();
    expect![[r#"
        {
          "missing": [],
          "ready": true,
          "timestamp": "<timestamp>"
        }
    "#]]
    .assert_eq(&json(&running, "/readyz").await);
    drop(child);
    assert_eq!(running.get("/readyz").await.status, 503);
}

#[tokio::test]
async fn what_is_off_says_so() {
    let running = Running::with(Config::default(), Observe::Nothing).await;
    for path in ["/metrics", "/api/v1/metrics", "/api/v1/metrics/summary", "/api/v1/metrics/raw"] {
        assert_eq!(running.get(path).await.problem(404), "metrics are switched off", "{path}");
    }
    for path in ["/api/v1/traces", "/api/v1/traces/0af7651916cd43dd8448eb211c80319c"] {
        assert_eq!(running.get(path).await.problem(404), "tracing is switched off", "{path}");
    }
    assert_eq!(running.get("/api/v1/instrumentation").await.problem(404), "instrumentation is switched off");
    assert_eq!(running.get("/api/v1/dashboard").await.status, 200);
    assert_eq!(running.get("/").await.status, 200);
    assert_eq!(running.get("/healthz").await.status, 200);
    assert_eq!(running.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn an_unknown_path_is_answered_with_what_there_is() {
    let running = Running::start(Config::default()).await;
    for path in [
        "/statics/app.js",
        "/metric",
        "/api/v1",
        "/api/v1/chaotic",
        "/ws/x",
        "/api/v1/traces/a/b",
        "/%2e%2e/etc/passwd",
    ] {
        let detail = running.get(path).await.problem(404);
        assert!(detail.contains("/ws, /metrics, /healthz, /readyz, /api/v1/dashboard"), "{path}: {detail}");
    }
}

#[tokio::test]
async fn paths_can_only_be_read() {
    let running = Running::start(Config::default()).await;
    let paths = ["/metrics", "/healthz", "/readyz", "/api/v1/health", "/api/v1/metrics", "/api/v1/traces/x"];
    for (method, path) in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"].into_iter().flat_map(|m| paths.map(|p| (m, p)))
    {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let answer = running.send(&request).await;
        assert_eq!(answer.problem(405), "this path can only be read: expected GET or HEAD", "{method} {path}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
    let head = running.send("HEAD /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn bad_parameters_are_named() {
    let running = Running::start(Config::default()).await;
    for (path, expected) in [
        (
            "/api/v1/traces?status=fine",
            "parameter status: expected one of ok, error, timeout, cancelled; found \"fine\"",
        ),
        (
            "/api/v1/traces?min_duration=soon",
            "parameter min_duration: expected a duration such as 30s or 200ms, or a number of milliseconds; found \"soon\"",
        ),
        (
            "/api/v1/traces?colour=red",
            "unknown parameter \"colour\": expected one of operation, method, status, tool, server, session, \
             text, injected, min_duration, since, until, limit",
        ),
        ("/api/v1/metrics?name=x", "unknown parameter \"name\": this endpoint takes none"),
        ("/api/v1/traces/0AF7", "\"0AF7\" is no trace id: expected 32 lower-case hexadecimal digits, not all zero"),
    ] {
        assert_eq!(running.get(path).await.problem(400), expected);
    }
    let detail = running.get("/api/v1/traces/0af7651916cd43dd8448eb211c80319c").await.problem(404);
    assert!(detail.contains("no trace 0af7651916cd43dd8448eb211c80319c"), "{detail}");
}

#[test]
fn only_loopback_addresses_are_accepted() {
    for good in ["127.0.0.1:8080", "127.8.8.8:1", "[::1]:8080", "[::ffff:127.0.0.1]:80"] {
        assert!(check_loopback(good.parse().unwrap()).is_ok(), "{good}");
    }
    for bad in ["0.0.0.0:8080", "[::]:8080", "10.0.0.1:80", "[::ffff:10.0.0.1]:80"] {
        let error = check_loopback(bad.parse().unwrap()).unwrap_err();
        assert!(matches!(error, DashboardError::NotLoopback(_)) && error.to_string().contains("--probe"), "{error}");
    }
}
