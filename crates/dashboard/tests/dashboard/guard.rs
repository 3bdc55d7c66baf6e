//! Who is answered at all.

use mcpscope_dashboard::Config;

use crate::support::{Answer, Running};

async fn get(running: &Running, target: &str, headers: &[&str]) -> Answer {
    let headers = headers.iter().map(|header| format!("{header}\r\n")).collect::<String>();
    running.send(&format!("GET {target} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n")).await
}

#[tokio::test]
async fn this_machine_is_answered() {
    let running = Running::start(Config::default()).await;
    for headers in [
        &["Host: localhost:8080"][..],
        &["Host: 127.0.0.1"],
        &["Host: [::1]:8080"],
        &["Host: localhost", "Origin: http://localhost"],
        &["Host: localhost:8080", "Origin: http://localhost:8080"],
    ] {
        assert_eq!(get(&running, "/healthz", headers).await.status, 200, "{headers:?}");
    }
    assert_eq!(get(&running, "http://localhost:8080/healthz", &["Host: localhost:8080"]).await.status, 200);
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused_before_anything_else() {
    let running = Running::start(Config::default()).await;
    // Neither the path nor the method nor the parameters are looked at.
    for target in ["/healthz", "/metrics", "/nowhere", "/api/v1/traces?x=y"] {
        for headers in [
            &["Host: evil.example"][..],
            &["Host: localhost.evil.example:8080"],
            &["Host: 10.0.0.1:8080"],
            &["Host: "],
            &["Host: evil.example", "Origin: http://evil.example"],
            &["Host: localhost", "Origin: http://evil.example"],
            &["Host: localhost", "Origin: null"],
            // Other pages of this machine.
            &["Host: localhost", "Origin: http://localhost:5173"],
            &["Host: localhost:8080", "Origin: http://127.0.0.1:8080"],
            &["Host: localhost:8080", "Origin: https://localhost:8080"],
            &["Host: localhost", "Origin: http://localhost", "Origin: http://evil.example"],
        ] {
            let detail = get(&running, target, headers).await.problem(403);
            assert!(detail.contains("or one of dashboard.allowed_"), "{headers:?}: {detail}");
        }
    }
    let host_first = get(&running, "/healthz", &["Host: evil.example", "Origin: http://evil.example"]).await;
    assert!(host_first.problem(403).starts_with("host"));
}

#[tokio::test]
async fn no_foreign_page_gets_a_socket() {
    let running = Running::start(Config::default()).await;
    let upgrade = [
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        // The last one `get` sends is Connection: close; both count.
        "Connection: Upgrade",
    ];
    for (headers, status) in [
        (&["Host: localhost", "Origin: http://evil.example"][..], 403),
        (&["Host: localhost", "Origin: null"], 403),
        (&["Host: localhost:8080", "Origin: http://localhost:3000"], 403),
        (&["Host: evil.example"], 403),
        (&["Host: localhost", "Host: localhost"], 400),
    ] {
        get(&running, "/ws", &[headers, &upgrade].concat()).await.problem(status);
    }
    assert_eq!(running.dropped("websocket_refused", 0).await, 0, "they came no further");
}

#[tokio::test]
async fn exactly_one_host_is_needed() {
    let running = Running::start(Config::default()).await;
    let none = get(&running, "/healthz", &[]).await;
    assert_eq!(none.problem(400), "expected one Host header, found 0");
    for headers in [["Host: localhost", "Host: localhost"], ["Host: localhost", "Host: evil.example"]] {
        assert_eq!(get(&running, "/healthz", &headers).await.problem(400), "expected one Host header, found 2");
    }
}

#[tokio::test]
async fn the_host_in_an_absolute_target_counts_as_well() {
    let running = Running::start(Config::default()).await;
    for target in ["http://evil.example/healthz", "http://localhost@evil.example/healthz", "http://10.0.0.1:1/healthz"]
    {
        let detail = get(&running, target, &["Host: localhost"]).await.problem(403);
        assert!(detail.starts_with("host"), "{target}: {detail}");
    }
    assert_eq!(get(&running, "http://localhost/healthz", &["Host: evil.example"]).await.status, 403);
}

#[tokio::test]
async fn names_that_were_allowed_are_answered() {
    let config = Config {
        allowed_hosts: vec!["mcp.internal".into()],
        allowed_origins: vec!["https://grafana.example".into()],
        ..Config::default()
    };
    let running = Running::start(config).await;
    let headers = ["Host: mcp.internal:8080", "Origin: https://grafana.example"];
    assert_eq!(get(&running, "/healthz", &headers).await.status, 200);
    assert_eq!(get(&running, "http://mcp.internal:8080/healthz", &headers).await.status, 200);
    assert_eq!(get(&running, "/healthz", &["Host: other.internal"]).await.status, 403);
}

#[tokio::test]
async fn no_answer_is_cached_sniffed_or_shared() {
    let running = Running::start(Config::default()).await;
    for (target, headers) in [
        ("/metrics", &["Host: localhost", "Origin: http://localhost"][..]),
        ("/api/v1/traces", &["Host: localhost"]),
        ("/nowhere", &["Host: localhost"]),
        ("/healthz", &["Host: evil.example"]),
    ] {
        let answer = get(&running, target, headers).await;
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{target}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{target}");
        assert_eq!(answer.header("cross-origin-resource-policy"), Some("same-origin"), "{target}");
        assert_eq!(answer.header("access-control-allow-origin"), None, "{target}");
    }
}
