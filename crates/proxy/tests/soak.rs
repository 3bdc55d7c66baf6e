//! Many sessions at once, a part of which break off anywhere: nothing is lost, nothing is left behind. A program of its own,
//! so that the descriptors and tasks it counts are its own.
//!
//! `cargo xtask soak` runs it for ten minutes.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy does not take the helpers of an integration test for tests"
)]
#![allow(clippy::disallowed_methods, reason = "tests spawn the parts that they connect")]

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Bench, Proxy, connections, dropped, queued, tool_calls};
use mcpscope_core::Transport;
use mcpscope_test_support::{BodyReader, Listener, Wire, eventually, http};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

const SESSIONS: u64 = 200;
/// Connections that each session makes if no time is given.
const CONNECTIONS: u64 = 5;
/// Exchanges of a connection at most.
const EXCHANGES: u64 = 8;
/// One exchange in so many is broken off.
const BREAK_OFF: u64 = 6;
const JSON: (&str, &str) = ("Content-Type", "application/json");
const TOOLS: [&str; 3] = ["small", "large", "stream"];

/// What was counted at one end.
#[derive(Debug, Default)]
struct Counts {
    /// Requests that began to be sent; that arrived whole.
    requests: AtomicU64,
    /// Answers that arrived whole; that were sent whole.
    answers: AtomicU64,
}

impl Counts {
    fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn answer(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }
}

/// How long it goes on beyond the connections that are always made.
fn duration() -> Duration {
    let seconds = std::env::var("MCPSCOPE_SOAK_SECONDS").ok();
    seconds.map_or(Duration::ZERO, |seconds| Duration::from_secs(seconds.parse().expect("a number of seconds")))
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_nothing_is_left_behind() {
    let (at_the_clients, at_the_server) = (Arc::new(Counts::default()), Arc::new(Counts::default()));
    let (bench, listener) = (Bench::new(), Listener::bind().await);
    let proxy = Proxy::start(listener.address(), bench.probe(Transport::Http)).await;
    let mut server = JoinSet::new();
    server.spawn(serve(listener, Arc::clone(&at_the_server)));
    // Once round, so that what is made once is there.
    session(&proxy, 0, &at_the_clients, Instant::now()).await;
    bench.becomes(&connections(Transport::Http), 0).await;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = eventually(|| if tasks() == 2 { Ok((tasks(), descriptors())) } else { Err(tasks()) }).await;

    let until = Instant::now() + duration();
    let proxy = Arc::new(proxy);
    let mut sessions = JoinSet::new();
    for seed in 1..SESSIONS {
        let (proxy, counts) = (Arc::clone(&proxy), Arc::clone(&at_the_clients));
        sessions.spawn(async move { session(&proxy, seed, &counts, until).await });
    }
    while let Some(ended) = sessions.join_next().await {
        ended.unwrap();
    }

    bench.becomes(&connections(Transport::Http), 0).await;
    bench.becomes(&queued("to_server"), 0).await;
    bench.becomes(&queued("to_client"), 0).await;
    eventually(|| if (tasks(), descriptors()) == before { Ok(()) } else { Err((tasks(), descriptors(), before)) })
        .await;
    let ended = |outcome: &str| TOOLS.iter().map(|tool| bench.value(&tool_calls(tool, outcome)) as u64).sum::<u64>();
    let (ok, cancelled, error) = (ended("ok"), ended("cancelled"), ended("error"));
    let [asked, answered] = [&at_the_clients.requests, &at_the_clients.answers].map(|n| n.load(Ordering::Relaxed));
    let [arrived, sent] = [&at_the_server.requests, &at_the_server.answers].map(|n| n.load(Ordering::Relaxed));
    let counts = format!(
        "clients asked {asked} and were answered {answered}; {arrived} arrived and {sent} were answered; \
         counted ok {ok}, cancelled {cancelled}, error {error}"
    );
    println!("{counts}");
    // What was answered had been counted, what arrived had passed, and what passed had been asked.
    assert!(answered <= ok && ok <= sent, "{counts}");
    assert!(arrived <= ok + cancelled + error && ok + cancelled + error <= asked, "{counts}");
    assert_eq!(error, 0, "no server failed: {counts}");
    assert!(answered > asked / 2 && answered < asked, "most are answered, some break off: {counts}");
    for what in ["panic", "untracked_call", "unmatched_response", "oversized_message"] {
        assert_eq!(bench.value(&dropped(what)), 0, "{what}");
    }
}

/// A client that makes one connection after the other.
async fn session(proxy: &Proxy, seed: u64, counts: &Counts, until: Instant) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut made = 0;
    while made < CONNECTIONS || Instant::now() < until {
        made += 1;
        let mut wire = proxy.connect().await;
        for id in 0..random.u64(1..=EXCHANGES) {
            let tool = TOOLS[random.usize(..TOOLS.len())];
            counts.request();
            match exchange(&mut wire, &mut random, seed << 32 | id, tool).await {
                Some(()) => counts.answer(),
                // Dropped where it is.
                None => break,
            }
        }
    }
}

/// Asks, and reads the answer; nothing if it breaks off.
async fn exchange(wire: &mut Wire, random: &mut fastrand::Rng, id: u64, tool: &str) -> Option<()> {
    let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{tool}"}}}}"#);
    let request = if random.bool() {
        http::request("POST", "/mcp", &[JSON], body.as_bytes())
    } else {
        let (first, second) = body.as_bytes().split_at(random.usize(1..body.len()));
        let head = http::request_head("POST", "/mcp", &[JSON, ("Transfer-Encoding", "chunked")]);
        [&head, &http::chunk(first)[..], &http::chunk(second), http::LAST_CHUNK].concat()
    };
    let breaks_off = random.u64(..BREAK_OFF) == 0;
    if breaks_off && random.bool() {
        wire.write(&request[..random.usize(..=request.len())]).await.unwrap();
        return None;
    }
    wire.write(&request).await.unwrap();
    let head = wire.reader.head().await.unwrap().unwrap();
    assert_eq!(head.status(), 200);
    let mut reader = BodyReader::of(&head);
    let mut answer = Vec::new();
    while let Some(part) = reader.part(&mut wire.reader).await.unwrap() {
        answer.extend_from_slice(&part);
        if breaks_off {
            return None;
        }
    }
    assert_eq!(String::from_utf8(answer).unwrap(), String::from_utf8(body_of(id, tool).concat()).unwrap());
    Some(())
}

/// The parts of the answer to a call.
fn body_of(id: u64, tool: &str) -> Vec<Vec<u8>> {
    let result = |text: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"text":"{text}"}}}}"#);
    match tool {
        "small" => vec![result("x").into_bytes()],
        "large" => result(&"y".repeat(100_000)).as_bytes().chunks(9000).map(<[u8]>::to_vec).collect(),
        _ => {
            let progress = format!("data: {}\n\n", r#"{"jsonrpc":"2.0","method":"notifications/message"}"#);
            let last = format!("event: message\ndata: {}\n\n", result("z"));
            vec![progress.clone().into_bytes(), b": still there\n\n".to_vec(), progress.into_bytes(), last.into_bytes()]
        }
    }
}

async fn serve(listener: Listener, counts: Arc<Counts>) {
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            wire = listener.next() => {
                let counts = Arc::clone(&counts);
                // Who breaks off is no failure of the server.
                serving.spawn(async move { drop(answer(wire, &counts).await) });
            }
            Some(_) = serving.join_next() => {}
        }
    }
}

async fn answer(mut wire: Wire, counts: &Counts) -> io::Result<()> {
    loop {
        let Some(message) = wire.reader.message().await? else { return Ok(()) };
        counts.request();
        let call: serde_json::Value = serde_json::from_slice(&message.body)?;
        let (id, tool) = (call["id"].as_u64().unwrap(), call["params"]["name"].as_str().unwrap());
        let parts = body_of(id, tool);
        // Before the last byte is written: its client may have read it before this goes on.
        let (last, first) = parts.split_last().unwrap();
        if tool == "stream" {
            wire.write(&http::stream_head("200 OK", &[])).await?;
            for part in first {
                wire.write(&http::chunk(part)).await?;
            }
            counts.answer();
            wire.write(&[&http::chunk(last)[..], http::LAST_CHUNK].concat()).await?;
        } else {
            let length = parts.concat().len().to_string();
            wire.write(&http::answer_head("200 OK", &[JSON, ("Content-Length", &length)])).await?;
            for part in first {
                wire.write(part).await?;
            }
            counts.answer();
            wire.write(last).await?;
        }
    }
}
