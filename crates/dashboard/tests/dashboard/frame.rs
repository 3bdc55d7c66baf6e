//! What comes from the newest frame, what must be newer, and how it is sent.

use std::io::Read as _;

use expect_test::expect;
use mcpscope_core::Outcome;
use mcpscope_dashboard::Config;

use crate::support::{Running, with_two_calls};

#[tokio::test]
async fn the_dashboard_is_the_newest_frame() {
    let mut running = with_two_calls().await;
    let before = serde_json::from_str::<serde_json::Value>(&running.get("/api/v1/dashboard").await.body).unwrap();
    assert_eq!((&before["traces"], &before["cpu_usage"]), (&serde_json::json!([]), &serde_json::Value::Null));
    running.make_frames().await;
    let answer = running.get("/api/v1/dashboard").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let value: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
    expect![[r#"
        [
            "active_connections",
            "alerts",
            "chaos_status",
            "cpu_usage",
            "memory_ratio",
            "memory_usage",
            "metrics",
            "processes",
            "system_health",
            "system_uptime",
            "timestamp",
            "traces",
        ]
    "#]]
    .assert_debug_eq(&keys);
    assert_eq!(value["traces"].as_array().unwrap().len(), 2);
    assert_eq!(value["metrics"]["tool_call_duration_ms"]["series"].as_array().unwrap().len(), 2);
    assert!(value["memory_usage"].as_u64().unwrap() > 1 << 20);
    assert!(value["memory_ratio"].as_f64().unwrap() > 0.0 && value["cpu_usage"].is_f64());
}

#[tokio::test]
async fn supervised_processes_are_shown() {
    let mut running = Running::start(Config::default()).await;
    let _watched = running.reporter.watch_process("demo", std::process::id());
    running.make_frames().await;
    let value: serde_json::Value = serde_json::from_str(&running.get("/api/v1/dashboard").await.body).unwrap();
    let process = &value["processes"][0];
    assert_eq!((&process["name"], &process["pid"]), (&"demo".into(), &std::process::id().into()));
    assert_eq!(process.as_object().unwrap().len(), 5);
}

#[tokio::test]
async fn a_scrape_is_not_a_frame_old() {
    let mut running = Running::start(Config::default()).await;
    running.make_frames().await;
    running.tool_call("echo", 0, 1, Outcome::Ok);
    let line = "mcpscope_tool_call_duration_seconds_count{server=\"everything\",tool=\"echo\",outcome=\"ok\",injected=\"false\"} 1";
    assert!(running.get("/metrics").await.body.contains(line));
    assert!(running.get("/api/v1/metrics").await.body.contains("echo"));
    assert!(running.get("/api/v1/traces").await.body.contains("echo"));
}

#[tokio::test]
async fn large_answers_are_compressed_for_those_who_ask() {
    let mut running = with_two_calls().await;
    running.make_frames().await;
    let large = ["/metrics", "/api/v1/metrics", "/api/v1/traces", "/api/v1/dashboard"];
    for path in large {
        let plain = running.get(path).await;
        assert_eq!((plain.header("content-encoding"), plain.header("vary")), (None, Some("accept-encoding")), "{path}");
        let gzip = running.get_with(path, "Accept-Encoding: br\r\nAccept-Encoding: gzip;q=0.5\r\n").await;
        assert_eq!(gzip.header("content-encoding"), Some("gzip"), "{path}");
        assert_eq!(gzip.header("content-type"), plain.header("content-type"));
        assert_eq!(gzip.header("content-length"), Some(gzip.bytes.len().to_string().as_str()));
        let mut text = String::new();
        flate2::read::GzDecoder::new(&*gzip.bytes).read_to_string(&mut text).unwrap();
        let head = |text: &str| text.chars().take(20).collect::<String>();
        assert_eq!(head(&text), head(&plain.body));
        assert!(gzip.bytes.len() < text.len());
        let refused = running.get_with(path, "Accept-Encoding: gzip;q=0, *\r\n").await;
        assert_eq!(refused.header("content-encoding"), None, "{path}");
    }
    let small = running.get_with("/healthz", "Accept-Encoding: gzip\r\n").await;
    assert_eq!(small.header("content-encoding"), None);
    let problem = running.get_with("/nowhere", "Accept-Encoding: gzip\r\n").await;
    assert_eq!(problem.header("content-encoding"), None);
}
