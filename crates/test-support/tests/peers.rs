//! The peers see what is wrong: a test that relies on them can fail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy does not take the helpers of an integration test for tests"
)]

use std::io::ErrorKind;

use mcpscope_test_support::{EchoServer, Listener, StdioClient, Wire, http, within};
use tokio::task::JoinSet;

/// What a client makes of these bytes, after which the server closes.
async fn told(answer: &[u8]) -> std::io::Result<Option<mcpscope_test_support::Message>> {
    let listener = Listener::bind().await;
    let mut client = Wire::connect(listener.address()).await.unwrap();
    let mut server = listener.accept().await;
    server.write(answer).await.unwrap();
    drop(server);
    client.reader.message().await
}

#[tokio::test]
async fn what_is_broken_off_is_an_error() {
    for broken in [
        "HTTP/1.1 200 OK\r\nConte",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n12",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n12\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n1",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
    ] {
        assert_eq!(told(broken.as_bytes()).await.unwrap_err().kind(), ErrorKind::UnexpectedEof, "{broken:?}");
    }
    assert!(told(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n12\r\n0\r\n\r\n").await.is_err());
    assert_eq!(told(b"").await.unwrap(), None);
}

#[tokio::test]
async fn every_framing_is_read() {
    for whole in [
        "HTTP/1.1 200 OK\r\ncontent-length:3\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTRANSFER-encoding: Chunked\r\n\r\n1;x=y\r\na\r\n2\r\nbc\r\n0\r\nTrailer: 1\r\n\r\n",
    ] {
        assert_eq!(told(whole.as_bytes()).await.unwrap().unwrap().body, b"abc", "{whole:?}");
    }
    assert_eq!(told(b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n").await.unwrap().unwrap().body, b"");
}

#[test]
fn heads_are_taken_apart_as_they_are() {
    let head = http::Head { raw: b"HTTP/1.1 200 \r\nA:  1 \r\na: \xe9\r\nB:\r\n\r\n".to_vec() };
    assert_eq!((head.start_line().as_str(), head.status()), ("HTTP/1.1 200 ", 200));
    assert_eq!(head.values("a"), [b"1".to_vec(), vec![0xe9]]);
    assert_eq!(head.headers().len(), 3);
    assert_eq!(head.value("b").as_deref(), Some(""));
}

#[tokio::test]
async fn an_echo_splits_as_it_is_told() {
    let echo = EchoServer::start().await;
    let mut client = Wire::connect(echo.address()).await.unwrap();
    let headers = [("Echo-Split", "2,1"), ("Transfer-Encoding", "chunked")];
    let request = [http::request_head("POST", "/", &headers), http::chunk(b"12345"), http::LAST_CHUNK.to_vec()];
    client.write(&request.concat()).await.unwrap();
    let head = client.reader.head().await.unwrap().unwrap();
    assert_eq!(head.value("echo-number").as_deref(), Some("1"));
    let raw = b"2\r\n12\r\n1\r\n3\r\n2\r\n45\r\n0\r\n\r\n";
    drop(client.writer);
    assert_eq!(client.reader.closed().await.unwrap(), raw);
    assert_eq!((echo.connections(), echo.seen().len()), (1, 1));
}

#[tokio::test]
async fn a_connection_too_many_is_noticed() {
    let listener = Listener::bind().await;
    listener.expect_no_more().await;
    let _client = Wire::connect(listener.address()).await.unwrap();
    let mut watching = JoinSet::new();
    watching.spawn(async move { listener.expect_no_more().await });
    assert!(within(watching.join_next()).await.unwrap().unwrap_err().is_panic());
}

#[test]
fn a_conversation_over_pipes_writes_and_reads_at_once() {
    let (client, input, output) = StdioClient::new();
    // More than two pipes hold.
    let pieces = vec![vec![b'x'; 100_000]; 10];
    let echo = std::thread::spawn(move || {
        let (mut input, mut output) = (std::fs::File::from(input), std::fs::File::from(output));
        std::io::copy(&mut input, &mut output)
    });
    assert_eq!(client.converse(pieces).len(), 1_000_000);
    assert_eq!(echo.join().unwrap().unwrap(), 1_000_000);
}
