//! A process out of file descriptors. The limit is the whole process's, so this test has one to itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::ClockAnchor;
use mcpscope_dashboard::{Config, serve};
use mcpscope_hub::{Sources, hub};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::time::timeout;

#[tokio::test]
async fn accepting_goes_on_once_there_are_descriptors_again() {
    let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
    let (reporter, health) = mcpscope_hub::health::channel(anchor.mono);
    let sources = Sources { metrics: None, tracer: None, reporter, health, instrumentation: None, chaos: None, anchor };
    let (_hub, reader, admin) = hub(sources, mcpscope_hub::Config::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // Connected by the system, not accepted yet.
    let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    client.set_nonblocking(true).unwrap();
    let mut client = tokio::net::TcpStream::from_std(client).unwrap();

    // Numbers are given out lowest first, so all below the newest are taken and the next would be over the limit.
    let before = getrlimit(Resource::Nofile);
    let limit = u64::try_from(client.as_raw_fd()).unwrap() + 1;
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), ..before }).unwrap();
    assert!(std::fs::File::open("/dev/null").is_err(), "there are descriptors left");

    let client = async {
        let mut answer = Vec::new();
        let early = timeout(Duration::from_millis(400), client.read_to_end(&mut answer)).await;
        assert!(early.is_err(), "answered without a descriptor");
        setrlimit(Resource::Nofile, before).unwrap();
        timeout(Duration::from_secs(20), client.read_to_end(&mut answer)).await.expect("an answer").unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
    };
    serve(vec![listener], reader, admin, Config::default(), client).await.unwrap();
}
