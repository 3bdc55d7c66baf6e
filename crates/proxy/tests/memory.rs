//! A message far over the limit passes in a stream: it is never in memory as a whole. A program of its own, so that
//! nothing else uses memory beside it.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy does not take the helpers of an integration test for tests"
)]

mod common;

use std::io::Read as _;
use std::process::Command;
use std::thread;

use common::{Bench, Proxy, dropped};
use mcpscope_core::Transport;
use mcpscope_proxy::Limits;
use mcpscope_proxy::stdio::{ClientEnd, spawn};
use mcpscope_test_support::{BodyReader, Listener, StdioClient, http, within};

/// The whole message, in bytes.
const MESSAGE: usize = 128 << 20;
/// What the process may use more at its worst moment: the default limit, grown by doubling, and some slack.
const MORE: usize = 64 << 20;
static PIECE: [u8; 64 * 1024] = [b'x'; 64 * 1024];

/// The most memory that this process has ever had resident, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

/// One test for both, because the peak is the process's.
#[tokio::test]
async fn memory_stays_flat_whatever_the_size_of_a_message() {
    let before = peak();
    stdio().await;
    let after = peak();
    assert!(after - before < MORE, "stdio: {} MiB more", (after - before) >> 20);
    http().await;
    let after = peak();
    assert!(after - before < MORE, "HTTP: {} MiB more", (after - before) >> 20);
}

async fn stdio() {
    let bench = Bench::new();
    let (client, input, output) = StdioClient::new();
    let ends = ClientEnd { input, output };
    let relay = spawn(Command::new("cat"), ends, &bench.probe(Transport::Stdio), Limits::default()).unwrap();
    let StdioClient { mut writer, mut reader } = client;
    let writing = thread::spawn(move || {
        (0..MESSAGE / PIECE.len()).try_for_each(|_| std::io::Write::write_all(&mut writer, &PIECE))
    });
    let reading = thread::spawn(move || {
        let mut piece = PIECE;
        let mut total = 0;
        loop {
            match reader.read(&mut piece).unwrap() {
                0 => return total,
                read => total += read,
            }
        }
    });
    assert!(within(relay.wait()).await.unwrap().success());
    writing.join().unwrap().unwrap();
    assert_eq!(reading.join().unwrap(), MESSAGE);
    bench.becomes(&dropped("oversized_message"), 2).await;
}

async fn http() {
    let bench = Bench::new();
    let upstream = Listener::bind().await;
    let proxy = Proxy::start(upstream.address(), bench.probe(Transport::Http)).await;
    let mut client = proxy.connect().await;
    let length = MESSAGE.to_string();
    let json = ("Content-Type", "application/json");
    let asking = async {
        client.write(&http::request_head("POST", "/mcp", &[json, ("Content-Length", &length)])).await.unwrap();
        for _ in 0..MESSAGE / PIECE.len() {
            client.writer.write(&PIECE).await.unwrap();
        }
        let head = client.reader.head().await.unwrap().unwrap();
        let mut body = BodyReader::of(&head);
        let mut total = 0;
        while let Some(part) = body.part(&mut client.reader).await.unwrap() {
            total += part.len();
        }
        total
    };
    let answering = async {
        let mut server = upstream.accept().await;
        let head = server.reader.head().await.unwrap().unwrap();
        let mut body = BodyReader::of(&head);
        let mut total = 0;
        while let Some(part) = body.part(&mut server.reader).await.unwrap() {
            total += part.len();
        }
        server.write(&http::answer_head("200 OK", &[json, ("Transfer-Encoding", "chunked")])).await.unwrap();
        for _ in 0..MESSAGE / PIECE.len() {
            server.write(&http::chunk(&PIECE)).await.unwrap();
        }
        server.write(http::LAST_CHUNK).await.unwrap();
        total
    };
    let (answered, asked) = within(async { tokio::join!(asking, answering) }).await;
    assert_eq!((asked, answered), (MESSAGE, MESSAGE));
    bench.becomes(&dropped("oversized_message"), 2).await;
}
