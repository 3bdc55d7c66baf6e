//! What a hostile or broken peer must not get away with, found by attacking the relay.

use std::time::Duration;

use mcpscope_core::Transport;
use mcpscope_hooks::{Parts, Probe};
use mcpscope_proxy::http::Config;
use mcpscope_test_support::{BodyReader, Listener, http};
use tokio::time::timeout;

use crate::common::{Bench, Chaos, Proxy, holds};
use crate::{Stage, call, event, json, post, result};

/// How long nothing must happen.
const QUIET: Duration = Duration::from_millis(300);

async fn with(parts: impl FnOnce(&Bench) -> Parts, change: impl FnOnce(&mut Config)) -> Stage {
    with_probe(|bench| Probe::new(parts(bench)), change).await
}

async fn with_probe(probe: impl FnOnce(&Bench) -> Probe, change: impl FnOnce(&mut Config)) -> Stage {
    let (bench, upstream) = (Bench::new(), Listener::bind().await);
    let probe = probe(&bench);
    let proxy = Proxy::start_with(upstream.address(), probe, change).await;
    Stage { bench, proxy, upstream }
}

#[tokio::test]
async fn what_is_left_of_a_body_is_no_request() {
    const BODY: usize = 24 << 20;
    let stage = Stage::new().await;
    for pad in 0..4 {
        let smuggled = format!("DELETE /admin HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "y".repeat(pad + 1));
        let mut body = vec![b'x'; BODY - (400 << 10) - smuggled.len()];
        body.extend_from_slice("\r\n".repeat(200 << 10).as_bytes());
        body.extend_from_slice(smuggled.as_bytes());
        let request = http::request("POST", "/mcp", &[crate::JSON], &body);
        let mut client = stage.proxy.connect().await;
        let server = async {
            let mut server = stage.upstream.accept().await;
            server.reader.head().await.unwrap().unwrap();
            // It reads no more, so that a write is under way when it breaks off.
            tokio::time::sleep(QUIET).await;
            server.reset();
        };
        let client = async {
            let answer = client.exchange(&request).await;
            // Nothing is answered that was not asked.
            let more = timeout(QUIET, client.reader.head()).await;
            assert!(!matches!(more, Ok(Ok(Some(_)))), "{more:?}");
            answer
        };
        let ((), answer) = tokio::join!(server, client);
        // It may be reset while it still sends.
        if let Ok(answer) = answer {
            assert_eq!(answer.head.status(), 502);
        }
        stage.upstream.expect_no_more().await;
    }
}

#[tokio::test]
async fn a_request_that_is_nearly_one_that_passed_is_looked_at_like_any_other() {
    const SMUGGLED: &str = "GET /admin HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let stage = Stage::new().await;
    let request = |length: &str, body: &str| {
        format!("POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nX: y\r\n\r\n{body}")
    };
    let endless = "0".repeat(130 << 10);
    for (length, status) in [
        ("0\r\nContent-Length: 44", 400),
        ("0\r\ncontent-length: 0", 400),
        ("0, 44", 400),
        ("0 44", 400),
        ("+0", 400),
        ("0x0", 400),
        ("", 400),
        ("0\r\n 44", 400),
        ("0\n", 400),
        ("0\r\nTransfer-Encoding: chunked", 400),
        ("0\r\ntransfer-encoding:\tidentity", 400),
        ("18446744073709551616", 400),
        (&endless, 431),
        ("0\r\nHost: evil.example", 400),
        ("0\r\nOrigin: http://evil.example", 403),
    ] {
        let mut client = stage.proxy.connect().await;
        client.write(request("2", "{}").as_bytes()).await.unwrap();
        let mut server = stage.upstream.accept().await;
        for (length, body) in [("2", "{}"), ("02", "[]"), ("0", "")] {
            let asked = server.reader.message().await.unwrap().unwrap();
            assert_eq!(
                (asked.head.value("content-length").as_deref(), asked.body.as_slice()),
                (Some(length), body.as_bytes())
            );
            server.write(&http::answer("202 Accepted", &[], b"")).await.unwrap();
            assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 202);
            match length {
                "2" => client.write(request("02", "[]").as_bytes()).await.unwrap(),
                "02" => client.write(request("0", "").as_bytes()).await.unwrap(),
                _ => {}
            }
        }
        // Behind one that is not for us another may come.
        let (behind, ends) = if length.contains("evil") { ("", None) } else { (SMUGGLED, Some("close")) };
        // It may be refused before all of it is there.
        let _ = client.write((request(length, "") + behind).as_bytes()).await;
        let answer = client.reader.message().await.unwrap().unwrap();
        let told = (answer.head.status(), answer.head.value("connection"));
        assert_eq!((told.0, told.1.as_deref()), (status, ends), "{length:.99?}");
        drop(client);
        assert_eq!(server.reader.closed().await.unwrap(), b"", "{length:.99?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_nearly_one_that_passed_is_looked_at_like_any_other() {
    const KNOWN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    let stage = Stage::new().await;
    let (mut client, mut server) = (stage.proxy.connect().await, None);
    for (method, answer, expected) in [
        ("GET", format!("{KNOWN}hello"), format!("{KNOWN}hello")),
        ("GET", format!("{KNOWN}again"), format!("{KNOWN}again")),
        // No body follows, though the same head told of one before.
        ("HEAD", KNOWN.to_owned(), KNOWN.to_owned()),
        ("GET", format!("{KNOWN}three"), format!("{KNOWN}three")),
        ("GET", KNOWN.replace("200 OK", "304 Not Modified"), KNOWN.replace("200 OK", "304 Not Modified")),
        ("GET", KNOWN.replace("200 OK", "204 -").replace('5', "7"), KNOWN.replace("200 OK", "204 -").replace('5', "7")),
        ("GET", KNOWN.replace('5', "0"), KNOWN.replace('5', "0")),
        ("GET", format!("{}five!", KNOWN.replace('5', "5, 5")), format!("{KNOWN}five!")),
        (
            "GET",
            format!("{}5\r\nlast.\r\n0\r\n\r\n", KNOWN.replace('5', "5\r\nTransfer-Encoding: chunked")),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nlast.\r\n0\r\n\r\n".to_owned(),
        ),
    ] {
        client.write(&http::request_head(method, "/other", &[])).await.unwrap();
        let server = match &mut server {
            Some(server) => server,
            none => none.insert(stage.upstream.accept().await),
        };
        assert!(server.reader.head().await.unwrap().unwrap().start_line().starts_with(method));
        server.write(answer.as_bytes()).await.unwrap();
        let mut came = Vec::new();
        let mut body = BodyReader::Length(expected.len());
        while let Some(part) = body.part(&mut client.reader).await.unwrap() {
            came.extend_from_slice(&part);
        }
        assert_eq!(String::from_utf8(came).unwrap(), expected);
    }
    let mut server = server.unwrap();
    client.write(&http::request_head("GET", "/other", &[])).await.unwrap();
    server.reader.head().await.unwrap().unwrap();
    server.write(format!("{}123456", KNOWN.replace('5', "5\r\nContent-Length: 6")).as_bytes()).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 502);
}

#[tokio::test]
async fn trailers_follow_the_last_chunk_however_they_come() {
    for (first, second) in [("0\r\nX-Sum: 1\r\n", "\r\n"), ("0\r\n\r", "\n")] {
        let stage = with_probe(|bench| holds(bench.parts(Transport::Http)), |_| ()).await;
        let (client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
        server.write(&[http::stream_head("200 OK", &[]), event(&result(1))].concat()).await.unwrap();
        let (_, mut events) = crate::Events::open(client.reader).await;
        events.expect(&result(1)).await;
        server.write(first.as_bytes()).await.unwrap();
        assert!(timeout(QUIET, events.next()).await.is_err(), "it is not over yet");
        server.write(second.as_bytes()).await.unwrap();
        assert_eq!(events.next().await.unwrap(), None, "{first:?}");
    }
}

#[tokio::test]
async fn an_event_that_a_length_was_told_for_is_not_left_out() {
    let lost = ["intensity=1", "method=notifications/progress"];
    let stage = with_probe(|bench| Chaos::with(bench.parts(Transport::Http), "packet_loss", &lost), |_| ()).await;
    let (mut client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
    let progress = r#"{"jsonrpc":"2.0","method":"notifications/progress"}"#;
    let body = format!("data: {progress}\n\ndata: {}\n\n", result(1));
    server.write(&http::answer("200 OK", &[("Content-Type", "text/event-stream")], body.as_bytes())).await.unwrap();
    client.reader.head().await.unwrap().unwrap();
    let more = timeout(QUIET, BodyReader::Length(body.len()).part(&mut client.reader)).await;
    assert!(more.is_err(), "the next answer would be taken for the rest of this one: {more:?}");
    drop(client);
    server.reader.closed().await.unwrap();
}

#[tokio::test]
async fn who_wants_no_more_is_not_kept() {
    let stage = Stage::new().await;
    for request in ["GET / HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\nHost: evil\r\n\r\n"]
    {
        let mut client = stage.proxy.connect().await;
        client.write(request.as_bytes()).await.unwrap();
        let answer = client.reader.message().await.unwrap().unwrap();
        assert_eq!((answer.head.status(), answer.head.value("connection").as_deref()), (403, Some("close")));
        assert_eq!(client.reader.closed().await.unwrap(), b"");
    }
}

#[tokio::test]
async fn a_head_that_began_behind_a_request_has_no_more_time_than_any_other() {
    let stage =
        with(|bench| bench.parts(Transport::Http), |config| config.header_timeout = Duration::from_secs(1)).await;
    let (mut client, mut server, _) = stage.asked(&[post(&[], &call(1, "echo")), b"GET ".to_vec()].concat()).await;
    server.write(&json(&[], &result(1))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 200);
    assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 408);
}

#[tokio::test]
async fn what_is_no_http_is_told_so_at_once() {
    let stage = Stage::new().await;
    let mut client = stage.proxy.connect().await;
    // How TLS begins.
    client.write(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.unwrap();
    let answer = client.reader.message().await.unwrap().unwrap();
    assert_eq!(answer.head.status(), 400);
    assert!(String::from_utf8(answer.body).unwrap().contains("if it is TLS"));
}

#[tokio::test]
async fn a_bad_chunk_is_told_of_while_it_is_held_too() {
    let stage = with(|bench| Parts { propagate: true, ..bench.parts(Transport::Http) }, |_| ()).await;
    let mut client = stage.proxy.connect().await;
    let head = http::request_head("POST", "/mcp", &[crate::JSON, ("Transfer-Encoding", "chunked")]);
    client.write(&[&head[..], b"xyz\r\n"].concat()).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 400);
}

#[tokio::test]
async fn an_event_in_many_pieces_is_held_no_longer_than_one_that_stalls() {
    let stage = with(|bench| Parts { propagate: true, ..bench.parts(Transport::Http) }, |_| ()).await;
    let (client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
    server.write(&http::stream_head("200 OK", &[])).await.unwrap();
    let (_, mut events) = crate::Events::open(client.reader).await;
    let trickle = async {
        server.write(&http::chunk(b"data: ")).await.unwrap();
        loop {
            tokio::time::sleep(QUIET).await;
            server.write(&http::chunk(b"x")).await.unwrap();
        }
    };
    let first = async { events.body.part(&mut events.from).await.unwrap().unwrap() };
    tokio::select! {
        () = trickle => {}
        first = first => assert!(first.starts_with(b"data: "), "{first:?}"),
    }
}

#[tokio::test]
async fn an_answer_that_the_end_of_the_relay_cuts_off_does_not_look_complete() {
    let mut stage = with(|bench| bench.parts(Transport::Http), |config| config.grace = Duration::ZERO).await;
    let mut client = stage.proxy.connect().await;
    client.write(&http::request("GET", "/mcp", &[], b"")).await.unwrap();
    let mut server = stage.upstream.accept().await;
    server.reader.head().await.unwrap().unwrap();
    server.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhalf of").await.unwrap();
    let head = client.reader.head().await.unwrap().unwrap();
    let mut body = BodyReader::of(&head);
    assert_eq!(body.part(&mut client.reader).await.unwrap().unwrap(), b"half of");
    stage.proxy.stop();
    let error = body.part(&mut client.reader).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_answer_whose_lines_end_with_lf_is_not_waited_for() {
    for answer in ["HTTP/1.1 200 OK\nContent-Length: 2\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nok"] {
        let stage = Stage::new().await;
        let (mut client, mut server, _) = stage.asked(&post(&[], &call(1, "echo"))).await;
        server.write(answer.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        let mut reader = BodyReader::Length(answer.len());
        while got.len() < answer.len() {
            got.extend_from_slice(&reader.part(&mut client.reader).await.unwrap().unwrap());
        }
        assert_eq!(String::from_utf8(got).unwrap(), answer);
    }
}

#[tokio::test]
async fn who_waits_for_leave_to_send_is_told_at_once_that_nobody_is_there() {
    let down = Listener::bind().await.address();
    let proxy = Proxy::start(down, Bench::new().probe(Transport::Http)).await;
    let mut client = proxy.connect().await;
    let fields = [crate::JSON, ("Content-Length", "5"), ("Expect", "100-continue")];
    client.write(&http::request_head("POST", "/mcp", &fields)).await.unwrap();
    let answer = timeout(Duration::from_secs(5), client.reader.message()).await.expect("before the header timeout");
    assert_eq!(answer.unwrap().unwrap().head.status(), 502);
}
