//! How the stdio relay behaves when one side ends, stops reading, misbehaves, or a fault is active.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy does not take the helpers of an integration test for tests"
)]
#![allow(clippy::disallowed_methods, reason = "tests spawn the parts that they connect")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::{
    Bench, Chaos, Panics, connections, dropped, ended, errors, holds, operations, queued, sessions, tool_calls, way,
};
use mcpscope_core::{Direction, Transport};
use mcpscope_health::State;
use mcpscope_hooks::{Parts, Probe};
use mcpscope_metrics::desc;
use mcpscope_proxy::stdio::{ClientEnd, StdioRelay, spawn};
use mcpscope_proxy::{Limits, Traffic};
use mcpscope_test_support::{PATIENCE, StdioClient, eventually, read_to_end, within};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"}}"#;

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

fn start(command: Command, probe: &Probe) -> (StdioClient, StdioRelay) {
    start_with(command, probe, Limits::default())
}

fn start_with(command: Command, probe: &Probe, limits: Limits) -> (StdioClient, StdioRelay) {
    let (client, input, output) = StdioClient::new();
    (client, spawn(command, ClientEnd { input, output }, probe, limits).unwrap())
}

/// What the client reads while it writes these lines, and how the child ends.
async fn converse(command: Command, probe: &Probe, input: &str) -> (String, ExitStatus) {
    let (client, relay) = start(command, probe);
    let pieces = vec![input.to_owned()];
    let output = tokio::task::spawn_blocking(move || client.converse(pieces));
    let status = within(relay.wait()).await.unwrap();
    (String::from_utf8(within(output).await.unwrap()).unwrap(), status)
}

#[tokio::test]
async fn the_exit_code_is_the_childs() {
    let bench = Bench::new();
    let (output, status) = converse(sh("echo out; exit 7"), &bench.probe(Transport::Stdio), "").await;
    assert_eq!((output.as_str(), status.code()), ("out\n", Some(7)));
    assert_eq!(bench.value(&errors("server", "crash")), 1);
    assert_eq!(bench.value(&operations("server")), 2, "start and stop");
}

#[tokio::test]
async fn a_signal_that_ends_the_child_is_told() {
    let bench = Bench::new();
    let (_, status) = converse(sh("kill -9 $$"), &bench.probe(Transport::Stdio), "").await;
    assert_eq!(status.signal(), Some(9));
    assert_eq!(bench.value(&errors("server", "crash")), 1);
}

#[tokio::test]
async fn a_signal_reaches_the_child_and_its_descendants_and_is_no_crash() {
    let bench = Bench::new();
    // The shell waits for a descendant that ends by the signal only.
    let (client, relay) = start(sh("exec 3<&0; cat <&3; exit 1"), &bench.probe(Transport::Stdio));
    relay.child().signal(Signal::TERM);
    let child = relay.child();
    let status = within(relay.wait()).await.unwrap();
    assert_eq!(status.signal(), Some(15));
    assert_eq!(child.id(), None);
    child.signal(Signal::TERM);
    assert_eq!(bench.value(&errors("server", "crash")), 0);
    assert_eq!(read_to_end(client.reader), b"");
}

#[tokio::test]
async fn the_end_of_the_input_reaches_the_child_and_its_last_words_the_client() {
    let probe = Bench::new().probe(Transport::Stdio);
    let (output, status) = converse(sh("cat; echo bye; exit 3"), &probe, "hello").await;
    assert_eq!((output.as_str(), status.code()), ("hellobye\n", Some(3)));
}

#[tokio::test]
async fn a_child_that_closes_its_output_early_is_served_on() {
    let probe = Bench::new().probe(Transport::Stdio);
    let (mut client, relay) = start(sh("echo one; exec >&-; read line; test \"$line\" = go && exit 4"), &probe);
    let output = tokio::task::spawn_blocking(move || read_to_end(client.reader));
    assert_eq!(within(output).await.unwrap(), b"one\n", "the end of the output, before the child's");
    client.writer.write_all(b"go\n").unwrap();
    assert_eq!(within(relay.wait()).await.unwrap().code(), Some(4));
}

#[tokio::test]
async fn a_child_that_ignores_the_end_of_its_input_is_asked_to_end() {
    let bench = Bench::new();
    let script = "trap 'exit 7' TERM; echo; while :; do sleep 0.05; done";
    let (mut client, relay) = start(sh(script), &bench.probe(Transport::Stdio));
    // Its trap is set.
    client.reader.read_exact(&mut [0]).unwrap();
    let status = within(relay.end_after(async { drop(client) })).await.unwrap();
    assert_eq!(status.code(), Some(7));
    assert_eq!(bench.value(&errors("server", "crash")), 0);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_ignores_that_too_is_made_to_end() {
    let bench = Bench::new();
    let script = "trap '' TERM; echo; while :; do sleep 0.05; done";
    let (mut client, relay) = start(sh(script), &bench.probe(Transport::Stdio));
    client.reader.read_exact(&mut [0]).unwrap();
    let began = tokio::time::Instant::now();
    let status = relay.end_after(async { drop(client) }).await.unwrap();
    assert_eq!(status.signal(), Some(9));
    assert!(began.elapsed() >= Duration::from_secs(12), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_descendant_that_holds_the_output_open_does_not_hold_the_relay() {
    let probe = Bench::new().probe(Transport::Stdio);
    let (client, relay) = start(sh("exec 3<&0; echo last; cat <&3 & exit 4"), &probe);
    let StdioClient { reader, writer } = client;
    let output = tokio::task::spawn_blocking(move || read_to_end(reader));
    assert_eq!(within(relay.wait()).await.unwrap().code(), Some(4));
    assert_eq!(within(output).await.unwrap(), b"last\n");
    drop(writer);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_late_misses_nothing() {
    let probe = Bench::new().probe(Transport::Stdio);
    // More than the client's pipe takes, less than it and the child's: the child ends before anything is read.
    let words = "x".repeat(1023) + "\n";
    let script = "i=0; while [ $i -lt 100 ]; do echo $WORDS; i=$((i+1)); done";
    let mut command = sh(script);
    command.env("WORDS", words.trim_end());
    let (client, relay) = start(command, &probe);
    let child = relay.child();
    let waiting = tokio::spawn(relay.wait());
    let patience = Instant::now() + PATIENCE;
    while child.id().is_some() {
        assert!(Instant::now() < patience, "the child has room for all of its output");
        tokio::task::yield_now().await;
    }
    // On a paused clock this is longer than the relay waits for the rest, and takes no time.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!waiting.is_finished(), "what is not written yet is still to be read");
    let output = thread::spawn(move || read_to_end(client.reader)).join().unwrap();
    assert!(output == words.repeat(100).into_bytes());
    assert!(waiting.await.unwrap().unwrap().success());
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_named() {
    let (_client, input, output) = StdioClient::new();
    let ends = ClientEnd { input, output };
    let probe = Bench::new().probe(Transport::Stdio);
    let error = spawn(Command::new("/no/such-server"), ends, &probe, Limits::default()).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    let told = (error.to_string(), cause);
    assert_eq!(told, ("cannot start \"/no/such-server\"".into(), "No such file or directory (os error 2)".into()));
}

/// Whether the client could write at least once more within a time that is long for a relay.
fn writable(client: &StdioClient) -> bool {
    let quiet = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
    poll(&mut [PollFd::new(&client.writer, PollFlags::OUT)], Some(&quiet)).unwrap() > 0
}

fn backpressure(probe: &Probe, bench: &Bench) -> Vec<u8> {
    const LINE: usize = 4096;
    const ALL: usize = 32 << 20;
    let line = [vec![b' '; LINE - 1], b"\n".to_vec()].concat();
    let (mut client, relay) = start(Command::new("cat"), probe);
    let mut written = 0;
    // A pipe that can be written to takes a page without blocking.
    while written < ALL && writable(&client) {
        client.writer.write_all(&line).unwrap();
        written += LINE;
    }
    // Four pipes, two buffers of the relay, one of the child.
    assert!(written <= 1 << 20, "{written} bytes are somewhere");
    assert_eq!(bench.value(&connections(Transport::Stdio)), 1);
    let lines = client.converse(vec![b"last\n"]);
    assert_eq!(lines.len(), written + 5);
    drop(relay);
    lines
}

#[test]
fn a_client_that_stops_reading_stops_the_server() {
    let bench = Bench::new();
    let lines = backpressure(&bench.probe(Transport::Stdio), &bench);
    assert!(lines.ends_with(b" \nlast\n"));
    let bench = Bench::new();
    let holding = holds(bench.parts(Transport::Stdio));
    assert!(backpressure(&holding, &bench).ends_with(b" \nlast\n"));
}

#[tokio::test]
async fn what_waits_for_a_slow_client_is_the_queue() {
    let bench = Bench::new();
    let (mut client, relay) = start(Command::new("cat"), &bench.probe(Transport::Stdio));
    let message = format!("{CALL}\n");
    let mut sent = Vec::new();
    while writable(&client) {
        client.writer.write_all(message.as_bytes()).unwrap();
        sent.extend_from_slice(message.as_bytes());
    }
    assert!(bench.value(&queued("to_client")) > 0, "{:#?}", bench.counts());
    assert!(bench.value(&queued("to_server")) > 0, "{:#?}", bench.counts());
    let output = tokio::task::spawn_blocking(move || client.converse(Vec::<Vec<u8>>::new()));
    assert!(within(relay.wait()).await.unwrap().success());
    assert!(output.await.unwrap() == sent);
    bench.becomes(&queued("to_client"), 0).await;
    bench.becomes(&queued("to_server"), 0).await;
}

#[tokio::test]
async fn garbage_passes_and_is_counted() {
    let bench = Bench::new();
    let script = r#"printf 'Listening on stdio\n\377\376\n\n{}\n{"jsonrpc":"2.0","method":"notifications/message"}\n'"#;
    let (client, relay) = start(sh(script), &bench.probe(Transport::Stdio));
    let output = tokio::task::spawn_blocking(move || read_to_end(client.reader));
    assert!(within(relay.wait()).await.unwrap().success());
    let expected = b"Listening on stdio\n\xff\xfe\n\n{}\n{\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\"}\n";
    assert_eq!(within(output).await.unwrap(), expected);
    assert_eq!(bench.value(&errors("transport", "invalid_message")), 3, "an empty line is no message");
    assert_eq!(bench.value(&operations("transport")), 4);
}

#[tokio::test]
async fn what_is_too_large_passes_and_is_counted() {
    let bench = Bench::new();
    let probe = bench.probe(Transport::Stdio);
    let limits = Limits { max_message: 1000, ..Limits::default() };
    let (client, relay) = start_with(Command::new("cat"), &probe, limits);
    let large = format!(r#"{{"method":"tools/call","id":1,"params":{{"name":"echo","a":"{}"}}}}"#, "x".repeat(3 << 20));
    let input = format!("{CALL}\n{large}\n{CALL}\n");
    let pieces = vec![input.clone()];
    let output = tokio::task::spawn_blocking(move || client.converse(pieces));
    assert!(within(relay.wait()).await.unwrap().success());
    assert!(within(output).await.unwrap() == input.as_bytes());
    bench.becomes(&dropped("oversized_message"), 2).await;
    assert_eq!(bench.value(&operations("transport")), 4, "those around it were looked at, on both ways");
}

#[tokio::test]
async fn calls_without_an_answer_at_the_end_have_timed_out() {
    let bench = Bench::new();
    let (_, status) = converse(sh("read line"), &bench.probe(Transport::Stdio), &format!("{CALL}\n")).await;
    assert!(status.success());
    bench.becomes(&tool_calls("echo", "timeout"), 1).await;
    assert_eq!(bench.value(&errors("tools", "timeout")), 1);
}

#[tokio::test]
async fn a_call_that_waits_too_long_has_timed_out_while_the_relay_goes_on() {
    let bench = Bench::new();
    let limits = Limits { call_timeout: Duration::ZERO, ..Limits::default() };
    let (mut client, relay) = start_with(sh("cat > /dev/null"), &bench.probe(Transport::Stdio), limits);
    let waiting = tokio::spawn(relay.wait());
    client.writer.write_all(format!("{CALL}\n").as_bytes()).unwrap();
    bench.becomes(&tool_calls("echo", "timeout"), 1).await;
    assert!(!waiting.is_finished());
    drop(client);
    assert!(within(waiting).await.unwrap().unwrap().success());
}

#[tokio::test]
async fn a_session_and_its_connection_last_as_long_as_the_pair() {
    let bench = Bench::new();
    let script = r#"read line; echo '{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-06-18"}}'; cat"#;
    let (mut client, relay) = start(sh(script), &bench.probe(Transport::Stdio));
    assert_eq!(bench.value(&connections(Transport::Stdio)), 1);
    let initialize = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18"}}"#;
    writeln!(client.writer, "{initialize}").unwrap();
    bench.becomes(&sessions("2025-06-18"), 1).await;
    drop(client.writer);
    assert!(within(relay.wait()).await.unwrap().success());
    bench.becomes(&sessions("2025-06-18"), 0).await;
    assert_eq!(bench.value(&connections(Transport::Stdio)), 0);
    assert_eq!(
        read_to_end(client.reader),
        b"{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{\"protocolVersion\":\"2025-06-18\"}}\n"
    );
    bench.records(&desc::SERVER_SESSIONS, &ended("2025-06-18", "pipe", ""), 1).await;
    assert_eq!(bench.sessions_ended(), 1);
    for direction in Direction::ALL {
        bench.records(&desc::PROXY_OVERHEAD, &way(direction), 1).await;
    }
}

#[tokio::test]
async fn a_session_ends_in_error_if_its_server_crashes() {
    let bench = Bench::new();
    let script = r#"read line; echo '{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-06-18"}}'; exit 3"#;
    let initialize = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18"}}"#;
    let (_, status) = converse(sh(script), &bench.probe(Transport::Stdio), &format!("{initialize}\n")).await;
    assert_eq!(status.code(), Some(3));
    bench.records(&desc::SERVER_SESSIONS, &ended("2025-06-18", "pipe", "crash"), 1).await;
    assert_eq!(bench.sessions_ended(), 1);
}

#[tokio::test]
async fn what_a_fault_delays_or_drops_took_the_proxy_no_time() {
    const DELAY: Duration = Duration::from_secs(1);
    let bench = Bench::new();
    let chaos = Chaos::new(bench.parts(Transport::Stdio));
    chaos.start("latency_injection", &["delay=1s", "tool=echo", "direction=to_server"]);
    chaos.start("lost_request", &["tool=lost"]);
    let lost = CALL.replace("echo", "lost").replace(":1,", ":2,");
    let sent = Instant::now();
    // The last one has no line feed: it is complete with the end of the input.
    let (output, _) = converse(Command::new("cat"), &chaos.probe, &format!("{lost}\n{CALL}\n{CALL}")).await;
    assert_eq!(output, format!("{CALL}\n{CALL}"));
    let took = bench.records(&desc::PROXY_OVERHEAD, &way(Direction::ToServer), 2).await;
    assert!(sent.elapsed() >= DELAY && took < DELAY.as_secs_f64(), "{took}");
    bench.records(&desc::PROXY_OVERHEAD, &way(Direction::ToClient), 2).await;
}

#[tokio::test]
async fn a_client_may_use_sockets_for_pipes() {
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    let (mut writer, input) = UnixStream::pair().unwrap();
    let (mut reader, output) = UnixStream::pair().unwrap();
    let ends = ClientEnd { input: input.into(), output: output.into() };
    let probe = Bench::new().probe(Transport::Stdio);
    let relay = spawn(sh("cat; echo bye"), ends, &probe, Limits::default()).unwrap();
    writer.write_all(CALL.as_bytes()).unwrap();
    writer.shutdown(Shutdown::Write).unwrap();
    let output = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map(|_| bytes)
    });
    assert!(within(relay.wait()).await.unwrap().success());
    assert_eq!(within(output).await.unwrap().unwrap(), format!("{CALL}bye\n").as_bytes());
}

const DELAY: Duration = Duration::from_millis(150);

#[tokio::test]
async fn a_delayed_message_comes_late_and_what_follows_keeps_its_order() {
    let bench = Bench::new();
    let late = ["delay=150ms", "method=tools/call", "direction=to_server"];
    let probe = Chaos::with(bench.parts(Transport::Stdio), "latency_injection", &late);
    let (mut client, relay) = start(Command::new("cat"), &probe);
    let mut reader = BufReader::new(client.reader);
    let mut line = String::new();
    let first = "{\"method\":\"notifications/a\"}\n";
    let last = "{\"method\":\"notifications/b\"}\n";
    client.writer.write_all(first.as_bytes()).unwrap();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, first, "what no fault touches is not held");
    let sent = Instant::now();
    client.writer.write_all(format!("{CALL}\n{last}").as_bytes()).unwrap();
    line.clear();
    reader.read_line(&mut line).unwrap();
    assert!(sent.elapsed() >= DELAY, "{:?}", sent.elapsed());
    assert_eq!(line, format!("{CALL}\n"));
    line.clear();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, last);
    drop(client.writer);
    assert!(within(relay.wait()).await.unwrap().success());
}

#[tokio::test]
async fn a_dropped_message_never_arrives_and_its_call_is_marked() {
    let bench = Bench::new();
    let probe = Chaos::with(bench.parts(Transport::Stdio), "lost_request", &["tool=echo"]);
    let other = CALL.replace("echo", "other").replace(":1,", ":2,");
    let (output, status) = converse(Command::new("cat"), &probe, &format!("{other}\n{CALL}\n{other}")).await;
    assert!(status.success());
    assert_eq!(output, format!("{other}\n{other}"));
    bench.becomes(&tool_calls("echo", "timeout").replace("injected=\"false\"", "injected=\"true\""), 1).await;
}

#[tokio::test]
async fn a_fault_that_ends_lets_go_of_what_it_held() {
    let bench = Bench::new();
    let chaos = Chaos::new(bench.parts(Transport::Stdio));
    let fault = chaos.start("lost_request", &[]);
    let (mut client, relay) = start(Command::new("cat"), &chaos.probe);
    // A whole message, so that the half behind it in the same write is known to have been read.
    let (whole, half) = ("{\"method\":\"notifications/a\"}\n", "{\"method\":");
    client.writer.write_all(format!("{whole}{half}").as_bytes()).unwrap();
    let mut got = vec![0; whole.len()];
    client.reader.read_exact(&mut got).unwrap();
    chaos.stop(fault).await;
    client.writer.write_all(b"\"notifications/b\"").unwrap();
    let mut got = vec![0; half.len() + 17];
    client.reader.read_exact(&mut got).unwrap();
    assert_eq!(got, b"{\"method\":\"notifications/b\"");
    client.writer.write_all(b"}\n").unwrap();
    drop(client.writer);
    assert_eq!(read_to_end(client.reader), b"}\n");
    assert!(within(relay.wait()).await.unwrap().success());
    bench.becomes(&operations("transport"), 4).await;
}

#[tokio::test]
async fn a_panic_inside_recording_leaves_the_traffic_alone_and_is_counted() {
    let bench = Bench::new();
    let broken = Arc::new(Panics);
    let parts = Parts { observer: Some(broken), ..bench.parts(Transport::Stdio) };
    let input = format!("{CALL}\n{}\n", r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
    let (output, status) = converse(Command::new("cat"), &Probe::new(parts), &input).await;
    assert!(status.success());
    assert_eq!(output, input);
    eventually(|| if bench.value(&dropped("panic")) >= 1 { Ok(()) } else { Err(bench.counts()) }).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_told_of_and_loses_nothing() {
    // More than the pipes hold.
    const MESSAGES: usize = 20_000;
    let bench = Bench::new();
    let limits = Limits { queue_messages: 10, ..Limits::default() };
    let (client, relay) = start_with(Command::new("cat"), &bench.probe(Transport::Stdio), limits);
    let (reporter, view) = mcpscope_health::channel(Instant::now());
    let traffic = Arc::new(Traffic::new(reporter));
    traffic.works();
    let relay = relay.telling(traffic);
    let transports = async |expected: State| {
        eventually(|| {
            let mut report = view.report(Instant::now(), SystemTime::now());
            let found = report.components.remove("transports").ok_or("no component")?;
            if found.state == expected { Ok(found.message) } else { Err(found.message) }
        })
        .await
    };
    let StdioClient { mut writer, reader } = client;
    let line = b"{\"jsonrpc\":\"2.0\",\"method\":\"a\"}\n";
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let writing = thread::spawn(move || {
        writer.write_all(&line.repeat(MESSAGES)).unwrap();
        // The relay goes on until its client has seen that it is well again.
        wait.recv().unwrap_err();
    });
    let checking = async {
        let reason = transports(State::Warning).await;
        assert!(reason.contains(" of 10 messages"), "{reason}");
        let reading = tokio::task::spawn_blocking(move || {
            let mut all = vec![0; line.len() * MESSAGES];
            BufReader::new(reader).read_exact(&mut all).unwrap();
            all
        });
        assert!(within(reading).await.unwrap() == line.repeat(MESSAGES), "all of them came");
        transports(State::Healthy).await;
        bench.becomes(&queued("to_client"), 0).await;
        drop(go);
    };
    let (status, ()) = tokio::join!(relay.wait(), checking);
    assert!(status.unwrap().success());
    writing.join().unwrap();
}
