//! The page and its assets.

use std::io::Read as _;

use mcpscope_dashboard::Config;

use crate::support::{Answer, Running};

fn unpacked(answer: &Answer) -> Vec<u8> {
    let mut bytes = Vec::new();
    match answer.header("content-encoding") {
        Some("gzip") => drop(flate2::read::GzDecoder::new(&*answer.bytes).read_to_end(&mut bytes).unwrap()),
        other => {
            assert_eq!(other, None);
            bytes.clone_from(&answer.bytes);
        }
    }
    bytes
}

/// What the page asks for, and what its modules import.
fn referenced(text: &str) -> Vec<String> {
    let quoted = text.split('"').skip(1).step_by(2);
    quoted.filter(|path| path.starts_with("/static/")).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_page_is_strict_about_what_it_loads() {
    let running = Running::start(Config::default()).await;
    let page = running.get("/").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.body.starts_with("<!doctype html>"));
    for (name, expected) in [
        (
            "content-security-policy",
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
             font-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-cache"),
        ("vary", "accept-encoding"),
    ] {
        assert_eq!(page.header(name), Some(expected), "{name}");
    }
    assert!(!page.body.contains("http://") && !page.body.contains("https://"), "{}", page.body);
}

#[tokio::test]
async fn everything_that_the_page_asks_for_is_there() {
    let running = Running::start(Config::default()).await;
    let references = referenced(&running.get("/").await.body);
    assert!(references.len() >= 3, "{references:?}");
    for path in references {
        let answer = running.get(&path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_ne!(answer.header("content-type"), Some("text/plain; charset=utf-8"), "{path}");
    }
    let missing = running.get("/static/nothing.js").await;
    assert_eq!(missing.problem(404), "there is no such file");
    assert_eq!(missing.header("cache-control"), Some("no-store"));
    for path in ["/static/", "/static/../Cargo.toml", "/static/%2e%2e/Cargo.toml", "/static//app.js"] {
        assert_eq!(running.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_version_that_is_known_is_not_sent_again() {
    let running = Running::start(Config::default()).await;
    for path in ["/", "/static/app.js"] {
        let plain = running.get(path).await;
        let gzip = running.get_with(path, "Accept-Encoding: gzip, deflate, br\r\n").await;
        assert_eq!(gzip.header("content-encoding"), Some("gzip"));
        assert_eq!(unpacked(&gzip), plain.bytes);
        assert_eq!(gzip.header("content-type"), plain.header("content-type"));
        let tags = [&plain, &gzip].map(|answer| answer.header("etag").unwrap().to_owned());
        assert_ne!(tags[0], tags[1], "another representation has another strong tag");
        for (tag, accept) in [(&tags[0], "identity"), (&tags[1], "gzip")] {
            let ask = format!("If-None-Match: \"x\", {tag}\r\nAccept-Encoding: {accept}\r\n");
            let known = running.get_with(path, &ask).await;
            assert_eq!((known.status, known.bytes.len()), (304, 0));
            assert_eq!(known.header("etag"), Some(tag.as_str()));
            assert_eq!(
                (known.header("cache-control"), known.header("vary")),
                (Some("no-cache"), Some("accept-encoding"))
            );
        }
        let stale = running.get_with(path, "If-None-Match: \"x\"\r\n").await;
        assert_eq!((stale.status, &stale.bytes), (200, &plain.bytes));
    }
}

#[tokio::test]
async fn the_page_can_only_be_read() {
    let running = Running::start(Config::default()).await;
    for path in ["/", "/static/app.js"] {
        let post = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        assert_eq!(running.send(&post).await.status, 405);
        let head = format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let head = running.send(&head).await;
        assert_eq!((head.status, head.bytes.len()), (200, 0));
        assert_eq!(head.header("etag"), running.get(path).await.header("etag"));
    }
}
