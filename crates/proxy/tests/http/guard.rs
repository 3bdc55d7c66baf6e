//! Which requests are answered to at all, and in which form they go on.

use mcpscope_core::Transport;
use mcpscope_proxy::http::{Config, HostHeader};
use mcpscope_test_support::{Listener, http};

use crate::common::{Bench, Proxy, dropped};
use crate::{Stage, json};

fn get(target: &str, headers: &[&str]) -> Vec<u8> {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    format!("GET {target} HTTP/1.1\r\n{headers}\r\n").into_bytes()
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused_without_the_server() {
    let stage = Stage::new().await;
    for (target, headers, status) in [
        ("/mcp", vec!["Host: evil.example"], 403),
        ("/mcp", vec!["Host: localhost.evil.example:80"], 403),
        ("/mcp", vec!["Host: localhost", "Origin: http://evil.example"], 403),
        ("/mcp", vec!["Host: localhost", "Origin: null"], 403),
        ("/mcp", vec!["Host: localhost", "Origin: http://localhost:1", "Origin: http://evil.example"], 403),
        ("/mcp", vec!["Host: localhost", "Host: localhost"], 400),
        ("/mcp", vec!["Host: localhost", "Host: evil.example"], 400),
        ("/mcp", vec![], 400),
        ("http://evil.example/mcp", vec!["Host: evil.example"], 403),
        ("http://evil.example/mcp", vec!["Host: localhost"], 403),
        ("http://localhost/mcp", vec!["Host: localhost", "Host: localhost"], 400),
        ("http://localhost/mcp", vec!["Host: localhost", "Host: evil.example"], 400),
    ] {
        let answer = stage.proxy.connect().await.exchange(&get(target, &headers)).await.unwrap();
        assert_eq!(answer.head.status(), status, "{target} {headers:?}");
        let error: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((&error["error"]["code"], error.get("id")), (&(-32600).into(), None), "{error}");
        let message = error["error"]["message"].as_str().unwrap();
        let says = if status == 403 { "or one of proxy.allowed_" } else { "expected one Host header, found" };
        assert!(message.contains(says), "{message}");
    }
    stage.bench.becomes(&dropped("refused_request"), 12).await;
    stage.upstream.expect_no_more().await;
}

#[tokio::test]
async fn a_local_origin_is_answered_to() {
    let stage = Stage::new().await;
    let request = get("/mcp", &["Host: 127.0.0.1:9", "Origin: http://localhost:6274"]);
    assert_eq!(stage.exchange(&request, &json(&[], "{}")).await.head.status(), 200);
}

#[tokio::test]
async fn an_absolute_target_goes_on_as_path_and_query() {
    let stage = Stage::new().await;
    let request = get("http://localhost:9/a/../b?c=%2F#", &["Host: localhost:9"]);
    let (_client, _server, seen) = stage.asked(&request).await;
    assert_eq!(seen.head.start_line(), "GET /a/../b?c=%2F HTTP/1.1");
    assert_eq!(seen.head.values("host"), [b"localhost:9"]);
}

#[tokio::test]
async fn the_upstream_gets_the_host_that_is_asked_for() {
    for (host_header, upstreams_own) in
        [(HostHeader::Auto, false), (HostHeader::Keep, false), (HostHeader::Upstream, true)]
    {
        let upstream = Listener::bind().await;
        let change = |config: &mut Config| config.host_header = host_header;
        let proxy = Proxy::start_with(upstream.address(), Bench::new().probe(Transport::Http), change).await;
        let mut client = proxy.connect().await;
        client.write(&http::request("GET", "/mcp", &[], b"")).await.unwrap();
        let seen = upstream.accept().await.reader.message().await.unwrap().unwrap();
        let expected = if upstreams_own { upstream.address().to_string() } else { "localhost".to_owned() };
        assert_eq!(seen.head.values("host"), [expected.into_bytes()], "{host_header:?}");
    }
}

#[tokio::test]
async fn an_upgrade_is_not_asked_for() {
    let stage = Stage::new().await;
    // What Java's client sends with its first request.
    let upgrade = ["Host: localhost", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEA"];
    let (_client, _server, seen) = stage.asked(&get("/mcp", &upgrade)).await;
    assert_eq!(seen.head.value("upgrade"), None);
    let (_client, _server, seen) = stage.asked(&get("/mcp", &["Host: localhost", "Connection: close"])).await;
    assert_eq!(seen.head.value("connection").as_deref(), Some("close"));
}
